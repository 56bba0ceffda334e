import Foundation

/// A value while a template is rendered: the Python types that a Jinja template can see.
///
/// Strings are sequences of Unicode scalars, as Python's are: nothing here counts or compares Swift's characters.
indirect enum TemplateValue {
  /// Jinja's `Undefined`; the text says what is missing.
  case undefined(String)
  case none
  case bool(Bool)
  case int(Int)
  case float(Double)
  case string(String)
  case list(TemplateSequence)
  case tuple(TemplateSequence)
  case dict(TemplateDictionary)
  case range(TemplateRange)
  /// What Python's generators and `dict.items()` give: can be iterated, but not indexed.
  case iterator(TemplateIterator)
  case namespace(TemplateNamespace)
  case loop(TemplateLoop)
  case callable(TemplateCallable)
}

/// Elements that never change. `depth` bounds how deep values nest, so that walking and freeing them can't exhaust the stack.
final class TemplateSequence {
  let elements: [TemplateValue]
  let depth: Int
  let weight: Int
  init(_ elements: [TemplateValue]) {
    self.elements = elements
    (depth, weight) = TemplateValue.extent(elements)
  }
}

/// A dictionary in the order of insertion, with Python's equality of keys (`1 == 1.0 == True`).
final class TemplateDictionary {
  let keys: [TemplateValue]
  let values: [TemplateValue]
  private let positions: [TemplateKey: Int]
  let depth: Int
  let weight: Int

  /// Later pairs replace equal earlier ones, in the earlier one's place. Throws for a key that Python can't hash.
  init(_ pairs: [(TemplateValue, TemplateValue)]) throws {
    var keys: [TemplateValue] = []
    var values: [TemplateValue] = []
    var positions: [TemplateKey: Int] = [:]
    for (key, value) in pairs {
      let hashed = try TemplateKey(key)
      if let position = positions[hashed] {
        values[position] = value
      } else {
        positions[hashed] = keys.count
        keys.append(key)
        values.append(value)
      }
    }
    self.keys = keys
    self.values = values
    self.positions = positions
    let (keyDepth, keyWeight) = TemplateValue.extent(keys)
    let (valueDepth, valueWeight) = TemplateValue.extent(values)
    depth = max(keyDepth, valueDepth)
    weight = min(keyWeight + valueWeight, TemplateValue.maximumWeight)
  }

  var count: Int { keys.count }
  var pairs: [(TemplateValue, TemplateValue)] { Array(zip(keys, values)) }
  subscript(key: String) -> TemplateValue? { positions[.string(ExactString(key))].map { values[$0] } }
  func value(for key: TemplateValue) throws -> TemplateValue? { try positions[TemplateKey(key)].map { values[$0] } }
}

/// A string whose equality is that of its scalars. Swift's own `==` calls differently composed characters equal.
struct ExactString: Hashable {
  let text: String
  init(_ text: String) { self.text = text }
  static func == (a: ExactString, b: ExactString) -> Bool { sameScalars(a.text, b.text) }
  func hash(into hasher: inout Hasher) {
    var text = text
    text.withUTF8 { hasher.combine(bytes: UnsafeRawBufferPointer($0)) }
  }
}

func sameScalars(_ a: String, _ b: String) -> Bool {
  var a = a
  var b = b
  return a.withUTF8 { x in b.withUTF8 { y in x.count == y.count && (x.isEmpty || memcmp(x.baseAddress!, y.baseAddress!, x.count) == 0) } }
}

indirect enum TemplateKey: Hashable {
  case none
  case int(Int)
  case float(Double)
  case string(ExactString)
  case tuple([TemplateKey])

  init(_ value: TemplateValue) throws {
    switch value {
    case .none: self = .none
    case .bool(let value): self = .int(value ? 1 : 0)
    case .int(let value): self = .int(value)
    case .float(let value): self = Int(exactly: value).map { .int($0) } ?? .float(value)
    case .string(let value): self = .string(ExactString(value))
    case .tuple(let sequence): self = .tuple(try sequence.elements.map { try TemplateKey($0) })
    default: throw ChatTemplateError(.evaluation, "a value of type \(value.typeName) can't be a key")
    }
  }
}

struct TemplateRange {
  let start: Int
  let stop: Int
  let step: Int
  var count: Int {
    if step > 0 { return start < stop ? (stop - start - 1) / step + 1 : 0 }
    return start > stop ? (start - stop - 1) / -step + 1 : 0
  }
  subscript(index: Int) -> Int { start + index * step }
}

