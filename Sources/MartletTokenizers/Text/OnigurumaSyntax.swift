import CPCRE2

/// Rewrites a pattern from Oniguruma's Ruby syntax to PCRE2's where the two mean different things by the same letters.
enum OnigurumaSyntax {
  private static let space = #"\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"#
  private static let notSpace =
    #"\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027}\x{202a}-\x{202e}"#
    + #"\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff}"#
  // Oniguruma counts the superscript digits and fractions of Latin-1 too.
  private static let word =
    #"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{b2}\x{b3}\x{b9}\x{bc}-\x{be}"# + NewerCharacters.ranges("Alphabetic")
    + NewerCharacters.ranges("M") + NewerCharacters.ranges("Nd") + NewerCharacters.ranges("Pc")

  /// Throws ``VocabularyError`` naming what has no counterpart.
  static func translated(_ pattern: String) throws(VocabularyError) -> String {
    var reader = Reader(Array(pattern.unicodeScalars))
    var out = ""
    var groups: [String.UnicodeScalarView.Index] = []  // where the open groups began
    var atom = out.unicodeScalars.endIndex  // where the last thing that can be repeated began

    while let c = reader.next() {
      switch c {
      case "\\":
        atom = out.unicodeScalars.endIndex
        out += try escape(&reader, inClass: false)
      case "[":
        atom = out.unicodeScalars.endIndex
        out += "[" + (try classContent(&reader, depth: 0)) + "]"
      case "(":
        groups.append(out.unicodeScalars.endIndex)
        out += "("
        if reader.peek() == "?" { out += flags(&reader) }
      case ")":
        atom = groups.popLast() ?? out.unicodeScalars.endIndex
        out += ")"
      case "{":
        // X{n,m}+ repeats X{n,m} in Ruby; PCRE2 would make it possessive.
        let start = reader.position
        while let digit = reader.peek(), digit == "," || ("0"..."9").contains(digit) { reader.position += 1 }
        if reader.peek() == "}", reader.position > start {
          reader.position += 1
          let interval = "{" + String(String.UnicodeScalarView(reader.scalars[start..<reader.position]))
          // {,m} is {0,m} in Ruby, plain text in PCRE2.
          out += interval.hasPrefix("{,") ? "{0" + interval.dropFirst() : interval
          if reader.peek() == "+" {
            let repeated = String(out.unicodeScalars[atom...])
            out.unicodeScalars.removeSubrange(atom...)
            out += "(?:" + repeated + ")"
          }
        } else {
          reader.position = start
          atom = out.unicodeScalars.endIndex
          out += "\\{"
        }
      case "*", "+", "?", "|", "^", "$": out.unicodeScalars.append(c)
      default:
        atom = out.unicodeScalars.endIndex
        out.unicodeScalars.append(c)
      }
    }
    return out
  }

  private struct Reader {
    let scalars: [Unicode.Scalar]
    var position = 0
    init(_ scalars: [Unicode.Scalar]) { self.scalars = scalars }
    func peek(_ ahead: Int = 0) -> Unicode.Scalar? { position + ahead < scalars.count ? scalars[position + ahead] : nil }
    mutating func next() -> Unicode.Scalar? {
      guard position < scalars.count else { return nil }
      position += 1
      return scalars[position - 1]
    }
  }

  /// `(?imx-imx)` and `(?imx-imx:`: Ruby's m is PCRE2's s. Other groups that begin with `(?` are copied up to their first letter.
  private static func flags(_ reader: inout Reader) -> String {
    reader.position += 1
    let start = reader.position
    var letters = ""
    while let c = reader.peek(), c == "i" || c == "m" || c == "x" || c == "-" {
      letters.unicodeScalars.append(c == "m" ? "s" : c)
      reader.position += 1
    }
    if reader.peek() == ":" || reader.peek() == ")" { return "?" + letters }
    reader.position = start
    return "?"
  }

