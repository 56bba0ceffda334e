import MartletFormats

/// What a text encoder has above its backbone.
public struct TextEncoderConfiguration: Sendable, Equatable {
  /// A linear map of the first position's output with this activation: BERT's pooler, and what other families' classifiers begin with.
  public var pooler: Activation?
  /// Classes of a linear head on what the pooler gives (on the first position's output without one); `nil` for no head.
  public var classes: Int?
  /// A head that predicts masked tokens: linear map, this activation, norm, then the vocabulary.
  public var vocabularyHead: Activation?
  /// Whether the vocabulary's matrix is the embedding.
  public var isTied = true

  public init(pooler: Activation? = nil, classes: Int? = nil, vocabularyHead: Activation? = nil, isTied: Bool = true) {
    self.pooler = pooler
    self.classes = classes
    self.vocabularyHead = vocabularyHead
    self.isTied = isTied
  }
}

/// A bidirectional encoder of text with what its checkpoint has of: a pooler, a classifier (one class: a cross-encoder's score), a
/// head that predicts masked tokens, and the steps that make sentence embeddings.
public final class TextEncoder: Module {
  public let configuration: TextEncoderConfiguration
  @Child public var backbone: SequenceBackbone
  @Child public var pooler: (any LinearLayer)?
  @Child public var classifier: (any LinearLayer)?
  @Child(key: "vocabulary_head") public var vocabularyHead: MaskedTokenHead?
  /// What sentence-transformers does with the outputs; mean pooling unless its files say otherwise.
  @Child(key: "sentence") public var sentence: SentenceEmbedding

  /// Throws `ConfigurationError` for a configuration without tokens, or that makes no model.
  public init(
    _ backbone: BackboneConfiguration, _ configuration: TextEncoderConfiguration, sentence: SentenceEmbedding.Configuration = .init(),
    generator: RandomGenerator
  ) throws {
    guard case .tokens(let vocabulary) = backbone.input, !backbone.isCausal else {
      throw ConfigurationError("a text encoder reads tokens in both directions")
    }
    self.configuration = configuration
    super.init()
    self.backbone = try SequenceBackbone(backbone, generator: generator)
    pooler = configuration.pooler == nil ? nil : Linear(backbone.width, backbone.width, generator: generator)
    classifier = configuration.classes.map { Linear(backbone.width, $0, generator: generator) }
    vocabularyHead = configuration.vocabularyHead.map {
      MaskedTokenHead(
        width: backbone.width, vocabulary: vocabulary, activation: $0, epsilon: backbone.normEpsilon, isTied: configuration.isTied,
        generator: generator)
    }
    self.sentence = SentenceEmbedding(sentence, width: backbone.width, generator: generator)
  }

  /// The last layer's outputs, [batch, length, width].
  ///
  /// - Parameters:
  ///   - tokens: [batch, length] ids, or [1, total] with `packing`: several texts end to end, without padding.
  ///   - mask: [batch, length] bool, true at real positions, which stand first.
  ///   - tokenTypes: segments (a cross-encoder's two texts); zeros unless given.
  public func callAsFunction(
    _ tokens: Tensor, mask: Tensor? = nil, tokenTypes: Tensor? = nil, packing: SequencePacking? = nil
  ) -> Tensor {
    backbone(tokens, mask: mask, tokenTypes: tokenTypes, packing: packing)
  }

  /// The outputs at each text's first position, [batch, width].
  private func first(_ outputs: Tensor, _ packing: SequencePacking?) -> Tensor {
    guard let packing else { return outputs.selected(axis: 1, 0) }
    return outputs.selected(axis: 0, 0).take(Tensor(Array(packing.offsets.dropLast())))
  }

  /// The pooler's vector of each text, [batch, width]; the first position's output where there is no pooler.
  public func pooled(_ outputs: Tensor, packing: SequencePacking? = nil) -> Tensor {
    let x = first(outputs, packing)
    guard let pooler, let activation = configuration.pooler else { return x }
    return activation(pooler(x))
  }

  /// Logits of the classes, [batch, classes]; `nil` for a checkpoint without a classifier.
  public func classLogits(_ outputs: Tensor, packing: SequencePacking? = nil) -> Tensor? {
    classifier?(pooled(outputs, packing: packing))
  }

  /// Logits of the vocabulary at every position; `nil` for a checkpoint without that head.
  public func vocabularyLogits(_ outputs: Tensor) -> Tensor? {
    vocabularyHead?(outputs, embedding: backbone.embedding!.weight)
  }

  /// Sentence embeddings [batch, width] of outputs.
  public func embeddings(_ outputs: Tensor, mask: Tensor? = nil, packing: SequencePacking? = nil) -> Tensor {
    packing.map { sentence(outputs, packing: $0) } ?? sentence(outputs, mask: mask)
  }
}

/// Predicts tokens from an encoder's outputs: W_vocabulary · norm(φ(W x + b)) + c (Devlin et al. 2018, as published).
public final class MaskedTokenHead: Module {
  @Child public var dense: any LinearLayer
  @Child public var norm: LayerNorm
  /// [vocabulary, width], where it is not the embedding.
  @Parameter(key: "decoder") public var decoder: Tensor?
  @Parameter public var bias: Tensor
  public let activation: Activation

  init(width: Int, vocabulary: Int, activation: Activation, epsilon: Double?, isTied: Bool, generator: RandomGenerator) {
    self.activation = activation
    super.init()
    dense = Linear(width, width, generator: generator)
    norm = LayerNorm(width, epsilon: epsilon ?? 1e-5)
    decoder = isTied ? nil : Initializer.normal(0.02)([vocabulary, width], generator)
    bias = Initializer.zeros([vocabulary], generator)
  }

  public func callAsFunction(_ x: Tensor, embedding: Tensor) -> Tensor {
    linearMap(norm(activation(dense(x))), decoder ?? embedding, bias)
  }
}
