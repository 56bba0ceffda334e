import Foundation

extension Tokenizer {
  /// Reads the tokenizer of a model's folder: `tokenizer.json`, else `tokenizer.model` (SentencePiece), `vocab.txt` (BERT), or `vocab.json`
  /// and `merges.txt` (GPT-2, RoBERTa); with `tokenizer_config.json`, `special_tokens_map.json` and chat templates where they exist.
  /// The path of a `tokenizer.json` itself may be given too.
  ///
  /// Throws ``FileError`` that names the file and the key.
  public static func load(_ path: String) throws -> Tokenizer {
    var isFolder: ObjCBool = false
    guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) else {
      throw FileError(path, "there is no such file or folder")
    }
    if !isFolder.boolValue {
      let name = URL(fileURLWithPath: path).lastPathComponent
      if name == "vocab.txt" { return try TokenizerFolder(path: URL(fileURLWithPath: path).deletingLastPathComponent().path).bert() }
      if name.hasSuffix(".model") { return try Tokenizer(sentencePieceFile: path) }
      return try Tokenizer(file: path)
    }
    return try TokenizerFolder(path: path).load()
  }
}

struct TokenizerFolder {
  let path: String

  func file(_ name: String) -> String { path + "/" + name }
  func has(_ name: String) -> Bool { FileManager.default.fileExists(atPath: file(name)) }

  func load() throws -> Tokenizer {
    if has("tokenizer.json") {
      var tokenizer = try Tokenizer(file: file("tokenizer.json"))
      tokenizer.configuration = try configuration()
      if tokenizer.configuration.addsBeginning != nil || tokenizer.configuration.addsEnd != nil {
        tokenizer.replacePostProcessor(by: beginningAndEnd(tokenizer))
      }
      return tokenizer
    }
    if let file = sentencePieceFile { return try sentencePiece(file) }
    if has("vocab.txt") { return try bert() }
    if has("vocab.json") && has("merges.txt") { return try byteLevel() }
    throw FileError(
      path, "no tokenizer was found: expected tokenizer.json, tokenizer.model, vocab.txt, or vocab.json with merges.txt")
  }

  /// What `add_bos_token` and `add_eos_token` ask for. As in transformers, either of them replaces the post-processor of the file.
  private func beginningAndEnd(_ tokenizer: Tokenizer) -> PostProcessor {
    func special(_ isWanted: Bool?, _ token: String?, _ id: Int?) -> PostProcessor.SpecialToken? {
      guard isWanted == true, let token, let id else { return nil }
      return PostProcessor.SpecialToken(token, id: id)
    }
    let configuration = tokenizer.configuration
    let beginning = special(configuration.addsBeginning, configuration.beginningToken, tokenizer.beginningId)
    let end = special(configuration.addsEnd, configuration.endToken, tokenizer.endId)
    func around(_ text: Int) -> [PostProcessor.TemplatePiece] {
      var pieces: [PostProcessor.TemplatePiece] = [.text(text, typeId: text)]
      if let beginning { pieces.insert(.special([beginning], typeId: text), at: 0) }
      if let end { pieces.append(.special([end], typeId: text)) }
      return pieces
    }
    return .template(single: around(0), pair: around(0) + around(1))
  }

  // MARK: tokenizer_config.json

  func configuration() throws -> TokenizerConfiguration {
    var configuration = TokenizerConfiguration()
    if has("special_tokens_map.json") {
      let name = file("special_tokens_map.json")
      try readSpecialTokens(try json(name), name, &configuration)
    }
    if has("tokenizer_config.json") {
      let name = file("tokenizer_config.json")
      let value = try json(name)
      let fields = Fields(value, file: name, path: "tokenizer_config")
      configuration.values = value
      try readSpecialTokens(value, name, &configuration)
      if let flag = value["add_bos_token"]?.boolValue { configuration.addsBeginning = flag }
      if let flag = value["add_eos_token"]?.boolValue { configuration.addsEnd = flag }
      if let flag = value["clean_up_tokenization_spaces"]?.boolValue { configuration.cleansUpSpaces = flag }
      configuration.className = value["tokenizer_class"]?.stringValue
      // Unlimited models say 10³⁰.
      if let length = value["model_max_length"]?.doubleValue, length >= 1, length < 1e9 { configuration.maximumLength = Int(length) }
      switch value["chat_template"] ?? .null {
      case .null: break
      case .string(let template): configuration.chatTemplate = template
      case .array(let list):
        for element in list {
          guard let name = element["name"]?.stringValue, let template = element["template"]?.stringValue else {
            throw fields.failure("chat_template", "a list must have objects with \"name\" and \"template\"")
          }
          if name == "default" { configuration.chatTemplate = template } else { configuration.namedChatTemplates[name] = template }
        }
      default: throw fields.failure("chat_template", "must be a string or a list of templates")
      }
    }
    if has("chat_template.jinja") {
      let name = file("chat_template.jinja")
      guard let template = String(data: try TokenizerFiles.read(name), encoding: .utf8) else {
        throw FileError(name, "the file isn't valid UTF-8")
      }
      configuration.chatTemplate = template
    }
    return configuration
  }

