/// What makes a RAVLT: four stages of blocks on ever coarser grids.
public struct RAVLTConfiguration: Sendable, Equatable, Codable {
  /// One resolution.
  public struct Stage: Sendable, Equatable, Codable {
    public var width: Int
    public var depth: Int
    public var heads: Int
    /// Rank-augmented linear attention, or softmax attention with the same positions, LePE and gate.
    public var isLinear: Bool
    /// First value of the layer scales γ; `nil` for none.
    public var layerScale: Double?

    public init(width: Int, depth: Int, heads: Int, isLinear: Bool, layerScale: Double?) {
      self.width = width
      self.depth = depth
      self.heads = heads
      self.isLinear = isLinear
      self.layerScale = layerScale
    }
  }

  public var stages: [Stage]
  public var classes: Int
  public var channels: Int
  /// Inner width of feed-forwards over the stage's.
  public var feedForwardRatio: Double
  /// Width of the 1×1 convolution before the pooling.
  public var projection: Int
  /// Of the last block; it grows linearly from 0 at the first.
  public var dropPath: Double

  public init(
    stages: [Stage], classes: Int = 1000, channels: Int = 3, feedForwardRatio: Double = 3.5, projection: Int = 1024, dropPath: Double = 0.1
  ) {
    self.stages = stages
    self.classes = classes
    self.channels = channels
    self.feedForwardRatio = feedForwardRatio
    self.projection = projection
    self.dropPath = dropPath
  }

  private static func sized(_ widths: [Int], _ depths: [Int], _ heads: [Int], _ scales: [Double], dropPath: Double, classes: Int) -> Self {
    Self(
      stages: (0..<4).map { Stage(width: widths[$0], depth: depths[$0], heads: heads[$0], isLinear: $0 < 2, layerScale: scales[$0]) },
      classes: classes, dropPath: dropPath)
  }

  /// 15M parameters.
  public static func tiny(classes: Int = 1000) -> Self {
    sized([64, 128, 256, 512], [2, 2, 6, 2], [1, 2, 4, 8], [1, 1, 1, 1], dropPath: 0.1, classes: classes)
  }
  /// 26M parameters.
  public static func small(classes: Int = 1000) -> Self {
    sized([64, 128, 320, 512], [3, 5, 9, 3], [1, 2, 5, 8], [1, 1, 1, 1], dropPath: 0.15, classes: classes)
  }
  /// 48M parameters.
  public static func base(classes: Int = 1000) -> Self {
    sized([96, 192, 384, 512], [4, 6, 12, 6], [1, 2, 6, 8], [1, 1, 1e-6, 1e-6], dropPath: 0.4, classes: classes)
  }
  /// 95M parameters.
  public static func large(classes: Int = 1000) -> Self {
    sized([96, 192, 448, 640], [4, 7, 19, 8], [1, 2, 7, 10], [1e-6, 1e-6, 1e-6, 1e-6], dropPath: 0.55, classes: classes)
  }

  /// Throws `ConfigurationError` for numbers that make no model.
  public func validate() throws {
    func check(_ condition: Bool, _ message: String) throws { if !condition { throw ConfigurationError(message) } }
    try check(!stages.isEmpty, "a RAVLT needs at least one stage")
    for stage in stages {
      try check(
        stage.width > 0 && stage.width % 2 == 0 && stage.width <= 1 << 16 && stage.depth > 0 && stage.heads > 0
          && stage.width % (4 * stage.heads) == 0,
        "a stage needs heads of a multiple of 4 channels and at least one block, got width \(stage.width), heads \(stage.heads), "
          + "depth \(stage.depth)")
    }
    try check(
      (1...(1 << 24)).contains(classes) && (1...1024).contains(channels), "\(classes) classes of \(channels) channels make no model")
    try check(feedForwardRatio > 0 && projection > 0, "inner widths must be positive")
    try check(dropPath >= 0 && dropPath < 1, "drop path must be in 0..<1, got \(dropPath)")
  }
}

/// The vision backbone of rank-augmented linear attention (Fan et al. 2024, arXiv 2411.07635, §4 and the authors' code):
///
///     stem:   four 3×3 convolutions, strides 2, 1, 1, 2, each with batch norm, GELU between them
///     block:  x += DWConv3×3(x);   x += γ₁ ⊙ Attention(LN x);   x += γ₂ ⊙ FFN(LN x)
///     FFN:    W₂ (h + DWConv3×3(h)),   h = GELU(W₁ x)
///     between stages: a 3×3 convolution of stride 2 and batch norm
///     head:   1×1 convolution, batch norm, swish, average over positions, linear
///
/// with rank-augmented linear attention in the first two stages and softmax attention (same rotary positions, LePE and gate) in the
/// last two. Between the convolutions of the stem and of the steps everything works on tokens, [batch, rows · columns, width].
/// pixels [batch, channels, height, width], any size from 32×32 on → logits [batch, classes].
public final class RAVLT: Module {
  public let configuration: RAVLTConfiguration
  @Child public var stem: RAVLTStem
  @Child public var stages: [RAVLTStage]
  @Child public var projection: any LinearLayer
  @Child public var norm: BatchNorm
  @Child public var head: any LinearLayer

