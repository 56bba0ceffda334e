import Foundation

/// A JSON value whose objects keep the order of their keys.
///
/// ``parse(_:maximumDepth:)`` is strict (RFC 8259): it refuses duplicate keys, trailing text, invalid UTF-8, unpaired surrogates
/// and nesting deeper than `maximumDepth`, in time linear in the input. `JSONDecoder` accepts some of these and loses the order.
public enum JSONValue: Sendable, Hashable {
  case null
  case bool(Bool)
  /// A number written without fraction and exponent that fits 64 bits.
  case integer(Int)
  case number(Double)
  case string(String)
  case array([JSONValue])
  case object(JSONObject)

  public var boolValue: Bool? { if case .bool(let value) = self { value } else { nil } }
  public var intValue: Int? {
    switch self {
    case .integer(let value): value
    case .number(let value): Int(exactly: value)
    default: nil
    }
  }
  public var doubleValue: Double? {
    switch self {
    case .integer(let value): Double(value)
    case .number(let value): value
    default: nil
    }
  }
  public var stringValue: String? { if case .string(let value) = self { value } else { nil } }
  public var arrayValue: [JSONValue]? { if case .array(let value) = self { value } else { nil } }
  public var objectValue: JSONObject? { if case .object(let value) = self { value } else { nil } }

  /// The member of an object; nil for a missing key and for anything that isn't an object.
  public subscript(key: String) -> JSONValue? { objectValue?[key] }

  /// "an object", "the number 3.5" …, for messages.
  public var kindDescription: String {
    switch self {
    case .null: "null"
    case .bool(let value): "\(value)"
    case .integer(let value): "the integer \(value)"
    case .number(let value): "the number \(value)"
    case .string: "a string"
    case .array: "an array"
    case .object: "an object"
    }
  }
}

/// The members of a JSON object in the order written. Keys are unique.
public struct JSONObject: Sendable, Hashable, ExpressibleByDictionaryLiteral {
  public private(set) var keys: [String] = []
  private var members: [String: JSONValue] = [:]

  public init() {}

  /// The last of equal keys wins, in the place of the first.
  public init(dictionaryLiteral elements: (String, JSONValue)...) {
    for (key, value) in elements { self[key] = value }
  }

  public var count: Int { keys.count }
  public var isEmpty: Bool { keys.isEmpty }

  /// The members in order.
  public var pairs: [(key: String, value: JSONValue)] { keys.map { ($0, members[$0]!) } }

  /// Sets in place, appends a new key at the end, removes with nil.
  public subscript(key: String) -> JSONValue? {
    get { members[key] }
    set {
      if let newValue {
        if members.updateValue(newValue, forKey: key) == nil { keys.append(key) }
      } else if members.removeValue(forKey: key) != nil {
        keys.removeAll { $0 == key }
      }
    }
  }
}

extension JSONValue: ExpressibleByStringLiteral, ExpressibleByIntegerLiteral, ExpressibleByFloatLiteral, ExpressibleByBooleanLiteral,
  ExpressibleByArrayLiteral, ExpressibleByDictionaryLiteral, ExpressibleByNilLiteral
{
  public init(stringLiteral value: String) { self = .string(value) }
  public init(integerLiteral value: Int) { self = .integer(value) }
  public init(floatLiteral value: Double) { self = .number(value) }
  public init(booleanLiteral value: Bool) { self = .bool(value) }
  public init(nilLiteral: ()) { self = .null }
  public init(arrayLiteral elements: JSONValue...) { self = .array(elements) }
  public init(dictionaryLiteral elements: (String, JSONValue)...) {
    var object = JSONObject()
    for (key, value) in elements { object[key] = value }
    self = .object(object)
  }
}

// MARK: - Codable

extension JSONValue: Codable {
  private struct MemberKey: CodingKey {
    let stringValue: String
    var intValue: Int? { nil }
    init(stringValue: String) { self.stringValue = stringValue }
    init?(intValue: Int) { nil }
  }

