import Foundation
import MartletTokenizers
import Testing

/// Small models and what the `sentencepiece` library 0.2 makes of texts; Tests/Fixtures/sentencepiece_models.py writes the files.
@Suite struct SentencePieceTests {
  private static func file(_ name: String) -> String { Bundle.module.bundlePath + "/Fixtures/" + name }
  private static let fixture = try! JSONValue.parse(String(contentsOfFile: file("sentencepiece.json"), encoding: .utf8))

  @Test(arguments: ["unigram", "bpe"]) func givesTheIdsAndTextsOfTheLibrary(_ name: String) throws {
    let tokenizer = try Tokenizer(sentencePieceFile: Self.file(name + ".model"))
    let texts = Self.fixture["texts"]!.arrayValue!.map { $0.stringValue! }
    let expected = Self.fixture[name]!
    #expect(texts.count > 200)
    for (index, text) in texts.enumerated() {
      let ids = expected["ids"]!.arrayValue![index].arrayValue!.map { $0.intValue! }
      let own = try tokenizer.encode(text).ids.map(Int.init)
      #expect(own == ids, "\(text.debugDescription)")
      let decoded = try tokenizer.decode(ids)
      let wanted = expected["decoded"]!.arrayValue![index].stringValue!
      #expect(Array(decoded.utf8) == Array(wanted.utf8), "\(decoded.debugDescription) instead of \(wanted.debugDescription)")
    }
  }

  @Test func saysWhereTokensComeFrom() throws {
    let tokenizer = try Tokenizer(sentencePieceFile: Self.file("unigram.model"))
    let text = "  ＡＢ user_def  na "
    let encoding = try tokenizer.encode(text, offsets: true)
    #expect(encoding.ids == (try tokenizer.encode(text).ids))
    let user = encoding.ids.firstIndex(of: Int32(tokenizer.id(of: "user_def")!))!
    // Whether offsets count scalars or bytes, this piece is ASCII.
    #expect(encoding.offsets[user].count == "user_def".count)
    #expect(encoding.offsets.allSatisfy { $0.lowerBound <= $0.upperBound })
  }

  @Test func knowsSpecialPieces() throws {
    let tokenizer = try Tokenizer(sentencePieceFile: Self.file("bpe.model"))
    #expect(tokenizer.unknownId == 0 && tokenizer.beginningId == 1 && tokenizer.endId == 2 && tokenizer.paddingId == nil)
    // In the library control pieces aren't found in the text.
    #expect(try !tokenizer.encode("<s>").ids.contains(1))
  }

  @Test func readsFoldersAsLlamaAndT5() throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    try FileManager.default.copyItem(atPath: Self.file("bpe.model"), toPath: folder.path + "/tokenizer.model")
    func load(_ configuration: String) throws -> Tokenizer {
      try Data(configuration.utf8).write(to: folder.appendingPathComponent("tokenizer_config.json"))
      return try Tokenizer.load(folder.path)
    }
    let llama = try load(#"{"tokenizer_class": "LlamaTokenizer"}"#)
    let body = try llama.encode("ab", addSpecialTokens: false).ids
    #expect(try llama.encode("ab").ids == [1] + body)
    #expect(try llama.encode("ab</s>", addSpecialTokens: false).ids == body + [2])
    #expect(try load(#"{"tokenizer_class": "T5Tokenizer"}"#).encode("ab").ids == body + [2])
    #expect(try load(#"{"tokenizer_class": "LlamaTokenizer", "add_eos_token": true}"#).encode("ab").ids == [1] + body + [2])
    #expect(throws: FileError.self) { try load(#"{"tokenizer_class": "XLMRobertaTokenizer"}"#) }
  }

  @Test func refusesBrokenFilesWithAMessage() throws {
    let data = try Data(contentsOf: URL(fileURLWithPath: Self.file("bpe.model")))
    func failure(_ data: Data) -> String? {
      do {
        _ = try Tokenizer(sentencePiece: data, file: "broken.model")
        return nil
      } catch let error as FileError { return error.description } catch { return "wrong type: \(error)" }
    }
    #expect(failure(Data())?.hasPrefix("broken.model: ") == true)
    #expect(failure(Data("not a model".utf8))?.hasPrefix("broken.model: ") == true)
    // Field 1 with a length of 2⁶³ − 1, and one of 2 GB.
    #expect(failure(Data([0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]))?.hasPrefix("broken.model: ") == true)
    #expect(failure(Data([0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0x07]))?.hasPrefix("broken.model: ") == true)
    // A hundred pieces without text.
    #expect(failure(Data(Array(repeating: [0x0A, 0x00], count: 100).joined()))?.contains("piece 0 is empty") == true)
    // Truncated anywhere, or with any one byte changed, a file is refused or read; never does it crash.
    for end in stride(from: 0, to: data.count, by: 61) { _ = failure(data.prefix(end)) }
    for place in stride(from: 0, to: data.count, by: 61) {
      var changed = data
      changed[place] ^= 0x55
      guard let tokenizer = try? Tokenizer(sentencePiece: changed) else { continue }
      _ = try? tokenizer.encode("a text to try, with 日本 and user_def")
    }
    let unigram = try Data(contentsOf: URL(fileURLWithPath: Self.file("unigram.model")))
    for place in stride(from: max(0, unigram.count - 3000), to: unigram.count, by: 7) {
      var changed = unigram
      changed[place] ^= 0x55
      guard let tokenizer = try? Tokenizer(sentencePiece: changed) else { continue }
      _ = try? tokenizer.encode("ＡＢＣ with 日本 and\u{A0}é e\u{301}\u{302} user_def")
    }
  }
}
