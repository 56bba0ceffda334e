/// Trains byte-pair encoding: the most frequent pair of neighbours becomes a token, again and again.
///
/// Makes the same merges as `BpeTrainer` of the `tokenizers` library from the same text: of pairs that are equally frequent the one with the
/// smaller ids goes first, and a pair may come up again after another merge has made one of its tokens anew.
/// Counts are kept up to date word by word, and the next pair comes from a heap: a merge costs what it changes.
public struct BPETrainer: Sendable {
  /// Tokens wanted, special ones and the alphabet included. More come when these alone are more.
  public var vocabularySize: Int
  /// Rarer pairs are not merged.
  public var minimumFrequency: Int
  /// Get the first ids.
  public var specialTokens: [AddedToken]
  /// How many different characters are kept, the most frequent ones; nil keeps all. Others are left out of the words.
  public var alphabetLimit: Int?
  /// Characters that are kept in any case; for byte-level models ``byteAlphabet``.
  public var initialAlphabet: [Unicode.Scalar]
  /// Written before every token that doesn't begin a word.
  public var continuingSubwordPrefix: String?
  /// Written after every token that ends a word.
  public var endOfWordSuffix: String?
  /// Characters of the longest token; nil for no bound.
  public var maximumTokenLength: Int?
  /// The token for characters that aren't in the alphabet. It should be among the special tokens.
  public var unknownToken: String?
  /// Characters that aren't in the alphabet are spelled by 256 tokens for bytes, which are added after the special tokens.
  public var hasByteFallback: Bool

  /// The 256 characters that stand for bytes in byte-level models.
  public static var byteAlphabet: [Unicode.Scalar] { ByteAlphabet.scalars.compactMap { Unicode.Scalar($0) } }

  public init(
    vocabularySize: Int = 30_000, minimumFrequency: Int = 0, specialTokens: [AddedToken] = [], alphabetLimit: Int? = nil,
    initialAlphabet: [Unicode.Scalar] = [], continuingSubwordPrefix: String? = nil, endOfWordSuffix: String? = nil,
    maximumTokenLength: Int? = nil, unknownToken: String? = nil, hasByteFallback: Bool = false
  ) {
    self.vocabularySize = vocabularySize
    self.minimumFrequency = minimumFrequency
    self.specialTokens = specialTokens
    self.alphabetLimit = alphabetLimit
    self.initialAlphabet = initialAlphabet
    self.continuingSubwordPrefix = continuingSubwordPrefix
    self.endOfWordSuffix = endOfWordSuffix
    self.maximumTokenLength = maximumTokenLength
    self.unknownToken = unknownToken
    self.hasByteFallback = hasByteFallback
  }

  /// A tokenizer with the corpus's normalizer and pre-tokenizer and what was learnt.
  ///
  /// Throws ``ConfigurationError`` for sizes that can't be, and what `progress` throws (which stops the training).
  public func train(
    _ corpus: TokenizerCorpus, decoder: Decoder? = nil, postProcessor: PostProcessor? = nil,
    progress: ((TokenizerTrainingProgress) throws -> Void)? = nil
  ) throws -> Tokenizer {
    let learnt = try learn(corpus, progress)
    var builder = Vocabulary.Builder()
    for (id, token) in learnt.tokens.enumerated() { try append(token, id, to: &builder) }
    var list = BPE.MergeList()
    for merge in learnt.merges { list.append(left: merge.left, right: merge.right, result: merge.result) }
    let model = BPE(
      vocabulary: try Vocabulary(builder), merges: list, unknownToken: unknownToken, hasByteFallback: hasByteFallback,
      continuingSubwordPrefix: continuingSubwordPrefix, endOfWordSuffix: endOfWordSuffix)
    return try Tokenizer(
      model: .bpe(model), normalizer: corpus.normalizer, preTokenizer: corpus.preTokenizer, postProcessor: postProcessor, decoder: decoder,
      addedTokens: specialTokens)
  }

  private func append(_ token: [UInt8], _ id: Int, to builder: inout Vocabulary.Builder) throws(VocabularyError) {
    // `withUnsafeBufferPointer` can't pass a typed error on.
    try builder.append(String(decoding: token, as: UTF8.self), id: id)
  }

