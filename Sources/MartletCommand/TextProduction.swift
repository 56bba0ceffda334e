import Foundation
import MartletCatalog
import MartletTokenizers

/// Seconds since a moment.
struct Stopwatch {
  private let begin = ContinuousClock.now
  var seconds: Double {
    let elapsed = ContinuousClock.now - begin
    return Double(elapsed.components.seconds) + Double(elapsed.components.attoseconds) * 1e-18
  }
}

/// A text that was generated, with what `martlet generate --json` says of it.
struct ProducedText {
  var prompt: String
  var text = ""
  var promptTokens = 0
  /// The tokens of the text; those that ended it are included.
  var ids: [Int] = []
  var logProbabilities: [Double] = []
  var finish = ""
  var firstSeconds: Double?
  var seconds = 0.0
  /// Of a beam search.
  var score: Double?
  var speculation: SpeculationReport?

  /// Tokens a second after the first; 0 where there is none.
  var rate: Double {
    guard let firstSeconds, ids.count > 1 else { return 0 }
    return Double(ids.count - 1) / max(1e-9, seconds - firstSeconds)
  }

  func json(seed: Int, logProbabilities withChances: Bool, timed: Bool = true) -> JSONValue {
    var object: JSONObject = [
      "prompt": .string(prompt), "text": .string(text), "tokens": .integer(ids.count), "ids": .array(ids.map(JSONValue.integer)),
      "finish": .string(finish), "promptTokens": .integer(promptTokens),
    ]
    if timed && score != nil {
      // A search gives all its tokens at the end.
      object["seconds"] = .number(seconds)
    } else if timed {
      object["secondsToFirstToken"] = .number(firstSeconds ?? 0)
      object["tokensPerSecond"] = .number(rate)
    }
    object["seed"] = .integer(seed)
    if withChances { object["logProbabilities"] = .array(logProbabilities.map(JSONValue.number)) }
    if let score { object["score"] = .number(score) }
    if let speculation {
      object["speculation"] = [
        "passes": .integer(speculation.passes), "guessed": .integer(speculation.guessed), "accepted": .integer(speculation.accepted),
      ]
    }
    return .object(object)
  }
}

/// A pretrained model that turns text into text: a language model, or an encoder-decoder.
struct TextProducer {
  let pretrained: PretrainedModel
  let tokenizer: Tokenizer
  let draft: (model: PretrainedModel, guesses: Int)?
  let stopStrings: [String]
  let options: GenerationOptions
  /// Whether texts go on from their prompts, rather than answer them.
  let continues: Bool
  private let generator: TextGenerator
  /// Of a conversation: what was read before is not read again. Keeping it costs a copy, so nothing else does.
  private let cache: PromptCache?

  /// - Parameters:
  ///   - continues: whether texts go on from their prompts.
  ///   - converses: whether prompts will begin as earlier ones did.
  /// - Throws: `FileError` and `ConfigurationError`.
  init(
    _ path: String, weights: WeightsOption?, sampling: SamplingOptions, stopStrings: [String], continues: Bool,
    converses: Bool = false, draft: (path: String, guesses: Int)?
  ) throws {
    let pretrained = try WeightsOption.load(path, weights)
    guard let model = pretrained.model as? any GenerativeModel else {
      let use = pretrained.textEncoder != nil ? ": it is an encoder; `martlet embed` and `martlet evaluate` run it" : ""
      throw FileError(path, "a model of the type \"\(pretrained.configuration.modelType)\" does not generate text\(use)")
    }
    let tokenizer = try Tokenizer.load(path)
    var options = try sampling.options(over: GenerationOptions(pretrained.configuration))
    if options.stopTokens.isEmpty, let end = tokenizer.endId { options.stopTokens = [end] }
    try options.validate(vocabulary: model.vocabulary)
    self.options = options
    self.pretrained = pretrained
    self.tokenizer = tokenizer
    self.stopStrings = stopStrings
    self.continues = continues
    cache = converses ? PromptCache(limit: 2) : nil
    generator = try TextGenerator(model: model, tokenizer: tokenizer)
    guard draft == nil || pretrained.encoderDecoder == nil else {
      throw FileError(path, "is an encoder-decoder, for which --draft doesn't work")
    }
    self.draft = try draft.map { path, guesses in
      let small = try WeightsOption.load(path, weights)
      guard let drafting = small.model as? any GenerativeModel, small.encoderDecoder == nil else {
        throw FileError(path, "a model of the type \"\(small.configuration.modelType)\" can't draft")
      }
      guard drafting.vocabulary == model.vocabulary else {
        throw FileError(path, "has \(drafting.vocabulary) tokens, the model \(model.vocabulary): a draft needs the same vocabulary")
      }
      return (small, guesses)
    }
  }

