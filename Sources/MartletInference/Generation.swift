/// Continues several prompts together, in evaluation mode and without gradients.
///
/// Prompts of any lengths are read without padding, each from its own first token; then all take one step at a time, and sequences
/// that end make room. What a sequence becomes does not depend on the others: each has its own random stream.
///
/// - Parameters:
///   - prompts: tokens, at least one each.
///   - start: where the sequences begin, one row a prompt: for decoders that attend to another sequence. `nil` for the beginning.
///   - promptCache: states of earlier prompts, reused where they are a prefix of a prompt.
///   - onToken: receives the prompt's index, each token and its log-probability as they come; returning false ends that sequence.
/// - Returns: one sequence for each prompt.
/// - Throws: `ConfigurationError` when the model can't run token by token, a prompt is empty or has tokens outside the vocabulary, or
///   an option is out of range; `TensorError` when the model's logits are not numbers.
public func generate(
  _ model: any GenerativeModel, prompts: [[Int]], options: GenerationOptions = GenerationOptions(),
  start: SequenceBackbone.State? = nil, promptCache: PromptCache? = nil,
  onToken: (_ prompt: Int, _ token: Int, _ logProbability: Double) -> Bool = { _, _, _ in true }
) throws -> [GeneratedSequence] {
  try options.validate(vocabulary: model.vocabulary)
  try checkPrompts(prompts, vocabulary: model.vocabulary)
  var results = Array(repeating: GeneratedSequence(), count: prompts.count)
  guard options.maximumTokens > 0, !prompts.isEmpty else { return results }
  return try evaluating(model) {
    var (logits, state) = try read(prompts, model, options, start: start, promptCache: promptCache)
    var active = prompts.indices.map { ActiveSequence($0, prompts[$0], seed: options.seed) }
    while true {
      try checkFinite(logits)
      let next = chosen(logits, &active, options)
      let chances =
        (logits.gather(Tensor(next, [next.count, 1]), axis: 1).squeezed(1).to(.float32) - logits.to(.float32).logSumExp(axis: -1))
        .toArray(Float.self)
      var kept: [Int] = []
      for (row, token) in next.enumerated() {
        let index = active[row].index
        active[row].tokens.append(token)
        results[index].tokens.append(token)
        results[index].logProbabilities.append(Double(chances[row]))
        let goesOn = onToken(index, token, Double(chances[row]))
        if options.stopTokens.contains(token) {
          results[index].finish = .stop
        } else if !goesOn {
          results[index].finish = .cancelled
        } else if results[index].tokens.count < options.maximumTokens {
          kept.append(row)
        }
      }
      if kept.isEmpty { return results }
      let going = kept.map { next[$0] }
      if kept.count < active.count {
        active = kept.map { active[$0] }
        state = state.selecting(kept)
      }
      logits = model.advance(Tensor(going, [going.count, 1]), &state)
    }
  }
}

/// A sequence that is being continued.
struct ActiveSequence {
  let index: Int
  var tokens: [Int]
  let promptLength: Int
  let generator: RandomGenerator

  init(_ index: Int, _ prompt: [Int], seed: UInt64) {
    self.index = index
    tokens = prompt
    promptLength = prompt.count
    // Streams of neighbouring seeds and prompts must not meet: mix the two (the finalizer of SplitMix64).
    var z = seed &+ 0x9E37_79B9_7F4A_7C15 &* UInt64(index + 1)
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    generator = RandomGenerator(seed: z ^ (z >> 31))
  }
}

/// The next token of every sequence from logits [sequences, vocabulary].
private func chosen(_ logits: Tensor, _ sequences: inout [ActiveSequence], _ options: GenerationOptions) -> [Int] {
  if options.leavesLogits && options.sampler.temperature == 0 { return logits.argmax(axis: -1).toArray(Int.self) }
  return sequences.enumerated().map { row, sequence in
    let x = options.processed(logits[row], tokens: sequence.tokens, promptLength: sequence.promptLength)
    return options.sampler(x.expandedDimension(0), generator: sequence.generator).itemInt()
  }
}

/// Reads the prompts: the logits after each, [prompts, vocabulary], and the state of all.
func read(
  _ prompts: [[Int]], _ model: any GenerativeModel, _ options: GenerationOptions, start: SequenceBackbone.State? = nil,
  promptCache: PromptCache? = nil
) throws -> (logits: Tensor, state: SequenceBackbone.State) {
  let longest = prompts.map(\.count).max()! + options.maximumTokens
  var cache = options.cache
  cache.capacity = max(cache.capacity, min(longest, 1 << 16))
  if var start {
    require(start.batch == prompts.count, "\(start.batch) starting states were given for \(prompts.count) prompts")
    if prompts.allSatisfy({ $0.count == prompts[0].count }) {
      let tokens = Tensor(prompts.flatMap { $0 }, [prompts.count, prompts[0].count])
      return (model.advance(tokens, &start), start)
    }
    let parts = prompts.indices.map { row -> (Tensor, SequenceBackbone.State) in
      var state = start.selecting([row])
      return (model.advance(Tensor(prompts[row], [1, prompts[row].count]), &state), state)
    }
    return (concatenated(parts.map(\.0)), .joined(parts.map(\.1)))
  }
  let parts = try prompts.map { prompt -> (Tensor, SequenceBackbone.State) in
    var state = try model.initialState(batch: 1, cache: cache)
    var from = 0
    if let found = promptCache?.longestPrefix(of: prompt) { (from, state) = (found.length, found.state) }
    var logits: Tensor?
    while from < prompt.count {
      let count = min(options.promptChunk, prompt.count - from)
      logits = model.advance(Tensor(Array(prompt[from..<(from + count)]), [1, count]), &state)
      from += count
    }
    promptCache?.store(prompt, state)
    return (logits!, state)
  }
  return (concatenated(parts.map(\.0)), .joined(parts.map(\.1)))
}

func checkPrompts(_ prompts: [[Int]], vocabulary: Int) throws {
  for (i, prompt) in prompts.enumerated() {
    let name = prompts.count > 1 ? "prompt \(i)" : "the prompt"
    guard !prompt.isEmpty else { throw ConfigurationError("\(name) is empty: a model needs at least one token to continue") }
    if let token = prompt.first(where: { !(0..<vocabulary).contains($0) }) {
      throw ConfigurationError("\(name) has the token \(token), which is outside the vocabulary of \(vocabulary)")
    }
  }
}

func checkFinite(_ logits: Tensor) throws {
  // One reduction: a NaN or an infinity above makes the maximum one too.
  let top = logits.max().item()
  guard top.isFinite else { throw TensorError("the model's logits are not numbers (\(top)): its weights or the input are broken") }
}

/// Runs a function with the model in evaluation mode and without gradients.
func evaluating<Result>(_ model: Module, _ body: () throws -> Result) rethrows -> Result {
  let wasTraining = model.isTraining
  model.eval()
  defer { model.train(wasTraining) }
  return try withoutGradient(body)
}
