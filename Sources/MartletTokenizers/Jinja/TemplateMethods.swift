/// The methods of Python's strings, lists and dictionaries that the sandbox of transformers lets a template call. Those that change
/// their object (`append`, `update`, `pop` …) are refused, as there.
enum TemplateMethods {
  private static let string: Set<String> = [
    "capitalize", "casefold", "center", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix",
    "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
    "strip", "swapcase", "title", "upper", "zfill",
    "encode", "expandtabs", "format_map", "isidentifier", "isprintable", "maketrans", "translate",
  ]
  private static let dictionary: Set<String> = [
    "get", "items", "keys", "values", "copy", "clear", "pop", "popitem", "setdefault", "update", "fromkeys",
  ]
  private static let list: Set<String> = [
    "count", "index", "copy", "append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort",
  ]

  static func has(_ name: String, _ value: TemplateValue) -> Bool {
    switch value {
    case .string: string.contains(name)
    case .dict: dictionary.contains(name)
    case .list: list.contains(name)
    case .tuple, .range: name == "count" || name == "index"
    case .float: name == "is_integer"
    default: false
    }
  }
}

extension TemplateArguments {
  /// The arguments in the order of `names`, nil where not given. Throws for surplus, unknown and doubled ones, naming `what`.
  func bound(to names: [String], of what: String, required: Int = 0) throws -> [TemplateValue?] {
    guard positional.count <= names.count else {
      throw ChatTemplateError(.evaluation, "\(what) takes at most \(names.count) arguments, not \(positional.count)")
    }
    var values: [TemplateValue?] = positional + Array(repeating: nil, count: names.count - positional.count)
    for (name, value) in keywords {
      guard let place = names.firstIndex(of: name) else { throw ChatTemplateError(.evaluation, "\(what) takes no argument '\(name)'") }
      if values[place] != nil { throw ChatTemplateError(.evaluation, "\(what) got the argument '\(name)' twice") }
      values[place] = value
    }
    for place in 0..<required where values[place] == nil {
      throw ChatTemplateError(.evaluation, "\(what) needs the argument '\(names[place])'")
    }
    return values
  }
}

extension TemplateInterpreter {
  func string(_ value: TemplateValue, _ what: String) throws -> String {
    switch value {
    case .string(let text): return text
    case .undefined(let missing): throw ChatTemplateError(.evaluation, missing)
    default: throw ChatTemplateError(.evaluation, "\(what) needs a string, not a value of type \(value.typeName)")
    }
  }

  func integer(_ value: TemplateValue, _ what: String) throws -> Int {
    if case .undefined(let missing) = value { throw ChatTemplateError(.evaluation, missing) }
    guard let integer = value.integer else {
      throw ChatTemplateError(.evaluation, "\(what) needs an integer, not a value of type \(value.typeName)")
    }
    return integer
  }

  func method(_ name: String, of value: TemplateValue, _ arguments: TemplateArguments) throws -> TemplateValue {
    for argument in arguments.positional { try charge(2 * size(argument)) }
    try charge(2 * size(value))
    switch value {
    case .string(let text): return try method(name, of: text, arguments)
    case .dict(let dictionary):
      switch name {
      case "get":
        let given = try arguments.bound(to: ["key", "default"], of: "get()", required: 1)
        return try dictionary.value(for: given[0]!) ?? given[1] ?? .none
      case "items":
        return .iterator(TemplateIterator(.view("dict_items"), dictionary.pairs.map { .tuple([$0.0, $0.1]) }))
      case "keys": return .iterator(TemplateIterator(.view("dict_keys"), dictionary.keys))
      case "values": return .iterator(TemplateIterator(.view("dict_values"), dictionary.values))
      case "copy": return value
      case "fromkeys": throw ChatTemplateError(.unsupported, "the method 'fromkeys' of a dict")
      default: break
      }
    case .list(let sequence), .tuple(let sequence):
      switch name {
      case "count":
        let wanted = try arguments.bound(to: ["value"], of: "count()", required: 1)[0]!
        return .int(try sequence.elements.filter { try equal($0, wanted) }.count)
      case "index":
        let wanted = try arguments.bound(to: ["value"], of: "index()", required: 1)[0]!
        guard let place = try sequence.elements.firstIndex(where: { try equal($0, wanted) }) else {
          throw ChatTemplateError(.evaluation, "index() of a value that isn't in the list")
        }
        return .int(place)
      case "copy": return value
      default: break
      }
    case .range:
      let wanted = try arguments.bound(to: ["value"], of: "\(name)()", required: 1)[0]!
      let place = try elements(value).firstIndex { $0.equals(wanted) }
      if name == "count" { return .int(place == nil ? 0 : 1) }
      guard let place else { throw ChatTemplateError(.evaluation, "index() of a value that isn't in the range") }
      return .int(place)
    case .float(let number): return .bool(number == number.rounded())
    default: break
    }
    throw ChatTemplateError(
      .evaluation, "'\(name)' changes a \(value.typeName), which a template may not; make a new one, or use namespace()")
  }

