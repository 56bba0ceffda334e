/// SentencePiece's own models, as its library runs them.
///
/// They differ from ``BPE`` and ``Unigram`` (which follow the `tokenizers` library) in this: BPE merges by the score of the piece that
/// arises, so that pairs that make the same piece rank equal; merges may pass through unused pieces, which are taken apart again; user-defined
/// pieces are never merged (BPE) and win over all others (Unigram); Unigram's sums are in single precision.
public final class SentencePieceModel: Sendable {
  public enum Kind: String, Sendable { case unigram = "Unigram", bpe = "BPE" }

  enum PieceType: UInt8 { case normal, unknown, control, userDefined, unused, byte }

  public let kind: Kind
  public let vocabulary: Vocabulary
  public let scores: [Float]
  public let unknownId: Int
  public let hasByteFallback: Bool

  private let types: [PieceType]
  private let byteTokens: [Int32]
  /// Of normal, user-defined and unused pieces (Unigram).
  private let trie: ByteTrie?
  private let userDefined: ByteTrie?
  /// BPE: equal for equal scores, the best first.
  private let ranks: [UInt32]
  private let unknownScore: Float
  private let userDefinedScale: Float

  init(
    kind: Kind, vocabulary: Vocabulary, scores: [Float], types: [PieceType], unknownId: Int, hasByteFallback: Bool, userDefined: ByteTrie?
  ) throws(VocabularyError) {
    self.kind = kind
    self.vocabulary = vocabulary
    self.scores = scores
    self.types = types
    self.unknownId = unknownId
    self.hasByteFallback = hasByteFallback
    self.userDefined = userDefined
    byteTokens = (0..<256).map { Int32(vocabulary.id(of: ByteFallback.spelling(UInt8($0))) ?? -1) }
    let normal = scores.indices.lazy.filter { types[$0] == .normal }.map { scores[$0] }
    unknownScore = (normal.min() ?? .greatestFiniteMagnitude) - 10
    // The library starts its maximum at the smallest positive number.
    userDefinedScale = max(normal.max() ?? 0, .leastNormalMagnitude)
    switch kind {
    case .unigram:
      var builder = ByteTrie.Builder(expectedTokens: vocabulary.count)
      for (id, type) in types.enumerated() where type == .normal || type == .userDefined || type == .unused {
        try builder.insert(vocabulary.bytes(of: id)!, value: Int32(id))
      }
      trie = ByteTrie(builder)
      ranks = []
    case .bpe:
      trie = nil
      let order = scores.indices.sorted { scores[$0] > scores[$1] }
      var ranks = [UInt32](repeating: 0, count: scores.count)
      for (place, id) in order.enumerated() where place > 0 {
        let before = order[place - 1]
        ranks[id] = scores[id] == scores[before] ? ranks[before] : UInt32(place)
      }
      self.ranks = ranks
    }
  }

  func tokenize(_ piece: UnsafePointer<UInt8>, _ count: Int, into sink: inout TokenSink, _ scratch: inout ModelScratch) throws {
    if count == 0 { return }
    switch kind {
    case .unigram: cutUnigram(piece, count, &scratch)
    case .bpe: mergePieces(piece, count, &scratch)
    }
    var position = 0
    var unknownStart = -1
    for i in 0..<scratch.symbols.count {
      let symbol = scratch.symbols[i]
      if symbol.length < 0 { continue }
      let end = position + Int(symbol.length)
      if Int(symbol.id) != unknownId {
        if unknownStart >= 0 {
          sink.append(Int32(unknownId), unknownStart, position)
          unknownStart = -1
        }
        sink.append(symbol.id, position, end)
      } else if hasByteFallback {
        for place in position..<end { sink.append(byteTokens[Int(piece[place])], position, end) }
      } else if unknownStart < 0 {
        // Neighbouring unknown characters are one token.
        unknownStart = position
      }
      position = end
    }
    if unknownStart >= 0 { sink.append(Int32(unknownId), unknownStart, position) }
  }

  // MARK: Unigram

  /// The best way to cut the text, as symbols from left to right.
  private func cutUnigram(_ text: UnsafePointer<UInt8>, _ count: Int, _ scratch: inout ModelScratch) {
    guard let trie else { return }
    scratch.steps.count = 0
    scratch.steps.append(repeating: ModelScratch.Step(score: 0, start: -1, id: -1), count: count + 1)
    let steps = scratch.steps.base
    scores.withUnsafeBufferPointer { scores in
      types.withUnsafeBufferPointer { types in
        var position = 0
        while position < count {
          let here = Float(steps[position].score)
          let width = min(UTF8Text.length(text[position]), count - position)
          var hasSingle = false
          var node: UInt32 = 0
          var end = position
          while end < count {
            node = trie.step(node, text[end])
            if node == 0 { break }
            end += 1
            let id = trie.value(node)
            if id < 0 || types[Int(id)] == .unused { continue }
            let score =
              types[Int(id)] == .userDefined ? Float(end - position) * userDefinedScale - 0.1 : scores[Int(id)]
            let candidate = Double(score + here)
            if steps[end].start < 0 || candidate > steps[end].score {
              steps[end] = ModelScratch.Step(score: candidate, start: Int32(position), id: id)
            }
            if end - position == width { hasSingle = true }
          }
          if !hasSingle {
            let candidate = Double(unknownScore + here)
            let end = position + width
            if steps[end].start < 0 || candidate > steps[end].score {
              steps[end] = ModelScratch.Step(score: candidate, start: Int32(position), id: Int32(unknownId))
            }
          }
          position += width
        }
      }
    }
    scratch.symbols.count = 0
    var end = count
    while end > 0 {
      let step = steps[end]
      scratch.symbols.append(ModelScratch.Symbol(id: step.id, length: Int32(end) - step.start))
      end = Int(step.start)
    }
    let symbols = scratch.symbols.base
    var low = 0
    var high = scratch.symbols.count - 1
    while low < high {
      swap(&symbols[low], &symbols[high])
      low += 1
      high -= 1
    }
  }

