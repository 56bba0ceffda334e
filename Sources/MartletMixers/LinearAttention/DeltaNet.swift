import Foundation

/// DeltaNet (Schlag et al. 2021; in parallel over the sequence: Yang et al. 2024, arXiv 2406.06484). A matrix of fast weights is
/// corrected towards each value by the delta rule:
///
///     S_t = S_{t−1} + β_t k_tᵀ (v_t − k_t S_{t−1}),      o_t = dk^{−½} q_t S_t
///     y = RMSNorm(o) W_o, with the output gate RMSNorm(o) ⊙ SiLU(x W_g) before W_o where it is on
///
/// with β_t = σ(x_t W_β) per head, and queries and keys after a short convolution and SiLU brought to length one. The parallel form
/// runs over chunks: inside a chunk the corrections solve a unit lower triangular system (the WY form of §3.2). The state
/// [B, H, dk, dv] does not grow.
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
    public var outputGate: Bool
    /// β in (0, 2): eigenvalues of the transition down to −1 (Grazzi et al. 2024).
    public var negativeEigenvalues: Bool
    public var normEpsilon: Double
    public var chunk: Int
    public var isCausal: Bool

    public init(
      width: Int, heads: Int = 4, keyWidth: Int? = nil, valueWidth: Int? = nil, convolution: Int = 4, outputGate: Bool = false,
      negativeEigenvalues: Bool = false, normEpsilon: Double = 1e-5, chunk: Int = 64, isCausal: Bool = true
    ) {
      self.width = width
      self.heads = heads
      self.keyWidth = keyWidth ?? width
      self.valueWidth = valueWidth ?? width
      self.convolution = convolution
      self.outputGate = outputGate
      self.negativeEigenvalues = negativeEigenvalues
      self.normEpsilon = normEpsilon
      self.chunk = chunk
      self.isCausal = isCausal
    }
  }

  public let configuration: Configuration
  @Child public var query: any LinearLayer
  @Child public var key: any LinearLayer
  @Child public var value: any LinearLayer
  /// W_β.
  @Child public var rate: any LinearLayer
  @Child(key: "output_gate") public var outputGate: (any LinearLayer)?
  @Child public var norm: RMSNorm
  @Child public var output: any LinearLayer
  @Child(key: "query_convolution") public var queryConvolution: ShortConvolution?
  @Child(key: "key_convolution") public var keyConvolution: ShortConvolution?
  @Child(key: "value_convolution") public var valueConvolution: ShortConvolution?

  public var isCausal: Bool { configuration.isCausal }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    require(
      c.keyWidth % c.heads == 0 && c.valueWidth % c.heads == 0,
      "key width \(c.keyWidth) and value width \(c.valueWidth) must be multiples of \(c.heads) heads")
    self.configuration = c
    super.init()
    func projection(_ from: Int, _ to: Int) -> any LinearLayer { Linear(from, to, bias: false, generator: generator) }
    query = projection(c.width, c.keyWidth)
    key = projection(c.width, c.keyWidth)
    value = projection(c.width, c.valueWidth)
    rate = projection(c.width, c.heads)
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

  private var convolutions: [ShortConvolution?] { [queryConvolution, keyConvolution, valueConvolution] }

  // MARK: Parallel form

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    let inputs = zip([query(x), key(x), value(x)], convolutions).map { $1?($0) ?? $0.silu() }
    return mix(x, inputs, mask: context.mask) { q, k, v, beta in
      let forward = deltaRule(q, k, v, beta, chunk: configuration.chunk).output
      if isCausal { return forward }
      // The reversed scan sees position t again: its own term is counted in both directions, as in bidirectional RNNs.
      func turned(_ x: Tensor) -> Tensor { x.flipped(axis: 2) }
      return forward + turned(deltaRule(turned(q), turned(k), turned(v), turned(beta), chunk: configuration.chunk).output)
    }
  }

  /// Heads, rates, the scan that is given, then norm, gate and projection. inputs: queries, keys, values [B, L, D].
  private func mix(
    _ x: Tensor, _ inputs: [Tensor], mask: Tensor?, _ scan: (Tensor, Tensor, Tensor, Tensor) -> Tensor
  ) -> Tensor {
    let heads = configuration.heads
    func unit(_ x: Tensor) -> Tensor { x / (x.square().sum(axis: -1, keepDims: true) + 1e-6).sqrt() }
    let (q, k, v) = (unit(splitHeads(inputs[0], heads)), unit(splitHeads(inputs[1], heads)), splitHeads(inputs[2], heads))
    var beta = rate(x).sigmoid() * (configuration.negativeEigenvalues ? 2 : 1)  // [B, L, H]
    // Padding writes nothing.
    if let mask { beta = beta * mask.expandedDimension(-1).to(x.dtype) }
    var o = mergeHeads(norm(scan(q, k, v, beta.swappedAxes(1, 2))))
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
    let like = stateKind(query)
    return State(
      memory: .zeros([batch, c.heads, c.keyWidth / c.heads, c.valueWidth / c.heads], dtype: like.dtype, device: like.device),
      convolutions: convolutions.compactMap { $0?.initialState(batch: batch) })
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor {
    var inputs = [query(x), key(x), value(x)]
    for (i, convolution) in convolutions.enumerated() {
      inputs[i] = convolution?.step(inputs[i], &state.convolutions[i]) ?? inputs[i].silu()
    }
    var memory = state.memory
    let y = mix(x.expandedDimension(1), inputs.map { $0.expandedDimension(1) }, mask: nil) { q, k, v, beta in
      let (o, end) = deltaRuleReference(q, k, v, beta, initialState: memory)
      memory = end
      return o
    }
    state.memory = memory
    return y.selected(axis: 1, 0)
  }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    var inputs = [query(x), key(x), value(x)]
    for (i, convolution) in convolutions.enumerated() {
      guard let convolution else {
        inputs[i] = inputs[i].silu()
        continue
      }
      let window = concatenated([state.convolutions[i], inputs[i]], axis: 1)
      inputs[i] = convolution(window)[.all, (convolution.kernel - 1)...]
      state.convolutions[i] = window[.all, (window.dim(1) - convolution.kernel + 1)...]
    }
    var memory = state.memory
    let y = mix(x, inputs, mask: nil) { q, k, v, beta in
      let (o, end) = deltaRule(q, k, v, beta, initialState: memory, chunk: configuration.chunk)
      memory = end
      return o
    }
    state.memory = memory
    return y
  }

  public func stateBytes(_ state: State) -> Int { state.tensors.reduce(0) { $0 + $1.byteCount } }

  public func multiplyAdds(length: Int) -> Int {
    let c = configuration
    let maps = [query, key, value, rate, output, outputGate].compactMap { $0?.multiplyAdds() }.reduce(0, +)
    let (dk, dv) = (c.keyWidth / c.heads, c.valueWidth / c.heads)
    return length * (maps + c.heads * (3 * dk * dv + c.chunk * (2 * dk + dv)))
  }
}

