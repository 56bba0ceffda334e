/// A part of a template's text.
struct TemplateToken {
  enum Kind: Equatable {
    case data(String)
    case variableBegin, variableEnd, blockBegin, blockEnd
    case name(String)
    case string(String)
    case integer(Int)
    case float(Double)
    case symbol(String)
    case end
  }
  let kind: Kind
  let line: Int

  var description: String {
    switch kind {
    case .data: "text"
    case .variableBegin: "{{"
    case .variableEnd: "}}"
    case .blockBegin: "{%"
    case .blockEnd: "%}"
    case .name(let name): name
    case .string: "a string"
    case .integer(let value): "\(value)"
    case .float(let value): "\(value)"
    case .symbol(let symbol): symbol
    case .end: "the end of the template"
    }
  }
}

/// Cuts a template into tokens as Jinja does with `trim_blocks` and `lstrip_blocks`: the newline after a block is dropped, and so is
/// the space between the start of a line and a block; `-` drops all space on its side and `+` keeps it.
struct TemplateLexer {
  private let source: [Unicode.Scalar]
  private var position = 0
  private var line = 1
  private var tokens: [TemplateToken] = []
  /// Whether the last tag ended with a newline (or nothing came yet), so that the text after it begins a line.
  private var isLineStart = true

  init(_ text: String) {
    var scalars: [Unicode.Scalar] = []
    scalars.reserveCapacity(text.utf8.count)
    var wasReturn = false
    for scalar in text.unicodeScalars {
      if scalar == "\n", wasReturn {
        wasReturn = false
        continue
      }
      wasReturn = scalar == "\r"
      scalars.append(wasReturn ? "\n" : scalar)
    }
    if scalars.last == "\n" { scalars.removeLast() }
    source = scalars
  }

  static func tokens(of text: String) throws -> [TemplateToken] {
    var lexer = TemplateLexer(text)
    try lexer.run()
    return lexer.tokens
  }

  private func scalar(_ index: Int) -> Unicode.Scalar? { index < source.count ? source[index] : nil }

  private func starts(_ text: StaticString, at index: Int) -> Bool {
    guard index + text.utf8CodeUnitCount <= source.count else { return false }
    for i in 0..<text.utf8CodeUnitCount where source[index + i].value != UInt32(text.utf8Start[i]) { return false }
    return true
  }

  private func skippingSpace(_ index: Int) -> Int {
    var index = index
    while index < source.count, PythonText.isSpace(source[index]) { index += 1 }
    return index
  }

  private mutating func emit(_ kind: TemplateToken.Kind) { tokens.append(TemplateToken(kind: kind, line: line)) }

  private mutating func advance(to end: Int) {
    for index in position..<end where source[index] == "\n" { line += 1 }
    if end > position { isLineStart = source[end - 1] == "\n" }
    position = end
  }

  private func failure(_ message: String) -> ChatTemplateError { ChatTemplateError(.syntax, message, line: line) }

  private mutating func run() throws {
    while position < source.count {
      var tag = position
      while tag < source.count, !(source[tag] == "{" && isTagLetter(scalar(tag + 1))) { tag += 1 }
      guard tag < source.count else {
        emit(.data(text(position..<source.count)))
        advance(to: source.count)
        break
      }
      let kind = source[tag + 1]
      let sign: Unicode.Scalar? = scalar(tag + 2).flatMap { $0 == "-" || $0 == "+" ? $0 : nil }
      let inside = tag + (sign == nil ? 2 : 3)
      let end = endOfData(before: tag, sign: sign, isVariable: kind == "{")
      if end > position { emit(.data(text(position..<end))) }
      advance(to: tag)
      if kind == "#" {
        try comment(from: inside)
      } else if kind == "%", let body = rawBody(from: inside) {
        advance(to: body)
        try raw()
      } else {
        emit(kind == "{" ? .variableBegin : .blockBegin)
        advance(to: inside)
        try code(isVariable: kind == "{")
      }
    }
    emit(.end)
  }

  private func isTagLetter(_ scalar: Unicode.Scalar?) -> Bool { scalar == "{" || scalar == "%" || scalar == "#" }

  private func text(_ range: Range<Int>) -> String { String(String.UnicodeScalarView(source[range])) }

