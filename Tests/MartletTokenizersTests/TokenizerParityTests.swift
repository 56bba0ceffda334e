import Foundation
import MartletTokenizers
import Testing

/// The files that Tests/Fixtures/tokenizer_parity.py writes.
struct ParityFolder {
  let path: String

  static var committed: ParityFolder { ParityFolder(path: Bundle.module.resourcePath! + "/Fixtures/parity") }

  /// Names of the tokenizers.
  var names: [String] {
    get throws {
      try FileManager.default.contentsOfDirectory(atPath: path).filter { $0.hasSuffix(".ids") }.map { String($0.dropLast(4)) }.sorted()
    }
  }

  func tokenizer(_ name: String) throws -> Tokenizer { try Tokenizer(file: path + "/\(name).json") }

  func texts() throws -> [[UInt8]] {
    var reader = NumberReader(try Data(contentsOf: URL(fileURLWithPath: path + "/texts.bin")))
    var texts: [[UInt8]] = []
    while let count = reader.next() { texts.append(reader.take(count)) }
    return texts
  }

  func ids(_ name: String) throws -> [[Int32]] {
    var reader = NumberReader(try Data(contentsOf: URL(fileURLWithPath: path + "/\(name).ids")))
    var ids: [[Int32]] = []
    while let count = reader.next() { ids.append((0..<count).map { _ in Int32(reader.next() ?? -1) }) }
    return ids
  }

  func details() throws -> JSONValue {
    try Data(contentsOf: URL(fileURLWithPath: path + "/details.json")).withUnsafeBytes {
      try JSONValue.parse($0.bindMemory(to: UInt8.self))
    }
  }
}

private struct NumberReader {
  let bytes: [UInt8]
  var position = 0
  init(_ data: Data) { bytes = [UInt8](data) }

  mutating func next() -> Int? {
    guard position < bytes.count else { return nil }
    var number = 0
    var shift = 0
    while true {
      let byte = bytes[position]
      position += 1
      number |= Int(byte & 0x7F) << shift
      if byte & 0x80 == 0 { return number }
      shift += 7
    }
  }

  mutating func take(_ count: Int) -> [UInt8] {
    defer { position += count }
    return Array(bytes[position..<(position + count)])
  }
}

@Suite struct TokenizerParityTests {
  /// Compares all texts of a folder; the texts that differ, by tokenizer.
  static func differences(_ folder: ParityFolder) throws -> (compared: Int, [String]) {
    let texts = try folder.texts()
    var compared = 0
    var differences: [String] = []
    for name in try folder.names {
      let tokenizer = try folder.tokenizer(name)
      let expected = try folder.ids(name)
      #expect(expected.count == texts.count)
      for (index, text) in texts.enumerated() {
        compared += 1
        let ids = try tokenizer.encode(bytes: text).ids
        if ids != expected[index] {
          let start = zip(ids, expected[index]).prefix { $0 == $1 }.count
          differences.append(
            "\(name), text \(index), from token \(start): \(ids.dropFirst(start).prefix(5)) not \(expected[index].dropFirst(start).prefix(5))"
          )
        }
      }
    }
    return (compared, differences)
  }

  @Test func `every component gives the ids of the tokenizers library`() throws {
    let (compared, differences) = try Self.differences(.committed)
    #expect(compared > 2000)
    #expect(differences.isEmpty, "\(differences.count) of \(compared) differ: \(differences.prefix(5))")
  }

  /// Run by hand with the large corpus: see Tests/Fixtures/tokenizer_parity.py.
  @Test(.enabled(if: ProcessInfo.processInfo.environment["MARTLET_TOKENIZER_PARITY"] != nil))
  func `a hundred thousand texts have the ids of the tokenizers library`() throws {
    let folder = ParityFolder(path: ProcessInfo.processInfo.environment["MARTLET_TOKENIZER_PARITY"]!)
    let (compared, differences) = try Self.differences(folder)
    print("compared \(compared) texts")
    #expect(differences.isEmpty, "\(differences.count) of \(compared) differ: \(differences.prefix(20))")
  }

