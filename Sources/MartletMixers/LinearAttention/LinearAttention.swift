/// Linear attention (Katharopoulos et al. 2020, eqs. 4–9) with φ(x) = elu(x) + 1, the baseline of the Long Range Arena:
///
///     y_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / (φ(q_i)·Σ_j φ(k_j) + ε)
///
/// over j ≤ i when causal, else over all positions. Time is linear in the length; the recurrent state is the sums
/// S [d, dv] and z [d] of each head. On CPU in float32 it runs on the chunked kernel
/// `martlet::normalized_linear_attention`, elsewhere on ``linearAttentionReference(_:_:_:causal:keyMask:epsilon:)``.
public final class LinearAttention: Module, RecurrentMixer {
  public struct Configuration: Sendable {
    public var width: Int
    public var heads: Int
    public var isCausal: Bool
    public var epsilon: Double
    public var bias: Bool

    public init(width: Int, heads: Int = 4, isCausal: Bool = true, epsilon: Double = 1e-6, bias: Bool = false) {
      self.width = width
      self.heads = heads
      self.isCausal = isCausal
      self.epsilon = epsilon
      self.bias = bias
    }
  }

  public let configuration: Configuration
  @Child public var query: any LinearLayer
  @Child public var key: any LinearLayer
  @Child public var value: any LinearLayer
  @Child public var output: any LinearLayer

  public var isCausal: Bool { configuration.isCausal }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    require(c.width % c.heads == 0, "width \(c.width) is not a multiple of \(c.heads) heads")
    self.configuration = c
    super.init()
    query = Linear(c.width, c.width, bias: c.bias, generator: generator)
    key = Linear(c.width, c.width, bias: c.bias, generator: generator)
    value = Linear(c.width, c.width, bias: c.bias, generator: generator)
    output = Linear(c.width, c.width, bias: c.bias, generator: generator)
  }

  // MARK: Parallel form

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    let (q, k, v) = project(x)
    return output(
      mergeHeads(linearAttention(q, k, v, causal: isCausal, keyMask: context.mask, epsilon: configuration.epsilon)))
  }

  /// φ(q), φ(k) and v, each [B, H, L, d].
  private func project(_ x: Tensor) -> (q: Tensor, k: Tensor, v: Tensor) {
    let heads = configuration.heads
    return (splitHeads(query(x).elu() + 1, heads), splitHeads(key(x).elu() + 1, heads), splitHeads(value(x), heads))
  }

  // MARK: Recurrent form

  public struct State: TensorState, @unchecked Sendable {
    /// Σ φ(k)ᵀ [v, 1], [B, H, d, d + 1] float32 or better: the last column is the normaliser Σ φ(k).
    public var memory: Tensor
    public var tensors: [Tensor] {
      get { [memory] }
      set { memory = newValue[0] }
    }
  }

  public func initialState(batch: Int) -> State {
    require(isCausal, "bidirectional attention can't run token by token")
    let (h, d) = (configuration.heads, configuration.width / configuration.heads)
    let like = stateKind(query)
    return State(memory: .zeros([batch, h, d, d + 1], dtype: like.dtype, device: like.device))
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor {
    guard fusedKernelsServe(x) && !isGradientEnabled else {
      return advance(x.expandedDimension(1), &state).selected(axis: 1, 0)
    }
    let (batch, heads, width) = (x.dim(0), configuration.heads, configuration.width)
    // Each operator costs as much to call as its work here: the projections are made in one pass, the denominator in the kernel.
    let projected = joinedLinear(x, [query, key, value])
    func split(_ x: Tensor) -> Tensor { x.reshaped(batch, heads, -1) }
    let v = split(projected[2])
    let o = gatedLinearAttentionStep(
      .tensor(split(projected[0].elu() + 1)), .tensor(split(projected[1].elu() + 1)), .tensor(withOnes(v)), .none, .tensor(state.memory),
      .double(1))
    return output(normalized(o).reshaped(batch, width))
  }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    let (q, k, v) = project(x)
    let (o, end) = gatedLinearAttention(q, k, withOnes(v), logGate: nil, initialState: state.memory, scale: 1)
    state.memory = end
    return output(mergeHeads(normalized(o)))
  }

  /// The denominator is one more value, 1 at every position.
  private func withOnes(_ v: Tensor) -> Tensor {
    concatenated([v, .ones(v.shape.dropLast() + [1], dtype: v.dtype, device: v.device)], axis: -1)
  }

  /// Divides by the last column.
  private func normalized(_ o: Tensor) -> Tensor {
    let d = o.dim(-1) - 1
    return o[.ellipsis, ..<d] / (o[.ellipsis, d...] + configuration.epsilon)
  }

  public func stateBytes(_ state: State) -> Int { state.memory.byteCount }

  public func multiplyAdds(length: Int) -> Int {
    let d = configuration.width / configuration.heads
    return length * (query.multiplyAdds() + key.multiplyAdds() + value.multiplyAdds() + output.multiplyAdds() + 2 * configuration.width * d)
  }
}

private let kernel = Operator("martlet::normalized_linear_attention")

/// Normalised linear attention over non-negative features [B, H, L, d] and values [B, H, L, dv] → [B, H, L, dv].
/// keyMask: [B, L] bool, true where a key counts.
public func linearAttention(
  _ queryFeatures: Tensor, _ keyFeatures: Tensor, _ value: Tensor, causal: Bool, keyMask: Tensor? = nil, epsilon: Double = 1e-6
) -> Tensor {
  guard fusedKernelsServe(queryFeatures) else {
    return linearAttentionReference(queryFeatures, keyFeatures, value, causal: causal, keyMask: keyMask, epsilon: epsilon)
  }
  return kernel(
    .tensor(queryFeatures), .tensor(keyFeatures), .tensor(value), .bool(causal), .double(epsilon), .tensor(keyMask))
}

/// The same by the equation, with the whole matrix of weights when causal: the oracle.
public func linearAttentionReference(
  _ queryFeatures: Tensor, _ keyFeatures: Tensor, _ value: Tensor, causal: Bool, keyMask: Tensor? = nil, epsilon: Double = 1e-6
) -> Tensor {
  var k = keyFeatures
  if let keyMask { k = k * keyMask[.all, .newAxis, .all, .newAxis].to(k.dtype) }
  if causal {
    let weights = queryFeatures.matmul(k.T).lowerTriangle()
    return weights.matmul(value) / (weights.sum(axis: -1, keepDims: true) + epsilon)
  }
  let memory = k.T.matmul(value)  // [B, H, d, dv]
  let normalizer = queryFeatures.matmul(k.sum(axis: 2).expandedDimension(-1))  // [B, H, L, 1]
  return queryFeatures.matmul(memory) / (normalizer + epsilon)
}