  /// Through a `Decoder` keys arrive in the decoder's order (`JSONDecoder` has none); they are sorted. ``parse(_:maximumDepth:)`` keeps
  /// the order of the text.
  public init(from decoder: any Decoder) throws {
    if let keyed = try? decoder.container(keyedBy: MemberKey.self) {
      var object = JSONObject()
      for key in keyed.allKeys.sorted(by: { $0.stringValue < $1.stringValue }) {
        object[key.stringValue] = try keyed.decode(JSONValue.self, forKey: key)
      }
      self = .object(object)
      return
    }
    if var list = try? decoder.unkeyedContainer() {
      var elements: [JSONValue] = []
      while !list.isAtEnd { elements.append(try list.decode(JSONValue.self)) }
      self = .array(elements)
      return
    }
    let single = try decoder.singleValueContainer()
    if single.decodeNil() {
      self = .null
    } else if let value = try? single.decode(Bool.self) {
      self = .bool(value)
    } else if let value = try? single.decode(Int.self) {
      self = .integer(value)
    } else if let value = try? single.decode(Double.self) {
      self = .number(value)
    } else {
      self = .string(try single.decode(String.self))
    }
  }

  public func encode(to encoder: any Encoder) throws {
    switch self {
    case .object(let object):
      var keyed = encoder.container(keyedBy: MemberKey.self)
      for (key, value) in object.pairs { try keyed.encode(value, forKey: MemberKey(stringValue: key)) }
    case .array(let elements):
      var list = encoder.unkeyedContainer()
      for element in elements { try list.encode(element) }
    case .null:
      var single = encoder.singleValueContainer()
      try single.encodeNil()
    case .bool(let value):
      var single = encoder.singleValueContainer()
      try single.encode(value)
    case .integer(let value):
      var single = encoder.singleValueContainer()
      try single.encode(value)
    case .number(let value):
      var single = encoder.singleValueContainer()
      try single.encode(value)
    case .string(let value):
      var single = encoder.singleValueContainer()
      try single.encode(value)
    }
  }
}

// MARK: - Text

extension JSONValue {
  /// The text of the value; `indentation` > 0 puts every member on its own line. A number that JSON can't hold (NaN, infinity)
  /// is written as null.
  public func serialized(indentation: Int = 0) -> String {
    var text = ""
    write(to: &text, indentation: indentation, level: 0)
    return text
  }

  private func write(to text: inout String, indentation: Int, level: Int) {
    switch self {
    case .null: text += "null"
    case .bool(let value): text += value ? "true" : "false"
    case .integer(let value): text += String(value)
    case .number(let value): text += value.isFinite ? "\(value)" : "null"
    case .string(let value): Self.quote(value, to: &text)
    case .array(let elements):
      text += "["
      for (index, element) in elements.enumerated() {
        if index > 0 { text += "," }
        Self.breakLine(&text, indentation, level + 1)
        element.write(to: &text, indentation: indentation, level: level + 1)
      }
      if !elements.isEmpty { Self.breakLine(&text, indentation, level) }
      text += "]"
    case .object(let object):
      text += "{"
      for (index, (key, value)) in object.pairs.enumerated() {
        if index > 0 { text += "," }
        Self.breakLine(&text, indentation, level + 1)
        Self.quote(key, to: &text)
        text += indentation > 0 ? ": " : ":"
        value.write(to: &text, indentation: indentation, level: level + 1)
      }
      if !object.isEmpty { Self.breakLine(&text, indentation, level) }
      text += "}"
    }
  }

  private static func breakLine(_ text: inout String, _ indentation: Int, _ level: Int) {
    guard indentation > 0 else { return }
    text += "\n" + String(repeating: " ", count: indentation * level)
  }

  private static func quote(_ string: String, to text: inout String) {
    text += "\""
    for scalar in string.unicodeScalars {
      switch scalar {
      case "\"": text += "\\\""
      case "\\": text += "\\\\"
      case "\n": text += "\\n"
      case "\r": text += "\\r"
      case "\t": text += "\\t"
      case _ where scalar.value < 0x20:
        let digits = String(scalar.value, radix: 16)
        text += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      default: text.unicodeScalars.append(scalar)
      }
    }
    text += "\""
  }

  /// Reads one JSON value that is the whole text. Throws ``JSONError`` with the byte where it stopped.
  public static func parse(_ text: String, maximumDepth: Int = 64) throws -> JSONValue {
    var text = text
    return try text.withUTF8 { try parse($0, maximumDepth: maximumDepth) }
  }

