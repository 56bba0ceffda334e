/// WordPiece (BERT): the longest token that the rest of the word begins with, again and again; a word that can't be spelled is unknown.
///
/// Schuster and Nakajima, "Japanese and Korean Voice Search" (2012).
public final class WordPiece: Sendable {
  public let vocabulary: Vocabulary
  public let unknownToken: String
  /// Written before every token of a word but the first.
  public let continuingSubwordPrefix: String
  /// Words with more characters are unknown.
  public let maximumCharacters: Int

  private let unknownId: Int32
  private let first: ByteTrie
  private let rest: ByteTrie

  /// Throws ``VocabularyError`` when the tokens have more than 2²⁸ bytes in all.
  public init(
    vocabulary: Vocabulary, unknownToken: String = "[UNK]", continuingSubwordPrefix: String = "##", maximumCharacters: Int = 100
  ) throws(VocabularyError) {
    self.vocabulary = vocabulary
    self.unknownToken = unknownToken
    self.continuingSubwordPrefix = continuingSubwordPrefix
    self.maximumCharacters = maximumCharacters
    unknownId = Int32(vocabulary.id(of: unknownToken) ?? -1)
    let prefix = Array(continuingSubwordPrefix.utf8)
    var first = ByteTrie.Builder(expectedTokens: vocabulary.count)
    var rest = ByteTrie.Builder(expectedTokens: prefix.isEmpty ? 1 : vocabulary.count)
    for id in 0..<vocabulary.idCount {
      guard let token = vocabulary.bytes(of: id), vocabulary.id(of: token) == id else { continue }
      try first.insert(token, value: Int32(id))
      if !prefix.isEmpty && token.count > prefix.count && token.starts(with: prefix) {
        try rest.insert(UnsafeBufferPointer(rebasing: token.dropFirst(prefix.count)), value: Int32(id))
      }
    }
    self.first = ByteTrie(first)
    self.rest = prefix.isEmpty ? self.first : ByteTrie(rest)
  }

  func tokenize(_ piece: UnsafePointer<UInt8>, _ count: Int, into sink: inout TokenSink) throws {
    if count == 0 { return }
    var characters = 0
    if count > maximumCharacters {
      for i in 0..<count where piece[i] & 0xC0 != 0x80 { characters += 1 }
    }
    let before = sink.ids.count
    let spansBefore = sink.spans.count
    var position = 0
    while position < count && characters <= maximumCharacters {
      let (id, length) = (position == 0 ? first : rest).longestPrefix(piece + position, count - position, endingCharacters: true)
      if id < 0 { break }
      sink.append(id, position, position + length)
      position += length
    }
    if position == count { return }
    sink.ids.count = before
    sink.spans.count = spansBefore
    guard unknownId >= 0 else {
      throw TokenizationError("the unknown token \"\(unknownToken)\" is needed, and isn't in the vocabulary")
    }
    sink.append(unknownId, 0, count)
  }
}
