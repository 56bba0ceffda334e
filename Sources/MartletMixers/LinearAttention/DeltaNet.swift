import Foundation

/// DeltaNet (Yang et al. 2024, arXiv 2406.06484): linear attention whose writes correct what the memory already says. Per head, with
/// queries and keys of length one and β_t ∈ (0, 1):
///
///     e_t = v_t − k_t S_{t−1},      S_t = S_{t−1} + β_t k_tᵀ e_t,      o_t = dk^{−½} q_t S_t
///     y = RMSNorm(o) W_o
///
/// which is one step of gradient descent at rate β on ½‖k S − v‖². The product of transitions I − β kᵀk has a WY form, so a chunk of
/// tokens takes one triangular solve and matrix products (§3.2–3.3), on the kernel `martlet::delta_rule` where it serves. With a decay e^{g_t} of the state per head it is Gated DeltaNet
/// (Yang et al. 2024, arXiv 2412.06464). The state [B, H, dk, dv] does not grow.
public final class DeltaNet: Module, RecurrentMixer {
  public struct Configuration: Sendable {
    public var width: Int
    public var heads: Int
    /// Total width of keys.
    public var keyWidth: Int
    /// Total width of values.
    public var valueWidth: Int
    /// Depthwise causal convolution of this size on queries, keys and values; 0 for none.
    public var convolution: Int
    /// β = 2σ(·) lets eigenvalues of the transition be negative, which tracking states needs.
    public var allowNegativeEigenvalues: Bool
    /// A data-dependent decay of the state, one per head.
    public var gated: Bool
    /// SiLU(x W_g) on the normalised output.
    public var outputGate: Bool
    public var normEpsilon: Double
    public var chunk: Int
    /// A non-causal mixer adds the scan of the reversed sequence, with the same projections.
    public var isCausal: Bool

    public init(
      width: Int, heads: Int = 4, keyWidth: Int? = nil, valueWidth: Int? = nil, convolution: Int = 4,
      allowNegativeEigenvalues: Bool = false, gated: Bool = false, outputGate: Bool = false, normEpsilon: Double = 1e-5,
      chunk: Int = 64, isCausal: Bool = true
    ) {
      self.width = width
      self.heads = heads
      self.keyWidth = keyWidth ?? width
      self.valueWidth = valueWidth ?? width
      self.convolution = convolution
      self.allowNegativeEigenvalues = allowNegativeEigenvalues
      self.gated = gated
      self.outputGate = outputGate
      self.normEpsilon = normEpsilon
      self.chunk = chunk
      self.isCausal = isCausal
    }
  }

  public let configuration: Configuration
  @Child public var query: any LinearLayer
  @Child public var key: any LinearLayer
  @Child public var value: any LinearLayer
  /// → the logits of β, one per head.
  @Child public var rate: any LinearLayer
  /// → the decay's logits, one per head.
  @Child public var decay: (any LinearLayer)?
  @Child(key: "output_gate") public var outputGate: (any LinearLayer)?
  @Child public var norm: RMSNorm
  @Child public var output: any LinearLayer
  @Child(key: "query_convolution") public var queryConvolution: ShortConvolution?
  @Child(key: "key_convolution") public var keyConvolution: ShortConvolution?
  @Child(key: "value_convolution") public var valueConvolution: ShortConvolution?

