import Foundation
import MartletCatalog
import Testing

@Suite struct TokenizeTests {
  private func withTokenizer<R>(_ body: (_ folder: String, _ file: String) throws -> R) throws -> R {
    try withTemporaryFolder { folder in
      try body(folder, try TinyModel.write(TinyModel.tokenizerJSON(special: true), to: folder + "/tokenizer.json"))
    }
  }

  private func id(_ token: String) -> Int { TinyModel.tokens.firstIndex(of: token)! }

  @Test func everyLineGivesItsIdsAndTokens() throws {
    try withTokenizer { folder, file in
      let lines = try TinyModel.write("ab\n\nB a!\u{0}\r\nlast", to: folder + "/lines.txt")
      for model in [folder, file] {
        let run = try CommandRun(["tokenize", model, "--input", lines, "--json"])
        #expect(run.status == 0 && run.errors.isEmpty, "\(run.errors)")
        let values = try run.jsonLines
        #expect(values.count == 4)
        #expect(values[0]["tokens"]?.strings == ["[CLS]", "a", "##b", "[SEP]"])
        #expect(values[0]["ids"]?.integers == [1, id("a"), id("##b"), 2])
        #expect(values[1]["tokens"]?.strings == ["[CLS]", "[SEP]"])
        #expect(values[2]["tokens"]?.strings == ["[CLS]", "b", "a", "!", "[SEP]"])
        #expect(values[3]["tokens"]?.strings == ["[CLS]", "l", "##a", "##s", "##t", "[SEP]"])
      }
      // Each value on one line of its own, without blanks, in the order of the keys that scripts see.
      let one = try CommandRun(["tokenize", folder, "--text", "a", "--json"])
      #expect(one.output == "{\"ids\":[1,\(id("a")),2],\"tokens\":[\"[CLS]\",\"a\",\"[SEP]\"]}\n")
    }
  }

  @Test func optionsLeaveOutSpecialTokensAndAddPairsAndOffsets() throws {
    try withTokenizer { folder, _ in
      let bare = try CommandRun(["tokenize", folder, "--text", "ab", "--no-special", "--json"]).jsonLines[0]
      #expect(bare["tokens"]?.strings == ["a", "##b"])
      let pair = try CommandRun(["tokenize", folder, "--text", "a\tb c", "--pair", "--offsets", "--json"]).jsonLines[0]
      #expect(pair["tokens"]?.strings == ["[CLS]", "a", "[SEP]", "b", "c", "[SEP]"])
      #expect(pair["offsets"]?.arrayValue?.map { $0.integers ?? [] } == [[0, 0], [0, 1], [0, 0], [0, 1], [2, 3], [0, 0]])
      let cut = try CommandRun(["tokenize", folder, "--text", "a b c d", "--max-length", "4", "--json"]).jsonLines[0]
      #expect(cut["tokens"]?.strings == ["[CLS]", "a", "b", "[SEP]"])
      #expect(try CommandRun(["tokenize", folder, "--text", "ab"]).output == "1:[CLS] \(id("a")):a \(id("##b")):##b 2:[SEP]\n")
    }
  }

  @Test func aFilesPaddingIsAppliedWhenTheFileIsNamed() throws {
    try withTemporaryFolder { folder in
      var json = try #require(try JSONValue.parse(TinyModel.tokenizerJSON(special: true)).objectValue)
      json["padding"] = [
        "strategy": ["Fixed": .integer(6)], "direction": "Right", "pad_to_multiple_of": .null, "pad_id": .integer(0),
        "pad_type_id": .integer(0), "pad_token": "[PAD]",
      ]
      let file = try TinyModel.write(JSONValue.object(json).serialized(), to: folder + "/tokenizer.json")
      func ids(_ arguments: String...) throws -> [Int]? {
        try CommandRun(["tokenize"] + arguments + ["--text", "a", "--json"]).jsonLines[0]["ids"]?.integers
      }
      let (bare, padded) = ([1, id("a"), 2], [1, id("a"), 2, 0, 0, 0])
      #expect(try ids(file) == padded)
      #expect(try ids(file, "--no-padding") == bare)
      #expect(try ids(folder) == bare)
      #expect(try ids(folder, "--padding") == padded)
    }
  }

