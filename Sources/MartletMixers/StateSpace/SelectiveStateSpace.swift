import Foundation
import MartletNN

/// The selective state space of Mamba (Gu & Dao 2023, arXiv 2312.00752, algorithm 2 and figure 3): I = 2D diagonal systems whose step,
/// input and output depend on the token, between a short convolution and a gate:
///
///     (x, z) = W_in input,    x ← SiLU(conv(x)),    (δ_t, B_t, C_t) = W_x x_t,    Δ_t = softplus(W_Δ δ_t + b_Δ)
///     h_t = e^{Δ_t A} h_{t−1} + Δ_t B_t x_t,    y_t = C_t·h_t + D⊙x_t,    output = W_out (y ⊙ SiLU(z))
///
/// with A = −e^{A_log} ∈ R^{I×N} and B_t, C_t ∈ R^N shared by the channels. The scan with softplus, skip and gate is the kernel
/// `martlet::selective_scan`; ``selectiveScanReference(_:delta:A:B:C:skip:gate:deltaBias:initialState:)`` is the recurrence in plain
/// operators and ``selectiveScanAssociative(_:delta:A:B:C:skip:gate:deltaBias:initialState:chunk:)`` the parallel scan of other devices
/// and dtypes. The state is I·N numbers and the last inputs of the convolution. Names and first values are those of the authors'
/// checkpoints.
public final class SelectiveStateSpace: Module, RecurrentMixer {
  public struct Configuration: Sendable {
    public var width: Int
    /// I over the width.
    public var expansion: Int
    /// N, the states of a channel.
    public var state: Int
    /// Size of the causal convolution.
    public var convolution: Int
    /// Rank of the projection to Δ.
    public var stepRank: Int
    /// Δ at the start, log-uniform per channel and at least 10⁻⁴.
    public var stepRange: ClosedRange<Double>

    /// - Parameter stepRank: `nil` for ⌈width/16⌉.
    public init(
      width: Int, expansion: Int = 2, state: Int = 16, convolution: Int = 4, stepRank: Int? = nil,
      stepRange: ClosedRange<Double> = 1e-3...1e-1
    ) {
      self.width = width
      self.expansion = expansion
      self.state = state
      self.convolution = convolution
      self.stepRank = stepRank ?? (width + 15) / 16
      self.stepRange = stepRange
    }

    /// I
    public var inner: Int { expansion * width }
  }

  public let configuration: Configuration
  /// To x and z, [2I, D].
  @Child(key: "in_proj") public var input: any LinearLayer
  /// Depthwise; [I, 1, kernel] with a bias.
  @Child(key: "conv1d") public var convolution: Conv1d
  /// To δ, B and C, [R + 2N, I].
  @Child(key: "x_proj") public var selection: any LinearLayer
  /// W_Δ and b_Δ, [I, R].
  @Child(key: "dt_proj") public var step: any LinearLayer
  /// [I, N]
  @Parameter(key: "A_log") public var logA: Tensor
  /// The skip weight D, [I].
  @Parameter(key: "D") public var skip: Tensor
  @Child(key: "out_proj") public var output: any LinearLayer

