import Foundation

extension Tokenizer {
  /// Reads a `tokenizer.json`. Throws ``FileError`` that names the file and the key.
  public init(file path: String) throws {
    try self.init(json: try TokenizerFiles.read(path), file: path)
  }

  /// Reads the contents of a `tokenizer.json`; `file` is what errors call it.
  public init(json data: Data, file: String = "tokenizer.json") throws {
    self = try data.withUnsafeBytes { raw in
      try TokenizerFileReader(file: file).read(raw.bindMemory(to: UInt8.self))
    }
  }
}

/// Reads the bytes of files.
enum TokenizerFiles {
  /// Files are smaller than this by far.
  static let largest = 1 << 30

  static func read(_ path: String) throws -> Data {
    guard let attributes = try? FileManager.default.attributesOfItem(atPath: path) else {
      throw FileError(path, "there is no such file, or it can't be read")
    }
    guard attributes[.type] as? FileAttributeType != .typeDirectory else { throw FileError(path, "this is a folder; a file was expected") }
    if let size = attributes[.size] as? Int, size > largest {
      throw FileError(path, "the file has \(size) bytes; tokenizer files of more than \(largest) bytes are refused")
    }
    do { return try Data(contentsOf: URL(fileURLWithPath: path), options: .mappedIfSafe) } catch {
      throw FileError(path, "can't be read (\(error.localizedDescription))")
    }
  }
}

/// The parts of a `tokenizer.json`.
private struct TokenizerFileReader {
  let file: String

  func failure(_ key: String, _ reason: String) -> FileError { FileError(file, "\(key): \(reason)") }

  func read(_ bytes: UnsafeBufferPointer<UInt8>) throws -> Tokenizer {
    var cursor = try JSONCursor(bytes, file: file)
    var parts: [String: JSONValue] = [:]
    var modelAt: Int?
    try cursor.forEachMember { cursor, key in
      switch key {
      case "model":
        if modelAt != nil { throw cursor.failure("the key \"model\" occurs twice") }
        _ = cursor.peek()
        modelAt = cursor.position
        try cursor.skipValue()
      case "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder":
        if parts[key] != nil { throw cursor.failure("the key \"\(key)\" occurs twice") }
        parts[key] = try cursor.value()
      default: try cursor.skipValue()
      }
    }
    guard cursor.isAtEnd() else { throw cursor.failure("text after the end of the value") }
    if let version = parts["version"], version.stringValue != "1.0" {
      throw failure("version", "\(version.serialized()) is not known; 1.0 is")
    }
    guard let modelAt else { throw failure("model", "the key is missing") }
    cursor.position = modelAt
    let model = try model(&cursor)
    do {
      return try Tokenizer(
        model: model, normalizer: try part(parts["normalizer"], "normalizer", normalizer),
        preTokenizer: try part(parts["pre_tokenizer"], "pre_tokenizer", preTokenizer),
        postProcessor: try part(parts["post_processor"], "post_processor", postProcessor),
        decoder: try part(parts["decoder"], "decoder", decoder),
        addedTokens: try addedTokens(parts["added_tokens"] ?? .null, vocabulary: model.vocabulary),
        truncation: try part(parts["truncation"], "truncation", truncation), padding: try part(parts["padding"], "padding", padding))
    } catch let error as VocabularyError { throw failure("added_tokens", error.description) } catch let error as TokenizationError {
      throw failure("added_tokens", error.description)
    }
  }

  private func part<T>(_ value: JSONValue?, _ key: String, _ read: (Fields) throws -> T) throws -> T? {
    guard let value, value != .null else { return nil }
    return try read(Fields(value, file: file, path: key))
  }

  // MARK: Models

