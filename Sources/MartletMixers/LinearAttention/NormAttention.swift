/// The two forms of TransNormer's attention layers (Qin et al. 2022): what is applied to queries and keys, and how weights are made.
public enum TransNormerForm: String, Codable, Sendable, CaseIterable {
  /// φ = elu in ``NormAttention``; relu of the scores, and a norm, in ``DiagonalBlockAttention``.
  case t1
  /// φ = 1 + elu in ``NormAttention``; softmax in ``DiagonalBlockAttention``.
  case t2
}

/// NormAttention (Qin et al. 2022, "The Devil in Linear Transformer", arXiv 2210.10340): linear attention without its denominator,
/// whose gradient is unbounded, and with a norm on the output in its place:
///
///     Q = P φ(X W_q),   K = P φ(X W_k),   V = X W_v                 (per head; P: ``LRPE``)
///     O = Q (Kᵀ V)   (causal: O_i = q_i Σ_{j≤i} k_jᵀ v_j)
///     Y = SRMSNorm([O_1, …, O_H]) W_o,   SRMSNorm(x) = x / (‖x‖₂ D^{−½} + ε)
///
/// The norm goes over all D channels of the joined heads. Scaling V, or K, by a positive number changes nothing; with φ = elu scores
/// are signed. The causal scan is ``gatedLinearAttention(_:_:_:logGate:initialState:scale:chunk:)`` without a gate; the state
/// [B, H, d, d] does not grow.
public final class NormAttention: Module, RecurrentMixer {
  public struct Configuration: Sendable {
    public var width: Int
    public var heads: Int
    public var form: TransNormerForm
    /// Linearized relative positions on queries and keys.
    public var positions: Bool
    public var isCausal: Bool
    public var epsilon: Double

    public init(
      width: Int, heads: Int = 4, form: TransNormerForm = .t2, positions: Bool = true, isCausal: Bool = true, epsilon: Double = 1e-8
    ) {
      self.width = width
      self.heads = heads
      self.form = form
      self.positions = positions
      self.isCausal = isCausal
      self.epsilon = epsilon
    }
  }

  public let configuration: Configuration
  @Child public var query: any LinearLayer
  @Child public var key: any LinearLayer
  @Child public var value: any LinearLayer
  @Child public var output: any LinearLayer
  @Child public var positions: LRPE?
  private let norm: SRMSNorm