  private var model: any GenerativeModel { generator.model }

  /// The tokens of a text, or of a conversation that the chat template has put into words.
  func tokens(_ text: String, special: Bool) throws -> [Int] { try generator.tokens(of: text, addSpecialTokens: special) }

  /// The text that the chat template makes of a conversation. Throws `FileError` where there is none, `ChatTemplateError`.
  func rendered(_ messages: [ChatMessage]) throws -> String {
    guard let source = tokenizer.configuration.chatTemplate else {
      throw FileError(
        pretrained.configuration.directory, "has no chat template (in tokenizer_config.json or chat_template.jinja), so it can't --chat")
    }
    return try ChatTemplate(source, specialTokens: tokenizer.configuration.specialTokens).render(
      messages: messages, addGenerationPrompt: true)
  }

  /// Where the decoder begins: what an encoder made of the prompts, and the decoder's own first tokens.
  private func start(_ prompts: [[Int]]) throws -> (prompts: [[Int]], state: SequenceBackbone.State?) {
    guard let model = pretrained.encoderDecoder else { return (prompts, nil) }
    guard model.stem == nil else {
      throw FileError(pretrained.configuration.directory, "reads speech, not text; give it --audio FILE.wav")
    }
    // One after the other: no prompt is padded.
    let states = try prompts.map { prompt in
      try withoutGradient { try model.initialState(memory: model.encode(Tensor(prompt, [1, prompt.count])), cache: options.cache) }
    }
    return (prompts.map { _ in model.decoderPrompt }, states.count == 1 ? states[0] : nil)
  }

  /// Continues prompts together.
  ///
  /// - Parameters:
  ///   - watch: measures the time to the first token.
  ///   - onText: receives the prompt's index and every new piece; returning false ends that text.
  func produce(
    _ texts: [(name: String, tokens: [Int])], watch: Stopwatch, onText: @escaping (Int, String) -> Bool = { _, _ in true }
  ) throws -> [ProducedText] {
    // Encoder-decoders of several inputs run one by one: their memories differ in length.
    if pretrained.encoderDecoder != nil && texts.count > 1 {
      return try texts.enumerated().flatMap { index, text in try produce([text], watch: watch) { onText(index, $1) } }
    }
    let (prompts, state) = try start(texts.map(\.tokens))
    return try run(texts.map { ($0.name, $0.tokens.count) }, prompts, state, options, watch, onText)
  }

  /// Learned positions end: the texts then stop with them.
  private func fitting(_ options: GenerationOptions, _ prompts: [[Int]]) throws -> GenerationOptions {
    let backbone = pretrained.configuration.backbone
    guard backbone.positions == .learned, let longest = prompts.map(\.count).max() else { return options }
    guard longest < backbone.length else {
      throw ConfigurationError("the prompt has \(longest) tokens, and the model has positions for \(backbone.length)")
    }
    var options = options
    options.maximumTokens = min(options.maximumTokens, backbone.length - longest)
    return options
  }

