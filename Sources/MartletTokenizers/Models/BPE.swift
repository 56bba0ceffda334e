/// Byte-pair encoding: a piece is cut into characters (or bytes), then the neighbours whose merge ranks first are merged until none can be.
///
/// Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (2016). Long pieces use a heap of the possible merges:
/// O(n log n) however the text is made.
public final class BPE: @unchecked Sendable {
  public let vocabulary: Vocabulary
  /// The token for what the vocabulary can't spell; without it such characters are dropped.
  public let unknownToken: String?
  /// Neighbouring unknown characters give one unknown token.
  public let fusesUnknown: Bool
  /// Unknown characters are spelled by the tokens `<0x00>` … `<0xFF>` where the vocabulary has them.
  public let hasByteFallback: Bool
  /// A piece that is a token is taken as it is, whatever the merges say.
  public let ignoresMerges: Bool
  /// Written before every character but the first of a piece.
  public let continuingSubwordPrefix: String?
  /// Written after the last character of a piece.
  public let endOfWordSuffix: String?
  /// How many merges there are.
  public let mergeCount: Int

  struct Merge {
    var pair: UInt64  // left id in the upper half; `free` where the slot is empty
    var rank: UInt32
    var result: Int32
  }
  static let free = UInt64.max
  static let noRank = UInt32.max

  private let table: UnsafeMutablePointer<Merge>
  private let shift: UInt64
  private let mask: Int
  private let unknownId: Int32  // -1: none, -2: named but not in the vocabulary
  private let byteTokens: [Int32]  // of <0x..>, -1 where missing
  private let byteSymbols: [Int32]  // of the byte-level alphabet's letters, -1 where missing
  private let prefix: [UInt8]
  private let suffix: [UInt8]

  /// The merges in the order of their rank, as ids.
  public struct MergeList: ~Copyable {
    var pairs = RawBuffer<UInt64>(capacity: 256)
    var results = RawBuffer<Int32>(capacity: 256)
    public init() {}
    public var count: Int { pairs.count }
    public mutating func append(left: Int, right: Int, result: Int) {
      pairs.append(UInt64(left) << 32 | UInt64(right))
      results.append(Int32(result))
    }
  }

  public init(
    vocabulary: Vocabulary, merges: consuming MergeList, unknownToken: String? = nil, fusesUnknown: Bool = false,
    hasByteFallback: Bool = false, ignoresMerges: Bool = false, continuingSubwordPrefix: String? = nil, endOfWordSuffix: String? = nil
  ) {
    self.vocabulary = vocabulary
    self.unknownToken = unknownToken
    self.fusesUnknown = fusesUnknown
    self.hasByteFallback = hasByteFallback
    self.ignoresMerges = ignoresMerges
    self.continuingSubwordPrefix = continuingSubwordPrefix
    self.endOfWordSuffix = endOfWordSuffix
    prefix = Array((continuingSubwordPrefix ?? "").utf8)
    suffix = Array((endOfWordSuffix ?? "").utf8)
    unknownId = unknownToken.map { Int32(vocabulary.id(of: $0) ?? -2) } ?? -1
    byteTokens = (0..<256).map { Int32(vocabulary.id(of: ByteFallback.spelling(UInt8($0))) ?? -1) }
    byteSymbols = (0..<256).map { byte in
      ByteAlphabet.spelling(UInt8(byte)).withUnsafeBufferPointer { Int32(vocabulary.id(of: $0) ?? -1) }
    }
    mergeCount = merges.count
    var bits: UInt64 = 4
    while 1 << bits < merges.count * 2 { bits += 1 }
    shift = 64 - bits
    mask = 1 << bits - 1
    table = .allocate(capacity: mask + 1)
    table.update(repeating: Merge(pair: Self.free, rank: Self.noRank, result: -1), count: mask + 1)
    for rank in 0..<merges.count {
      let pair = merges.pairs[rank]
      var slot = Int((pair &* 0x9E37_79B9_7F4A_7C15) >> shift)
      while table[slot].pair != Self.free && table[slot].pair != pair { slot = (slot + 1) & mask }
      // The last of equal merges counts.
      table[slot] = Merge(pair: pair, rank: UInt32(rank), result: merges.results[rank])
    }
  }

  deinit { table.deallocate() }

  /// Whether pieces may be given as raw bytes instead of the letters of the byte-level alphabet, with the same result.
  var readsRawBytes: Bool { prefix.isEmpty && suffix.isEmpty && byteSymbols.allSatisfy { $0 >= 0 } }

  @inline(__always)
  private func merge(_ left: Int32, _ right: Int32) -> Merge {
    let pair = UInt64(UInt32(bitPattern: left)) << 32 | UInt64(UInt32(bitPattern: right))
    var slot = Int((pair &* 0x9E37_79B9_7F4A_7C15) >> shift)
    while true {
      let entry = table[slot]
      if entry.pair == pair || entry.pair == Self.free { return entry }
      slot = (slot + 1) & mask
    }
  }

