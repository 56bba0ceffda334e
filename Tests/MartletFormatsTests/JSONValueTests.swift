import Foundation
import MartletFormats
import Testing

@Suite struct JSONValueTests {
  @Test func orderAndValuesSurviveARoundTrip() throws {
    let text = #"{"b":[1,-2.5,1e3,true,null],"a":{"z":"é\n\"\\ 😀","y":{}},"c":[]}"#
    let value = try JSONValue.parse(text)
    #expect(value.objectValue?.keys == ["b", "a", "c"])
    #expect(value["b"] == [1, -2.5, 1000.0, true, nil])
    #expect(try JSONValue.parse(value.serialized()) == value)
    #expect(try JSONValue.parse(value.serialized(indentation: 2)) == value)
    #expect(value.serialized().hasPrefix(#"{"b":[1,-2.5,1000.0,true,null],"a":{"z":"#))
  }

  @Test func escapesAreRead() throws {
    #expect(try JSONValue.parse(#""\u0041\ud83d\ude00\/\b\f\r\t""#) == .string("A😀/\u{8}\u{c}\r\t"))
    #expect(JSONValue.string("\u{1}").serialized() == #""\u0001""#)
  }

  @Test func integersKeepTheirDigits() throws {
    #expect(try JSONValue.parse("9223372036854775807") == .integer(.max))
    #expect(try JSONValue.parse("-9223372036854775808") == .integer(.min))
    #expect(try JSONValue.parse("-0") == .number(-0.0))
    // Too large for 64 bits: a floating-point number, as in other languages.
    #expect(try JSONValue.parse("9223372036854775808") == .number(9_223_372_036_854_775_808))
  }

  @Test(
    arguments: [
      "", " ", "{", "[1,]", "{\"a\":1,}", "{a:1}", "01", "-", "1.", ".5", "1e", "+1", "tru", "nul", "[1 2]", "{\"a\" 1}", "\"a", "\"\\x\"",
      "\"\\ud800\"", "\"\\ud800\\u0041\"", "\"\\udc00\"", "\"\t\"", "1 2", "{\"a\":1,\"a\":2}", "{\"a\":{\"b\":1,\"b\":1}}", "'a'", "1e999",
      "NaN", "[", "\"\\u12g4\"",
    ]) func whatIsNotJSONIsRefused(text: String)
  {
    #expect(throws: JSONError.self) { try JSONValue.parse(text) }
  }

  @Test func invalidUTF8IsRefused() {
    for bytes in [[0x22, 0xFF, 0x22], [0x22, 0xC0, 0x80, 0x22], [0x22, 0xED, 0xA0, 0x80, 0x22]] as [[UInt8]] {
      #expect(throws: JSONError.self) { try bytes.withUnsafeBufferPointer { try JSONValue.parse($0) } }
    }
  }

  @Test func depthIsLimited() throws {
    let deep = String(repeating: "[", count: 100_000)
    #expect(throws: JSONError.self) { try JSONValue.parse(deep) }
    let allowed = String(repeating: "[", count: 64) + String(repeating: "]", count: 64)
    _ = try JSONValue.parse(allowed)
  }

  @Test func codableAgrees() throws {
    let value: JSONValue = ["a": [1, 2.5, "x", true, nil], "b": [:]]
    let data = try JSONEncoder().encode(value)
    #expect(try JSONDecoder().decode(JSONValue.self, from: data) == value)
  }
}
