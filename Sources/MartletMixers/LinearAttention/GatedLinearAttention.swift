import Foundation

/// Gated linear attention (Yang et al. 2023, arXiv 2312.06635) and its ungated relatives. Per head, with keys and queries in
/// R^dk and values in R^dv:
///
///     S_t = Diag(e^{g_t}) S_{t−1} + k_tᵀ v_t,      o_t = dk^{−½} q_t S_t            (eq. 3)
///     y = [RMSNorm(o) ⊙ SiLU(x W_g)] W_o                                              (§4.4)
///
/// with the log-gate g_t = logsigmoid(x_t W₁ W₂ + b)/τ per key channel. Training runs in chunks with a second level of
/// sub-chunks (§4.2–4.3) on the kernel `martlet::gated_linear_attention`; ``gatedLinearAttentionReference(_:_:_:logGate:initialState:scale:)``
/// is the recurrence by plain operators. The state [B, H, dk, dv] does not grow.
public final class GatedLinearAttention: Module, RecurrentMixer {
  /// What makes the state forget.
  public enum GateKind: String, Codable, Sendable, CaseIterable {
    /// Nothing: plain (unnormalised) linear attention.
    case none
    /// A constant per head, log(1 − 2^{−5−h}) (RetNet, Sun et al. 2023), with rotary queries and keys.
    case retention
    /// One data-dependent scalar per head and token (Mamba-2's form).
    case scalar
    /// One per key channel and token: GLA.
    case perChannel = "per_channel"
  }

  public struct Configuration: Sendable {
    public var width: Int
    public var heads: Int
    /// Total width of keys; GLA's default is width/2.
    public var keyWidth: Int
    /// Total width of values.
    public var valueWidth: Int
    public var gate: GateKind
    /// Rank of the gate's projection.
    public var gateRank: Int
    /// τ: the log-gate is divided by it, so that gates start near 1.
    public var gateTemperature: Double
    /// SiLU(x W_g) on the output.
    public var outputGate: Bool
    /// Depthwise causal convolution of this size (with SiLU) on queries, keys and values; 0 for none.
    public var convolution: Int
    public var normEpsilon: Double
    public var chunk: Int
    /// A non-causal mixer adds the scan of the reversed sequence, with the same projections.
    public var isCausal: Bool

    public init(
      width: Int, heads: Int = 4, keyWidth: Int? = nil, valueWidth: Int? = nil, gate: GateKind = .perChannel, gateRank: Int = 16,
      gateTemperature: Double = 16, outputGate: Bool = true, convolution: Int = 0, normEpsilon: Double = 1e-5,
      chunk: Int = 64, isCausal: Bool = true
    ) {
      self.width = width
      self.heads = heads
      self.keyWidth = keyWidth ?? width / 2
      self.valueWidth = valueWidth ?? width
      self.gate = gate
      self.gateRank = gateRank
      self.gateTemperature = gateTemperature
      self.outputGate = outputGate
      self.convolution = convolution
      self.normEpsilon = normEpsilon
      self.chunk = chunk
      self.isCausal = isCausal
    }
  }

  public let configuration: Configuration
  @Child public var query: any LinearLayer
  @Child public var key: any LinearLayer
  @Child public var value: any LinearLayer
  @Child(key: "gate_in") public var gateIn: (any LinearLayer)?
  @Child(key: "gate_out") public var gateOut: (any LinearLayer)?
  @Child(key: "output_gate") public var outputGate: (any LinearLayer)?
  @Child public var norm: RMSNorm
  @Child public var output: any LinearLayer
  @Child(key: "query_convolution") public var queryConvolution: ShortConvolution?
  @Child(key: "key_convolution") public var keyConvolution: ShortConvolution?
  @Child(key: "value_convolution") public var valueConvolution: ShortConvolution?
  private let rotary: RotaryEmbedding?
  /// The constant log-gates, [H] float32, where there are.
  private let retentionGate: Tensor?

