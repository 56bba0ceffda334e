import Foundation
import MartletTokenizers
import Testing

/// What the `tokenizers` library 0.23 learns from a text; Tests/Fixtures/tokenizer_training.py writes the file.
@Suite struct TokenizerTrainingTests {
  private static let fixture: JSONValue = try! JSONValue.parse(
    String(contentsOfFile: Bundle.module.bundlePath + "/Fixtures/training.json", encoding: .utf8))
  private static let text = fixture["text"]!.stringValue!
  private let special = [AddedToken("<unk>", isSpecial: true), AddedToken("<s>", isSpecial: true)]

  /// Reads the text from two files, cut inside a line's neighbourhood, as training on files does.
  private func corpus(_ preTokenizer: PreTokenizer) throws -> TokenizerCorpus {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString).path
    defer { try? FileManager.default.removeItem(atPath: path) }
    try Self.text.write(toFile: path, atomically: true, encoding: .utf8)
    let corpus = try TokenizerCorpus(preTokenizer: preTokenizer)
    try corpus.add(files: [path])
    #expect(corpus.byteCount == Self.text.utf8.count)
    return corpus
  }

  private func expectSame(_ name: String, _ tokenizer: Tokenizer) throws {
    let expected = Self.fixture["bpe"]![name]!
    let tokens = expected["tokens"]!.arrayValue!.map { $0.stringValue! }
    let own = (0..<tokenizer.model.vocabulary.idCount).map { tokenizer.model.vocabulary.token(of: $0)! }
    #expect(own == tokens, "\(name)")
    guard case .bpe(let model) = tokenizer.model else { return }
    let merges = model.merges.map { [own[$0.left], own[$0.right]] }
    let wanted = expected["merges"]!.arrayValue!.map { $0.arrayValue!.map { $0.stringValue! } }
    #expect(merges == wanted, "\(name)")
    #expect(merges.count > 20)
  }

  @Test func bpeMakesTheMergesOfTheLibrary() throws {
    let words = try corpus(.whitespace)
    try expectSame(
      "byteLevel",
      BPETrainer(vocabularySize: 420, specialTokens: special, initialAlphabet: BPETrainer.byteAlphabet, unknownToken: "<unk>").train(
        corpus(.byteLevel(addsPrefixSpace: false, usesPattern: true))))
    try expectSame("plain", BPETrainer(vocabularySize: 160, specialTokens: special, unknownToken: "<unk>").train(words))
    try expectSame("minimumFrequency", BPETrainer(vocabularySize: 1000, minimumFrequency: 20, specialTokens: special).train(words))
    try expectSame("maximumLength", BPETrainer(vocabularySize: 160, specialTokens: special, maximumTokenLength: 5).train(words))
    try expectSame("alphabetLimit", BPETrainer(vocabularySize: 120, specialTokens: special, alphabetLimit: 12).train(words))
  }

  @Test func unigramCutsTheTextNearlyAsWellAsTheLibrary() throws {
    let tokenizer = try UnigramTrainer(vocabularySize: 200, specialTokens: special).train(
      corpus(.metaspace(replacement: "▁", .always, splits: true)))
    guard case .unigram(let model) = tokenizer.model else { return }
    #expect(model.vocabulary.idCount == 200)
    var count = 0
    var score = 0.0
    for line in Self.text.split(separator: "\n") {
      let ids = try tokenizer.encode(String(line)).ids
      #expect(!ids.contains(0))
      count += ids.count
      for id in ids { score += model.scores[Int(id)] }
    }
    let expected = Self.fixture["unigram"]!
    let tokens = Double(expected["tokens"]!.intValue!)
    let probability = expected["logProbability"]!.doubleValue!
    #expect(Double(count) < tokens * 1.05, "\(count) tokens, the library makes \(tokens)")
    #expect(score > probability * 1.05, "log-probability \(score), the library reaches \(probability)")
  }

  @Test func unigramKeepsEveryCharacter() throws {
    let corpus = try TokenizerCorpus(preTokenizer: .whitespaceSplit)
    try corpus.add(contentsOf: ["aaaa aaab ab", "日本 日 é e\u{301}", "rare: ζ"])
    let tokenizer = try UnigramTrainer(vocabularySize: 30).train(corpus)
    for scalar in "ab日本ée\u{301}rζ:".unicodeScalars { #expect(tokenizer.id(of: String(scalar)) != nil, "\(scalar)") }
    #expect(throws: ConfigurationError.self) { try UnigramTrainer(vocabularySize: 5).train(corpus) }
    #expect(throws: ConfigurationError.self) { try UnigramTrainer(vocabularySize: 30, unknownToken: "<none>").train(corpus) }
  }

  @Test func wordPieceSpellsTheWordsItSaw() throws {
    let corpus = try TokenizerCorpus(normalizer: .lowercase, preTokenizer: .bert)
    try corpus.add(contentsOf: Array(repeating: "Undergoing the undergrowth, going under.", count: 5))
    let tokenizer = try WordPieceTrainer(vocabularySize: 60).train(corpus)
    #expect(tokenizer.id(of: "[PAD]") == 0 && tokenizer.id(of: "[UNK]") == 1)
    let encoding = try tokenizer.encode("undergoing GROWTH")
    #expect(!encoding.ids.contains(1))
    #expect(try tokenizer.decode(encoding.ids).contains("undergoing"))
    #expect(throws: ConfigurationError.self) { try WordPieceTrainer(specialTokens: []).train(corpus) }
  }

  /// Scores may differ in their last digit: files are read as the library reads them, which doesn't round every number correctly.
  private func isSame(_ a: Substring, _ b: Substring) -> Bool {
    if a.utf8.elementsEqual(b.utf8) { return true }
    func parts(_ line: Substring) -> (Substring, Double?) {
      let cut = line.lastIndex(of: " ") ?? line.startIndex
      return (line[..<cut], Double(line[cut...].filter { "0123456789.-e".contains($0) }))
    }
    guard let x = parts(a).1, let y = parts(b).1 else { return false }
    return parts(a).0.utf8.elementsEqual(parts(b).0.utf8) && abs(x - y) < 1e-12
  }

  @Test func writesAFileThatReadsBack() throws {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString).path
    defer { try? FileManager.default.removeItem(atPath: path) }
    let metaspace = PreTokenizer.metaspace(replacement: "▁", .always, splits: true)
    let trained = [
      try BPETrainer(vocabularySize: 300, specialTokens: special, initialAlphabet: BPETrainer.byteAlphabet).train(
        corpus(.byteLevel(addsPrefixSpace: true, usesPattern: true)), decoder: .byteLevel,
        postProcessor: .template(
          single: [.special([.init("<s>", id: 1)], typeId: 0), .text(0, typeId: 0)], pair: [.text(0, typeId: 0), .text(1, typeId: 1)])),
      try BPETrainer(vocabularySize: 500, specialTokens: special, endOfWordSuffix: "</w>", unknownToken: "<unk>", hasByteFallback: true)
        .train(
          corpus(.sequence([.digits(individually: true), .whitespace]))),
      try UnigramTrainer(vocabularySize: 150, specialTokens: special).train(
        corpus(metaspace), decoder: .metaspace(replacement: "▁", .always)),
      try WordPieceTrainer(vocabularySize: 150).train(corpus(.bert)),
    ]
    for tokenizer in trained {
      try tokenizer.save(to: path)
      let read = try Tokenizer(file: path)
      let lines = try (read.fileContents().split(separator: "\n"), tokenizer.fileContents().split(separator: "\n"))
      let difference = zip(lines.0, lines.1).first { !isSame($0, $1) }
      #expect(difference == nil && lines.0.count == lines.1.count, "\(difference.map { "\($0)" } ?? "")")
      for line in Self.text.split(separator: "\n").prefix(40) {
        #expect(try read.encode(String(line)).ids == tokenizer.encode(String(line)).ids)
      }
    }
  }

  @Test func tokensThatLookEqualStayApart() throws {
    let corpus = try TokenizerCorpus(preTokenizer: .whitespaceSplit)
    try corpus.add("é e\u{301} é e\u{301}")
    let tokenizer = try BPETrainer(vocabularySize: 20).train(corpus)
    #expect(tokenizer.vocabularyCount == 4)
    let read = try Tokenizer(json: Data(try tokenizer.fileContents().utf8))
    #expect(read.vocabularyCount == 4)
    #expect(try read.encode("é e\u{301}").ids.count == 2)
  }

  @Test func progressCanStopTraining() throws {
    struct Stop: Error {}
    let words = try corpus(.whitespace)
    #expect(throws: Stop.self) { try BPETrainer(vocabularySize: 200).train(words) { _ in throw Stop() } }
    #expect(throws: Stop.self) { try UnigramTrainer(vocabularySize: 200).train(words) { _ in throw Stop() } }
  }

  @Test func limitsAndBadFilesAreNamed() throws {
    let small = try TokenizerCorpus(preTokenizer: .whitespace, limits: .init(words: 3))
    #expect(throws: ConfigurationError.self) { try small.add("a b c d e") }
    #expect(throws: FileError.self) { try TokenizerCorpus().add(files: ["/nowhere/at all"]) }
    #expect(throws: ConfigurationError.self) { try BPETrainer(vocabularySize: 0).train(TokenizerCorpus()) }
    #expect(throws: ConfigurationError.self) { try UnigramTrainer().train(TokenizerCorpus()) }
    // Without words, BPE learns its alphabet.
    #expect(try BPETrainer(specialTokens: special).train(TokenizerCorpus()).vocabularyCount == 2)
  }

  @Test func readsInvalidTextAndLongLines() throws {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString).path
    defer { try? FileManager.default.removeItem(atPath: path) }
    try Data([0x61, 0xFF, 0x62, 0x0A] + Array(repeating: UInt8(0x63), count: 3 << 20)).write(to: URL(fileURLWithPath: path))
    let corpus = try TokenizerCorpus(preTokenizer: .whitespaceSplit)
    var seen = 0
    try corpus.add(files: [path]) { seen = $0.done }
    #expect(corpus.wordCount == 2 && seen == 4 + 3 << 20)
  }
}