  private func model(_ cursor: inout JSONCursor) throws -> TokenizerModel {
    var options: [String: JSONValue] = [:]
    var vocabularyAt: Int?
    var mergesAt: Int?
    try cursor.forEachMember { cursor, key in
      _ = cursor.peek()
      switch key {
      case "vocab":
        if vocabularyAt != nil { throw cursor.failure("the key \"model.vocab\" occurs twice") }
        vocabularyAt = cursor.position
        try cursor.skipValue()
      case "merges":
        if mergesAt != nil { throw cursor.failure("the key \"model.merges\" occurs twice") }
        mergesAt = cursor.position
        try cursor.skipValue()
      default:
        if options[key] != nil { throw cursor.failure("the key \"model.\(key)\" occurs twice") }
        options[key] = try cursor.value()
      }
    }
    var object = JSONObject()
    for (key, value) in options { object[key] = value }
    let fields = Fields(.object(object), file: file, path: "model")
    guard let vocabularyAt else { throw failure("model.vocab", "the key is missing") }
    cursor.position = vocabularyAt
    // Old files have no type; their shape says it.
    var type = try fields.string("type", default: "")
    if type.isEmpty {
      type =
        mergesAt != nil
        ? "BPE" : cursor.peek() == UInt8(ascii: "[") ? "Unigram" : options["continuing_subword_prefix"] != nil ? "WordPiece" : "WordLevel"
    }
    do {
      switch type {
      case "BPE":
        let vocabulary = try vocabulary(&cursor)
        let prefix = try fields.optionalString("continuing_subword_prefix")
        guard let mergesAt else { throw failure("model.merges", "the key is missing") }
        cursor.position = mergesAt
        let merges = try merges(&cursor, vocabulary, prefix: Array((prefix ?? "").utf8))
        return .bpe(
          BPE(
            vocabulary: vocabulary, merges: merges, unknownToken: try fields.optionalString("unk_token"),
            fusesUnknown: try fields.bool("fuse_unk", default: false), hasByteFallback: try fields.bool("byte_fallback", default: false),
            ignoresMerges: try fields.bool("ignore_merges", default: false), continuingSubwordPrefix: prefix,
            endOfWordSuffix: try fields.optionalString("end_of_word_suffix")))
      case "WordPiece":
        return .wordPiece(
          try WordPiece(
            vocabulary: try vocabulary(&cursor), unknownToken: try fields.string("unk_token", default: "[UNK]"),
            continuingSubwordPrefix: try fields.string("continuing_subword_prefix", default: "##"),
            maximumCharacters: try fields.integer("max_input_chars_per_word", default: 100)))
      case "WordLevel":
        return .wordLevel(
          WordLevel(vocabulary: try vocabulary(&cursor), unknownToken: try fields.string("unk_token", default: "<unk>")))
      case "Unigram":
        let (vocabulary, scores) = try pieces(&cursor)
        let unknown = fields["unk_id"] == .null ? nil : try fields.integer("unk_id")
        return .unigram(
          try Unigram(
            vocabulary: vocabulary, scores: scores, unknownId: unknown,
            hasByteFallback: try fields.bool("byte_fallback", default: false)))
      default: throw fields.unknown("type", type, ["BPE", "WordPiece", "Unigram", "WordLevel"])
      }
    } catch let error as VocabularyError { throw failure("model", error.description) }
  }

  /// `{"token": id, …}`
  private func vocabulary(_ cursor: inout JSONCursor) throws -> Vocabulary {
    var builder = Vocabulary.Builder()
    var token = RawBuffer<UInt8>()
    do {
      try cursor.take(UInt8(ascii: "{"), "where model.vocab begins")
      if cursor.peek() == UInt8(ascii: "}") {
        cursor.position += 1
      } else {
        repeat {
          try cursor.string(into: &token)
          try cursor.take(UInt8(ascii: ":"), "after a token")
          let at = cursor.position
          let id = try cursor.integer("the id of a token in model.vocab")
          do { try builder.append(token.buffer, id: id) } catch { throw cursor.failure("model.vocab: \(error.description)", at: at) }
        } while try cursor.continues(UInt8(ascii: "}"))
      }
      return try Vocabulary(builder)
    } catch let error as VocabularyError { throw failure("model.vocab", error.description) }
  }

