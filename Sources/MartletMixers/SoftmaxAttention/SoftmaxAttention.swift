/// Scaled dot-product attention with several heads (Vaswani et al. 2017, eq. 1):
///
///     y_i = Σ_j softmax_j(q_i·k_j / √d) v_j
///
/// over all positions, the past, or a sliding window; with fewer key/value heads than query heads it is grouped-query
/// attention (Ainslie et al. 2023). On CPU in float32 it runs on the fused kernel `martlet::attention`, which never stores
/// the score matrix; elsewhere on ``softmaxAttentionReference(_:_:_:keyMask:causal:window:scale:softcap:bias:)``, which is also
/// its oracle.
///
/// The recurrent state is the key/value cache: it grows with the context, or with the window.
public final class SoftmaxAttention: Module, RecurrentMixer, ProjectedAttention {
  public struct Configuration: Sendable {
    public var width: Int
    public var heads: Int
    /// Key/value heads; a divisor of `heads`.
    public var keyValueHeads: Int
    /// Channels of a head; width / heads unless given.
    public var headWidth: Int
    public var isCausal: Bool
    /// Positions seen on each side (the past only, when causal) besides the own one; `nil` for all.
    public var window: Int?
    /// Rotary positions with this base; `nil` for none.
    public var rotaryBase: Double?
    public var rotaryScaling: RotaryScaling?
    /// Channels of a head that are turned; all unless given.
    public var rotaryWidth: Int?
    /// Biases of queries and values, and of keys and of the output unless they are chosen apart.
    public var bias: Bool
    public var keyBias: Bool
    public var outputBias: Bool
    /// RMS-normalise queries and keys per head before the product (Dehghani et al. 2023; Henry et al. 2020).
    public var queryKeyNorm: Bool
    public var normEpsilon: Double
    /// The norms' factors are 1 + weight (Gemma).
    public var normUnitOffset: Bool
    /// Factor on the scores; headWidth^−½ unless given.
    public var scale: Double?
    /// Scores are squashed to ±cap by cap · tanh(score/cap) (Gemma 2); `nil` for none.
    public var softcap: Double?

    public init(
      width: Int, heads: Int = 4, keyValueHeads: Int? = nil, headWidth: Int? = nil, isCausal: Bool = true, window: Int? = nil,
      rotaryBase: Double? = 10000, rotaryScaling: RotaryScaling? = nil, rotaryWidth: Int? = nil, bias: Bool = false,
      keyBias: Bool? = nil, outputBias: Bool? = nil, queryKeyNorm: Bool = false, normEpsilon: Double = 1e-6,
      normUnitOffset: Bool = false, scale: Double? = nil, softcap: Double? = nil
    ) {
      self.width = width
      self.heads = heads
      self.keyValueHeads = keyValueHeads ?? heads
      self.headWidth = headWidth ?? width / max(heads, 1)
      self.isCausal = isCausal
      self.window = window
      self.rotaryBase = rotaryBase
      self.rotaryScaling = rotaryScaling
      self.rotaryWidth = rotaryWidth
      self.bias = bias
      self.keyBias = keyBias ?? bias
      self.outputBias = outputBias ?? bias
      self.queryKeyNorm = queryKeyNorm
      self.normEpsilon = normEpsilon
      self.normUnitOffset = normUnitOffset
      self.scale = scale
      self.softcap = softcap
    }
  }

  public let configuration: Configuration
  @Child public var query: any LinearLayer
  @Child public var key: any LinearLayer
  @Child public var value: any LinearLayer
  @Child public var output: any LinearLayer
  @Child(key: "query_norm") public var queryNorm: RMSNorm?
  @Child(key: "key_norm") public var keyNorm: RMSNorm?
  let rotary: RotaryEmbedding?

