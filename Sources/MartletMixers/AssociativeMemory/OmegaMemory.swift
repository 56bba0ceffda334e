import Foundation

/// A memory that is fitted while it reads (ATLAS: Behrouz et al. 2025, arXiv 2505.23735). Per head, with queries and keys of length one
/// lifted by φ (``PolynomialFeatures``) and W_0 learned:
///
///     q, k, v = ShortConvolution(x W_q), …     α, η, θ, γ = gates of x
///     W_t by the Omega rule on the last c pairs (``omegaRule(_:_:_:_:rule:state:phase:)``),     o_t = M(φ(q_t); W_t)
///     y = [RMSNorm(o) ⊙ SiLU(x W_g)] W_o
///
/// W is inner state, restarted for each sequence; everything else is trained through it. With a window of one, keys as they are and
/// α = 1 it is the delta rule; with ``MemoryObjective/dotProduct`` it is deep linear attention (and, c > 1, its sliding-window form).
///
/// The gates' producers are not published: here α = σ(x w + b)^{1/τ} as in gated linear attention, θ = σ(x w + b), γ = σ(x W + b) and
/// η = η̂ σ(x w + b), with η̂ = 2/(b c) unless given. Features have length one (the a_i are divided by their sum), so under that η̂ the b c gradients that a chunk takes at
/// one memory can't overshoot even if all its keys are the same: ‖I − Σ η γ φᵀφ‖ ≤ 1.
///
/// The state [B, H, F, dv] (twice: before the chunk and now; with momentum three times) and the last c − 1 pairs don't grow. There is
/// no bidirectional form: where chunks begin is part of the function, and seen from the end padding would move them.
public final class OmegaMemory: Module, RecurrentMixer {
  public struct Configuration: Sendable {
    public var width: Int
    public var heads: Int
    /// Channels of a head's key, before features.
    public var keyWidth: Int
    /// Channels of a head's value.
    public var valueWidth: Int
    /// p; 1 takes keys as they are.
    public var degree: Int
    /// c.
    public var window: Int
    public var rule: OmegaRule
    /// Hidden channels of an MLP memory, over its features.
    public var expansion: Int
    /// η̂; `nil` for 2/(b c), and 0.1 for Muon, whose steps have the length of the rate.
    public var rate: Double?
    /// τ: log α is divided by it, so that retention starts near 1.
    public var gateTemperature: Double
    /// Depthwise causal convolution of this size (with SiLU) on queries, keys and values; 0 for none.
    public var convolution: Int
    public var outputGate: Bool
    public var normEpsilon: Double

    public init(
      width: Int, heads: Int = 4, keyWidth: Int? = nil, valueWidth: Int? = nil, degree: Int = 2, window: Int = 4,
      rule: OmegaRule = OmegaRule(),
      expansion: Int = 4, rate: Double? = nil, gateTemperature: Double = 16, convolution: Int = 4, outputGate: Bool = true,
      normEpsilon: Double = 1e-5
    ) {
      self.width = width
      self.heads = heads
      self.valueWidth = valueWidth ?? width / max(heads, 1)
      // 12 channels have 91 features of degree 2: more pairs than a delta rule on keys of 64 holds, at 1.4 times its products.
      self.keyWidth = keyWidth ?? (degree > 1 ? 12 : self.valueWidth)
      self.degree = degree
      self.window = window
      self.rule = rule
      self.expansion = expansion
      self.rate = rate
      self.gateTemperature = gateTemperature
      self.convolution = convolution
      self.outputGate = outputGate
      self.normEpsilon = normEpsilon
    }

    /// F.
    public var features: Int { degree > 1 ? PolynomialFeatures.count(width: keyWidth, degree: degree) : keyWidth }
    /// η̂.
    public var largestRate: Double { rate ?? (rule.inner == .muon ? 0.1 : 2 / Double(rule.chunk * window)) }
  }

