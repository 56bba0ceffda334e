import Foundation

/// Names and their values in one scope of a template; inner scopes read outer ones, and assign only to themselves.
final class TemplateFrame {
  var values: [String: TemplateValue]
  let parent: TemplateFrame?
  init(_ parent: TemplateFrame?, _ values: [String: TemplateValue] = [:]) {
    self.parent = parent
    self.values = values
  }
}

/// Renders the statements of one template once.
///
/// A template is untrusted: `charge` counts what it does (each step, each byte and element it makes or walks), `depth` how deep it
/// recurses, and both end with an error that says so.
final class TemplateInterpreter {
  private let limits: ChatTemplate.Limits
  private let now: Date
  private var work = 0
  private var depth = 0
  private(set) var output = ""
  /// Output goes elsewhere inside macros and block assignments; the spans of `{% generation %}` count only in the template's own.
  private var captures = 0
  private(set) var generationSpans: [Range<Int>] = []
  /// What may hold itself: emptied at the end.
  private var namespaces: [TemplateNamespace] = []
  private var macroFrames: [TemplateFrame] = []

  private enum Flow { case next, breakLoop, continueLoop }

  init(limits: ChatTemplate.Limits, now: Date) {
    self.limits = limits
    self.now = now
  }

  func render(_ statements: [TemplateStatement], _ variables: [String: TemplateValue]) throws {
    let root = TemplateFrame(nil, variables)
    defer {
      // One after the other: a chain of namespaces is freed without recursion, and cycles are cut.
      for namespace in namespaces { namespace.attributes = [:] }
      for frame in macroFrames { frame.values = [:] }
    }
    _ = try run(statements, root)
  }

  // MARK: Bounds

  /// Counts work: about a byte written or looked at. Throws when the template's share is used up.
  func charge(_ amount: Int) throws {
    work &+= max(0, amount)
    if amount > limits.work || work > limits.work {
      throw ChatTemplateError(
        .limit, "the template does too much: more than \(limits.work) units of work (a loop without end, or huge values)")
    }
  }

  /// A string the template made.
  func made(_ text: String) throws -> TemplateValue {
    try charge(4 * text.utf8.count)
    return .string(text)
  }

  func checked(_ value: TemplateValue) throws -> TemplateValue {
    if value.depth > TemplateValue.maximumDepth {
      throw ChatTemplateError(.limit, "values nested more than \(TemplateValue.maximumDepth) levels deep")
    }
    if value.weight >= TemplateValue.maximumWeight {
      throw ChatTemplateError(.limit, "a value of more than \(TemplateValue.maximumWeight) parts")
    }
    return value
  }

  func list(_ elements: [TemplateValue]) throws -> TemplateValue {
    try charge(64 * elements.count)
    return try checked(.list(elements))
  }

  func tuple(_ elements: [TemplateValue]) throws -> TemplateValue {
    try charge(64 * elements.count)
    return try checked(.tuple(elements))
  }

  func dictionary(_ pairs: [(TemplateValue, TemplateValue)]) throws -> TemplateValue {
    for (key, _) in pairs { try charge(128 + key.weight + size(key)) }
    return try checked(.dict(TemplateDictionary(pairs)))
  }

  func generator(_ elements: [TemplateValue]) throws -> TemplateValue {
    try charge(64 * elements.count)
    return try checked(.iterator(TemplateIterator(.generator, elements)))
  }

  func elements(_ value: TemplateValue) throws -> [TemplateValue] {
    try charge(64 * (value.length ?? 0))
    return try value.elements()
  }

  func size(_ value: TemplateValue) -> Int { if case .string(let text) = value { text.utf8.count } else { value.weight } }

  func equal(_ a: TemplateValue, _ b: TemplateValue) throws -> Bool {
    try charge(min(size(a), size(b)))
    return a.equals(b)
  }

  private func entering<R>(_ line: Int, _ body: () throws -> R) throws -> R {
    depth += 1
    defer { depth -= 1 }
    if depth > limits.depth {
      throw ChatTemplateError(.limit, "recursion more than \(limits.depth) levels deep (a macro without end?)", line: line)
    }
    do {
      try charge(32)
      return try body()
    } catch var error as ChatTemplateError where error.line == nil {
      error.line = line
      throw error
    }
  }

  // MARK: Statements

