/// Softmax attention by blocks for long sequences: a block of w positions attends to itself and its neighbours, in the time and memory of
/// L · 3w (Amos et al. 2023, *Never Train from Scratch*, with w = 4096 from 16k positions on; as in Beltagy et al. 2020 without a
/// sliding window's diagonals).
///
/// A causal mixer attends to the block before and its own past. A sequence of at most w positions is seen whole.
public final class BlockAttention: Module, SequenceMixer {
  public struct Configuration: Sendable {
    public var width: Int
    public var heads: Int
    /// w.
    public var block: Int
    public var isCausal: Bool
    /// Rotary positions with this base; `nil` for none.
    public var rotaryBase: Double?

    public init(width: Int, heads: Int = 4, block: Int = 4096, isCausal: Bool = false, rotaryBase: Double? = 10000) {
      self.width = width
      self.heads = heads
      self.block = block
      self.isCausal = isCausal
      self.rotaryBase = rotaryBase
    }
  }

  public let configuration: Configuration
  @Child public var query: any LinearLayer
  @Child public var key: any LinearLayer
  @Child public var value: any LinearLayer
  @Child public var output: any LinearLayer
  private let rotary: RotaryEmbedding?

  public var isCausal: Bool { configuration.isCausal }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    require(c.heads > 0 && c.width % c.heads == 0, "width \(c.width) is not a multiple of \(c.heads) heads")
    require(c.block > 0, "a block needs a position, got \(c.block)")
    self.configuration = c
    rotary = c.rotaryBase.map { RotaryEmbedding(dimensions: c.width / c.heads, base: $0) }
    super.init()
    query = Linear(c.width, c.width, bias: false, generator: generator)
    key = Linear(c.width, c.width, bias: false, generator: generator)
    value = Linear(c.width, c.width, bias: false, generator: generator)
    output = Linear(c.width, c.width, bias: false, generator: generator)
  }

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    let heads = configuration.heads
    var (q, k, v) = (splitHeads(query(x), heads), splitHeads(key(x), heads), splitHeads(value(x), heads))
    if let rotary { (q, k) = rotary(q, k, starts: [context.offset]) }
    return output(mergeHeads(blockAttention(q, k, v, block: configuration.block, causal: isCausal, keyMask: context.mask)))
  }

  public func multiplyAdds(length: Int) -> Int {
    let seen = min(length, configuration.block * (isCausal ? 2 : 3))
    return length * (4 * query.multiplyAdds() + 2 * seen * configuration.width / (isCausal ? 2 : 1))
  }
}

/// Attention of queries [B, H, L, d] to the keys and values [B, H, L, d] of their block of `block` positions and its neighbours (of the one
/// before and the own past, when causal) → [B, H, L, d]. keyMask: [B, L] bool.
public func blockAttention(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, block: Int, causal: Bool, keyMask: Tensor? = nil
) -> Tensor {
  let length = query.dim(2)
  if length <= block { return softmaxAttention(query, key, value, keyMask: keyMask, causal: causal) }
  let rows = stride(from: 0, to: length, by: block).map { start -> Tensor in
    let end = min(start + block, length)
    let first = max(0, start - block)
    let last = causal ? end : min(end + block, length)
    func seen(_ x: Tensor) -> Tensor { x.narrowed(axis: 2, start: first, length: last - first) }
    return softmaxAttention(
      query.narrowed(axis: 2, start: start, length: end - start), seen(key), seen(value),
      keyMask: keyMask.map { $0.narrowed(axis: 1, start: first, length: last - first) }, causal: causal)
  }
  return concatenated(rows, axis: 2)
}

extension MixerKind {
  public static let block = MixerKind(
    name: "block", summary: "softmax attention to the own block of positions and its neighbours",
    keys: [
      headsKey, ConfigurationKey("block", .integer, default: 4096, "positions of a block"),
      ConfigurationKey("rotary", .boolean, default: true, "rotary positions on queries and keys"),
    ]
  ) { site, options, generator in
    let heads = try heads(options, site)
    let block = options["block"]?.intValue ?? 4096
    let isRotary = options["rotary"]?.boolValue ?? true
    guard block > 0 else { throw ConfigurationError("a block must have positions, got \(block)") }
    guard !isRotary || site.width / heads % 2 == 0 else {
      throw ConfigurationError("rotary positions need an even head width, got \(site.width / heads)")
    }
    return BlockAttention(
      .init(width: site.width, heads: heads, block: block, isCausal: site.isCausal, rotaryBase: isRotary ? 10000 : nil),
      generator: generator)
  }
}
