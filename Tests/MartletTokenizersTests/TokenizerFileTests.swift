import Foundation
import Testing

@testable import MartletTokenizers

@Suite struct TokenizerFileTests {
  private func tokenizer(_ json: String) throws -> Tokenizer { try Tokenizer(json: Data(json.utf8), file: "t.json") }

  private func message(_ json: String) -> String {
    do {
      _ = try tokenizer(json)
      return "no error"
    } catch let error as FileError { return error.description } catch { return "not a FileError: \(error)" }
  }

  private let bpe = #"{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}"#

  @Test func `merges are read in both spellings`() throws {
    for merges in [#"["a b"]"#, #"[["a","b"]]"#] {
      let t = try tokenizer(#"{"model":{"type":"BPE","merges":\#(merges),"vocab":{"a":0,"b":1,"ab":2}}}"#)
      #expect(try t.encode("abba").ids == [2, 1, 0])
    }
  }

  @Test func `errors name the file and the key`() {
    let cases: [(String, String)] = [
      ("", "empty"), ("{", "byte"), ("[]", "\"{\" was expected"), ("{}", "model: the key is missing"), (#"{"model":{}}"#, "model.vocab"),
      (#"{"version":"9","model":\#(bpe)}"#, "version"), (#"{"model":\#(bpe)} x"#, "after the end"),
      (#"{"model":{"type":"BPE","vocab":{"a":0,"b":0},"merges":[]}}"#, "the id 0 is given to two tokens"),
      (#"{"model":{"type":"BPE","vocab":{"a":0,"a":1},"merges":[]}}"#, "occurs twice"),
      (#"{"model":{"type":"BPE","vocab":{"a":1000000000000},"merges":[]}}"#, "1000000000000"),
      (#"{"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}"#, "-1"),
      (#"{"model":{"type":"BPE","vocab":{"a":0.5},"merges":[]}}"#, "whole number"),
      (#"{"model":{"type":"BPE","vocab":{"a":0},"merges":["a c"]}}"#, "model.merges[0]: the token \"c\""),
      (#"{"model":{"type":"BPE","vocab":{"a":0},"merges":["a"]}}"#, "two tokens"),
      (#"{"model":{"type":"BPE","vocab":{"a":0},"merges":[["a"]]}}"#, "merges"),
      (#"{"model":{"type":"BPE","vocab":{"a":0}}}"#, "model.merges"),
      (#"{"model":{"type":"Bpe","vocab":{"a":0},"merges":[]}}"#, "Did you mean \"BPE\""),
      (#"{"model":{"type":"Unigram","vocab":[["a",1.0]],"unk_id":7}}"#, "unk_id"),
      (#"{"model":{"type":"Unigram","vocab":[["a","b"]]}}"#, "must be a number"),
      (#"{"model":{"type":"Unigram","vocab":[["a",1e999]]}}"#, "out of range"),
      (#"{"model":\#(bpe),"normalizer":{"type":"NFX"}}"#, "normalizer.type"),
      (
        #"{"model":\#(bpe),"normalizer":{"type":"Sequence","normalizers":[{"type":"Replace","pattern":{"Regex":"("},"content":""}]}}"#,
        "normalizer.normalizers[0].pattern"
      ),
      (#"{"model":\#(bpe),"normalizer":{"type":"Precompiled","precompiled_charsmap":"!"}}"#, "base64"),
      (#"{"model":\#(bpe),"normalizer":{"type":"Precompiled","precompiled_charsmap":"/////w=="}}"#, "claims a table"),
      (#"{"model":\#(bpe),"pre_tokenizer":{"type":"Split","pattern":{},"behavior":"Isolated"}}"#, "pre_tokenizer.pattern"),
      (#"{"model":\#(bpe),"pre_tokenizer":{"type":"Split","pattern":{"String":"a"},"behavior":"Sideways"}}"#, "behavior"),
      (#"{"model":\#(bpe),"pre_tokenizer":{"type":"FixedLength","length":0}}"#, "length"),
      (#"{"model":\#(bpe),"post_processor":{"type":"BertProcessing","sep":["a"],"cls":["b",1]}}"#, "post_processor."),
      (
        #"{"model":\#(bpe),"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x"}}],"pair":[],"special_tokens":{}}}"#,
        "\"x\" is not among special_tokens"
      ),
      (#"{"model":\#(bpe),"padding":{"strategy":{"Fixed":1000000000000}}}"#, "padding.strategy"),
      (#"{"model":\#(bpe),"truncation":{"max_length":-1}}"#, "truncation.max_length"),
      (#"{"model":\#(bpe),"added_tokens":[{"id":1000000000000,"content":"x"}]}"#, "added_tokens[0].id"),
      (#"{"model":\#(bpe),"added_tokens":[{"id":3}]}"#, "added_tokens[0].content"),
      (#"{"model":\#(bpe),"decoder":{"type":"Strip","content":"ab"}}"#, "decoder.content"),
      (#"{"model":"# + String(repeating: "[", count: 100_000), "nested"),
      (#"{"model":{"type":"BPE","vocab":{"\ud800":0},"merges":[]}}"#, "surrogate"),
    ]
    for (json, part) in cases {
      let found = message(json)
      #expect(found.hasPrefix("t.json: ") && found.contains(part), "\(json.prefix(120)) gave: \(found.prefix(300))")
    }
    #expect(throws: FileError.self) { try Tokenizer(json: Data([0x7B, 0xFF, 0x7D])) }
    #expect(throws: FileError.self) { try Tokenizer.load("/nonexistent/folder") }
  }

  @Test func `damaged files end in an error or in a tokenizer that works`() throws {
    var state: UInt64 = 7
    func next(_ bound: Int) -> Int {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return Int(state >> 33) % bound
    }
    let interesting = Array(#"{}[]",:0123456789-.eE\tfn"#.utf8) + [0, 0x80, 0xFF]
    var read = 0
    for name in ["gpt2", "llama2", "bert", "t5", "added", "split_next"] {
      let whole = [UInt8](try Data(contentsOf: URL(fileURLWithPath: ParityFolder.committed.path + "/\(name).json")))
      for round in 0..<60 {
        var bytes = whole
        switch round % 4 {
        case 0: bytes.removeLast(next(bytes.count))
        case 1: for _ in 0..<(1 + next(4)) { bytes[next(bytes.count)] = interesting[next(interesting.count)] }
        case 2:
          let start = next(bytes.count)
          bytes.removeSubrange(start..<min(bytes.count, start + 1 + next(40)))
        default:
          // Mostly the head and the tail, where the options are.
          let at = next(2) == 0 ? next(min(1500, bytes.count)) : bytes.count - 1 - next(min(1500, bytes.count))
          bytes[at] = interesting[next(interesting.count)]
        }
        do {
          let tokenizer = try Tokenizer(json: Data(bytes), file: "damaged.json")
          read += 1
          let ids = (try? tokenizer.encode("Héllo wörld 字 😀\n  x'll", offsets: true).ids) ?? []
          _ = try? tokenizer.decode(ids)
        } catch let error as FileError {
          #expect(error.file == "damaged.json")
        }
      }
    }
    #expect(read > 0)
  }

  @Test func `lying tables of compiled rules are survived`() throws {
    var state: UInt64 = 11
    for round in 0..<300 {
      var bytes: [UInt8] = []
      let units = 1 + round % 40
      bytes += [UInt8(units * 4 & 0xFF), UInt8(units * 4 >> 8), 0, 0]
      for _ in 0..<(units * 4) {
        state = state &* 6_364_136_223_846_793_005 &+ 1
        bytes.append(UInt8(truncatingIfNeeded: state >> 56))
      }
      bytes += Array("é\0字\0".utf8)
      let map = try PrecompiledCharacterMap(bytes)
      let tokenizer = try Tokenizer(
        model: .wordLevel(WordLevel(vocabulary: Vocabulary(["<unk>"]))), normalizer: .precompiled(map), preTokenizer: .whitespace)
      _ = try tokenizer.encode("aé字 e\u{301}😀", offsets: true)
    }
  }

  @Test func `tokens are compared byte by byte`() throws {
    let t = try tokenizer(#"{"model":{"type":"WordLevel","vocab":{"\u00e9":0,"e\u0301":1,"<unk>":2}}}"#)
    #expect(try t.encode("\u{E9}").ids == [0])
    #expect(try t.encode("e\u{301}").ids == [1])
    #expect(t.id(of: "e\u{301}") == 1)
  }

  @Test func `truncation and padding given by the caller are applied`() throws {
    var t = try tokenizer(
      #"{"model":\#(bpe),"post_processor":{"type":"BertProcessing","sep":["b",1],"cls":["a",0]},"pre_tokenizer":{"type":"FixedLength","length":1}}"#
    )
    t.truncation = Truncation(maximumLength: 5)
    #expect(try t.encode("aaaabbbb").ids == [0, 0, 0, 0, 1])
    t.truncation = Truncation(maximumLength: 5, direction: .left)
    #expect(try t.encode("aaaabbbb").ids == [0, 1, 1, 1, 1])
    t.truncation = Truncation(maximumLength: 7)
    #expect(try t.encode("aaaa", pair: "bb").ids == [0, 0, 0, 1, 1, 1, 1])
    t.truncation = Truncation(maximumLength: 6, strategy: .onlyFirst)
    #expect(try t.encode("aaaa", pair: "bb").ids == [0, 0, 1, 1, 1, 1])
    #expect(throws: TokenizationError.self) { try t.encode("a", pair: "bbbb") }
    t.truncation = Truncation(maximumLength: 1)
    #expect(throws: TokenizationError.self) { try t.encode("a") }
    t.truncation = nil
    t.padding = Padding(strategy: .fixed(6), direction: .left, id: 2, typeId: 1)
    let padded = try t.encode("ab", offsets: true)
    #expect(padded.ids == [2, 2, 0, 0, 1, 1])
    #expect(padded.attentionMask == [0, 0, 1, 1, 1, 1])
    #expect(padded.typeIds == [1, 1, 0, 0, 0, 0])
    #expect(padded.offsets == [0..<0, 0..<0, 0..<0, 0..<1, 1..<2, 0..<0])
  }

  @Test func `adversarial texts take time in proportion`() throws {
    let folder = ParityFolder.committed
    for name in ["gpt2", "llama2", "bert", "albert", "o200k"] {
      let tokenizer = try folder.tokenizer(name)
      for unit in ["a", "ab ", " ", "\n", "'", "字", "e\u{301}", "\u{10FFFF}"] {
        // Quadratic work on this would take minutes.
        let text = String(repeating: unit, count: 60_000 / unit.utf8.count)
        let ids = try tokenizer.encode(text).ids
        #expect(!ids.isEmpty || name == "bert" || name == "albert")
      }
    }
  }
}
