/// Rank-augmented linear attention (Fan et al. 2024, arXiv 2411.07635, §3 and the authors' code), for N tokens on a grid:
///
///     (Q, K, V, O) = x W + b,   Q, K ← elu(·) + 1
///     α_j = N softmax_j(mean_i Q_i · K_j / √d),   K_j ← α_j K_j                    raises the rank of the key-value buffer
///     Y_i = R_i Q_i (1/N Σ_j (R_j K_j)ᵀ V_j) / (Q_i · mean_j K_j + 1e−6)           R: rotary positions by row and column
///     out = W_o [(Y + LePE(V)) ⊙ O]                                                raises the rank of the output
///
/// The denominator is not rotated, so that it stays positive; LePE is a depthwise 5×5 convolution of the values on the grid. Padding is
/// left out of means, weights and sums, and its values count as 0 on the grid. Time is linear in N. x: [batch, N, width].
///
/// The grid is ``MixingContext/grid``, else rows of ``Configuration/columns`` tokens. Tokens before the grid (class tokens) are not
/// turned and get no LePE. With ``Configuration/isReweighted`` or ``Configuration/isGated`` off it is the ablation without α or O;
/// with ``Configuration/isSoftmax`` the softmax attention of RAVLT's later stages, which has the same positions, LePE and gate.
public final class RankAugmentedLinearAttention: Module, SequenceMixer {
  public struct Configuration: Sendable {
    public var width: Int
    public var heads: Int
    /// Of the grid, where the context brings none.
    public var columns: Int
    /// Size of LePE's kernel; 0 for none.
    public var localKernel: Int
    /// α.
    public var isReweighted: Bool
    /// O.
    public var isGated: Bool
    public var isRotary: Bool
    /// Softmax attention, scale d^−½, in the place of the linear one; no α then.
    public var isSoftmax: Bool
    public var epsilon: Double

    public init(
      width: Int, heads: Int = 4, columns: Int, localKernel: Int = 5, isReweighted: Bool = true, isGated: Bool = true,
      isRotary: Bool = true,
      isSoftmax: Bool = false, epsilon: Double = 1e-6
    ) {
      self.width = width
      self.heads = heads
      self.columns = columns
      self.localKernel = localKernel
      self.isReweighted = isReweighted
      self.isGated = isGated
      self.isRotary = isRotary
      self.isSoftmax = isSoftmax
      self.epsilon = epsilon
    }
  }

  public let configuration: Configuration
  /// Queries, keys, values and the gate, in this order.
  @Child(key: "qkvo") public var projection: any LinearLayer
  @Child(key: "lepe") public var local: LocallyEnhancedPE?
  @Child public var output: any LinearLayer
  public let rotation: RoPE2D?

  public var isCausal: Bool { false }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    require(c.heads > 0 && c.width % c.heads == 0, "width \(c.width) is not a multiple of \(c.heads) heads")
    require(c.columns > 0, "a grid needs at least one column, got \(c.columns)")
    self.configuration = c
    rotation = c.isRotary ? RoPE2D(headWidth: c.width / c.heads) : nil
    super.init()
    projection = Linear(c.width, (c.isGated ? 4 : 3) * c.width, generator: generator)
    local = c.localKernel > 0 ? LocallyEnhancedPE(c.width, kernel: c.localKernel, generator: generator) : nil
    output = Linear(c.width, c.width, generator: generator)
  }

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    let (y, gate) = attend(x, context)
    return output(gate.map { y * $0 } ?? y)
  }

  /// Y + LePE(V) and O, each [batch, length, width].
  func attend(_ x: Tensor, _ context: MixingContext) -> (output: Tensor, gate: Tensor?) {
    let c = configuration
    // Sums over tokens are taken in float32 or better whatever the projections' type.
    let projected = projection(x)
    let type: DType = projected.dtype == .float64 ? .float64 : .float32
    let parts = projected.to(type).split(size: c.width, axis: -1)
    let (q, k, gate) = (parts[0], parts[1], c.isGated ? parts[3] : nil)
    let v = context.mask.map { parts[2] * $0.expandedDimension(-1).to(type) } ?? parts[2]
    let grid = context.grid(length: x.dim(1), columns: c.columns)
    var y =
      c.isSoftmax
      ? softmax(q, k, v, grid: grid, mask: context.mask)
      : tokenLinearAttention(
        q, k, v, heads: c.heads, feature: .elu, rotation: rotation, grid: grid, reweighted: c.isReweighted, epsilon: c.epsilon,
        mask: context.mask)
    if let local { y = y + local(v, grid: grid) }
    return (y.to(projected.dtype), gate?.to(projected.dtype))
  }

  private func softmax(_ q: Tensor, _ k: Tensor, _ v: Tensor, grid: TokenGrid, mask: Tensor?) -> Tensor {
    var (q, k) = (splitHeads(q, configuration.heads), splitHeads(k, configuration.heads))
    if let rotation { (q, k) = (rotation(q, grid: grid), rotation(k, grid: grid)) }
    let weights = mask.map { $0[.all, .newAxis, .newAxis, .all].to(q.dtype).log().clamped(min: -1e30) }
    return mergeHeads(
      scaledDotProductAttention(
        .tensor(q), .tensor(k), .tensor(splitHeads(v, configuration.heads)), .tensor(weights), .double(0), .bool(false), .none, .bool(false)
      ))
  }

  public func multiplyAdds(length: Int) -> Int {
    let c = configuration
    let perToken = projection.multiplyAdds() + output.multiplyAdds() + (local?.multiplyAdds(width: c.width) ?? 0)
    return length * (perToken + 2 * c.width * (c.isSoftmax ? length : c.width / c.heads))
  }
}

private let scaledDotProductAttention = Operator("aten::scaled_dot_product_attention")

extension MixerKind {
  public static let rala = MixerKind(
    name: "rala", summary: "rank-augmented linear attention on a grid of tokens (Fan et al. 2024)",
    keys: [headsKey] + gridKeys + [
      ConfigurationKey("local_kernel", .integer, default: 5, "size of the depthwise convolution of the values; 0 for none"),
      ConfigurationKey("reweighted", .boolean, default: true, "weigh keys by their relevance to the mean query (α)"),
      ConfigurationKey("gated", .boolean, default: true, "multiply the output by a linear map of the input (O)"),
      ConfigurationKey("rotary", .boolean, default: true, "rotary positions by row and column"),
      ConfigurationKey("softmax", .boolean, default: false, "softmax attention instead, as in RAVLT's later stages"),
    ], directions: [.bidirectional], headMultiple: 4
  ) { site, options, generator in
    let heads = try heads(options, site)
    let local = options["local_kernel"]?.intValue ?? 5
    guard local == 0 || local > 0 && local % 2 == 1 else { throw ConfigurationError("local_kernel must be 0 or odd, got \(local)") }
    let isRotary = options["rotary"]?.boolValue ?? true
    guard !isRotary || site.width / heads % 4 == 0 else {
      throw ConfigurationError("rotary positions on a grid need heads of a multiple of 4 channels, got \(site.width / heads)")
    }
    return RankAugmentedLinearAttention(
      .init(
        width: site.width, heads: heads, columns: try columns(options, site), localKernel: local,
        isReweighted: options["reweighted"]?.boolValue ?? true, isGated: options["gated"]?.boolValue ?? true, isRotary: isRotary,
        isSoftmax: options["softmax"]?.boolValue ?? false),
      generator: generator)
  }
}