  /// `[["token", score], …]`
  private func pieces(_ cursor: inout JSONCursor) throws -> (Vocabulary, [Double]) {
    var builder = Vocabulary.Builder()
    var scores: [Double] = []
    var token = RawBuffer<UInt8>()
    try cursor.take(UInt8(ascii: "["), "where model.vocab begins")
    if cursor.peek() == UInt8(ascii: "]") {
      cursor.position += 1
    } else {
      repeat {
        try cursor.take(UInt8(ascii: "["), "where a token and its score begin")
        try cursor.string(into: &token)
        try cursor.take(UInt8(ascii: ","), "between a token and its score")
        let score = try cursor.number("the score of a token in model.vocab")
        try cursor.take(UInt8(ascii: "]"), "after a token and its score")
        do { try builder.append(token.buffer, id: scores.count) } catch { throw failure("model.vocab", error.description) }
        scores.append(score)
      } while try cursor.continues(UInt8(ascii: "]"))
    }
    do { return (try Vocabulary(builder, repetition: .lastWins), scores) } catch { throw failure("model.vocab", error.description) }
  }

  /// `["a b", …]` or `[["a", "b"], …]`
  private func merges(_ cursor: inout JSONCursor, _ vocabulary: Vocabulary, prefix: [UInt8]) throws -> BPE.MergeList {
    var maker = MergeListReader(vocabulary: vocabulary, prefix: prefix)
    var left = RawBuffer<UInt8>()
    var right = RawBuffer<UInt8>()
    try cursor.take(UInt8(ascii: "["), "where model.merges begins")
    if cursor.peek() == UInt8(ascii: "]") {
      cursor.position += 1
      return maker.list
    }
    repeat {
      let isPair = cursor.peek() == UInt8(ascii: "[")
      let at = cursor.position
      do throws(VocabularyError) {
        if isPair {
          do {
            cursor.position += 1
            try cursor.string(into: &left)
            try cursor.take(UInt8(ascii: ","), "between the parts of a merge")
            try cursor.string(into: &right)
            try cursor.take(UInt8(ascii: "]"), "after the parts of a merge")
          } catch { throw VocabularyError("\(error)") }
          try maker.append(left.buffer, right.buffer)
        } else {
          do { try cursor.string(into: &left) } catch { throw VocabularyError("\(error)") }
          try maker.append(line: left.buffer)
        }
      } catch { throw cursor.failure("model.merges[\(maker.list.count)]: \(error.description)", at: at) }
    } while try cursor.continues(UInt8(ascii: "]"))
    return maker.list
  }

  // MARK: Other parts

  private func addedTokens(_ value: JSONValue, vocabulary: Vocabulary) throws -> [AddedToken] {
    if value == .null { return [] }
    guard let list = value.arrayValue else { throw failure("added_tokens", "must be a list, not \(value.kindDescription)") }
    return try list.enumerated().map { index, value in
      let fields = Fields(value, file: file, path: "added_tokens[\(index)]")
      let id = try fields.integer("id")
      guard id >= 0 && id <= Vocabulary.maximumId else {
        throw failure("added_tokens[\(index)].id", "\(id) is out of range; ids go from 0 to \(Vocabulary.maximumId)")
      }
      let isSpecial = try fields.bool("special", default: false)
      return AddedToken(
        try fields.string("content"), singleWord: try fields.bool("single_word", default: false),
        stripsLeft: try fields.bool("lstrip", default: false), stripsRight: try fields.bool("rstrip", default: false),
        isNormalized: try fields.bool("normalized", default: !isSpecial), isSpecial: isSpecial)
    }
  }

  private func truncation(_ fields: Fields) throws -> Truncation {
    Truncation(
      maximumLength: try fields.count("max_length"),
      strategy: try fields.choice("strategy", default: Truncation.Strategy.longestFirst),
      direction: try fields.choice("direction", default: Truncation.Direction.right), stride: try fields.count("stride", default: 0))
  }

