@_exported import MartletTokenizers

/// A text that a model wrote.
public struct GeneratedText: Sendable, Equatable {
  public var text = ""
  /// The tokens behind it, also those of a stop string that was cut off.
  public var sequence = GeneratedSequence()
  public var promptTokens = 0
  /// How a draft model's guesses were received, where one helped.
  public var speculation: SpeculationReport?
}

/// A language model with its tokenizer: text in, text out, piece by piece.
public struct TextGenerator {
  public let model: any GenerativeModel
  public let tokenizer: Tokenizer

  /// Throws `ConfigurationError` when the tokenizer has tokens that the model doesn't know.
  public init(model: any GenerativeModel, tokenizer: Tokenizer) throws {
    // Vocabularies are often padded to round numbers, so the model's may be larger; added tokens beyond it would be out of range.
    guard tokenizer.model.vocabulary.idCount <= model.vocabulary else {
      throw ConfigurationError(
        "the tokenizer has ids up to \(tokenizer.model.vocabulary.idCount - 1), the model a vocabulary of \(model.vocabulary): they don't belong together"
      )
    }
    self.model = model
    self.tokenizer = tokenizer
  }

  /// The tokens of a prompt. Throws `ConfigurationError` when there are none, `TokenizationError` from the tokenizer.
  public func tokens(of prompt: String, addSpecialTokens: Bool = true) throws -> [Int] {
    let ids = try tokenizer.encode(prompt, addSpecialTokens: addSpecialTokens).ids.map(Int.init)
    if ids.isEmpty, let begin = tokenizer.beginningId ?? tokenizer.endId { return [begin] }
    return ids
  }

  /// A small model that guesses ahead of the large one.
  public struct Draft {
    public let model: any GenerativeModel
    /// Tokens proposed at a time.
    public let guesses: Int

    public init(model: any GenerativeModel, guesses: Int = 4) {
      self.model = model
      self.guesses = guesses
    }
  }

  /// Tokens of a prompt that decide how the text after it begins.
  private static let contextTokens = 8

  /// Continues prompts given as tokens.
  ///
  /// - Parameters:
  ///   - stopStrings: a text ends before the first of these that appears in it.
  ///   - continues: whether the text goes on from the prompt's, so that a blank between them is kept; a reply begins anew.
  ///   - draft: helps with a single prompt.
  ///   - onToken: called at every token, with the prompt's index.
  ///   - onText: receives the prompt's index and each new piece of text; returning false ends that text.
  /// - Throws: as ``generate(_:prompts:options:start:promptCache:onToken:)`` and
  ///   ``speculate(_:draft:prompt:options:guesses:onToken:)``.
  public func generate(
    prompts: [[Int]], options: GenerationOptions, stopStrings: [String] = [], continues: Bool = true,
    start: SequenceBackbone.State? = nil, promptCache: PromptCache? = nil, draft: Draft? = nil,
    onToken: (_ prompt: Int) -> Void = { _ in }, onText: (_ prompt: Int, _ piece: String) -> Bool = { _, _ in true }
  ) throws -> [GeneratedText] {
    var results = prompts.map { GeneratedText(promptTokens: $0.count) }
    var streams = prompts.map { _ in TextStream(tokenizer, stopStrings: stopStrings) }
    if continues { for i in streams.indices { try streams[i].follow(prompts[i].suffix(Self.contextTokens)) } }
    var failure: (any Error)?
    func receive(_ index: Int, _ token: Int) -> Bool {
      onToken(index)
      if options.stopTokens.contains(token) { return true }
      do {
        let piece = try streams[index].append(token)
        results[index].text += piece
        let goesOn = piece.isEmpty || onText(index, piece)
        return goesOn && !streams[index].hasStopped
      } catch {
        failure = error
        return false
      }
    }
    let sequences: [GeneratedSequence]
    if let draft, prompts.count == 1, start == nil {
      let (sequence, report) = try speculate(
        model, draft: draft.model, prompt: prompts[0], options: options, guesses: draft.guesses
      ) { receive(0, $0) }
      results[0].speculation = report
      sequences = [sequence]
    } else {
      sequences = try MartletInference.generate(
        model, prompts: prompts, options: options, start: start, promptCache: promptCache
      ) { index, token, _ in receive(index, token) }
    }
    if let failure { throw failure }
    for i in results.indices {
      let wasCut = streams[i].hasStopped
      let rest = try streams[i].finish()
      results[i].text += rest
      if !rest.isEmpty { _ = onText(i, rest) }
      results[i].sequence = sequences[i]
      if wasCut { results[i].sequence.finish = .stop }
    }
    return results
  }