  public let configuration: Configuration
  @Child public var query: any LinearLayer
  @Child public var key: any LinearLayer
  @Child public var value: any LinearLayer
  /// → logits of α, one per head.
  @Child public var retention: any LinearLayer
  /// → logits of η / η̂, one per head.
  @Child public var rate: any LinearLayer
  /// → logits of θ, one per head.
  @Child public var persistence: (any LinearLayer)?
  /// → logits of γ, c per head.
  @Child public var window: any LinearLayer
  @Child public var features: PolynomialFeatures?
  /// W_0: the matrix [H, F, dv], or W₁ [H, hidden, dv].
  @Parameter public var memory: Tensor
  /// W₂ and W₃ of MLP memories, [H, F, hidden].
  @Parameter(key: "memory_in") public var memoryIn: Tensor?
  @Parameter(key: "memory_gate") public var memoryGate: Tensor?
  @Child(key: "output_gate") public var outputGate: (any LinearLayer)?
  @Child public var norm: RMSNorm
  @Child public var output: any LinearLayer
  @Child(key: "query_convolution") public var queryConvolution: ShortConvolution?
  @Child(key: "key_convolution") public var keyConvolution: ShortConvolution?
  @Child(key: "value_convolution") public var valueConvolution: ShortConvolution?

  public var isCausal: Bool { true }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    require(
      c.heads > 0 && c.keyWidth > 0 && c.valueWidth > 0 && c.degree > 0 && c.window > 0 && c.rule.chunk > 0 && c.expansion > 0,
      "heads, widths, degree, window, chunk and expansion must be positive: \(c)")
    self.configuration = c
    super.init()
    let initializer = Initializer.xavierUniform(gain: pow(2, -2.5))
    func projection(_ from: Int, _ to: Int) -> any LinearLayer {
      Linear(from, to, bias: false, initializer: initializer, generator: generator)
    }
    func gate(_ to: Int, bias: Double) -> any LinearLayer {
      Linear(weight: initializer([to, c.width], generator), bias: Initializer.constant(bias)([to], generator))
    }
    query = projection(c.width, c.heads * c.keyWidth)
    key = projection(c.width, c.heads * c.keyWidth)
    value = projection(c.width, c.heads * c.valueWidth)
    // α begins at 0.997: a memory of some 300 tokens.
    retention = gate(c.heads, bias: 3)
    rate = gate(c.heads, bias: 0)
    persistence = c.rule.inner == .gradient ? nil : gate(c.heads, bias: 0)
    window = gate(c.heads * c.window, bias: 0)
    features = c.degree > 1 ? PolynomialFeatures(width: c.keyWidth, degree: c.degree, normalized: true) : nil
    let hidden = c.expansion * c.features
    func inner(_ from: Int, _ to: Int, _ generator: RandomGenerator) -> Tensor {
      Initializer.normal(1 / Double(from).squareRoot())([c.heads, from, to], generator)
    }
    switch c.rule.memory {
    case .matrix:
      memory = Initializer.zeros([c.heads, c.features, c.valueWidth], generator)
      memoryIn = nil
      memoryGate = nil
    case .mlp, .gatedMLP:
      memory = inner(hidden, c.valueWidth, generator)
      memoryIn = inner(c.features, hidden, generator)
      memoryGate = c.rule.memory == .gatedMLP ? inner(c.features, hidden, generator) : nil
    }
    outputGate = c.outputGate ? projection(c.width, c.heads * c.valueWidth) : nil
    norm = RMSNorm(c.valueWidth, epsilon: c.normEpsilon)
    output = projection(c.heads * c.valueWidth, c.width)
    func convolution(_ width: Int) -> ShortConvolution? {
      c.convolution > 0 ? ShortConvolution(width, kernel: c.convolution, generator: generator) : nil
    }
    queryConvolution = convolution(c.heads * c.keyWidth)
    keyConvolution = convolution(c.heads * c.keyWidth)
    valueConvolution = convolution(c.heads * c.valueWidth)
  }

  // MARK: Parallel form

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    let (q, k, v) = (query(x), key(x), value(x))
    return mix(x, queryConvolution?(q) ?? q, keyConvolution?(k) ?? k, valueConvolution?(v) ?? v, mask: context.mask) { q, k, v, gates in
      var state = self.initial(batch: x.dim(0), like: q)
      return omegaRule(q, k, v, gates, rule: configuration.rule, state: &state)
    }
  }

  /// Heads, features and gates, the scan that is given, then norm, output gate and projection. q, k, v: after the convolutions.
  private func mix(
    _ x: Tensor, _ q: Tensor, _ k: Tensor, _ v: Tensor, mask: Tensor? = nil, _ scan: (Tensor, Tensor, Tensor, OmegaGates) -> Tensor
  ) -> Tensor {
    let heads = configuration.heads
    var gates = self.gates(x)
    if let mask {
      // Padding writes nothing and forgets nothing.
      let keep = mask.expandedDimension(1).to(x.dtype)
      gates.retention = gates.retention * keep + (1 - keep)
      gates.persistence = gates.persistence.map { $0 * keep + (1 - keep) }
      gates.rate = gates.rate * keep
      gates.window = gates.window * keep.expandedDimension(-1)
    }
    func lifted(_ x: Tensor) -> Tensor {
      let unit = x * (x.square().sum(axis: -1, keepDims: true) + 1e-6).rsqrt()
      return features?(unit) ?? unit
    }
    let (q, k, v) = (splitHeads(q, heads), splitHeads(k, heads), splitHeads(v, heads))
    let scanned: Tensor
    if isAutocastEnabled(x.device) || q.dtype == .bfloat16 || q.dtype == .float16 {
      // Sums over a whole sequence: never in 16 bits.
      scanned = withAutocast(false, device: x.device) {
        scan(lifted(q.to(.float32)), lifted(k.to(.float32)), v.to(.float32), gates.mapped { $0.to(.float32) })
      }.to(x.dtype)
    } else {
      scanned = scan(lifted(q), lifted(k), v, gates)
    }
    var o = mergeHeads(norm(scanned))  // normalised per head
    if let outputGate { o = o * outputGate(x).silu() }
    return output(o)
  }

  /// α, η, θ and γ of x [B, L, D].
  func gates(_ x: Tensor) -> OmegaGates {
    func each(_ layer: any LinearLayer) -> Tensor { layer(x).sigmoid().swappedAxes(1, 2) }  // [B, H, L]
    // By its logarithm: close to 1, σ's own slope σ(1 − σ) would lose what float32 has of 1 − σ.
    let kept = (retention(x).logSigmoid() / configuration.gateTemperature).exp().swappedAxes(1, 2)
    return OmegaGates(
      retention: kept, rate: each(rate) * configuration.largestRate, persistence: persistence.map(each),
      window: splitHeads(window(x).sigmoid(), configuration.heads))
  }

  /// W_0 for every sequence.
  private func initial(batch: Int, like x: Tensor? = nil) -> OmegaState {
    let weights = [memory, memoryIn, memoryGate].compactMap { weight -> Tensor? in
      guard let weight else { return nil }
      let own = weight.dtype == .float64 ? weight : weight.to(.float32)
      return own.expandedDimension(0).broadcast(to: [batch] + own.shape)
    }
    return OmegaState(
      weights: weights, rule: configuration.rule, window: configuration.window, features: configuration.features,
      valueWidth: configuration.valueWidth)
  }

  // MARK: Recurrent form

  public struct State: MixerState, @unchecked Sendable {
    public var memory: OmegaState
    /// The last inputs of the three short convolutions.
    public var convolutions: [Tensor]
    /// Tokens of its present chunk that each sequence has read.
    public var phases: [Int]

    var tensors: [Tensor] { memory.tensors + convolutions }

    private func mapped(_ phases: [Int], _ transform: (Int) -> Tensor) -> State {
      var result = self
      let count = memory.tensors.count
      result.memory.tensors = (0..<count).map(transform)
      result.convolutions = convolutions.indices.map { transform(count + $0) }
      result.phases = phases
      return result
    }

    public func selecting(_ rows: [Int]) -> State {
      let (index, all) = (Tensor(rows), tensors)
      return mapped(rows.map { phases[$0] }) { all[$0].take(index.to(all[$0].device)) }
    }

    public static func joined(_ states: [State]) -> State {
      let all = states.map(\.tensors)
      return states[0].mapped(states.flatMap(\.phases)) { i in concatenated(all.map { $0[i] }) }
    }
  }

  public func initialState(batch: Int) -> State {
    State(
      memory: initial(batch: batch),
      convolutions: [queryConvolution, keyConvolution, valueConvolution].compactMap { $0?.initialState(batch: batch) },
      phases: Array(repeating: 0, count: batch))
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor { advance(x.expandedDimension(1), &state).selected(axis: 1, 0) }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    let (length, chunk) = (x.dim(1), configuration.rule.chunk)
    let phase = state.phases.first ?? 0
    let isUniform = state.phases.allSatisfy { $0 == phase }
    guard length == 1 || isUniform else {
      return stacked((0..<length).map { step(x.selected(axis: 1, $0), &state) }, axis: 1)
    }
    var inputs = [query(x), key(x), value(x)]
    for (i, convolution) in [queryConvolution, keyConvolution, valueConvolution].enumerated() {
      if let convolution { inputs[i] = convolution.advance(inputs[i], &state.convolutions[i]) }
    }
    var memory = state.memory
    if !isUniform {
      // One token for sequences at different places of their chunks: those at a start take it now.
      let starting = Tensor(state.phases.map { $0 == 0 ? 1 : 0 }).reshaped(-1, 1, 1, 1) .!= 0
      memory.start = zip(memory.weights, memory.start).map { select(starting.to($0.device), $0, $1) }
    }
    let y = mix(x, inputs[0], inputs[1], inputs[2]) { q, k, v, gates in
      // Any place inside a chunk but its start: no new start is taken.
      omegaRule(q, k, v, gates, rule: configuration.rule, state: &memory, phase: isUniform ? phase : chunk - 1)
    }
    state.memory = memory
    state.phases = state.phases.map { ($0 + length) % chunk }
    return y
  }

  public func stateBytes(_ state: State) -> Int { state.tensors.reduce(0) { $0 + $1.byteCount } }

  public func multiplyAdds(length: Int) -> Int {
    let c = configuration
    let maps = [query, key, value, output, retention, rate, persistence, window, outputGate].compactMap { $0?.multiplyAdds() }.reduce(0, +)
    let pairs = Double(c.rule.chunk + c.window - 1) / Double(c.rule.chunk)
    // Of each weight: what queries and keys read, what errors write; within the chunk, scores and their products.
    func weight(_ from: Int, _ to: Int) -> Double {
      let area = Double(from * to)
      let rule: Double =
        switch c.rule.inner {
        case .gradient: 1 + 2 * pairs
        case .momentum: 2 + 3 * pairs
        // Each token's S, and 5 iterations of three products with the smaller side.
        case .muon: 2 + 2 * pairs * Double(c.rule.chunk) + 15 * Double(min(from, to))
        }
      return area * rule + pairs * Double(c.rule.chunk * (from + to))
    }
    let hidden = c.expansion * c.features
    let scan: Double =
      switch c.rule.memory {
      case .matrix: weight(c.features, c.valueWidth)
      case .mlp: weight(c.features, hidden) + weight(hidden, c.valueWidth)
      case .gatedMLP: 2 * weight(c.features, hidden) + weight(hidden, c.valueWidth)
      }
    return length * (maps + c.heads * Int(scan))
  }
}