  // MARK: BPE

  /// The id of a piece that merging can make, or -1.
  @inline(__always)
  private func mergeable(_ text: UnsafePointer<UInt8>, _ count: Int) -> Int32 {
    if count > vocabulary.longestToken { return -1 }
    let id = vocabulary.find(text, count)
    if id < 0 { return -1 }
    switch types[Int(id)] {
    case .normal, .userDefined, .unused: return id
    default: return -1
    }
  }

  /// Merges neighbours, the best score first and of equal ones the leftmost, until none makes a piece.
  private func mergePieces(_ text: UnsafePointer<UInt8>, _ count: Int, _ scratch: inout ModelScratch) {
    scratch.symbols.count = 0
    scratch.merges.count = 0
    scratch.links.count = 0
    scratch.steps.count = 0
    scratch.heap.removeAll(keeping: 1 << 16)
    // `steps[i].start` is where symbol i begins; `id` is 1 for a frozen one.
    var position = 0
    while position < count {
      var length = min(UTF8Text.length(text[position]), count - position)
      var isFrozen = false
      if let userDefined {
        let found = userDefined.longestPrefix(text + position, count - position)
        if found.length > 0 {
          length = found.length
          isFrozen = true
        }
      }
      scratch.steps.append(ModelScratch.Step(score: 0, start: Int32(position), id: isFrozen ? 1 : 0))
      scratch.symbols.append(ModelScratch.Symbol(id: -1, length: Int32(length)))
      position += length
    }
    let symbolCount = scratch.symbols.count
    scratch.merges.append(repeating: ModelScratch.Merge(rank: BPE.noRank, result: -1), count: symbolCount)
    scratch.links.reserve(symbolCount)
    scratch.links.count = symbolCount
    let symbols = scratch.symbols.base
    let links = scratch.links.base
    let merges = scratch.merges.base
    let steps = scratch.steps.base
    // How unused pieces arose: start and end of the piece, and where its halves meet.
    var splits: [UInt64: Int32] = [:]

    func consider(_ left: Int, _ right: Int, _ heap: inout RawBuffer<UInt64>) {
      merges[left] = ModelScratch.Merge(rank: BPE.noRank, result: -1)
      if left < 0 || right >= symbolCount || steps[left].id == 1 || steps[right].id == 1 { return }
      let start = Int(steps[left].start)
      let length = Int(symbols[left].length + symbols[right].length)
      let id = mergeable(text + start, length)
      if id < 0 { return }
      let rank = ranks[Int(id)]
      merges[left] = ModelScratch.Merge(rank: rank, result: id)
      MinimumHeap.push(UInt64(rank) << 32 | UInt64(left), &heap)
      if types[Int(id)] == .unused { splits[UInt64(start) << 32 | UInt64(length)] = symbols[left].length }
    }
    for i in 0..<symbolCount { links[i] = ModelScratch.Link(previous: Int32(i - 1), next: Int32(i + 1)) }
    for i in 0..<max(0, symbolCount - 1) { consider(i, i + 1, &scratch.heap) }
    while let top = MinimumHeap.pop(&scratch.heap) {
      let left = Int(top & 0xFFFF_FFFF)
      if symbols[left].length < 0 || merges[left].rank != UInt32(top >> 32) { continue }
      let right = Int(links[left].next)
      symbols[left] = ModelScratch.Symbol(id: merges[left].result, length: symbols[left].length + symbols[right].length)
      symbols[right].length = -1
      let after = Int(links[right].next)
      links[left].next = Int32(after)
      if after < symbolCount {
        links[after].previous = Int32(left)
        consider(left, after, &scratch.heap)
      } else {
        merges[left] = ModelScratch.Merge(rank: BPE.noRank, result: -1)
      }
      let previous = Int(links[left].previous)
      if previous >= 0 { consider(previous, left, &scratch.heap) }
    }
    resolve(text, splits, &scratch)
  }

  /// Gives the symbols that are left their ids and takes unused pieces apart.
  private func resolve(_ text: UnsafePointer<UInt8>, _ splits: [UInt64: Int32], _ scratch: inout ModelScratch) {
    let count = scratch.symbols.count
    var hasUnused = false
    for i in 0..<count where scratch.symbols[i].length >= 0 {
      if scratch.symbols[i].id < 0 {
        let id = vocabulary.find(text + Int(scratch.steps[i].start), Int(scratch.symbols[i].length))
        scratch.symbols[i].id = id < 0 ? Int32(unknownId) : id
      }
      if types[Int(scratch.symbols[i].id)] == .unused { hasUnused = true }
    }
    if !hasUnused { return }
    var result: [ModelScratch.Symbol] = []
    for i in 0..<count where scratch.symbols[i].length >= 0 {
      var open = [(start: scratch.steps[i].start, length: scratch.symbols[i].length)]
      while let part = open.popLast() {
        let id = vocabulary.find(text + Int(part.start), Int(part.length))
        if id >= 0, types[Int(id)] == .unused, let half = splits[UInt64(part.start) << 32 | UInt64(part.length)] {
          open.append((part.start + half, part.length - half))
          open.append((part.start, half))
        } else {
          result.append(ModelScratch.Symbol(id: id < 0 ? Int32(unknownId) : id, length: part.length))
        }
      }
    }
    scratch.symbols.count = 0
    for symbol in result { scratch.symbols.append(symbol) }
  }
}