  struct Learnt {
    var tokens: [[UInt8]] = []
    var ids: [[UInt8]: Int32] = [:]
    var merges: [(left: Int, right: Int, result: Int)] = []

    mutating func id(of token: [UInt8]) -> Int32 {
      if let id = ids[token] { return id }
      let id = Int32(tokens.count)
      tokens.append(token)
      ids[token] = id
      return id
    }
  }

  func learn(_ corpus: TokenizerCorpus, _ progress: ((TokenizerTrainingProgress) throws -> Void)?) throws -> Learnt {
    guard (1...(Vocabulary.maximumId + 1)).contains(vocabularySize) else {
      throw ConfigurationError("a vocabulary of \(vocabularySize) tokens can't be; 1 to \(Vocabulary.maximumId + 1) are possible")
    }
    if let maximumTokenLength, maximumTokenLength < 1 {
      throw ConfigurationError("tokens of at most \(maximumTokenLength) characters can't be; give 1 or more")
    }
    var learnt = Learnt()
    for token in specialTokens where !token.content.isEmpty { _ = learnt.id(of: Array(token.content.utf8)) }
    if hasByteFallback { for byte in 0..<256 { _ = learnt.id(of: Array(ByteFallback.spelling(UInt8(byte)).utf8)) } }
    let alphabet = alphabet(corpus.words)
    for scalar in alphabet { _ = learnt.id(of: Self.utf8(scalar)) }
    var words = MergedWords(corpus.words.count)
    spell(corpus.words, Set(alphabet), &learnt, &words)
    try merge(&words, &learnt, progress)
    return learnt
  }

  private static func utf8(_ scalar: UInt32) -> [UInt8] { Array(String(Unicode.Scalar(scalar) ?? "\u{FFFD}").utf8) }

  /// The characters that are kept, in order.
  private func alphabet(_ words: WordCounts) -> [UInt32] {
    var counts: [UInt32: Int] = [:]
    for index in words.entries.indices {
      for scalar in words.scalars(index) { counts[scalar, default: 0] += words.entries[index].count }
    }
    for scalar in initialAlphabet { counts[scalar.value] = .max }
    var kept = Array(counts.keys)
    if let alphabetLimit, kept.count > alphabetLimit {
      kept.sort { (counts[$0]!, $1) > (counts[$1]!, $0) }
      kept.removeLast(kept.count - max(0, alphabetLimit))
    }
    return kept.sorted()
  }

  /// Cuts the words into the tokens of their characters.
  private func spell(_ counts: WordCounts, _ alphabet: Set<UInt32>, _ learnt: inout Learnt, _ words: inout MergedWords) {
    let prefix = Array((continuingSubwordPrefix ?? "").utf8)
    let suffix = Array((endOfWordSuffix ?? "").utf8)
    var plain: [UInt32: Int32] = [:]
    for scalar in alphabet { plain[scalar] = learnt.ids[Self.utf8(scalar)] }
    // With a prefix or suffix new tokens arise here, and their order must not depend on chance.
    let order = prefix.isEmpty && suffix.isEmpty ? Array(counts.entries.indices) : counts.sorted
    for index in order {
      let scalars = counts.scalars(index)
      words.begin(count: counts.entries[index].count)
      for (place, scalar) in scalars.enumerated() {
        guard let id = plain[scalar] else { continue }
        if (place == 0 || prefix.isEmpty) && (place < scalars.count - 1 || suffix.isEmpty) {
          words.append(id)
        } else {
          var token = Self.utf8(scalar)
          if place > 0 { token = prefix + token }
          if place == scalars.count - 1 { token += suffix }
          words.append(learnt.id(of: token))
        }
      }
    }
  }

  // MARK: Merging