  private func padding(_ fields: Fields) throws -> Padding {
    let strategy: Padding.Strategy
    if let fixed = fields["strategy"]["Fixed"]?.intValue {
      // A batch of texts is padded to this: a small file must not claim much memory.
      guard fixed >= 0 && fixed <= 1 << 20 else { throw failure(fields.path + ".strategy", "a length of \(fixed) is out of range") }
      strategy = .fixed(fixed)
    } else {
      strategy = .longest
    }
    let multiple = fields["pad_to_multiple_of"] == .null ? nil : try fields.count("pad_to_multiple_of")
    if let multiple, multiple > 1 << 20 { throw failure(fields.path + ".pad_to_multiple_of", "\(multiple) is out of range") }
    return Padding(
      strategy: strategy, direction: try fields.choice("direction", default: Truncation.Direction.right),
      multiple: multiple, id: try fields.id("pad_id", default: 0),
      typeId: try fields.id("pad_type_id", default: 0), token: try fields.string("pad_token", default: "[PAD]"))
  }

  private static let normalizers = [
    "BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Replace", "Prepend", "Precompiled", "Nmt",
    "ByteLevel", "Sequence",
  ]

  private func normalizer(_ fields: Fields) throws -> Normalizer {
    let type = try fields.string("type")
    switch type {
    case "BertNormalizer":
      return .bert(
        cleansText: try fields.bool("clean_text", default: true), separatesChinese: try fields.bool("handle_chinese_chars", default: true),
        stripsAccents: fields["strip_accents"] == .null ? nil : try fields.bool("strip_accents", default: true),
        lowercases: try fields.bool("lowercase", default: true))
    case "NFC": return .nfc
    case "NFD": return .nfd
    case "NFKC": return .nfkc
    case "NFKD": return .nfkd
    case "Lowercase": return .lowercase
    case "Strip": return .strip(left: try fields.bool("strip_left", default: true), right: try fields.bool("strip_right", default: true))
    case "StripAccents": return .stripAccents
    case "Replace": return .replace(try fields.pattern("pattern"), with: try fields.string("content"))
    case "Prepend": return .prepend(try fields.string("prepend"))
    case "Precompiled":
      if fields["precompiled_charsmap"] == .null { return .sequence([]) }
      guard let data = Data(base64Encoded: try fields.string("precompiled_charsmap")) else {
        throw failure(fields.path + ".precompiled_charsmap", "is not base64")
      }
      do { return .precompiled(try PrecompiledCharacterMap([UInt8](data))) } catch {
        throw failure(fields.path + ".precompiled_charsmap", error.description)
      }
    case "Nmt": return .nmt
    case "ByteLevel": return .byteLevel
    case "Sequence": return .sequence(try fields.list("normalizers", normalizer))
    default: throw fields.unknown("type", type, Self.normalizers)
    }
  }

  private static let preTokenizers = [
    "BertPreTokenizer", "ByteLevel", "Split", "Whitespace", "WhitespaceSplit", "Metaspace", "Punctuation", "Digits", "CharDelimiterSplit",
    "UnicodeScripts", "FixedLength", "Sequence",
  ]

  private func preTokenizer(_ fields: Fields) throws -> PreTokenizer {
    let type = try fields.string("type")
    switch type {
    case "BertPreTokenizer": return .bert
    case "ByteLevel":
      return .byteLevel(
        addsPrefixSpace: try fields.bool("add_prefix_space", default: true), usesPattern: try fields.bool("use_regex", default: true))
    case "Split":
      return .split(
        try fields.pattern("pattern"), try fields.choice("behavior", default: SplitBehavior.isolated),
        isInverted: try fields.bool("invert", default: false))
    case "Whitespace": return .whitespace
    case "WhitespaceSplit": return .whitespaceSplit
    case "Metaspace":
      let (replacement, scheme) = try metaspace(fields)
      return .metaspace(replacement: replacement, scheme, splits: try fields.bool("split", default: true))
    case "Punctuation": return .punctuation(try fields.choice("behavior", default: SplitBehavior.isolated))
    case "Digits": return .digits(individually: try fields.bool("individual_digits", default: false))
    case "CharDelimiterSplit": return .delimiter(try fields.scalar("delimiter"))
    case "UnicodeScripts": return .unicodeScripts
    case "FixedLength":
      let length = try fields.count("length", default: 5)
      guard length > 0 else { throw failure(fields.path + ".length", "must be above 0") }
      return .fixedLength(length)
    case "Sequence": return .sequence(try fields.list("pretokenizers", preTokenizer))
    default: throw fields.unknown("type", type, Self.preTokenizers)
    }
  }