  public var isCausal: Bool { configuration.isCausal }
  public var mixesPackedSequences: Bool { true }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    require(
      c.keyWidth % c.heads == 0 && c.valueWidth % c.heads == 0,
      "key width \(c.keyWidth) and value width \(c.valueWidth) must be multiples of \(c.heads) heads")
    self.configuration = c
    rotary = c.gate == .retention ? RotaryEmbedding(dimensions: c.keyWidth / c.heads) : nil
    retentionGate = c.gate == .retention ? Tensor(Self.retentionLogDecay(heads: c.heads)).to(.float32) : nil
    super.init()
    // Xavier-uniform with gain 2^{−2.5}, as the authors' code initialises every projection.
    let initializer = Initializer.xavierUniform(gain: pow(2, -2.5))
    func projection(_ from: Int, _ to: Int, bias: Bool = false) -> any LinearLayer {
      Linear(from, to, bias: bias, initializer: initializer, generator: generator)
    }
    query = projection(c.width, c.keyWidth)
    key = projection(c.width, c.keyWidth)
    value = projection(c.width, c.valueWidth)
    switch c.gate {
    case .perChannel:
      gateIn = projection(c.width, c.gateRank)
      gateOut = projection(c.gateRank, c.keyWidth, bias: true)
    case .scalar:
      gateIn = nil
      gateOut = projection(c.width, c.heads, bias: true)
    case .none, .retention:
      gateIn = nil
      gateOut = nil
    }
    outputGate = c.outputGate ? projection(c.width, c.valueWidth) : nil
    norm = RMSNorm(c.valueWidth / c.heads, epsilon: c.normEpsilon)
    output = projection(c.valueWidth, c.width)
    func convolution(_ width: Int) -> ShortConvolution? {
      c.convolution > 0 ? ShortConvolution(width, kernel: c.convolution, generator: generator) : nil
    }
    queryConvolution = convolution(c.keyWidth)
    keyConvolution = convolution(c.keyWidth)
    valueConvolution = convolution(c.valueWidth)
  }

  // MARK: Parallel form

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    var (q, k, v) = (query(x), key(x), value(x))
    if let queryConvolution, let keyConvolution, let valueConvolution {
      let offsets = context.packing?.offsetTensor
      (q, k, v) = (queryConvolution(q, offsets: offsets), keyConvolution(k, offsets: offsets), valueConvolution(v, offsets: offsets))
    }
    return mix(x, q, k, v, positions: [context.offset], mask: context.mask, packing: context.packing) { q, k, v, g in
      let forward = gatedLinearAttention(q, k, v, logGate: g, chunk: configuration.chunk, packing: context.packing).output
      if isCausal { return forward }
      // The reversed scan sees position t again: its own term is counted in both directions, as in bidirectional RNNs.
      let turned = g.map { $0.rank > 1 ? $0.flipped(axis: 2) : $0 }
      return forward
        + gatedLinearAttention(
          q.flipped(axis: 2), k.flipped(axis: 2), v.flipped(axis: 2), logGate: turned, chunk: configuration.chunk,
          packing: context.packing?.reversed
        ).output.flipped(axis: 2)
    }
  }

  /// Heads, gates, the scan that is given, then norm, output gate and projection. x: [B, L, D].
  private func mix(
    _ x: Tensor, _ q: Tensor, _ k: Tensor, _ v: Tensor, positions: [Int], mask: Tensor?, packing: SequencePacking? = nil,
    _ scan: (Tensor, Tensor, Tensor, Tensor?) -> Tensor
  ) -> Tensor {
    let heads = configuration.heads
    var (q, k, v) = (splitHeads(q, heads), splitHeads(k, heads), splitHeads(v, heads))
    if let rotary {
      let angles =
        packing.map { rotary.angles(positions: $0.positions, dtype: q.dtype, device: q.device) }
        ?? rotary.angles(starts: positions, length: q.dim(2), dtype: q.dtype, device: q.device)
      (q, k) = (angles.turn(q), angles.turn(k))
    }
    var gate = logGate(x)
    if let mask {
      // Padding writes nothing and forgets nothing.
      let keep = mask[.all, .newAxis, .all, .newAxis].to(x.dtype)
      k = k * keep
      if let full = gate, full.rank == 4 { gate = full * keep }
      if let full = gate, full.rank == 3 { gate = full * keep.squeezed(-1) }
    }
    // [B, L, H, dv], as the kernel's output lies in memory, normalised per head.
    var o = norm(scan(q, k, v, gate).swappedAxes(1, 2)).reshaped(x.dim(0), x.dim(1), -1)
    if let outputGate { o = o * outputGate(x).silu() }
    return output(o)
  }

  /// g ≤ 0: [B, H, L, dk], [B, H, L], [H], or `nil` for none.
  func logGate(_ x: Tensor) -> Tensor? {
    switch configuration.gate {
    case .none: return nil
    case .retention: return Tensor(Self.retentionLogDecay(heads: configuration.heads)).to(x.dtype)
    case .scalar: return (gateOut!(x).logSigmoid() / configuration.gateTemperature).swappedAxes(1, 2)
    case .perChannel: return splitHeads(gateOut!(gateIn!(x)).logSigmoid() / configuration.gateTemperature, configuration.heads)
    }
  }

  /// log(1 − 2^{−5−h}) for each head.
  public static func retentionLogDecay(heads: Int) -> [Double] { (0..<heads).map { log1p(-pow(2, -5 - Double($0))) } }

  // MARK: Recurrent form

  public struct State: MixerState, @unchecked Sendable {
    /// [B, H, dk, dv]
    public var memory: Tensor
    /// The last inputs of the three short convolutions.
    public var convolutions: [Tensor]
    /// Tokens seen by each sequence, for rotary positions.
    public var positions: [Int]

    public func selecting(_ rows: [Int]) -> State {
      let index = Tensor(rows)
      return State(
        memory: memory.take(index), convolutions: convolutions.map { $0.take(index) }, positions: rows.map { positions[$0] })
    }

    public static func joined(_ states: [State]) -> State {
      State(
        memory: concatenated(states.map(\.memory)),
        convolutions: states[0].convolutions.indices.map { i in concatenated(states.map { $0.convolutions[i] }) },
        positions: states.flatMap(\.positions))
    }
  }

  public func initialState(batch: Int) -> State {
    require(isCausal, "a bidirectional scan can't run token by token")
    let c = configuration
    let like = stateKind(query)
    let convolutions = [queryConvolution, keyConvolution, valueConvolution].compactMap { $0?.initialState(batch: batch) }
    return State(
      memory: .zeros(
        [batch, c.heads, c.keyWidth / c.heads, c.valueWidth / c.heads], dtype: like.dtype, device: like.device),
      convolutions: convolutions, positions: Array(repeating: 0, count: batch))
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor {
    if fusedKernelsServe(x) && !isGradientEnabled { return fusedStep(x, &state) }
    var (q, k, v) = (query(x), key(x), value(x))
    if let queryConvolution, let keyConvolution, let valueConvolution {
      q = queryConvolution.step(q, &state.convolutions[0])
      k = keyConvolution.step(k, &state.convolutions[1])
      v = valueConvolution.step(v, &state.convolutions[2])
    }
    var memory = state.memory
    let row = x.expandedDimension(1)
    let y = mix(
      row, q.expandedDimension(1), k.expandedDimension(1), v.expandedDimension(1), positions: state.positions, mask: nil
    ) { q, k, v, g in
      let (o, end) = gatedLinearAttentionReference(q, k, v, logGate: g, initialState: memory)
      memory = end
      return o
    }
    state.memory = memory
    state.positions = state.positions.map { $0 + 1 }
    return y.selected(axis: 1, 0)
  }

  /// One token with few operators, each of which costs as much to call as its work here: all projections of x in one pass.
  private func fusedStep(_ x: Tensor, _ state: inout State) -> Tensor {
    let c = configuration
    let batch = x.dim(0)
    let gateInput = gateIn ?? gateOut
    let maps: [any LinearLayer] = [query, key, value] + [gateInput, outputGate].compactMap { $0 }
    var parts = joinedLinear(x, maps)
    for (i, convolution) in [queryConvolution, keyConvolution, valueConvolution].enumerated() {
      if let convolution { parts[i] = convolution.step(parts[i], &state.convolutions[i]) }
    }
    func heads(_ x: Tensor) -> Tensor { x.reshaped(batch, c.heads, -1) }
    var (q, k) = (heads(parts[0]), heads(parts[1]))  // [B, H, dk]
    if let rotary {
      (q, k) = rotary(q.expandedDimension(2), k.expandedDimension(2), starts: state.positions)
      (q, k) = (q.squeezed(2), k.squeezed(2))
    }
    let gate: Tensor?
    switch c.gate {
    case .none: gate = nil
    case .retention: gate = retentionGate
    case .scalar: gate = parts[3].logSigmoid() / c.gateTemperature  // [B, H]
    case .perChannel: gate = heads(gateOut!(parts[3]).logSigmoid() / c.gateTemperature)
    }
    let o = norm(gatedLinearAttentionStep(.tensor(q), .tensor(k), .tensor(heads(parts[2])), .tensor(gate), .tensor(state.memory)))
      .reshaped(batch, -1)
    state.positions = state.positions.map { $0 + 1 }
    return output(outputGate == nil ? o : o * parts[parts.count - 1].silu())
  }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    var inputs = [query(x), key(x), value(x)]
    for (i, convolution) in [queryConvolution, keyConvolution, valueConvolution].enumerated() {
      if let convolution { inputs[i] = convolution.advance(inputs[i], &state.convolutions[i]) }
    }
    var memory = state.memory
    let y = mix(x, inputs[0], inputs[1], inputs[2], positions: state.positions, mask: nil) { q, k, v, g in
      let (o, end) = gatedLinearAttention(q, k, v, logGate: g, initialState: memory, chunk: configuration.chunk)
      memory = end
      return o
    }
    state.memory = memory
    state.positions = state.positions.map { $0 + x.dim(1) }
    return y
  }

  public func stateBytes(_ state: State) -> Int { state.memory.byteCount + state.convolutions.reduce(0) { $0 + $1.byteCount } }

  public func multiplyAdds(length: Int) -> Int {
    let c = configuration
    let maps = [query, key, value, output, gateIn, gateOut, outputGate].compactMap { $0?.multiplyAdds() }.reduce(0, +)
    let (dk, dv) = (c.keyWidth / c.heads, c.valueWidth / c.heads)
    return length * (maps + c.heads * (2 * dk * dv + c.chunk * (dk + dv) / 2))
  }
}