  public var isCausal: Bool { configuration.isCausal }
  public var mixesPackedSequences: Bool { true }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    require(c.headWidth * c.heads >= c.heads, "a head needs at least one channel, got \(c.headWidth)")
    require(c.heads % c.keyValueHeads == 0, "\(c.heads) heads are not a multiple of \(c.keyValueHeads) key/value heads")
    self.configuration = c
    let d = c.headWidth
    rotary = c.rotaryBase.map { RotaryEmbedding(dimensions: c.rotaryWidth ?? d, base: $0, scaling: c.rotaryScaling) }
    super.init()
    query = Linear(c.width, d * c.heads, bias: c.bias, generator: generator)
    key = Linear(c.width, d * c.keyValueHeads, bias: c.keyBias, generator: generator)
    value = Linear(c.width, d * c.keyValueHeads, bias: c.bias, generator: generator)
    output = Linear(d * c.heads, c.width, bias: c.outputBias, generator: generator)
    queryNorm = c.queryKeyNorm ? RMSNorm(d, epsilon: c.normEpsilon, unitOffset: c.normUnitOffset) : nil
    keyNorm = c.queryKeyNorm ? RMSNorm(d, epsilon: c.normEpsilon, unitOffset: c.normUnitOffset) : nil
  }

  // MARK: Parallel form

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    let (q, k, v) = project(x, starts: [context.offset], packing: context.packing)
    if let packing = context.packing {
      return output(
        mergeHeads(
          packedSoftmaxAttention(
            q, k, v, packing, causal: isCausal, window: window, scale: configuration.scale, softcap: configuration.softcap)))
    }
    return output(
      mergeHeads(
        softmaxAttention(
          q, k, v, keyMask: context.mask, causal: isCausal, window: window, scale: configuration.scale,
          softcap: configuration.softcap, bias: context.scoreBias)))
  }

  private var window: (Int, Int)? { configuration.window.map { ($0, $0) } }

  // MARK: Recurrent form

  public typealias State = KeyValueCache

  public func initialState(batch: Int) -> KeyValueCache { initialState(batch: batch, cache: CacheOptions()) }

  public func initialState(batch: Int, cache: CacheOptions) -> KeyValueCache {
    require(isCausal, "bidirectional attention can't run token by token")
    let c = configuration
    let kind = stateKind(query)
    return KeyValueCache(
      batch: batch, heads: c.keyValueHeads, keyWidth: c.headWidth, valueWidth: c.headWidth, window: c.window, options: cache,
      dtype: kind.dtype, device: kind.device)
  }

  public func step(_ x: Tensor, _ state: inout KeyValueCache) -> Tensor {
    advance(x.expandedDimension(1), &state).selected(axis: 1, 0)
  }

  public func advance(_ x: Tensor, _ state: inout KeyValueCache) -> Tensor { advance(x, &state, scoreBias: nil) }

  public func advance(_ x: Tensor, _ state: inout KeyValueCache, scoreBias: Tensor?) -> Tensor {
    let length = x.dim(1)
    if length > 1 && !state.isUniform {
      // Rows of different lengths that take several positions at once: each by itself.
      var rows = state.lengths.indices.map { state.selecting([$0]) }
      let y = rows.indices.map { advance(x.narrowed(axis: 0, start: $0, length: 1), &rows[$0], scoreBias: scoreBias) }
      state = .joined(rows)
      return concatenated(y)
    }
    if length == 1 && fusedKernelsServe(x) && !isGradientEnabled { return fusedStep(x, &state, scoreBias) }
    let (q, k, v) = project(x, starts: state.lengths)
    if length == 1 && !isGradientEnabled {
      state.append(k, v)
      return output(mergeHeads(attendRows(q, state, scoreBias)))
    }
    // A ring loses positions that the first of these still see, so the products are made before it is written.
    let seen = state.lengths[0] == 0 ? nil : state.ordered(k.dtype)
    let keys = seen.map { concatenated([$0.keys, k], axis: 2) } ?? k
    let values = seen.map { concatenated([$0.values, v], axis: 2) } ?? v
    state.append(k, v)
    return output(
      mergeHeads(
        softmaxAttention(
          q, keys, values, keyMask: nil, causal: true, window: window, scale: configuration.scale, softcap: configuration.softcap,
          bias: scoreBias)))
  }

  /// One position in two kernels: turn and store, then attend. Each operator's call costs as much as its work here.
  private func fusedStep(_ x: Tensor, _ state: inout KeyValueCache, _ scoreBias: Tensor?) -> Tensor {
    let c = configuration
    func heads(_ x: Tensor, _ count: Int) -> Tensor { x.reshaped(x.dim(0), count, c.headWidth) }
    let projected = joinedLinear(x, [query, key, value])
    var q = heads(projected[0], c.heads)
    var k = heads(projected[1], c.keyValueHeads)
    if let queryNorm, let keyNorm { (q, k) = (queryNorm(q), keyNorm(k)) }
    let angles = rotary?.angles(starts: state.lengths, length: 1)
    let turned = state.append(one: k, heads(projected[2], c.keyValueHeads), turning: q, angles)
    // A ring holds just what may be seen. A bias is given for the positions, which stand in order then.
    let bias = scoreBias.map { $0.squeezed(-2).padded([0, state.capacity - $0.dim(-1)]) }
    let y = attentionStep(
      .tensor(turned), .tensor(state.keys), .tensor(state.values), .tensor(Tensor(state.filled)), .int(-1),
      c.scale.map { .double($0) } ?? .none, .tensor(bias), c.softcap.map { .double($0) } ?? .none, .tensor(state.keyScales),
      .tensor(state.valueScales))
    return output(y.reshaped(x.dim(0), 1, -1))
  }

  /// One query a row, over what its row holds.
  private func attendRows(_ q: Tensor, _ state: KeyValueCache, _ scoreBias: Tensor?) -> Tensor {
    if state.isUniform {
      let (keys, values) = state.ordered(q.dtype)
      return softmaxAttention(
        q, keys, values, causal: true, scale: configuration.scale, softcap: configuration.softcap, bias: scoreBias)
    }
    let rows = state.lengths.indices.map { row -> Tensor in
      let (keys, values) = state.selecting([row]).ordered(q.dtype)
      return softmaxAttention(
        q.narrowed(axis: 0, start: row, length: 1), keys, values, causal: true, scale: configuration.scale,
        softcap: configuration.softcap, bias: scoreBias)
    }
    return concatenated(rows)
  }

  public func stateBytes(_ state: KeyValueCache) -> Int { state.byteCount }

  // MARK: Attention to another sequence

  /// Keys and values [B, Hk, S, d] of a sequence that is attended to, [B, S, width].
  public func keysAndValues(_ memory: Tensor) -> (keys: Tensor, values: Tensor) {
    (
      splitHeads(key(memory), configuration.keyValueHeads).contiguous(),
      splitHeads(value(memory), configuration.keyValueHeads).contiguous()
    )
  }

  /// Attention of x [B, L, width] to them, without positions. keyMask: [B, S] bool.
  public func attend(_ x: Tensor, to keys: Tensor, _ values: Tensor, keyMask: Tensor? = nil) -> Tensor {
    let q = splitHeads(query(x), configuration.heads)
    return output(
      mergeHeads(
        softmaxAttention(
          q, keys, values, keyMask: keyMask, causal: false, scale: configuration.scale, softcap: configuration.softcap)))
  }

  public func multiplyAdds(length: Int) -> Int {
    let seen = min(length, configuration.window.map { 2 * $0 + 1 } ?? length)
    let pairs = isCausal ? length * seen / 2 : length * seen
    return length * (query.multiplyAdds() + key.multiplyAdds() + value.multiplyAdds() + output.multiplyAdds())
      + 2 * pairs * configuration.headWidth * configuration.heads
  }
}

