import Foundation

/// A chat template: the Jinja program in a model's `chat_template.jinja` or `tokenizer_config.json` that turns a conversation into
/// the text the model was trained on.
///
/// Reads the part of Jinja2 that such templates use, as transformers configures it (`trim_blocks`, `lstrip_blocks`, loop controls,
/// `{% generation %}`, a `tojson` without escapes for HTML, a sandbox where nothing but a `namespace()` can change). What isn't
/// implemented (`include`, `extends`, `import`, `block`, recursive loops, some filters) is an error that names it and its line.
/// A template is untrusted: ``Limits`` bound its work, output and recursion.
public struct ChatTemplate: Sendable {
  /// Bounds of one rendering.
  public struct Limits: Sendable, Hashable {
    /// Units of work: some 32 for a step of the template, 4 for a byte of a string it makes, 64 for an element.
    public var work: Int
    /// Bytes of the text.
    public var outputBytes: Int
    /// Levels of recursion: a nested statement, expression or macro call each count one.
    public var depth: Int

    public init(work: Int = 1 << 30, outputBytes: Int = 64 << 20, depth: Int = 600) {
      self.work = work
      self.outputBytes = outputBytes
      self.depth = depth
    }
  }

  /// A rendered conversation.
  public struct Rendering: Sendable, Hashable {
    public let text: String
    /// What the template marks with `{% generation %}` as the assistant's, as ranges of UTF-8 bytes of `text`.
    public let generated: [Range<Int>]
  }

  /// The longest template that is read, in bytes.
  public static let maximumSourceBytes = 4 << 20

  public let source: String
  public var limits: Limits
  /// The strings that templates know by name: `bos_token`, `eos_token` …
  public var specialTokens: [String: String]
  private let statements: [TemplateStatement]

  /// Throws ``ChatTemplateError`` with the line for what isn't Jinja and for what isn't implemented.
  public init(_ source: String, specialTokens: [String: String] = [:], limits: Limits = Limits()) throws {
    guard source.utf8.count <= Self.maximumSourceBytes else {
      throw ChatTemplateError(.limit, "a template of \(source.utf8.count) bytes; \(Self.maximumSourceBytes) are allowed")
    }
    self.source = source
    self.limits = limits
    self.specialTokens = specialTokens
    let source = source
    statements = try Self.onDeepStack { try TemplateParser.parse(source) }
  }

  /// The text of a conversation.
  ///
  /// - Parameters:
  ///   - messages: objects with `role`, `content` and what else the template reads.
  ///   - tools: JSON schemas of the functions that the model may call.
  ///   - documents: what some templates quote as sources.
  ///   - addGenerationPrompt: whether the text ends where the assistant is to begin.
  ///   - bosToken, eosToken: replace those of `specialTokens`.
  ///   - variables: further variables, such as `enable_thinking`. They win over all others but the messages.
  ///   - now: what `strftime_now` reads, in the machine's time zone.
  ///
  /// Throws ``ChatTemplateError`` with the line, also when the template calls `raise_exception`.
  public func render(
    messages: [JSONValue], tools: [JSONValue]? = nil, documents: [JSONValue]? = nil, addGenerationPrompt: Bool = false,
    bosToken: String? = nil, eosToken: String? = nil, variables: JSONObject = [:], now: Date = Date()
  ) throws -> String {
    try rendering(
      messages: messages, tools: tools, documents: documents, addGenerationPrompt: addGenerationPrompt, bosToken: bosToken,
      eosToken: eosToken, variables: variables, now: now
    ).text
  }

  /// The text of a conversation of messages; see ``render(messages:tools:documents:addGenerationPrompt:bosToken:eosToken:variables:now:)-([JSONValue],_,_,_,_,_,_,_)``.
  public func render(
    messages: [ChatMessage], tools: [JSONValue]? = nil, documents: [JSONValue]? = nil, addGenerationPrompt: Bool = false,
    bosToken: String? = nil, eosToken: String? = nil, variables: JSONObject = [:], now: Date = Date()
  ) throws -> String {
    try render(
      messages: messages.map(\.json), tools: tools, documents: documents, addGenerationPrompt: addGenerationPrompt, bosToken: bosToken,
      eosToken: eosToken, variables: variables, now: now)
  }

  /// As `render`, with the assistant's parts marked.
  public func rendering(
    messages: [JSONValue], tools: [JSONValue]? = nil, documents: [JSONValue]? = nil, addGenerationPrompt: Bool = false,
    bosToken: String? = nil, eosToken: String? = nil, variables: JSONObject = [:], now: Date = Date()
  ) throws -> Rendering {
    let (statements, limits, specialTokens) = (statements, limits, specialTokens)
    return try Self.onDeepStack {
      var values: [String: TemplateValue] = specialTokens.mapValues { .string($0) }
      if let bosToken { values["bos_token"] = .string(bosToken) }
      if let eosToken { values["eos_token"] = .string(eosToken) }
      values["tools"] = try tools.map { try TemplateValue(.array($0)) } ?? TemplateValue.none
      values["documents"] = try documents.map { try TemplateValue(.array($0)) } ?? TemplateValue.none
      values["add_generation_prompt"] = .bool(addGenerationPrompt)
      for (name, value) in variables.pairs { values[name] = try TemplateValue(value) }
      values["messages"] = try TemplateValue(.array(messages.map(Self.naming)))
      let interpreter = TemplateInterpreter(limits: limits, now: now)
      try interpreter.render(statements, values)
      return Rendering(text: interpreter.output, generated: interpreter.generationSpans)
    }
  }

  /// Templates read a message's reasoning under several names; transformers fills them in from each other.
  private static func naming(_ message: JSONValue) throws -> JSONValue {
    guard case .object(let object) = message else {
      throw ChatTemplateError(.evaluation, "a message must be an object with a role and content, this is \(message.kindDescription)")
    }
    let reasoning = ["reasoning_content", "thinking", "reasoning"].lazy.compactMap { object[$0] }.first { $0 != .null }
    guard let reasoning else { return message }
    var result = JSONObject()
    result["thinking"] = reasoning
    for (key, value) in object.pairs { result[key] = value }
    result["reasoning_content"] = reasoning
    return .object(result)
  }

  /// Runs `body` on a thread with stack enough for the deepest recursion that the limits allow: the caller's may be a task's 512 KB.
  private static func onDeepStack<R>(_ body: @escaping () throws -> R) throws -> R {
    let box = Box(body)
    let done = DispatchSemaphore(value: 0)
    let thread = Thread {
      box.result = Result { try box.body() }
      done.signal()
    }
    thread.stackSize = 16 << 20
    thread.start()
    done.wait()
    return try box.result!.get()
  }
}

/// Carries a closure to another thread and its result back. Only one thread at a time touches it: a semaphore orders them.
private final class Box<R>: @unchecked Sendable {
  var body: () throws -> R
  var result: Result<R, any Error>?
  init(_ body: @escaping () throws -> R) { self.body = body }
}
