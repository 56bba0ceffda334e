import Foundation

/// How far training is.
public struct TokenizerTrainingProgress: Sendable {
  public enum Stage: String, Sendable { case reading, seeding, counting, merging, estimating, pruning }
  public let stage: Stage
  /// Bytes read, merges made, tokens left: what the stage counts.
  public let done: Int
  /// nil where the end isn't known.
  public let total: Int?
}

/// The different words of a training text and how often each occurs: all that training needs of it.
///
/// A text goes through a normalizer and a pre-tokenizer, and their pieces are counted, so that memory grows with the number of
/// different words and not with the text.
public final class TokenizerCorpus {
  /// Bounds of what is kept.
  public struct Limits: Sendable {
    /// Different words.
    public var words: Int
    /// Bytes of different words.
    public var bytes: Int
    /// Bytes of one line.
    public var lineBytes: Int
    public init(words: Int = 1 << 26, bytes: Int = 1 << 31 - 1, lineBytes: Int = 1 << 28) {
      self.words = words
      self.bytes = bytes
      self.lineBytes = lineBytes
    }
  }

  let normalizer: Normalizer?
  let preTokenizer: PreTokenizer?
  private let limits: Limits
  private let cutter: Tokenizer
  private let workspace = Workspace()
  let words = WordCounts()
  /// Bytes of text seen so far.
  public private(set) var byteCount = 0

  /// Throws ``VocabularyError`` never in practice: an empty model can always be.
  public init(normalizer: Normalizer? = nil, preTokenizer: PreTokenizer? = nil, limits: Limits = Limits()) throws {
    self.normalizer = normalizer
    self.preTokenizer = preTokenizer
    self.limits = limits
    let empty = try Vocabulary([])
    cutter = try Tokenizer(
      model: .wordLevel(WordLevel(vocabulary: empty, unknownToken: "")), normalizer: normalizer, preTokenizer: preTokenizer)
  }

  /// How many different words there are.
  public var wordCount: Int { words.count }

  /// Counts the words of a text. Throws ``ConfigurationError`` when a limit is reached.
  public func add(_ text: String) throws {
    var text = text
    try text.withUTF8 { try add(valid: $0) }
  }

  private func add(valid text: UnsafeBufferPointer<UInt8>) throws {
    byteCount += text.count
    let words = words
    try workspace.forEachPiece(of: text, cutter.core) { bytes, count in words.add(bytes, count) }
    if words.count > limits.words || words.byteCount > limits.bytes {
      throw ConfigurationError(
        "the text has more than \(limits.words) different words or \(limits.bytes) bytes of them: split it into shorter pieces with a pre-tokenizer, or raise the limit"
      )
    }
  }

  /// Counts the words of texts, one after the other. `progress` may throw to stop.
  public func add(contentsOf texts: some Sequence<String>, progress: ((TokenizerTrainingProgress) throws -> Void)? = nil) throws {
    for (index, text) in texts.enumerated() {
      try add(text)
      if index & 0xFFF == 0xFFF { try progress?(TokenizerTrainingProgress(stage: .reading, done: byteCount, total: nil)) }
    }
  }

  /// Counts the words of text files line by line, each line with its newline, as the `tokenizers` library reads them. Invalid UTF-8 becomes
  /// U+FFFD. Files are read in blocks.
  ///
  /// Throws ``FileError`` for files that can't be read and ``ConfigurationError`` when a limit is reached.
  public func add(files: [String], progress: ((TokenizerTrainingProgress) throws -> Void)? = nil) throws {
    var total = 0
    for file in files {
      guard let size = (try? FileManager.default.attributesOfItem(atPath: file))?[.size] as? Int else {
        throw FileError(file, "there is no such file, or it can't be read")
      }
      total += size
    }
    var done = 0
    for file in files {
      guard let handle = FileHandle(forReadingAtPath: file) else { throw FileError(file, "there is no such file, or it can't be read") }
      defer { try? handle.close() }
      var rest = Data()
      while true {
        let block: Data
        do { block = try handle.read(upToCount: 1 << 20) ?? Data() } catch {
          throw FileError(file, "reading stopped after \(done) bytes (\(error.localizedDescription))")
        }
        if block.isEmpty { break }
        done += block.count
        rest.append(block)
        if let end = rest.lastIndex(of: 0x0A) {
          try add(lines: rest[rest.startIndex...end])
          rest = Data(rest[(end + 1)...])
        } else if rest.count > limits.lineBytes {
          throw FileError(file, "a line has more than \(limits.lineBytes) bytes")
        }
        try progress?(TokenizerTrainingProgress(stage: .reading, done: done, total: total))
      }
      if !rest.isEmpty { try add(lines: rest) }
    }
  }

