/// Tokens of images: some prefix tokens (class, distillation), then the patches row by row.
public struct ImageTokens: @unchecked Sendable {
  /// [batch, prefix + rows · columns, width]
  public var tokens: Tensor
  public var prefix: Int
  public var rows: Int
  public var columns: Int

  /// Where the tokens stand, as mixers are told.
  public var grid: TokenGrid { TokenGrid(rows: rows, columns: columns, prefix: prefix) }

  /// The patches alone, [batch, rows · columns, width].
  public var patches: Tensor { tokens.narrowed(axis: 1, start: prefix, length: rows * columns) }
}

/// What makes a vision transformer.
public struct VisionTransformerConfiguration: Sendable, Equatable, Codable {
  /// How an image becomes scores or one vector.
  public enum Head: Sendable, Equatable, Codable {
    /// Hidden states only.
    case none
    /// φ(W x + b) of the class token, to so many channels.
    case pooler(width: Int, activation: Activation)
    /// A linear map of the class token.
    case classes(Int)
    /// The mean of a linear map of the class token and one of the distillation token (DeiT).
    case distilled(classes: Int)
    /// A linear map of the mean of all patches; the model then has no class token.
    case averaged(classes: Int)
  }

  /// Bidirectional, over vectors of its own width.
  public var backbone: BackboneConfiguration
  public var imageHeight: Int
  public var imageWidth: Int
  public var patch: Int
  public var channels: Int
  /// A second prefix token (Touvron et al. 2020).
  public var distillationToken: Bool
  public var head: Head

  public init(
    backbone: BackboneConfiguration, imageHeight: Int, imageWidth: Int, patch: Int, channels: Int = 3, distillationToken: Bool = false,
    head: Head
  ) {
    self.backbone = backbone
    self.imageHeight = imageHeight
    self.imageWidth = imageWidth
    self.patch = patch
    self.channels = channels
    self.distillationToken = distillationToken
    self.head = head
  }

  public var classToken: Bool { if case .averaged = head { false } else { true } }
  public var prefix: Int { (classToken ? 1 : 0) + (distillationToken ? 1 : 0) }
  public var rows: Int { imageHeight / patch }
  public var columns: Int { imageWidth / patch }

  /// Throws `ConfigurationError` for numbers that make no model.
  public func validate() throws {
    func check(_ condition: Bool, _ message: String) throws { if !condition { throw ConfigurationError(message) } }
    try backbone.validate()
    try check(
      !backbone.isCausal && backbone.input == .continuous(channels: backbone.width) && !backbone.projectsInput,
      "a vision transformer's backbone is bidirectional and reads vectors of its own width")
    try check((1...(1 << 12)).contains(patch), "patches must be 1...4096 pixels wide, got \(patch)")
    try check((1...1024).contains(channels), "images must have 1...1024 channels, got \(channels)")
    try check(
      (patch...(1 << 16)).contains(imageHeight) && (patch...(1 << 16)).contains(imageWidth),
      "images must be at least a patch (\(patch)) and at most 65536 pixels wide and high, got \(imageHeight)×\(imageWidth)")
    try check(rows * columns <= 1 << 22, "\(imageHeight)×\(imageWidth) pixels in patches of \(patch) make too many tokens")
    switch head {
    case .none: break
    case .pooler(let width, _): try check((1...(1 << 20)).contains(width), "the pooler's width must be in 1...2^20, got \(width)")
    case .classes(let count), .distilled(let count), .averaged(let count):
      try check((1...(1 << 24)).contains(count), "the number of classes must be in 1...2^24, got \(count)")
      if case .averaged = head { try check(!distillationToken, "the mean of the patches needs no distillation token") }
      if case .distilled = head { try check(distillationToken, "a distilled head needs the distillation token") }
    }
  }
}

/// An encoder over the patches of an image (Dosovitskiy et al. 2020), with a distillation token where asked for (Touvron et al. 2020).
/// pixels [batch, channels, height, width] → logits [batch, classes].
public final class VisionTransformer: Module {
  public let configuration: VisionTransformerConfiguration
  @Child(key: "patch_embedding") public var patchEmbedding: PatchEmbedding
  /// [1, 1, width]
  @Parameter(key: "class_token") public var classToken: Tensor?
  @Parameter(key: "distillation_token") public var distillationToken: Tensor?
  /// [1, prefix + rows · columns, width]
  @Parameter public var positions: Tensor
  @Child public var backbone: SequenceBackbone
  @Child public var pooler: (any LinearLayer)?
  @Child(key: "classifier") public var classifier: (any LinearLayer)?
  @Child(key: "distillation_classifier") public var distillationClassifier: (any LinearLayer)?
  private let dropout: Dropout

  /// Throws `ConfigurationError` for a configuration that makes no model.
  public init(_ configuration: VisionTransformerConfiguration, generator: RandomGenerator) throws {
    try configuration.validate()
    let c = configuration
    let width = c.backbone.width
    self.configuration = c
    dropout = Dropout(c.backbone.dropout, generator: generator)
    super.init()
    patchEmbedding = PatchEmbedding(channels: c.channels, patch: c.patch, width: width, generator: generator)
    classToken = c.classToken ? Initializer.normal(0.02)([1, 1, width], generator) : nil
    distillationToken = c.distillationToken ? Initializer.normal(0.02)([1, 1, width], generator) : nil
    positions = Initializer.normal(0.02)([1, c.prefix + c.rows * c.columns, width], generator)
    backbone = try SequenceBackbone(c.backbone, generator: generator)
    (pooler, classifier, distillationClassifier) = (nil, nil, nil)
    switch c.head {
    case .none: break
    case .pooler(let pooled, _): pooler = Linear(width, pooled, generator: generator)
    case .classes(let count), .averaged(let count): classifier = Linear(width, count, generator: generator)
    case .distilled(let count):
      classifier = Linear(width, count, generator: generator)
      distillationClassifier = Linear(width, count, generator: generator)
    }
  }