  private func write(_ text: String) throws {
    output += text
    if output.utf8.count > limits.outputBytes {
      throw ChatTemplateError(.limit, "the output is longer than \(limits.outputBytes) bytes")
    }
  }

  /// What `body` writes, instead of writing it.
  private func capture(_ body: () throws -> Void) throws -> String {
    let outer = output
    output = ""
    captures += 1
    defer {
      captures -= 1
      output = outer
    }
    try body()
    return output
  }

  private func run(_ statements: [TemplateStatement], _ frame: TemplateFrame) throws -> Flow {
    for statement in statements {
      let flow = try entering(statement.line) { try run(statement, frame) }
      if flow != .next { return flow }
    }
    return .next
  }

  private func run(_ statement: TemplateStatement, _ frame: TemplateFrame) throws -> Flow {
    switch statement.kind {
    case .data(let text):
      try charge(text.utf8.count)
      try write(text)
    case .output(let expressions):
      for expression in expressions {
        let value = try evaluate(expression, frame)
        try write(try text(value))
      }
    case .conditional(let branches, let otherwise):
      for branch in branches where try evaluate(branch.test, frame).isTrue { return try run(branch.body, frame) }
      return try run(otherwise, frame)
    case .loop(let loop): try run(loop, frame)
    case .set(let target, let expression): try assign(target, try evaluate(expression, frame), frame)
    case .setBlock(let target, let filter, let body):
      var value = try made(try capture { _ = try run(body, TemplateFrame(frame)) })
      if let filter { value = try apply(filter, to: value, frame) }
      try assign(target, value, frame)
    case .with(let pairs, let body):
      let inner = TemplateFrame(frame)
      for (target, expression) in pairs { try assign(target, try evaluate(expression, frame), inner) }
      return try run(body, inner)
    case .macro(let macro):
      macroFrames.append(frame)
      frame.values[macro.name] = .callable(callable(macro, frame))
    case .call(let expression, let macro):
      guard case .call(let function, let call) = expression.kind else { break }
      macroFrames.append(frame)
      var arguments = try evaluate(call, frame)
      arguments.keywords.append(("caller", .callable(callable(macro, frame))))
      try write(try text(try self.call(function, arguments, frame)))
    case .filter(let filter, let body):
      let value = try made(try capture { _ = try run(body, TemplateFrame(frame)) })
      try write(try text(try apply(filter, to: value, frame)))
    case .generation(let body):
      let start = output.utf8.count
      _ = try run(body, TemplateFrame(frame))
      if captures == 0 { generationSpans.append(start..<output.utf8.count) }
    case .breakLoop: return .breakLoop
    case .continueLoop: return .continueLoop
    }
    return .next
  }

  private func run(_ statement: TemplateLoopStatement, _ frame: TemplateFrame) throws {
    var elements = try elements(try evaluate(statement.iterable, frame))
    if let condition = statement.condition {
      elements = try elements.filter { element in
        let inner = TemplateFrame(frame)
        try assign(statement.target, element, inner)
        return try evaluate(condition, inner).isTrue
      }
    }
    if elements.isEmpty {
      _ = try run(statement.otherwise, TemplateFrame(frame))
      return
    }
    let loop = TemplateLoop(elements, nesting: 0)
    for (index, element) in elements.enumerated() {
      try charge(32)
      loop.index = index
      let inner = TemplateFrame(frame, ["loop": .loop(loop)])
      try assign(statement.target, element, inner)
      if try run(statement.body, inner) == .breakLoop { break }
    }
  }

  private func assign(_ target: TemplateTarget, _ value: TemplateValue, _ frame: TemplateFrame) throws {
    switch target {
    case .name(let name): frame.values[name] = value
    case .namespace(let name, let attribute):
      guard case .namespace(let namespace) = lookUp(name, frame) else {
        throw ChatTemplateError(.evaluation, "'\(name).\(attribute)' can only be set where '\(name)' is a namespace()")
      }
      try set(attribute, value, in: namespace)
    case .tuple(let targets):
      let elements = try elements(value)
      guard elements.count == targets.count else {
        throw ChatTemplateError(.evaluation, "\(targets.count) values were expected to unpack, there are \(elements.count)")
      }
      for (target, element) in zip(targets, elements) { try assign(target, element, frame) }
    }
  }

