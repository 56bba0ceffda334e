import Foundation

/// Trains Unigram: from frequent substrings, expectation maximisation and pruning in turns until the vocabulary is small enough.
///
/// Kudo, "Subword Regularization" (2018), §3.2, with the Bayesian step of SentencePiece (digamma instead of the logarithm, which makes rare
/// tokens rarer).
public struct UnigramTrainer: Sendable {
  /// Tokens wanted, special ones and the characters of the text included.
  public var vocabularySize: Int
  /// Get the first ids; should include the unknown token.
  public var specialTokens: [AddedToken]
  public var unknownToken: String
  /// Characters that are kept in any case.
  public var initialAlphabet: [Unicode.Scalar]
  /// How much is left at most of the vocabulary after a pruning.
  public var shrinkingFactor: Double
  /// Characters of the longest token.
  public var maximumTokenLength: Int
  /// Rounds of expectation maximisation between prunings.
  public var rounds: Int
  /// How many substrings training begins with.
  public var seedSize: Int
  /// How many characters the different words may have in all: the search for substrings takes some 16 bytes for each.
  public var maximumCharacters: Int

  public init(
    vocabularySize: Int = 8000, specialTokens: [AddedToken] = [AddedToken("<unk>", isSpecial: true)], unknownToken: String = "<unk>",
    initialAlphabet: [Unicode.Scalar] = [], shrinkingFactor: Double = 0.75, maximumTokenLength: Int = 16, rounds: Int = 2,
    seedSize: Int = 1_000_000, maximumCharacters: Int = 1 << 28
  ) {
    self.vocabularySize = vocabularySize
    self.specialTokens = specialTokens
    self.unknownToken = unknownToken
    self.initialAlphabet = initialAlphabet
    self.shrinkingFactor = shrinkingFactor
    self.maximumTokenLength = maximumTokenLength
    self.rounds = rounds
    self.seedSize = seedSize
    self.maximumCharacters = maximumCharacters
  }

  /// A tokenizer with the corpus's normalizer and pre-tokenizer and what was learnt.
  ///
  /// Throws ``ConfigurationError`` for sizes that can't be (a vocabulary smaller than the alphabet) and what `progress` throws.
  public func train(
    _ corpus: TokenizerCorpus, decoder: Decoder? = nil, postProcessor: PostProcessor? = nil,
    progress: ((TokenizerTrainingProgress) throws -> Void)? = nil
  ) throws -> Tokenizer {
    guard shrinkingFactor > 0, shrinkingFactor < 1 else {
      throw ConfigurationError("shrinkingFactor must lie between 0 and 1, not be \(shrinkingFactor)")
    }
    guard maximumTokenLength >= 1, rounds >= 1, seedSize >= 1 else {
      throw ConfigurationError("maximumTokenLength, rounds and seedSize must be at least 1")
    }
    guard corpus.wordCount > 0 else { throw ConfigurationError("the text has no words to learn from") }
    var required = Set(initialAlphabet.map(\.value))
    for index in corpus.words.entries.indices { required.formUnion(corpus.words.scalars(index)) }
    let room = vocabularySize - specialTokens.count
    guard required.count <= room, vocabularySize <= Vocabulary.maximumId + 1 else {
      throw ConfigurationError(
        "a vocabulary of \(vocabularySize) tokens can't hold the text's \(required.count) characters and \(specialTokens.count) special tokens; make it larger, or normalize the text"
      )
    }
    var pieces = try seeds(corpus.words, progress)
    // A tenth more than is wanted: the last choice is by score.
    let goal = room * 11 / 10
    while true {
      for _ in 0..<rounds {
        pieces = maximised(pieces, try expectation(pieces, corpus.words))
        try progress?(.init(stage: .estimating, done: pieces.count, total: nil))
      }
      if pieces.count <= goal { break }
      let before = pieces.count
      pieces = try pruned(pieces, corpus.words, goal: goal)
      try progress?(.init(stage: .pruning, done: pieces.count, total: goal))
      // Nothing more can be left out.
      if pieces.count >= before { break }
    }
    return try finished(pieces, required, corpus, decoder, postProcessor)
  }

  /// A token and its log-probability.
  private struct Piece {
    var text: [UInt8]
    var score: Double
  }

  // MARK: Seeds

