import Foundation

/// Python's rules for text where they differ from Swift's: what counts as space, how values print, how letters change case.
enum PythonText {
  static func isSpace(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.value {
    case 9...13, 28...32, 0x85, 0xA0, 0x1680, 0x2000...0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000: true
    default: false
    }
  }

  /// `str.strip`, `lstrip`, `rstrip`: removes scalars of the set, or space when there is none.
  static func strip(_ text: String, _ set: String?, left: Bool = true, right: Bool = true) -> String {
    let scalars = text.unicodeScalars
    let unwanted = set.map { Set($0.unicodeScalars) }
    func goes(_ scalar: Unicode.Scalar) -> Bool { unwanted?.contains(scalar) ?? isSpace(scalar) }
    var start = scalars.startIndex
    var end = scalars.endIndex
    if left { while start < end, goes(scalars[start]) { start = scalars.index(after: start) } }
    if right {
      while start < end {
        let before = scalars.index(before: end)
        guard goes(scalars[before]) else { break }
        end = before
      }
    }
    return String(scalars[start..<end])
  }

  /// `str.split()`: on runs of space; at most `limit` splits when `limit` ≥ 0.
  static func splitOnSpace(_ text: String, limit: Int) -> [String] {
    let scalars = text.unicodeScalars
    var parts: [String] = []
    var position = scalars.startIndex
    while true {
      while position < scalars.endIndex, isSpace(scalars[position]) { position = scalars.index(after: position) }
      if position == scalars.endIndex { return parts }
      if limit >= 0 && parts.count == limit {
        parts.append(String(scalars[position...]))
        return parts
      }
      let start = position
      while position < scalars.endIndex, !isSpace(scalars[position]) { position = scalars.index(after: position) }
      parts.append(String(scalars[start..<position]))
    }
  }

  /// `str.rsplit()` on runs of space.
  static func splitOnSpaceFromRight(_ text: String, limit: Int) -> [String] {
    if limit < 0 { return splitOnSpace(text, limit: -1) }
    let reversed = String(String.UnicodeScalarView(text.unicodeScalars.reversed()))
    return splitOnSpace(reversed, limit: limit).reversed().map { String(String.UnicodeScalarView($0.unicodeScalars.reversed())) }
  }

  /// Where `needle` occurs in `hay` without overlap, from the left (Knuth, Morris and Pratt: linear for every pair). An empty needle
  /// occurs nowhere.
  private static func occurrences(of needle: [UInt8], in hay: [UInt8], limit: Int) -> [Int] {
    guard !needle.isEmpty, needle.count <= hay.count, limit != 0 else { return [] }
    // borders[i]: the length of the longest proper prefix of needle[...i] that also ends there.
    var borders = [Int](repeating: 0, count: needle.count)
    var matched = 0
    for index in 1..<max(1, needle.count) {
      while matched > 0, needle[index] != needle[matched] { matched = borders[matched - 1] }
      if needle[index] == needle[matched] { matched += 1 }
      borders[index] = matched
    }
    var found: [Int] = []
    matched = 0
    for index in hay.indices {
      while matched > 0, hay[index] != needle[matched] { matched = borders[matched - 1] }
      if hay[index] == needle[matched] { matched += 1 }
      if matched == needle.count {
        found.append(index + 1 - needle.count)
        if found.count == limit { break }
        matched = 0
      }
    }
    return found
  }

  /// The byte offsets where `part` occurs without overlap, from the left. In UTF-8, bytes are as good as scalars.
  static func offsets(of part: String, in text: String, limit: Int = -1) -> [Int] {
    occurrences(of: Array(part.utf8), in: Array(text.utf8), limit: limit)
  }

  /// The byte offset of the first occurrence; an empty part occurs at 0.
  static func firstOffset(of part: String, in text: String) -> Int? {
    part.utf8.isEmpty ? 0 : offsets(of: part, in: text, limit: 1).first
  }

  /// The byte offset of the last occurrence; an empty part occurs at the end.
  static func lastOffset(of part: String, in text: String) -> Int? {
    if part.utf8.isEmpty { return text.utf8.count }
    return offsetsFromRight(of: part, in: text, limit: 1).first
  }

  /// The byte offsets where `part` occurs without overlap, found from the right, the last first.
  static func offsetsFromRight(of part: String, in text: String, limit: Int = -1) -> [Int] {
    let found = occurrences(of: part.utf8.reversed(), in: text.utf8.reversed(), limit: limit)
    return found.map { text.utf8.count - $0 - part.utf8.count }
  }