/// A generator (one pass, always true) or a view of a dictionary (any number of passes, has a length).
final class TemplateIterator {
  enum Kind { case generator, view(String) }
  let kind: Kind
  let depth: Int
  let weight: Int
  private var elements: [TemplateValue]
  init(_ kind: Kind, _ elements: [TemplateValue]) {
    self.kind = kind
    self.elements = elements
    (depth, weight) = TemplateValue.extent(elements)
  }
  var isView: Bool { if case .view = kind { true } else { false } }
  var remaining: [TemplateValue] { elements }
  func take() -> [TemplateValue] {
    if isView { return elements }
    defer { elements = [] }
    return elements
  }
  func takeFirst() -> TemplateValue? { elements.isEmpty ? nil : isView ? elements[0] : elements.removeFirst() }
}

/// What `namespace()` makes: the one thing that a template can change.
final class TemplateNamespace {
  var attributes: [String: TemplateValue] = [:]
}

/// The variable `loop` of a `for`.
final class TemplateLoop {
  let elements: [TemplateValue]
  let nesting: Int
  var index = 0
  /// What `loop.changed` was last called with.
  var last: [TemplateValue]?
  init(_ elements: [TemplateValue], nesting: Int) {
    self.elements = elements
    self.nesting = nesting
  }
}

/// The arguments of a call.
struct TemplateArguments {
  var positional: [TemplateValue] = []
  var keywords: [(name: String, value: TemplateValue)] = []
}

final class TemplateCallable {
  let name: String
  let attributes: [String: TemplateValue]
  let body: (TemplateArguments) throws -> TemplateValue
  init(_ name: String, attributes: [String: TemplateValue] = [:], _ body: @escaping (TemplateArguments) throws -> TemplateValue) {
    self.name = name
    self.attributes = attributes
    self.body = body
  }
}

extension TemplateValue {
  static func list(_ elements: [TemplateValue]) -> TemplateValue { .list(TemplateSequence(elements)) }
  static func tuple(_ elements: [TemplateValue]) -> TemplateValue { .tuple(TemplateSequence(elements)) }

  init(_ json: JSONValue) throws {
    switch json {
    case .null: self = .none
    case .bool(let value): self = .bool(value)
    case .integer(let value): self = .int(value)
    case .number(let value): self = .float(value)
    case .string(let value): self = .string(value)
    case .array(let elements): self = .list(try elements.map { try TemplateValue($0) })
    case .object(let object):
      self = .dict(try TemplateDictionary(object.pairs.map { (.string($0.key), try TemplateValue($0.value)) }))
    }
  }

  /// How deep containers nest below this value. Namespaces count as nothing: they may hold themselves.
  var depth: Int {
    switch self {
    case .list(let sequence), .tuple(let sequence): sequence.depth
    case .dict(let dictionary): dictionary.depth
    case .iterator(let iterator): iterator.depth
    default: 0
    }
  }

  /// How many values a walk over this one meets, shared parts counted as often as they are met; at most `maximumWeight`.
  var weight: Int {
    switch self {
    case .list(let sequence), .tuple(let sequence): sequence.weight
    case .dict(let dictionary): dictionary.weight
    case .iterator(let iterator): iterator.weight
    default: 1
    }
  }

  static let maximumDepth = 200
  static let maximumWeight = 1 << 24

  static func extent(_ elements: [TemplateValue]) -> (depth: Int, weight: Int) {
    var depth = 0
    var weight = 1
    for element in elements {
      depth = max(depth, element.depth)
      weight = min(weight + element.weight, maximumWeight)
    }
    return (depth + 1, weight)
  }

  /// Python's name of the type, for messages.
  var typeName: String {
    switch self {
    case .undefined: "Undefined"
    case .none: "None"
    case .bool: "bool"
    case .int: "int"
    case .float: "float"
    case .string: "str"
    case .list: "list"
    case .tuple: "tuple"
    case .dict: "dict"
    case .range: "range"
    case .iterator(let iterator): if case .view(let name) = iterator.kind { name } else { "generator" }
    case .namespace: "namespace"
    case .loop: "loop"
    case .callable: "function"
    }
  }

  var isUndefined: Bool { if case .undefined = self { true } else { false } }

  var isTrue: Bool {
    switch self {
    case .undefined, .none: false
    case .bool(let value): value
    case .int(let value): value != 0
    case .float(let value): value != 0
    case .string(let value): !value.utf8.isEmpty
    case .list(let sequence), .tuple(let sequence): !sequence.elements.isEmpty
    case .dict(let dictionary): dictionary.count > 0
    case .range(let range): range.count > 0
    case .iterator(let iterator): !iterator.isView || !iterator.remaining.isEmpty
    case .namespace, .loop, .callable: true
    }
  }