  /// The merges in the order of their rank, as pairs of ids with the id they make.
  public var merges: [(left: Int, right: Int, result: Int)] {
    var used: [Merge] = []
    for slot in 0...mask where table[slot].pair != Self.free { used.append(table[slot]) }
    used.sort { $0.rank < $1.rank }
    return used.map { entry in (left: Int(entry.pair >> 32), right: Int(entry.pair & 0xFFFF_FFFF), result: Int(entry.result)) }
  }

  // MARK: Pieces to tokens

  func tokenize(
    _ piece: UnsafePointer<UInt8>, _ count: Int, isRaw: Bool, into sink: inout TokenSink, _ scratch: inout ModelScratch
  ) throws {
    if count == 0 { return }
    if ignoresMerges {
      let id: Int32
      if isRaw {
        scratch.spelling.count = 0
        for i in 0..<count { ByteAlphabet.append(piece[i], to: &scratch.spelling) }
        id = vocabulary.find(scratch.spelling.base, scratch.spelling.count)
      } else {
        id = vocabulary.find(piece, count)
      }
      if id >= 0 {
        sink.append(id, 0, count)
        return
      }
    }
    scratch.symbols.count = 0
    if isRaw {
      scratch.symbols.reserve(count)
      for i in 0..<count { scratch.symbols.append(ModelScratch.Symbol(id: byteSymbols[Int(piece[i])], length: 1)) }
    } else {
      try spell(piece, count, &scratch)
    }
    if scratch.symbols.count > 40 { mergeLong(&scratch) } else { mergeShort(&scratch) }
    var position = 0
    for i in 0..<scratch.symbols.count {
      let symbol = scratch.symbols[i]
      if symbol.length < 0 { continue }
      sink.append(symbol.id, position, position + Int(symbol.length))
      position += Int(symbol.length)
    }
  }

  /// Cuts the piece into the tokens of its characters.
  private func spell(_ piece: UnsafePointer<UInt8>, _ count: Int, _ scratch: inout ModelScratch) throws {
    var position = 0
    var unknownLength: Int32 = 0  // of unknown characters not yet written
    while position < count {
      let length = UTF8Text.length(piece[position])
      let end = min(position + length, count)
      var id: Int32
      let isLast = end == count
      if (position > 0 && !prefix.isEmpty) || (isLast && !suffix.isEmpty) {
        scratch.spelling.count = 0
        if position > 0 { for byte in prefix { scratch.spelling.append(byte) } }
        scratch.spelling.append(piece + position, count: end - position)
        if isLast { for byte in suffix { scratch.spelling.append(byte) } }
        id = vocabulary.find(scratch.spelling.base, scratch.spelling.count)
      } else {
        scratch.spelling.count = 0
        id = vocabulary.find(piece + position, end - position)
      }
      if id >= 0 {
        if unknownLength > 0 {
          scratch.symbols.append(ModelScratch.Symbol(id: unknownId, length: unknownLength))
          unknownLength = 0
        }
        scratch.symbols.append(ModelScratch.Symbol(id: id, length: Int32(end - position)))
        position = end
        continue
      }
      if hasByteFallback {
        if scratch.spelling.count == 0 { scratch.spelling.append(piece + position, count: end - position) }
        var isSpelled = true
        for i in 0..<scratch.spelling.count where byteTokens[Int(scratch.spelling[i])] < 0 { isSpelled = false }
        if isSpelled {
          for i in 0..<scratch.spelling.count {
            scratch.symbols.append(ModelScratch.Symbol(id: byteTokens[Int(scratch.spelling[i])], length: 1))
          }
          position = end
          continue
        }
      }
      id = unknownId
      if id == -2 {
        throw TokenizationError("the unknown token \"\(unknownToken ?? "")\" is needed, and isn't in the vocabulary")
      }
      if id >= 0 {
        if unknownLength > 0 && !fusesUnknown {
          scratch.symbols.append(ModelScratch.Symbol(id: unknownId, length: unknownLength))
          unknownLength = 0
        }
        unknownLength += Int32(end - position)
      }
      position = end
    }
    if unknownLength > 0 { scratch.symbols.append(ModelScratch.Symbol(id: unknownId, length: unknownLength)) }
  }