  /// Reads one JSON value that is the whole buffer. Throws ``JSONError`` with the byte where it stopped.
  public static func parse(_ bytes: UnsafeBufferPointer<UInt8>, maximumDepth: Int = 64) throws -> JSONValue {
    var scanner = JSONScanner(bytes: bytes, maximumDepth: maximumDepth)
    return try scanner.document()
  }
}

/// Where and why a text isn't JSON.
public struct JSONError: Error, CustomStringConvertible, Sendable {
  /// Offset in bytes.
  public let offset: Int
  public let reason: String
  public var description: String { "byte \(offset): \(reason)" }
}

private struct JSONScanner {
  let bytes: UnsafeBufferPointer<UInt8>
  let maximumDepth: Int
  var position = 0

  init(bytes: UnsafeBufferPointer<UInt8>, maximumDepth: Int) {
    self.bytes = bytes
    self.maximumDepth = maximumDepth
  }

  func failure(_ reason: String, at offset: Int? = nil) -> JSONError { JSONError(offset: offset ?? position, reason: reason) }

  mutating func document() throws -> JSONValue {
    skipSpace()
    let value = try value(depth: 0)
    skipSpace()
    if position < bytes.count { throw failure("text after the end of the value") }
    return value
  }

  /// The next byte, or 0 at the end (0 is legal nowhere in JSON text).
  private var next: UInt8 { position < bytes.count ? bytes[position] : 0 }

  private mutating func skipSpace() {
    while position < bytes.count {
      switch bytes[position] {
      case 0x20, 0x09, 0x0A, 0x0D: position += 1
      default: return
      }
    }
  }

  private mutating func value(depth: Int) throws -> JSONValue {
    if depth > maximumDepth { throw failure("nested more than \(maximumDepth) levels deep") }
    switch next {
    case UInt8(ascii: "{"): return .object(try object(depth: depth))
    case UInt8(ascii: "["): return .array(try array(depth: depth))
    case UInt8(ascii: "\""): return .string(try string())
    case UInt8(ascii: "t"): return try word("true", .bool(true))
    case UInt8(ascii: "f"): return try word("false", .bool(false))
    case UInt8(ascii: "n"): return try word("null", .null)
    case UInt8(ascii: "-"), UInt8(ascii: "0")...UInt8(ascii: "9"): return try number()
    default: throw failure(position < bytes.count ? "a value was expected" : "the text ends where a value was expected")
    }
  }

  private mutating func word(_ word: StaticString, _ value: JSONValue) throws -> JSONValue {
    let length = word.utf8CodeUnitCount
    for i in 0..<length where position + i >= bytes.count || bytes[position + i] != word.utf8Start[i] {
      throw failure("\(word) was expected")
    }
    position += length
    return value
  }

  private mutating func object(depth: Int) throws -> JSONObject {
    position += 1
    var object = JSONObject()
    skipSpace()
    if next == UInt8(ascii: "}") {
      position += 1
      return object
    }
    while true {
      let start = position
      guard next == UInt8(ascii: "\"") else { throw failure("a key in quotes was expected") }
      let key = try string()
      if object[key] != nil { throw failure("the key \"\(key)\" occurs twice", at: start) }
      skipSpace()
      guard next == UInt8(ascii: ":") else { throw failure("\":\" was expected after the key \"\(key)\"") }
      position += 1
      skipSpace()
      object[key] = try value(depth: depth + 1)
      skipSpace()
      switch next {
      case UInt8(ascii: ","):
        position += 1
        skipSpace()
      case UInt8(ascii: "}"):
        position += 1
        return object
      default: throw failure("\",\" or \"}\" was expected")
      }
    }
  }

  private mutating func array(depth: Int) throws -> [JSONValue] {
    position += 1
    var elements: [JSONValue] = []
    skipSpace()
    if next == UInt8(ascii: "]") {
      position += 1
      return elements
    }
    while true {
      elements.append(try value(depth: depth + 1))
      skipSpace()
      switch next {
      case UInt8(ascii: ","):
        position += 1
        skipSpace()
      case UInt8(ascii: "]"):
        position += 1
        return elements
      default: throw failure("\",\" or \"]\" was expected")
      }
    }
  }

  private mutating func digits() throws {
    let start = position
    while next >= UInt8(ascii: "0") && next <= UInt8(ascii: "9") { position += 1 }
    if position == start { throw failure("a digit was expected") }
  }