  public var isCausal: Bool { true }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    require(
      c.width > 0 && c.expansion > 0 && c.state > 0 && c.convolution > 0 && c.stepRank > 0,
      "width, expansion, state, convolution and rank must be positive, got \(c)")
    self.configuration = c
    super.init()
    input = Linear(c.width, 2 * c.inner, bias: false, generator: generator)
    convolution = Conv1d(c.inner, c.inner, kernel: c.convolution, groups: c.inner, generator: generator)
    selection = Linear(c.inner, c.stepRank + 2 * c.state, bias: false, generator: generator)
    // Keeps the variance of δ; the bias is the inverse of softplus at steps spread over their range.
    let (low, high) = (log(c.stepRange.lowerBound), log(c.stepRange.upperBound))
    let bound = 1 / Double(c.stepRank).squareRoot()
    let weight = Initializer.uniform(bound)([c.inner, c.stepRank], generator)
    let steps = (Initializer.uniform(0.5)([c.inner], generator) * (high - low) + (high + low) / 2).exp().clamped(min: 1e-4)
    step = Linear(weight: weight, bias: steps + (steps * -1).expm1().abs().log())
    logA = Tensor.arange(1, Double(c.state + 1)).log().broadcast(to: [c.inner, c.state]).contiguous()
    skip = Tensor.ones([c.inner])
    output = Linear(c.inner, c.width, bias: false, generator: generator)
  }

  // MARK: Parallel form

  /// Padding stands at the end, where a causal mixer's real outputs don't see it.
  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor { run(x, nil).output }

  private func run(_ x: Tensor, _ state: State?) -> (output: Tensor, state: State) {
    let c = configuration
    let halves = input(x).chunked(2, axis: -1)  // [B, L, I] each, views of [B, L, 2I]
    let (inner, gate) = (halves[0], halves[1])
    let u = causalConvolution(inner, weight: convolution.weight.squeezed(1), bias: convolution.bias, past: state?.inputs)
    let parts = selection(u).split(sizes: [c.stepRank, c.state, c.state], axis: -1)
    // The kernel adds the bias where it takes the softplus.
    let plain = step as? Linear
    let delta = plain.map { linearMap(parts[0], $0.weight) } ?? step(parts[0])
    let (y, last) = selectiveScan(
      u, delta: delta, A: -logA.exp(), B: parts[1], C: parts[2], skip: skip, gate: gate, deltaBias: plain?.bias, initialState: state?.memory
    )
    let kept = c.convolution - 1
    let past = state?.inputs ?? .zeros([x.dim(0), kept, c.inner], dtype: inner.dtype, device: inner.device)
    let seen = x.dim(1) >= kept ? inner : concatenated([past, inner], axis: 1)
    return (output(y), State(memory: last, inputs: seen.narrowed(axis: 1, start: seen.dim(1) - kept, length: kept)))
  }

  // MARK: Recurrent form

  public struct State: TensorState, @unchecked Sendable {
    /// h, [B, I, N].
    public var memory: Tensor
    /// The last inputs of the convolution, [B, kernel − 1, I].
    public var inputs: Tensor
    public var tensors: [Tensor] {
      get { [memory, inputs] }
      set { (memory, inputs) = (newValue[0], newValue[1]) }
    }
  }

  public func initialState(batch: Int) -> State {
    let c = configuration
    let like = stateKind(input)
    return State(
      memory: .zeros([batch, c.inner, c.state], dtype: like.dtype, device: like.device),
      inputs: .zeros([batch, c.convolution - 1, c.inner], dtype: like.dtype, device: like.device))
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor { advance(x.expandedDimension(1), &state).squeezed(1) }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    let (y, next) = run(x, state)
    // A view of the projections would keep all of them alive.
    state = State(memory: next.memory, inputs: next.inputs.copy())
    return y
  }

  public func stateBytes(_ state: State) -> Int { state.memory.byteCount + state.inputs.byteCount }

  public func multiplyAdds(length: Int) -> Int {
    let c = configuration
    let maps = [input, selection, step, output].map { $0.multiplyAdds() }.reduce(0, +)
    return length * (maps + c.inner * (c.convolution + 3 * c.state))
  }
}

// MARK: The scan

private let kernel = Operator("martlet::selective_scan")

/// The selective scan h_t = e^{Δ_t A} h_{t−1} + Δ_t x_t B_t, y_t = (C_t·h_t + skip ⊙ x_t) ⊙ SiLU(gate_t), Δ_t = softplus(delta_t + deltaBias).
///
/// - Parameters:
///   - x, delta, gate: [B, L, I]; A: [I, N], negative; B, C: [B, L, N].
///   - skip, deltaBias: [I]; `nil` for none. `gate`: `nil` for none.
///   - initialState: [B, I, N]; `nil` for zeros.
/// - Returns: y [B, L, I] and the last state.
public func selectiveScan(
  _ x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor? = nil, gate: Tensor? = nil, deltaBias: Tensor? = nil,
  initialState: Tensor? = nil
) -> (output: Tensor, state: Tensor) {
  guard fusedKernelsServe(x), [delta, A, B, C].allSatisfy({ $0.dtype == .float32 }) else {
    return selectiveScanAssociative(
      x, delta: delta, A: A, B: B, C: C, skip: skip, gate: gate, deltaBias: deltaBias, initialState: initialState)
  }
  let results = kernel.many(
    .tensor(x), .tensor(delta), .tensor(A), .tensor(B), .tensor(C), .tensor(skip), .tensor(gate), .tensor(deltaBias),
    .tensor(initialState), .bool(true))
  return (results[0] ?? .zeros([1]), results[1] ?? .zeros([1]))
}

