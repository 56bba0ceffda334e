/// What turns pieces of text into tokens.
public enum TokenizerModel: Sendable {
  case bpe(BPE)
  case wordPiece(WordPiece)
  case unigram(Unigram)
  case wordLevel(WordLevel)
  case sentencePiece(SentencePieceModel)

  public var vocabulary: Vocabulary {
    switch self {
    case .bpe(let model): model.vocabulary
    case .wordPiece(let model): model.vocabulary
    case .unigram(let model): model.vocabulary
    case .wordLevel(let model): model.vocabulary
    case .sentencePiece(let model): model.vocabulary
    }
  }

  /// "BPE", "WordPiece", "Unigram", "WordLevel" or "SentencePiece …".
  public var name: String {
    switch self {
    case .bpe: "BPE"
    case .wordPiece: "WordPiece"
    case .unigram: "Unigram"
    case .wordLevel: "WordLevel"
    case .sentencePiece(let model): "SentencePiece \(model.kind.rawValue)"
    }
  }

  /// How many tokens the model has; of a Unigram list also those that come twice.
  var tokenCount: Int { if case .unigram(let model) = self { model.scores.count } else { vocabulary.count } }

  /// The unknown token's id, if the model has one.
  public var unknownId: Int? {
    switch self {
    case .bpe(let model): model.unknownToken.flatMap { model.vocabulary.id(of: $0) }
    case .wordPiece(let model): model.vocabulary.id(of: model.unknownToken)
    case .unigram(let model): model.unknownId
    case .wordLevel(let model): model.vocabulary.id(of: model.unknownToken)
    case .sentencePiece(let model): model.unknownId
    }
  }

  @inline(__always)
  func tokenize(
    _ piece: UnsafePointer<UInt8>, _ count: Int, isRaw: Bool, into sink: inout TokenSink, _ scratch: inout ModelScratch
  ) throws {
    switch self {
    case .bpe(let model): try model.tokenize(piece, count, isRaw: isRaw, into: &sink, &scratch)
    case .wordPiece(let model): try model.tokenize(piece, count, into: &sink)
    case .unigram(let model): try model.tokenize(piece, count, into: &sink, &scratch)
    case .wordLevel(let model): try model.tokenize(piece, count, into: &sink)
    case .sentencePiece(let model): try model.tokenize(piece, count, into: &sink, &scratch)
    }
  }
}