  /// Weights are normal with deviation 0.02, cut off at two of them; biases zero. Throws `ConfigurationError`.
  public init(_ configuration: RAVLTConfiguration, generator: RandomGenerator) throws {
    try configuration.validate()
    let c = configuration
    self.configuration = c
    super.init()
    let depth = c.stages.reduce(0) { $0 + $1.depth }
    var first = 0
    stem = RAVLTStem(channels: c.channels, width: c.stages[0].width, generator: generator)
    stages = c.stages.enumerated().map { i, stage in
      defer { first += stage.depth }
      return RAVLTStage(
        stage, hidden: Int(c.feedForwardRatio * Double(stage.width)),
        dropPath: (first..<(first + stage.depth)).map { depth > 1 ? c.dropPath * Double($0) / Double(depth - 1) : c.dropPath },
        next: i + 1 < c.stages.count ? c.stages[i + 1].width : nil, generator: generator)
    }
    projection = ravltLinear(c.stages.last!.width, c.projection, generator)
    norm = BatchNorm(c.projection)
    head = ravltLinear(c.projection, c.classes, generator)
  }

  /// The tokens of the last stage and their grid.
  public func features(_ pixels: Tensor) -> (tokens: Tensor, grid: TokenGrid) {
    require(
      pixels.rank == 4 && pixels.dim(1) == configuration.channels,
      "images must be [batch, \(configuration.channels), height, width], got \(pixels.shape)")
    var (x, grid) = stem(pixels)
    for stage in stages { (x, grid) = stage(x, grid) }
    return (x, grid)
  }

  public func callAsFunction(_ pixels: Tensor) -> Tensor {
    head(norm(projection(features(pixels).tokens)).silu().mean(axis: 1))
  }

  /// Multiplications with addition for one image; norms and activations aren't counted.
  public func multiplyAdds(height: Int, width: Int) -> Int {
    var (rows, columns) = ((height + 1) / 2, (width + 1) / 2)
    let (half, channels) = (configuration.stages[0].width / 2, configuration.channels)
    var total = 9 * rows * columns * half * (channels + 2 * half)
    (rows, columns) = ((rows + 1) / 2, (columns + 1) / 2)
    total += 9 * rows * columns * half * configuration.stages[0].width
    for (i, stage) in stages.enumerated() {
      total += stage.blocks.reduce(0) { $0 + $1.multiplyAdds(length: rows * columns) }
      guard i + 1 < stages.count else { break }
      (rows, columns) = ((rows + 1) / 2, (columns + 1) / 2)
      total += 9 * rows * columns * configuration.stages[i].width * configuration.stages[i + 1].width
    }
    return total + rows * columns * projection.multiplyAdds() + head.multiplyAdds()
  }
}

private func ravltLinear(_ from: Int, _ to: Int, _ generator: RandomGenerator) -> Linear {
  Linear(from, to, initializer: .truncatedNormal(0.02), generator: generator)
}

private func ravltConvolution(_ from: Int, _ to: Int, stride: Int, _ generator: RandomGenerator) -> Conv2d {
  let layer = Conv2d(from, to, kernel: 3, stride: stride, padding: 1, generator: generator)
  layer.weight = Initializer.truncatedNormal(0.02)([to, from, 3, 3], generator)
  layer.bias = Tensor.zeros([to])
  return layer
}

private func ravltDepthwise(_ width: Int, _ generator: RandomGenerator) -> DepthwiseGridConvolution {
  let layer = DepthwiseGridConvolution(width, kernel: 3, generator: generator)
  layer.weight = Initializer.truncatedNormal(0.02)([width, 1, 3, 3], generator)
  layer.bias = Tensor.zeros([width])
  return layer
}

/// A convolution over images whose channels stand last in memory, as tokens have them. x: [B, C, H, W] → tokens and their grid.
private func tokens(_ image: Tensor) -> (Tensor, TokenGrid) {
  let grid = TokenGrid(rows: image.dim(2), columns: image.dim(3))
  return (image.transposed(0, 2, 3, 1).reshaped(image.dim(0), grid.rows * grid.columns, image.dim(1)), grid)
}

/// [B, rows · columns, D] → [B, D, rows, columns], a view.
private func image(_ tokens: Tensor, _ grid: TokenGrid) -> Tensor {
  tokens.reshaped(tokens.dim(0), grid.rows, grid.columns, tokens.dim(2)).transposed(0, 3, 1, 2)
}

/// Pixels to tokens at a quarter of the resolution.
public final class RAVLTStem: Module {
  @Child public var convolutions: [Conv2d]
  @Child public var norms: [BatchNorm]