  private func json(_ name: String) throws -> JSONValue {
    let value: JSONValue = try TokenizerFiles.read(name).withUnsafeBytes { raw in
      do { return try JSONValue.parse(raw.bindMemory(to: UInt8.self)) } catch let error as JSONError {
        throw FileError(name, error.description)
      }
    }
    guard value.objectValue != nil else { throw FileError(name, "must be an object, not \(value.kindDescription)") }
    return value
  }

  private func readSpecialTokens(_ value: JSONValue, _ name: String, _ configuration: inout TokenizerConfiguration) throws {
    func token(_ key: String) throws -> String? {
      switch value[key] ?? .null {
      case .null: return nil
      case .string(let token): return token
      case .object(let object):
        if let content = object["content"]?.stringValue { return content }
        throw FileError(name, "\(key): an object must have \"content\"")
      default: throw FileError(name, "\(key): must be a string or an object with \"content\"")
      }
    }
    if let token = try token("bos_token") { configuration.beginningToken = token }
    if let token = try token("eos_token") { configuration.endToken = token }
    if let token = try token("unk_token") { configuration.unknownToken = token }
    if let token = try token("pad_token") { configuration.paddingToken = token }
    if let token = try token("sep_token") { configuration.separatorToken = token }
    if let token = try token("cls_token") { configuration.classificationToken = token }
    if let token = try token("mask_token") { configuration.maskToken = token }
    if let list = value["additional_special_tokens"]?.arrayValue {
      configuration.additionalSpecialTokens = list.compactMap { $0.stringValue ?? $0["content"]?.stringValue }
    }
  }

  /// The tokens with a role and those of `added_tokens_decoder`, by their ids where they have one.
  private func addedTokens(_ configuration: TokenizerConfiguration, _ vocabulary: Vocabulary) throws -> [AddedToken] {
    let name = file("tokenizer_config.json")
    var tokens: [AddedToken] = []
    var seen: Set<[UInt8]> = []
    if let decoder = configuration.values["added_tokens_decoder"]?.objectValue {
      var entries: [(id: Int, token: AddedToken)] = []
      for (key, value) in decoder.pairs {
        guard let id = Int(key), id >= 0 && id <= Vocabulary.maximumId else {
          throw FileError(name, "added_tokens_decoder: \"\(key)\" is no id")
        }
        let fields = Fields(value, file: name, path: "added_tokens_decoder[\"\(key)\"]")
        let isSpecial = try fields.bool("special", default: false)
        entries.append(
          (
            id,
            AddedToken(
              try fields.string("content"), singleWord: try fields.bool("single_word", default: false),
              stripsLeft: try fields.bool("lstrip", default: false), stripsRight: try fields.bool("rstrip", default: false),
              isNormalized: try fields.bool("normalized", default: !isSpecial), isSpecial: isSpecial)
          ))
      }
      for entry in entries.sorted(by: { $0.id < $1.id }) where seen.insert(Array(entry.token.content.utf8)).inserted {
        tokens.append(entry.token)
      }
    }
    let roles = [
      configuration.beginningToken, configuration.endToken, configuration.unknownToken, configuration.separatorToken,
      configuration.paddingToken, configuration.classificationToken, configuration.maskToken,
    ]
    for content in roles.compactMap({ $0 }) + configuration.additionalSpecialTokens
    where seen.insert(Array(content.utf8)).inserted {
      let isMask = content == configuration.maskToken
      // RoBERTa's mask takes the blank before it.
      tokens.append(AddedToken(content, stripsLeft: isMask && content == "<mask>", isNormalized: false, isSpecial: true))
    }
    return tokens
  }

