@_exported import MartletFeedForward
@_exported import MartletMixers

/// What a model reads at each position.
public enum SequenceInput: Sendable, Equatable, Codable {
  /// Ids below `vocabulary`.
  case tokens(vocabulary: Int)
  /// Real vectors.
  case continuous(channels: Int)
}

/// What tells a model where a token stands, besides what its mixers do themselves (rotary positions, recurrence).
public enum PositionKind: String, Codable, Sendable, CaseIterable {
  case none
  case sinusoidal
  case learned
}

/// A stack of residual blocks of a mixer and a feed-forward: everything between the input's embedding and a head.
public struct BackboneConfiguration: Sendable, Codable, Equatable {
  public var input: SequenceInput
  public var width: Int
  public var layers: Int
  public var heads: Int
  /// The mixers of the layers in turn: one for all, or a pattern that is repeated (hybrids).
  public var mixers: [MixerChoice]
  public var feedForward: FeedForwardKind
  /// Inner width of the feed-forward; `nil` for the kind's own.
  public var hidden: Int?
  public var norm: NormalizationKind
  /// Normalise before each branch (and once at the end) rather than after each sum.
  public var preNorm: Bool
  public var isCausal: Bool
  public var positions: PositionKind
  public var dropout: Double
  public var dropPath: Double
  /// Standard deviation of token embeddings at the start: small where the embedding is also the output projection, 1 beside
  /// sinusoidal positions, which have that size.
  public var embeddingDeviation: Double
  /// The longest sequence expected: size of learned positions, first length of S4's kernels.
  public var length: Int

  public init(
    input: SequenceInput, width: Int, layers: Int, heads: Int = 4, mixers: [MixerChoice], feedForward: FeedForwardKind = .mlp,
    hidden: Int? = nil, norm: NormalizationKind = .layer, preNorm: Bool = true, isCausal: Bool, positions: PositionKind = .none,
    dropout: Double = 0, dropPath: Double = 0, embeddingDeviation: Double = 0.02, length: Int
  ) {
    self.input = input
    self.width = width
    self.layers = layers
    self.heads = heads
    self.mixers = mixers
    self.feedForward = feedForward
    self.hidden = hidden
    self.norm = norm
    self.preNorm = preNorm
    self.isCausal = isCausal
    self.positions = positions
    self.dropout = dropout
    self.dropPath = dropPath
    self.embeddingDeviation = embeddingDeviation
    self.length = length
  }

  /// Throws `ConfigurationError` for numbers that make no model.
  public func validate() throws {
    func check(_ condition: Bool, _ message: String) throws { if !condition { throw ConfigurationError(message) } }
    try check(width > 0 && width <= 1 << 20, "width must be positive and at most 2^20, got \(width)")
    try check(layers > 0 && layers <= 10_000, "layers must be in 1...10000, got \(layers)")
    try check(heads > 0 && width % heads == 0, "width \(width) is not a multiple of \(heads) heads")
    try check((hidden ?? 1) > 0, "the feed-forward's hidden width must be positive, got \(hidden ?? 0)")
    try check(!mixers.isEmpty, "a backbone needs at least one mixer")
    try check(dropout >= 0 && dropout < 1 && dropPath >= 0 && dropPath < 1, "dropout and drop path must be in 0..<1")
    try check(length > 0, "length must be positive, got \(length)")
    switch input {
    case .tokens(let vocabulary): try check(vocabulary > 0, "the vocabulary must not be empty")
    case .continuous(let channels): try check(channels > 0, "the input needs at least one channel")
    }
  }
}

/// One layer: x + mixer(norm x), then x + feed-forward(norm x) (or each normalised after the sum).
public final class Block: Module {
  @Child(key: "mixer") public var mixer: any SequenceMixer
  @Child(key: "feed_forward") public var feedForward: (any FeedForward)?
  @Child(key: "mixer_norm") public var mixerNorm: (any NormalizationLayer)?
  @Child(key: "feed_forward_norm") public var feedForwardNorm: (any NormalizationLayer)?
  private let dropout: Dropout
  private let dropPath: DropPath
  private let preNorm: Bool

  init(_ c: BackboneConfiguration, layer: Int, generator: RandomGenerator) throws {
    preNorm = c.preNorm
    dropout = Dropout(c.dropout, generator: generator)
    // Stochastic depth grows linearly with the layer (Huang et al. 2016).
    dropPath = DropPath(c.layers > 1 ? c.dropPath * Double(layer) / Double(c.layers - 1) : c.dropPath, generator: generator)
    super.init()
    let choice = c.mixers[layer % c.mixers.count]
    let site = MixerSite(width: c.width, heads: c.heads, isCausal: c.isCausal, length: c.length, dropout: c.dropout)
    mixer = try choice.kind(site, options: choice.options, generator: generator)
    feedForward = c.feedForward.make(width: c.width, hidden: c.hidden, generator: generator)
    mixerNorm = c.norm.make(c.width)
    feedForwardNorm = feedForward == nil ? nil : c.norm.make(c.width)
  }