  private func metaspace(_ fields: Fields) throws -> (Unicode.Scalar, PreTokenizer.PrependScheme) {
    var scheme = try fields.choice("prepend_scheme", default: PreTokenizer.PrependScheme.always)
    if fields["add_prefix_space"] != .null, try !fields.bool("add_prefix_space", default: true) {
      if fields["prepend_scheme"] != .null && scheme != .never {
        throw failure(fields.path + ".add_prefix_space", "is false, but prepend_scheme is \"\(scheme.rawValue)\"")
      }
      scheme = .never
    }
    return (try fields.scalar("replacement"), scheme)
  }

  private func postProcessor(_ fields: Fields) throws -> PostProcessor {
    let type = try fields.string("type")
    switch type {
    case "TemplateProcessing":
      let special = fields["special_tokens"]
      return .template(
        single: try template(fields, "single", special, texts: 1), pair: try template(fields, "pair", special, texts: 2))
    case "BertProcessing":
      return .bert(classification: try tokenAndId(fields, "cls"), separator: try tokenAndId(fields, "sep"))
    case "RobertaProcessing":
      return .roberta(
        classification: try tokenAndId(fields, "cls"), separator: try tokenAndId(fields, "sep"),
        trimsOffsets: try fields.bool("trim_offsets", default: true), addsPrefixSpace: try fields.bool("add_prefix_space", default: true))
    case "ByteLevel":
      return .byteLevel(
        trimsOffsets: try fields.bool("trim_offsets", default: true), addsPrefixSpace: try fields.bool("add_prefix_space", default: true))
    case "Sequence":
      let parts = try fields.list("processors", postProcessor)
      let adding = parts.filter { if case .byteLevel = $0 { false } else { true } }
      guard adding.count <= 1 else {
        throw failure(fields.path, "only one post-processor of a sequence can add tokens, and here \(adding.count) do")
      }
      return .sequence(parts)
    default:
      throw fields.unknown("type", type, ["TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel", "Sequence"])
    }
  }

  private func tokenAndId(_ fields: Fields, _ key: String) throws -> PostProcessor.SpecialToken {
    guard let pair = fields[key].arrayValue, pair.count == 2, let token = pair[0].stringValue, let id = pair[1].intValue,
      id >= 0 && id <= Vocabulary.maximumId
    else { throw failure("\(fields.path).\(key)", "must be a list of a token and its id") }
    return PostProcessor.SpecialToken(token, id: id)
  }

  private func template(_ fields: Fields, _ key: String, _ special: JSONValue, texts: Int) throws -> [PostProcessor.TemplatePiece] {
    guard let list = fields[key].arrayValue else { throw failure("\(fields.path).\(key)", "must be a list") }
    guard list.count <= 1000 else { throw failure("\(fields.path).\(key)", "has \(list.count) pieces; at most 1000 are allowed") }
    return try list.enumerated().map { index, piece in
      let path = "\(fields.path).\(key)[\(index)]"
      if let sequence = piece["Sequence"] {
        let fields = Fields(sequence, file: file, path: path + ".Sequence")
        let id = try fields.string("id")
        guard id == "A" || id == "B" && texts == 2 else {
          throw failure(path + ".Sequence.id", "is \"\(id)\"; \(texts == 2 ? "\"A\" and \"B\" are" : "\"A\" is") possible")
        }
        return .text(id == "A" ? 0 : 1, typeId: try fields.id("type_id", default: 0))
      }
      guard let token = piece["SpecialToken"] else { throw failure(path, "must be a Sequence or a SpecialToken") }
      let fields = Fields(token, file: file, path: path + ".SpecialToken")
      let name = try fields.string("id")
      guard let entry = special[name] else { throw failure(path + ".SpecialToken.id", "\"\(name)\" is not among special_tokens") }
      let names = entry["tokens"]?.arrayValue ?? []
      guard let ids = entry["ids"]?.arrayValue, ids.count <= 1000 else {
        throw failure(path, "special_tokens[\"\(name)\"].ids must be a list")
      }
      let tokens = try ids.enumerated().map { index, value in
        guard let id = value.intValue, id >= 0 && id <= Vocabulary.maximumId else {
          throw failure(path, "special_tokens[\"\(name)\"].ids has \(value.serialized()), which is no id")
        }
        return PostProcessor.SpecialToken(index < names.count ? names[index].stringValue ?? name : name, id: id)
      }
      return .special(tokens, typeId: try fields.id("type_id", default: 0))
    }
  }