  // MARK: Outputs

  /// The hidden states after the last block and the final norm.
  ///
  /// - Parameters:
  ///   - pixels: [batch, channels, height, width], normalised as the model was trained.
  ///   - interpolating: accept images of another size, with positions interpolated to its grid.
  public func hiddenStates(_ pixels: Tensor, interpolating: Bool = false) -> ImageTokens {
    let c = configuration
    require(
      pixels.rank == 4 && pixels.dim(1) == c.channels, "images must be [batch, \(c.channels), height, width], got \(pixels.shape)")
    guard pixels.rank == 4 else { return ImageTokens(tokens: pixels, prefix: 0, rows: 0, columns: 0) }
    let (height, width) = (pixels.dim(2), pixels.dim(3))
    require(
      interpolating || height == c.imageHeight && width == c.imageWidth,
      "the model reads images of \(c.imageHeight)×\(c.imageWidth) pixels, got \(height)×\(width); resize them, or interpolate its positions"
    )
    require(
      height >= c.patch && width >= c.patch, "an image of \(height)×\(width) pixels is smaller than a patch of \(c.patch)×\(c.patch)")
    let (rows, columns) = (height / c.patch, width / c.patch)
    let patches = patchEmbedding(pixels)  // [B, rows·columns, D]
    let prefix = [classToken, distillationToken].compactMap { $0 }
      .map { $0.to(patches.dtype).broadcast(to: [patches.dim(0), 1, patches.dim(2)]) }
    let x = concatenated(prefix + [patches], axis: 1) + positions(rows: rows, columns: columns)
    let grid = TokenGrid(rows: rows, columns: columns, prefix: c.prefix)
    return ImageTokens(tokens: backbone(dropout(x), grid: grid), prefix: c.prefix, rows: rows, columns: columns)
  }

  /// One vector an image, [batch, pooled width]: the pooler's output, or the class token without one, or the mean of the patches.
  public func pooled(_ hidden: ImageTokens) -> Tensor {
    if case .averaged = configuration.head { return hidden.patches.mean(axis: 1) }
    let first = hidden.tokens.selected(axis: 1, 0)
    guard case .pooler(_, let activation) = configuration.head, let pooler else { return first }
    return activation(pooler(first))
  }

  /// The scores of the class token's classifier and of the distillation token's, each [batch, classes].
  public func classScores(_ hidden: ImageTokens) -> (classToken: Tensor?, distillationToken: Tensor?) {
    if case .averaged = configuration.head { return (classifier?(pooled(hidden)), nil) }
    return (classifier?(hidden.tokens.selected(axis: 1, 0)), distillationClassifier?(hidden.tokens.selected(axis: 1, 1)))
  }

  /// Logits [batch, classes]: the classifier's, or the mean of both; of a model without classes, ``pooled(_:)``.
  public func callAsFunction(_ pixels: Tensor, interpolating: Bool = false) -> Tensor {
    let hidden = hiddenStates(pixels, interpolating: interpolating)
    let (own, distilled) = classScores(hidden)
    guard let own else { return pooled(hidden) }
    return distilled.map { (own + $0) / 2 } ?? own
  }

  // MARK: Positions

  /// The positions of a grid, [1, prefix + rows · columns, width]: the learned ones, or interpolated (bicubic) to another size.
  public func positions(rows: Int, columns: Int) -> Tensor {
    let c = configuration
    if rows == c.rows && columns == c.columns { return positions }
    let width = positions.dim(2)
    let prefix = positions.narrowed(axis: 1, start: 0, length: c.prefix)
    let grid = positions.narrowed(axis: 1, start: c.prefix, length: c.rows * c.columns)
      .reshaped(1, c.rows, c.columns, width).transposed(0, 3, 1, 2)  // [1, D, rows, columns]
    let scaled = bicubic(.tensor(grid), .ints([rows, columns]), .bool(false), .none, .none)
    return concatenated([prefix, scaled.transposed(0, 2, 3, 1).reshaped(1, rows * columns, width)], axis: 1)
  }
}

private let bicubic = Operator("aten::upsample_bicubic2d")

/// A linear map of square patches: [batch, channels, height, width] → [batch, rows · columns, width]; a rest at the right or lower
/// edge that fills no patch is left out.
public final class PatchEmbedding: Module {
  /// [width, channels, patch, patch], the layout of a convolution whose stride is its kernel.
  @Parameter public var weight: Tensor
  @Parameter public var bias: Tensor

  public var patch: Int { weight.dim(2) }

  public init(channels: Int, patch: Int, width: Int, generator: RandomGenerator) {
    super.init()
    let bound = 1 / Double(channels * patch * patch).squareRoot()
    weight = Initializer.uniform(bound)([width, channels, patch, patch], generator)
    bias = Initializer.uniform(bound)([width], generator)
  }

  public func callAsFunction(_ pixels: Tensor) -> Tensor {
    let (p, batch, channels) = (patch, pixels.dim(0), pixels.dim(1))
    let (rows, columns) = (pixels.dim(2) / p, pixels.dim(3) / p)
    let patches = pixels.to(weight.dtype)[.all, .all, ..<(rows * p), ..<(columns * p)]
      .reshaped(batch, channels, rows, p, columns, p)
      .transposed(0, 2, 4, 1, 3, 5).reshaped(batch, rows * columns, channels * p * p)
    return linearMap(patches, weight.reshaped(weight.dim(0), -1), bias)
  }
}