  public var isCausal: Bool { configuration.isCausal }
  public var mixesPackedSequences: Bool { true }
  /// Added to the squared lengths by which queries and keys are divided.
  private static let unitEpsilon = 1e-6

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    require(
      c.keyWidth % c.heads == 0 && c.valueWidth % c.heads == 0,
      "key width \(c.keyWidth) and value width \(c.valueWidth) must be multiples of \(c.heads) heads")
    self.configuration = c
    super.init()
    let initializer = Initializer.xavierUniform(gain: pow(2, -2.5))
    func projection(_ from: Int, _ to: Int, bias: Bool = false) -> any LinearLayer {
      Linear(from, to, bias: bias, initializer: initializer, generator: generator)
    }
    query = projection(c.width, c.keyWidth)
    key = projection(c.width, c.keyWidth)
    value = projection(c.width, c.valueWidth)
    rate = projection(c.width, c.heads)
    decay = c.gated ? projection(c.width, c.heads, bias: true) : nil
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
    func activated(_ x: Tensor, _ convolution: ShortConvolution?) -> Tensor {
      convolution?(x, offsets: context.packing?.offsetTensor) ?? x.silu()
    }
    let (q, k) = (activated(query(x), queryConvolution), activated(key(x), keyConvolution))
    return mix(x, q, k, activated(value(x), valueConvolution), mask: context.mask) { q, k, v, beta, g in
      let forward = deltaRule(
        q, k, v, rate: beta, logDecay: g, chunk: configuration.chunk, unitEpsilon: Self.unitEpsilon, packing: context.packing
      ).output
      if isCausal { return forward }
      func turned(_ x: Tensor) -> Tensor { x.flipped(axis: 2) }
      let backward = deltaRule(
        turned(q), turned(k), turned(v), rate: turned(beta), logDecay: g.map(turned), chunk: configuration.chunk,
        unitEpsilon: Self.unitEpsilon, packing: context.packing?.reversed
      ).output
      return forward + turned(backward)
    }
  }

  /// Heads, rates and decays, the scan that is given, then norm, output gate and projection. q, k, v: after the activation.
  private func mix(
    _ x: Tensor, _ q: Tensor, _ k: Tensor, _ v: Tensor, mask: Tensor? = nil,
    _ scan: (Tensor, Tensor, Tensor, Tensor, Tensor?) -> Tensor
  ) -> Tensor {
    let heads = configuration.heads
    var beta = rate(x).sigmoid().swappedAxes(1, 2)  // [B, H, L]
    if configuration.allowNegativeEigenvalues { beta = beta * 2.0 }
    var g = decay.map { $0(x).logSigmoid().swappedAxes(1, 2) }
    if let mask {
      // Padding writes nothing and forgets nothing.
      let keep = mask.expandedDimension(1).to(x.dtype)
      beta = beta * keep
      g = g.map { $0 * keep }
    }
    let read = scan(splitHeads(q, heads), splitHeads(k, heads), splitHeads(v, heads), beta, g)  // [B, H, L, dv]
    var o = norm(read.swappedAxes(1, 2)).reshaped(x.dim(0), x.dim(1), -1)
    if let outputGate { o = o * outputGate(x).silu() }
    return output(o)
  }

  // MARK: Recurrent form

  public struct State: TensorState, @unchecked Sendable {
    /// [B, H, dk, dv]
    public var memory: Tensor
    /// The last inputs of the three short convolutions.
    public var convolutions: [Tensor]

    public var tensors: [Tensor] {
      get { [memory] + convolutions }
      set { (memory, convolutions) = (newValue[0], Array(newValue.dropFirst())) }
    }
  }

  public func initialState(batch: Int) -> State {
    require(isCausal, "a bidirectional scan can't run token by token")
    let c = configuration
    let kind = stateKind(query)
    return State(
      memory: .zeros([batch, c.heads, c.keyWidth / c.heads, c.valueWidth / c.heads], dtype: kind.dtype, device: kind.device),
      convolutions: [queryConvolution, keyConvolution, valueConvolution].compactMap { $0?.initialState(batch: batch) })
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor { advance(x.expandedDimension(1), &state).selected(axis: 1, 0) }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    var inputs = [query(x), key(x), value(x)]
    for (i, convolution) in [queryConvolution, keyConvolution, valueConvolution].enumerated() {
      guard let convolution else {
        inputs[i] = inputs[i].silu()
        continue
      }
      inputs[i] = convolution.advance(inputs[i], &state.convolutions[i])
    }
    var memory = state.memory
    let isStep = x.dim(1) == 1
    let fused = fusedKernelsServe(x) && !isGradientEnabled
    let y = mix(x, inputs[0], inputs[1], inputs[2]) { q, k, v, beta, g in
      if isStep && fused {
        func row(_ x: Tensor) -> Tensor { x.selected(axis: 2, 0) }
        return stepKernel(
          .tensor(row(q)), .tensor(row(k)), .tensor(row(v)), .tensor(row(beta)), .tensor(g.map(row)), .tensor(memory), .none,
          .double(Self.unitEpsilon)
        ).expandedDimension(2)
      }
      let (o, end) =
        isStep
        ? deltaRuleReference(q, k, v, rate: beta, logDecay: g, initialState: memory, unitEpsilon: Self.unitEpsilon)
        : deltaRule(
          q, k, v, rate: beta, logDecay: g, initialState: memory, chunk: configuration.chunk, unitEpsilon: Self.unitEpsilon)
      memory = end
      return o
    }
    state.memory = memory
    return y
  }

  public func stateBytes(_ state: State) -> Int { state.tensors.reduce(0) { $0 + $1.byteCount } }

  public func multiplyAdds(length: Int) -> Int {
    let c = configuration
    let maps = [query, key, value, output, rate, decay, outputGate].compactMap { $0?.multiplyAdds() }.reduce(0, +)
    let (dk, dv) = (c.keyWidth / c.heads, c.valueWidth / c.heads)
    // Per token: three products with the state, and within the chunk K Kᵀ, Q Kᵀ, the solve and the scores' product.
    return length * (maps + c.heads * (3 * dk * dv + c.chunk * (2 * dk + (dk + dv) / 2 + dv / 2)))
  }
}