private let kernel = Operator("martlet::gated_linear_attention")
let gatedLinearAttentionStep = Operator("martlet::gated_linear_attention_step")

/// The scan S_t = Diag(e^{g_t}) S_{t−1} + k_tᵀ v_t, o_t = scale · q_t S_t.
///
/// - Parameters:
///   - query, key: [B, H, L, dk]; value: [B, H, L, dv].
///   - logGate: ≤ 0, [B, H, L, dk], [B, H, L] or [H]; `nil` for none.
///   - initialState: [B, H, dk, dv]; `nil` for zeros.
///   - scale: default dk^−½.
///   - packing: the sequences that a batch of one holds end to end; states are then [sequences, H, dk, dv].
/// - Returns: o [B, H, L, dv] and the last state.
public func gatedLinearAttention(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, logGate: Tensor?, initialState: Tensor? = nil, scale: Double? = nil,
  chunk: Int = 64, packing: SequencePacking? = nil
) -> (output: Tensor, state: Tensor) {
  guard fusedKernelsServe(query) else {
    if let packing {
      return packing.scanEach(initialState) { part, state in
        gatedLinearAttentionChunked(
          part(query), part(key), part(value), logGate: logGate.map { $0.rank > 1 ? part($0) : $0 }, initialState: state, scale: scale,
          chunk: chunk)
      }
    }
    return gatedLinearAttentionChunked(query, key, value, logGate: logGate, initialState: initialState, scale: scale, chunk: chunk)
  }
  let results = kernel.many(
    .tensor(query), .tensor(key), .tensor(value), .tensor(logGate), .tensor(initialState), scale.map { .double($0) } ?? .none,
    .int(chunk), .tensor(packing?.offsetTensor))
  return (results[0] ?? .zeros([1]), results[1] ?? .zeros([1]))
}