  /// The number as Python's arithmetic sees it; booleans are numbers.
  var integer: Int? {
    switch self {
    case .bool(let value): value ? 1 : 0
    case .int(let value): value
    default: nil
    }
  }

  var real: Double? {
    switch self {
    case .bool(let value): value ? 1 : 0
    case .int(let value): Double(value)
    case .float(let value): value
    default: nil
    }
  }

  /// The elements that iterating gives. Throws for what can't be iterated.
  func elements() throws -> [TemplateValue] {
    switch self {
    case .undefined: []
    case .string(let text): text.unicodeScalars.map { .string(String($0)) }
    case .list(let sequence), .tuple(let sequence): sequence.elements
    case .dict(let dictionary): dictionary.keys
    case .range(let range): (0..<range.count).map { .int(range[$0]) }
    case .iterator(let iterator): iterator.take()
    default: throw ChatTemplateError(.evaluation, "a value of type \(typeName) can't be iterated")
    }
  }

  /// What `len` gives; nil for values without a length.
  var length: Int? {
    switch self {
    case .undefined: 0
    case .string(let text): text.unicodeScalars.count
    case .list(let sequence), .tuple(let sequence): sequence.elements.count
    case .dict(let dictionary): dictionary.count
    case .range(let range): range.count
    case .iterator(let iterator): iterator.isView ? iterator.remaining.count : nil
    case .loop(let loop): loop.elements.count
    default: nil
    }
  }

  /// Python's `==`.
  func equals(_ other: TemplateValue) -> Bool {
    switch (self, other) {
    case (.undefined, .undefined), (.none, .none): return true
    case (.string(let a), .string(let b)): return sameScalars(a, b)
    case (.list(let a), .list(let b)), (.tuple(let a), .tuple(let b)):
      return a === b || a.elements.count == b.elements.count && zip(a.elements, b.elements).allSatisfy { $0.equals($1) }
    case (.dict(let a), .dict(let b)):
      return a === b
        || a.count == b.count
          && zip(a.keys, a.values).allSatisfy { key, value in
            guard let other = try? b.value(for: key) else { return false }
            return value.equals(other)
          }
    case (.range(let a), .range(let b)):
      return a.count == b.count && (a.count == 0 || a.start == b.start && (a.count == 1 || a.step == b.step))
    case (.iterator(let a), .iterator(let b)): return a === b
    case (.namespace(let a), .namespace(let b)): return a === b
    case (.loop(let a), .loop(let b)): return a === b
    case (.callable(let a), .callable(let b)): return a === b
    default:
      if let a = integer, let b = other.integer { return a == b }
      if let a = real, let b = other.real { return a == b }
      return false
    }
  }

  /// Python's `<`. Throws for values without an order between them.
  func isLess(than other: TemplateValue) throws -> Bool {
    if let a = integer, let b = other.integer { return a < b }
    if let a = real, let b = other.real { return a < b }
    switch (self, other) {
    // The order of UTF-8 bytes is the order of scalars.
    case (.string(let a), .string(let b)): return a.utf8.lexicographicallyPrecedes(b.utf8)
    case (.list(let a), .list(let b)), (.tuple(let a), .tuple(let b)):
      for (x, y) in zip(a.elements, b.elements) where !x.equals(y) { return try x.isLess(than: y) }
      return a.elements.count < b.elements.count
    case (.undefined(let what), _), (_, .undefined(let what)): throw ChatTemplateError(.evaluation, what)
    default: throw ChatTemplateError(.evaluation, "values of types \(typeName) and \(other.typeName) have no order")
    }
  }

  /// Python's `in`, with `self` the container.
  func contains(_ element: TemplateValue) throws -> Bool {
    switch self {
    case .string(let text):
      guard case .string(let part) = element else {
        throw ChatTemplateError(.evaluation, "'in' a string needs a string, not a value of type \(element.typeName)")
      }
      return PythonText.firstOffset(of: part, in: text) != nil
    case .dict(let dictionary): return try dictionary.value(for: element) != nil
    case .range(let range):
      guard let value = element.real, let wanted = Int(exactly: value), range.count > 0 else { return false }
      let low = min(range.start, range[range.count - 1])
      let high = max(range.start, range[range.count - 1])
      return wanted >= low && wanted <= high && (wanted - range.start) % range.step == 0
    default: return try elements().contains { $0.equals(element) }
    }
  }
}
