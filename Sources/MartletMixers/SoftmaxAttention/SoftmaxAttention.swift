/// Scaled dot-product attention with several heads (Vaswani et al. 2017, eq. 1):
///
///     y_i = Σ_j softmax_j(q_i·k_j / √d) v_j
///
/// over all positions, the past, or a sliding window; with fewer key/value heads than query heads it is grouped-query
/// attention (Ainslie et al. 2023). On CPU in float32 it runs on the fused kernel `martlet::attention`, which never stores
/// the score matrix; elsewhere on ``softmaxAttentionReference(_:_:_:keyMask:causal:window:scale:)``, which is also its oracle.
///
/// The recurrent state is the key/value cache: it grows with the context.
public final class SoftmaxAttention: Module, RecurrentMixer {
  public struct Configuration: Sendable {
    public var width: Int
    public var heads: Int
    /// Key/value heads; a divisor of `heads`.
    public var keyValueHeads: Int
    public var isCausal: Bool
    /// Positions seen on each side (the past only, when causal) besides the own one; `nil` for all.
    public var window: Int?
    /// Rotary positions with this base; `nil` for none.
    public var rotaryBase: Double?
    public var rotaryScaling: RotaryScaling?
    public var bias: Bool
    /// RMS-normalise queries and keys per head before the product (Dehghani et al. 2023; Henry et al. 2020).
    public var queryKeyNorm: Bool

    public init(
      width: Int, heads: Int = 4, keyValueHeads: Int? = nil, isCausal: Bool = true, window: Int? = nil,
      rotaryBase: Double? = 10000, rotaryScaling: RotaryScaling? = nil, bias: Bool = false, queryKeyNorm: Bool = false
    ) {
      self.width = width
      self.heads = heads
      self.keyValueHeads = keyValueHeads ?? heads
      self.isCausal = isCausal
      self.window = window
      self.rotaryBase = rotaryBase
      self.rotaryScaling = rotaryScaling
      self.bias = bias
      self.queryKeyNorm = queryKeyNorm
    }
  }

  public let configuration: Configuration
  @Child public var query: any LinearLayer
  @Child public var key: any LinearLayer
  @Child public var value: any LinearLayer
  @Child public var output: any LinearLayer
  @Child(key: "query_norm") public var queryNorm: RMSNorm?
  @Child(key: "key_norm") public var keyNorm: RMSNorm?
  private let rotary: RotaryEmbedding?

  public var isCausal: Bool { configuration.isCausal }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    require(c.width % c.heads == 0, "width \(c.width) is not a multiple of \(c.heads) heads")
    require(c.heads % c.keyValueHeads == 0, "\(c.heads) heads are not a multiple of \(c.keyValueHeads) key/value heads")
    self.configuration = c
    let d = c.width / c.heads
    rotary = c.rotaryBase.map { RotaryEmbedding(dimensions: d, base: $0, scaling: c.rotaryScaling) }
    super.init()
    query = Linear(c.width, c.width, bias: c.bias, generator: generator)
    key = Linear(c.width, d * c.keyValueHeads, bias: c.bias, generator: generator)
    value = Linear(c.width, d * c.keyValueHeads, bias: c.bias, generator: generator)
    output = Linear(c.width, c.width, bias: c.bias, generator: generator)
    queryNorm = c.queryKeyNorm ? RMSNorm(d) : nil
    keyNorm = c.queryKeyNorm ? RMSNorm(d) : nil
  }

  // MARK: Parallel form

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    let (q, k, v) = project(x, offset: context.offset)
    return output(
      mergeHeads(
        softmaxAttention(q, k, v, keyMask: context.mask, causal: isCausal, window: configuration.window.map { ($0, $0) })))
  }

  /// Heads of queries [B, H, L, d], keys and values [B, Hk, L, d], turned to their positions.
  private func project(_ x: Tensor, offset: Int) -> (q: Tensor, k: Tensor, v: Tensor) {
    var q = splitHeads(query(x), configuration.heads)
    var k = splitHeads(key(x), configuration.keyValueHeads)
    let v = splitHeads(value(x), configuration.keyValueHeads)
    if let queryNorm, let keyNorm { (q, k) = (queryNorm(q), keyNorm(k)) }
    if let rotary { (q, k) = (rotary(q, offset: offset), rotary(k, offset: offset)) }
    return (q, k, v)
  }

  // MARK: Recurrent form

  /// Keys and values of the past, in buffers that double when full (that are exactly filled while steps are differentiated).
  public struct State {
    /// [batch, key/value heads, capacity, d]
    public var keys: Tensor
    public var values: Tensor
    public var length: Int
  }

  public func initialState(batch: Int) -> State {
    require(isCausal, "bidirectional attention can't run token by token")
    let c = configuration
    let shape = [batch, c.keyValueHeads, 64, c.width / c.heads]
    let like = query.denseWeight()
    return State(
      keys: .zeros(shape, dtype: like.dtype, device: like.device), values: .zeros(shape, dtype: like.dtype, device: like.device),
      length: 0)
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor {
    advance(x.expandedDimension(1), &state).selected(axis: 1, 0)
  }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    let (q, k, v) = project(x, offset: state.length)
    append(k, v, to: &state)
    let window = configuration.window.map { ($0, $0) }
    if x.dim(1) == 1 && fusedKernelsServe(x) && !isGradientEnabled {
      let lengths = Tensor.full([x.dim(0)], Double(state.length), dtype: .int64)
      let y = attentionStep(
        .tensor(q.selected(axis: 2, 0)), .tensor(state.keys), .tensor(state.values), .tensor(lengths),
        .int(configuration.window ?? -1))
      return output(y.reshaped(x.dim(0), 1, -1))
    }
    let keys = state.keys.narrowed(axis: 2, start: 0, length: state.length)
    let values = state.values.narrowed(axis: 2, start: 0, length: state.length)
    return output(mergeHeads(softmaxAttention(q, keys, values, keyMask: nil, causal: true, window: window)))
  }

  private func append(_ k: Tensor, _ v: Tensor, to state: inout State) {
    let needed = state.length + k.dim(2)
    if isGradientEnabled && [k, v, state.keys, state.values].contains(where: \.requiresGradient) {
      // Writing in place would spoil what earlier steps keep for the backward pass.
      state.keys = concatenated([state.keys.narrowed(axis: 2, start: 0, length: state.length), k], axis: 2)
      state.values = concatenated([state.values.narrowed(axis: 2, start: 0, length: state.length), v], axis: 2)
      state.length = needed
      return
    }
    if needed > state.keys.dim(2) {
      let capacity = max(needed, 2 * state.keys.dim(2))
      let extra = [0, 0, 0, capacity - state.keys.dim(2)]
      state.keys = state.keys.padded(extra)
      state.values = state.values.padded(extra)
    }
    withoutGradient {
      state.keys.narrowed(axis: 2, start: state.length, length: k.dim(2)).copyInPlace(k)
      state.values.narrowed(axis: 2, start: state.length, length: v.dim(2)).copyInPlace(v)
    }
    state.length = needed
  }

  public func stateBytes(_ state: State) -> Int { state.keys.byteCount + state.values.byteCount }

  public func multiplyAdds(length: Int) -> Int {
    let seen = min(length, configuration.window.map { 2 * $0 + 1 } ?? length)
    let pairs = isCausal ? length * seen / 2 : length * seen
    return length * (query.multiplyAdds() + key.multiplyAdds() + value.multiplyAdds() + output.multiplyAdds())
      + 2 * pairs * configuration.width
  }
}

