import Foundation

/// What a beam search is asked for.
public struct BeamSearchOptions: Sendable, Equatable {
  /// Sequences that are kept at each step.
  public var beams: Int
  /// Scores are Σ ln p / length^penalty: above 0 favours longer sequences.
  public var lengthPenalty = 1.0
  /// Stop as soon as enough sequences have ended, rather than when none that still runs can beat them.
  public var stopsEarly = false
  /// Sequences to return for each prompt, at most `beams`.
  public var results = 1

  public init(beams: Int = 4) { self.beams = beams }
}

/// A sequence that a beam search found.
public struct BeamHypothesis: Sendable, Equatable {
  public var tokens: [Int]
  /// Σ ln p of the tokens over a power of their number.
  public var score: Double
}

/// The likeliest continuations that a search of limited width finds.
///
/// Each step extends every kept sequence by every token and keeps the best that have not ended; those that end among the best are
/// set aside. Sampling options other than penalties and biases don't apply.
///
/// - Returns: for each prompt the best sequences, best first; the stop token is included.
/// - Throws: as ``generate(_:prompts:options:start:promptCache:onToken:)``.
public func beamSearch(
  _ model: any GenerativeModel, prompts: [[Int]], options: GenerationOptions, beams: BeamSearchOptions,
  start: SequenceBackbone.State? = nil
) throws -> [[BeamHypothesis]] {
  try options.validate(vocabulary: model.vocabulary)
  try checkPrompts(prompts, vocabulary: model.vocabulary)
  guard beams.beams > 0, (1...beams.beams).contains(beams.results) else {
    throw ConfigurationError("a beam search needs at least one beam and 1...\(max(1, beams.beams)) results, got \(beams.results)")
  }
  guard options.maximumTokens > 0 else { return prompts.map { _ in [] } }
  return try evaluating(model) {
    try prompts.indices.map { i in
      let (logits, state) = try read([prompts[i]], model, options, start: start?.selecting([i]))
      var search = BeamSearch(model, prompts[i], options, beams)
      return try search.run(logits, state)
    }
  }
}

private struct BeamSearch {
  let model: any GenerativeModel
  let prompt: [Int]
  let options: GenerationOptions
  let search: BeamSearchOptions
  /// Ended sequences, best first, at most `search.beams`.
  var ended: [BeamHypothesis] = []

  init(_ model: any GenerativeModel, _ prompt: [Int], _ options: GenerationOptions, _ search: BeamSearchOptions) {
    self.model = model
    self.prompt = prompt
    self.options = options
    self.search = search
  }

  private func score(_ sum: Double, _ length: Int) -> Double { sum / pow(Double(length), search.lengthPenalty) }

  private mutating func end(_ tokens: [Int], _ sum: Double) {
    ended.append(BeamHypothesis(tokens: tokens, score: score(sum, tokens.count)))
    ended.sort { $0.score > $1.score }
    if ended.count > search.beams { ended.removeLast() }
  }

  /// - Parameters: logits [1, vocabulary] after the prompt, and its state.
  mutating func run(_ first: Tensor, _ start: SequenceBackbone.State) throws -> [BeamHypothesis] {
    var (logits, state) = (first, start)
    var running: [(tokens: [Int], sum: Double)] = [([], 0)]
    while true {
      try checkFinite(logits)
      let vocabulary = logits.dim(1)
      // ln p of every extension, [running · vocabulary]; enough of the best that as many as there are beams can go on.
      let rows = running.enumerated().map { row, beam in
        let x = logits[row].to(.float32).logSoftmax()
        return options.processed(x, tokens: prompt + beam.tokens, promptLength: prompt.count) + beam.sum
      }
      let all = concatenated(rows)
      let wanted = min(all.dim(0), max(2, 1 + options.stopTokens.count) * search.beams)
      let best = all.topK(wanted)
      let sums = best.values.toArray(Float.self).map(Double.init)
      let places = best.indices.toArray(Int.self)
      var next: [(row: Int, tokens: [Int], sum: Double)] = []
      for (rank, place) in places.enumerated() where sums[rank] > -.infinity {
        let (row, token) = (place / vocabulary, place % vocabulary)
        let tokens = running[row].tokens + [token]
        if options.stopTokens.contains(token) {
          if rank < search.beams { end(tokens, sums[rank]) }
        } else if next.count < search.beams {
          next.append((row, tokens, sums[rank]))
        }
      }
      let length = (next.first?.tokens.count ?? 0)
      if next.isEmpty || length >= options.maximumTokens || isDone(next[0].sum, length) {
        // What still runs counts as a result where too few have ended, or when the number of tokens is reached.
        if ended.count < search.beams || length >= options.maximumTokens { for beam in next { end(beam.tokens, beam.sum) } }
        return Array(ended.prefix(search.results))
      }
      state = state.selecting(next.map(\.row))
      logits = model.advance(Tensor(next.map { $0.tokens.last! }, [next.count, 1]), &state)
      running = next.map { ($0.tokens, $0.sum) }
    }
  }

  /// Whether enough sequences have ended and the best that still runs, at its present length, is no better than the worst of them.
  private func isDone(_ bestSum: Double, _ length: Int) -> Bool {
    guard ended.count == search.beams else { return false }
    return search.stopsEarly || ended.last!.score >= score(bestSum, length)
  }
}
