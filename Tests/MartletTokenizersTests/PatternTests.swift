import Testing

@testable import MartletTokenizers

@Suite struct PatternTests {
  static let patterns = [
    #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#,
    #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#,
    #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#,
  ]

  private func matches(_ pattern: String, _ text: [UInt8]) throws -> [[Int]] {
    try matches(try RegularExpression(pattern), RegularExpression.Memory(), text)
  }

  private func matches(_ expression: RegularExpression, _ memory: RegularExpression.Memory, _ text: [UInt8]) throws -> [[Int]] {
    var result: [[Int]] = []
    try text.withUnsafeBufferPointer {
      guard let base = $0.baseAddress else { return }
      try expression.forEachMatch(in: base, $0.count, memory) { result.append([$0, $1]) }
    }
    return result
  }

  private func scanned(_ scanner: PatternScanner, _ text: [UInt8]) -> [[Int]] {
    var pieces = RawBuffer<Piece>()
    text.withUnsafeBufferPointer { if let base = $0.baseAddress { scanner.scan(base, 0, $0.count, into: &pieces) } }
    return pieces.buffer.map { [Int($0.start), Int($0.end)] }
  }

  @Test func `the scanners written by hand find what the patterns find`() throws {
    var state: UInt64 = 42
    func next(_ bound: Int) -> Int {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return Int(state >> 33) % bound
    }
    let letters: [Unicode.Scalar] = [
      "a", "s", "S", "t", "r", "e", "v", "l", "L", "d", "m", "é", "字", "ſ", "'", "'", "1", "2", "٣", "½", " ", " ", " ", "\n", "\r", "\t",
      "\u{A0}", "\u{2028}", "\u{3000}", ".", "!", "😀", "\u{301}", "_", "\u{0}", "\u{85}", "\u{200D}", "\u{1C89}", "\u{10FFFF}",
    ]
    for pattern in Self.patterns {
      let scanner = try #require(PatternScanner(pattern))
      let expression = try RegularExpression(pattern)
      let memory = RegularExpression.Memory()
      var differing: [String] = []
      for _ in 0..<3000 {
        var text = String.UnicodeScalarView()
        for _ in 0..<(1 + next(14)) { text.append(letters[next(letters.count)]) }
        let bytes = Array(String(text).utf8)
        if try matches(expression, memory, bytes) != scanned(scanner, bytes) { differing.append(String(text)) }
      }
      #expect(differing.isEmpty, "\(pattern): \(differing.prefix(3).map(\.debugDescription))")
    }
  }

  @Test func `Ruby's syntax keeps its meaning`() throws {
    func found(_ pattern: String, _ text: String) throws -> [String] {
      let bytes = Array(text.utf8)
      return try matches(pattern, bytes).map { String(decoding: bytes[$0[0]..<$0[1]], as: UTF8.self) }
    }
    // ^ and $ stand at every line, as always in Ruby.
    #expect(try found("^a", "b\na") == ["a"])
    #expect(try found("b$", "b\na") == ["b"])
    // \h is a hexadecimal digit.
    #expect(try found(#"\h+"#, "xa1 G") == ["a1"])
    // {n,m}+ repeats, it isn't possessive.
    #expect(try found(#"\d{1,2}+x"#, "12345x") == ["12345x"])
    // (?m) lets the dot match line breaks.
    #expect(try found("(?m:a.b)", "a\nb") == ["a\nb"])
    #expect(try found("a.b", "a\nb").isEmpty)
    #expect(try found(#"\s+"#, "a\u{85}\u{2003}b\u{180E}") == ["\u{85}\u{2003}"])
    #expect(try found(#"[^\S\n]+"#, " \t\n\u{A0}") == [" \t", "\u{A0}"])
    #expect(try found(#"[[:alpha:]]+"#, "aé1") == ["aé"])
    #expect(try found(#"[a[bc]]+"#, "abcd") == ["abc"])
    #expect(try found(#"\u0061+"#, "aab") == ["aa"])
    #expect(try found(#"(?<=a)b"#, "ab b") == ["b"])
  }

  @Test func `patterns that can't be say why`() {
    for (pattern, part) in [
      ("(", "can't be compiled"), ("[a", "no end"), ("[a-z&&[^b]]", "intersections"), (#"\p{Nonsense}"#, "can't be compiled"),
      ("a\\", "backslash"),
      ("(?<n>a)(?&m)", "can't be compiled"), (#"\p{L"#, "brace"),
    ] {
      #expect { try RegularExpression(pattern) } throws: { "\($0)".contains(part) }
    }
  }

  @Test func `a pattern that backtracks without end gives up`() throws {
    let text = [UInt8](repeating: UInt8(ascii: "a"), count: 60) + [UInt8(ascii: "!")]
    #expect { try matches("(a+)+$", text) } throws: { $0 is TokenizationError }
  }
}
