/// Simplified linear attention (Guo et al. 2024, SLAB, arXiv 2405.11582, §3.2 and the authors' code), for N tokens on a grid:
///
///     q = relu(x W_q + b_q),   k = relu(x W_k + b_k + p),   v = x W_v + b_v
///     o_i = q_i (Σ_j k_jᵀ v_j) / (q_i · Σ_j k_j + 1e−6) + DWConv(v)_i            per head
///     out = W_o o + b_o
///
/// with a learned position p of every key, zero at the start, and one depthwise 5×5 convolution of a head's d channels that all heads
/// share. The sums are in float32 or better; the cheaper association is taken: (q kᵀ) v where N is below the head's width, else
/// q (kᵀ v), in time linear in N. Padding is left out of the sums, and its values count as 0 on the grid. x: [batch, N, width].
///
/// The grid is ``MixingContext/grid``, else rows of ``Configuration/columns`` tokens. Positions are learned for
/// ``Configuration/length`` tokens; those of later ones are what an untrained position is, 0. Tokens before the grid have positions,
/// but no convolution.
public final class SimplifiedLinearAttention: Module, SequenceMixer {
  public struct Configuration: Sendable {
    public var width: Int
    public var heads: Int
    /// Learned positions of keys.
    public var length: Int
    /// Of the grid, where the context brings none.
    public var columns: Int
    /// Size of the depthwise convolution; 0 for none.
    public var localKernel: Int
    /// A bias on queries, keys and values.
    public var bias: Bool
    public var epsilon: Double

    public init(
      width: Int, heads: Int = 4, length: Int, columns: Int, localKernel: Int = 5, bias: Bool = true, epsilon: Double = 1e-6
    ) {
      self.width = width
      self.heads = heads
      self.length = length
      self.columns = columns
      self.localKernel = localKernel
      self.bias = bias
      self.epsilon = epsilon
    }
  }

  public let configuration: Configuration
  /// Queries, keys and values, in this order.
  @Child(key: "qkv") public var projection: any LinearLayer
  /// p, [1, length, width]
  @Parameter public var positions: Tensor
  /// Of d channels.
  @Child(key: "convolution") public var local: DepthwiseGridConvolution?
  @Child public var output: any LinearLayer

  public var isCausal: Bool { false }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    require(c.heads > 0 && c.width % c.heads == 0, "width \(c.width) is not a multiple of \(c.heads) heads")
    require(c.columns > 0 && c.length > 0, "a grid needs at least one column and token, got \(c.columns) and \(c.length)")
    self.configuration = c
    super.init()
    projection = Linear(c.width, 3 * c.width, bias: c.bias, generator: generator)
    positions = Tensor.zeros([1, c.length, c.width])
    local = c.localKernel > 0 ? DepthwiseGridConvolution(c.width / c.heads, kernel: c.localKernel, generator: generator) : nil
    output = Linear(c.width, c.width, generator: generator)
  }

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    let c = configuration
    let length = x.dim(1)
    let projected = projection(x)
    let type: DType = projected.dtype == .float64 ? .float64 : .float32
    let parts = projected.to(type).split(size: c.width, axis: -1)
    let v = context.mask.map { parts[2] * $0.expandedDimension(-1).to(type) } ?? parts[2]
    let grid = context.grid(length: length, columns: c.columns)
    var y: Tensor
    if length < c.width / c.heads {
      y = Self.quadratic(
        parts[0], parts[1], v, heads: c.heads, positions: positions(length).to(type), epsilon: c.epsilon, mask: context.mask)
    } else {
      y = tokenLinearAttention(
        parts[0], parts[1], v, heads: c.heads, feature: .relu, positions: positions(length).to(type), grid: grid, reweighted: false,
        epsilon: c.epsilon, mask: context.mask)
    }
    if let local { y = y + local(v, grid: grid) }
    return output(y.to(projected.dtype))
  }

  /// p of the first tokens, [length, width].
  private func positions(_ length: Int) -> Tensor {
    let table = positions.squeezed(0)
    if length <= table.dim(0) { return table.narrowed(axis: 0, start: 0, length: length) }
    return table.padded([0, 0, 0, length - table.dim(0)])
  }

  /// The weights of all pairs first, then their product with the values: cheaper for few tokens.
  static func quadratic(
    _ query: Tensor, _ key: Tensor, _ value: Tensor, heads: Int, positions: Tensor, epsilon: Double, mask: Tensor?
  ) -> Tensor {
    let q = splitHeads(query, heads).relu()
    var k = splitHeads(key + positions, heads).relu()
    if let mask { k = k * mask[.all, .newAxis, .all, .newAxis].to(k.dtype) }
    let weights = q.matmul(k.T)  // [B, H, L, L]
    return mergeHeads(weights.matmul(splitHeads(value, heads)) / (weights.sum(axis: -1, keepDims: true) + epsilon))
  }

  public func multiplyAdds(length: Int) -> Int {
    let c = configuration
    let perToken = projection.multiplyAdds() + output.multiplyAdds() + (local?.multiplyAdds(width: c.width) ?? 0)
    return length * (perToken + 2 * c.width * min(length, c.width / c.heads))
  }
}

extension MixerKind {
  public static let slab = MixerKind(
    name: "slab", summary: "simplified linear attention on a grid of tokens (Guo et al. 2024)",
    keys: [headsKey] + gridKeys + [
      ConfigurationKey("local_kernel", .integer, default: 5, "size of the depthwise convolution of the values; 0 for none"),
      ConfigurationKey("bias", .boolean, default: true, "a bias on queries, keys and values"),
    ], directions: [.bidirectional]
  ) { site, options, generator in
    let local = options["local_kernel"]?.intValue ?? 5
    guard local == 0 || local > 0 && local % 2 == 1 else { throw ConfigurationError("local_kernel must be 0 or odd, got \(local)") }
    return SimplifiedLinearAttention(
      .init(
        width: site.width, heads: try heads(options, site), length: max(site.length, 1), columns: try columns(options, site),
        localKernel: local, bias: options["bias"]?.boolValue ?? true), generator: generator)
  }
}