  // MARK: vocab.txt

  /// BERT's tokenizer from `vocab.txt`.
  func bert() throws -> Tokenizer {
    let name = file("vocab.txt")
    var configuration = try configuration()
    let values = Fields(configuration.values, file: file("tokenizer_config.json"), path: "tokenizer_config")
    let data = try TokenizerFiles.read(name)
    var builder = Vocabulary.Builder()
    do {
      try data.withUnsafeBytes { raw in
        let bytes = raw.bindMemory(to: UInt8.self)
        guard bytes.isEmpty || UTF8Text.isValid(bytes.baseAddress!, bytes.count) else {
          throw FileError(name, "the file isn't valid UTF-8")
        }
        var start = 0
        while start < bytes.count {
          let end = bytes[start...].firstIndex(of: 0x0A) ?? bytes.count
          var last = end
          // White space at the end of a line isn't the token's.
          while last > start {
            let (scalar, length) = UTF8Text.scalarBefore(bytes.baseAddress!, last)
            if last - length < start || !scalarClass(scalar, UnicodeTables.classes).contains(.space) { break }
            last -= length
          }
          try builder.append(UnsafeBufferPointer(rebasing: bytes[start..<last]), id: builder.count)
          start = end + 1
        }
      }
      guard builder.count > 0 else { throw FileError(name, "the file is empty") }
      let vocabulary = try Vocabulary(builder, repetition: .lastWins)
      configuration.unknownToken = configuration.unknownToken ?? "[UNK]"
      configuration.separatorToken = configuration.separatorToken ?? "[SEP]"
      configuration.paddingToken = configuration.paddingToken ?? "[PAD]"
      configuration.classificationToken = configuration.classificationToken ?? "[CLS]"
      configuration.maskToken = configuration.maskToken ?? "[MASK]"
      configuration.className = configuration.className ?? "BertTokenizer"
      func special(_ token: String) throws -> PostProcessor.SpecialToken {
        guard let id = vocabulary.id(of: token) else { throw FileError(name, "the token \"\(token)\" is missing") }
        return PostProcessor.SpecialToken(token, id: id)
      }
      let classification = try special(configuration.classificationToken ?? "")
      let separator = try special(configuration.separatorToken ?? "")
      var tokenizer = try Tokenizer(
        model: .wordPiece(try WordPiece(vocabulary: vocabulary, unknownToken: configuration.unknownToken ?? "[UNK]")),
        normalizer: .bert(
          cleansText: try values.bool("clean_text", default: true),
          separatesChinese: try values.bool("tokenize_chinese_chars", default: true),
          stripsAccents: values["strip_accents"] == .null ? nil : try values.bool("strip_accents", default: true),
          lowercases: try values.bool("do_lower_case", default: true)),
        preTokenizer: .bert,
        postProcessor: .template(
          single: [.special([classification], typeId: 0), .text(0, typeId: 0), .special([separator], typeId: 0)],
          pair: [
            .special([classification], typeId: 0), .text(0, typeId: 0), .special([separator], typeId: 0), .text(1, typeId: 1),
            .special([separator], typeId: 1),
          ]),
        decoder: .wordPiece(prefix: "##", cleansUp: true), addedTokens: try addedTokens(configuration, vocabulary))
      tokenizer.configuration = configuration
      return tokenizer
    } catch let error as VocabularyError { throw FileError(name, error.description) }
  }

  // MARK: vocab.json and merges.txt

