import Foundation

/// The filters that follow `|`.
enum TemplateFilters {
  private static let names: Set<String> = [
    "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape",
    "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "sum", "title", "tojson", "trim", "unique",
    "upper", "wordcount",
  ]
  private static let unsupported: Set<String> = [
    "filesizeformat", "pprint", "random", "striptags", "truncate", "urlencode", "urlize", "wordwrap", "xmlattr",
  ]

  static func exists(_ name: String) -> Bool { names.contains(name) || unsupported.contains(name) }

  static func check(_ name: String, line: Int?) throws {
    if names.contains(name) { return }
    if unsupported.contains(name) { throw ChatTemplateError(.unsupported, "the filter '\(name)'", line: line) }
    throw ChatTemplateError(.syntax, "no filter is named '\(name)'.\(Suggestions.phrase(for: name, in: Array(names)))", line: line)
  }
}

extension TemplateInterpreter {
  func filter(_ name: String, _ value: TemplateValue, _ arguments: TemplateArguments) throws -> TemplateValue {
    try charge(2 * size(value))
    if case .undefined(let what) = value, ["int", "float", "abs", "round"].contains(name) { throw ChatTemplateError(.evaluation, what) }
    func bound(_ names: String..., required: Int = 0) throws -> [TemplateValue?] {
      try arguments.bound(to: names, of: "the filter '\(name)'", required: required)
    }
    switch name {
    case "default", "d":
      let given = try bound("default_value", "boolean")
      let replaces = value.isUndefined || (given[1]?.isTrue ?? false) && !value.isTrue
      return replaces ? given[0] ?? .string("") : value
    case "trim":
      let set = try bound("chars")[0].flatMap { value -> String? in if case .none = value { nil } else { try string(value, "trim") } }
      return try made(PythonText.strip(try text(value), set))
    case "upper": return try made(PythonText.uppercased(try text(value)))
    case "lower": return try made(PythonText.lowercased(try text(value)))
    case "capitalize": return try made(PythonText.capitalized(try text(value)))
    case "title": return try made(titleCased(try text(value)))
    case "string", "safe": return try made(try text(value))
    case "e", "escape", "forceescape": return try made(escaped(try text(value)))
    case "center": return try padded(try text(value), try bound("width")[0].map { try integer($0, "center") } ?? 80, " ", "center")
    case "replace":
      let given = try bound("old", "new", "count", required: 2)
      let count = try given[2].flatMap { value -> Int? in if case .none = value { nil } else { try integer(value, "replace") } }
      return try replaced(try text(value), try text(given[0]!), try text(given[1]!), count ?? -1)
    case "format":
      if !arguments.keywords.isEmpty {
        return try percentFormatted(try text(value), try dictionary(arguments.keywords.map { (.string($0.name), $0.value) }))
      }
      return try percentFormatted(try text(value), .tuple(arguments.positional))
    case "indent": return try indented(value, try bound("width", "first", "blank"))
    case "wordcount":
      let words = String.UnicodeScalarView(try text(value).unicodeScalars).split { scalar in
        !(scalar == "_" || scalar.properties.isAlphabetic || scalar.properties.numericType != nil)
      }
      return .int(words.count)
    case "tojson": return try made(try json(value, try bound("ensure_ascii", "indent", "separators", "sort_keys")))
    case "length", "count":
      guard let length = value.length else { throw ChatTemplateError(.evaluation, "a value of type \(value.typeName) has no length") }
      return .int(length)
    case "first":
      if case .iterator(let iterator) = value { return iterator.takeFirst() ?? .undefined("no first item, the sequence was empty") }
      return try elements(value).first ?? .undefined("no first item, the sequence was empty")
    case "last":
      if case .iterator(let iterator) = value, !iterator.isView {
        throw ChatTemplateError(.evaluation, "a generator has no last item; use |list")
      }
      return try elements(value).last ?? .undefined("no last item, the sequence was empty")
    case "list": return try list(try elements(value))
    case "items":
      if value.isUndefined { return try generator([]) }
      guard case .dict(let dictionary) = value else {
        throw ChatTemplateError(.evaluation, "the filter 'items' needs a mapping, not a value of type \(value.typeName)")
      }
      return try generator(dictionary.pairs.map { .tuple([$0.0, $0.1]) })
    case "join":
      let given = try bound("d", "attribute")
      var parts = try elements(value)
      if let path = try attributePath(given[1]) { parts = try parts.map { try follow(path, $0) } }
      return try joined(try parts.map { try text($0) }, try given[0].map { try text($0) } ?? "")
    case "reverse":
      if case .string(let text) = value { return try made(String(String.UnicodeScalarView(text.unicodeScalars.reversed()))) }
      return try generator(try elements(value).reversed())
    case "abs":
      if let integer = value.integer { return integer == .min ? try arithmetic(.int(0), "-", value) : .int(abs(integer)) }
      guard let real = value.real else { throw ChatTemplateError(.evaluation, "abs of a value of type \(value.typeName)") }
      return .float(abs(real))
    case "int": return try converted(value, try bound("default", "base"))
    case "float":
      let fallback = try bound("default")[0] ?? .float(0)
      if let real = value.real { return .float(real) }
      if case .string(let text) = value, let real = number(text) { return .float(real) }
      return fallback
    case "round": return try rounded(value, try bound("precision", "method"))
    case "attr": return try attribute(try string(try bound("name", required: 1)[0]!, "attr"), of: value)
    case "map":
      if arguments.positional.isEmpty {
        let given = try bound("attribute", "default", required: 1)
        let path = try attributePath(given[0])!
        return try generator(try elements(value).map { try follow(path, $0, default: given[1]) })
      }
      let inner = try string(arguments.positional[0], "map")
      try TemplateFilters.check(inner, line: nil)
      let rest = TemplateArguments(positional: Array(arguments.positional.dropFirst()), keywords: arguments.keywords)
      return try generator(try elements(value).map { try filter(inner, $0, rest) })
    case "select", "reject", "selectattr", "rejectattr": return try selected(name, value, arguments)
    case "sort":
      let given = try bound("reverse", "case_sensitive", "attribute")
      return try list(try sorted(try elements(value), given[2], given[1], isReversed: given[0]?.isTrue ?? false))
    case "dictsort":
      let given = try bound("case_sensitive", "by", "reverse")
      guard case .dict(let dictionary) = value else { throw ChatTemplateError(.evaluation, "dictsort needs a mapping") }
      let by = try given[1].map { try text($0) } ?? "key"
      guard by == "key" || by == "value" else { throw ChatTemplateError(.evaluation, "dictsort sorts by \"key\" or \"value\"") }
      let pairs = dictionary.pairs.map { TemplateValue.tuple([$0.0, $0.1]) }
      return try list(try sorted(pairs, .int(by == "key" ? 0 : 1), given[0], isReversed: given[2]?.isTrue ?? false))
    case "unique":
      let given = try bound("case_sensitive", "attribute")
      let path = try attributePath(given[1])
      var seen: Set<TemplateKey> = []
      return try generator(
        try elements(value).filter { element in
          let key = folded(try path.map { try follow($0, element) } ?? element, given[0])
          try charge(size(key))
          return seen.insert(try TemplateKey(key)).inserted
        })
    case "min", "max":
      let given = try bound("case_sensitive", "attribute")
      let path = try attributePath(given[1])
      var best: (key: TemplateValue, element: TemplateValue)?
      for element in try elements(value) {
        let key = folded(try path.map { try follow($0, element) } ?? element, given[0])
        if let best, !(name == "min" ? try key.isLess(than: best.key) : try best.key.isLess(than: key)) { continue }
        best = (key, element)
      }
      return best?.element ?? .undefined("no \(name) of an empty sequence")
    case "sum":
      let given = try bound("attribute", "start")
      let path = try attributePath(given[0])
      var total = given[1] ?? .int(0)
      if case .string = total { throw ChatTemplateError(.evaluation, "sum of strings; use |join") }
      for element in try elements(value) { total = try arithmetic(total, "+", try path.map { try follow($0, element) } ?? element) }
      return total
    case "batch", "slice": return try portions(name, value, try bound(name == "batch" ? "linecount" : "slices", "fill_with", required: 1))
    case "groupby": return try grouped(value, try bound("attribute", "default", "case_sensitive", required: 1))
    default:
      try TemplateFilters.check(name, line: nil)
      return value
    }
  }