  public var isCausal: Bool { configuration.isCausal }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    require(c.width % c.heads == 0, "width \(c.width) is not a multiple of \(c.heads) heads")
    self.configuration = c
    norm = SRMSNorm(epsilon: c.epsilon)
    super.init()
    // As the authors' code: Xavier-uniform, the inputs' with gain 1/√2.
    func projection(_ gain: Double) -> any LinearLayer {
      Linear(c.width, c.width, initializer: .xavierUniform(gain: gain), generator: generator)
    }
    query = projection(0.5.squareRoot())
    key = projection(0.5.squareRoot())
    value = projection(0.5.squareRoot())
    output = projection(1)
    positions = c.positions ? LRPE(dimensions: c.width / c.heads, generator: generator) : nil
  }

  private var feature: LRPE.Feature { configuration.form == .t1 ? .elu : .onePlusElu }

  /// P φ(q), P φ(k) and v, each [B, H, L, d].
  private func project(_ x: Tensor, starts: [Int]) -> (q: Tensor, k: Tensor, v: Tensor) {
    let heads = configuration.heads
    func placed(_ y: Tensor) -> Tensor {
      let y = splitHeads(y, heads)
      return positions?(y, feature: feature, starts: starts) ?? feature(y)
    }
    return (placed(query(x)), placed(key(x)), splitHeads(value(x), heads))
  }

  // MARK: Parallel form

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    var (q, k, v) = project(x, starts: [context.offset])
    if let mask = context.mask { k = k * mask[.all, .newAxis, .all, .newAxis].to(k.dtype) }
    let o = isCausal ? gatedLinearAttention(q, k, v, logGate: nil, scale: 1).output : q.matmul(k.T.matmul(v))
    return output(norm(mergeHeads(o)))
  }

  // MARK: Recurrent form

  public struct State: MixerState, @unchecked Sendable {
    /// Σ kᵀ v, [B, H, d, d] float32 or better.
    public var memory: Tensor
    /// Tokens seen by each sequence.
    public var positions: [Int]

    public func selecting(_ rows: [Int]) -> State {
      State(memory: memory.take(Tensor(rows).to(memory.device)), positions: rows.map { positions[$0] })
    }

    public static func joined(_ states: [State]) -> State {
      State(memory: concatenated(states.map(\.memory)), positions: states.flatMap(\.positions))
    }
  }

  public func initialState(batch: Int) -> State {
    require(isCausal, "bidirectional attention can't run token by token")
    let (h, d) = (configuration.heads, configuration.width / configuration.heads)
    let like = stateKind(query)
    return State(
      memory: .zeros([batch, h, d, d], dtype: like.dtype, device: like.device), positions: Array(repeating: 0, count: batch))
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor {
    let (q, k, v) = project(x.expandedDimension(1), starts: state.positions)
    let o: Tensor  // [B, H, d]
    if fusedKernelsServe(x) && !isGradientEnabled {
      o = stepKernel(
        .tensor(q.selected(axis: 2, 0)), .tensor(k.selected(axis: 2, 0)), .tensor(v.selected(axis: 2, 0)), .none, .tensor(state.memory),
        .double(1))
    } else {
      let result = gatedLinearAttentionReference(q, k, v, logGate: nil, initialState: state.memory, scale: 1)
      state.memory = result.state
      o = result.output.selected(axis: 2, 0)
    }
    state.positions = state.positions.map { $0 + 1 }
    return output(norm(o.reshaped(x.dim(0), -1)))
  }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    let (q, k, v) = project(x, starts: state.positions)
    let (o, memory) = gatedLinearAttention(q, k, v, logGate: nil, initialState: state.memory, scale: 1)
    state.memory = memory
    state.positions = state.positions.map { $0 + x.dim(1) }
    return output(norm(mergeHeads(o)))
  }

  public func stateBytes(_ state: State) -> Int { state.memory.byteCount }

  public func multiplyAdds(length: Int) -> Int {
    let d = configuration.width / configuration.heads
    let maps = query.multiplyAdds() + key.multiplyAdds() + value.multiplyAdds() + output.multiplyAdds()
    return length * (maps + 2 * configuration.width * d)
  }
}

private let stepKernel = Operator("martlet::gated_linear_attention_step")

extension MixerKind {
  static let transNormerKeys: [ConfigurationKey] = [
    headsKey,
    ConfigurationKey(
      "form", .string, default: "t2", "t1 or t2 of the paper: elu or 1 + elu, relu or softmax",
      choices: TransNormerForm.allCases.map(\.rawValue)),
    ConfigurationKey("positions", .string, default: "lrpe", "linearized relative positions, or none", choices: ["lrpe", "none"]),
  ]

  /// Throws `ConfigurationError` where a head's width doesn't fit linearized positions.
  static func transNormer(
    _ options: JSONValue, _ site: MixerSite
  ) throws -> (heads: Int, form: TransNormerForm, positions: Bool) {
    let heads = try heads(options, site)
    let positions = options["positions"]?.stringValue != "none"
    guard !positions || site.width / heads % 2 == 0 else {
      throw ConfigurationError("linearized positions need an even head width, got \(site.width / heads)")
    }
    return (heads, options["form"]?.stringValue.flatMap(TransNormerForm.init) ?? .t2, positions)
  }

  public static let normAttention = MixerKind(
    name: "norm_attention", summary: "linear attention with a norm in place of its denominator (TransNormer, Qin et al. 2022)",
    keys: transNormerKeys
  ) { site, options, generator in
    let (heads, form, positions) = try transNormer(options, site)
    return NormAttention(
      .init(width: site.width, heads: heads, form: form, positions: positions, isCausal: site.isCausal), generator: generator)
  }
}
