@_exported import MartletFeedForward
@_exported import MartletMixers

/// What a model reads at each position.
public enum SequenceInput: Sendable, Equatable, Codable {
  /// Ids below `vocabulary`.
  case tokens(vocabulary: Int)
  /// Real vectors, brought to the model's width by a linear map.
  case continuous(channels: Int)
}

/// What tells a model where a token stands, besides what its mixers do themselves (rotary positions, recurrence).
public enum PositionKind: String, Codable, Sendable, CaseIterable {
  case none
  case sinusoidal
  case learned
}

/// Learned scores by distance that all layers share (T5).
public struct RelativeBiasConfiguration: Sendable, Codable, Equatable {
  public var buckets: Int
  public var maximumDistance: Int

  public init(buckets: Int = 32, maximumDistance: Int = 128) {
    self.buckets = buckets
    self.maximumDistance = maximumDistance
  }
}

/// A stack of residual blocks of a mixer and a feed-forward: everything between the input's embedding and a head.
public struct BackboneConfiguration: Sendable, Equatable {
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

  // What pretrained families add.

  /// A linear map from continuous input to the model's width; without it the input has that width (patches, convolutions).
  public var projectsInput = true

  /// `nil` for the norm's own.
  public var normEpsilon: Double?
  /// How norms of the kind `prepbn` slide to batch norm.
  public var normSchedule = ProgressiveRepBatchNorm.Schedule()
  /// Normalise each branch's output too, before it is added (Gemma 2).
  public var branchNorm = false
  /// x + mixer(norm₁ x) + feed-forward(norm₂ x), both from the same x (GPT-NeoX).
  public var parallelResidual = false
  /// A norm at the end; `nil` for as `preNorm` says.
  public var finalNorm: Bool?
  /// Of the feed-forward; `nil` for the kind's own.
  public var activation: Activation?
  public var feedForwardBias: Bool?
  /// Width of the token embeddings when it isn't the model's: a linear map without bias leads to that.
  public var embeddingWidth: Int?
  /// Token embeddings are multiplied by it (Gemma: √width).
  public var embeddingScale = 1.0
  /// Normalise the sum of the embeddings (BERT).
  public var embeddingNorm = false
  /// Kinds of segments with an embedding of their own (BERT: 2); 0 for none.
  public var tokenTypes = 0
  /// Row of the learned positions at which the first position stands (OPT and RoBERTa: 2).
  public var positionOffset = 0
  /// Learned scores by distance, shared by all layers, for attention.
  public var relativeBias: RelativeBiasConfiguration?
  /// Every block also attends to another sequence (the decoder of an encoder-decoder).
  public var crossAttention: MixerChoice?

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

  /// The mixer of a layer.
  public func mixer(layer: Int) -> MixerChoice { mixers[layer % mixers.count] }

  /// Throws `ConfigurationError` for numbers that make no model.
  public func validate() throws {
    func check(_ condition: Bool, _ message: String) throws { if !condition { throw ConfigurationError(message) } }
    try check(width > 0 && width <= 1 << 20, "width must be positive and at most 2^20, got \(width)")
    try check(layers > 0 && layers <= 10_000, "layers must be in 1...10000, got \(layers)")
    try check(!mixers.isEmpty, "a backbone needs at least one mixer")
    let ownWidths = mixers.allSatisfy { ($0.options["head_width"]?.intValue ?? 0) > 0 }
    try check(heads > 0 && (ownWidths || width % heads == 0), "width \(width) is not a multiple of \(heads) heads")
    try check((1...(1 << 24)).contains(hidden ?? 1), "the feed-forward's hidden width must be in 1...2^24, got \(hidden ?? 0)")
    try check(dropout >= 0 && dropout < 1 && dropPath >= 0 && dropPath < 1, "dropout and drop path must be in 0..<1")
    try check(length > 0 && length <= 1 << 32, "length must be positive and at most 2^32, got \(length)")
    try check((1...(1 << 20)).contains(embeddingWidth ?? 1), "the embedding's width must be in 1...2^20, got \(embeddingWidth ?? 0)")
    try check((0...(1 << 16)).contains(tokenTypes), "token types must be in 0...65536, got \(tokenTypes)")
    try check((0...(1 << 20)).contains(positionOffset), "the first position's row must be in 0...2^20, got \(positionOffset)")
    try check(
      normSchedule.warmup >= 0 && normSchedule.steps >= 0 && normSchedule.passesPerStep > 0,
      "the norms' schedule has no negative steps and at least one pass a step, got \(normSchedule)")
    try check((normEpsilon ?? 1e-6) > 0, "the norms' epsilon must be positive, got \(normEpsilon ?? 0)")
    if let bias = relativeBias {
      try check(
        (4...(1 << 16)).contains(bias.buckets) && bias.maximumDistance > bias.buckets / 2 && bias.maximumDistance <= 1 << 32,
        "relative positions need 4...65536 buckets and a larger distance, got \(bias.buckets) and \(bias.maximumDistance)")
    }
    switch input {
    case .tokens(let vocabulary):
      try check(vocabulary > 0 && vocabulary <= 1 << 28, "the vocabulary must be in 1...2^28, got \(vocabulary)")
    case .continuous(let channels):
      try check(channels > 0, "the input needs at least one channel")
      try check(projectsInput || channels == width, "input of \(channels) channels needs a map to the width \(width)")
    }
  }
}