  private mutating func number() throws -> JSONValue {
    let start = position
    var isInteger = true
    if next == UInt8(ascii: "-") { position += 1 }
    if next == UInt8(ascii: "0") {
      position += 1
      if next >= UInt8(ascii: "0") && next <= UInt8(ascii: "9") { throw failure("a number can't begin with 0", at: start) }
    } else {
      try digits()
    }
    if next == UInt8(ascii: ".") {
      isInteger = false
      position += 1
      try digits()
    }
    if next | 0x20 == UInt8(ascii: "e") {
      isInteger = false
      position += 1
      if next == UInt8(ascii: "+") || next == UInt8(ascii: "-") { position += 1 }
      try digits()
    }
    let text = String(decoding: bytes[start..<position], as: UTF8.self)
    // The zero with a sign is a floating-point number.
    if isInteger, text != "-0", let value = Int(text) { return .integer(value) }
    guard let value = Double(text), value.isFinite else { throw failure("the number \(text.prefix(40)) is out of range", at: start) }
    return .number(value)
  }

  private mutating func string() throws -> String {
    let start = position
    position += 1
    let first = position
    // Most strings have no escape: find the end, then validate once.
    while position < bytes.count, bytes[position] != UInt8(ascii: "\""), bytes[position] != UInt8(ascii: "\\"), bytes[position] >= 0x20 {
      position += 1
    }
    guard position < bytes.count else { throw failure("a string has no end", at: start) }
    if bytes[position] == UInt8(ascii: "\"") {
      position += 1
      return try validated(UnsafeBufferPointer(rebasing: bytes[first..<(position - 1)]), at: first)
    }
    var content = [UInt8](bytes[first..<position])
    while true {
      guard position < bytes.count else { throw failure("a string has no end", at: start) }
      let byte = bytes[position]
      switch byte {
      case UInt8(ascii: "\""):
        position += 1
        return try content.withUnsafeBufferPointer { try validated($0, at: first) }
      case UInt8(ascii: "\\"):
        position += 1
        try escape(into: &content)
      case 0..<0x20: throw failure("a control character in a string")
      default:
        content.append(byte)
        position += 1
      }
    }
  }

  private func validated(_ content: UnsafeBufferPointer<UInt8>, at offset: Int) throws -> String {
    guard let string = String(validating: content, as: UTF8.self) else { throw failure("a string isn't valid UTF-8", at: offset) }
    return string
  }

  private mutating func escape(into content: inout [UInt8]) throws {
    let byte = next
    position += 1
    switch byte {
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): content.append(byte)
    case UInt8(ascii: "b"): content.append(0x08)
    case UInt8(ascii: "f"): content.append(0x0C)
    case UInt8(ascii: "n"): content.append(0x0A)
    case UInt8(ascii: "r"): content.append(0x0D)
    case UInt8(ascii: "t"): content.append(0x09)
    case UInt8(ascii: "u"):
      var code = UInt32(try hexadecimal())
      if code >= 0xD800 && code < 0xDC00 {
        guard next == UInt8(ascii: "\\"), position + 1 < bytes.count, bytes[position + 1] == UInt8(ascii: "u") else {
          throw failure("half of a surrogate pair")
        }
        position += 2
        let low = UInt32(try hexadecimal())
        guard low >= 0xDC00 && low < 0xE000 else { throw failure("half of a surrogate pair") }
        code = 0x10000 + (code - 0xD800) << 10 + (low - 0xDC00)
      }
      guard let scalar = Unicode.Scalar(code) else { throw failure("half of a surrogate pair") }
      content.append(contentsOf: String(Character(scalar)).utf8)
    default: throw failure("an unknown escape", at: position - 1)
    }
  }

  private mutating func hexadecimal() throws -> UInt16 {
    var code: UInt16 = 0
    for _ in 0..<4 {
      let byte = next
      let digit: UInt16
      switch byte {
      case UInt8(ascii: "0")...UInt8(ascii: "9"): digit = UInt16(byte - UInt8(ascii: "0"))
      case UInt8(ascii: "a")...UInt8(ascii: "f"): digit = UInt16(byte - UInt8(ascii: "a")) + 10
      case UInt8(ascii: "A")...UInt8(ascii: "F"): digit = UInt16(byte - UInt8(ascii: "A")) + 10
      default: throw failure("four hexadecimal digits were expected after \\u")
      }
      code = code << 4 | digit
      position += 1
    }
    return code
  }
}