/// The recurrence, token by token in plain operators: the oracle.
public func gatedLinearAttentionReference(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, logGate: Tensor?, initialState: Tensor? = nil, scale: Double? = nil
) -> (output: Tensor, state: Tensor) {
  let factor = scale ?? 1 / Double(query.dim(-1)).squareRoot()
  let decay = fullGate(logGate, like: key)?.exp()
  var state =
    initialState
    ?? Tensor.zeros([key.dim(0), key.dim(1), key.dim(3), value.dim(3)], dtype: key.dtype, device: key.device)
  var outputs: [Tensor] = []
  for t in 0..<key.dim(2) {
    if let decay { state = state * decay.selected(axis: 2, t).expandedDimension(-1) }
    state = state + key.selected(axis: 2, t).expandedDimension(-1) * value.selected(axis: 2, t).expandedDimension(-2)
    outputs.append(query.selected(axis: 2, t).expandedDimension(-2).matmul(state).squeezed(-2) * factor)
  }
  return (stacked(outputs, axis: 2), state)
}

/// The gate as [B, H, L, dk].
private func fullGate(_ gate: Tensor?, like key: Tensor) -> Tensor? {
  guard let gate else { return nil }
  switch gate.rank {
  case 1: return gate.reshaped(1, -1, 1, 1).broadcast(to: key.shape)
  case 3: return gate.expandedDimension(-1).broadcast(to: key.shape)
  default: return gate
  }
}

