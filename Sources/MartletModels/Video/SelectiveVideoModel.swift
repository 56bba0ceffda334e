/// A trunk of selective state-space stages over the tokens of a video (Wang et al. 2023, arXiv 2303.14526, in the shape of ViS4mer,
/// Islam & Bertasius 2022): what a frozen image model gave for every frame, [batch, frames · places, channels] in temporal order, becomes
/// ever fewer and narrower tokens. A stage of width D:
///
///     x' = x[kept] + S4(LN(x)[kept])           kept = half of the tokens, by ``TokenSelector``
///     y = GELU(W pool(x')),  W: D → D/2         pool = means of neighbouring pairs
public final class SelectiveVideoTrunk: Module, ClipEncoder {
  public struct Configuration: Sendable, Codable, Equatable {
    /// Of the given tokens.
    public var channels: Int
    /// Of the first stage; each stage halves it.
    public var width: Int
    public var stages: Int
    /// Share of tokens that each stage drops.
    public var ratio: Double
    /// State size of each channel.
    public var state: Int
    /// λ of the guides.
    public var momentum: Double
    public var dropout: Double
    /// Tokens of the longest video.
    public var length: Int
    /// Whether stages scan their tokens backwards as well.
    public var bidirectional: Bool
    /// Diagonal, or diagonal plus rank one as in the paper.
    public var structure: S4.Structure

    public init(
      channels: Int, width: Int = 1024, stages: Int = 3, ratio: Double = 0.5, state: Int = 64, momentum: Double = 0.99,
      dropout: Double = 0, length: Int, bidirectional: Bool = false, structure: S4.Structure = .diagonal
    ) {
      self.channels = channels
      self.width = width
      self.stages = stages
      self.ratio = ratio
      self.state = state
      self.momentum = momentum
      self.dropout = dropout
      self.length = length
      self.bidirectional = bidirectional
      self.structure = structure
    }

    /// Throws `ConfigurationError` for numbers that make no model.
    public func validate() throws {
      guard channels > 0, stages > 0, width > 0, width % (1 << min(stages, 30)) == 0 else {
        throw ConfigurationError("\(stages) stages need a positive width that they can halve, got \(width)")
      }
      guard (0..<1).contains(ratio), (0...1).contains(momentum), (0..<1).contains(dropout) else {
        throw ConfigurationError("ratio and dropout must be in 0..<1 and momentum in 0...1")
      }
      guard state > 0, state % 2 == 0, length > 0 else { throw ConfigurationError("state must be even and positive, length positive") }
    }
  }

  public let configuration: Configuration
  /// To the first stage's width; none where the tokens have it.
  @Child public var input: (any LinearLayer)?
  @Child public var stages: [SelectiveStage]

  /// Throws `ConfigurationError` for a configuration that makes no model.
  public init(_ configuration: Configuration, generator: RandomGenerator) throws {
    try configuration.validate()
    let c = configuration
    self.configuration = c
    super.init()
    input = c.channels == c.width ? nil : Linear(c.channels, c.width, generator: generator)
    var length = c.length
    stages = (0..<c.stages).map { i in
      let s4 = S4.Configuration(
        width: c.width >> i, state: c.state, structure: c.structure, length: max(1, length), isCausal: !c.bidirectional, dropout: c.dropout)
      let stage = SelectiveStage(.init(s4: s4, ratio: c.ratio, momentum: c.momentum), generator: generator)
      length = max(1, stage.mixer.selector.kept(of: length) / 2)
      return stage
    }
  }

  /// Channels of a token after the last stage.
  public var outputWidth: Int { configuration.width >> configuration.stages }

  /// The tokens that are left, [batch, count, outputWidth], and which of them are real (`nil`: all).
  public func callAsFunction(_ tokens: Tensor, mask: Tensor? = nil, choice: SelectiveS4.Choice = .learned) -> (x: Tensor, mask: Tensor?) {
    var (x, mask) = (input?(tokens) ?? tokens, mask)
    for stage in stages { (x, mask) = stage(x, mask: mask, choice: choice) }
    return (x, mask)
  }

