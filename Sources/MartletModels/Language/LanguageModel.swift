/// A causal decoder: backbone and a projection to the vocabulary. tokens [batch, length] → logits [batch, length, vocabulary].
public final class LanguageModel: Module {
  @Child public var backbone: SequenceBackbone
  /// From the model's width to the embedding's, where they differ.
  @Child(key: "output_projection") public var outputProjection: (any LinearLayer)?
  /// `nil` when the embedding serves as the output projection.
  @Child public var head: (any LinearLayer)?
  /// Logits are squashed to ±cap by cap · tanh(logit/cap) (Gemma 2); `nil` for none.
  public let logitSoftcap: Double?

  /// Throws `ConfigurationError` for a configuration without tokens or causality.
  public init(
    _ configuration: BackboneConfiguration, tiedEmbedding: Bool = true, headBias: Bool = false, logitSoftcap: Double? = nil,
    generator: RandomGenerator
  ) throws {
    guard case .tokens(let vocabulary) = configuration.input, configuration.isCausal else {
      throw ConfigurationError("a language model reads tokens and is causal")
    }
    self.logitSoftcap = logitSoftcap
    super.init()
    backbone = try SequenceBackbone(configuration, generator: generator)
    let width = configuration.embeddingWidth ?? configuration.width
    outputProjection = width == configuration.width ? nil : Linear(configuration.width, width, bias: false, generator: generator)
    head = tiedEmbedding ? nil : Linear(width, vocabulary, bias: headBias, generator: generator)
  }

  public var vocabulary: Int { backbone.embedding!.vocabulary }

  /// packing: when tokens are [1, total], several sequences end to end.
  public func callAsFunction(_ tokens: Tensor, packing: SequencePacking? = nil) -> Tensor {
    logits(backbone(tokens, packing: packing))
  }

  /// The logits of the backbone's outputs [..., width].
  public func logits(_ outputs: Tensor) -> Tensor {
    let x = outputProjection?(outputs) ?? outputs
    let y = head?(x) ?? linearMap(x, backbone.embedding!.weight)
    return logitSoftcap.map { (y / $0).tanh() * $0 } ?? y
  }
}

extension LanguageModel: GenerativeModel {
  /// Throws `ConfigurationError` when a mixer has no recurrent form.
  public func initialState(batch: Int, cache: CacheOptions) throws -> SequenceBackbone.State {
    try backbone.initialState(batch: batch, cache: cache)
  }

  public func outputs(_ tokens: Tensor, _ state: inout SequenceBackbone.State) -> Tensor { backbone.advance(tokens, &state) }
}