  /// GPT-2's or RoBERTa's tokenizer from `vocab.json` and `merges.txt`.
  func byteLevel() throws -> Tokenizer {
    let name = file("vocab.json")
    var configuration = try configuration()
    let values = Fields(configuration.values, file: file("tokenizer_config.json"), path: "tokenizer_config")
    do {
      let vocabulary = try TokenizerFiles.read(name).withUnsafeBytes { raw in
        var cursor = try JSONCursor(raw.bindMemory(to: UInt8.self), file: name)
        var builder = Vocabulary.Builder()
        var token = RawBuffer<UInt8>()
        try cursor.take(UInt8(ascii: "{"), "where the vocabulary begins")
        if cursor.peek() == UInt8(ascii: "}") { throw cursor.failure("the vocabulary is empty") }
        repeat {
          try cursor.string(into: &token)
          try cursor.take(UInt8(ascii: ":"), "after a token")
          try builder.append(token.buffer, id: try cursor.integer("the id of a token"))
        } while try cursor.continues(UInt8(ascii: "}"))
        guard cursor.isAtEnd() else { throw cursor.failure("text after the end of the value") }
        return try Vocabulary(builder)
      }
      let model = BPE(vocabulary: vocabulary, merges: try mergesFile(vocabulary))
      let isRoberta = isRobertaLike(configuration)
      if isRoberta {
        configuration.beginningToken = configuration.beginningToken ?? "<s>"
        configuration.endToken = configuration.endToken ?? "</s>"
        configuration.unknownToken = configuration.unknownToken ?? "<unk>"
        configuration.separatorToken = configuration.separatorToken ?? "</s>"
        configuration.paddingToken = configuration.paddingToken ?? "<pad>"
        configuration.classificationToken = configuration.classificationToken ?? "<s>"
        configuration.maskToken = configuration.maskToken ?? "<mask>"
      } else if vocabulary.id(of: "<|endoftext|>") != nil {
        configuration.beginningToken = configuration.beginningToken ?? "<|endoftext|>"
        configuration.endToken = configuration.endToken ?? "<|endoftext|>"
        configuration.unknownToken = configuration.unknownToken ?? "<|endoftext|>"
      }
      let addsPrefixSpace = try values.bool("add_prefix_space", default: false)
      let postProcessor: PostProcessor
      if isRoberta {
        func special(_ token: String?) throws -> PostProcessor.SpecialToken {
          guard let token, let id = vocabulary.id(of: token) else { throw FileError(name, "the token \"\(token ?? "")\" is missing") }
          return PostProcessor.SpecialToken(token, id: id)
        }
        postProcessor = .roberta(
          classification: try special(configuration.classificationToken), separator: try special(configuration.separatorToken),
          trimsOffsets: true, addsPrefixSpace: addsPrefixSpace)
      } else {
        postProcessor = .byteLevel(trimsOffsets: false, addsPrefixSpace: addsPrefixSpace)
      }
      var tokenizer = try Tokenizer(
        model: .bpe(model), preTokenizer: .byteLevel(addsPrefixSpace: addsPrefixSpace, usesPattern: true), postProcessor: postProcessor,
        decoder: .byteLevel, addedTokens: try addedTokens(configuration, vocabulary))
      tokenizer.configuration = configuration
      return tokenizer
    } catch let error as VocabularyError { throw FileError(name, error.description) }
  }

  private func isRobertaLike(_ configuration: TokenizerConfiguration) -> Bool {
    var names = [configuration.className ?? ""]
    if names[0].isEmpty, has("config.json"), let config = try? json(file("config.json")) {
      names.append(config["model_type"]?.stringValue ?? "")
    }
    return names.contains { name in
      ["roberta", "bart", "longformer", "led"].contains { name.lowercased().hasPrefix($0) }
    }
  }

  private func mergesFile(_ vocabulary: Vocabulary) throws -> BPE.MergeList {
    let name = file("merges.txt")
    let data = try TokenizerFiles.read(name)
    var maker = MergeListReader(vocabulary: vocabulary, prefix: [])
    try data.withUnsafeBytes { (raw: UnsafeRawBufferPointer) throws -> Void in
      let bytes = raw.bindMemory(to: UInt8.self)
      var start = 0
      var line = 0
      while start < bytes.count {
        let end = bytes[start...].firstIndex(of: 0x0A) ?? bytes.count
        var last = end
        if last > start && bytes[last - 1] == 0x0D { last -= 1 }
        line += 1
        let content = UnsafeBufferPointer(rebasing: bytes[start..<last])
        start = end + 1
        if content.isEmpty || content.starts(with: Array("#version".utf8)) { continue }
        do { try maker.append(line: content) } catch { throw FileError(name, "line \(line): \(error)") }
      }
    }
    return maker.list
  }
}