  // MARK: Text

  private func titleCased(_ text: String) -> String {
    var result = ""
    var isStart = true
    for scalar in text.unicodeScalars {
      if PythonText.isSpace(scalar) || "-({[<".unicodeScalars.contains(scalar) {
        result.unicodeScalars.append(scalar)
        isStart = true
      } else {
        result += isStart ? scalar.properties.uppercaseMapping : scalar.properties.lowercaseMapping
        isStart = false
      }
    }
    return result
  }

  private func escaped(_ text: String) -> String {
    var result = ""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "&": result += "&amp;"
      case "<": result += "&lt;"
      case ">": result += "&gt;"
      case "\"": result += "&#34;"
      case "'": result += "&#39;"
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result
  }

  private func indented(_ value: TemplateValue, _ given: [TemplateValue?]) throws -> TemplateValue {
    var indentation = "    "
    if let width = given[0] {
      if case .string(let text) = width {
        indentation = text
      } else {
        let count = try integer(width, "indent")
        try charge(4 * min(max(0, count), Int.max / 8))
        indentation = String(repeating: " ", count: max(0, count))
      }
    }
    let first = given[1]?.isTrue ?? false
    let blank = given[2]?.isTrue ?? false
    let lines = PythonText.splitLines(try text(value) + "\n")
    var result = ""
    for (index, line) in lines.enumerated() {
      try charge(4 * indentation.utf8.count)
      if index > 0 { result += "\n" }
      if index == 0 ? first : (blank || !line.utf8.isEmpty) { result += indentation }
      result += line
    }
    return try made(result)
  }