  static func slice(_ text: String, bytes range: Range<Int>) -> String {
    String(
      text.utf8[text.utf8.index(text.startIndex, offsetBy: range.lowerBound)..<text.utf8.index(text.startIndex, offsetBy: range.upperBound)]
    )!
  }

  /// `str.split(separator)`; at most `limit` splits when `limit` ≥ 0.
  static func split(_ text: String, on separator: String, limit: Int) -> [String] {
    let bytes = Array(text.utf8)
    var parts: [String] = []
    var start = 0
    for offset in offsets(of: separator, in: text, limit: limit) {
      parts.append(String(decoding: bytes[start..<offset], as: UTF8.self))
      start = offset + separator.utf8.count
    }
    parts.append(String(decoding: bytes[start...], as: UTF8.self))
    return parts
  }

  static func splitFromRight(_ text: String, on separator: String, limit: Int) -> [String] {
    if limit < 0 { return split(text, on: separator, limit: -1) }
    // Occurrences are found from the right: "aaa" splits on "aa" after the first "a".
    let bytes = Array(text.utf8)
    var parts: [String] = []
    var end = bytes.count
    for offset in offsetsFromRight(of: separator, in: text, limit: limit) {
      parts.append(String(decoding: bytes[(offset + separator.utf8.count)..<end], as: UTF8.self))
      end = offset
    }
    parts.append(String(decoding: bytes[..<end], as: UTF8.self))
    return parts.reversed()
  }

  static func splitLines(_ text: String, keepingEnds: Bool = false) -> [String] {
    var lines: [String] = []
    var line = String.UnicodeScalarView()
    var scalars = text.unicodeScalars.makeIterator()
    var pending = scalars.next()
    while let scalar = pending {
      pending = scalars.next()
      switch scalar.value {
      case 10...13, 28...30, 0x85, 0x2028, 0x2029:
        if keepingEnds { line.append(scalar) }
        if scalar == "\r", pending == "\n" {
          if keepingEnds { line.append("\n") }
          pending = scalars.next()
        }
        lines.append(String(line))
        line = String.UnicodeScalarView()
      default: line.append(scalar)
      }
    }
    if !line.isEmpty { lines.append(String(line)) }
    return lines
  }

  // MARK: Case

  static func uppercased(_ text: String) -> String { text.unicodeScalars.reduce(into: "") { $0 += $1.properties.uppercaseMapping } }

  static func lowercased(_ text: String) -> String {
    let scalars = Array(text.unicodeScalars)
    var result = ""
    for index in scalars.indices { lower(scalars, index, into: &result) }
    return result
  }

  /// A sigma at the end of a word has a form of its own.
  private static func lower(_ scalars: [Unicode.Scalar], _ index: Int, into result: inout String) {
    guard scalars[index] == "Σ" else {
      result += scalars[index].properties.lowercaseMapping
      return
    }
    let before = scalars[..<index].last { !$0.properties.isCaseIgnorable }
    let after = scalars[(index + 1)...].first { !$0.properties.isCaseIgnorable }
    let isFinal = (before?.properties.isCased ?? false) && !(after?.properties.isCased ?? false)
    result.unicodeScalars.append(isFinal ? "ς" : "σ")
  }

  /// `str.capitalize`.
  static func capitalized(_ text: String) -> String {
    let scalars = Array(text.unicodeScalars)
    var result = ""
    for index in scalars.indices {
      if index == 0 { result += scalars[0].properties.titlecaseMapping } else { lower(scalars, index, into: &result) }
    }
    return result
  }

  /// `str.title`.
  static func titled(_ text: String) -> String {
    let scalars = Array(text.unicodeScalars)
    var result = ""
    var isInWord = false
    for index in scalars.indices {
      if isInWord { lower(scalars, index, into: &result) } else { result += scalars[index].properties.titlecaseMapping }
      isInWord = scalars[index].properties.isCased
    }
    return result
  }

  static func swappedCase(_ text: String) -> String {
    let scalars = Array(text.unicodeScalars)
    var result = ""
    for index in scalars.indices {
      if scalars[index].properties.isUppercase {
        lower(scalars, index, into: &result)
      } else if scalars[index].properties.isLowercase {
        result += scalars[index].properties.uppercaseMapping
      } else {
        result.unicodeScalars.append(scalars[index])
      }
    }
    return result
  }

  // MARK: Printing

