/// A causal decoder: backbone and a projection to the vocabulary. tokens [batch, length] → logits [batch, length, vocabulary].
public final class LanguageModel: Module {
  @Child public var backbone: SequenceBackbone
  /// `nil` when the embedding serves as the output projection.
  @Child public var head: (any LinearLayer)?

  /// Throws `ConfigurationError` for a configuration without tokens or causality.
  public init(_ configuration: BackboneConfiguration, tiedEmbedding: Bool = true, generator: RandomGenerator) throws {
    guard case .tokens(let vocabulary) = configuration.input, configuration.isCausal else {
      throw ConfigurationError("a language model reads tokens and is causal")
    }
    super.init()
    backbone = try SequenceBackbone(configuration, generator: generator)
    head = tiedEmbedding ? nil : Linear(configuration.width, vocabulary, bias: false, generator: generator)
  }

  public func callAsFunction(_ tokens: Tensor) -> Tensor { logits(backbone(tokens)) }

  private func logits(_ x: Tensor) -> Tensor { head?(x) ?? linearMap(x, backbone.embedding!.weight) }

  /// Throws `ConfigurationError` when a mixer has no recurrent form.
  public func initialState(batch: Int) throws -> SequenceBackbone.State { try backbone.initialState(batch: batch) }

  /// Logits of the last of the given tokens, [batch, vocabulary], continuing from a state. tokens: [batch, length].
  public func advance(_ tokens: Tensor, _ state: inout SequenceBackbone.State) -> Tensor {
    let x = backbone.advance(tokens, &state)
    return logits(x.selected(axis: 1, -1))
  }
}