  private func json(_ value: TemplateValue, _ given: [TemplateValue?]) throws -> String {
    var style = JSONStyle()
    style.asciiOnly = given[0]?.isTrue ?? false
    style.sortsKeys = given[3]?.isTrue ?? false
    switch given[1] {
    case nil, .some(.none): break
    case .string(let text): style.indentation = text
    case .some(let value):
      let width = max(0, try integer(value, "tojson(indent)"))
      try charge(min(width, Int.max / 8) * 4)
      style.indentation = String(repeating: " ", count: width)
    }
    if style.indentation != nil { style.itemSeparator = "," }
    switch given[2] {
    case nil, .some(.none): break
    case .some(let separators):
      let pair = try elements(separators)
      guard pair.count == 2 else { throw ChatTemplateError(.evaluation, "tojson(separators) needs two strings") }
      style.itemSeparator = try string(pair[0], "tojson(separators)")
      style.keySeparator = try string(pair[1], "tojson(separators)")
    }
    var result = ""
    try json(value, style, into: &result)
    return result
  }

  // MARK: Numbers

  /// What Python's `float()` reads.
  private func number(_ text: String) -> Double? {
    let trimmed = PythonText.strip(text, nil).lowercased()
    let digits = trimmed.unicodeScalars
    guard digits.allSatisfy({ $0.isASCII }), !trimmed.contains("x"), !trimmed.contains("p"), !trimmed.contains("(") else { return nil }
    if trimmed.contains("__") || trimmed.hasPrefix("_") || trimmed.hasSuffix("_") { return nil }
    return Double(trimmed.filter { $0 != "_" })
  }

