/// How values become text: `str`, `repr`, `json.dumps` and the two ways of formatting.
extension TemplateInterpreter {
  /// What `{{ value }}` writes.
  func text(_ value: TemplateValue) throws -> String {
    switch value {
    case .undefined: return ""
    case .string(let text): return text
    default:
      var result = ""
      try represent(value, into: &result)
      return result
    }
  }

  private func add(_ text: String, _ result: inout String) throws {
    try charge(4 * text.utf8.count)
    result += text
  }

  func represent(_ value: TemplateValue, into result: inout String, level: Int = 0) throws {
    try charge(16)
    // A namespace may hold itself.
    if level > 2 * TemplateValue.maximumDepth { throw ChatTemplateError(.limit, "printing a value nested too deeply") }
    switch value {
    case .undefined: try add("Undefined", &result)
    case .none: try add("None", &result)
    case .bool(let value): try add(value ? "True" : "False", &result)
    case .int(let value): try add(String(value), &result)
    case .float(let value): try add(PythonText.float(value), &result)
    case .string(let text):
      try charge(4 * text.utf8.count)
      try add(PythonText.quoted(text), &result)
    case .list(let sequence): try represent(sequence.elements, "[", "]", into: &result, level)
    case .tuple(let sequence): try represent(sequence.elements, "(", sequence.elements.count == 1 ? ",)" : ")", into: &result, level)
    case .dict(let dictionary):
      try add("{", &result)
      for (index, (key, value)) in dictionary.pairs.enumerated() {
        if index > 0 { try add(", ", &result) }
        try represent(key, into: &result, level: level + 1)
        try add(": ", &result)
        try represent(value, into: &result, level: level + 1)
      }
      try add("}", &result)
    case .range(let range):
      try add("range(\(range.start), \(range.stop)\(range.step == 1 ? "" : ", \(range.step)"))", &result)
    case .iterator(let iterator):
      guard case .view(let name) = iterator.kind else {
        throw ChatTemplateError(.evaluation, "a generator can't be printed; pass it through |list or |join")
      }
      try represent(iterator.remaining, name + "([", "])", into: &result, level)
    case .namespace(let namespace):
      try add("<Namespace {", &result)
      for (index, (name, value)) in namespace.attributes.sorted(by: { $0.key < $1.key }).enumerated() {
        if index > 0 { try add(", ", &result) }
        try add(PythonText.quoted(name) + ": ", &result)
        try represent(value, into: &result, level: level + 1)
      }
      try add("}>", &result)
    case .loop(let loop): try add("<LoopContext \(loop.index + 1)/\(loop.elements.count)>", &result)
    case .callable(let callable): throw ChatTemplateError(.evaluation, "the function '\(callable.name)' is printed but not called")
    }
  }

  private func represent(_ elements: [TemplateValue], _ open: String, _ close: String, into result: inout String, _ level: Int) throws {
    try add(open, &result)
    for (index, element) in elements.enumerated() {
      if index > 0 { try add(", ", &result) }
      try represent(element, into: &result, level: level + 1)
    }
    try add(close, &result)
  }

  // MARK: JSON

  struct JSONStyle {
    var asciiOnly = false
    /// What a level is indented by; nil writes one line.
    var indentation: String?
    var itemSeparator = ", "
    var keySeparator = ": "
    var sortsKeys = false
  }

