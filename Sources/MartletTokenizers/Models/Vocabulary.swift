/// The tokens of a model by id and the ids by token, as bytes.
///
/// Tokens are compared byte by byte: two spellings of "é" are two tokens, which Swift's `String` would take for one.
/// Ids may have gaps; an id can belong to one token only.
public final class Vocabulary: @unchecked Sendable {
  /// The largest id allowed: tables by id must not let a small file claim much memory.
  public static let maximumId = (1 << 24) - 1

  /// One more than the largest id.
  public let idCount: Int
  /// How many tokens there are.
  public let count: Int
  /// Bytes of the longest token.
  public let longestToken: Int

  // Written only while being made.
  private let arena: UnsafeMutablePointer<UInt8>
  private let starts: UnsafeMutablePointer<UInt32>
  private let lengths: UnsafeMutablePointer<Int32>  // -1: nobody has this id
  private let slots: UnsafeMutablePointer<UInt64>  // upper half: part of the hash; lower half: id + 1, 0 when free
  private let mask: Int
  private let seed = ByteHash.seed

  /// Tokens given one after the other.
  public struct Builder: ~Copyable {
    var arena = RawBuffer<UInt8>(capacity: 4096)
    var entries = RawBuffer<Entry>(capacity: 256)
    struct Entry {
      var start: UInt32
      var length: UInt32
      var id: Int32
    }

    public init() {}

    public var count: Int { entries.count }

    /// Adds a token. Throws ``VocabularyError`` for an id below 0 or above ``Vocabulary/maximumId``, and for more than 2 GiB of tokens.
    public mutating func append(_ token: UnsafeBufferPointer<UInt8>, id: Int) throws(VocabularyError) {
      guard id >= 0 && id <= Vocabulary.maximumId else {
        throw VocabularyError(
          "the token \"\(String(decoding: token.prefix(60), as: UTF8.self))\" has the id \(id); ids go from 0 to \(Vocabulary.maximumId)")
      }
      guard arena.count + token.count < Int(Int32.max) else { throw VocabularyError("the tokens have more than 2 GiB") }
      entries.append(Entry(start: UInt32(arena.count), length: UInt32(token.count), id: Int32(id)))
      if let base = token.baseAddress { arena.append(base, count: token.count) }
    }

    public mutating func append(_ token: String, id: Int) throws(VocabularyError) {
      var token = token
      // withUTF8 can't pass a typed error on.
      let result = token.withUTF8 { bytes in
        do throws(VocabularyError) {
          try append(bytes, id: id)
          return VocabularyError?.none
        } catch { return error }
      }
      if let result { throw result }
    }
  }

  /// What to do with a token that comes twice.
  public enum Repetition: Sendable {
    /// An error.
    case refused
    /// The later id is the token's; the earlier one still reads as the token (as in `vocab.txt` and Unigram lists).
    case lastWins
  }