  private func run(
    _ names: [(String, Int)], _ prompts: [[Int]], _ state: SequenceBackbone.State?, _ options: GenerationOptions, _ watch: Stopwatch,
    _ onText: @escaping (Int, String) -> Bool
  ) throws -> [ProducedText] {
    let options = try fitting(options, prompts)
    var results = names.map { ProducedText(prompt: $0.0, promptTokens: $0.1) }
    let texts = try withTorchErrors {
      // A reply begins a text of its own, a continuation doesn't.
      try generator.generate(
        prompts: prompts, options: options, stopStrings: stopStrings, continues: continues && state == nil, start: state,
        promptCache: state == nil ? cache : nil,
        draft: draft.map { TextGenerator.Draft(model: $0.model.model as! any GenerativeModel, guesses: $0.guesses) },
        onToken: { if results[$0].firstSeconds == nil { results[$0].firstSeconds = watch.seconds } },
        onText: { onText($0, $1) && !Interruption.isAsked })
    }
    for (i, text) in texts.enumerated() {
      results[i].text = text.text
      results[i].speculation = text.speculation
      results[i].ids = text.sequence.tokens
      results[i].logProbabilities = text.sequence.logProbabilities
      results[i].finish = text.sequence.finish.rawValue
      results[i].seconds = watch.seconds
    }
    return results
  }

  /// The best continuations that a beam search finds, best first for each prompt.
  func search(_ texts: [(name: String, tokens: [Int])], _ beams: BeamSearchOptions, watch: Stopwatch) throws -> [ProducedText] {
    try texts.map { text in
      let (prompts, state) = try start([text.tokens])
      let options = try fitting(options, prompts)
      let found = try withTorchErrors { try beamSearch(model, prompts: prompts, options: options, beams: beams, start: state) }
      guard let best = found[0].first else { return ProducedText(prompt: text.name, promptTokens: text.tokens.count) }
      let isEnded = best.tokens.last.map(options.stopTokens.contains) ?? false
      var result = ProducedText(prompt: text.name, promptTokens: text.tokens.count)
      result.text = try generator.text(
        of: best.tokens, after: continues && state == nil ? text.tokens : [], stopTokens: options.stopTokens)
      result.ids = best.tokens
      result.score = best.score
      result.finish = (isEnded ? GeneratedSequence.Finish.stop : .length).rawValue
      result.seconds = watch.seconds
      return result
    }
  }

  /// What is said in a recording, piece by piece as long as the model reads at once.
  func transcribe(
    _ path: String, language: String?, task: WhisperPrompt.Task?, watch: Stopwatch, onText: @escaping (String) -> Bool
  ) throws -> ProducedText {
    guard let model = pretrained.encoderDecoder, model.stem != nil else {
      throw FileError(pretrained.configuration.directory, "does not read speech, so it can't take --audio")
    }
    let (spectrogram, prompt) = (try pretrained.logMelSpectrogram(), try pretrained.whisperPrompt())
    let samples = try WaveFile(path).mono(sampleRate: spectrogram.configuration.sampleRate)
    var options = self.options
    for token in prompt.suppressed { options.logitBias[token] = -.infinity }
    for token in prompt.suppressedAtStart { options.firstLogitBias[token] = -.infinity }
    if !prompt.ends.isEmpty { options.stopTokens = prompt.ends }
    var language = language
    var whole = ProducedText(prompt: path)
    for (number, segment) in spectrogram.segments(of: samples).enumerated() {
      let state = try withTorchErrors {
        try withoutGradient { try model.initialState(memory: model.encode(try spectrogram(segment)), cache: options.cache) }
      }
      if language == nil && !prompt.languages.isEmpty {
        var probe = state.copied()
        language = withoutGradient { prompt.detectedLanguage(model.advance(Tensor([prompt.start], [1, 1]), &probe)) }
      }
      let part = try run([(path, 0)], [try prompt.tokens(language: language, task: task)], state, options, watch) { onText($1) }[0]
      whole.text += part.text
      whole.ids += part.ids
      whole.logProbabilities += part.logProbabilities
      whole.finish = part.finish
      if number == 0 { whole.firstSeconds = part.firstSeconds }
      whole.seconds = part.seconds
      if Interruption.isAsked { break }
    }
    return whole
  }
}
