/// What Whisper's decoder is told before it writes, and what it may not write: the task's tokens, from `generation_config.json`.
///
/// ```swift
/// let prompt = try WhisperPrompt(generationConfiguration: json)
/// let tokens = try prompt.tokens(language: "en")
/// var options = GenerationOptions()
/// for token in prompt.suppressed { options.logitBias[token] = -.infinity }
/// for token in prompt.suppressedAtStart { options.firstLogitBias[token] = -.infinity }
/// options.stopTokens = prompt.ends
/// ```
public struct WhisperPrompt: Sendable, Equatable {
  public enum Task: String, Sendable, CaseIterable {
    case transcribe
    /// To English.
    case translate
  }

  /// The token that every output begins with.
  public let start: Int
  /// Tokens by language ("<|en|>"); empty for models of English only.
  public let languages: [String: Int]
  public let tasks: [String: Int]
  /// Tells the model to write no times.
  public let noTimestamps: Int?
  /// Tokens that may never come.
  public let suppressed: [Int]
  /// Tokens that may not come first.
  public let suppressedAtStart: [Int]
  /// Tokens that end an output.
  public let ends: Set<Int>
  /// What older files prescribe after the start token.
  private let forced: [Int]

  /// - Parameters:
  ///   - generationConfiguration: the contents of `generation_config.json`.
  ///   - modelConfiguration: those of `config.json`, for keys that older checkpoints keep there.
  /// - Throws: `ConfigurationError` that names the key whose value isn't what it should be.
  public init(generationConfiguration: JSONValue, modelConfiguration: JSONValue = .null) throws {
    func value(_ key: String) -> JSONValue? {
      for source in [generationConfiguration, modelConfiguration] {
        if let value = source[key], value != .null { return value }
      }
      return nil
    }
    func wrong(_ key: String, _ expected: String) -> ConfigurationError {
      ConfigurationError("\"\(key)\" of the generation configuration must be \(expected), not \(value(key)?.kindDescription ?? "absent")")
    }
    func integer(_ key: String) throws -> Int? {
      guard let value = value(key) else { return nil }
      guard let number = value.intValue, number >= 0 else { throw wrong(key, "a token") }
      return number
    }
    func list(_ key: String) throws -> [Int] {
      guard let value = value(key) else { return [] }
      guard let array = value.arrayValue else { throw wrong(key, "an array of tokens") }
      return try array.map {
        guard let number = $0.intValue, number >= 0 else { throw wrong(key, "an array of tokens") }
        return number
      }
    }
    func table(_ key: String) throws -> [String: Int] {
      guard let value = value(key) else { return [:] }
      guard let object = value.objectValue else { throw wrong(key, "an object of tokens") }
      return try Dictionary(
        uniqueKeysWithValues: object.pairs.map { name, token in
          guard let number = token.intValue, number >= 0 else { throw wrong(key, "an object of tokens") }
          return (name, number)
        })
    }
    guard let start = try integer("decoder_start_token_id") else { throw wrong("decoder_start_token_id", "a token") }
    self.start = start
    languages = try table("lang_to_id")
    tasks = try table("task_to_id")
    noTimestamps = try integer("no_timestamps_token_id")
    suppressed = try list("suppress_tokens")
    suppressedAtStart = try list("begin_suppress_tokens")
    ends = Set(value("eos_token_id")?.arrayValue == nil ? try integer("eos_token_id").map { [$0] } ?? [] : try list("eos_token_id"))
    // Pairs of a position and its token; a null token (the language) is left to the model.
    forced = try (value("forced_decoder_ids")?.arrayValue ?? []).compactMap {
      guard let pair = $0.arrayValue, pair.count == 2 else { throw wrong("forced_decoder_ids", "pairs of a position and a token") }
      return pair[1].intValue
    }
  }

  /// The decoder's prompt: start, language, task, and no times unless they are asked for.
  ///
  /// - Parameter language: its code ("en"); `nil` for a model of English only, or for what an older file prescribes. A multilingual
  ///   model detects it as the likeliest of `languages` after the start token.
  /// - Throws: `ConfigurationError` for a language or a task that the model doesn't know, and where the language must be given.
  public func tokens(language: String? = nil, task: Task? = nil, timestamps: Bool = false) throws -> [Int] {
    var result = [start]
    if let language {
      guard !languages.isEmpty else {
        throw ConfigurationError("the model knows one language only (its generation configuration has no \"lang_to_id\"); give none")
      }
      guard let token = languages[language] ?? languages["<|\(language)|>"] else {
        let codes = languages.keys.map { $0.replacing("<|", with: "").replacing("|>", with: "") }.sorted()
        throw ConfigurationError(
          "the model doesn't know the language \"\(language)\".\(Suggestions.phrase(for: language, in: codes)) It knows: "
            + codes.joined(separator: ", "))
      }
      result.append(token)
    } else if !forced.isEmpty && task == nil {
      result += forced
    } else if !languages.isEmpty {
      throw ConfigurationError("a multilingual model must be told the language; detect it as the likeliest language token after the start")
    }
    if !tasks.isEmpty && (task != nil || language != nil) {
      let name = (task ?? .transcribe).rawValue
      guard let token = tasks[name] else { throw ConfigurationError("the model doesn't know the task \"\(name)\"") }
      result.append(token)
    } else if let task, task != .transcribe {
      throw ConfigurationError("the model can only transcribe (its generation configuration has no \"task_to_id\")")
    }
    if let noTimestamps {
      if timestamps { result.removeAll { $0 == noTimestamps } } else if result.last != noTimestamps { result.append(noTimestamps) }
    }
    return result
  }

  /// The code of the likeliest language, from the logits [vocabulary] after the start token; `nil` for a model of one language.
  public func detectedLanguage(_ logits: Tensor) -> String? {
    let known = languages.filter { $0.value < logits.dim(-1) }.sorted { $0.value < $1.value }
    guard !known.isEmpty else { return nil }
    let scores = logits.reshaped(-1).take(Tensor(known.map(\.value)).to(logits.device))
    return known[scores.argmax(axis: 0).itemInt()].key.replacing("<|", with: "").replacing("|>", with: "")
  }
}