  private static func escape(_ reader: inout Reader, inClass: Bool) throws(VocabularyError) -> String {
    guard let c = reader.next() else { throw VocabularyError("a pattern ends with a backslash") }
    func set(_ content: String, negated: Bool = false) -> String { inClass ? content : (negated ? "[^" : "[") + content + "]" }
    switch c {
    case "s": return set(space)
    case "S": return inClass ? notSpace : set(space, negated: true)
    case "h": return set("0-9a-fA-F")
    case "H": return inClass ? #"\x{0}-\x{2f}\x{3a}-\x{40}\x{47}-\x{60}\x{67}-\x{10ffff}"# : set("0-9a-fA-F", negated: true)
    case "d": return #"\p{Nd}"#
    case "D": return #"\P{Nd}"#
    case "w": return set(word)
    case "W":
      if inClass { throw VocabularyError("\\W inside brackets isn't supported in patterns") }
      return set(word, negated: true)
    case "b" where !inClass: return "(?:(?<=[\(word)])(?![\(word)])|(?<![\(word)])(?=[\(word)]))"
    case "B" where !inClass: return "(?:(?<=[\(word)])(?=[\(word)])|(?<![\(word)])(?![\(word)]))"
    case "p", "P": return try property(&reader, isNegated: c == "P", inClass: inClass)
    case "u":
      if reader.peek() == "{" { return "\\x" }
      var digits = ""
      while digits.unicodeScalars.count < 4, let digit = reader.peek(), digit.properties.isASCIIHexDigit {
        digits.unicodeScalars.append(digit)
        reader.position += 1
      }
      if digits.unicodeScalars.count < 4 { throw VocabularyError("\\u needs four hexadecimal digits in a pattern") }
      return "\\x{\(digits)}"
    case "Q", "E", "N", "C", "L", "U", "l", "X", "R":
      // Oniguruma and PCRE2 agree on \X and \R; the others are plain letters in Ruby.
      return c == "X" || c == "R" ? "\\" + String(c) : String(c)
    default:
      // Letters with a meaning are shared by both; anything else is itself.
      var result = "\\"
      result.unicodeScalars.append(c)
      return c.value < 0x80 ? result : String(c)
    }
  }

  /// `\p{Name}`, `\p{^Name}`, `\P{Name}`. PCRE2's tables may be older than the library's: characters assigned since are added.
  private static func property(_ reader: inout Reader, isNegated: Bool, inClass: Bool) throws(VocabularyError) -> String {
    guard reader.peek() == "{" else {
      throw VocabularyError("\\p needs a name in braces in a pattern")
    }
    reader.position += 1
    var name = ""
    var isNegated = isNegated
    if reader.peek() == "^" {
      isNegated.toggle()
      reader.position += 1
    }
    while let c = reader.next() {
      if c == "}" {
        let known = aliases[name.lowercased().filter { $0 != "_" && $0 != " " && $0 != "-" }] ?? name
        let addition = NewerCharacters.ranges(known)
        if addition.isEmpty { return (isNegated ? "\\P{" : "\\p{") + known + "}" }
        if !inClass { return (isNegated ? "[^" : "[") + "\\p{\(known)}" + addition + "]" }
        // A negated property in brackets can't leave the newer characters out.
        return isNegated ? "\\P{\(known)}" : "\\p{\(known)}" + addition
      }
      name.unicodeScalars.append(c)
    }
    throw VocabularyError("\\p{\(name.prefix(40)) has no closing brace in a pattern")
  }

  private static let aliases: [String: String] = [
    "letter": "L", "uppercaseletter": "Lu", "lowercaseletter": "Ll", "titlecaseletter": "Lt", "modifierletter": "Lm",
    "otherletter": "Lo", "mark": "M", "nonspacingmark": "Mn", "spacingmark": "Mc", "enclosingmark": "Me", "number": "N",
    "decimalnumber": "Nd", "letternumber": "Nl", "othernumber": "No", "punctuation": "P", "connectorpunctuation": "Pc",
    "dashpunctuation": "Pd", "openpunctuation": "Ps", "closepunctuation": "Pe", "initialpunctuation": "Pi",
    "finalpunctuation": "Pf", "otherpunctuation": "Po", "symbol": "S", "mathsymbol": "Sm", "currencysymbol": "Sc",
    "modifiersymbol": "Sk", "othersymbol": "So", "separator": "Z", "spaceseparator": "Zs", "other": "C", "control": "Cc",
    "format": "Cf", "alpha": "Alphabetic", "digit": "Nd", "upper": "Uppercase", "lower": "Lowercase", "space": "White_Space",
    "any": "Any",
  ]

