/// Unigram: of all ways to cut a piece into tokens the one with the largest sum of log-probabilities (Viterbi's algorithm).
///
/// Kudo, "Subword Regularization" (2018). Time is the length of the text times the longest token that fits at each place.
public final class Unigram: Sendable {
  public let vocabulary: Vocabulary
  /// The log-probability of every id.
  public let scores: [Double]
  public let unknownId: Int?
  /// Unknown characters are spelled by the tokens `<0x00>` … `<0xFF>` where the vocabulary has them all.
  public let hasByteFallback: Bool

  private let trie: ByteTrie
  private let unknownScore: Double
  private let byteTokens: [Int32]

  /// `scores` has a number for every id of the vocabulary. Throws ``VocabularyError`` otherwise, for an unknown token out of range and for
  /// scores that aren't numbers.
  public init(vocabulary: Vocabulary, scores: [Double], unknownId: Int?, hasByteFallback: Bool = false) throws(VocabularyError) {
    guard scores.count == vocabulary.idCount else {
      throw VocabularyError("there are \(scores.count) scores for \(vocabulary.idCount) tokens")
    }
    if let unknownId, unknownId < 0 || unknownId >= scores.count {
      throw VocabularyError("unk_id is \(unknownId), and there are \(scores.count) tokens")
    }
    if let bad = scores.firstIndex(where: { !$0.isFinite }) {
      throw VocabularyError("the score of the token \"\(vocabulary.token(of: bad) ?? "")\" is not a finite number")
    }
    self.vocabulary = vocabulary
    self.scores = scores
    self.unknownId = unknownId
    self.hasByteFallback = hasByteFallback
    unknownScore = (scores.min() ?? 0) - 10
    byteTokens = (0..<256).map { Int32(vocabulary.id(of: ByteFallback.spelling(UInt8($0))) ?? -1) }
    var builder = ByteTrie.Builder(expectedTokens: vocabulary.count)
    for id in 0..<vocabulary.idCount {
      guard let token = vocabulary.bytes(of: id), vocabulary.id(of: token) == id else { continue }
      try builder.insert(token, value: Int32(id))
    }
    trie = ByteTrie(builder)
  }

  func tokenize(_ piece: UnsafePointer<UInt8>, _ count: Int, into sink: inout TokenSink, _ scratch: inout ModelScratch) throws {
    if count == 0 { return }
    scratch.steps.count = 0
    scratch.steps.append(repeating: ModelScratch.Step(score: 0, start: -1, id: -1), count: count + 1)
    let steps = scratch.steps.base
    let unknown = Int32(unknownId ?? -1)
    try scores.withUnsafeBufferPointer { scores in
      var position = 0
      while position < count {
        let score = steps[position].score
        let width = min(UTF8Text.length(piece[position]), count - position)
        var hasSingle = false
        var node: UInt32 = 0
        var end = position
        while end < count {
          node = trie.step(node, piece[end])
          if node == 0 { break }
          end += 1
          let id = trie.value(node)
          if id < 0 { continue }
          let candidate = scores[Int(id)] + score
          if steps[end].start < 0 || candidate > steps[end].score {
            steps[end] = ModelScratch.Step(score: candidate, start: Int32(position), id: id)
          }
          if end - position == width { hasSingle = true }
        }
        if !hasSingle {
          let candidate = unknownScore + score
          let end = position + width
          if steps[end].start < 0 || candidate > steps[end].score {
            guard unknown >= 0 else {
              throw TokenizationError("the text has a character that no token spells, and the model has no unk_id")
            }
            steps[end] = ModelScratch.Step(score: candidate, start: Int32(position), id: unknown)
          }
        }
        position += width
      }
    }
    // The best path backwards, as links from each start to its end: `score` isn't needed any more.
    var end = count
    scratch.symbols.count = 0
    while end > 0 {
      let step = steps[end]
      let start = Int(step.start)
      if step.id == unknown, let last = scratch.symbols.count > 0 ? scratch.symbols[scratch.symbols.count - 1] : nil, last.id == unknown {
        // Neighbouring unknown characters are one token.
        scratch.symbols[scratch.symbols.count - 1].length += Int32(end - start)
      } else {
        scratch.symbols.append(ModelScratch.Symbol(id: step.id, length: Int32(end - start)))
      }
      end = start
    }
    var position = 0
    for i in stride(from: scratch.symbols.count - 1, through: 0, by: -1) {
      let symbol = scratch.symbols[i]
      let next = position + Int(symbol.length)
      if symbol.id == unknown {
        try appendUnknown(piece + position, Int(symbol.length), at: position, into: &sink)
      } else {
        sink.append(symbol.id, position, next)
      }
      position = next
    }
  }

  /// A run of unknown characters may be a token after all when put together; else its bytes, else the unknown token.
  private func appendUnknown(_ text: UnsafePointer<UInt8>, _ count: Int, at position: Int, into sink: inout TokenSink) throws {
    let whole = vocabulary.find(text, count)
    if whole >= 0 {
      sink.append(whole, position, position + count)
      return
    }
    if hasByteFallback {
      var isSpelled = true
      for i in 0..<count where byteTokens[Int(text[i])] < 0 { isSpelled = false }
      if isSpelled {
        for i in 0..<count { sink.append(byteTokens[Int(text[i])], position, position + count) }
        return
      }
    }
    sink.append(Int32(unknownId ?? 0), position, position + count)
  }
}