  private func method(_ name: String, of text: String, _ arguments: TemplateArguments) throws -> TemplateValue {
    func bound(_ names: [String], _ required: Int = 0) throws -> [TemplateValue?] {
      try arguments.bound(to: names, of: "\(name)()", required: required)
    }
    func optionalString(_ value: TemplateValue?) throws -> String? {
      guard let value else { return nil }
      if case .none = value { return nil }
      return try string(value, "\(name)()")
    }
    switch name {
    case "strip", "lstrip", "rstrip":
      return try made(PythonText.strip(text, try optionalString(bound(["chars"])[0]), left: name != "rstrip", right: name != "lstrip"))
    case "lower":
      _ = try bound([])
      return try made(PythonText.lowercased(text))
    case "upper":
      _ = try bound([])
      return try made(PythonText.uppercased(text))
    case "title": return try made(PythonText.titled(text))
    case "capitalize": return try made(PythonText.capitalized(text))
    case "swapcase": return try made(PythonText.swappedCase(text))
    case "split", "rsplit":
      let given = try bound(["sep", "maxsplit"])
      let limit = try given[1].map { try integer($0, "\(name)()") } ?? -1
      let parts: [String]
      if let separator = try optionalString(given[0]) {
        if separator.utf8.isEmpty { throw ChatTemplateError(.evaluation, "\(name)() needs a separator that isn't empty") }
        parts =
          name == "split"
          ? PythonText.split(text, on: separator, limit: limit) : PythonText.splitFromRight(text, on: separator, limit: limit)
      } else {
        parts = name == "split" ? PythonText.splitOnSpace(text, limit: limit) : PythonText.splitOnSpaceFromRight(text, limit: limit)
      }
      try charge(4 * text.utf8.count)
      return try list(parts.map { .string($0) })
    case "splitlines":
      let keepsEnds = try bound(["keepends"])[0]?.isTrue ?? false
      return try list(PythonText.splitLines(text, keepingEnds: keepsEnds).map { .string($0) })
    case "startswith", "endswith":
      let given = try bound(["prefix", "start", "end"], 1)
      if given[1] != nil || given[2] != nil { throw ChatTemplateError(.unsupported, "\(name)() with positions") }
      let options: [TemplateValue]
      if case .tuple(let sequence) = given[0]! { options = sequence.elements } else { options = [given[0]!] }
      return .bool(
        try options.contains { option in
          let part = try string(option, "\(name)()").utf8
          return name == "startswith" ? text.utf8.starts(with: part) : text.utf8.reversed().starts(with: part.reversed())
        })
    case "replace":
      let given = try bound(["old", "new", "count"], 2)
      return try replaced(
        text, try string(given[0]!, "replace()"), try string(given[1]!, "replace()"),
        try given[2].map { try integer($0, "replace()") } ?? -1)
    case "join":
      let parts = try elements(try bound(["iterable"], 1)[0]!).map { try string($0, "join()") }
      return try joined(parts, text)
    case "count", "find", "rfind", "index", "rindex":
      let given = try bound(["sub", "start", "end"], 1)
      if given[1] != nil || given[2] != nil { throw ChatTemplateError(.unsupported, "\(name)() with positions") }
      let part = try string(given[0]!, "\(name)()")
      if name == "count" { return .int(part.utf8.isEmpty ? text.unicodeScalars.count + 1 : PythonText.offsets(of: part, in: text).count) }
      let offset = name.hasPrefix("r") ? PythonText.lastOffset(of: part, in: text) : PythonText.firstOffset(of: part, in: text)
      guard let offset else {
        if name.hasSuffix("find") { return .int(-1) }
        throw ChatTemplateError(.evaluation, "\(name)() of a part that isn't in the string")
      }
      return .int(PythonText.slice(text, bytes: 0..<offset).unicodeScalars.count)
    case "partition", "rpartition":
      let separator = try string(try bound(["sep"], 1)[0]!, "\(name)()")
      if separator.utf8.isEmpty { throw ChatTemplateError(.evaluation, "\(name)() needs a separator that isn't empty") }
      let isLeft = name == "partition"
      guard let offset = isLeft ? PythonText.firstOffset(of: separator, in: text) : PythonText.lastOffset(of: separator, in: text) else {
        return try tuple((isLeft ? [text, "", ""] : ["", "", text]).map { .string($0) })
      }
      let before = PythonText.slice(text, bytes: 0..<offset)
      let after = PythonText.slice(text, bytes: (offset + separator.utf8.count)..<text.utf8.count)
      return try tuple([.string(before), .string(separator), .string(after)])
    case "removeprefix", "removesuffix":
      let part = try string(try bound(["part"], 1)[0]!, "\(name)()")
      let isPrefix = name == "removeprefix"
      let count = text.utf8.count - part.utf8.count
      if count < 0 || part.utf8.isEmpty { return .string(text) }
      let kept = isPrefix ? part.utf8.count..<text.utf8.count : 0..<count
      let cut = isPrefix ? 0..<part.utf8.count : count..<text.utf8.count
      let bytes = Array(text.utf8)
      return bytes[cut].elementsEqual(part.utf8) ? try made(String(decoding: bytes[kept], as: UTF8.self)) : .string(text)
    case "center", "ljust", "rjust", "zfill":
      let given = try bound(name == "zfill" ? ["width"] : ["width", "fillchar"], 1)
      let fill = name == "zfill" ? "0" : try given[1].map { try string($0, "\(name)()") } ?? " "
      if fill.unicodeScalars.count != 1 { throw ChatTemplateError(.evaluation, "\(name)() needs one character to fill with") }
      return try padded(text, try integer(given[0]!, "\(name)()"), fill, name)
    case "format": return try braceFormatted(text, arguments)
    case "casefold", "encode", "expandtabs", "format_map", "isidentifier", "isprintable", "maketrans", "translate":
      throw ChatTemplateError(.unsupported, "the method '\(name)' of a string")
    default: return .bool(PythonText.has(name, text))
    }
  }