  /// What stands between brackets. Nested brackets that only add characters are taken in; intersections have no counterpart.
  private static func classContent(_ reader: inout Reader, depth: Int) throws(VocabularyError) -> String {
    if depth > 20 { throw VocabularyError("brackets are nested too deep in a pattern") }
    var out = ""
    if reader.peek() == "^" {
      if depth > 0 { throw VocabularyError("a negated set inside brackets isn't supported in patterns") }
      out += "^"
      reader.position += 1
    }
    // A bracket that closes nothing is itself.
    if reader.peek() == "]" {
      out += "\\]"
      reader.position += 1
    }
    while let c = reader.next() {
      switch c {
      case "]": return out
      case "\\": out += try escape(&reader, inClass: true)
      case "[":
        if reader.peek() == ":" {
          out += "["
          while let c = reader.next() {
            out.unicodeScalars.append(c)
            if c == ":" && reader.peek() == "]" {
              reader.position += 1
              out += "]"
              break
            }
          }
        } else {
          out += try classContent(&reader, depth: depth + 1)
        }
      case "&" where reader.peek() == "&": throw VocabularyError("intersections (&&) in brackets aren't supported in patterns")
      default: out.unicodeScalars.append(c)
      }
    }
    throw VocabularyError("a set in brackets has no end in a pattern")
  }
}

/// Characters that got their class in a version of Unicode after the one PCRE2 was built with.
private enum NewerCharacters {
  private static let pcreVersion: (major: Int, minor: Int) = {
    var buffer = [UInt8](repeating: 0, count: 64)
    pcre2_config_8(UInt32(PCRE2_CONFIG_UNICODE_VERSION), &buffer)
    let parts = String(decoding: buffer.prefix { $0 != 0 }, as: UTF8.self).split(separator: ".").map { Int($0) ?? 0 }
    return (parts.first ?? 0, parts.dropFirst().first ?? 0)
  }()

  /// With the letters of the general category, as in "Lu".
  private static let all: [(value: UInt32, category: String, isAlphabetic: Bool)] = {
    var result: [(value: UInt32, category: String, isAlphabetic: Bool)] = []
    for value in UInt32(0x80)..<0x34000 {
      let classes = scalarClass(value, UnicodeTables.classes)
      if classes.isDisjoint(with: [.letter, .number, .mark, .punctuation, .symbol]) { continue }
      // The large blocks of ideographs and syllables are older than any PCRE2 in use.
      if (0x3400..<0x4DB0).contains(value) || (0x4E00..<0x9F00).contains(value) || (0xAC00..<0xD7A4).contains(value) { continue }
      guard let properties = Unicode.Scalar(value)?.properties, let age = properties.age, (age.major, age.minor) > pcreVersion,
        let category = names[properties.generalCategory]
      else { continue }
      result.append((value, category, properties.isAlphabetic))
    }
    return result
  }()

  private static let names: [Unicode.GeneralCategory: String] = [
    .uppercaseLetter: "Lu", .lowercaseLetter: "Ll", .titlecaseLetter: "Lt", .modifierLetter: "Lm", .otherLetter: "Lo",
    .nonspacingMark: "Mn", .spacingMark: "Mc", .enclosingMark: "Me", .decimalNumber: "Nd", .letterNumber: "Nl", .otherNumber: "No",
    .connectorPunctuation: "Pc", .dashPunctuation: "Pd", .openPunctuation: "Ps", .closePunctuation: "Pe", .initialPunctuation: "Pi",
    .finalPunctuation: "Pf", .otherPunctuation: "Po", .mathSymbol: "Sm", .currencySymbol: "Sc", .modifierSymbol: "Sk",
    .otherSymbol: "So",
  ]

  /// The ranges to add to a property, for use inside brackets.
  static func ranges(_ property: String) -> String {
    let isAlphabetic = property == "Alphabetic"
    guard isAlphabetic || ["L", "N", "M", "P", "S"].contains(property) || names.values.contains(property) else { return "" }
    var result = ""
    var start: UInt32 = 0
    var end: UInt32 = 0  // behind the range
    func write() {
      if end > start { result += "\\x{\(String(start, radix: 16))}-\\x{\(String(end - 1, radix: 16))}" }
    }
    for (value, category, alphabetic) in all where isAlphabetic ? alphabetic : category.hasPrefix(property) {
      if value != end {
        write()
        start = value
      }
      end = value + 1
    }
    write()
    return result
  }
}