  private func set(_ attribute: String, _ value: TemplateValue, in namespace: TemplateNamespace) throws {
    if attribute.hasPrefix("_") {
      throw ChatTemplateError(.evaluation, "a namespace takes no attribute that begins with an underscore ('\(attribute)')")
    }
    namespace.attributes[attribute] = value
  }

  // MARK: Macros

  private func callable(_ macro: TemplateMacro, _ frame: TemplateFrame) -> TemplateCallable {
    let attributes: [String: TemplateValue] = [
      "name": .string(macro.name), "arguments": .tuple(macro.parameters.map { .string($0.name) }),
      "catch_varargs": .bool(macro.readsVarargs), "catch_kwargs": .bool(macro.readsKwargs), "caller": .bool(macro.readsCaller),
    ]
    return TemplateCallable(macro.name, attributes: attributes) { [unowned self] arguments in try invoke(macro, frame, arguments) }
  }

  private func invoke(_ macro: TemplateMacro, _ definition: TemplateFrame, _ arguments: TemplateArguments) throws -> TemplateValue {
    let frame = TemplateFrame(definition)
    var given: [String: TemplateValue] = [:]
    for (parameter, value) in zip(macro.parameters, arguments.positional) { given[parameter.name] = value }
    let surplus = Array(arguments.positional.dropFirst(macro.parameters.count))
    var kwargs: [(TemplateValue, TemplateValue)] = []
    var caller: TemplateValue?
    for (name, value) in arguments.keywords {
      if macro.parameters.contains(where: { $0.name == name }) {
        if given.updateValue(value, forKey: name) != nil {
          throw ChatTemplateError(.evaluation, "the macro '\(macro.name)' got the argument '\(name)' twice")
        }
      } else if name == "caller", macro.readsCaller {
        caller = value
      } else if macro.readsKwargs {
        kwargs.append((.string(name), value))
      } else {
        throw ChatTemplateError(.evaluation, "the macro '\(macro.name)' takes no argument '\(name)'")
      }
    }
    if !surplus.isEmpty, !macro.readsVarargs {
      throw ChatTemplateError(
        .evaluation, "the macro '\(macro.name)' takes at most \(macro.parameters.count) arguments, not \(arguments.positional.count)")
    }
    if macro.readsVarargs { frame.values["varargs"] = try tuple(surplus) }
    if macro.readsKwargs { frame.values["kwargs"] = try dictionary(kwargs) }
    if macro.readsCaller, given["caller"] == nil { frame.values["caller"] = caller ?? .undefined("no caller defined") }
    for parameter in macro.parameters {
      if let value = given[parameter.name] {
        frame.values[parameter.name] = value
      } else if let expression = parameter.defaultValue {
        frame.values[parameter.name] = try evaluate(expression, frame)
      } else {
        frame.values[parameter.name] = .undefined("parameter '\(parameter.name)' was not provided")
      }
    }
    return try made(try capture { _ = try run(macro.body, frame) })
  }

  // MARK: Expressions

  private func lookUp(_ name: String, _ frame: TemplateFrame) -> TemplateValue? {
    var next: TemplateFrame? = frame
    while let frame = next {
      if let value = frame.values[name] { return value }
      next = frame.parent
    }
    return nil
  }

  func evaluate(_ expression: TemplateExpression, _ frame: TemplateFrame) throws -> TemplateValue {
    try entering(expression.line) { try value(of: expression, frame) }
  }