  /// Where the text before a tag ends once the tag's strip rules are applied.
  private func endOfData(before tag: Int, sign: Unicode.Scalar?, isVariable: Bool) -> Int {
    var end = tag
    while end > position, PythonText.isSpace(source[end - 1]), sign == "-" || source[end - 1] != "\n" { end -= 1 }
    if sign == "-" { return end }
    if sign == "+" || isVariable { return tag }
    // Only space back to a newline, or to the start of the text where that begins a line.
    if end > position { return source[end - 1] == "\n" ? end : tag }
    return isLineStart ? end : tag
  }

  /// The end of `%}` or `#}` at `index` with what it swallows; nil if there is none.
  private func closing(_ letter: Unicode.Scalar, at index: Int) -> Int? {
    if scalar(index) == letter, scalar(index + 1) == "}" { return scalar(index + 2) == "\n" && letter != "}" ? index + 3 : index + 2 }
    guard scalar(index + 1) == letter, scalar(index + 2) == "}" else { return nil }
    if scalar(index) == "-" { return skippingSpace(index + 3) }
    return scalar(index) == "+" && letter != "}" ? index + 3 : nil
  }

  private mutating func comment(from start: Int) throws {
    var index = start
    while index < source.count {
      if let end = closing("#", at: index) { return advance(to: end) }
      index += 1
    }
    throw failure("a comment has no end")
  }

  /// The start of the text of a raw block, when `index` is inside `{% raw %}`.
  private func rawBody(from index: Int) -> Int? {
    let word = skippingSpace(index)
    guard starts("raw", at: word) else { return nil }
    let end = skippingSpace(word + 3)
    if starts("%}", at: end) { return end + 2 }
    return starts("-%}", at: end) ? skippingSpace(end + 3) : nil
  }

  private mutating func raw() throws {
    var index = position
    while index < source.count {
      if starts("{%", at: index) {
        let sign: Unicode.Scalar? = scalar(index + 2).flatMap { $0 == "-" || $0 == "+" ? $0 : nil }
        let word = skippingSpace(index + (sign == nil ? 2 : 3))
        if starts("endraw", at: word), let end = closing("%", at: skippingSpace(word + 6)) {
          let dataEnd = endOfData(before: index, sign: sign, isVariable: false)
          if dataEnd > position { emit(.data(text(position..<dataEnd))) }
          return advance(to: end)
        }
      }
      index += 1
    }
    throw failure("a raw block has no end")
  }

  private static let symbols2 = ["//", "**", "==", "!=", ">=", "<="]
  private static let symbols1: Set<Unicode.Scalar> = [
    "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".", ":", "|", ",", ";",
  ]

  private mutating func code(isVariable: Bool) throws {
    var brackets: [Unicode.Scalar] = []
    while let next = scalar(position) {
      if PythonText.isSpace(next) {
        advance(to: skippingSpace(position))
        continue
      }
      if brackets.isEmpty, let end = closing(isVariable ? "}" : "%", at: position) {
        emit(isVariable ? .variableEnd : .blockEnd)
        return advance(to: end)
      }
      if isDigit(next) {
        try number()
      } else if isWord(next) {
        var end = position
        while let letter = scalar(end), isWord(letter) { end += 1 }
        emit(.name(text(position..<end)))
        advance(to: end)
      } else if next == "'" || next == "\"" {
        try string(next)
      } else {
        try symbol(next, &brackets)
      }
    }
    throw failure("the template ends inside \(isVariable ? "{{ … }}" : "{% … %}")")
  }

  private mutating func symbol(_ next: Unicode.Scalar, _ brackets: inout [Unicode.Scalar]) throws {
    if position + 1 < source.count {
      let pair = text(position..<(position + 2))
      if Self.symbols2.contains(pair) {
        emit(.symbol(pair))
        return advance(to: position + 2)
      }
    }
    guard Self.symbols1.contains(next) else { throw failure("the character \(PythonText.quoted(String(next))) was not expected") }
    switch next {
    case "(": brackets.append(")")
    case "[": brackets.append("]")
    case "{": brackets.append("}")
    case ")", "]", "}":
      guard let expected = brackets.popLast() else { throw failure("'\(next)' was not expected") }
      if expected != next { throw failure("'\(expected)' was expected, not '\(next)'") }
    default: break
    }
    emit(.symbol(String(next)))
    advance(to: position + 1)
  }