  /// All characters, and the substrings that occur more than once, those first that cover most of the text: from the intervals of
  /// a suffix array, whose order is that of the first `maximumTokenLength` characters.
  private func seeds(_ words: WordCounts, _ progress: ((TokenizerTrainingProgress) throws -> Void)?) throws -> [Piece] {
    // Words one after the other with a 0 behind each, which is no part of any.
    var text: [UInt32] = []
    var weights: [Int] = []
    var owners: [Int32] = []
    var characters: [UInt32: Int] = [:]
    for (place, index) in words.sorted.enumerated() {
      for scalar in words.scalars(index) {
        text.append(scalar == 0 ? .max : scalar)
        owners.append(Int32(place))
        characters[scalar, default: 0] += words.entries[index].count
      }
      text.append(0)
      owners.append(Int32(place))
      weights.append(words.entries[index].count)
      guard text.count <= maximumCharacters else {
        throw ConfigurationError(
          "the different words have more than \(maximumCharacters) characters: train on a part of the text, or raise maximumCharacters")
      }
    }
    try progress?(.init(stage: .seeding, done: 0, total: text.count))
    var suffixes: [Int32] = []
    suffixes.reserveCapacity(text.count)
    for place in text.indices where text[place] != 0 { suffixes.append(Int32(place)) }
    let limit = maximumTokenLength + 1
    text.withUnsafeBufferPointer { text in
      suffixes.sort { a, b in
        var x = Int(a)
        var y = Int(b)
        for _ in 0..<limit {
          if text[x] != text[y] { return text[x] < text[y] }
          if text[x] == 0 { break }
          x += 1
          y += 1
        }
        return a < b
      }
    }
    func common(_ a: Int32, _ b: Int32) -> Int {
      var length = 0
      while length < limit, text[Int(a) + length] == text[Int(b) + length], text[Int(a) + length] != 0 { length += 1 }
      return length
    }
    // Each interval of neighbours that share a longer beginning is one substring; its weight is that of all its suffixes.
    struct Interval {
      var length: Int
      var weight: Int
      var suffix: Int32
    }
    struct Candidate {
      var score: Int
      var suffix: Int32
      var length: Int32
    }
    var candidates: [Candidate] = []
    var open: [Interval] = []
    for index in suffixes.indices {
      let weight = weights[Int(owners[Int(suffixes[index])])]
      let shared = index + 1 < suffixes.count ? common(suffixes[index], suffixes[index + 1]) : 0
      var passed = weight
      if let top = open.last, top.length >= shared || shared == 0 {
        open[open.count - 1].weight += weight
        passed = 0
      }
      while let top = open.last, top.length > shared {
        open.removeLast()
        if top.length >= 2, top.length <= maximumTokenLength {
          candidates.append(Candidate(score: top.weight * top.length, suffix: top.suffix, length: Int32(top.length)))
        }
        if let below = open.last, below.length >= shared {
          open[open.count - 1].weight += top.weight
        } else {
          passed += top.weight
        }
      }
      if shared > 0 {
        if let top = open.last, top.length == shared {
          open[open.count - 1].weight += passed
        } else {
          open.append(Interval(length: shared, weight: passed, suffix: suffixes[index]))
        }
      }
    }
    candidates.sort { ($0.score, $1.suffix) > ($1.score, $0.suffix) }
    var pieces: [Piece] = []
    for (scalar, count) in characters.sorted(by: { ($0.value, $1.key) > ($1.value, $0.key) }) {
      pieces.append(Piece(text: Self.utf8([scalar]), score: Double(count)))
    }
    for candidate in candidates.prefix(max(0, seedSize - pieces.count)) {
      let scalars = text[Int(candidate.suffix)..<Int(candidate.suffix + candidate.length)].map { $0 == .max ? 0 : $0 }
      pieces.append(Piece(text: Self.utf8(scalars), score: Double(candidate.score)))
    }
    let total = log(pieces.reduce(0) { $0 + $1.score })
    for index in pieces.indices { pieces[index].score = log(pieces[index].score) - total }
    try progress?(.init(stage: .seeding, done: text.count, total: text.count))
    return pieces
  }

  private static func utf8(_ scalars: [UInt32]) -> [UInt8] {
    var text = String.UnicodeScalarView()
    for scalar in scalars { text.append(Unicode.Scalar(scalar) ?? "\u{FFFD}") }
    return Array(String(text).utf8)
  }

  // MARK: Expectation and maximisation

  /// The ways to cut words with a vocabulary.
  private struct Lattice: ~Copyable {
    let trie: ByteTrie
    let scores: [Double]
    let unknownScore: Double
    struct Edge {
      var start: Int32
      var end: Int32
      var id: Int32  // −1: unknown
    }
    var edges = RawBuffer<Edge>(capacity: 256)
    var forward = RawBuffer<Double>(capacity: 64)
    var backward = RawBuffer<Double>(capacity: 64)
    var best = RawBuffer<Int32>(capacity: 64)  // the edge that ends a best path

    init(_ pieces: [Piece]) throws {
      var builder = ByteTrie.Builder(expectedTokens: pieces.count)
      for (id, piece) in pieces.enumerated() {
        var problem: VocabularyError?
        piece.text.withUnsafeBufferPointer { bytes in
          do throws(VocabularyError) { try builder.insert(bytes, value: Int32(id)) } catch { problem = error }
        }
        if let problem { throw problem }
      }
      trie = ByteTrie(builder)
      scores = pieces.map(\.score)
      unknownScore = (scores.min() ?? 0) - 10
    }

