/// A token that is found in the text before it is cut, whatever the model would make of it.
public struct AddedToken: Sendable, Hashable {
  public var content: String
  /// Not inside a word.
  public var singleWord: Bool
  /// Takes the white space before it.
  public var stripsLeft: Bool
  /// Takes the white space after it.
  public var stripsRight: Bool
  /// Looked for in the normalized text, in its own normalized spelling; else in the text as given.
  public var isNormalized: Bool
  /// Left out by `decode` when asked.
  public var isSpecial: Bool

  public init(
    _ content: String, singleWord: Bool = false, stripsLeft: Bool = false, stripsRight: Bool = false, isNormalized: Bool? = nil,
    isSpecial: Bool = false
  ) {
    self.content = content
    self.singleWord = singleWord
    self.stripsLeft = stripsLeft
    self.stripsRight = stripsRight
    self.isNormalized = isNormalized ?? !isSpecial
    self.isSpecial = isSpecial
  }

  // Byte by byte: Swift's strings compare by canonical equivalence.
  public static func == (a: AddedToken, b: AddedToken) -> Bool {
    a.content.utf8.elementsEqual(b.content.utf8) && a.singleWord == b.singleWord && a.stripsLeft == b.stripsLeft
      && a.stripsRight == b.stripsRight && a.isNormalized == b.isNormalized && a.isSpecial == b.isSpecial
  }
}

/// The added tokens of a tokenizer and the search for them.
final class AddedVocabulary: Sendable {
  /// In the order of their ids.
  let tokens: [(id: Int, token: AddedToken)]
  let isSpecial: Set<Int>
  private let byId: [Int: AddedToken]
  /// What a token becomes when normalized, where that differs: decoders undo the same.
  private let normalized: [Int: [UInt8]]
  private let byContent: [[UInt8]: Int]
  private let specialContents: Set<[UInt8]>
  private let plainTrie: ByteTrie?
  private let normalizedTrie: ByteTrie?

  /// Ids as the library gives them: the model's own where it has the token, else the next free one, in the order of the list.
  init(_ list: [AddedToken], model: TokenizerModel, normalizer: Normalizer?) throws {
    var byId: [Int: AddedToken] = [:]
    var byContent: [[UInt8]: Int] = [:]
    var normalized: [Int: [UInt8]] = [:]
    var specialContents: Set<[UInt8]> = []
    var next = model.tokenCount
    var scratch = NormalizationScratch()
    let memory = RegularExpression.Memory()
    for token in list where !token.content.isEmpty {
      let content = Array(token.content.utf8)
      if let id = byContent[content], byId[id] == token { continue }
      let id: Int
      if let known = byContent[content] ?? content.withUnsafeBufferPointer({ model.vocabulary.id(of: $0) }) {
        id = known
      } else {
        id = next
        next += 1
      }
      if token.isNormalized, let normalizer {
        var out = TextBuffer()
        out.begin(isAligned: false)
        let hasChanged = try content.withUnsafeBufferPointer {
          try normalizer.apply(
            TextView(bytes: $0.baseAddress!, count: $0.count, starts: nil, ends: nil, firstCount: 0), into: &out, &scratch, memory)
        }
        let result = Array(out.bytes.buffer)
        if hasChanged && result != content { normalized[id] = result }
      }
      byContent[content] = id
      byId[id] = token
      if token.isSpecial { specialContents.insert(content) }
    }
    var plain = ByteTrie.Builder()
    var other = ByteTrie.Builder()
    var hasPlain = false
    var hasOther = false
    for (id, token) in byId.sorted(by: { $0.key < $1.key }) {
      if token.isNormalized {
        let pattern = normalized[id] ?? Array(token.content.utf8)
        if pattern.isEmpty { continue }
        try pattern.withUnsafeBufferPointer { try other.insert($0, value: Int32(id)) }
        hasOther = true
      } else {
        try Array(token.content.utf8).withUnsafeBufferPointer { try plain.insert($0, value: Int32(id)) }
        hasPlain = true
      }
    }
    self.byId = byId
    self.byContent = byContent
    self.normalized = normalized
    self.specialContents = specialContents
    plainTrie = hasPlain ? ByteTrie(plain) : nil
    normalizedTrie = hasOther ? ByteTrie(other) : nil
    tokens = byId.sorted { $0.key < $1.key }.map { (id: $0.key, token: $0.value) }
    isSpecial = Set(byId.filter { specialContents.contains(Array($0.value.content.utf8)) }.keys)
  }

  func token(of id: Int) -> AddedToken? { byId[id] }
  func id(of content: [UInt8]) -> Int? { byContent[content] }

  /// The bytes that stand for an added token when decoding; nil for other ids.
  func spelling(of id: Int) -> [UInt8]? { byId[id].map { normalized[id] ?? Array($0.content.utf8) } }

  func isSpecial(_ spelling: UnsafeBufferPointer<UInt8>) -> Bool { !specialContents.isEmpty && specialContents.contains(Array(spelling)) }

  enum Stage { case asGiven, normalized }

  /// Calls `body` with every part of the text in order: the added token's id, or -1 for text between them.
  @inline(__always)
  func forEachPart(
    of text: TextView, _ stage: Stage, _ body: (_ id: Int32, _ start: Int, _ end: Int) throws -> Void
  ) rethrows {
    let count = text.count
    guard let trie = stage == .asGiven ? plainTrie : normalizedTrie else {
      if count > 0 { try body(-1, 0, count) }
      return
    }
    let bytes = text.bytes
    var done = 0
    var position = 0
    while position < count {
      if !trie.begins(bytes[position]) {
        position += 1
        continue
      }
      let (id, length) = trie.longestPrefix(bytes + position, count - position)
      if id < 0 {
        position += 1
        continue
      }
      let token = byId[Int(id)]!
      var start = position
      var end = position + length
      position = end
      if token.singleWord && (touchesWord(before: start, text) || touchesWord(after: end, text)) { continue }
      if token.stripsLeft {
        while start > done {
          let (scalar, length) = UTF8Text.scalarBefore(bytes, start)
          if !scalarClass(scalar, UnicodeTables.classes).contains(.space) { break }
          start -= length
        }
      }
      if token.stripsRight {
        while end < count {
          let (scalar, length) = UTF8Text.scalar(bytes + end)
          if !scalarClass(scalar, UnicodeTables.classes).contains(.space) { break }
          end += length
        }
      }
      if done < start { try body(-1, done, start) }
      try body(id, start, end)
      // As in the library, the search goes on behind the token itself: one that begins in white space taken here is found too.
      done = end
    }
    if done < count { try body(-1, done, count) }
  }

  private func touchesWord(before position: Int, _ text: TextView) -> Bool {
    guard position > 0 else { return false }
    return scalarClass(UTF8Text.scalarBefore(text.bytes, position).value, UnicodeTables.classes).contains(.whitespaceWord)
  }

  private func touchesWord(after position: Int, _ text: TextView) -> Bool {
    guard position < text.count else { return false }
    return scalarClass(UTF8Text.scalar(text.bytes + position).value, UnicodeTables.classes).contains(.whitespaceWord)
  }
}
