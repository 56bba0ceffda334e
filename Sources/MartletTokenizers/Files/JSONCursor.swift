/// Reads JSON from the bytes of a file a value at a time: lists of hundreds of thousands of tokens go straight into their tables.
///
/// Small values are read with `JSONValue`. Errors are ``FileError``s that give the byte.
struct JSONCursor {
  let bytes: UnsafeBufferPointer<UInt8>
  let file: String
  var position = 0
  static let maximumDepth = 64

  /// Throws ``FileError`` when the bytes aren't UTF-8.
  init(_ bytes: UnsafeBufferPointer<UInt8>, file: String) throws {
    self.bytes = bytes
    self.file = file
    guard !bytes.isEmpty else { throw FileError(file, "the file is empty") }
    guard UTF8Text.isValid(bytes.baseAddress!, bytes.count) else { throw FileError(file, "the file isn't valid UTF-8") }
    if bytes.starts(with: [0xEF, 0xBB, 0xBF]) { position = 3 }
  }

  func failure(_ reason: String, at place: Int? = nil) -> FileError { FileError(file, "byte \(place ?? position): \(reason)") }

  /// The next byte that isn't white space, not taken; 0 at the end.
  @inline(__always)
  mutating func peek() -> UInt8 {
    while position < bytes.count {
      switch bytes[position] {
      case 0x20, 0x09, 0x0A, 0x0D: position += 1
      default: return bytes[position]
      }
    }
    return 0
  }

  @inline(__always)
  mutating func take(_ byte: UInt8, _ context: StaticString) throws {
    guard peek() == byte else {
      let what = position < bytes.count ? "" : ", and the file ends here"
      throw failure("\"\(Character(Unicode.Scalar(byte)))\" was expected \(context)\(what)")
    }
    position += 1
  }

  /// Calls `body` with every key of an object, standing at its value, which `body` must read.
  mutating func forEachMember(_ body: (inout JSONCursor, String) throws -> Void) throws {
    try take(UInt8(ascii: "{"), "where an object begins")
    if peek() == UInt8(ascii: "}") {
      position += 1
      return
    }
    var key = RawBuffer<UInt8>()
    while true {
      try string(into: &key)
      try take(UInt8(ascii: ":"), "after a key")
      try body(&self, String(decoding: key.buffer, as: UTF8.self))
      if try !continues(UInt8(ascii: "}")) { return }
    }
  }

  /// Calls `body` with every element of an array, standing at it; `body` must read it.
  mutating func forEachElement(_ body: (inout JSONCursor) throws -> Void) throws {
    try take(UInt8(ascii: "["), "where a list begins")
    if peek() == UInt8(ascii: "]") {
      position += 1
      return
    }
    while true {
      try body(&self)
      if try !continues(UInt8(ascii: "]")) { return }
    }
  }

  /// Takes a comma (true) or the end of the list or object (false).
  @inline(__always)
  mutating func continues(_ end: UInt8) throws -> Bool {
    let byte = peek()
    if byte == UInt8(ascii: ",") {
      position += 1
      return true
    }
    if byte == end {
      position += 1
      return false
    }
    throw failure(
      position < bytes.count ? "\",\" or \"\(Character(Unicode.Scalar(end)))\" was expected" : "the file ends inside a list or object")
  }

  /// Reads a string into the buffer (emptied first).
  mutating func string(into out: inout RawBuffer<UInt8>) throws {
    guard peek() == UInt8(ascii: "\"") else {
      throw failure(position < bytes.count ? "a string was expected" : "the file ends where a string was expected")
    }
    out.count = 0
    let start = position
    position += 1
    while true {
      let from = position
      while position < bytes.count, bytes[position] != UInt8(ascii: "\""), bytes[position] != UInt8(ascii: "\\"), bytes[position] >= 0x20 {
        position += 1
      }
      guard position < bytes.count else { throw failure("a string has no end", at: start) }
      if position > from { out.append(bytes.baseAddress! + from, count: position - from) }
      switch bytes[position] {
      case UInt8(ascii: "\""):
        position += 1
        return
      case UInt8(ascii: "\\"):
        position += 1
        try escape(into: &out)
      default: throw failure("a control character in a string")
      }
    }
  }