    /// Finds the tokens in a word, in the order of their starts. `leavingOut`: a token that isn't to be used.
    mutating func populate(_ word: UnsafeBufferPointer<UInt8>, leavingOut: Int32 = -2) {
      edges.count = 0
      var position = 0
      while position < word.count {
        let width = UTF8Text.length(word[position])
        var hasSingle = false
        var node: UInt32 = 0
        var end = position
        while end < word.count {
          node = trie.step(node, word[end])
          if node == 0 { break }
          end += 1
          let id = trie.value(node)
          if id < 0 || id == leavingOut { continue }
          edges.append(Edge(start: Int32(position), end: Int32(end), id: id))
          if end - position == width { hasSingle = true }
        }
        if !hasSingle { edges.append(Edge(start: Int32(position), end: Int32(position + width), id: -1)) }
        position += width
      }
    }

    func score(_ edge: Edge) -> Double { edge.id < 0 ? unknownScore : scores[Int(edge.id)] }

    @inline(__always)
    private static func sum(_ a: Double, _ b: Double) -> Double {
      // log(eᵃ + eᵇ); beyond 50 the smaller one is lost in the larger.
      if a == -.infinity { return b }
      let (high, low) = a > b ? (a, b) : (b, a)
      return high > low + 50 ? high : high + log1p(exp(low - high))
    }

    /// Adds how often each token is expected in a word that occurs `count` times. Returns the log-probability of the word.
    mutating func expect(_ count: Int, _ length: Int, into expected: inout [Double]) -> Double {
      forward.count = 0
      forward.append(repeating: -.infinity, count: length + 1)
      backward.count = 0
      backward.append(repeating: -.infinity, count: length + 1)
      forward[0] = 0
      backward[length] = 0
      for i in 0..<edges.count {
        let edge = edges[i]
        forward[Int(edge.end)] = Self.sum(forward[Int(edge.end)], forward[Int(edge.start)] + score(edge))
      }
      for i in stride(from: edges.count - 1, through: 0, by: -1) {
        let edge = edges[i]
        backward[Int(edge.start)] = Self.sum(backward[Int(edge.start)], backward[Int(edge.end)] + score(edge))
      }
      let whole = forward[length]
      for i in 0..<edges.count where edges[i].id >= 0 {
        let edge = edges[i]
        let share = forward[Int(edge.start)] + score(edge) + backward[Int(edge.end)] - whole
        expected[Int(edge.id)] += exp(share) * Double(count)
      }
      return whole
    }

    /// The tokens of the best way, from left to right; −1 for unknown characters.
    mutating func viterbi(_ length: Int) -> [Int32] {
      forward.count = 0
      forward.append(repeating: -.infinity, count: length + 1)
      best.count = 0
      best.append(repeating: -1, count: length + 1)
      forward[0] = 0
      for i in 0..<edges.count {
        let edge = edges[i]
        let candidate = forward[Int(edge.start)] + score(edge)
        if candidate > forward[Int(edge.end)] {
          forward[Int(edge.end)] = candidate
          best[Int(edge.end)] = Int32(i)
        }
      }
      var path: [Int32] = []
      var place = length
      while place > 0, best[place] >= 0 {
        let edge = edges[Int(best[place])]
        path.append(edge.id)
        place = Int(edge.start)
      }
      return path.reversed()
    }
  }

  /// How often each token is expected.
  private func expectation(_ pieces: [Piece], _ words: WordCounts) throws -> [Double] {
    var lattice = try Lattice(pieces)
    var expected = [Double](repeating: 0, count: pieces.count)
    for index in words.entries.indices {
      let word = words.bytes(index)
      lattice.populate(word)
      _ = lattice.expect(words.entries[index].count, word.count, into: &expected)
    }
    return expected
  }

  /// New scores from expected counts. Tokens that are hardly expected go.
  private func maximised(_ pieces: [Piece], _ expected: [Double]) -> [Piece] {
    var result: [Piece] = []
    var total = 0.0
    for (piece, count) in zip(pieces, expected) where count >= 0.5 {
      result.append(Piece(text: piece.text, score: count))
      total += count
    }
    let logarithm = Self.digamma(total)
    for index in result.indices { result[index].score = Self.digamma(result[index].score) - logarithm }
    return result
  }

  /// ψ(x), by its recurrence up to 7 and the asymptotic series in (x − ½)⁻².
  private static func digamma(_ value: Double) -> Double {
    var x = value
    var result = 0.0
    while x < 7 {
      result -= 1 / x
      x += 1
    }
    x -= 0.5
    let square = 1 / (x * x)
    return result + log(x) + square * (1.0 / 24 - square * (7.0 / 960 - square * (31.0 / 8064 - square * 127.0 / 30720)))
  }

