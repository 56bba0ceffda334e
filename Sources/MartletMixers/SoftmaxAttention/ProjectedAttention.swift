/// Projections to queries, keys and values with norms and rotary positions: what softmax attention and its linearised form share.
protocol ProjectedAttention: Module {
  var configuration: SoftmaxAttention.Configuration { get }
  var query: any LinearLayer { get }
  var key: any LinearLayer { get }
  var value: any LinearLayer { get }
  var queryNorm: RMSNorm? { get }
  var keyNorm: RMSNorm? { get }
  var rotary: RotaryEmbedding? { get }
}

extension ProjectedAttention {
  /// Heads of queries [B, H, L, d], keys and values [B, Hk, L, d], turned to their positions.
  func project(_ x: Tensor, starts: [Int], packing: SequencePacking? = nil) -> (q: Tensor, k: Tensor, v: Tensor) {
    var q = splitHeads(query(x), configuration.heads)
    var k = splitHeads(key(x), configuration.keyValueHeads)
    let v = splitHeads(value(x), configuration.keyValueHeads)
    if let queryNorm, let keyNorm { (q, k) = (queryNorm(q), keyNorm(k)) }
    if let rotary {
      let angles =
        packing.map { rotary.angles(positions: $0.positions, dtype: q.dtype, device: q.device) }
        ?? rotary.angles(starts: starts, length: x.dim(1), dtype: q.dtype, device: q.device)
      (q, k) = (angles.turn(q), angles.turn(k))
    }
    return (q, k, v)
  }
}
