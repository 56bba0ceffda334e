import Foundation

extension Tokenizer {
  /// Writes a `tokenizer.json` that this library and `tokenizers` read.
  ///
  /// Throws ``FileError`` when the file can't be written, and for parts that the format doesn't know (SentencePiece's own models).
  public func save(to path: String) throws { try writeDurably(Data(try fileContents(path).utf8), to: path) }

  /// The contents of the `tokenizer.json`; `file` is what errors call it.
  public func fileContents(_ file: String = "tokenizer.json") throws -> String {
    let writer = TokenizerFileWriter(file: file)
    // The vocabulary is written by hand: as members of an object, equally looking tokens would become one.
    var text = "{\n  \"version\": \"1.0\",\n"
    text += "  \"truncation\": " + (truncation.map(writer.truncation) ?? .null).serialized() + ",\n"
    text += "  \"padding\": " + (padding.map(writer.padding) ?? .null).serialized() + ",\n"
    text += "  \"added_tokens\": [" + addedTokens.map { "\n    " + writer.added($0.id, $0.token).serialized() }.joined(separator: ",")
    text += addedTokens.isEmpty ? "],\n" : "\n  ],\n"
    text += "  \"normalizer\": " + (try normalizer.map(writer.normalizer) ?? .null).serialized() + ",\n"
    text += "  \"pre_tokenizer\": " + (preTokenizer.map(writer.preTokenizer) ?? .null).serialized() + ",\n"
    text += "  \"post_processor\": " + (postProcessor.map(writer.postProcessor) ?? .null).serialized() + ",\n"
    text += "  \"decoder\": " + (decoder.map(writer.decoder) ?? .null).serialized() + ",\n"
    text += "  \"model\": " + (try writer.model(model)) + "\n}\n"
    return text
  }
}

private struct TokenizerFileWriter {
  let file: String

  // MARK: Models

  func model(_ model: TokenizerModel) throws -> String {
    switch model {
    case .bpe(let model):
      let head: JSONObject = [
        "type": "BPE", "dropout": nil, "unk_token": string(model.unknownToken),
        "continuing_subword_prefix": string(model.continuingSubwordPrefix), "end_of_word_suffix": string(model.endOfWordSuffix),
        "fuse_unk": .bool(model.fusesUnknown), "byte_fallback": .bool(model.hasByteFallback), "ignore_merges": .bool(model.ignoresMerges),
      ]
      let merges = model.merges.map { merge in
        "      [\(quoted(model.vocabulary, merge.left)), \(quoted(model.vocabulary, merge.right))]"
      }
      return members(head) + vocabulary(model.vocabulary) + ",\n    \"merges\": [" + (merges.isEmpty ? "" : "\n")
        + merges.joined(separator: ",\n") + (merges.isEmpty ? "]\n  }" : "\n    ]\n  }")
    case .wordPiece(let model):
      let head: JSONObject = [
        "type": "WordPiece", "unk_token": .string(model.unknownToken), "continuing_subword_prefix": .string(model.continuingSubwordPrefix),
        "max_input_chars_per_word": .integer(model.maximumCharacters),
      ]
      return members(head) + vocabulary(model.vocabulary) + "\n  }"
    case .wordLevel(let model):
      return members(["type": "WordLevel", "unk_token": .string(model.unknownToken)]) + vocabulary(model.vocabulary) + "\n  }"
    case .unigram(let model):
      let head: JSONObject = [
        "type": "Unigram", "unk_id": model.unknownId.map { .integer($0) } ?? .null, "byte_fallback": .bool(model.hasByteFallback),
      ]
      let pieces = model.scores.indices.map {
        "      [\(quoted(model.vocabulary, $0)), \(JSONValue.number(model.scores[$0]).serialized())]"
      }
      return members(head) + "    \"vocab\": [\n" + pieces.joined(separator: ",\n") + "\n    ]\n  }"
    case .sentencePiece:
      throw FileError(file, "a SentencePiece model has no place in a tokenizer.json; keep its .model file")
    }
  }

  private func members(_ object: JSONObject) -> String {
    "{\n" + object.pairs.map { "    \(JSONValue.string($0.key).serialized()): \($0.value.serialized()),\n" }.joined()
  }

