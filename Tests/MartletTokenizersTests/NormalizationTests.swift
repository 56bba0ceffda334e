import Foundation
import Testing

@testable import MartletTokenizers

@Suite struct NormalizationTests {
  private func normalized(_ text: String, _ form: NormalizationForm) -> String {
    var out = TextBuffer()
    out.begin(isAligned: false)
    var scratch = NormalizationScratch()
    let bytes = Array(text.utf8)
    return bytes.withUnsafeBufferPointer {
      guard let base = $0.baseAddress else { return "" }
      let view = TextView(bytes: base, count: $0.count, starts: nil, ends: nil, firstCount: 0)
      return form.apply(view, into: &out, &scratch) ? String(decoding: out.bytes.buffer, as: UTF8.self) : text
    }
  }

  private func same(_ a: String, _ b: String) -> Bool { a.utf8.elementsEqual(b.utf8) }

  @Test func `all four forms agree with Foundation on characters of many scripts`() {
    var differing: [String] = []
    for value in UInt32(0x80)..<0x2FFFF where !(0x3400..<0xA000).contains(value) {
      // The library's tables are those of Unicode 9; nothing assigned later is normalized.
      guard let scalar = Unicode.Scalar(value), let age = scalar.properties.age, age.major <= 9 else { continue }
      let text = String(Character(scalar))
      if !same(normalized(text, .nfc), text.precomposedStringWithCanonicalMapping)
        || !same(normalized(text, .nfd), text.decomposedStringWithCanonicalMapping)
        || !same(normalized(text, .nfkc), text.precomposedStringWithCompatibilityMapping)
        || !same(normalized(text, .nfkd), text.decomposedStringWithCompatibilityMapping)
      {
        differing.append(String(value, radix: 16))
      }
      // Foundation doesn't put the marks of compatibility decompositions in order, so among others only the laws are tested.
      let among = "a\u{327}\(scalar)\u{301}\u{334}"
      if !same(normalized(normalized(among, .nfc), .nfd), normalized(among, .nfd))
        || !same(normalized(normalized(among, .nfd), .nfc), normalized(among, .nfc))
        || !same(normalized(normalized(among, .nfkc), .nfkd), normalized(among, .nfkd))
        || !same(normalized(normalized(among, .nfd), .nfkc), normalized(among, .nfkc))
      {
        differing.append("among others " + String(value, radix: 16))
      }
      if differing.count > 20 { break }
    }
    #expect(differing.isEmpty, "\(differing)")
  }

  @Test func `marks are put in order and joined as the standard says`() {
    // From Python's unicodedata.
    let text = "a\u{327}\u{385}\u{301}\u{334}"
    #expect(same(normalized(text, .nfc), "a\u{327}\u{385}\u{334}\u{301}"))
    #expect(same(normalized(text, .nfd), "a\u{327}\u{A8}\u{334}\u{301}\u{301}"))
    #expect(same(normalized(text, .nfkd), "a\u{327} \u{334}\u{308}\u{301}\u{301}"))
    #expect(same(normalized("a\u{327}\u{F73}\u{301}\u{334}", .nfc), "\u{E1}\u{334}\u{F71}\u{F72}\u{327}"))
    #expect(same(normalized("a\u{327}\u{FC5E}\u{301}\u{334}", .nfkc), "a\u{327} \u{334}\u{64C}\u{651}\u{301}"))
  }

  @Test func `Hangul is composed and decomposed`() {
    #expect(same(normalized("\u{1112}\u{1161}\u{11AB}\u{1100}\u{1173}\u{11AF}", .nfc), "한글"))
    #expect(same(normalized("한글", .nfd), "\u{1112}\u{1161}\u{11AB}\u{1100}\u{1173}\u{11AF}"))
  }

  @Test func `thousands of marks on one letter are sorted quickly`() {
    let text = "e" + String(repeating: "\u{0301}\u{0327}\u{0345}\u{0334}", count: 20000)
    let result = normalized(text, .nfd)
    #expect(result.utf8.count == text.utf8.count)
    #expect(Array(result.unicodeScalars)[1] == "\u{0334}")
  }
}
