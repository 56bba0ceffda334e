/// How well guesses were received.
public struct SpeculationReport: Sendable, Equatable {
  /// Passes through the large model.
  public var passes = 0
  public var guessed = 0
  public var accepted = 0
}

/// Continues a prompt with a large model, helped by a small one that guesses ahead (Leviathan et al. 2023; Chen et al. 2023).
///
/// The small model proposes up to `guesses` tokens, the large one judges them in one pass. A guess x is kept with probability
/// min(1, p(x)/q(x)); the first that isn't is replaced by a draw from max(0, p − q) normalised. The result has exactly the large
/// model's distribution; with temperature 0 it is the large model's text.
///
/// - Parameters:
///   - draft: the small model, with the same vocabulary.
///   - guesses: tokens proposed at a time.
/// - Throws: as ``generate(_:prompts:options:start:promptCache:onToken:)``, and `ConfigurationError` for different vocabularies.
public func speculate(
  _ model: any GenerativeModel, draft: any GenerativeModel, prompt: [Int], options: GenerationOptions, guesses: Int = 4,
  onToken: (_ token: Int) -> Bool = { _ in true }
) throws -> (sequence: GeneratedSequence, report: SpeculationReport) {
  try options.validate(vocabulary: model.vocabulary)
  try checkPrompts([prompt], vocabulary: model.vocabulary)
  guard model.vocabulary == draft.vocabulary else {
    throw ConfigurationError("the draft model has \(draft.vocabulary) tokens, the large one \(model.vocabulary): they must be the same")
  }
  guard guesses > 0 else { throw ConfigurationError("at least one token must be guessed at a time, got \(guesses)") }
  var result = GeneratedSequence()
  var report = SpeculationReport()
  guard options.maximumTokens > 0 else { return (result, report) }
  return try evaluating(model) {
    try evaluating(draft) {
      let active = ActiveSequence(0, prompt, seed: options.seed)
      let generator = active.generator
      var tokens = prompt
      // Both states have read all tokens but the last one.
      var large = Rewindable(model, try model.initialState(batch: 1, cache: options.cache))
      var small = Rewindable(draft, try draft.initialState(batch: 1, cache: options.cache))
      large.read(Array(tokens.dropLast()), chunk: options.promptChunk)
      small.read(Array(tokens.dropLast()), chunk: options.promptChunk)

      func distribution(_ logits: Tensor, _ tokens: [Int]) -> Tensor {
        let x = options.processed(logits, tokens: tokens, promptLength: prompt.count)
        return options.sampler.probabilities(x.expandedDimension(0)).squeezed(0)
      }
      func draw(_ p: Tensor) -> Int {
        options.sampler.temperature == 0
          ? p.argmax(axis: 0).itemInt() : p.expandedDimension(0).multinomial(1, replacement: true, generator: generator).itemInt()
      }

      while true {
        let count = min(guesses, options.maximumTokens - result.tokens.count - 1)
        // The small model's guesses; the last token is read again together with them.
        let largeMark = large.mark()
        let smallMark = small.mark()
        var proposed: [(token: Int, q: Tensor)] = []
        var last = tokens.suffix(tokens.count - small.length)
        while proposed.count < max(count, 0) {
          let logits = small.advance(Array(last))[-1]
          let q = distribution(logits, tokens + proposed.map(\.token))
          let token = draw(q)
          proposed.append((token, q))
          last = [token]
          if options.stopTokens.contains(token) { break }
        }
        let logits = large.advance([tokens.last!] + proposed.map(\.token))  // [guesses + 1, vocabulary]
        try checkFinite(logits)
        let chances = logits.to(.float32).logSoftmax()
        report.passes += 1
        report.guessed += proposed.count

        var fresh: [Int] = []
        var isRejected = false
        for (i, guess) in proposed.enumerated() {
          let p = distribution(logits[i], tokens + fresh)
          let (ofLarge, ofSmall) = (p[guess.token].item(), guess.q[guess.token].item())
          let u = Tensor.random([1], dtype: .float64, generator: generator).item()
          if u * ofSmall < ofLarge {
            fresh.append(guess.token)
            report.accepted += 1
            continue
          }
          let rest = (p - guess.q).clamped(min: 0)
          // p = q up to rounding leaves nothing: then p itself is right.
          fresh.append(draw(rest.sum().item() > 0 ? rest / rest.sum() : p))
          isRejected = true
          break
        }
        if !isRejected, !(fresh.last.map(options.stopTokens.contains) ?? false) {
          fresh.append(draw(distribution(logits[proposed.count], tokens + fresh)))
        }
        for (i, token) in fresh.enumerated() {
          tokens.append(token)
          result.tokens.append(token)
          result.logProbabilities.append(chances[i, token].item())
          let goesOn = onToken(token)
          if options.stopTokens.contains(token) {
            result.finish = .stop
            return (result, report)
          }
          if !goesOn {
            result.finish = .cancelled
            return (result, report)
          }
          if result.tokens.count == options.maximumTokens { return (result, report) }
        }
        // Both go back to what is settled: all tokens but the last.
        large.rewind(largeMark, to: Array(tokens.dropLast()))
        small.rewind(smallMark, to: Array(tokens.dropLast()))
      }
    }
  }
}

/// A model's state that can go back to an earlier length: by cutting keys and values, or from a copy where the state is recurrent.
private struct Rewindable {
  private let model: any GenerativeModel
  private var state: SequenceBackbone.State
  private(set) var length = 0

  init(_ model: any GenerativeModel, _ state: SequenceBackbone.State) {
    self.model = model
    self.state = state
  }

  mutating func read(_ tokens: [Int], chunk: Int) {
    for start in stride(from: 0, to: tokens.count, by: chunk) {
      let part = Array(tokens[start..<min(start + chunk, tokens.count)])
      _ = model.outputs(Tensor(part, [1, part.count]), &state)
    }
    length += tokens.count
  }

  /// Logits after each token, [tokens, vocabulary].
  mutating func advance(_ tokens: [Int]) -> Tensor {
    length += tokens.count
    return model.advanceEvery(Tensor(tokens, [1, tokens.count]), &state)[0]
  }

  struct Mark {
    let length: Int
    /// `nil` where the state can be cut.
    let copy: SequenceBackbone.State?
  }

  /// Remembers the present place.
  mutating func mark() -> Mark {
    var probe = state
    return Mark(length: length, copy: probe.truncate(to: length) && !model.hasRings ? nil : state.copied())
  }

  /// Goes back so that just `tokens` have been read, which agree with what was read up to the mark.
  mutating func rewind(_ mark: Mark, to tokens: [Int]) {
    if let copy = mark.copy {
      state = copy
      length = mark.length
      let rest = Array(tokens[mark.length...])
      if !rest.isEmpty { read(rest, chunk: rest.count) }
    } else if length > tokens.count {
      _ = state.truncate(to: tokens.count)
      length = tokens.count
    }
  }
}

extension GenerativeModel {
  /// Whether a layer keeps a window only: its cache can't be cut once it has turned.
  fileprivate var hasRings: Bool {
    modules().contains { ($0.module as? SoftmaxAttention)?.configuration.window != nil }
  }
}
