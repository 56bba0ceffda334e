/// What decides the text that a model generates, besides the model and the prompt.
public struct GenerationOptions: Sendable, Equatable {
  /// Tokens to add at most.
  public var maximumTokens: Int
  /// Tokens before a stop token may come.
  public var minimumTokens = 0
  public var sampler: Sampler
  /// Logits of tokens that the prompt or the text holds are divided by it where positive and multiplied where negative (Keskar et
  /// al. 2019); 1 changes nothing.
  public var repetitionPenalty = 1.0
  /// Taken from the logit of every token that the generated text holds.
  public var presencePenalty = 0.0
  /// Taken from it as many times as the generated text holds the token.
  public var frequencyPenalty = 0.0
  /// No run of so many tokens comes twice; 0 allows all.
  public var noRepeatedRun = 0
  /// Added to the logits of tokens; −∞ forbids one.
  public var logitBias: [Int: Double] = [:]
  /// Added to the logits of the first generated token only.
  public var firstLogitBias: [Int: Double] = [:]
  /// Tokens that end a sequence. They are part of the result.
  public var stopTokens: Set<Int> = []
  public var seed: UInt64 = 0
  public var cache = CacheOptions()
  /// Prompt tokens that are read at once: bounds the memory of long prompts.
  public var promptChunk = 2048

  public init(maximumTokens: Int = 128, sampler: Sampler = Sampler(temperature: 0)) {
    self.maximumTokens = maximumTokens
    self.sampler = sampler
  }

  /// Throws `ConfigurationError` for values out of range, naming the value.
  public func validate(vocabulary: Int) throws {
    func check(_ condition: Bool, _ message: @autoclosure () -> String) throws { if !condition { throw ConfigurationError(message()) } }
    try sampler.validate()
    try check(maximumTokens >= 0 && minimumTokens >= 0, "numbers of tokens must not be negative, got \(maximumTokens) and \(minimumTokens)")
    try check(repetitionPenalty > 0 && repetitionPenalty.isFinite, "the repetition penalty must be positive, got \(repetitionPenalty)")
    try check(presencePenalty.isFinite && frequencyPenalty.isFinite, "penalties must be numbers")
    try check(noRepeatedRun >= 0, "the length of runs that may not repeat must not be negative, got \(noRepeatedRun)")
    try check(promptChunk > 0, "prompts must be read in pieces of at least one token, got \(promptChunk)")
    for token in logitBias.keys.sorted() + firstLogitBias.keys.sorted() + stopTokens.sorted() {
      try check((0..<vocabulary).contains(token), "token \(token) is outside the vocabulary of \(vocabulary)")
    }
  }

  /// Whether logits are sampled as the model gives them.
  var leavesLogits: Bool {
    repetitionPenalty == 1 && presencePenalty == 0 && frequencyPenalty == 0 && noRepeatedRun == 0 && logitBias.isEmpty
      && firstLogitBias.isEmpty && minimumTokens == 0
  }

  /// The logits [vocabulary] of the next token of one sequence, with penalties, biases and bans.
  ///
  /// - Parameter tokens: prompt and text; the text starts at `promptLength`.
  func processed(_ logits: Tensor, tokens: [Int], promptLength: Int) -> Tensor {
    if leavesLogits { return logits }
    var x = logits.to(.float32)
    let vocabulary = x.dim(0)
    let produced = tokens.count - promptLength
    if repetitionPenalty != 1 {
      let seen = Tensor(Set(tokens).filter { $0 < vocabulary }.sorted())
      let old = x.take(seen)
      x = x.scatter(seen, select(old .> 0, old / repetitionPenalty, old * repetitionPenalty), axis: 0)
    }
    if (presencePenalty != 0 || frequencyPenalty != 0) && produced > 0 {
      let counts = Dictionary(tokens[promptLength...].map { ($0, 1) }, uniquingKeysWith: +).sorted { $0.key < $1.key }
      let penalties = counts.map { Float(-presencePenalty - frequencyPenalty * Double($0.value)) }
      x = x.indexAdd(Tensor(counts.map(\.key)), Tensor(penalties), axis: 0)
    }
    var biases = logitBias
    if produced == 0 { biases.merge(firstLogitBias) { $0 + $1 } }
    if produced < minimumTokens { for token in stopTokens { biases[token] = -.infinity } }
    for token in repeatedRunEnds(tokens) { biases[token] = -.infinity }
    if !biases.isEmpty {
      let pairs = biases.sorted { $0.key < $1.key }
      x = x.indexAdd(Tensor(pairs.map(\.key)), Tensor(pairs.map { Float($0.value) }), axis: 0)
    }
    return x
  }

  /// Tokens that would complete a run that the sequence has already.
  private func repeatedRunEnds(_ tokens: [Int]) -> Set<Int> {
    let n = noRepeatedRun
    guard n > 0, tokens.count >= n else { return [] }
    let last = tokens.suffix(n - 1)
    var ends = Set<Int>()
    for start in 0...(tokens.count - n) where tokens[start..<(start + n - 1)].elementsEqual(last) { ends.insert(tokens[start + n - 1]) }
    return ends
  }
}

/// A finished sequence.
public struct GeneratedSequence: Sendable, Equatable {
  public enum Finish: String, Sendable, Codable {
    /// A stop token came.
    case stop
    /// The number of tokens was reached.
    case length
    /// The receiver wanted no more.
    case cancelled
  }

  /// The added tokens, the stop token included.
  public var tokens: [Int] = []
  /// ln p of each token by the model alone, before temperature, penalties and bans.
  public var logProbabilities: [Double] = []
  public var finish = Finish.length
}