  private func converted(_ value: TemplateValue, _ given: [TemplateValue?]) throws -> TemplateValue {
    let fallback = given[0] ?? .int(0)
    if let integer = value.integer { return .int(integer) }
    if case .float(let real) = value {
      if let integer = Int(exactly: real.rounded(.towardZero)) { return .int(integer) }
      return fallback
    }
    guard case .string(let text) = value else { return fallback }
    let base = try given[1].map { try integer($0, "int") } ?? 10
    guard base == 0 || (2...36).contains(base) else { return fallback }
    var digits = PythonText.strip(text, nil)
    var sign = ""
    if digits.hasPrefix("-") || digits.hasPrefix("+") { sign = String(digits.removeFirst()) }
    var radix = base == 0 ? 10 : base
    for (prefix, its) in [("0x", 16), ("0o", 8), ("0b", 2)] where (base == its || base == 0) && digits.lowercased().hasPrefix(prefix) {
      digits.removeFirst(2)
      radix = its
    }
    let hasGoodUnderscores = !digits.hasPrefix("_") && !digits.hasSuffix("_") && !digits.contains("__")
    if hasGoodUnderscores, let first = digits.first, first != "-", first != "+",
      let integer = Int(sign + digits.filter { $0 != "_" }, radix: radix)
    {
      return .int(integer)
    }
    if let real = number(text), let integer = Int(exactly: real.rounded(.towardZero)) { return .int(integer) }
    return fallback
  }

  private func rounded(_ value: TemplateValue, _ given: [TemplateValue?]) throws -> TemplateValue {
    let precision = try given[0].map { try integer($0, "round") } ?? 0
    let method = try given[1].map { try string($0, "round") } ?? "common"
    if method == "common", let integer = value.integer, precision >= 0 { return .int(integer) }
    guard let real = value.real else { throw ChatTemplateError(.evaluation, "round of a value of type \(value.typeName)") }
    switch method {
    case "common":
      let result = PythonText.rounded(real, digits: precision)
      if value.integer != nil, let integer = Int(exactly: result) { return .int(integer) }
      return .float(result)
    case "ceil", "floor":
      let power = pow(10, Double(precision))
      let scaled = real * power
      let whole = method == "ceil" ? scaled.rounded(.up) : scaled.rounded(.down)
      return .float(whole / power)
    default: throw ChatTemplateError(.evaluation, "round has the methods common, ceil and floor, not '\(method)'")
    }
  }

  // MARK: Sequences

  /// "a.b.0" as the steps of a lookup; nil for no attribute.
  private func attributePath(_ attribute: TemplateValue?) throws -> [TemplateValue]? {
    switch attribute {
    case nil, .some(.none): return nil
    case .int(let index): return [.int(index)]
    case .some(let value):
      return try string(value, "an attribute").split(separator: ".", omittingEmptySubsequences: false).map { part in
        part.utf8.allSatisfy { $0 >= 48 && $0 <= 57 } ? Int(part).map { .int($0) } ?? .string(String(part)) : .string(String(part))
      }
    }
  }

  private func follow(_ path: [TemplateValue], _ value: TemplateValue, default fallback: TemplateValue? = nil) throws -> TemplateValue {
    var value = value
    for step in path {
      try charge(16)
      value = try item(step, of: value)
      if let fallback, value.isUndefined { value = fallback }
    }
    return value
  }

  private func folded(_ value: TemplateValue, _ isCaseSensitive: TemplateValue?) -> TemplateValue {
    guard case .string(let text) = value, !(isCaseSensitive?.isTrue ?? false) else { return value }
    return .string(PythonText.lowercased(text))
  }

