/// Trains WordPiece as the `tokenizers` library does: by byte-pair encoding whose tokens inside words have a prefix, of which only the
/// vocabulary is kept.
public struct WordPieceTrainer: Sendable {
  /// Tokens wanted, special ones and the alphabet included.
  public var vocabularySize: Int
  public var minimumFrequency: Int
  /// Get the first ids; should include the unknown token.
  public var specialTokens: [AddedToken]
  public var alphabetLimit: Int?
  public var initialAlphabet: [Unicode.Scalar]
  public var continuingSubwordPrefix: String
  public var unknownToken: String

  public init(
    vocabularySize: Int = 30_000, minimumFrequency: Int = 0,
    specialTokens: [AddedToken] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map { AddedToken($0, isSpecial: true) },
    alphabetLimit: Int? = 1000, initialAlphabet: [Unicode.Scalar] = [], continuingSubwordPrefix: String = "##",
    unknownToken: String = "[UNK]"
  ) {
    self.vocabularySize = vocabularySize
    self.minimumFrequency = minimumFrequency
    self.specialTokens = specialTokens
    self.alphabetLimit = alphabetLimit
    self.initialAlphabet = initialAlphabet
    self.continuingSubwordPrefix = continuingSubwordPrefix
    self.unknownToken = unknownToken
  }

  /// A tokenizer with the corpus's normalizer and pre-tokenizer and what was learnt. Throws as ``BPETrainer`` does, and
  /// ``ConfigurationError`` when the unknown token isn't in the vocabulary.
  public func train(
    _ corpus: TokenizerCorpus, decoder: Decoder? = nil, postProcessor: PostProcessor? = nil,
    progress: ((TokenizerTrainingProgress) throws -> Void)? = nil
  ) throws -> Tokenizer {
    let trainer = BPETrainer(
      vocabularySize: vocabularySize, minimumFrequency: minimumFrequency, specialTokens: specialTokens, alphabetLimit: alphabetLimit,
      initialAlphabet: initialAlphabet, continuingSubwordPrefix: continuingSubwordPrefix)
    let learnt = try trainer.learn(corpus, progress)
    guard learnt.ids[Array(unknownToken.utf8)] != nil else {
      throw ConfigurationError("the unknown token \"\(unknownToken)\" must be among the special tokens")
    }
    var builder = Vocabulary.Builder()
    for (id, token) in learnt.tokens.enumerated() { try builder.append(String(decoding: token, as: UTF8.self), id: id) }
    let model = try WordPiece(
      vocabulary: try Vocabulary(builder), unknownToken: unknownToken, continuingSubwordPrefix: continuingSubwordPrefix)
    return try Tokenizer(
      model: .wordPiece(model), normalizer: corpus.normalizer, preTokenizer: corpus.preTokenizer, postProcessor: postProcessor,
      decoder: decoder ?? .wordPiece(prefix: continuingSubwordPrefix, cleansUp: true), addedTokens: specialTokens)
  }
}