  private func quoted(_ vocabulary: Vocabulary, _ id: Int) -> String { JSONValue.string(vocabulary.token(of: id) ?? "").serialized() }

  private func vocabulary(_ vocabulary: Vocabulary) -> String {
    let tokens = (0..<vocabulary.idCount).filter { vocabulary.bytes(of: $0) != nil }.map { "      \(quoted(vocabulary, $0)): \($0)" }
    return "    \"vocab\": {\n" + tokens.joined(separator: ",\n") + "\n    }"
  }

  private func string(_ value: String?) -> JSONValue { value.map { .string($0) } ?? .null }

  // MARK: Other parts

  func truncation(_ value: Truncation) -> JSONValue {
    [
      "direction": .string(value.direction.rawValue), "max_length": .integer(value.maximumLength),
      "strategy": .string(value.strategy.rawValue),
      "stride": .integer(value.stride),
    ]
  }

  func padding(_ value: Padding) -> JSONValue {
    let strategy: JSONValue = if case .fixed(let length) = value.strategy { ["Fixed": .integer(length)] } else { "BatchLongest" }
    return [
      "strategy": strategy, "direction": .string(value.direction.rawValue),
      "pad_to_multiple_of": value.multiple.map { .integer($0) } ?? .null,
      "pad_id": .integer(value.id), "pad_type_id": .integer(value.typeId), "pad_token": .string(value.token),
    ]
  }

  func added(_ id: Int, _ token: AddedToken) -> JSONValue {
    [
      "id": .integer(id), "content": .string(token.content), "single_word": .bool(token.singleWord), "lstrip": .bool(token.stripsLeft),
      "rstrip": .bool(token.stripsRight), "normalized": .bool(token.isNormalized), "special": .bool(token.isSpecial),
    ]
  }

  private func pattern(_ pattern: TextPattern) -> JSONValue {
    switch pattern {
    case .string(let text): ["String": .string(text)]
    case .regularExpression(let expression): ["Regex": .string(expression.pattern)]
    }
  }

  private func scalar(_ scalar: Unicode.Scalar) -> JSONValue { .string(String(Character(scalar))) }

  func normalizer(_ value: Normalizer) throws -> JSONValue {
    switch value {
    case .bert(let cleans, let chinese, let accents, let lowers):
      return [
        "type": "BertNormalizer", "clean_text": .bool(cleans), "handle_chinese_chars": .bool(chinese),
        "strip_accents": accents.map { .bool($0) } ?? .null, "lowercase": .bool(lowers),
      ]
    case .nfc: return ["type": "NFC"]
    case .nfd: return ["type": "NFD"]
    case .nfkc: return ["type": "NFKC"]
    case .nfkd: return ["type": "NFKD"]
    case .lowercase: return ["type": "Lowercase"]
    case .strip(let left, let right): return ["type": "Strip", "strip_left": .bool(left), "strip_right": .bool(right)]
    case .stripAccents: return ["type": "StripAccents"]
    case .replace(let wanted, let content): return ["type": "Replace", "pattern": pattern(wanted), "content": .string(content)]
    case .prepend(let text): return ["type": "Prepend", "prepend": .string(text)]
    case .precompiled(let map): return ["type": "Precompiled", "precompiled_charsmap": .string(Data(map.bytes).base64EncodedString())]
    case .sentencePiece: throw FileError(file, "SentencePiece's own normalization has no place in a tokenizer.json; keep its .model file")
    case .nmt: return ["type": "Nmt"]
    case .byteLevel: return ["type": "ByteLevel"]
    case .sequence(let parts): return ["type": "Sequence", "normalizers": .array(try parts.map(normalizer))]
    }
  }