/// The chunked form with sub-chunks (eqs. 4–7 and §4.3) in plain operators: linear in the length on every device and dtype.
/// All exponents are ≤ 0: products between sub-chunks are taken relative to the row before the later one.
public func gatedLinearAttentionChunked(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, logGate: Tensor?, initialState: Tensor? = nil, scale: Double? = nil,
  chunk: Int = 64, subchunk: Int = 16
) -> (output: Tensor, state: Tensor) {
  let factor = scale ?? 1 / Double(query.dim(-1)).squareRoot()
  // A gate of −∞ would make differences of its sums undefined; e^{−100} is 0 beside anything in float32.
  let gate = fullGate(logGate, like: key)?.clamped(min: -100) ?? Tensor.zeros(like: key)
  let length = key.dim(2)
  var state =
    initialState
    ?? Tensor.zeros([key.dim(0), key.dim(1), key.dim(3), value.dim(3)], dtype: key.dtype, device: key.device)
  if length == 0 { return (Tensor.zeros(like: value), state) }
  var outputs: [Tensor] = []
  for start in stride(from: 0, to: length, by: chunk) {
    let size = min(chunk, length - start)
    func part(_ x: Tensor) -> Tensor { x.narrowed(axis: 2, start: start, length: size) }
    let (q, k, v) = (part(query) * factor, part(key), part(value))
    let b = part(gate).cumulativeSum(axis: 2)  // [B, H, C, dk], inclusive
    let last = b.narrowed(axis: 2, start: size - 1, length: 1)
    let fromState = (q * b.exp()).matmul(state)
    var rows: [Tensor] = []
    for i in stride(from: 0, to: size, by: subchunk) {
      let n = min(subchunk, size - i)
      let (qi, bi) = (q.narrowed(axis: 2, start: i, length: n), b.narrowed(axis: 2, start: i, length: n))
      // Within the sub-chunk, elementwise: the mask comes before the exponential.
      let difference = bi.expandedDimension(3) - bi.expandedDimension(2)  // [B, H, n, n, dk]
      let future = Tensor.ones([n, n], dtype: .bool, device: key.device).upperTriangle(1).expandedDimension(-1)
      let weight = difference.maskedFill(future, -.infinity).exp()
      let ki = k.narrowed(axis: 2, start: i, length: n)
      var scores = [(qi.expandedDimension(3) * ki.expandedDimension(2) * weight).sum(axis: -1)]
      if i > 0 {
        let reference = b.narrowed(axis: 2, start: i - 1, length: 1)
        let before = k.narrowed(axis: 2, start: 0, length: i) * (reference - b.narrowed(axis: 2, start: 0, length: i)).exp()
        scores.insert((qi * (bi - reference).exp()).matmul(before.T), at: 0)
      }
      rows.append(concatenated(scores, axis: -1).matmul(v.narrowed(axis: 2, start: 0, length: i + n)))
    }
    outputs.append(fromState + concatenated(rows, axis: 2))
    state = last.exp().T * state + (k * (last - b).exp()).T.matmul(v)
  }
  return (concatenated(outputs, axis: 2), state)
}