  private func value(of expression: TemplateExpression, _ frame: TemplateFrame) throws -> TemplateValue {
    switch expression.kind {
    case .none: return .none
    case .bool(let value): return .bool(value)
    case .int(let value): return .int(value)
    case .float(let value): return .float(value)
    case .string(let text): return .string(text)
    case .name(let name): return try lookUp(name, frame) ?? global(name)
    case .list(let elements): return try list(try elements.map { try evaluate($0, frame) })
    case .tuple(let elements): return try tuple(try elements.map { try evaluate($0, frame) })
    case .dict(let pairs): return try dictionary(try pairs.map { (try evaluate($0.0, frame), try evaluate($0.1, frame)) })
    case .attribute(let operand, let name): return try attribute(name, of: try evaluate(operand, frame))
    case .item(let operand, let index): return try item(operand, index, frame)
    case .slice: throw ChatTemplateError(.evaluation, "a slice stands only between brackets")
    case .call(let function, let call): return try self.call(function, try evaluate(call, frame), frame)
    case .filter(let operand, _, _):
      guard let operand else { throw ChatTemplateError(.evaluation, "a filter without a value") }
      return try filtered(expression, try evaluate(operand, frame), frame)
    case .test(let operand, let name, let call):
      return .bool(try test(name, try evaluate(operand, frame), try evaluate(call, frame)))
    case .not(let operand): return .bool(!(try evaluate(operand, frame).isTrue))
    case .and(let a, let b):
      let value = try evaluate(a, frame)
      return value.isTrue ? try evaluate(b, frame) : value
    case .or(let a, let b):
      let value = try evaluate(a, frame)
      return value.isTrue ? value : try evaluate(b, frame)
    case .negative(let operand): return try negated(try evaluate(operand, frame))
    case .positive(let operand):
      let value = try evaluate(operand, frame)
      if let integer = value.integer { return .int(integer) }
      guard value.real != nil else { throw ChatTemplateError(.evaluation, "unary + needs a number, not a value of type \(value.typeName)") }
      return value
    case .arithmetic(let a, let symbol, let b): return try arithmetic(try evaluate(a, frame), symbol, try evaluate(b, frame))
    case .concatenation(let parts):
      var result = ""
      for part in parts { try append(try text(try evaluate(part, frame)), to: &result) }
      return .string(result)
    case .comparison(let first, let rest):
      var left = try evaluate(first, frame)
      for (symbol, expression) in rest {
        let right = try evaluate(expression, frame)
        if !(try compare(left, symbol, right)) { return .bool(false) }
        left = right
      }
      return .bool(true)
    case .conditional(let test, let then, let otherwise):
      if try evaluate(test, frame).isTrue { return try evaluate(then, frame) }
      if let otherwise { return try evaluate(otherwise, frame) }
      return .undefined("the inline if-expression was false and has no else")
    }
  }

  private func append(_ text: String, to result: inout String) throws {
    try charge(4 * text.utf8.count)
    result += text
  }

  private func evaluate(_ call: TemplateCall, _ frame: TemplateFrame) throws -> TemplateArguments {
    var arguments = TemplateArguments()
    arguments.positional = try call.positional.map { try evaluate($0, frame) }
    for (name, expression) in call.keywords { arguments.keywords.append((name, try evaluate(expression, frame))) }
    if let expression = call.expandedPositional { arguments.positional += try elements(try evaluate(expression, frame)) }
    if let expression = call.expandedKeywords {
      let value = try evaluate(expression, frame)
      guard case .dict(let dictionary) = value else {
        throw ChatTemplateError(.evaluation, "** needs a mapping, not a value of type \(value.typeName)")
      }
      for (key, value) in dictionary.pairs {
        guard case .string(let name) = key else { throw ChatTemplateError(.evaluation, "** needs keys that are strings") }
        arguments.keywords.append((name, value))
      }
    }
    return arguments
  }

  private func call(_ function: TemplateExpression, _ arguments: TemplateArguments, _ frame: TemplateFrame) throws -> TemplateValue {
    // A method is called without making a value of it first.
    if case .attribute(let operand, let name) = function.kind {
      let value = try evaluate(operand, frame)
      if TemplateMethods.has(name, value) { return try method(name, of: value, arguments) }
      return try call(try attribute(name, of: value), arguments)
    }
    return try call(try evaluate(function, frame), arguments)
  }

  private func call(_ value: TemplateValue, _ arguments: TemplateArguments) throws -> TemplateValue {
    switch value {
    case .callable(let callable): return try callable.body(arguments)
    case .undefined(let what): throw ChatTemplateError(.evaluation, what)
    case .loop: throw ChatTemplateError(.unsupported, "calling 'loop' (recursive loops)")
    default: throw ChatTemplateError(.evaluation, "a value of type \(value.typeName) can't be called")
    }
  }

