/// Whole words by a list.
public final class WordLevel: Sendable {
  public let vocabulary: Vocabulary
  public let unknownToken: String
  private let unknownId: Int32

  public init(vocabulary: Vocabulary, unknownToken: String = "<unk>") {
    self.vocabulary = vocabulary
    self.unknownToken = unknownToken
    unknownId = Int32(vocabulary.id(of: unknownToken) ?? -1)
  }

  func tokenize(_ piece: UnsafePointer<UInt8>, _ count: Int, into sink: inout TokenSink) throws {
    var id = vocabulary.find(piece, count)
    if id < 0 { id = unknownId }
    guard id >= 0 else { throw TokenizationError("the unknown token \"\(unknownToken)\" is needed, and isn't in the vocabulary") }
    sink.append(id, 0, count)
  }
}