extension BackboneConfiguration: Codable {
  private enum CodingKeys: String, CodingKey {
    case input, width, layers, heads, mixers, feedForward, hidden, norm, preNorm, isCausal, positions, dropout, dropPath
    case embeddingDeviation, length, projectsInput, normEpsilon, normSchedule, branchNorm, parallelResidual, finalNorm, activation,
      feedForwardBias
    case embeddingWidth, embeddingScale, embeddingNorm, tokenTypes, positionOffset, relativeBias, crossAttention
  }

  /// Keys that older files lack keep their defaults.
  public init(from decoder: any Decoder) throws {
    let c = try decoder.container(keyedBy: CodingKeys.self)
    self.init(
      input: try c.decode(SequenceInput.self, forKey: .input), width: try c.decode(Int.self, forKey: .width),
      layers: try c.decode(Int.self, forKey: .layers), heads: try c.decode(Int.self, forKey: .heads),
      mixers: try c.decode([MixerChoice].self, forKey: .mixers),
      feedForward: try c.decode(FeedForwardKind.self, forKey: .feedForward), hidden: try c.decodeIfPresent(Int.self, forKey: .hidden),
      norm: try c.decode(NormalizationKind.self, forKey: .norm), preNorm: try c.decode(Bool.self, forKey: .preNorm),
      isCausal: try c.decode(Bool.self, forKey: .isCausal), positions: try c.decode(PositionKind.self, forKey: .positions),
      dropout: try c.decode(Double.self, forKey: .dropout), dropPath: try c.decode(Double.self, forKey: .dropPath),
      embeddingDeviation: try c.decode(Double.self, forKey: .embeddingDeviation), length: try c.decode(Int.self, forKey: .length))
    projectsInput = try c.decodeIfPresent(Bool.self, forKey: .projectsInput) ?? true
    normEpsilon = try c.decodeIfPresent(Double.self, forKey: .normEpsilon)
    normSchedule = try c.decodeIfPresent(ProgressiveRepBatchNorm.Schedule.self, forKey: .normSchedule) ?? .init()
    branchNorm = try c.decodeIfPresent(Bool.self, forKey: .branchNorm) ?? false
    parallelResidual = try c.decodeIfPresent(Bool.self, forKey: .parallelResidual) ?? false
    finalNorm = try c.decodeIfPresent(Bool.self, forKey: .finalNorm)
    activation = try c.decodeIfPresent(Activation.self, forKey: .activation)
    feedForwardBias = try c.decodeIfPresent(Bool.self, forKey: .feedForwardBias)
    embeddingWidth = try c.decodeIfPresent(Int.self, forKey: .embeddingWidth)
    embeddingScale = try c.decodeIfPresent(Double.self, forKey: .embeddingScale) ?? 1
    embeddingNorm = try c.decodeIfPresent(Bool.self, forKey: .embeddingNorm) ?? false
    tokenTypes = try c.decodeIfPresent(Int.self, forKey: .tokenTypes) ?? 0
    positionOffset = try c.decodeIfPresent(Int.self, forKey: .positionOffset) ?? 0
    relativeBias = try c.decodeIfPresent(RelativeBiasConfiguration.self, forKey: .relativeBias)
    crossAttention = try c.decodeIfPresent(MixerChoice.self, forKey: .crossAttention)
  }
}
