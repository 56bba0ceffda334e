/// What makes an encoder-decoder: two backbones and how they share their tables.
public struct EncoderDecoderConfiguration: Sendable, Equatable, Codable {
  /// Bidirectional; reads tokens, or continuous vectors that the stem makes.
  public var encoder: BackboneConfiguration
  /// Causal, over tokens, with attention to the encoder's outputs.
  public var decoder: BackboneConfiguration
  /// Convolutions before the encoder (Whisper); `nil` for none.
  public var stem: ConvolutionStem.Configuration?
  /// One table embeds the tokens of both (T5).
  public var sharedEmbedding: Bool
  /// The decoder's embedding serves as the output projection.
  public var tiedHead: Bool
  /// Factor on the decoder's outputs before the logits (T5: width^−½ where the table is shared with them).
  public var outputScale: Double
  /// The token that every output begins with.
  public var decoderStart: Int

  public init(
    encoder: BackboneConfiguration, decoder: BackboneConfiguration, stem: ConvolutionStem.Configuration? = nil,
    sharedEmbedding: Bool = false, tiedHead: Bool = true, outputScale: Double = 1, decoderStart: Int = 0
  ) {
    self.encoder = encoder
    self.decoder = decoder
    self.stem = stem
    self.sharedEmbedding = sharedEmbedding
    self.tiedHead = tiedHead
    self.outputScale = outputScale
    self.decoderStart = decoderStart
  }

  /// Throws `ConfigurationError` for numbers that make no model.
  public func validate() throws {
    func check(_ condition: Bool, _ message: String) throws { if !condition { throw ConfigurationError(message) } }
    try encoder.validate()
    try decoder.validate()
    try stem?.validate()
    try check(!encoder.isCausal, "the encoder of an encoder-decoder must be bidirectional")
    try check(
      decoder.isCausal && decoder.crossAttention != nil,
      "the decoder of an encoder-decoder must be causal and attend to the encoder (crossAttention)")
    guard case .tokens(let vocabulary) = decoder.input else {
      throw ConfigurationError("the decoder of an encoder-decoder reads tokens")
    }
    try check(
      encoder.width == decoder.width,
      "the decoder (width \(decoder.width)) can only attend to an encoder of the same width, not \(encoder.width)")
    try check(
      decoder.embeddingWidth == nil || decoder.embeddingWidth == decoder.width, "an encoder-decoder's embedding has the model's width")
    try check(
      !sharedEmbedding || encoder.input == decoder.input && encoder.embeddingWidth == decoder.embeddingWidth,
      "encoder and decoder can't share a table of embeddings: they don't read the same tokens")
    try check(
      (0..<vocabulary).contains(decoderStart), "the decoder's start token \(decoderStart) is not below the vocabulary \(vocabulary)")
    try check(outputScale.isFinite && outputScale != 0, "the output's scale must be a finite number other than 0, got \(outputScale)")
    if let stem {
      try check(
        stem.width == encoder.width && encoder.input == .continuous(channels: encoder.width) && !encoder.projectsInput,
        "the stem makes \(stem.width) channels; the encoder must read them as they are")
    }
  }
}

/// An encoder that reads a whole input and a decoder that writes an output, attending to what the encoder made of it
/// (Vaswani et al. 2017): T5 over tokens, Whisper over log-mel frames.
///
/// ```swift
/// let start = try model.initialState(memory: model.encode(tokens, mask: mask))
/// let output = try generate(model, prompts: Array(repeating: model.decoderPrompt, count: start.batch), start: start)
/// ```
public final class EncoderDecoder: Module {
  public let configuration: EncoderDecoderConfiguration
  @Child public var stem: ConvolutionStem?
  @Child public var encoder: SequenceBackbone
  @Child public var decoder: SequenceBackbone
  /// `nil` when the decoder's embedding serves as the output projection.
  @Child public var head: (any LinearLayer)?

  /// Throws `ConfigurationError` for a configuration that makes no model.
  public init(_ configuration: EncoderDecoderConfiguration, generator: RandomGenerator) throws {
    try configuration.validate()
    let c = configuration
    self.configuration = c
    super.init()
    stem = c.stem.map { ConvolutionStem($0, generator: generator) }
    encoder = try SequenceBackbone(c.encoder, generator: generator)
    decoder = try SequenceBackbone(c.decoder, generator: generator)
    if c.sharedEmbedding { decoder.embedding = encoder.embedding }
    head = c.tiedHead ? nil : Linear(c.decoder.width, decoder.embedding!.vocabulary, bias: false, generator: generator)
  }

  public var vocabulary: Int { decoder.embedding!.vocabulary }

  /// What the decoder starts with when nothing else is asked for.
  public var decoderPrompt: [Int] { [configuration.decoderStart] }

  // MARK: Parallel form

  /// The encoder's outputs [batch, length, width].
  ///
  /// - Parameters:
  ///   - input: tokens [batch, length]; with a stem, frames [batch, channels, length].
  ///   - mask: [batch, length] bool, true at real positions, which stand first; `nil` when all are. With a stem, of its outputs.
  public func encoderOutputs(_ input: Tensor, mask: Tensor? = nil) -> Tensor { encoder(stem?(input) ?? input, mask: mask) }

  /// Logits [batch, output length, vocabulary] of the token after every one of the given output, for training and scoring.
  ///
  /// - Parameters:
  ///   - input, mask: as for ``encoderOutputs(_:mask:)``.
  ///   - output: tokens [batch, output length], beginning with the start token.
  public func callAsFunction(_ input: Tensor, mask: Tensor? = nil, output: Tensor) -> Tensor {
    logits(decoder(output, memory: encode(input, mask: mask)))
  }

  /// The logits of the decoder's outputs [..., width].
  public func logits(_ outputs: Tensor) -> Tensor {
    let x = configuration.outputScale == 1 ? outputs : outputs * configuration.outputScale
    return head?(x) ?? linearMap(x, decoder.embedding!.weight)
  }

  // MARK: Token by token

  /// Reads inputs once: what every step of the decoder attends to. Parameters as for ``encoderOutputs(_:mask:)``.
  public func encode(_ input: Tensor, mask: Tensor? = nil) -> SequenceBackbone.Memory {
    decoder.memory(of: encoderOutputs(input, mask: mask), mask: mask)
  }

  /// A decoder's state before its first token.
  ///
  /// - Parameters:
  ///   - batch: as many as the encoded inputs unless given; several outputs of one input (beams, samples) share its memory.
  /// - Throws: `ConfigurationError` when the numbers don't fit or the decoder can't run token by token.
  public func initialState(
    memory: SequenceBackbone.Memory, batch: Int? = nil, cache: CacheOptions = CacheOptions()
  ) throws -> SequenceBackbone.State {
    let batch = batch ?? memory.batch
    guard memory.batch == batch || memory.batch == 1 else {
      throw ConfigurationError("\(batch) outputs were asked for of \(memory.batch) encoded inputs; give one input or as many")
    }
    return try decoder.initialState(batch: batch, cache: cache, memory: memory)
  }
}

extension EncoderDecoder: GenerativeModel {
  /// Throws `ConfigurationError`: the decoder has nothing to say before an input is encoded.
  public func initialState(batch: Int, cache: CacheOptions) throws -> SequenceBackbone.State {
    throw ConfigurationError("an encoder-decoder continues from an input: encode it and start from initialState(memory:)")
  }

  public func outputs(_ tokens: Tensor, _ state: inout SequenceBackbone.State) -> Tensor { decoder.advance(tokens, &state) }
}
