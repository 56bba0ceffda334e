/// Aaren, softmax attention as a recurrence (Feng et al. 2024, "Attention as an RNN", arXiv 2405.13956). The query is a parameter of
/// the layer, not a function of the token, so that the outputs of all prefixes share their sums:
///
///     q = W_q q⁰,   k_t = W_k x_t,   v_t = W_v x_t,   s_t = q·k_t / √d                       (per head)
///     m_t = max(m_{t−1}, s_t)
///     a_t = a_{t−1} e^{m_{t−1} − m_t} + v_t e^{s_t − m_t},   c_t = c_{t−1} e^{m_{t−1} − m_t} + e^{s_t − m_t}     (§3.1)
///     o_t = a_t / c_t,   y_t = W_o o_t
///
/// Training takes all prefixes at once by a scan (§3.2) on the kernel `martlet::prefix_attention`; ``OnlineSoftmax`` is its form in plain
/// operators. The state, m and c [B, H] and a [B, H, d], does not grow: streaming costs the same for every token.
///
/// Beside attention with its four maps it has `width` parameters more, q⁰. A bias on keys adds one constant to all scores of a head, which
/// changes no output: such a parameter never learns, and is there with `bias` only because the paper counts it.
///
/// The query can't depend on the token, so a layer alone doesn't look things up by content.
public final class Aaren: Module, RecurrentMixer {
  public struct Configuration: Sendable {
    public var width: Int
    public var heads: Int
    /// Biases in the four maps.
    public var bias: Bool

    public init(width: Int, heads: Int = 4, bias: Bool = false) {
      self.width = width
      self.heads = heads
      self.bias = bias
    }
  }

  public let configuration: Configuration
  /// q⁰, [width].
  @Parameter(key: "query_token") public var queryToken: Tensor
  @Child public var query: any LinearLayer
  @Child public var key: any LinearLayer
  @Child public var value: any LinearLayer
  @Child public var output: any LinearLayer

  public var isCausal: Bool { true }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    require(c.width % c.heads == 0, "width \(c.width) is not a multiple of \(c.heads) heads")
    self.configuration = c
    super.init()
    // The size of a normalised token.
    queryToken = Initializer.normal(1)([c.width], generator)
    func projection() -> any LinearLayer { Linear(c.width, c.width, bias: c.bias, generator: generator) }
    query = projection()
    key = projection()
    value = projection()
    output = projection()
  }

  /// s_t of every token and head: x [..., width] → [..., H].
  private func scores(_ x: Tensor) -> Tensor {
    let (heads, d) = (configuration.heads, configuration.width / configuration.heads)
    let scaled = query(queryToken.expandedDimension(0)).reshaped(heads, 1, d) * (1 / Double(d).squareRoot())
    guard let key = key as? Linear else {
      return (self.key(x).reshaped(x.shape.dropLast() + [heads, d]) * scaled.squeezed(1)).sum(axis: -1)
    }
    // q·(W_k x) = (W_kᵀ q)·x: one number a head in place of d.
    let weight = scaled.matmul(key.weight.reshaped(heads, d, configuration.width)).squeezed(1)  // [H, D]
    let bias = key.bias.map { (scaled.squeezed(1) * $0.reshaped(heads, d)).sum(axis: -1) }
    return linearMap(x, weight, bias)
  }

  // MARK: Parallel form

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    var s = scores(x).swappedAxes(1, 2)  // [B, H, L]
    if let mask = context.mask { s = s.maskedFill(.!mask.expandedDimension(1), -.infinity) }
    return output(mergeHeads(prefixAttention(s, splitHeads(value(x), configuration.heads)).output))
  }

  // MARK: Recurrent form

  public struct State: TensorState, @unchecked Sendable {
    public var sums: OnlineSoftmax
    public var tensors: [Tensor] {
      get { [sums.maximum, sums.normalizer, sums.accumulated] }
      set { sums = OnlineSoftmax(maximum: newValue[0], normalizer: newValue[1], accumulated: newValue[2]) }
    }
  }

  public func initialState(batch: Int) -> State {
    let like = stateKind(value)
    return State(
      sums: .identity(
        [batch, configuration.heads, configuration.width / configuration.heads], dtype: like.dtype, device: like.device))
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor {
    let s = scores(x)  // [B, H]
    let v = value(x).reshaped(x.dim(0), configuration.heads, -1)
    let o: Tensor
    if fusedKernelsServe(x) && !isGradientEnabled {
      o = stepKernel(
        .tensor(s), .tensor(v), .tensor(state.sums.maximum), .tensor(state.sums.normalizer), .tensor(state.sums.accumulated))
    } else {
      state.sums = .combined(state.sums, .leaf(s, v))
      o = state.sums.output
    }
    return output(o.reshaped(x.dim(0), -1))
  }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    let (s, v) = (scores(x).swappedAxes(1, 2), splitHeads(value(x), configuration.heads))
    // The kernel's sums carry no gradient to what follows.
    let (o, sums) = isGradientEnabled ? prefixAttentionReference(s, v, from: state.sums) : prefixAttention(s, v, from: state.sums)
    state.sums = sums
    return output(mergeHeads(o))
  }

  public func stateBytes(_ state: State) -> Int { state.tensors.reduce(0) { $0 + $1.byteCount } }

  public func multiplyAdds(length: Int) -> Int {
    let (d, heads) = (configuration.width, configuration.heads)
    // Both maps of the query and the key's once; then scores, values, outputs and the running mean of every token.
    return query.multiplyAdds() + key.multiplyAdds() + length * (d * heads + value.multiplyAdds() + output.multiplyAdds() + 2 * d)
  }
}

private let stepKernel = Operator("martlet::prefix_attention_step")

extension MixerKind {
  public static let aaren = MixerKind(
    name: "aaren", summary: "softmax attention of a learned query over every prefix, a recurrence (Feng et al. 2024)",
    keys: [headsKey, ConfigurationKey("bias", .boolean, default: false, "biases in the projections")], directions: [.causal]
  ) { site, options, generator in
    Aaren(
      .init(width: site.width, heads: try heads(options, site), bias: options["bias"]?.boolValue ?? false), generator: generator)
  }
}