  private func decoder(_ fields: Fields) throws -> Decoder {
    let type = try fields.string("type")
    switch type {
    case "ByteLevel": return .byteLevel
    case "WordPiece":
      return .wordPiece(prefix: try fields.string("prefix", default: "##"), cleansUp: try fields.bool("cleanup", default: true))
    case "Metaspace":
      let (replacement, scheme) = try metaspace(fields)
      return .metaspace(replacement: replacement, scheme)
    case "BPEDecoder": return .bpe(suffix: try fields.string("suffix", default: "</w>"))
    case "ByteFallback": return .byteFallback
    case "Fuse": return .fuse
    case "Strip":
      return .strip(try fields.scalar("content"), start: try fields.count("start", default: 0), stop: try fields.count("stop", default: 0))
    case "Replace": return .replace(try fields.pattern("pattern"), with: try fields.string("content"))
    case "CTC":
      return .ctc(
        paddingToken: try fields.string("pad_token", default: "<pad>"),
        wordDelimiter: try fields.string("word_delimiter_token", default: "|"),
        cleansUp: try fields.bool("cleanup", default: true))
    case "Sequence": return .sequence(try fields.list("decoders", decoder))
    default:
      throw fields.unknown(
        "type", type,
        ["ByteLevel", "WordPiece", "Metaspace", "BPEDecoder", "ByteFallback", "Fuse", "Strip", "Replace", "CTC", "Sequence"])
    }
  }
}

/// The fields of one object of a file, with errors that name them.
struct Fields {
  let value: JSONValue
  let file: String
  let path: String

  init(_ value: JSONValue, file: String, path: String) {
    self.value = value
    self.file = file
    self.path = path
  }

  /// null where the key is missing.
  subscript(key: String) -> JSONValue { value[key] ?? .null }

  func failure(_ key: String, _ reason: String) -> FileError { FileError(file, "\(path).\(key): \(reason)") }

  func unknown(_ key: String, _ name: String, _ known: [String]) -> FileError {
    failure(key, "\"\(name)\" is not known.\(Suggestions.phrase(for: name, in: known)) Known: \(known.joined(separator: ", "))")
  }

  func string(_ key: String, default fallback: String? = nil) throws -> String {
    if let fallback, self[key] == .null { return fallback }
    guard let string = self[key].stringValue else { throw failure(key, "must be a string, not \(self[key].kindDescription)") }
    return string
  }

  /// nil for null, a missing key and the empty string.
  func optionalString(_ key: String) throws -> String? {
    let string = try string(key, default: "")
    return string.isEmpty ? nil : string
  }

  func bool(_ key: String, default fallback: Bool) throws -> Bool {
    if self[key] == .null { return fallback }
    guard let bool = self[key].boolValue else { throw failure(key, "must be true or false, not \(self[key].kindDescription)") }
    return bool
  }

  func integer(_ key: String, default fallback: Int? = nil) throws -> Int {
    if let fallback, self[key] == .null { return fallback }
    guard let integer = self[key].intValue else { throw failure(key, "must be a whole number, not \(self[key].kindDescription)") }
    return integer
  }