private let kernel = Operator("martlet::delta_rule")
private let stepKernel = Operator("martlet::delta_rule_step")

/// x / √(|x|² + ε).
private func unit(_ x: Tensor, _ epsilon: Double) -> Tensor { x * (x.square().sum(axis: -1, keepDims: true) + epsilon).rsqrt() }

/// The delta rule S_t = e^{g_t} (I − β_t k_tᵀ k_t) S_{t−1} + β_t k_tᵀ v_t, o_t = scale · q_t S_t.
///
/// On CPU in float32 it runs on the kernel `martlet::delta_rule`, elsewhere on
/// ``deltaRuleChunked(_:_:_:rate:logDecay:initialState:scale:chunk:unitEpsilon:)``.
///
/// - Parameters:
///   - query, key: [B, H, L, dk], keys of length one; value: [B, H, L, dv].
///   - rate: β, [B, H, L], in [0, 2].
///   - logDecay: g ≤ 0, [B, H, L]; `nil` for none.
///   - initialState: [B, H, dk, dv]; `nil` for zeros.
///   - scale: default dk^−½.
///   - chunk: of the chunked form; the kernel's block is 16 tokens. The result doesn't depend on it.
///   - unitEpsilon: when given, queries and keys are divided by √(|x|² + ε) first.
///   - packing: the sequences that a batch of one holds end to end; states are then [sequences, H, dk, dv].
/// - Returns: o [B, H, L, dv] and the last state.
public func deltaRule(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, rate: Tensor, logDecay: Tensor? = nil, initialState: Tensor? = nil,
  scale: Double? = nil, chunk: Int = 64, unitEpsilon: Double? = nil, packing: SequencePacking? = nil
) -> (output: Tensor, state: Tensor) {
  // The solve loses too much in 16 bits, also where autocast would choose them for the products that lead to it.
  if isAutocastEnabled(query.device) || query.dtype == .bfloat16 || query.dtype == .float16 {
    let (o, s) = withAutocast(false, device: query.device) {
      deltaRule(
        query.to(.float32), key.to(.float32), value.to(.float32), rate: rate.to(.float32), logDecay: logDecay?.to(.float32),
        initialState: initialState?.to(.float32), scale: scale, chunk: chunk, unitEpsilon: unitEpsilon, packing: packing)
    }
    return (o.to(value.dtype), s)
  }
  guard fusedKernelsServe(query) else {
    guard let packing else {
      return deltaRuleChunked(
        query, key, value, rate: rate, logDecay: logDecay, initialState: initialState, scale: scale, chunk: chunk,
        unitEpsilon: unitEpsilon)
    }
    return packing.scanEach(initialState) { part, state in
      deltaRuleChunked(
        part(query), part(key), part(value), rate: part(rate), logDecay: logDecay.map(part), initialState: state, scale: scale,
        chunk: chunk, unitEpsilon: unitEpsilon)
    }
  }
  let results = kernel.many(
    .tensor(query), .tensor(key), .tensor(value), .tensor(rate), .tensor(logDecay), .tensor(initialState),
    scale.map { .double($0) } ?? .none, .int(chunk), unitEpsilon.map { .double($0) } ?? .none, .tensor(packing?.offsetTensor))
  return (results[0] ?? .zeros([1]), results[1] ?? .zeros([1]))
}