  /// The functions that transformers gives every template.
  private func global(_ name: String) throws -> TemplateValue {
    switch name {
    case "range":
      return .callable(
        TemplateCallable(name) { arguments in
          let bounds = try arguments.positional.map { value in
            guard let integer = value.integer else {
              throw ChatTemplateError(.evaluation, "range() needs integers, not a value of type \(value.typeName)")
            }
            return integer
          }
          guard (1...3).contains(bounds.count), arguments.keywords.isEmpty else {
            throw ChatTemplateError(.evaluation, "range() takes 1 to 3 integers")
          }
          let range = TemplateRange(
            start: bounds.count == 1 ? 0 : bounds[0], stop: bounds.count == 1 ? bounds[0] : bounds[1],
            step: bounds.count == 3 ? bounds[2] : 1)
          if range.step == 0 { throw ChatTemplateError(.evaluation, "range() needs a step other than 0") }
          // Far bounds would overflow sums with them.
          if bounds.contains(where: { $0.magnitude > 1 << 53 }) { throw ChatTemplateError(.limit, "range() beyond ±2⁵³") }
          // Jinja's sandbox has this bound too.
          let limit = 100_000
          let span = abs(Double(range.stop) - Double(range.start)) / abs(Double(range.step))
          if span > Double(limit), (range.step > 0) == (range.stop > range.start) {
            throw ChatTemplateError(.limit, "range() of more than \(limit) elements")
          }
          return .range(range)
        })
    case "namespace":
      return .callable(
        TemplateCallable(name) { [unowned self] arguments in
          let namespace = TemplateNamespace()
          try charge(256)
          namespaces.append(namespace)
          for (key, value) in try pairs(arguments) {
            guard case .string(let name) = key else { throw ChatTemplateError(.evaluation, "namespace() needs keys that are strings") }
            try set(name, value, in: namespace)
          }
          return .namespace(namespace)
        })
    case "dict":
      return .callable(TemplateCallable(name) { [unowned self] arguments in try dictionary(try pairs(arguments)) })
    case "raise_exception":
      return .callable(
        TemplateCallable(name) { [unowned self] arguments in
          throw ChatTemplateError(.raised, try text(arguments.positional.first ?? .string("")))
        })
    case "strftime_now":
      return .callable(
        TemplateCallable(name) { [unowned self] arguments in
          guard case .string(let format)? = arguments.positional.first ?? arguments.keywords.first?.value else {
            throw ChatTemplateError(.evaluation, "strftime_now() needs a format")
          }
          return try made(try time(format))
        })
    case "lipsum", "cycler", "joiner": throw ChatTemplateError(.unsupported, "the function '\(name)'")
    default: return .undefined("'\(name)' is undefined")
    }
  }

  private func pairs(_ arguments: TemplateArguments) throws -> [(TemplateValue, TemplateValue)] {
    var pairs: [(TemplateValue, TemplateValue)] = []
    if let first = arguments.positional.first {
      if arguments.positional.count > 1 { throw ChatTemplateError(.evaluation, "dict() takes at most one argument without name") }
      if case .dict(let dictionary) = first {
        pairs = dictionary.pairs
      } else {
        pairs = try elements(first).map { element in
          let pair = try elements(element)
          guard pair.count == 2 else { throw ChatTemplateError(.evaluation, "dict() needs pairs") }
          return (pair[0], pair[1])
        }
      }
    }
    return pairs + arguments.keywords.map { (.string($0.name), $0.value) }
  }