  // MARK: Pruning

  /// Leaves out the tokens whose loss costs least: each is thought to be replaced by the best way to cut it without itself.
  private func pruned(_ pieces: [Piece], _ words: WordCounts, goal: Int) throws -> [Piece] {
    var lattice = try Lattice(pieces)
    var alternatives: [[Int32]] = []
    var isNeeded = [Bool](repeating: false, count: pieces.count)
    for (id, piece) in pieces.enumerated() {
      var path: [Int32] = []
      var isItself = false
      piece.text.withUnsafeBufferPointer { text in
        lattice.populate(text)
        isItself = lattice.viterbi(text.count) == [Int32(id)]
        guard isItself else { return }
        lattice.populate(text, leavingOut: Int32(id))
        path = lattice.viterbi(text.count)
      }
      // A single character has no other way.
      if path.contains(-1) { path = [] }
      isNeeded[id] = isItself && path.isEmpty
      alternatives.append(path)
    }
    var frequencies = [Double](repeating: 0, count: pieces.count)
    var wordFrequencies = [Double](repeating: 0, count: pieces.count)
    var all = 0.0
    for index in words.entries.indices {
      let word = words.bytes(index)
      let count = Double(words.entries[index].count)
      all += count
      lattice.populate(word)
      for id in lattice.viterbi(word.count) where id >= 0 {
        frequencies[Int(id)] += count
        wordFrequencies[Int(id)] += count
      }
    }
    let sum = frequencies.reduce(0, +)
    var kept: [Int] = []
    var candidates: [(id: Int, loss: Double)] = []
    for id in pieces.indices {
      let frequency = frequencies[id]
      if frequency == 0 && !isNeeded[id] { continue }
      if alternatives[id].isEmpty {
        kept.append(id)
        continue
      }
      let own = log(frequency) - log(sum)
      let newSum = log(sum + frequency * Double(alternatives[id].count - 1))
      var others = 0.0
      for other in alternatives[id] { others += log(frequencies[Int(other)] + frequency) - newSum }
      candidates.append((id, wordFrequencies[id] / all * (own - others)))
    }
    candidates.sort { ($0.loss, $1.id) > ($1.loss, $0.id) }
    let size = max(goal, Int(Double(pieces.count) * shrinkingFactor))
    for candidate in candidates.prefix(max(0, size - kept.count)) { kept.append(candidate.id) }
    return kept.map { pieces[$0] }
  }

  // MARK: The result

  /// Special tokens, then the others with the best scores; every character of the text is among them.
  private func finished(
    _ pieces: [Piece], _ required: Set<UInt32>, _ corpus: TokenizerCorpus, _ decoder: Decoder?, _ postProcessor: PostProcessor?
  ) throws -> Tokenizer {
    let special = specialTokens.map { Array($0.content.utf8) }
    var seen = Set(special)
    let known = Dictionary(pieces.map { ($0.text, $0.score) }, uniquingKeysWith: { first, _ in first })
    let lowest = pieces.map(\.score).min() ?? 0
    var chosen: [Piece] = []
    var penalty = 0.0
    for scalar in required.sorted() {
      let text = Self.utf8([scalar])
      guard seen.insert(text).inserted else { continue }
      if let score = known[text] {
        chosen.append(Piece(text: text, score: score))
      } else {
        // Each a little less likely than the last, so that scores differ.
        chosen.append(Piece(text: text, score: lowest - penalty))
        penalty += 0.0001
      }
    }
    let order = pieces.indices.sorted { (pieces[$0].score, $1) > (pieces[$1].score, $0) }
    for index in order where special.count + chosen.count < vocabularySize && seen.insert(pieces[index].text).inserted {
      chosen.append(pieces[index])
    }
    let ranked = chosen.indices.sorted { (chosen[$0].score, $1) > (chosen[$1].score, $0) }.map { chosen[$0] }
    guard let unknown = special.firstIndex(of: Array(unknownToken.utf8)) else {
      throw ConfigurationError("the unknown token \"\(unknownToken)\" must be among the special tokens")
    }
    var builder = Vocabulary.Builder()
    var scores: [Double] = []
    for token in special {
      try builder.append(String(decoding: token, as: UTF8.self), id: scores.count)
      scores.append(0)
    }
    for piece in ranked {
      try builder.append(String(decoding: piece.text, as: UTF8.self), id: scores.count)
      scores.append(piece.score)
    }
    let model = try Unigram(vocabulary: try Vocabulary(builder), scores: scores, unknownId: unknown)
    return try Tokenizer(
      model: .unigram(model), normalizer: corpus.normalizer, preTokenizer: corpus.preTokenizer, postProcessor: postProcessor,
      decoder: decoder,
      addedTokens: specialTokens)
  }
}