  private func sorted(_ elements: [TemplateValue], _ attribute: TemplateValue?, _ isCaseSensitive: TemplateValue?, isReversed: Bool) throws
    -> [TemplateValue]
  {
    // Several attributes with commas sort by the first, then the second …
    var paths: [[TemplateValue]] = []
    if case .string(let text)? = attribute {
      for part in text.split(separator: ",", omittingEmptySubsequences: false) { paths.append(try attributePath(.string(String(part)))!) }
    } else if let path = try attributePath(attribute) {
      paths = [path]
    }
    let keyed = try elements.map { element -> (key: TemplateValue, element: TemplateValue) in
      let keys = try paths.map { folded(try follow($0, element), isCaseSensitive) }
      return (keys.isEmpty ? folded(element, isCaseSensitive) : keys.count == 1 ? keys[0] : .tuple(keys), element)
    }
    try charge(64 * elements.count * max(1, elements.count.bitWidth - elements.count.leadingZeroBitCount))
    // Python's sort is stable, also in reverse.
    return try keyed.enumerated().sorted { a, b in
      try charge(min(size(a.element.key), size(b.element.key)))
      let (low, high) = isReversed ? (b.element.key, a.element.key) : (a.element.key, b.element.key)
      if try low.isLess(than: high) { return true }
      if try high.isLess(than: low) { return false }
      return a.offset < b.offset
    }.map(\.element.element)
  }

  private func selected(_ name: String, _ value: TemplateValue, _ arguments: TemplateArguments) throws -> TemplateValue {
    var rest = arguments
    var path: [TemplateValue]?
    if name.hasSuffix("attr") {
      guard !rest.positional.isEmpty else { throw ChatTemplateError(.evaluation, "the filter '\(name)' needs the name of an attribute") }
      path = try attributePath(rest.positional.removeFirst())
    }
    let test = rest.positional.isEmpty ? nil : try string(rest.positional.removeFirst(), "the filter '\(name)'")
    if let test { try TemplateTests.check(test, line: nil) }
    let keeps = name.hasPrefix("select")
    return try generator(
      try elements(value).filter { element in
        let examined = try path.map { try follow($0, element) } ?? element
        try charge(16)
        return (try test.map { try self.test($0, examined, rest) } ?? examined.isTrue) == keeps
      })
  }

  private func portions(_ name: String, _ value: TemplateValue, _ given: [TemplateValue?]) throws -> TemplateValue {
    let count = try integer(given[0]!, name)
    guard count > 0 else { throw ChatTemplateError(.evaluation, "the filter '\(name)' needs a count above 0") }
    let elements = try elements(value)
    try charge(count >= Int.max / 128 ? .max : (name == "slice" ? 64 * count : 0))
    var fill: TemplateValue?
    if let value = given[1] { if case .none = value {} else { fill = value } }
    var result: [TemplateValue] = []
    if name == "batch" {
      for start in stride(from: 0, to: elements.count, by: count) {
        var portion = Array(elements[start..<min(start + count, elements.count)])
        if let fill, portion.count < count {
          try charge(64 * min(count, Int.max / 128))
          portion += Array(repeating: fill, count: count - portion.count)
        }
        result.append(try list(portion))
      }
      return try generator(result)
    }
    let size = elements.count / count
    let larger = elements.count % count
    var start = 0
    for index in 0..<count {
      let end = start + size + (index < larger ? 1 : 0)
      var portion = Array(elements[start..<end])
      if let fill, index >= larger { portion.append(fill) }
      result.append(try list(portion))
      start = end
    }
    return try generator(result)
  }

  private func grouped(_ value: TemplateValue, _ given: [TemplateValue?]) throws -> TemplateValue {
    let path = try attributePath(given[0])!
    func key(_ element: TemplateValue) throws -> TemplateValue { try follow(path, element, default: given[1]) }
    let sorted = try elements(value).enumerated().sorted { a, b in
      let x = folded(try key(a.element), given[2])
      let y = folded(try key(b.element), given[2])
      try charge(64)
      if try x.isLess(than: y) { return true }
      if try y.isLess(than: x) { return false }
      return a.offset < b.offset
    }.map(\.element)
    var groups: [(TemplateValue, [TemplateValue])] = []
    for element in sorted {
      let its = try key(element)
      if let last = groups.last, folded(last.0, given[2]).equals(folded(its, given[2])) {
        groups[groups.count - 1].1.append(element)
      } else {
        groups.append((its, [element]))
      }
    }
    return try list(try groups.map { try tuple([$0.0, try list($0.1)]) })
  }
}
