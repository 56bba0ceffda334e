import Foundation
import Testing

@testable import MartletTokenizers

@Suite struct TokenizerFolderTests {
  private func withFolder<R>(_ files: [String: String], _ body: (String) throws -> R) throws -> R {
    let path = NSTemporaryDirectory() + "/martlet-tokenizer-" + UUID().uuidString
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: path) }
    for (name, content) in files { try Data(content.utf8).write(to: URL(fileURLWithPath: path + "/" + name)) }
    return try body(path)
  }

  private func tokens(_ vocabulary: Vocabulary) -> [String] { (0..<vocabulary.idCount).map { vocabulary.token(of: $0) ?? "" } }

  @Test func `vocab txt gives the same ids as the tokenizer file`() throws {
    let reference = try ParityFolder.committed.tokenizer("bert")
    let texts = try ParityFolder.committed.texts()
    let vocabulary = tokens(reference.model.vocabulary).joined(separator: "\n") + "\n"
    for (configuration, name) in [
      (#"{"do_lower_case":true,"model_max_length":512}"#, "bert"),
      (#"{"do_lower_case":false,"strip_accents":false,"cls_token":{"content":"[CLS]"}}"#, ""),
    ] {
      try withFolder(["vocab.txt": vocabulary, "tokenizer_config.json": configuration]) { path in
        let tokenizer = try Tokenizer.load(path)
        #expect(tokenizer.classificationId == reference.id(of: "[CLS]"))
        #expect(tokenizer.paddingId == reference.id(of: "[PAD]"))
        if name == "bert" {
          #expect(tokenizer.configuration.maximumLength == 512)
          for text in texts { #expect(try tokenizer.encode(bytes: text).ids == reference.encode(bytes: text).ids) }
        } else {
          #expect(try tokenizer.encode("Ae").ids != reference.encode("Ae").ids)
        }
      }
    }
  }

  @Test func `vocab json and merges txt give the same ids as the tokenizer file`() throws {
    for name in ["gpt2", "roberta"] {
      let reference = try ParityFolder.committed.tokenizer(name)
      guard case .bpe(let model) = reference.model else {
        Issue.record("no BPE")
        return
      }
      var vocabulary = JSONObject()
      for (id, token) in tokens(model.vocabulary).enumerated() { vocabulary[token] = .integer(id) }
      if name == "roberta" { vocabulary["<mask>"] = .integer(vocabulary.count) }
      let merges = model.merges.map { "\(model.vocabulary.token(of: $0.left)!) \(model.vocabulary.token(of: $0.right)!)" }
      let configuration =
        name == "gpt2"
        ? #"{"tokenizer_class":"GPT2Tokenizer"}"# : #"{"tokenizer_class":"RobertaTokenizer","add_prefix_space":true}"#
      try withFolder([
        "vocab.json": JSONValue.object(vocabulary).serialized(), "merges.txt": "#version: 0.2\n" + merges.joined(separator: "\n") + "\n",
        "tokenizer_config.json": configuration,
      ]) { path in
        let tokenizer = try Tokenizer.load(path)
        for text in try ParityFolder.committed.texts() {
          // The fixture's unknown and padding tokens aren't special the same way for texts that spell them.
          #expect(try tokenizer.encode(bytes: text).ids == reference.encode(bytes: text).ids, "\(name)")
        }
      }
    }
  }

  @Test func `special tokens and templates of the configuration are read`() throws {
    let json = try String(contentsOfFile: ParityFolder.committed.path + "/llama2.json", encoding: .utf8)
    try withFolder([
      "tokenizer.json": json,
      "tokenizer_config.json":
        #"{"bos_token":"<s>","eos_token":{"content":"</s>"},"unk_token":"<unk>","pad_token":null,"add_bos_token":true,"add_eos_token":false,"model_max_length":1000000000000000019884624838656,"chat_template":[{"name":"default","template":"A"},{"name":"tool_use","template":"B"}],"additional_special_tokens":["<x>"]}"#,
    ]) { path in
      let tokenizer = try Tokenizer.load(path)
      #expect(tokenizer.beginningId == 1 && tokenizer.endId == 2 && tokenizer.unknownId == 0 && tokenizer.paddingId == nil)
      #expect(tokenizer.configuration.addsBeginning == true && tokenizer.configuration.addsEnd == false)
      #expect(tokenizer.configuration.maximumLength == nil)
      #expect(tokenizer.configuration.chatTemplate == "A" && tokenizer.configuration.namedChatTemplates == ["tool_use": "B"])
      #expect(tokenizer.configuration.additionalSpecialTokens == ["<x>"])
      #expect(tokenizer.configuration.specialTokens == ["bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"])
    }
    try withFolder(["tokenizer.json": json, "chat_template.jinja": "C", "tokenizer_config.json": #"{"chat_template":"A"}"#]) { path in
      let tokenizer = try Tokenizer.load(path)
      #expect(tokenizer.configuration.chatTemplate == "C")
    }
  }

  @Test func `add_bos_token and add_eos_token replace the special tokens of the file`() throws {
    let json = try String(contentsOfFile: ParityFolder.committed.path + "/llama2.json", encoding: .utf8)
    let plain = try ParityFolder.committed.tokenizer("llama2").encode("word", addSpecialTokens: false).ids
    for (flags, first, last) in [
      (#""add_bos_token":false,"#, [], []), (#""add_bos_token":true,"add_eos_token":true,"#, [1], [2]), ("", [1], []),
      (#""add_eos_token":true,"#, [], [2]),
    ] as [(String, [Int32], [Int32])] {
      let configuration = "{\(flags)\"bos_token\":\"<s>\",\"eos_token\":\"</s>\"}"
      try withFolder(["tokenizer.json": json, "tokenizer_config.json": configuration]) { path in
        let tokenizer = try Tokenizer.load(path)
        let ids = try tokenizer.encode("word").ids
        #expect(ids == first + plain + last, "\(flags)")
        if !flags.isEmpty {
          let pair = try tokenizer.encode("word", pair: "word")
          #expect(pair.ids == first + plain + last + first + plain + last)
          #expect(pair.typeIds.last == 1 && pair.typeIds.first == 0)
        }
      }
    }
  }

  @Test func `folders without a tokenizer and bad files say what is wrong`() throws {
    func message(_ files: [String: String]) throws -> String {
      try withFolder(files) { path in
        do {
          _ = try Tokenizer.load(path)
          return "no error"
        } catch let error as FileError { return error.description }
      }
    }
    #expect(try message([:]).contains("expected tokenizer.json"))
    #expect(try message(["vocab.txt": ""]).contains("vocab.txt: the file is empty"))
    #expect(try message(["vocab.txt": "a\nb\n"]).contains("\"[CLS]\" is missing"))
    #expect(try message(["vocab.json": #"{"a":0}"#, "merges.txt": "a b c\n"]).contains("merges.txt: line 1"))
    #expect(try message(["vocab.json": #"{"a":0}"#, "merges.txt": "a b\n"]).contains("\"b\" is not in the vocabulary"))
    #expect(try message(["vocab.json": "{}", "merges.txt": ""]).contains("vocab.json"))
    let bert = tokens(try ParityFolder.committed.tokenizer("bert").model.vocabulary).joined(separator: "\n")
    #expect(try message(["vocab.txt": bert, "tokenizer_config.json": "[1]"]).contains("tokenizer_config.json"))
    #expect(try message(["vocab.txt": bert, "tokenizer_config.json": #"{"do_lower_case":"yes"}"#]).contains("do_lower_case"))
    #expect(try message(["vocab.txt": bert, "tokenizer_config.json": #"{"cls_token":7}"#]).contains("cls_token"))
  }
}