/// The delta rule by chunks in the WY form, in plain operators:
///
///     A = I + tril(Diag(β) (K Kᵀ ⊙ D), −1),    [W U] = A⁻¹ Diag(β) [K e^b, V],    Δ = U − W S
///     O = (Q e^b) S + tril(Q Kᵀ ⊙ D) Δ,        S ← e^{b_C} S + (K e^{b_C − b})ᵀ Δ
///
/// with b the running sum of g in the chunk and D_ij = e^{b_i − b_j}. W and U need no state, so they are made for all chunks at once;
/// time O(L (C d + d²)), memory linear in L. Parameters as
/// ``deltaRule(_:_:_:rate:logDecay:initialState:scale:chunk:unitEpsilon:packing:)``.
public func deltaRuleChunked(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, rate: Tensor, logDecay: Tensor? = nil, initialState: Tensor? = nil,
  scale: Double? = nil, chunk: Int = 64, unitEpsilon: Double? = nil
) -> (output: Tensor, state: Tensor) {
  let (query, key) = unitEpsilon.map { (unit(query, $0), unit(key, $0)) } ?? (query, key)
  let (batch, heads, length) = (key.dim(0), key.dim(1), key.dim(2))
  var state = initialState ?? Tensor.zeros([batch, heads, key.dim(3), value.dim(3)], dtype: key.dtype, device: key.device)
  if length == 0 { return (Tensor.zeros(like: value), state) }
  let size = min(chunk, length)
  let count = (length + size - 1) / size
  let tail = count * size - length
  // Whole chunks: what is added writes nothing (β = 0) and forgets nothing (g = 0).
  func chunks(_ x: Tensor) -> Tensor {
    let padded = tail == 0 ? x : x.padded((x.rank == 4 ? [0, 0] : []) + [0, tail])
    return padded.reshaped([batch, heads, count, size] + x.shape.dropFirst(3))
  }
  let q = chunks(query * (scale ?? 1 / Double(query.dim(-1)).squareRoot()))
  let (k, v) = (chunks(key), chunks(value))
  let beta = chunks(rate).expandedDimension(-1)  // [B, H, N, C, 1]
  let b = logDecay.map { chunks($0.clamped(min: -100)).cumulativeSum(axis: -1) }  // [B, H, N, C]
  var (inner, scores) = (k.matmul(k.T), q.matmul(k.T))  // [B, H, N, C, C]
  var (keys, queries) = (k, q)
  var decayed = k
  if let b {
    let difference = b.expandedDimension(-1) - b.expandedDimension(-2)
    let future = Tensor.ones([size, size], dtype: .bool, device: k.device).upperTriangle(1)
    let weights = difference.maskedFill(future, -.infinity).exp()
    (inner, scores) = (inner * weights, scores * weights)
    let fromStart = b.exp().expandedDimension(-1)
    (keys, queries) = (k * fromStart, q * fromStart)
    decayed = k * (b[.ellipsis, (size - 1)...] - b).exp().expandedDimension(-1)
  }
  let system = (beta * inner).lowerTriangle(-1)
  let solved = system.solveTriangular(concatenated([keys, v], axis: -1) * beta, upper: false, unitDiagonal: true)
  let dk = key.dim(3)
  let (w, u) = (solved[.ellipsis, ..<dk], solved[.ellipsis, dk...])
  let attention = scores.lowerTriangle()
  var outputs: [Tensor] = []
  for i in 0..<count {
    func part(_ x: Tensor) -> Tensor { x.selected(axis: 2, i) }
    let change = part(u) - part(w).matmul(state)
    outputs.append(part(queries).matmul(state) + part(attention).matmul(change))
    let kept = b.map { state * $0[.ellipsis, size - 1].selected(axis: 2, i).exp().reshaped(batch, heads, 1, 1) } ?? state
    state = kept + part(decayed).T.matmul(change)
  }
  let output = concatenated(outputs, axis: 2)
  return (tail == 0 ? output : output.narrowed(axis: 2, start: 0, length: length), state)
}

/// The recurrence, token by token in plain operators: the oracle. Parameters as
/// ``deltaRule(_:_:_:rate:logDecay:initialState:scale:chunk:unitEpsilon:packing:)``.
public func deltaRuleReference(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, rate: Tensor, logDecay: Tensor? = nil, initialState: Tensor? = nil,
  scale: Double? = nil, unitEpsilon: Double? = nil
) -> (output: Tensor, state: Tensor) {
  let (query, key) = unitEpsilon.map { (unit(query, $0), unit(key, $0)) } ?? (query, key)
  let factor = scale ?? 1 / Double(query.dim(-1)).squareRoot()
  var state =
    initialState
    ?? Tensor.zeros([key.dim(0), key.dim(1), key.dim(3), value.dim(3)], dtype: key.dtype, device: key.device)
  var outputs: [Tensor] = []
  for t in 0..<key.dim(2) {
    func row(_ x: Tensor) -> Tensor { x.selected(axis: 2, t).expandedDimension(-2) }  // [B, H, 1, d]
    if let logDecay { state = state * logDecay.selected(axis: 2, t).exp().expandedDimension(-1).expandedDimension(-1) }
    let error = row(value) - row(key).matmul(state)
    let beta = rate.selected(axis: 2, t).expandedDimension(-1).expandedDimension(-1)
    state = state + row(key).T.matmul(error * beta)
    outputs.append(row(query).matmul(state) * factor)
  }
  return (outputs.isEmpty ? Tensor.zeros(like: value) : concatenated(outputs, axis: 2), state)
}