  private func merge(_ words: inout MergedWords, _ learnt: inout Learnt, _ progress: ((TokenizerTrainingProgress) throws -> Void)?) throws {
    let limit = maximumTokenLength ?? .max
    let prefix = Array((continuingSubwordPrefix ?? "").utf8)
    var pairs = PairCounts()
    for word in 0..<words.count {
      words.forEachPair(word) { pair in pairs.add(pair, words.counts[word], in: Int32(word)) }
      if word & 0xFFFF == 0xFFFF { try progress?(.init(stage: .counting, done: word, total: words.count)) }
    }
    pairs.queuePending()
    // A pair that is merged a second time keeps its later rank, as in the library.
    var ranks: [UInt64: Int] = [:]
    var made: [(pair: UInt64, result: Int32)] = []
    let first = learnt.tokens.count
    while learnt.tokens.count < vocabularySize, let top = pairs.pop() {
      if top.count < 1 || top.count < minimumFrequency { break }
      let left = Int32(truncatingIfNeeded: top.pair >> 32)
      let right = Int32(truncatingIfNeeded: top.pair & 0xFFFF_FFFF)
      var tail = learnt.tokens[Int(right)][...]
      if !prefix.isEmpty, tail.starts(with: prefix) { tail = tail.dropFirst(prefix.count) }
      let result = learnt.id(of: learnt.tokens[Int(left)] + tail)
      ranks[top.pair] = made.count
      made.append((top.pair, result))
      for word in top.words {
        words.merge(Int(word), left, right, into: result, limit: limit) { pair, change in
          let count = change * words.counts[Int(word)]
          if change > 0 { pairs.add(pair, count, in: word) } else { pairs.subtract(pair, -count) }
        }
      }
      pairs.queuePending()
      if made.count & 0xFF == 0 {
        try progress?(.init(stage: .merging, done: learnt.tokens.count - first, total: vocabularySize - first))
      }
    }
    for (rank, merge) in made.enumerated() where ranks[merge.pair] == rank {
      learnt.merges.append((Int(merge.pair >> 32), Int(merge.pair & 0xFFFF_FFFF), Int(merge.result)))
    }
    try progress?(.init(stage: .merging, done: learnt.tokens.count - first, total: learnt.tokens.count - first))
  }
}

/// The words of a corpus as tokens, merged in place.
struct MergedWords: ~Copyable {
  private(set) var counts: [Int] = []
  private var starts: [Int] = []
  private var lengths: [Int32] = []
  private var tokens = RawBuffer<Int32>(capacity: 1 << 16)
  private var widths = RawBuffer<Int32>(capacity: 1 << 16)  // characters of each token

  init(_ capacity: Int) {
    counts.reserveCapacity(capacity)
    starts.reserveCapacity(capacity)
    lengths.reserveCapacity(capacity)
  }

  var count: Int { counts.count }

  mutating func begin(count: Int) {
    counts.append(count)
    starts.append(tokens.count)
    lengths.append(0)
  }

  mutating func append(_ token: Int32) {
    tokens.append(token)
    widths.append(1)
    lengths[lengths.count - 1] += 1
  }

  func forEachPair(_ word: Int, _ body: (UInt64) -> Void) {
    let length = Int(lengths[word])
    let base = tokens.base + starts[word]
    for i in 0..<max(0, length - 1) { body(Self.pair(base[i], base[i + 1])) }
  }

  @inline(__always)
  static func pair(_ left: Int32, _ right: Int32) -> UInt64 { UInt64(UInt32(bitPattern: left)) << 32 | UInt64(UInt32(bitPattern: right)) }

  /// Merges a pair from left to right, and says which pairs came and went. A pair that would be longer than `limit` characters is not
  /// announced, so it is never merged.
  func merge(_ word: Int, _ left: Int32, _ right: Int32, into result: Int32, limit: Int, _ change: (UInt64, Int) -> Void) {
    let length = Int(lengths[word])
    let base = tokens.base + starts[word]
    let width = widths.base + starts[word]
    var written = 0
    var i = 0
    while i < length {
      if base[i] != left || i + 1 == length || base[i + 1] != right {
        base[written] = base[i]
        width[written] = width[i]
        written += 1
        i += 1
        continue
      }
      let merged = width[i] + width[i + 1]
      if written > 0 {
        change(Self.pair(base[written - 1], left), -1)
        if Int(width[written - 1] + merged) < limit { change(Self.pair(base[written - 1], result), 1) }
      }
      if i + 2 < length {
        change(Self.pair(right, base[i + 2]), -1)
        if Int(width[i + 2] + merged) < limit { change(Self.pair(result, base[i + 2]), 1) }
      }
      base[written] = result
      width[written] = merged
      written += 1
      i += 2
    }
    setLength(word, written)
  }