/// The delta rule in chunks. q, k: [B, H, L, dk], v: [B, H, L, dv], beta: [B, H, L]; outputs [B, H, L, dv] and the last state
/// [B, H, dk, dv].
///
/// In a chunk with keys K, values V and rates β the corrections U obey (I + tril(diag(β) K Kᵀ, −1)) U = diag(β) (V − K S): a
/// triangular system whose solution is linear in the state S before the chunk, which costs products of matrices only.
public func deltaRule(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, _ beta: Tensor, initialState: Tensor? = nil, scale: Double? = nil, chunk: Int = 64
) -> (output: Tensor, state: Tensor) {
  let (length, dk, dv) = (query.dim(2), query.dim(3), value.dim(3))
  let factor = scale ?? 1 / Double(dk).squareRoot()
  var state = initialState ?? Tensor.zeros([query.dim(0), query.dim(1), dk, dv], dtype: query.dtype, device: query.device)
  var outputs: [Tensor] = []
  for start in stride(from: 0, to: length, by: chunk) {
    let size = min(chunk, length - start)
    func part(_ x: Tensor) -> Tensor { x.narrowed(axis: 2, start: start, length: size) }
    let (q, k, v) = (part(query) * factor, part(key), part(value))
    let rates = part(beta).expandedDimension(-1)  // [B, H, C, 1]
    let (kBeta, vBeta) = (k * rates, v * rates)
    let system = kBeta.matmul(k.T).lowerTriangle(-1)  // its unit diagonal is implied
    let solved = system.solveTriangular(concatenated([kBeta, vBeta], axis: -1), upper: false, unitDiagonal: true)
    let corrections =
      solved.narrowed(axis: -1, start: dk, length: dv) - solved.narrowed(axis: -1, start: 0, length: dk).matmul(state)  // [B, H, C, dv]
    outputs.append(q.matmul(state) + q.matmul(k.T).lowerTriangle().matmul(corrections))
    state = state + k.T.matmul(corrections)
  }
  return (outputs.count == 1 ? outputs[0] : concatenated(outputs, axis: 2), state)
}

/// The same by the recurrence: the oracle, and the form for single steps.
public func deltaRuleReference(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, _ beta: Tensor, initialState: Tensor? = nil, scale: Double? = nil
) -> (output: Tensor, state: Tensor) {
  let factor = scale ?? 1 / Double(query.dim(3)).squareRoot()
  var state =
    initialState
    ?? Tensor.zeros([query.dim(0), query.dim(1), query.dim(3), value.dim(3)], dtype: query.dtype, device: query.device)
  var outputs: [Tensor] = []
  for t in 0..<query.dim(2) {
    func row(_ x: Tensor) -> Tensor { x.narrowed(axis: 2, start: t, length: 1) }  // [B, H, 1, d]
    let correction = (row(value) - row(key).matmul(state)) * row(beta).expandedDimension(-1)
    state = state + row(key).T.matmul(correction)
    outputs.append((row(query) * factor).matmul(state))
  }
  return (concatenated(outputs, axis: 2), state)
}