  /// Throws ``VocabularyError`` when an id has two tokens, and when a token comes twice and that is refused.
  public init(_ builder: consuming Builder, repetition: Repetition = .refused) throws(VocabularyError) {
    let entries = builder.entries.buffer
    var largest = -1
    var longest = 0
    for entry in entries {
      largest = max(largest, Int(entry.id))
      longest = max(longest, Int(entry.length))
    }
    idCount = largest + 1
    longestToken = longest
    arena = .allocate(capacity: max(builder.arena.count, 1) + 8)
    arena.update(from: builder.arena.base, count: builder.arena.count)
    starts = .allocate(capacity: max(idCount, 1))
    lengths = .allocate(capacity: max(idCount, 1))
    lengths.update(repeating: -1, count: max(idCount, 1))
    var size = 16
    while size < entries.count * 2 { size *= 2 }
    slots = .allocate(capacity: size)
    slots.update(repeating: 0, count: size)
    mask = size - 1

    var distinct = 0
    var problem: VocabularyError?
    for entry in entries {
      let id = Int(entry.id)
      let token = arena + Int(entry.start)
      if lengths[id] >= 0 {
        let other = String(decoding: UnsafeBufferPointer(start: arena + Int(starts[id]), count: Int(lengths[id])), as: UTF8.self)
        let this = String(decoding: UnsafeBufferPointer(start: token, count: Int(entry.length)), as: UTF8.self)
        problem = VocabularyError("the id \(id) is given to two tokens, \"\(other.prefix(60))\" and \"\(this.prefix(60))\"")
        break
      }
      starts[id] = entry.start
      lengths[id] = Int32(entry.length)
      let hash = ByteHash.hash(token, Int(entry.length), seed: seed)
      let tag = UInt64(hash >> 32) << 32
      var slot = Int(truncatingIfNeeded: hash) & mask
      while true {
        let content = slots[slot]
        if content == 0 {
          slots[slot] = tag | UInt64(id + 1)
          distinct += 1
          break
        }
        let owner = Int(content & 0xFFFF_FFFF) - 1
        if content & 0xFFFF_FFFF_0000_0000 == tag, lengths[owner] == Int32(entry.length),
          ByteHash.equal(arena + Int(starts[owner]), token, Int(entry.length))
        {
          if repetition == .refused {
            let this = String(decoding: UnsafeBufferPointer(start: token, count: Int(entry.length)), as: UTF8.self)
            problem = VocabularyError("the token \"\(this.prefix(60))\" occurs twice, with the ids \(owner) and \(id)")
          }
          slots[slot] = tag | UInt64(id + 1)
          break
        }
        slot = (slot + 1) & mask
      }
      if problem != nil { break }
    }
    count = distinct
    if let problem { throw problem }
  }

  /// A vocabulary whose ids are the positions in the list.
  public convenience init(_ tokens: [String], repetition: Repetition = .refused) throws(VocabularyError) {
    var builder = Builder()
    for (id, token) in tokens.enumerated() { try builder.append(token, id: id) }
    try self.init(builder, repetition: repetition)
  }

  deinit {
    arena.deallocate()
    starts.deallocate()
    lengths.deallocate()
    slots.deallocate()
  }

  /// The id of a token, or -1.
  @inline(__always)
  func find(_ token: UnsafePointer<UInt8>, _ length: Int) -> Int32 {
    let hash = ByteHash.hash(token, length, seed: seed)
    let tag = UInt64(hash >> 32) << 32
    var slot = Int(truncatingIfNeeded: hash) & mask
    while true {
      let content = slots[slot]
      if content == 0 { return -1 }
      if content & 0xFFFF_FFFF_0000_0000 == tag {
        let owner = Int(content & 0xFFFF_FFFF) - 1
        if Int(lengths[owner]) == length, ByteHash.equal(arena + Int(starts[owner]), token, length) { return Int32(owner) }
      }
      slot = (slot + 1) & mask
    }
  }

  /// The id of a token; nil for an unknown one.
  public func id(of token: UnsafeBufferPointer<UInt8>) -> Int? {
    guard let base = token.baseAddress else { return withUnsafePointer(to: UInt8(0)) { known(find($0, 0)) } }
    return known(find(base, token.count))
  }

  /// The id of a token; nil for an unknown one.
  public func id(of token: String) -> Int? {
    var token = token
    return token.withUTF8 { id(of: $0) }
  }

  private func known(_ id: Int32) -> Int? { id < 0 ? nil : Int(id) }

  /// The bytes of a token, valid as long as the vocabulary; nil where nobody has the id.
  public func bytes(of id: Int) -> UnsafeBufferPointer<UInt8>? {
    guard id >= 0 && id < idCount && lengths[id] >= 0 else { return nil }
    return UnsafeBufferPointer(start: arena + Int(starts[id]), count: Int(lengths[id]))
  }

  /// The token with an id; nil where nobody has it.
  public func token(of id: Int) -> String? { bytes(of: id).map { String(decoding: $0, as: UTF8.self) } }
}

/// A vocabulary or model that can't be: the description says which token or id is wrong.
public struct VocabularyError: Error, CustomStringConvertible, Sendable, Equatable {
  public let description: String
  public init(_ description: String) { self.description = description }
}