  /// `repr` of a float, which is also its `str`.
  static func float(_ value: Double) -> String {
    if value.isNaN { return "nan" }
    if value.isInfinite { return value < 0 ? "-inf" : "inf" }
    if value == 0 { return value.sign == .minus ? "-0.0" : "0.0" }
    // Swift and Python print the same shortest digits and differ in where the exponent begins.
    let parts = "\(abs(value))".split(separator: "e")
    let mantissa = parts[0].split(separator: ".", omittingEmptySubsequences: false)
    var digits = mantissa.joined()
    let exponent = parts.count > 1 ? Int(parts[1])! : 0
    let leading = digits.prefix { $0 == "0" }.count
    digits = String(digits.dropFirst(leading))
    while digits.count > 1, digits.last == "0" { digits.removeLast() }
    // The value is 0.DIGITS × 10^scale.
    let scale = mantissa[0].count - leading + exponent
    let sign = value < 0 ? "-" : ""
    if scale > 16 || scale < -3 {
      let power = scale - 1
      let rest = digits.dropFirst()
      let tail = (power < 0 ? "-" : "+") + (abs(power) < 10 ? "0" : "") + String(abs(power))
      return sign + String(digits.first!) + (rest.isEmpty ? "" : "." + rest) + "e" + tail
    }
    if scale <= 0 { return sign + "0." + String(repeating: "0", count: -scale) + digits }
    if digits.count <= scale { return sign + digits + String(repeating: "0", count: scale - digits.count) + ".0" }
    return sign + digits.prefix(scale) + "." + digits.dropFirst(scale)
  }

  /// `repr` of a string.
  static func quoted(_ text: String) -> String {
    let quote: Unicode.Scalar = text.unicodeScalars.contains("'") && !text.unicodeScalars.contains("\"") ? "\"" : "'"
    var result = String(quote)
    for scalar in text.unicodeScalars {
      switch scalar {
      case quote, "\\":
        result += "\\"
        result.unicodeScalars.append(scalar)
      case "\n": result += "\\n"
      case "\r": result += "\\r"
      case "\t": result += "\\t"
      default:
        if isPrintable(scalar) {
          result.unicodeScalars.append(scalar)
        } else if scalar.value < 0x100 {
          result += "\\x" + hexadecimal(scalar.value, 2)
        } else if scalar.value < 0x10000 {
          result += "\\u" + hexadecimal(scalar.value, 4)
        } else {
          result += "\\U" + hexadecimal(scalar.value, 8)
        }
      }
    }
    result.unicodeScalars.append(quote)
    return result
  }

  static func isPrintable(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.properties.generalCategory {
    case .control, .format, .surrogate, .privateUse, .unassigned, .lineSeparator, .paragraphSeparator: false
    case .spaceSeparator: scalar == " "
    default: true
    }
  }

  static func hexadecimal(_ value: UInt32, _ width: Int) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: max(0, width - digits.count)) + digits
  }

  /// What `json.dumps` writes for a string.
  static func json(_ text: String, asciiOnly: Bool, into result: inout String) {
    result += "\""
    // Most strings have nothing to escape.
    if !text.utf8.contains(where: { $0 < 0x20 || $0 == 0x22 || $0 == 0x5C || asciiOnly && $0 > 0x7E }) {
      result += text
      result += "\""
      return
    }
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": result += "\\\""
      case "\\": result += "\\\\"
      case "\n": result += "\\n"
      case "\r": result += "\\r"
      case "\t": result += "\\t"
      case "\u{8}": result += "\\b"
      case "\u{C}": result += "\\f"
      case _ where scalar.value < 0x20 || asciiOnly && scalar.value > 0x7E:
        for unit in String(scalar).utf16 { result += "\\u" + hexadecimal(UInt32(unit), 4) }
      default: result.unicodeScalars.append(scalar)
      }
    }
    result += "\""
  }
}

extension PythonText {
  /// `%f`, `%e` and `%g` of C, which Python shares.
  static func formatted(_ value: Double, _ letter: Unicode.Scalar, _ precision: Int) -> String {
    String(format: "%.\(precision)\(letter)", value)
  }

  /// `round(value, digits)`: the decimal nearest to the exact value, ties to even.
  static func rounded(_ value: Double, digits: Int) -> Double {
    if !value.isFinite || digits > 300 { return value }
    if digits >= 0 { return Double(String(format: "%.\(digits)f", value)) ?? value }
    if digits < -308 { return 0 }
    let power = pow(10, Double(-digits))
    return (value / power).rounded(.toNearestOrEven) * power
  }
}