  /// What Python's `json.dumps` writes.
  func json(_ value: TemplateValue, _ style: JSONStyle, into result: inout String, level: Int = 0) throws {
    try charge(16)
    switch value {
    case .none: try add("null", &result)
    case .bool(let value): try add(value ? "true" : "false", &result)
    case .int(let value): try add(String(value), &result)
    case .float(let value): try add(jsonNumber(value), &result)
    case .string(let text):
      try charge(8 * text.utf8.count)
      PythonText.json(text, asciiOnly: style.asciiOnly, into: &result)
    case .list(let sequence), .tuple(let sequence):
      if sequence.elements.isEmpty { return try add("[]", &result) }
      try add("[", &result)
      for (index, element) in sequence.elements.enumerated() {
        if index > 0 { try add(style.itemSeparator, &result) }
        try breakLine(style, level + 1, &result)
        try json(element, style, into: &result, level: level + 1)
      }
      try breakLine(style, level, &result)
      try add("]", &result)
    case .dict(let dictionary):
      if dictionary.count == 0 { return try add("{}", &result) }
      var pairs = dictionary.pairs
      if style.sortsKeys {
        try charge(64 * pairs.count)
        pairs = try pairs.sorted { try $0.0.isLess(than: $1.0) }
      }
      try add("{", &result)
      for (index, (key, value)) in pairs.enumerated() {
        if index > 0 { try add(style.itemSeparator, &result) }
        try breakLine(style, level + 1, &result)
        let name: String
        switch key {
        case .string(let text): name = text
        case .none: name = "null"
        case .bool(let value): name = value ? "true" : "false"
        case .int(let value): name = String(value)
        case .float(let value): name = jsonNumber(value)
        default: throw ChatTemplateError(.evaluation, "JSON has no keys of type \(key.typeName)")
        }
        try charge(8 * name.utf8.count)
        PythonText.json(name, asciiOnly: style.asciiOnly, into: &result)
        try add(style.keySeparator, &result)
        try json(value, style, into: &result, level: level + 1)
      }
      try breakLine(style, level, &result)
      try add("}", &result)
    case .undefined(let what): throw ChatTemplateError(.evaluation, "tojson of an undefined value (\(what))")
    default: throw ChatTemplateError(.evaluation, "a value of type \(value.typeName) can't be written as JSON")
    }
  }

  private func jsonNumber(_ value: Double) -> String {
    value.isNaN ? "NaN" : value.isInfinite ? (value < 0 ? "-Infinity" : "Infinity") : PythonText.float(value)
  }

  private func breakLine(_ style: JSONStyle, _ level: Int, _ result: inout String) throws {
    guard let indentation = style.indentation else { return }
    try add("\n", &result)
    try charge(4 * level * indentation.utf8.count)
    result += String(repeating: indentation, count: level)
  }

  // MARK: Formats

  /// Python's `format % values`.
  func percentFormatted(_ format: String, _ values: TemplateValue) throws -> TemplateValue {
    var arguments: [TemplateValue]
    if case .tuple(let sequence) = values { arguments = sequence.elements } else { arguments = [values] }
    var isMapped = false
    if case .dict = values { isMapped = true }
    arguments.reverse()
    var result = ""
    var rest = format.unicodeScalars[...]
    while let scalar = rest.popFirst() {
      if scalar != "%" {
        result.unicodeScalars.append(scalar)
        continue
      }
      var named: TemplateValue?
      if rest.first == "(" {
        guard case .dict(let dictionary) = values, let close = rest.firstIndex(of: ")") else {
          throw ChatTemplateError(.evaluation, "%(name) needs a mapping")
        }
        let name = String(rest[rest.index(after: rest.startIndex)..<close])
        guard let member = dictionary[name] else {
          throw ChatTemplateError(.evaluation, "the format names '\(name)', which the mapping lacks")
        }
        named = member
        rest = rest[rest.index(after: close)...]
      }
      var flags = Set<Unicode.Scalar>()
      while let flag = rest.first, "-+ 0#".unicodeScalars.contains(flag) { flags.insert(rest.removeFirst()) }
      func number() throws -> Int {
        var number = 0
        while let digit = rest.first, digit >= "0", digit <= "9" {
          number = number * 10 + Int(rest.removeFirst().value - 48)
          if number > 10_000 { throw ChatTemplateError(.limit, "a format wider than 10000") }
        }
        return number
      }
      let width = try number()
      var precision: Int?
      if rest.first == "." {
        rest.removeFirst()
        precision = try number()
      }
      guard let letter = rest.popFirst() else { throw ChatTemplateError(.evaluation, "the format ends after %") }
      if letter == "%" {
        result += "%"
        continue
      }
      guard let value = named ?? arguments.popLast() else { throw ChatTemplateError(.evaluation, "the format has more places than values") }
      var piece = try converted(value, letter, precision, flags)
      let padding = max(0, width - piece.unicodeScalars.count)
      try charge(4 * (padding + piece.utf8.count))
      if flags.contains("-") {
        piece += String(repeating: " ", count: padding)
      } else if flags.contains("0"), letter != "s", letter != "r" {
        let sign = piece.first.map { $0 == "-" || $0 == "+" || $0 == " " } ?? false ? 1 : 0
        piece = piece.prefix(sign) + String(repeating: "0", count: padding) + piece.dropFirst(sign)
      } else {
        piece = String(repeating: " ", count: padding) + piece
      }
      result += piece
    }
    if !isMapped, !arguments.isEmpty, format.utf8.isEmpty || arguments.count > 0 {
      throw ChatTemplateError(.evaluation, "the format has fewer places than values")
    }
    return try made(result)
  }