  private func add(lines data: Data) throws {
    try data.withUnsafeBytes { raw in
      let bytes = raw.bindMemory(to: UInt8.self)
      var start = 0
      while start < bytes.count {
        let found = memchr(bytes.baseAddress! + start, 0x0A, bytes.count - start)
        let end = found.map { UnsafeRawPointer(bytes.baseAddress!).distance(to: UnsafeRawPointer($0)) + 1 } ?? bytes.count
        let line = UnsafeBufferPointer(rebasing: bytes[start..<end])
        if UTF8Text.isValid(line.baseAddress!, line.count) {
          try add(valid: line)
        } else {
          var repaired = String(decoding: line, as: UTF8.self)
          try repaired.withUTF8 { try add(valid: $0) }
        }
        start = end
      }
    }
  }
}

/// Counts of byte strings.
final class WordCounts {
  struct Entry {
    var start: Int
    var length: Int32
    var hash: UInt32
    var count: Int
  }
  private var arena = RawBuffer<UInt8>(capacity: 1 << 16)
  private(set) var entries: [Entry] = []
  private var slots = [Int32](repeating: 0, count: 1 << 12)  // entry + 1; 0 is free

  var count: Int { entries.count }
  var byteCount: Int { arena.count }

  func add(_ bytes: UnsafePointer<UInt8>, _ length: Int, times: Int = 1) {
    if length == 0 { return }
    let hash = UInt32(truncatingIfNeeded: ByteHash.hash(bytes, length, seed: ByteHash.seed) >> 16)
    var slot = Int(hash) & (slots.count - 1)
    while slots[slot] != 0 {
      let entry = Int(slots[slot]) - 1
      if entries[entry].hash == hash, Int(entries[entry].length) == length,
        ByteHash.equal(arena.base + entries[entry].start, bytes, length)
      {
        entries[entry].count += times
        return
      }
      slot = (slot + 1) & (slots.count - 1)
    }
    entries.append(Entry(start: arena.count, length: Int32(length), hash: hash, count: times))
    arena.append(bytes, count: length)
    slots[slot] = Int32(entries.count)
    if entries.count * 2 > slots.count { grow() }
  }

  private func grow() {
    slots = [Int32](repeating: 0, count: slots.count * 2)
    for (index, entry) in entries.enumerated() {
      var slot = Int(entry.hash) & (slots.count - 1)
      while slots[slot] != 0 { slot = (slot + 1) & (slots.count - 1) }
      slots[slot] = Int32(index + 1)
    }
  }

  func bytes(_ index: Int) -> UnsafeBufferPointer<UInt8> {
    UnsafeBufferPointer(start: arena.base + entries[index].start, count: Int(entries[index].length))
  }

  func scalars(_ index: Int) -> [UInt32] {
    let bytes = bytes(index)
    var result: [UInt32] = []
    result.reserveCapacity(bytes.count)
    var position = 0
    while position < bytes.count {
      let (value, length) = UTF8Text.scalar(bytes.baseAddress! + position)
      result.append(value)
      position += length
    }
    return result
  }

  /// The entries in the order of their bytes: what depends on order must not depend on the process's hash seed.
  var sorted: [Int] {
    entries.indices.sorted { bytes($0).lexicographicallyPrecedes(bytes($1)) }
  }
}