  @Test func bytesThatAreNoTextGoIn() throws {
    try withTokenizer { folder, _ in
      let path = folder + "/lines.txt"
      try Data([0x61, 0xFF, 0x0A, 0xC3, 0x0A, 0xED, 0xA0, 0x80, 0x62]).write(to: URL(fileURLWithPath: path))
      let values = try CommandRun(["tokenize", folder, "--input", path, "--no-special", "--json"]).jsonLines
      // The normalizer drops U+FFFD.
      #expect(values.map { $0["tokens"]?.strings } == [["a"], [], ["b"]])
    }
  }

  @Test func idsBecomeTextAgain() throws {
    try withTokenizer { folder, _ in
      let lines = try TinyModel.write("ab c!\nhello\n", to: folder + "/lines.txt")
      let ids = try TinyModel.write(try CommandRun(["tokenize", folder, "--input", lines, "--json"]).output, to: folder + "/ids.jsonl")
      let back = try CommandRun(["tokenize", folder, "--decode", "--no-special", "--input", ids])
      #expect(back.output == "ab c!\nhello\n", "\(back.errors)")
      #expect(try CommandRun(["tokenize", folder, "--decode", "--text", "[1, \(id("a"))]", "--json"]).output == "{\"text\":\"[CLS] a\"}\n")
      #expect(try CommandRun(["tokenize", folder, "--decode", "--text", "\(id("a")), \(id("##b")) 99999 -1"]).output == "ab\n")
      try CommandRun(["tokenize", folder, "--decode", "--text", "1 x2"]).expectRefusal("x2", "line 1")
    }
  }

  @Test func threadsKeepTheOrder() throws {
    try withTokenizer { folder, _ in
      var text = ""
      for i in 0..<20_000 { text += String(repeating: "ab ", count: i % 9) + "\(Character(UnicodeScalar(97 + i % 26)!))\n" }
      let lines = try TinyModel.write(text, to: folder + "/lines.txt")
      let one = try CommandRun(["tokenize", folder, "--input", lines, "--json", "--threads", "1"])
      let several = try CommandRun(["tokenize", folder, "--input", lines, "--json", "--threads", "5"])
      #expect(one.status == 0 && one.output == several.output)
      #expect(one.output.utf8.count { $0 == 0x0A } == 20_000)
      let count = try CommandRun(["tokenize", folder, "--input", lines, "--count", "--json"]).json
      #expect(count["texts"]?.intValue == 20_000 && count["bytes"]?.intValue == text.utf8.count - 20_000)
      let tokens = try one.jsonLines.reduce(0) { $0 + ($1["ids"]?.arrayValue?.count ?? 0) }
      #expect(count["tokens"]?.intValue == tokens)
    }
  }

  @Test func standardInputAndAReaderThatLeaves() throws {
    try withTokenizer { folder, _ in
      let piped = try CommandRun(shell: #"printf 'a\nb' | "$MARTLET" tokenize \#(folder) --json"#)
      #expect(try piped.jsonLines.count == 2)
      // What feeds the command may complain when the pipe closes; the command itself must not.
      let left = try CommandRun(shell: #"(yes abc | head -n 300000) 2>/dev/null | "$MARTLET" tokenize \#(folder) --json | head -n 1"#)
      #expect(left.status == 0 && left.errors.isEmpty, "\(left.errors)")
      #expect(try left.jsonLines.count == 1)
    }
  }

  @Test func wrongInputIsRefused() throws {
    try withTokenizer { folder, _ in
      try CommandRun(["tokenize", folder + "/absent", "--text", "a"]).expectRefusal("absent")
      try CommandRun(["tokenize", folder, "--input", folder + "/absent.txt"]).expectRefusal("absent.txt")
      try CommandRun(["tokenize", folder, "--input", folder]).expectRefusal("is a folder")
      try CommandRun(["tokenize", folder, "--text", "no tab", "--pair"]).expectRefusal("line 1", "tab")
      try CommandRun(["tokenize", folder, "--text", "a", "--offsets"]).expectRefusal("--json")
      try CommandRun(["tokenize", folder, "--text", "a", "--input", "b"]).expectRefusal("not both")
      _ = try TinyModel.write("{\"model\": 3}", to: folder + "/tokenizer.json")
      try CommandRun(["tokenize", folder, "--text", "a"]).expectRefusal("tokenizer.json")
    }
  }
}