  init(channels: Int, width: Int, generator: RandomGenerator) {
    super.init()
    let half = width / 2
    convolutions = [
      ravltConvolution(channels, half, stride: 2, generator), ravltConvolution(half, half, stride: 1, generator),
      ravltConvolution(half, half, stride: 1, generator), ravltConvolution(half, width, stride: 2, generator),
    ]
    norms = [half, half, half, width].map { BatchNorm($0) }
  }

  func callAsFunction(_ pixels: Tensor) -> (Tensor, TokenGrid) {
    var picture = pixels
    var result = (pixels, TokenGrid(rows: 0, columns: 0))
    for (i, (convolution, norm)) in zip(convolutions, norms).enumerated() {
      var (x, grid) = tokens(convolution(picture))
      x = norm(x)
      result = (x, grid)
      if i + 1 < convolutions.count { picture = image(x.gelu(), grid) }
    }
    return result
  }
}

/// Blocks at one resolution, then the step to the next one.
public final class RAVLTStage: Module {
  @Child public var blocks: [RAVLTBlock]
  @Child public var reduction: Conv2d?
  @Child public var norm: BatchNorm?

  init(_ stage: RAVLTConfiguration.Stage, hidden: Int, dropPath: [Double], next: Int?, generator: RandomGenerator) {
    super.init()
    blocks = dropPath.map { RAVLTBlock(stage, hidden: hidden, dropPath: $0, generator: generator) }
    reduction = next.map { ravltConvolution(stage.width, $0, stride: 2, generator) }
    norm = next.map { BatchNorm($0) }
  }

  func callAsFunction(_ x: Tensor, _ grid: TokenGrid) -> (Tensor, TokenGrid) {
    var x = x
    for block in blocks { x = block(x, grid) }
    guard let reduction, let norm else { return (x, grid) }
    let (y, coarse) = tokens(reduction(image(x, grid)))
    return (norm(y), coarse)
  }
}

/// Positions by a depthwise convolution, attention and feed-forward, each added to the stream.
public final class RAVLTBlock: Module {
  @Child(key: "positions") public var positions: DepthwiseGridConvolution
  @Child(key: "attention_norm") public var attentionNorm: LayerNorm
  @Child public var attention: RankAugmentedLinearAttention
  @Child(key: "feed_forward_norm") public var feedForwardNorm: LayerNorm
  @Child(key: "up") public var up: any LinearLayer
  @Child(key: "local") public var local: DepthwiseGridConvolution
  @Child(key: "down") public var down: any LinearLayer
  /// γ₁ and γ₂, [width]
  @Parameter(key: "attention_scale") public var attentionScale: Tensor?
  @Parameter(key: "feed_forward_scale") public var feedForwardScale: Tensor?
  private let dropPath: DropPath

  init(_ stage: RAVLTConfiguration.Stage, hidden: Int, dropPath: Double, generator: RandomGenerator) {
    self.dropPath = DropPath(dropPath, generator: generator)
    super.init()
    let width = stage.width
    positions = ravltDepthwise(width, generator)
    attentionNorm = LayerNorm(width, epsilon: 1e-6)
    attention = RankAugmentedLinearAttention(
      .init(width: width, heads: stage.heads, columns: 1, isReweighted: stage.isLinear, isSoftmax: !stage.isLinear), generator: generator)
    attention.projection = ravltLinear(width, 4 * width, generator)
    attention.output = ravltLinear(width, width, generator)
    attention.local!.weight = Initializer.truncatedNormal(0.02)([width, 1, 5, 5], generator)
    attention.local!.bias = Tensor.zeros([width])
    feedForwardNorm = LayerNorm(width, epsilon: 1e-6)
    up = ravltLinear(width, hidden, generator)
    local = ravltDepthwise(hidden, generator)
    down = ravltLinear(hidden, width, generator)
    attentionScale = stage.layerScale.map { Tensor.full([width], $0) }
    feedForwardScale = stage.layerScale.map { Tensor.full([width], $0) }
  }

  func callAsFunction(_ x: Tensor, _ grid: TokenGrid) -> Tensor {
    func scaled(_ y: Tensor, _ scale: Tensor?) -> Tensor { dropPath(scale.map { y * $0 } ?? y) }
    var x = x + positions(x, grid: grid)
    x = x + scaled(attention(attentionNorm(x), MixingContext(grid: grid)), attentionScale)
    let hidden = up(feedForwardNorm(x)).gelu()
    return x + scaled(down(hidden + local(hidden, grid: grid)), feedForwardScale)
  }

  func multiplyAdds(length: Int) -> Int {
    let (width, hidden) = (attention.configuration.width, up.outFeatures)
    let perToken =
      positions.multiplyAdds(width: width) + up.multiplyAdds() + local.multiplyAdds(width: hidden) + down.multiplyAdds()
    return attention.multiplyAdds(length: length) + length * perToken
  }
}