  /// The mean of what is left of a clip whose tokens are masked at random, [batch, outputWidth].
  public func encode(_ clip: Tensor, masking: RandomGenerator) -> Tensor {
    let (x, mask) = self(clip, choice: .random(masking))
    return Pooling.mean(x, mask: mask)
  }
}

/// One stage of ``SelectiveVideoTrunk``.
public final class SelectiveStage: Module {
  @Child public var norm: LayerNorm
  @Child public var mixer: SelectiveS4
  /// D → D/2.
  @Child public var reduction: any LinearLayer
  private let dropout: Dropout

  public init(_ configuration: SelectiveS4.Configuration, generator: RandomGenerator) {
    let width = configuration.s4.width
    dropout = Dropout(configuration.s4.dropout, generator: generator)
    super.init()
    norm = LayerNorm(width)
    mixer = SelectiveS4(configuration, generator: generator)
    reduction = Linear(width, width / 2, generator: generator)
  }

  /// x: [batch, length, D] → [batch, count / 2, D/2] with the mask of those that are real.
  public func callAsFunction(_ x: Tensor, mask: Tensor? = nil, choice: SelectiveS4.Choice = .learned) -> (x: Tensor, mask: Tensor?) {
    let (y, selection) = mixer.compact(norm(x), MixingContext(mask: mask), choice: choice)
    let (pooled, left) = meanOfPairs(selection.gather(x) + dropout(y), mask: selection.mask)
    return (reduction(pooled).gelu(), left)
  }
}

/// Means of neighbouring pairs of tokens; a last one without a neighbour is left out, unless it is the only one.
/// x: [batch, length, width], mask [batch, length], true at tokens that stand first.
func meanOfPairs(_ x: Tensor, mask: Tensor?) -> (x: Tensor, mask: Tensor?) {
  let (batch, length, width) = (x.dim(0), x.dim(1), x.dim(2))
  guard length > 1 else { return (x, mask) }
  let count = length / 2
  let pairs = x.narrowed(axis: 1, start: 0, length: 2 * count).reshaped(batch, count, 2, width)
  guard let mask else { return (pairs.mean(axis: 2), nil) }
  let real = mask.narrowed(axis: 1, start: 0, length: 2 * count).reshaped(batch, count, 2)
  let weights = real.to(x.dtype).expandedDimension(-1)
  let means = (pairs * weights).sum(axis: 2) / weights.sum(axis: 2).clamped(min: 1)
  // A pair counts when both are real, or when its first is all that the sequence has.
  let alone = (mask.to(.int64).sum(axis: 1, keepDims: true) .== 1) .& real.any(axis: 2)
  return (means, real.all(axis: 2) .| alone)
}

/// Maps clips to vectors under random token masks: what long-short masked contrastive learning trains.
public protocol ClipEncoder: Module {
  /// Width of the vectors.
  var outputWidth: Int { get }
  /// clip: [batch, tokens, channels] in temporal order → [batch, outputWidth]. `masking` draws the masks.
  func encode(_ clip: Tensor, masking: RandomGenerator) -> Tensor
}

/// A trunk, the mean of what it leaves, and a linear head: the class of a video. → logits [batch, classes].
public final class SelectiveVideoClassifier: Module {
  @Child public var trunk: SelectiveVideoTrunk
  @Child public var head: any LinearLayer

  /// Throws `ConfigurationError` for a configuration that makes no model.
  public init(_ configuration: SelectiveVideoTrunk.Configuration, classes: Int, generator: RandomGenerator) throws {
    super.init()
    trunk = try SelectiveVideoTrunk(configuration, generator: generator)
    head = Linear(trunk.outputWidth, classes, generator: generator)
  }

  /// tokens: [batch, frames · places, channels]; mask: [batch, frames · places] bool, true at real tokens, which stand first.
  public func callAsFunction(_ tokens: Tensor, mask: Tensor? = nil) -> Tensor {
    let (x, left) = trunk(tokens, mask: mask)
    return head(Pooling.mean(x, mask: left))
  }
}