// MARK: - By name

extension MixerKind {
  public static let atlas = MixerKind(
    name: "atlas", summary: "a memory fitted online to a window of pairs: Omega rule, Atlas (Behrouz et al. 2025)",
    keys: [
      headsKey, ConfigurationKey("key_width", .integer, default: 0, "channels of a head's key; 0 for 12, or for the values' at degree 1"),
      ConfigurationKey("value_ratio", .number, default: 1, "total value width over model width"),
      ConfigurationKey("degree", .integer, default: 2, "p: degree of the polynomial features; 1 takes keys as they are"),
      ConfigurationKey("window", .integer, default: 4, "c: pairs whose errors a step corrects"),
      ConfigurationKey(
        "memory", .string, default: "matrix", "what is fitted", choices: MemoryKind.allCases.map(\.rawValue)),
      ConfigurationKey(
        "inner", .string, default: "gradient", "how it is fitted", choices: InnerRule.allCases.map(\.rawValue)),
      ConfigurationKey(
        "objective", .string, default: "squared_error", "what it is fitted to", choices: MemoryObjective.allCases.map(\.rawValue)),
      ConfigurationKey("chunk", .integer, default: 8, "b: tokens whose gradients are taken at one memory; part of the function"),
      ConfigurationKey("expansion", .integer, default: 4, "hidden channels of MLP memories over their features"),
      ConfigurationKey("rate", .number, default: 0, "largest η; 0 for 2/(chunk · window), and 0.1 with muon"),
      ConfigurationKey("gate_temperature", .number, default: 16, "τ: the logarithm of the retention is divided by it"),
      ConfigurationKey("convolution", .integer, default: 4, "size of a causal depthwise convolution on q, k, v; 0 for none"),
      ConfigurationKey("output_gate", .boolean, default: true, "SiLU gate on the output"),
      ConfigurationKey("norm_epsilon", .number, default: 1e-5, "of the norm on the output"),
      ConfigurationKey(
        "hybrid", .string, default: "none", "with sliding-window attention: its gate (mag), or a layer before it (mal)",
        choices: MemoryHybrid.Kind.names),
      ConfigurationKey("attention_window", .integer, default: 64, "positions that a hybrid's attention sees before the own one"),
    ], directions: [.causal]
  ) { site, options, generator in
    let heads = try heads(options, site)
    func integer(_ key: String, _ fallback: Int) -> Int { options[key]?.intValue ?? fallback }
    let rule = OmegaRule(
      memory: options["memory"]?.stringValue.flatMap(MemoryKind.init) ?? .matrix,
      inner: options["inner"]?.stringValue.flatMap(InnerRule.init) ?? .gradient,
      objective: options["objective"]?.stringValue.flatMap(MemoryObjective.init) ?? .squaredError, chunk: integer("chunk", 8))
    let (keyWidth, rate) = (integer("key_width", 0), options["rate"]?.doubleValue ?? 0)
    let configuration = OmegaMemory.Configuration(
      width: site.width, heads: heads, keyWidth: keyWidth == 0 ? nil : keyWidth,
      valueWidth: total(options, "value_ratio", 1, site, heads) / heads, degree: integer("degree", 2), window: integer("window", 4),
      rule: rule,
      expansion: integer("expansion", 4), rate: rate == 0 ? nil : rate,
      gateTemperature: options["gate_temperature"]?.doubleValue ?? 16, convolution: integer("convolution", 4),
      outputGate: options["output_gate"]?.boolValue ?? true, normEpsilon: options["norm_epsilon"]?.doubleValue ?? 1e-5)
    guard
      configuration.keyWidth > 0, configuration.degree > 0, configuration.window > 0, rule.chunk > 0, configuration.expansion > 0,
      rate >= 0,
      configuration.gateTemperature > 0, configuration.convolution >= 0
    else {
      throw ConfigurationError(
        "degree, window, chunk, expansion and gate_temperature must be positive, key_width, rate and convolution not negative")
    }
    guard configuration.keyWidth <= 4096, configuration.degree <= 8, configuration.features <= 1 << 14 else {
      throw ConfigurationError(
        "keys of \(configuration.keyWidth) channels have too many features of degree \(configuration.degree): make key_width small")
    }
    let memory = OmegaMemory(configuration, generator: generator)
    guard let kind = options["hybrid"]?.stringValue.flatMap(MemoryHybrid.Kind.init) else { return memory }
    let seen = integer("attention_window", 64)
    guard seen >= 0 else { throw ConfigurationError("attention_window must not be negative, got \(seen)") }
    let attention = SoftmaxAttention(
      .init(width: site.width, heads: heads, window: seen, rotaryBase: site.width / heads % 2 == 0 ? 10000 : nil), generator: generator)
    return MemoryHybrid(kind, memory: memory, attention: attention)
  }
}