  private func converted(_ value: TemplateValue, _ letter: Unicode.Scalar, _ precision: Int?, _ flags: Set<Unicode.Scalar>) throws -> String
  {
    func signed(_ text: String) -> String {
      text.hasPrefix("-") ? text : flags.contains("+") ? "+" + text : flags.contains(" ") ? " " + text : text
    }
    switch letter {
    case "s", "r":
      var text = ""
      if letter == "s" { text = try self.text(value) } else { try represent(value, into: &text) }
      return precision.map { String(String.UnicodeScalarView(text.unicodeScalars.prefix($0))) } ?? text
    case "d", "i", "u":
      guard let number = value.integer ?? value.real.flatMap({ Int(exactly: $0.rounded(.towardZero)) }) else {
        throw ChatTemplateError(.evaluation, "%\(letter) needs a number, not a value of type \(value.typeName)")
      }
      return signed(String(number))
    case "x", "X", "o":
      guard let number = value.integer else { throw ChatTemplateError(.evaluation, "%\(letter) needs an integer") }
      return signed(String(number, radix: letter == "o" ? 8 : 16, uppercase: letter == "X"))
    case "f", "F", "e", "E", "g", "G":
      guard let number = value.real else { throw ChatTemplateError(.evaluation, "%\(letter) needs a number") }
      guard precision ?? 0 <= 400 else { throw ChatTemplateError(.limit, "a format of more than 400 digits") }
      return signed(PythonText.formatted(number, letter, precision ?? 6))
    default: throw ChatTemplateError(.unsupported, "%\(letter) in a format")
    }
  }

  /// Python's `str.format`, without format specifications.
  func braceFormatted(_ format: String, _ arguments: TemplateArguments) throws -> TemplateValue {
    var result = ""
    var next = 0
    var rest = format.unicodeScalars[...]
    while let scalar = rest.popFirst() {
      if scalar == "{" || scalar == "}", rest.first == scalar {
        rest.removeFirst()
        result.unicodeScalars.append(scalar)
      } else if scalar == "{" {
        guard let close = rest.firstIndex(of: "}") else { throw ChatTemplateError(.evaluation, "a '{' without '}' in a format") }
        var field = String(rest[..<close])
        rest = rest[rest.index(after: close)...]
        var isRepresented = false
        if field.hasSuffix("!r") || field.hasSuffix("!s") {
          isRepresented = field.hasSuffix("!r")
          field.removeLast(2)
        }
        if field.unicodeScalars.contains(where: { ":.[!".unicodeScalars.contains($0) }) {
          throw ChatTemplateError(.unsupported, "'{\(field)}' in str.format")
        }
        let value: TemplateValue?
        if let index = field.isEmpty ? next : Int(field) {
          if field.isEmpty { next += 1 }
          value = index >= 0 && index < arguments.positional.count ? arguments.positional[index] : nil
        } else {
          value = arguments.keywords.last { $0.name == field }?.value
        }
        guard let value else { throw ChatTemplateError(.evaluation, "the format's '{\(field)}' has no value") }
        var piece = ""
        if isRepresented { try represent(value, into: &piece) } else { piece = try text(value) }
        try add(piece, &result)
      } else if scalar == "}" {
        throw ChatTemplateError(.evaluation, "a '}' without '{' in a format")
      } else {
        result.unicodeScalars.append(scalar)
      }
    }
    return try made(result)
  }
}