  /// A number from 0 on.
  func count(_ key: String, default fallback: Int? = nil) throws -> Int {
    let count = try integer(key, default: fallback)
    guard count >= 0 else { throw failure(key, "is \(count); it must not be below 0") }
    return count
  }

  func id(_ key: String, default fallback: Int) throws -> Int {
    let id = try integer(key, default: fallback)
    guard id >= 0 && id <= Vocabulary.maximumId else { throw failure(key, "is \(id); ids go from 0 to \(Vocabulary.maximumId)") }
    return id
  }

  func scalar(_ key: String) throws -> Unicode.Scalar {
    let scalars = try string(key).unicodeScalars
    guard let first = scalars.first, scalars.count == 1 else { throw failure(key, "must be one character") }
    return first
  }

  /// A string among the cases of an enumeration; also in snake case, as older files have it.
  func choice<T: RawRepresentable>(_ key: String, default fallback: T) throws -> T where T.RawValue == String {
    if self[key] == .null { return fallback }
    let name = try string(key)
    if let value = T(rawValue: name) { return value }
    let camel = name.split(separator: "_").map { $0.prefix(1).uppercased() + $0.dropFirst() }.joined()
    guard let value = T(rawValue: camel) else { throw failure(key, "\"\(name)\" is not known") }
    return value
  }

  func list<T>(_ key: String, _ read: (Fields) throws -> T) throws -> [T] {
    guard let list = self[key].arrayValue else { throw failure(key, "must be a list, not \(self[key].kindDescription)") }
    guard list.count <= 1000 else { throw failure(key, "has \(list.count) elements; at most 1000 are allowed") }
    return try list.enumerated().map { try read(Fields($1, file: file, path: "\(path).\(key)[\($0)]")) }
  }

  /// `{"String": "…"}` or `{"Regex": "…"}`
  func pattern(_ key: String) throws -> TextPattern {
    if let string = self[key]["String"]?.stringValue { return .string(string) }
    guard let expression = self[key]["Regex"]?.stringValue else { throw failure(key, "must be {\"String\": …} or {\"Regex\": …}") }
    do { return .regularExpression(try RegularExpression(expression)) } catch { throw failure(key, error.description) }
  }
}

/// Merges written as strings, turned into ids.
struct MergeListReader: ~Copyable {
  var list = BPE.MergeList()
  private let vocabulary: Vocabulary
  private let prefix: Int
  private var joined = RawBuffer<UInt8>()

  init(vocabulary: Vocabulary, prefix: [UInt8]) {
    self.vocabulary = vocabulary
    self.prefix = prefix.count
  }

  /// "a b"
  mutating func append(line: UnsafeBufferPointer<UInt8>) throws(VocabularyError) {
    guard let space = line.firstIndex(of: 0x20), !line[(space + 1)...].contains(0x20) else {
      throw VocabularyError("\"\(String(decoding: line.prefix(80), as: UTF8.self))\" must be two tokens with one blank between them")
    }
    try append(UnsafeBufferPointer(rebasing: line[..<space]), UnsafeBufferPointer(rebasing: line[(space + 1)...]))
  }

  mutating func append(_ left: UnsafeBufferPointer<UInt8>, _ right: UnsafeBufferPointer<UInt8>) throws(VocabularyError) {
    let leftId = try known(left)
    let rightId = try known(right)
    guard right.count >= prefix else {
      throw VocabularyError("\"\(String(decoding: right, as: UTF8.self))\" is shorter than continuing_subword_prefix")
    }
    joined.count = 0
    if let base = left.baseAddress { joined.append(base, count: left.count) }
    if let base = right.baseAddress { joined.append(base + prefix, count: right.count - prefix) }
    list.append(left: leftId, right: rightId, result: try known(joined.buffer))
  }

  private func known(_ token: UnsafeBufferPointer<UInt8>) throws(VocabularyError) -> Int {
    guard let id = vocabulary.id(of: token) else {
      throw VocabularyError("the token \"\(String(decoding: token.prefix(80), as: UTF8.self))\" is not in the vocabulary")
    }
    return id
  }
}