  private func setLength(_ word: Int, _ length: Int) {
    lengths.withUnsafeBufferPointer { UnsafeMutablePointer(mutating: $0.baseAddress!)[word] = Int32(length) }
  }
}

/// How often each pair occurs, and a heap of pairs with the words to change.
struct PairCounts {
  private var slots: [Int32]  // index + 1; 0 is free
  private var pairs: [UInt64] = []
  private var counts: [Int] = []
  /// The words where a pair has come up since it was last queued.
  private var words: [[Int32]] = []
  private var pending: [Int32] = []
  private var heap: [Entry] = []

  private struct Entry {
    var count: Int
    var pair: UInt64
    var index: Int32
    var words: [Int32]

    /// Whether it is merged before another: the more frequent, then the one with the smaller ids.
    @inline(__always)
    func precedes(_ other: Entry) -> Bool { count != other.count ? count > other.count : pair < other.pair }
  }

  init() { slots = [Int32](repeating: 0, count: 1 << 12) }

  private mutating func index(_ pair: UInt64) -> Int {
    var slot = Int(truncatingIfNeeded: (pair &* 0x9E37_79B9_7F4A_7C15) >> 20) & (slots.count - 1)
    while slots[slot] != 0 {
      let index = Int(slots[slot]) - 1
      if pairs[index] == pair { return index }
      slot = (slot + 1) & (slots.count - 1)
    }
    pairs.append(pair)
    counts.append(0)
    words.append([])
    slots[slot] = Int32(pairs.count)
    if pairs.count * 2 > slots.count {
      slots = [Int32](repeating: 0, count: slots.count * 2)
      for (index, pair) in pairs.enumerated() {
        var slot = Int(truncatingIfNeeded: (pair &* 0x9E37_79B9_7F4A_7C15) >> 20) & (slots.count - 1)
        while slots[slot] != 0 { slot = (slot + 1) & (slots.count - 1) }
        slots[slot] = Int32(index + 1)
      }
    }
    return pairs.count - 1
  }

  mutating func add(_ pair: UInt64, _ count: Int, in word: Int32) {
    let index = index(pair)
    counts[index] += count
    if words[index].isEmpty { pending.append(Int32(index)) }
    // Words come one after the other.
    if words[index].last != word { words[index].append(word) }
  }

  mutating func subtract(_ pair: UInt64, _ count: Int) { counts[index(pair)] -= count }

  /// Puts the pairs that have come up since the last call on the heap.
  mutating func queuePending() {
    for index in pending {
      let place = Int(index)
      if counts[place] > 0 { push(Entry(count: counts[place], pair: pairs[place], index: index, words: words[place])) }
      words[place] = []
    }
    pending.removeAll(keepingCapacity: true)
  }

  /// The pair to merge next, with its count and the words where it was queued for.
  mutating func pop() -> (pair: UInt64, count: Int, words: [Int32])? {
    while !heap.isEmpty {
      let now = max(0, counts[Int(heap[0].index)])
      if heap[0].count != now {
        // Counts in the heap are only too old: put it in its place.
        heap[0].count = now
        sink(0)
        continue
      }
      let top = heap[0]
      let last = heap.removeLast()
      if !heap.isEmpty {
        heap[0] = last
        sink(0)
      }
      return (top.pair, top.count, top.words)
    }
    return nil
  }

  private mutating func push(_ entry: Entry) {
    heap.append(entry)
    var place = heap.count - 1
    while place > 0 {
      let parent = (place - 1) >> 1
      if !heap[place].precedes(heap[parent]) { break }
      heap.swapAt(place, parent)
      place = parent
    }
  }

  private mutating func sink(_ start: Int) {
    var place = start
    while true {
      var child = 2 * place + 1
      if child >= heap.count { break }
      if child + 1 < heap.count, heap[child + 1].precedes(heap[child]) { child += 1 }
      if !heap[child].precedes(heap[place]) { break }
      heap.swapAt(place, child)
      place = child
    }
  }
}