private let attentionStep = Operator("martlet::attention_step")
private let attention = Operator("martlet::attention")
private let packedAttention = Operator("martlet::attention_packed")

/// Softmax attention of queries [B, H, L, d] over keys [B, Hk, S, d] and values [B, Hk, S, dv] → [B, H, L, dv].
///
/// - Parameters:
///   - keyMask: [B, S] bool, true where a key may be seen. A query that may see none gets 0.
///   - causal: query i sees keys up to i + S − L (the last query sees all).
///   - window: positions seen before and after the own one.
///   - scale: default d^−½.
///   - softcap: scores s become c · tanh(s/c).
///   - bias: added to the scores (after the cap), [1 or H, L, S].
public func softmaxAttention(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, keyMask: Tensor? = nil, causal: Bool, window: (Int, Int)? = nil,
  scale: Double? = nil, softcap: Double? = nil, bias: Tensor? = nil
) -> Tensor {
  // With a cap or a bias the kernel has no backward pass.
  let isRecorded = isGradientEnabled && [query, key, value].contains(where: \.requiresGradient)
  guard fusedKernelsServe(query), !isRecorded || softcap == nil && bias == nil else {
    return softmaxAttentionReference(
      query, key, value, keyMask: keyMask, causal: causal, window: window, scale: scale, softcap: softcap, bias: bias)
  }
  return attention.many(
    .tensor(query), .tensor(key), .tensor(value), .tensor(keyMask), .bool(causal), .int(window?.0 ?? -1), .int(window?.1 ?? -1),
    scale.map { .double($0) } ?? .none, .tensor(bias), softcap.map { .double($0) } ?? .none)[0] ?? .zeros([1])
}