  /// x + branch(x), normalised where the configuration says.
  private func residual(_ x: Tensor, _ norm: (any NormalizationLayer)?, _ branch: (Tensor) -> Tensor) -> Tensor {
    let inner = branch(preNorm ? norm?(x) ?? x : x)
    let sum = x + dropPath(dropout(inner))
    return preNorm ? sum : norm?(sum) ?? sum
  }

  func callAsFunction(_ x: Tensor, _ mix: (Tensor) -> Tensor) -> Tensor {
    let mixed = residual(x, mixerNorm, mix)
    guard let feedForward else { return mixed }
    return residual(mixed, feedForwardNorm) { feedForward($0) }
  }
}

/// Embedding, blocks and the final norm: [batch, length] ids or [batch, length, channels] → [batch, length, width].
public final class SequenceBackbone: Module {
  public let configuration: BackboneConfiguration
  @Child(key: "embedding") public var embedding: Embedding?
  @Child(key: "input") public var inputProjection: (any LinearLayer)?
  @Parameter(key: "positions") public var learnedPositions: Tensor?
  @Child public var blocks: [Block]
  @Child(key: "final_norm") public var finalNorm: (any NormalizationLayer)?
  private let dropout: Dropout

  /// Throws `ConfigurationError` for a configuration that makes no model.
  public init(_ configuration: BackboneConfiguration, generator: RandomGenerator) throws {
    try configuration.validate()
    let c = configuration
    self.configuration = c
    dropout = Dropout(c.dropout, generator: generator)
    super.init()
    embedding = nil
    inputProjection = nil
    switch c.input {
    case .tokens(let vocabulary):
      embedding = Embedding(vocabulary, c.width, initializer: .normal(c.embeddingDeviation), generator: generator)
    case .continuous(let channels): inputProjection = Linear(channels, c.width, generator: generator)
    }
    learnedPositions = c.positions == .learned ? Initializer.normal(0.02)([c.length, c.width], generator) : nil
    blocks = try (0..<c.layers).map { try Block(c, layer: $0, generator: generator) }
    finalNorm = c.preNorm ? c.norm.make(c.width) : nil
  }

  public func callAsFunction(_ input: Tensor, mask: Tensor? = nil) -> Tensor {
    var x = dropout(embed(input, offset: 0))
    let context = MixingContext(mask: mask)
    for block in blocks { x = block(x) { block.mixer($0, context) } }
    return finalNorm?(x) ?? x
  }

  private func embed(_ input: Tensor, offset: Int) -> Tensor {
    var x = embedding?(input) ?? inputProjection!(input)
    let length = x.dim(1)
    switch configuration.positions {
    case .none: break
    case .sinusoidal:
      x = x + sinusoidalPositions(length: length, width: configuration.width, offset: offset).to(x.dtype).to(x.device)
    case .learned:
      require(
        offset + length <= configuration.length,
        "learned positions end at \(configuration.length), the input at \(offset + length)")
      x = x + learnedPositions!.narrowed(axis: 0, start: offset, length: length)
    }
    return x
  }

  // MARK: Token by token

  /// The states of all layers and how many positions they have seen.
  public struct State {
    public var layers: [Any]
    public var position: Int
  }

  /// Whether every layer has a recurrent form.
  public var isRecurrent: Bool { configuration.isCausal && blocks.allSatisfy { $0.mixer is any RecurrentMixer } }

  /// Throws `ConfigurationError` when a layer has no recurrent form.
  public func initialState(batch: Int) throws -> State {
    guard configuration.isCausal else { throw ConfigurationError("a bidirectional model can't run token by token") }
    return State(
      layers: try blocks.enumerated().map { i, block in
        guard let mixer = block.mixer as? any RecurrentMixer else {
          throw ConfigurationError("layer \(i) (\(type(of: block.mixer))) has no recurrent form")
        }
        return mixer.initialAnyState(batch: batch)
      }, position: 0)
  }

  /// Continues from a state with one or more positions: the same shapes as the parallel form.
  public func advance(_ input: Tensor, _ state: inout State) -> Tensor {
    var x = embed(input, offset: state.position)
    let length = x.dim(1)
    for (i, block) in blocks.enumerated() {
      let mixer = block.mixer as! any RecurrentMixer
      x = block(x) { x in
        length == 1
          ? mixer.stepAny(x.selected(axis: 1, 0), &state.layers[i]).expandedDimension(1)
          : mixer.advanceAny(x, &state.layers[i])
      }
    }
    state.position += length
    return finalNorm?(x) ?? x
  }

  public func stateBytes(_ state: State) -> Int {
    zip(blocks, state.layers).reduce(0) { $0 + (($1.0.mixer as? any RecurrentMixer)?.anyStateBytes($1.1) ?? 0) }
  }

  /// Multiplications with addition for one sequence of a length.
  public func multiplyAdds(length: Int) -> Int {
    blocks.reduce(0) { $0 + $1.mixer.multiplyAdds(length: length) + length * ($1.feedForward?.multiplyAdds() ?? 0) }
  }
}