  func preTokenizer(_ value: PreTokenizer) -> JSONValue {
    switch value {
    case .bert: ["type": "BertPreTokenizer"]
    case .byteLevel(let adds, let uses):
      ["type": "ByteLevel", "add_prefix_space": .bool(adds), "trim_offsets": true, "use_regex": .bool(uses)]
    case .split(let wanted, let behavior, let isInverted):
      ["type": "Split", "pattern": pattern(wanted), "behavior": .string(behavior.rawValue), "invert": .bool(isInverted)]
    case .whitespace: ["type": "Whitespace"]
    case .whitespaceSplit: ["type": "WhitespaceSplit"]
    case .metaspace(let replacement, let scheme, let splits):
      ["type": "Metaspace", "replacement": scalar(replacement), "prepend_scheme": .string(scheme.rawValue), "split": .bool(splits)]
    case .punctuation(let behavior): ["type": "Punctuation", "behavior": .string(behavior.rawValue)]
    case .digits(let individually): ["type": "Digits", "individual_digits": .bool(individually)]
    case .delimiter(let delimiter): ["type": "CharDelimiterSplit", "delimiter": scalar(delimiter)]
    case .unicodeScripts: ["type": "UnicodeScripts"]
    case .fixedLength(let length): ["type": "FixedLength", "length": .integer(length)]
    case .sequence(let parts): ["type": "Sequence", "pretokenizers": .array(parts.map(preTokenizer))]
    }
  }

  func postProcessor(_ value: PostProcessor) -> JSONValue {
    switch value {
    case .template(let single, let pair):
      var special = JSONObject()
      for case .special(let tokens, _) in single + pair {
        let name = templateName(tokens)
        special[name] = [
          "id": .string(name), "ids": .array(tokens.map { .integer($0.id) }), "tokens": .array(tokens.map { .string($0.token) }),
        ]
      }
      return [
        "type": "TemplateProcessing", "single": .array(single.map(templatePiece)), "pair": .array(pair.map(templatePiece)),
        "special_tokens": .object(special),
      ]
    case .bert(let classification, let separator):
      return ["type": "BertProcessing", "sep": tokenAndId(separator), "cls": tokenAndId(classification)]
    case .roberta(let classification, let separator, let trims, let adds):
      return [
        "type": "RobertaProcessing", "sep": tokenAndId(separator), "cls": tokenAndId(classification), "trim_offsets": .bool(trims),
        "add_prefix_space": .bool(adds),
      ]
    case .byteLevel(let trims, let adds):
      return ["type": "ByteLevel", "add_prefix_space": .bool(adds), "trim_offsets": .bool(trims), "use_regex": true]
    case .sequence(let parts): return ["type": "Sequence", "processors": .array(parts.map(postProcessor))]
    }
  }

  private func tokenAndId(_ token: PostProcessor.SpecialToken) -> JSONValue { [.string(token.token), .integer(token.id)] }

  private func templateName(_ tokens: [PostProcessor.SpecialToken]) -> String { tokens.map(\.token).joined(separator: " ") }

  private func templatePiece(_ piece: PostProcessor.TemplatePiece) -> JSONValue {
    switch piece {
    case .text(let index, let typeId): ["Sequence": ["id": .string(index == 0 ? "A" : "B"), "type_id": .integer(typeId)]]
    case .special(let tokens, let typeId): ["SpecialToken": ["id": .string(templateName(tokens)), "type_id": .integer(typeId)]]
    }
  }

  func decoder(_ value: Decoder) -> JSONValue {
    switch value {
    case .byteLevel: ["type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true]
    case .wordPiece(let prefix, let cleansUp): ["type": "WordPiece", "prefix": .string(prefix), "cleanup": .bool(cleansUp)]
    case .metaspace(let replacement, let scheme):
      ["type": "Metaspace", "replacement": scalar(replacement), "prepend_scheme": .string(scheme.rawValue), "split": true]
    case .bpe(let suffix): ["type": "BPEDecoder", "suffix": .string(suffix)]
    case .byteFallback: ["type": "ByteFallback"]
    case .fuse: ["type": "Fuse"]
    case .strip(let content, let start, let stop):
      ["type": "Strip", "content": scalar(content), "start": .integer(start), "stop": .integer(stop)]
    case .replace(let wanted, let content): ["type": "Replace", "pattern": pattern(wanted), "content": .string(content)]
    case .ctc(let padding, let delimiter, let cleansUp):
      ["type": "CTC", "pad_token": .string(padding), "word_delimiter_token": .string(delimiter), "cleanup": .bool(cleansUp)]
    case .sequence(let parts): ["type": "Sequence", "decoders": .array(parts.map(decoder))]
    }
  }
}