  private func isDigit(_ scalar: Unicode.Scalar) -> Bool { scalar >= "0" && scalar <= "9" }

  private func isWord(_ scalar: Unicode.Scalar) -> Bool {
    if scalar.isASCII { return isDigit(scalar) || scalar == "_" || scalar.properties.isAlphabetic }
    switch scalar.properties.generalCategory {
    case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter, .decimalNumber, .letterNumber, .otherNumber:
      return true
    default: return false
    }
  }

  /// The end of digits with single underscores between them.
  private func digits(from start: Int, _ accepts: (Unicode.Scalar) -> Bool) -> Int {
    var end = start
    while let next = scalar(end) {
      if accepts(next) {
        end += 1
      } else if next == "_", end > start, let after = scalar(end + 1), accepts(after) {
        end += 2
      } else {
        break
      }
    }
    return end
  }

  private mutating func number() throws {
    let prefix = scalar(position) == "0" ? scalar(position + 1).map { Character($0).lowercased() } : nil
    if let prefix, let radix = ["b": 2, "o": 8, "x": 16][prefix] {
      let end = digits(from: position + 2) { Character($0).hexDigitValue.map { $0 < radix } ?? false }
      if end > position + 2 { return try integer(to: end, digitsFrom: position + 2, radix: radix) }
    }
    var end = digits(from: position, isDigit)
    var isFloat = false
    // "x.1.2" indexes twice: after a dot these are indices, not fractions.
    let isAfterDot = position > 0 && source[position - 1] == "."
    if !isAfterDot {
      if scalar(end) == "." {
        let fraction = digits(from: end + 1, isDigit)
        if fraction > end + 1 {
          end = fraction
          isFloat = true
        }
      }
      if scalar(end) == "e" || scalar(end) == "E" {
        let sign = scalar(end + 1) == "+" || scalar(end + 1) == "-" ? 1 : 0
        let exponent = digits(from: end + 1 + sign, isDigit)
        if exponent > end + 1 + sign {
          end = exponent
          isFloat = true
        }
      }
    }
    if !isFloat { return try integer(to: end, digitsFrom: position, radix: 10) }
    guard let value = Double(text(position..<end).filter { $0 != "_" }) else { throw failure("a number is out of range") }
    emit(.float(value))
    advance(to: end)
  }

  private mutating func integer(to end: Int, digitsFrom start: Int, radix: Int) throws {
    guard let value = Int(text(start..<end).filter { $0 != "_" }, radix: radix) else {
      throw failure("the integer \(text(position..<min(end, position + 40))) doesn't fit 64 bits")
    }
    emit(.integer(value))
    advance(to: end)
  }

  private mutating func string(_ quote: Unicode.Scalar) throws {
    var content = String.UnicodeScalarView()
    var index = position + 1
    while let next = scalar(index) {
      if next == quote {
        emit(.string(String(content)))
        return advance(to: index + 1)
      }
      index += 1
      guard next == "\\", let escaped = scalar(index) else {
        content.append(next)
        continue
      }
      index += 1
      switch escaped {
      case "n": content.append("\n")
      case "t": content.append("\t")
      case "r": content.append("\r")
      case "\\", "'", "\"": content.append(escaped)
      case "a": content.append("\u{7}")
      case "b": content.append("\u{8}")
      case "f": content.append("\u{C}")
      case "v": content.append("\u{B}")
      case "\n": break
      case "x", "u", "U":
        let width = escaped == "x" ? 2 : escaped == "u" ? 4 : 8
        guard index + width <= source.count, let code = UInt32(text(index..<(index + width)), radix: 16), let scalar = Unicode.Scalar(code)
        else { throw failure("\\\(escaped) needs \(width) hexadecimal digits of a character") }
        content.append(scalar)
        index += width
      case "0"..."7":
        var code: UInt32 = escaped.value - 48
        for _ in 0..<2 {
          guard let digit = scalar(index), digit >= "0", digit <= "7" else { break }
          code = code * 8 + digit.value - 48
          index += 1
        }
        content.append(Unicode.Scalar(code)!)
      default:
        content.append("\\")
        content.append(escaped)
      }
    }
    throw failure("a string has no end")
  }
}