  private func time(_ format: String) throws -> String {
    if format.isEmpty { return "" }
    guard format.utf8.count <= 1024 else { throw ChatTemplateError(.limit, "a time format of more than 1024 bytes") }
    var seconds = time_t(now.timeIntervalSince1970.rounded(.down))
    var parts = tm()
    localtime_r(&seconds, &parts)
    var buffer = [CChar](repeating: 0, count: 64 * 1024)
    let count = strftime(&buffer, buffer.count, format, &parts)
    return String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  // MARK: Attributes and items

  func attribute(_ name: String, of value: TemplateValue) throws -> TemplateValue {
    switch value {
    case .undefined(let what): throw ChatTemplateError(.evaluation, what)
    case .namespace(let namespace):
      return namespace.attributes[name] ?? .undefined("the namespace has no attribute '\(name)'")
    case .loop(let loop): return try attribute(name, of: loop)
    case .callable(let callable):
      return callable.attributes[name] ?? .undefined("the function '\(callable.name)' has no attribute '\(name)'")
    case .range(let range):
      switch name {
      case "start": return .int(range.start)
      case "stop": return .int(range.stop)
      case "step": return .int(range.step)
      default: break
      }
    default: break
    }
    if TemplateMethods.has(name, value) {
      return .callable(TemplateCallable(name) { [unowned self] in try method(name, of: value, $0) })
    }
    if case .dict(let dictionary) = value, let member = dictionary[name] { return member }
    return missing(name, in: value)
  }

  private func missing(_ name: String, in value: TemplateValue) -> TemplateValue {
    if case .none = value { return .undefined("'None' has no attribute '\(name)'") }
    return .undefined("'\(value.typeName) object' has no attribute '\(name)'")
  }

  private func attribute(_ name: String, of loop: TemplateLoop) throws -> TemplateValue {
    let index = loop.index
    let count = loop.elements.count
    switch name {
    case "index": return .int(index + 1)
    case "index0": return .int(index)
    case "revindex": return .int(count - index)
    case "revindex0": return .int(count - index - 1)
    case "first": return .bool(index == 0)
    case "last": return .bool(index == count - 1)
    case "length": return .int(count)
    case "depth": return .int(loop.nesting + 1)
    case "depth0": return .int(loop.nesting)
    case "previtem": return index > 0 ? loop.elements[index - 1] : .undefined("there is no previous item")
    case "nextitem": return index + 1 < count ? loop.elements[index + 1] : .undefined("there is no next item")
    case "cycle":
      return .callable(
        TemplateCallable(name) { arguments in
          guard !arguments.positional.isEmpty else { throw ChatTemplateError(.evaluation, "loop.cycle() needs items") }
          return arguments.positional[index % arguments.positional.count]
        })
    case "changed":
      return .callable(
        TemplateCallable(name) { [unowned self] arguments in
          let isSame =
            try loop.last.map { last in
              try last.count == arguments.positional.count && zip(last, arguments.positional).allSatisfy { try equal($0, $1) }
            } ?? false
          loop.last = arguments.positional
          return .bool(!isSame)
        })
    default: return .undefined("'loop' has no attribute '\(name)'")
    }
  }

  private func item(_ operand: TemplateExpression, _ index: TemplateExpression, _ frame: TemplateFrame) throws -> TemplateValue {
    let value = try evaluate(operand, frame)
    if case .slice(let start, let stop, let step) = index.kind {
      func bound(_ expression: TemplateExpression?) throws -> Int? {
        guard let expression else { return nil }
        let bound = try evaluate(expression, frame)
        if case .none = bound { return nil }
        guard let integer = bound.integer else {
          throw ChatTemplateError(.evaluation, "a slice needs integers, not a value of type \(bound.typeName)")
        }
        return integer
      }
      return try slice(value, try bound(start), try bound(stop), try bound(step) ?? 1)
    }
    return try item(try evaluate(index, frame), of: value)
  }

  /// `value[index]`, as Jinja looks it up: an item, else an attribute of that name, else undefined.
  func item(_ index: TemplateValue, of value: TemplateValue) throws -> TemplateValue {
    if case .undefined(let what) = value { throw ChatTemplateError(.evaluation, what) }
    if case .dict(let dictionary) = value {
      try charge(size(index))
      // A key that can't be hashed is only missing.
      if let member = try? dictionary.value(for: index) { return member }
    }
    if let position = index.integer {
      func at(_ count: Int) -> Int? {
        let place = position < 0 ? position + count : position
        return place >= 0 && place < count ? place : nil
      }
      switch value {
      case .list(let sequence), .tuple(let sequence):
        if let place = at(sequence.elements.count) { return sequence.elements[place] }
      case .range(let range):
        if let place = at(range.count) { return .int(range[place]) }
      case .string(let text):
        try charge(text.utf8.count)
        let scalars = text.unicodeScalars
        if let place = at(scalars.count) { return .string(String(scalars[scalars.index(scalars.startIndex, offsetBy: place)])) }
      default: break
      }
      return .undefined("'\(value.typeName) object' has no element \(position)")
    }
    if case .string(let name) = index {
      switch value {
      case .dict:
        if TemplateMethods.has(name, value) { return try attribute(name, of: value) }
        return missing(name, in: value)
      default: return try attribute(name, of: value)
      }
    }
    return .undefined("'\(value.typeName) object' has no such element")
  }

  private func slice(_ value: TemplateValue, _ start: Int?, _ stop: Int?, _ step: Int) throws -> TemplateValue {
    if step == 0 { throw ChatTemplateError(.evaluation, "a slice needs a step other than 0") }
    func bounds(_ count: Int) -> (from: Int, to: Int) {
      func clamped(_ bound: Int, _ low: Int, _ high: Int) -> Int { min(max(bound < 0 ? bound + count : bound, low), high) }
      if step > 0 { return (start.map { clamped($0, 0, count) } ?? 0, stop.map { clamped($0, 0, count) } ?? count) }
      return (start.map { clamped($0, -1, count - 1) } ?? count - 1, stop.map { clamped($0, -1, count - 1) } ?? -1)
    }
    func indices(_ count: Int) -> StrideTo<Int> {
      let (from, to) = bounds(count)
      return Swift.stride(from: from, to: to, by: step)
    }
    switch value {
    case .undefined(let what): throw ChatTemplateError(.evaluation, what)
    case .string(let text):
      try charge(8 * text.utf8.count)
      let scalars = Array(text.unicodeScalars)
      var result = String.UnicodeScalarView()
      for index in indices(scalars.count) { result.append(scalars[index]) }
      return try made(String(result))
    case .list(let sequence):
      try charge(64 * sequence.elements.count)
      return try list(indices(sequence.elements.count).map { sequence.elements[$0] })
    case .tuple(let sequence):
      try charge(64 * sequence.elements.count)
      return try tuple(indices(sequence.elements.count).map { sequence.elements[$0] })
    case .range(let range):
      let (from, to) = bounds(range.count)
      let step = range.step.multipliedReportingOverflow(by: step)
      if step.overflow || step.partialValue.magnitude > 1 << 53 { throw ChatTemplateError(.limit, "a slice of a range with a huge step") }
      return .range(TemplateRange(start: range[from], stop: range[to], step: step.partialValue))
    default: return .undefined("'\(value.typeName) object' can't be sliced")
    }
  }

  // MARK: Operators

  private func number(_ result: (partialValue: Int, overflow: Bool)) throws -> TemplateValue {
    if result.overflow { throw ChatTemplateError(.limit, "an integer that doesn't fit 64 bits") }
    return .int(result.partialValue)
  }

  private func negated(_ value: TemplateValue) throws -> TemplateValue {
    if let integer = value.integer { return try number(Int(0).subtractingReportingOverflow(integer)) }
    if let real = value.real { return .float(-real) }
    if case .undefined(let what) = value { throw ChatTemplateError(.evaluation, what) }
    throw ChatTemplateError(.evaluation, "unary - needs a number, not a value of type \(value.typeName)")
  }

  func arithmetic(_ a: TemplateValue, _ symbol: String, _ b: TemplateValue) throws -> TemplateValue {
    if case .undefined(let what) = a { throw ChatTemplateError(.evaluation, what) }
    if case .string(let format) = a, symbol == "%" { return try percentFormatted(format, b) }
    if case .undefined(let what) = b { throw ChatTemplateError(.evaluation, what) }
    if let x = a.integer, let y = b.integer {
      switch symbol {
      case "+": return try number(x.addingReportingOverflow(y))
      case "-": return try number(x.subtractingReportingOverflow(y))
      case "*": return try number(x.multipliedReportingOverflow(by: y))
      case "/": if y != 0 { return .float(Double(x) / Double(y)) }
      case "//", "%":
        if y != 0 {
          let quotient = x.dividedReportingOverflow(by: y)
          if quotient.overflow { return symbol == "%" ? .int(0) : try number(quotient) }
          let remainder = x % y
          let isShort = remainder != 0 && (remainder < 0) != (y < 0)
          return .int(symbol == "%" ? (isShort ? remainder + y : remainder) : (isShort ? quotient.partialValue - 1 : quotient.partialValue))
        }
      default: return try power(x, y)
      }
      throw ChatTemplateError(.evaluation, "division by zero")
    }
    if let x = a.real, let y = b.real { return .float(try real(x, symbol, y)) }
    switch (symbol, a, b) {
    case ("+", .string(let x), .string(let y)):
      try charge(4 * (x.utf8.count + y.utf8.count))
      return .string(x + y)
    case ("+", .list(let x), .list(let y)):
      try charge(64 * (x.elements.count + y.elements.count))
      return try checked(.list(x.elements + y.elements))
    case ("+", .tuple(let x), .tuple(let y)):
      try charge(64 * (x.elements.count + y.elements.count))
      return try checked(.tuple(x.elements + y.elements))
    case ("*", _, _):
      if let times = b.integer, let result = try repeated(a, times) { return result }
      if let times = a.integer, let result = try repeated(b, times) { return result }
    default: break
    }
    throw ChatTemplateError(.evaluation, "'\(symbol)' doesn't work between values of types \(a.typeName) and \(b.typeName)")
  }

  private func repeated(_ value: TemplateValue, _ times: Int) throws -> TemplateValue? {
    let times = max(0, times)
    func cost(_ size: Int, _ each: Int) throws {
      let total = size.multipliedReportingOverflow(by: times)
      let bytes = total.partialValue.multipliedReportingOverflow(by: each)
      try charge(total.overflow || bytes.overflow ? .max : bytes.partialValue)
    }
    switch value {
    case .string(let text):
      try cost(text.utf8.count, 4)
      return .string(String(repeating: text, count: times))
    case .list(let sequence):
      try cost(sequence.elements.count, 64)
      return try checked(.list(Array(repeatElement(sequence.elements, count: times).joined())))
    case .tuple(let sequence):
      try cost(sequence.elements.count, 64)
      return try checked(.tuple(Array(repeatElement(sequence.elements, count: times).joined())))
    default: return nil
    }
  }

  private func power(_ base: Int, _ exponent: Int) throws -> TemplateValue {
    if exponent < 0 {
      if base == 0 { throw ChatTemplateError(.evaluation, "0 can't be raised to a negative power") }
      return .float(pow(Double(base), Double(exponent)))
    }
    var result = 1
    var factor = base
    var rest = exponent
    while rest > 0 {
      if rest & 1 == 1 {
        let product = result.multipliedReportingOverflow(by: factor)
        if product.overflow { return try number(product) }
        result = product.partialValue
      }
      rest >>= 1
      if rest > 0 {
        let square = factor.multipliedReportingOverflow(by: factor)
        if square.overflow { return try number(square) }
        factor = square.partialValue
      }
    }
    return .int(result)
  }

  private func real(_ x: Double, _ symbol: String, _ y: Double) throws -> Double {
    switch symbol {
    case "+": return x + y
    case "-": return x - y
    case "*": return x * y
    case "**":
      let result = pow(x, y)
      if result.isNaN, !x.isNaN, !y.isNaN { throw ChatTemplateError(.unsupported, "a power that is a complex number") }
      if result.isInfinite, x.isFinite, y.isFinite { throw ChatTemplateError(.evaluation, "a power out of range") }
      return result
    default:
      if y == 0 { throw ChatTemplateError(.evaluation, "division by zero") }
      if symbol == "/" { return x / y }
      var remainder = fmod(x, y)
      if remainder != 0, (remainder < 0) != (y < 0) { remainder += y }
      if symbol == "%" { return remainder == 0 ? (y < 0 ? -0.0 : 0.0) : remainder }
      return ((x - remainder) / y).rounded()
    }
  }

  private func compare(_ a: TemplateValue, _ symbol: String, _ b: TemplateValue) throws -> Bool {
    try charge(min(size(a), size(b)))
    switch symbol {
    case "==": return a.equals(b)
    case "!=": return !a.equals(b)
    case "<": return try a.isLess(than: b)
    case ">": return try b.isLess(than: a)
    case "<=": return try isAtMost(a, b)
    case ">=": return try isAtMost(b, a)
    case "in": return try contains(b, a)
    default: return !(try contains(b, a))
    }
  }

  func isAtMost(_ a: TemplateValue, _ b: TemplateValue) throws -> Bool {
    if let x = a.real, let y = b.real, x.isNaN || y.isNaN { return false }
    return !(try b.isLess(than: a))
  }

  func contains(_ container: TemplateValue, _ element: TemplateValue) throws -> Bool {
    if case .dict = container { try charge(size(element)) } else { try charge(size(container)) }
    if case .iterator = container { return try elements(container).contains { try equal($0, element) } }
    return try container.contains(element)
  }

  // MARK: Filters

  private func apply(_ expression: TemplateExpression, to value: TemplateValue, _ frame: TemplateFrame) throws -> TemplateValue {
    guard case .filter(let operand, _, _) = expression.kind else { return value }
    let inner = try operand.map { try apply($0, to: value, frame) } ?? value
    return try entering(expression.line) { try filtered(expression, inner, frame) }
  }

  private func filtered(_ expression: TemplateExpression, _ value: TemplateValue, _ frame: TemplateFrame) throws -> TemplateValue {
    guard case .filter(_, let name, let call) = expression.kind else { return value }
    return try filter(name, value, try evaluate(call, frame))
  }
}