  /// The text of a sequence after a prompt, without its stop token.
  public func text(of tokens: [Int], after prompt: [Int] = [], stopTokens: Set<Int> = []) throws -> String {
    var stream = TextStream(tokenizer, stopStrings: [])
    try stream.follow(prompt.suffix(Self.contextTokens))
    var text = ""
    for token in tokens where !stopTokens.contains(token) { text += try stream.append(token) }
    return text + (try stream.finish())
  }

  /// Continues prompts.
  public func generate(
    _ prompts: [String], options: GenerationOptions, stopStrings: [String] = [],
    onText: (_ prompt: Int, _ piece: String) -> Bool = { _, _ in true }
  ) throws -> [GeneratedText] {
    try generate(prompts: try prompts.map { try tokens(of: $0) }, options: options, stopStrings: stopStrings, onText: onText)
  }
}

/// Text of tokens as they come, which ends before a stop string: what might become one is held back.
public struct TextStream: Sendable {
  private var decoder: StreamingDecoder
  private let stopStrings: [[UInt8]]
  private var held: [UInt8] = []
  /// Whether a stop string has come.
  public private(set) var hasStopped = false

  public init(_ tokenizer: Tokenizer, stopStrings: [String]) {
    decoder = StreamingDecoder(tokenizer)
    self.stopStrings = stopStrings.filter { !$0.isEmpty }.map { Array($0.utf8) }
  }

  /// Takes the end of what stands before the text, so that it goes on from there: a blank before its first word is kept, where it
  /// would be left out at the beginning of a text.
  public mutating func follow(_ tokens: some Sequence<Int>) throws { for token in tokens { _ = try decoder.append(token) } }

  /// The text that a token releases.
  public mutating func append(_ token: Int) throws -> String { release(try decoder.append(token)) }

  /// What is left at the end.
  public mutating func finish() throws -> String {
    let last = release(try decoder.finish())
    defer { held = [] }
    return hasStopped ? last : last + String(decoding: held, as: UTF8.self)
  }

  private mutating func release(_ piece: String) -> String {
    guard !hasStopped else { return "" }
    guard !stopStrings.isEmpty else { return piece }
    held += piece.utf8
    if let cut = stopStrings.compactMap({ firstPlace(of: $0) }).min() {
      hasStopped = true
      defer { held = [] }
      return String(decoding: held[..<cut], as: UTF8.self)
    }
    // The longest end of what is held that a stop string begins with must wait.
    let waiting =
      stopStrings.map { stop in (0..<min(stop.count, held.count + 1)).last { held.suffix($0).elementsEqual(stop[..<$0]) } ?? 0 }.max() ?? 0
    var free = held.count - waiting
    // Characters are given out whole.
    while free > 0 && free < held.count && held[free] & 0xC0 == 0x80 { free -= 1 }
    defer { held.removeFirst(free) }
    return String(decoding: held[..<free], as: UTF8.self)
  }

  private func firstPlace(of stop: [UInt8]) -> Int? {
    guard held.count >= stop.count else { return nil }
    return (0...(held.count - stop.count)).first { held[$0..<($0 + stop.count)].elementsEqual(stop) }
  }
}

extension GenerationOptions {
  /// The options that a checkpoint's `generation_config.json` asks for: sampling, penalties, the tokens that end a text. What it doesn't
  /// say is greedy. Values out of range are left out: they are the file's, not the user's.
  public init(_ configuration: PretrainedConfiguration, maximumTokens: Int = 128) {
    let file = configuration.generation
    func number(_ key: String) -> Double? { file[key]?.doubleValue }
    var sampler = Sampler(temperature: 0)
    if file["do_sample"]?.boolValue == true {
      sampler = Sampler(
        temperature: number("temperature") ?? 1, topK: file["top_k"]?.intValue.flatMap { $0 > 0 ? $0 : nil } ?? 50,
        topP: number("top_p") ?? 1, minP: number("min_p") ?? 0)
      if (try? sampler.validate()) == nil { sampler = Sampler() }
    }
    self.init(maximumTokens: maximumTokens, sampler: sampler)
    if let penalty = number("repetition_penalty"), penalty > 0 { repetitionPenalty = penalty }
    if let run = file["no_repeat_ngram_size"]?.intValue, run > 0 { noRepeatedRun = run }
    stopTokens = Set(configuration.endTokens)
    let forbidden = file["suppress_tokens"]?.arrayValue?.compactMap(\.intValue) ?? []
    for token in forbidden where token >= 0 { logitBias[token] = -.infinity }
    let atFirst = file["begin_suppress_tokens"]?.arrayValue?.compactMap(\.intValue) ?? []
    for token in atFirst where token >= 0 { firstLogitBias[token] = -.infinity }
  }
}