  @Test func `tokens, types, masks, offsets, pairs and decoded text are the library's`() throws {
    let folder = ParityFolder.committed
    let details = try folder.details()
    let list = try #require(details["texts"]?.arrayValue)
    let texts = list.compactMap(\.stringValue)
    for name in try folder.names {
      let tokenizer = try folder.tokenizer(name)
      let expected = try #require(details[name])
      let singles = try #require(expected["single"]?.arrayValue)
      for (text, single) in zip(texts, singles) {
        let encoding = try tokenizer.encode(text, offsets: true)
        try compare(encoding, [text], single, name)
        let comment = Comment("\(name) \(text.debugDescription)")
        let again = try tokenizer.encode(text).ids
        #expect(again == encoding.ids, comment)
        let decoded = try tokenizer.decode(encoding.ids)
        #expect(decoded == single["decoded"]?.stringValue, comment)
        let all = try tokenizer.decode(encoding.ids, skipSpecialTokens: false)
        #expect(all == single["decoded_all"]?.stringValue, comment)
        let plain = try tokenizer.encode(text, addSpecialTokens: false).ids.map { Int($0) }
        #expect(plain == numbers(single["plain"]), comment)
      }
      let pair = try tokenizer.encode(texts[0], pair: texts[1], offsets: true)
      let expectedPair = try #require(expected["pair"])
      try compare(pair, [texts[0], texts[1]], expectedPair, name)
    }
  }

  private func numbers(_ value: JSONValue?) -> [Int] { value?.arrayValue?.compactMap(\.intValue) ?? [] }

  private func compare(_ encoding: Encoding, _ texts: [String], _ expected: JSONValue, _ name: String) throws {
    let comment = Comment("\(name) \(texts[0].debugDescription)")
    #expect(encoding.ids.map { Int($0) } == numbers(expected["ids"]), comment)
    #expect(encoding.typeIds.map { Int($0) } == numbers(expected["types"]), comment)
    #expect(encoding.attentionMask.map { Int($0) } == numbers(expected["mask"]), comment)
    #expect(encoding.specialTokensMask.map { Int($0) } == numbers(expected["special"]), comment)
    // The library spells added tokens as they stand in the text, with the white space they took, and unknown ones too.
    let tokens = expected["tokens"]?.arrayValue?.compactMap(\.stringValue) ?? []
    #expect(
      zip(encoding.tokens, tokens).allSatisfy { ours, theirs in
        ours == theirs || ours == "<unk>" || ours.lowercased() == theirs.lowercased().trimmingCharacters(in: .whitespacesAndNewlines)
      }, comment)
    // The library counts characters, we count bytes.
    let offsets = expected["offsets"]?.arrayValue?.map(numbers) ?? []
    #expect(offsets.count == encoding.offsets.count, comment)
    for (index, (ours, theirs)) in zip(encoding.offsets, offsets).enumerated() {
      let text = texts.count == 2 && encoding.sequenceIds[index] == 1 ? texts[1] : texts[0]
      var ends = [0]
      for scalar in text.unicodeScalars { ends.append(ends[ends.count - 1] + String(Character(scalar)).utf8.count) }
      #expect(ours == ends[theirs[0]]..<ends[theirs[1]], "\(name) token \(index) of \(text.debugDescription)")
    }
  }

  @Test func `offsets change no ids`() throws {
    let folder = ParityFolder.committed
    let texts = try folder.texts()
    for name in try folder.names {
      let tokenizer = try folder.tokenizer(name)
      for text in texts {
        let encoding = try tokenizer.encode(bytes: text, offsets: true)
        let plain = try tokenizer.encode(bytes: text).ids
        #expect(encoding.ids == plain, "\(name)")
        #expect(encoding.offsets.count == encoding.count)
      }
    }
  }

  @Test func `a stream gives the same text as decoding everything`() throws {
    let folder = ParityFolder.committed
    let texts = try folder.texts()
    for name in try folder.names {
      let tokenizer = try folder.tokenizer(name)
      for text in texts where text.count < 400 {
        let ids = try tokenizer.encode(bytes: text, addSpecialTokens: false).ids
        var stream = StreamingDecoder(tokenizer, skipSpecialTokens: false)
        var pieces = ""
        for id in ids { pieces += try stream.append(id) }
        pieces += try stream.finish()
        let whole = try tokenizer.decode(ids, skipSpecialTokens: false)
        #expect(pieces.utf8.elementsEqual(whole.utf8), "\(name): \(pieces.debugDescription) not \(whole.debugDescription)")
      }
    }
  }

  @Test func `batches pad to the longest and threads change nothing`() throws {
    var tokenizer = try ParityFolder.committed.tokenizer("bert")
    let texts = try ParityFolder.committed.texts().map { String(decoding: $0, as: UTF8.self) }
    tokenizer.padding = Padding(id: 0)
    let one = try tokenizer.encode(texts)
    let four = try tokenizer.encode(texts, threads: 4)
    #expect(one.map(\.ids) == four.map(\.ids))
    #expect(Set(one.map(\.count)).count == 1)
    tokenizer.padding = nil
    for (text, padded) in zip(texts, one) {
      let plain = try tokenizer.encode(text)
      #expect(padded.attentionMask.reduce(0, +) == plain.count)
      #expect(Array(padded.ids.prefix(plain.count)) == plain.ids)
    }
  }
}