/// The recurrence, token by token in plain operators: the oracle. Arguments and results as ``selectiveScan(_:delta:A:B:C:skip:gate:deltaBias:initialState:)``.
public func selectiveScanReference(
  _ x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor? = nil, gate: Tensor? = nil, deltaBias: Tensor? = nil,
  initialState: Tensor? = nil
) -> (output: Tensor, state: Tensor) {
  let steps = positiveSteps(delta, deltaBias)
  var h = initialState ?? .zeros([x.dim(0), x.dim(2), A.dim(1)], dtype: x.dtype, device: x.device)
  var outputs: [Tensor] = []
  for t in 0..<x.dim(1) {
    let step = steps.selected(axis: 1, t).expandedDimension(-1)  // [B, I, 1]
    let written = x.selected(axis: 1, t).expandedDimension(-1) * B.selected(axis: 1, t).expandedDimension(1)  // [B, I, N]
    h = (step * A).exp() * h + step * written
    outputs.append((h * C.selected(axis: 1, t).expandedDimension(1)).sum(axis: -1))
  }
  return (finished(stacked(outputs, axis: 1), x, skip, gate), h)
}

/// The same by a parallel scan of the pairs (e^{Δ A}, Δ x B) under (a₁, b₁) ∘ (a₂, b₂) = (a₁a₂, a₂b₁ + b₂), one chunk of positions after
/// the other: [B, chunk, I, N] in memory at once, and linear in the length but for what differentiation keeps.
public func selectiveScanAssociative(
  _ x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor? = nil, gate: Tensor? = nil, deltaBias: Tensor? = nil,
  initialState: Tensor? = nil, chunk: Int = 64
) -> (output: Tensor, state: Tensor) {
  let steps = positiveSteps(delta, deltaBias)
  var state = initialState ?? .zeros([x.dim(0), x.dim(2), A.dim(1)], dtype: x.dtype, device: x.device)
  var outputs: [Tensor] = []
  for start in stride(from: 0, to: x.dim(1), by: chunk) {
    let size = min(chunk, x.dim(1) - start)
    func part(_ tensor: Tensor) -> Tensor { tensor.narrowed(axis: 1, start: start, length: size) }
    let step = part(steps).expandedDimension(-1)  // [B, l, I, 1]
    let decay = (step * A).exp()
    let written = step * part(x).expandedDimension(-1) * part(B).expandedDimension(2)
    let scanned = associativeScan([decay, written], axis: 1) { earlier, later in
      [earlier[0] * later[0], later[0] * earlier[1] + later[1]]
    }
    let h = scanned[0] * state.expandedDimension(1) + scanned[1]  // [B, l, I, N]
    outputs.append(h.matmul(part(C).expandedDimension(-1)).squeezed(-1))
    state = h.selected(axis: 1, size - 1)
  }
  return (finished(concatenated(outputs, axis: 1), x, skip, gate), state)
}

private func positiveSteps(_ delta: Tensor, _ bias: Tensor?) -> Tensor { (bias.map { delta + $0 } ?? delta).softplus() }

private func finished(_ y: Tensor, _ x: Tensor, _ skip: Tensor?, _ gate: Tensor?) -> Tensor {
  let whole = skip.map { y + x * $0 } ?? y
  return gate.map { whole * $0.silu() } ?? whole
}

// MARK: By name

extension MixerKind {
  public static let mamba = MixerKind(
    name: "mamba", summary: "selective state space: a diagonal system chosen by the token (Gu & Dao 2023)",
    keys: [
      ConfigurationKey("state", .integer, default: 16, "N, states of each channel"),
      ConfigurationKey("expansion", .integer, default: 2, "channels inside over the width"),
      ConfigurationKey("convolution", .integer, default: 4, "size of the causal depthwise convolution"),
      ConfigurationKey("step_rank", .integer, default: .null, "rank of the projection to the step; null for width / 16, rounded up"),
      ConfigurationKey("dt_min", .number, default: 0.001, "smallest step at the start"),
      ConfigurationKey("dt_max", .number, default: 0.1, "largest step at the start"),
    ],
    // Without weight decay, as the authors train it; D has none because of its rank.
    slowParameters: ["A_log"], directions: [.causal]
  ) { site, options, generator in
    let (low, high) = (options["dt_min"]?.doubleValue ?? 1e-3, options["dt_max"]?.doubleValue ?? 1e-1)
    guard low > 0, low <= high else { throw ConfigurationError("steps need 0 < dt_min ≤ dt_max, got \(low) and \(high)") }
    let configuration = SelectiveStateSpace.Configuration(
      width: site.width, expansion: options["expansion"]?.intValue ?? 2, state: options["state"]?.intValue ?? 16,
      convolution: options["convolution"]?.intValue ?? 4, stepRank: options["step_rank"]?.intValue, stepRange: low...high)
    guard (1...64).contains(configuration.expansion), (1...1024).contains(configuration.state),
      (1...16).contains(configuration.convolution),
      (1...65536).contains(configuration.stepRank)
    else {
      throw ConfigurationError("expansion must be 1...64, state 1...1024, convolution 1...16 and step_rank positive")
    }
    return SelectiveStateSpace(configuration, generator: generator)
  }
}
