/// The tests that follow `is`.
enum TemplateTests {
  private static let names: Set<String> = [
    "defined", "undefined", "none", "boolean", "true", "false", "integer", "float", "number", "string", "mapping", "iterable", "sequence",
    "callable", "sameas", "eq", "equalto", "==", "ne", "!=", "lt", "lessthan", "<", "le", "<=", "gt", "greaterthan", ">", "ge", ">=", "in",
    "odd", "even", "divisibleby", "lower", "upper", "filter", "test",
  ]

  static func check(_ name: String, line: Int?) throws {
    if names.contains(name) { return }
    if name == "escaped" { throw ChatTemplateError(.unsupported, "the test '\(name)'", line: line) }
    throw ChatTemplateError(.syntax, "no test is named '\(name)'.\(Suggestions.phrase(for: name, in: Array(names)))", line: line)
  }

  static func exists(_ name: String) -> Bool { names.contains(name) }
}

extension TemplateInterpreter {
  func test(_ name: String, _ value: TemplateValue, _ arguments: TemplateArguments) throws -> Bool {
    func argument() throws -> TemplateValue { try arguments.bound(to: ["other"], of: "the test '\(name)'", required: 1)[0]! }
    switch name {
    case "defined": return !value.isUndefined
    case "undefined": return value.isUndefined
    case "none": if case .none = value { return true }
    case "boolean": if case .bool = value { return true }
    case "true": if case .bool(true) = value { return true }
    case "false": if case .bool(false) = value { return true }
    case "integer": if case .int = value { return true }
    case "float": if case .float = value { return true }
    case "number": return value.real != nil
    case "string": if case .string = value { return true }
    case "mapping": if case .dict = value { return true }
    case "callable": if case .callable = value { return true }
    case "iterable":
      switch value {
      case .undefined, .string, .list, .tuple, .dict, .range, .iterator, .loop: return true
      default: return false
      }
    case "sequence":
      switch value {
      case .undefined, .string, .list, .tuple, .dict, .range: return true
      default: return false
      }
    case "sameas": return try isSame(value, try argument())
    case "eq", "equalto", "==": return try equal(value, try argument())
    case "ne", "!=": return !(try equal(value, try argument()))
    case "lt", "lessthan", "<": return try value.isLess(than: try argument())
    case "gt", "greaterthan", ">": return try argument().isLess(than: value)
    case "le", "<=": return try isAtMost(value, try argument())
    case "ge", ">=": return try isAtMost(try argument(), value)
    case "in": return try contains(try argument(), value)
    case "odd", "even":
      let number = try integer(value, "the test '\(name)'")
      return (number & 1 == 1) == (name == "odd")
    case "divisibleby":
      let divisor = try integer(try argument(), "the test 'divisibleby'")
      if divisor == 0 { throw ChatTemplateError(.evaluation, "division by zero") }
      if divisor == -1 { return true }
      return try integer(value, "the test 'divisibleby'") % divisor == 0
    case "lower": return PythonText.has("islower", try text(value))
    case "upper": return PythonText.has("isupper", try text(value))
    case "filter": if case .string(let name) = value { return TemplateFilters.exists(name) }
    case "test": if case .string(let name) = value { return TemplateTests.exists(name) }
    default: try TemplateTests.check(name, line: nil)
    }
    return false
  }

  /// Python's `is`. Equal small values are the same object there; containers are only themselves.
  private func isSame(_ a: TemplateValue, _ b: TemplateValue) throws -> Bool {
    switch (a, b) {
    case (.list(let x), .list(let y)), (.tuple(let x), .tuple(let y)): return x === y
    case (.dict(let x), .dict(let y)): return x === y
    case (.bool(let x), .bool(let y)): return x == y
    case (.bool, _), (_, .bool): return false
    case (.int, .float), (.float, .int): return false
    default: return try equal(a, b)
    }
  }
}