/// The same by the equation, with the whole score matrix: the oracle, and the path of other devices and dtypes.
public func softmaxAttentionReference(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, keyMask: Tensor? = nil, causal: Bool, window: (Int, Int)? = nil,
  scale: Double? = nil, softcap: Double? = nil, bias: Tensor? = nil
) -> Tensor {
  let group = query.dim(1) / key.dim(1)
  let k = group > 1 ? key.repeated(group, axis: 1) : key
  let v = group > 1 ? value.repeated(group, axis: 1) : value
  let (l, s) = (query.dim(2), key.dim(2))
  var scores = query.matmul(k.T) * (scale ?? 1 / Double(query.dim(-1)).squareRoot())  // [B, H, L, S]
  if let softcap { scores = (scores / softcap).tanh() * softcap }
  if let bias { scores = scores + bias }
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

/// Attention inside each of several sequences that stand end to end: queries [1, H, T, d] over keys and values [1, Hk, T, d] →
/// [1, H, T, dv]. Parameters as ``softmaxAttention(_:_:_:keyMask:causal:window:scale:softcap:bias:)``.
public func packedSoftmaxAttention(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, _ packing: SequencePacking, causal: Bool, window: (Int, Int)? = nil,
  scale: Double? = nil, softcap: Double? = nil
) -> Tensor {
  let isRecorded = isGradientEnabled && [query, key, value].contains(where: \.requiresGradient)
  guard fusedKernelsServe(query), !isRecorded || softcap == nil else {
    return concatenated(
      (0..<packing.sequences).map { i in
        let (start, length) = (packing.offsets[i], packing.offsets[i + 1] - packing.offsets[i])
        func part(_ x: Tensor) -> Tensor { x.narrowed(axis: 2, start: start, length: length) }
        return softmaxAttention(part(query), part(key), part(value), causal: causal, window: window, scale: scale, softcap: softcap)
      }, axis: 2)
  }
  func rows(_ x: Tensor) -> Tensor { x.squeezed(0).swappedAxes(0, 1) }  // [T, H, d]
  let y = packedAttention.many(
    .tensor(rows(query)), .tensor(rows(key)), .tensor(rows(value)), .tensor(packing.offsetTensor), .bool(causal),
    .int(window?.0 ?? -1), .int(window?.1 ?? -1), scale.map { .double($0) } ?? .none, softcap.map { .double($0) } ?? .none)[0]
  return (y ?? .zeros([1])).swappedAxes(0, 1).expandedDimension(0)
}