  /// A scan for the best merge at every step: quadratic, and the fastest for words.
  private func mergeShort(_ scratch: inout ModelScratch) {
    var count = scratch.symbols.count
    if count < 2 { return }
    scratch.merges.count = 0
    scratch.merges.reserve(count)
    let symbols = scratch.symbols.base
    let merges = scratch.merges.base  // merges[i]: of symbols i and i + 1
    for i in 0..<(count - 1) {
      let entry = merge(symbols[i].id, symbols[i + 1].id)
      merges[i] = ModelScratch.Merge(rank: entry.rank, result: entry.result)
    }
    while count > 1 {
      var best = 0
      var rank = merges[0].rank
      for i in 1..<max(count - 1, 1) where merges[i].rank < rank {
        rank = merges[i].rank
        best = i
      }
      if rank == Self.noRank { break }
      symbols[best] = ModelScratch.Symbol(id: merges[best].result, length: symbols[best].length + symbols[best + 1].length)
      count -= 1
      for i in (best + 1)..<max(count, best + 1) { symbols[i] = symbols[i + 1] }
      for i in (best + 1)..<max(count - 1, best + 1) { merges[i] = merges[i + 1] }
      if best > 0 {
        let entry = merge(symbols[best - 1].id, symbols[best].id)
        merges[best - 1] = ModelScratch.Merge(rank: entry.rank, result: entry.result)
      }
      if best < count - 1 {
        let entry = merge(symbols[best].id, symbols[best + 1].id)
        merges[best] = ModelScratch.Merge(rank: entry.rank, result: entry.result)
      }
    }
    scratch.symbols.count = count
  }

  /// A heap of possible merges by rank, then place. An entry is stale when the pair at its place has another rank by now.
  private func mergeLong(_ scratch: inout ModelScratch) {
    let count = scratch.symbols.count
    scratch.merges.count = 0
    scratch.merges.reserve(count)
    scratch.links.count = 0
    scratch.links.reserve(count)
    scratch.heap.removeAll(keeping: 1 << 16)
    let symbols = scratch.symbols.base
    let merges = scratch.merges.base
    let links = scratch.links.base
    for i in 0..<count {
      links[i] = ModelScratch.Link(previous: Int32(i - 1), next: Int32(i + 1))
      guard i + 1 < count else {
        merges[i] = ModelScratch.Merge(rank: Self.noRank, result: -1)
        break
      }
      let entry = merge(symbols[i].id, symbols[i + 1].id)
      merges[i] = ModelScratch.Merge(rank: entry.rank, result: entry.result)
      if entry.rank != Self.noRank { MinimumHeap.push(UInt64(entry.rank) << 32 | UInt64(i), &scratch.heap) }
    }
    while let top = MinimumHeap.pop(&scratch.heap) {
      let place = Int(top & 0xFFFF_FFFF)
      if symbols[place].length < 0 || merges[place].rank != UInt32(top >> 32) { continue }
      let next = Int(links[place].next)
      symbols[place] = ModelScratch.Symbol(id: merges[place].result, length: symbols[place].length + symbols[next].length)
      symbols[next].length = -1
      let after = Int(links[next].next)
      links[place].next = Int32(after)
      if after < count {
        links[after].previous = Int32(place)
        let entry = merge(symbols[place].id, symbols[after].id)
        merges[place] = ModelScratch.Merge(rank: entry.rank, result: entry.result)
        if entry.rank != Self.noRank { MinimumHeap.push(UInt64(entry.rank) << 32 | UInt64(place), &scratch.heap) }
      } else {
        merges[place] = ModelScratch.Merge(rank: Self.noRank, result: -1)
      }
      let previous = Int(links[place].previous)
      if previous >= 0 {
        let entry = merge(symbols[previous].id, symbols[place].id)
        merges[previous] = ModelScratch.Merge(rank: entry.rank, result: entry.result)
        if entry.rank != Self.noRank { MinimumHeap.push(UInt64(entry.rank) << 32 | UInt64(previous), &scratch.heap) }
      }
    }
  }
}

/// A binary heap of integers, the smallest first.
enum MinimumHeap {
  @inline(__always)
  static func push(_ value: UInt64, _ heap: inout RawBuffer<UInt64>) {
    heap.append(value)
    let base = heap.base
    var place = heap.count - 1
    while place > 0 {
      let parent = (place - 1) >> 1
      if base[parent] <= value { break }
      base[place] = base[parent]
      place = parent
    }
    base[place] = value
  }

  @inline(__always)
  static func pop(_ heap: inout RawBuffer<UInt64>) -> UInt64? {
    if heap.count == 0 { return nil }
    let base = heap.base
    let top = base[0]
    heap.count -= 1
    let count = heap.count
    if count == 0 { return top }
    let value = base[count]
    var place = 0
    while true {
      var child = 2 * place + 1
      if child >= count { break }
      if child + 1 < count && base[child + 1] < base[child] { child += 1 }
      if base[child] >= value { break }
      base[place] = base[child]
      place = child
    }
    base[place] = value
    return top
  }
}