  private mutating func escape(into out: inout RawBuffer<UInt8>) throws {
    guard position < bytes.count else { throw failure("a string has no end") }
    let byte = bytes[position]
    position += 1
    switch byte {
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): out.append(byte)
    case UInt8(ascii: "b"): out.append(0x08)
    case UInt8(ascii: "f"): out.append(0x0C)
    case UInt8(ascii: "n"): out.append(0x0A)
    case UInt8(ascii: "r"): out.append(0x0D)
    case UInt8(ascii: "t"): out.append(0x09)
    case UInt8(ascii: "u"):
      var code = try hexadecimal()
      if code >= 0xD800 && code < 0xDC00 {
        guard position + 1 < bytes.count, bytes[position] == UInt8(ascii: "\\"), bytes[position + 1] == UInt8(ascii: "u") else {
          throw failure("half of a surrogate pair")
        }
        position += 2
        let low = try hexadecimal()
        guard low >= 0xDC00 && low < 0xE000 else { throw failure("half of a surrogate pair") }
        code = 0x10000 + (code - 0xD800) << 10 + (low - 0xDC00)
      } else if code >= 0xDC00 && code < 0xE000 {
        throw failure("half of a surrogate pair")
      }
      UTF8Text.append(code, to: &out)
    default: throw failure("an unknown escape", at: position - 1)
    }
  }

  private mutating func hexadecimal() throws -> UInt32 {
    var code: UInt32 = 0
    for _ in 0..<4 {
      guard position < bytes.count else { throw failure("the file ends inside \\u") }
      let byte = bytes[position]
      switch byte {
      case UInt8(ascii: "0")...UInt8(ascii: "9"): code = code << 4 | UInt32(byte - UInt8(ascii: "0"))
      case UInt8(ascii: "a")...UInt8(ascii: "f"): code = code << 4 | UInt32(byte - UInt8(ascii: "a") + 10)
      case UInt8(ascii: "A")...UInt8(ascii: "F"): code = code << 4 | UInt32(byte - UInt8(ascii: "A") + 10)
      default: throw failure("four hexadecimal digits were expected after \\u")
      }
      position += 1
    }
    return code
  }

  /// A whole number, plainly written.
  mutating func integer(_ context: StaticString) throws -> Int {
    _ = peek()
    let start = position
    var value = 0
    var isNegative = false
    if position < bytes.count && bytes[position] == UInt8(ascii: "-") {
      isNegative = true
      position += 1
    }
    let digits = position
    while position < bytes.count, bytes[position] &- UInt8(ascii: "0") < 10 {
      // Larger ones are wrong everywhere and only need to stay wrong.
      value = min(value * 10 + Int(bytes[position] - UInt8(ascii: "0")), 1 << 56)
      position += 1
    }
    guard position > digits, position >= bytes.count || !".eE".utf8.contains(bytes[position]) else {
      throw failure("\(context) must be a whole number", at: start)
    }
    return isNegative ? -value : value
  }

  /// A number, as the library's reader (`serde_json`) understands it: the digits as a whole number, then multiplied or divided by a power
  /// of ten. That is one rounding more than the nearest number, and decides between ways to cut a text that are equally good.
  mutating func number(_ context: StaticString) throws -> Double {
    _ = peek()
    let start = position
    func digit(_ cursor: JSONCursor) -> UInt64? {
      guard cursor.position < cursor.bytes.count, cursor.bytes[cursor.position] &- UInt8(ascii: "0") < 10 else { return nil }
      return UInt64(cursor.bytes[cursor.position] - UInt8(ascii: "0"))
    }
    func error(_ cursor: JSONCursor) -> FileError { cursor.failure("\(context) must be a number", at: start) }
    var isNegative = false
    if position < bytes.count && bytes[position] == UInt8(ascii: "-") {
      isNegative = true
      position += 1
    }
    var significand: UInt64 = 0
    var exponent = 0
    var isFull = false
    func take(_ digit: UInt64) -> Bool {
      let (product, a) = significand.multipliedReportingOverflow(by: 10)
      let (sum, b) = product.addingReportingOverflow(digit)
      if a || b || isFull { return false }
      significand = sum
      return true
    }
    guard digit(self) != nil else { throw error(self) }
    while let next = digit(self) {
      if !take(next) {
        isFull = true
        exponent += 1
      }
      position += 1
    }
    if position < bytes.count && bytes[position] == UInt8(ascii: ".") {
      position += 1
      guard digit(self) != nil else { throw error(self) }
      while let next = digit(self) {
        if take(next) { exponent -= 1 } else { isFull = true }
        position += 1
      }
    }
    if position < bytes.count && bytes[position] | 0x20 == UInt8(ascii: "e") {
      position += 1
      var isBelow = false
      if position < bytes.count && (bytes[position] == UInt8(ascii: "-") || bytes[position] == UInt8(ascii: "+")) {
        isBelow = bytes[position] == UInt8(ascii: "-")
        position += 1
      }
      guard digit(self) != nil else { throw error(self) }
      var written = 0
      while let next = digit(self) {
        written = min(written * 10 + Int(next), 100_000)
        position += 1
      }
      exponent += isBelow ? -written : written
    }
    var value = Double(significand)
    while exponent != 0 && value != 0 {
      if exponent > 0 {
        if exponent > 308 { throw failure("\(context) is out of range", at: start) }
        value *= Self.powersOfTen[exponent]
        exponent = 0
      } else {
        let step = min(-exponent, 308)
        value /= Self.powersOfTen[step]
        exponent += step
      }
    }
    guard value.isFinite else { throw failure("\(context) is out of range", at: start) }
    return isNegative ? -value : value
  }

  private static let powersOfTen: [Double] = (0...308).map { Double("1e\($0)")! }

  /// Passes over a value. Of its parts only strings and brackets are looked at.
  mutating func skipValue() throws {
    var depth = 0
    repeat {
      switch peek() {
      case 0 where position >= bytes.count: throw failure("the file ends inside a value")
      case UInt8(ascii: "{"), UInt8(ascii: "["):
        depth += 1
        if depth > Self.maximumDepth { throw failure("nested more than \(Self.maximumDepth) levels deep") }
        position += 1
      case UInt8(ascii: "}"), UInt8(ascii: "]"):
        if depth == 0 { throw failure("a value was expected") }
        depth -= 1
        position += 1
      case UInt8(ascii: "\""):
        let start = position
        position += 1
        while position < bytes.count, bytes[position] != UInt8(ascii: "\"") {
          position += bytes[position] == UInt8(ascii: "\\") ? 2 : 1
        }
        guard position < bytes.count else {
          position = bytes.count
          throw failure("a string has no end", at: start)
        }
        position += 1
      case UInt8(ascii: ","), UInt8(ascii: ":"):
        if depth == 0 { throw failure("a value was expected") }
        position += 1
      default:
        let start = position
        while position < bytes.count, !"{}[]\",: \t\r\n".utf8.contains(bytes[position]) { position += 1 }
        if position == start { throw failure("a value was expected") }
      }
    } while depth > 0
  }

  /// Reads a value of any kind.
  mutating func value() throws -> JSONValue {
    _ = peek()
    let start = position
    try skipValue()
    do {
      return try JSONValue.parse(UnsafeBufferPointer(rebasing: bytes[start..<position]), maximumDepth: Self.maximumDepth)
    } catch let error as JSONError { throw failure(error.reason, at: start + error.offset) }
  }

  /// Whether only white space is left.
  mutating func isAtEnd() -> Bool { peek() == 0 && position >= bytes.count }
}