private let attentionStep = Operator("martlet::attention_step")
private let attention = Operator("martlet::attention")

/// Softmax attention of queries [B, H, L, d] over keys [B, Hk, S, d] and values [B, Hk, S, dv] → [B, H, L, dv].
///
/// - Parameters:
///   - keyMask: [B, S] bool, true where a key may be seen. A query that may see none gets 0.
///   - causal: query i sees keys up to i + S − L (the last query sees all).
///   - window: positions seen before and after the own one.
///   - scale: default d^−½.
public func softmaxAttention(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, keyMask: Tensor? = nil, causal: Bool, window: (Int, Int)? = nil,
  scale: Double? = nil
) -> Tensor {
  guard fusedKernelsServe(query) else {
    return softmaxAttentionReference(query, key, value, keyMask: keyMask, causal: causal, window: window, scale: scale)
  }
  return attention.many(
    .tensor(query), .tensor(key), .tensor(value), .tensor(keyMask), .bool(causal), .int(window?.0 ?? -1), .int(window?.1 ?? -1),
    scale.map { .double($0) } ?? .none)[0] ?? .zeros([1])
}

/// The same by the equation, with the whole score matrix: the oracle, and the path of other devices and dtypes.
public func softmaxAttentionReference(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, keyMask: Tensor? = nil, causal: Bool, window: (Int, Int)? = nil,
  scale: Double? = nil
) -> Tensor {
  let group = query.dim(1) / key.dim(1)
  let k = group > 1 ? key.repeated(group, axis: 1) : key
  let v = group > 1 ? value.repeated(group, axis: 1) : value
  let (l, s) = (query.dim(2), key.dim(2))
  var scores = query.matmul(k.T) * (scale ?? 1 / Double(query.dim(-1)).squareRoot())  // [B, H, L, S]
  var allowed = Tensor.ones([l, s], dtype: .bool, device: query.device)
  let i = (Tensor.arange(l, device: query.device) + (s - l)).expandedDimension(1)
  let j = Tensor.arange(s, device: query.device)
  if causal { allowed = allowed .& (j .<= i) }
  if let window { allowed = allowed .& (j .>= i - window.0) .& (j .<= i + window.1) }
  if let keyMask { allowed = allowed .& keyMask[.all, .newAxis, .newAxis] }
  let refused = .!allowed
  scores = scores.maskedFill(refused, -.infinity)
  // Rows without any key would be 0/0: give them finite scores and remove their weights afterwards.
  let empty = refused.all(axis: -1, keepDims: true)
  let weights = scores.maskedFill(empty, 0).softmax().maskedFill(refused, 0)
  return weights.matmul(v)
}