  func replaced(_ text: String, _ old: String, _ new: String, _ limit: Int) throws -> TemplateValue {
    let old = Array(old.utf8)
    let bytes = Array(text.utf8)
    var result: [UInt8] = []
    if old.isEmpty {
      // The new text goes between all scalars, before the first and after the last.
      var inserted = 0
      for scalar in text.unicodeScalars {
        if limit < 0 || inserted < limit {
          try charge(new.utf8.count)
          result += new.utf8
          inserted += 1
        }
        result += String(scalar).utf8
      }
      if limit < 0 || inserted < limit { result += new.utf8 }
      return try made(String(decoding: result, as: UTF8.self))
    }
    var start = 0
    for offset in PythonText.offsets(of: String(decoding: old, as: UTF8.self), in: text, limit: limit) {
      try charge(new.utf8.count)
      result += bytes[start..<offset]
      result += new.utf8
      start = offset + old.count
    }
    result += bytes[start...]
    return try made(String(decoding: result, as: UTF8.self))
  }

  func joined(_ parts: [String], _ separator: String) throws -> TemplateValue {
    var result = ""
    for (index, part) in parts.enumerated() {
      try charge(4 * (part.utf8.count + separator.utf8.count))
      if index > 0 { result += separator }
      result += part
    }
    return .string(result)
  }

  func padded(_ text: String, _ width: Int, _ fill: String, _ method: String) throws -> TemplateValue {
    let count = text.unicodeScalars.count
    if width <= count { return .string(text) }
    let padding = width - count
    try charge(padding >= Int.max / 8 ? .max : 4 * padding)
    switch method {
    case "ljust": return .string(text + String(repeating: fill, count: padding))
    case "rjust": return .string(String(repeating: fill, count: padding) + text)
    case "zfill":
      let sign = text.hasPrefix("-") || text.hasPrefix("+") ? 1 : 0
      return .string(text.prefix(sign) + String(repeating: "0", count: padding) + text.dropFirst(sign))
    default:
      let left = padding / 2 + (padding & width & 1)
      return .string(String(repeating: fill, count: left) + text + String(repeating: fill, count: padding - left))
    }
  }
}

extension PythonText {
  /// `str.isalpha` and its like: whether there are scalars and all belong.
  static func has(_ test: String, _ text: String) -> Bool {
    let scalars = text.unicodeScalars
    func all(_ belongs: (Unicode.Scalar) -> Bool) -> Bool { !scalars.isEmpty && scalars.allSatisfy(belongs) }
    func isLetter(_ scalar: Unicode.Scalar) -> Bool {
      switch scalar.properties.generalCategory {
      case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: true
      default: false
      }
    }
    func isDigit(_ scalar: Unicode.Scalar) -> Bool {
      scalar.properties.numericType == .decimal || scalar.properties.numericType == .digit
    }
    switch test {
    case "isalpha": return all(isLetter)
    case "isalnum": return all { isLetter($0) || $0.properties.numericType != nil }
    case "isascii": return scalars.allSatisfy(\.isASCII)
    case "isdecimal": return all { $0.properties.numericType == .decimal }
    case "isdigit": return all(isDigit)
    case "isnumeric": return all { $0.properties.numericType != nil }
    case "isspace": return all(isSpace)
    case "islower":
      return scalars.contains(where: \.properties.isLowercase)
        && !scalars.contains { $0.properties.isUppercase || $0.properties.generalCategory == .titlecaseLetter }
    case "isupper":
      return scalars.contains(where: \.properties.isUppercase)
        && !scalars.contains { $0.properties.isLowercase || $0.properties.generalCategory == .titlecaseLetter }
    case "istitle":
      var isInWord = false
      var isCased = false
      for scalar in scalars {
        let isUpper = scalar.properties.isUppercase || scalar.properties.generalCategory == .titlecaseLetter
        if isUpper && isInWord || scalar.properties.isLowercase && !isInWord { return false }
        isInWord = isUpper || scalar.properties.isLowercase
        isCased = isCased || isInWord
      }
      return isCased
    default: return false
    }
  }
}
