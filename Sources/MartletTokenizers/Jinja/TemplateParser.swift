/// Builds the statements of a template from its tokens, by Jinja's grammar and precedences.
struct TemplateParser {
  /// Bounds the recursion of this parser and of evaluation.
  static let maximumDepth = 120

  private let tokens: [TemplateToken]
  private var position = 0
  private var nesting = 0
  private var loops = 0
  /// > 0 inside `if`: there an unknown filter is an error only if it is reached, as in Jinja.
  private var conditionals = 0
  private var namesRead: Set<String> = []

  static func parse(_ text: String) throws -> [TemplateStatement] {
    var parser = TemplateParser(tokens: try TemplateLexer.tokens(of: text))
    let body = try parser.statements(until: [])
    return body
  }

  private init(tokens: [TemplateToken]) { self.tokens = tokens }

  // MARK: Tokens

  private var current: TemplateToken { tokens[position] }
  private var line: Int { current.line }
  private func lookAhead() -> TemplateToken { tokens[min(position + 1, tokens.count - 1)] }
  private mutating func advance() { if position < tokens.count - 1 { position += 1 } }

  private func isName(_ name: String) -> Bool { current.kind == .name(name) }
  private func isSymbol(_ symbol: String) -> Bool { current.kind == .symbol(symbol) }

  private mutating func skip(name: String) -> Bool {
    guard isName(name) else { return false }
    advance()
    return true
  }

  private mutating func skip(symbol: String) -> Bool {
    guard isSymbol(symbol) else { return false }
    advance()
    return true
  }

  private func failure(_ message: String, line: Int? = nil) -> ChatTemplateError {
    ChatTemplateError(.syntax, message, line: line ?? self.line)
  }

  private mutating func expect(_ symbol: String) throws {
    if !skip(symbol: symbol) { throw failure("'\(symbol)' was expected, not '\(current.description)'") }
  }

  private mutating func expectName(_ name: String) throws {
    if !skip(name: name) { throw failure("'\(name)' was expected, not '\(current.description)'") }
  }

  private mutating func anyName() throws -> String {
    guard case .name(let name) = current.kind else { throw failure("a name was expected, not '\(current.description)'") }
    advance()
    return name
  }

  private mutating func endOfBlock() throws {
    guard current.kind == .blockEnd else { throw failure("'%}' was expected, not '\(current.description)'") }
    advance()
  }

  private mutating func nested<R>(_ body: (inout TemplateParser) throws -> R) throws -> R {
    nesting += 1
    defer { nesting -= 1 }
    if nesting > Self.maximumDepth { throw ChatTemplateError(.limit, "nested more than \(Self.maximumDepth) levels deep", line: line) }
    return try body(&self)
  }

  // MARK: Statements

  /// Statements up to a block whose name is in `ends`; stops at that name.
  private mutating func statements(until ends: [String]) throws -> [TemplateStatement] {
    try nested { parser in
      var result: [TemplateStatement] = []
      while true {
        let line = parser.line
        switch parser.current.kind {
        case .data(let text):
          result.append(TemplateStatement(kind: .data(text), line: line))
          parser.advance()
        case .variableBegin:
          parser.advance()
          let expression = try parser.tuple()
          guard parser.current.kind == .variableEnd else {
            throw parser.failure("'}}' was expected, not '\(parser.current.description)'")
          }
          parser.advance()
          result.append(TemplateStatement(kind: .output([expression]), line: line))
        case .blockBegin:
          parser.advance()
          guard case .name(let name) = parser.current.kind else {
            throw parser.failure("the name of a tag was expected, not '\(parser.current.description)'")
          }
          if ends.contains(name) { return result }
          if let kind = try parser.statement(name) { result.append(TemplateStatement(kind: kind, line: line)) }
          try parser.endOfBlock()
        case .end:
          if ends.isEmpty { return result }
          throw parser.failure("the template ends where \(ends.map { "{% \($0) %}" }.joined(separator: " or ")) was expected")
        default: throw parser.failure("'\(parser.current.description)' was not expected")
        }
      }
    }
  }

  /// The body of a block after its head, up to one of `ends`.
  private mutating func body(until ends: String...) throws -> [TemplateStatement] {
    _ = skip(symbol: ":")
    try endOfBlock()
    return try statements(until: ends)
  }

  private mutating func statement(_ name: String) throws -> TemplateStatement.Kind? {
    let line = line
    advance()
    switch name {
    case "if": return try conditional()
    case "for": return try loop()
    case "set": return try assignment()
    case "macro":
      let name = try anyName()
      let parameters = try signature()
      return .macro(try macro(name, parameters, end: "endmacro"))
    case "call":
      let parameters = isSymbol("(") ? try signature() : []
      let call = try expression()
      guard case .call = call.kind else { throw failure("a call was expected", line: line) }
      return .call(call, try macro("caller", parameters, end: "endcall"))
    case "filter":
      let filter = try filterChain()
      let body = try body(until: "endfilter")
      advance()
      return .filter(filter, body: body)
    case "with": return try with()
    case "generation":
      let body = try body(until: "endgeneration")
      advance()
      return .generation(body: body)
    case "print":
      var values: [TemplateExpression] = []
      while current.kind != .blockEnd {
        if !values.isEmpty { try expect(",") }
        values.append(try expression())
      }
      return .output(values)
    case "break", "continue":
      if loops == 0 { throw failure("'\(name)' outside a loop", line: line) }
      return name == "break" ? .breakLoop : .continueLoop
    case "block", "extends", "include", "import", "from", "autoescape", "do", "trans", "debug":
      throw ChatTemplateError(.unsupported, "the tag '{% \(name) %}'", line: line)
    default: throw failure("unknown tag '\(name)'", line: line)
    }
  }

  private mutating func conditional() throws -> TemplateStatement.Kind {
    conditionals += 1
    defer { conditionals -= 1 }
    var branches: [(test: TemplateExpression, body: [TemplateStatement])] = []
    while true {
      let test = try tuple(withConditional: false)
      branches.append((test, try body(until: "elif", "else", "endif")))
      if skip(name: "elif") { continue }
      if skip(name: "else") {
        let otherwise = try body(until: "endif")
        advance()
        return .conditional(branches, otherwise: otherwise)
      }
      advance()
      return .conditional(branches, otherwise: [])
    }
  }

  private mutating func loop() throws -> TemplateStatement.Kind {
    let target = try target(allowsNamespace: false, end: "in")
    try expectName("in")
    let iterable = try tuple(withConditional: false, end: "recursive")
    let condition = skip(name: "if") ? try expression() : nil
    if isName("recursive") { throw ChatTemplateError(.unsupported, "'recursive' in a for loop", line: line) }
    loops += 1
    let inside = try body(until: "endfor", "else")
    loops -= 1
    var otherwise: [TemplateStatement] = []
    if skip(name: "else") { otherwise = try body(until: "endfor") }
    advance()
    return .loop(TemplateLoopStatement(target: target, iterable: iterable, condition: condition, body: inside, otherwise: otherwise))
  }

  private mutating func assignment() throws -> TemplateStatement.Kind {
    let target = try target(allowsNamespace: true, end: nil)
    if skip(symbol: "=") { return .set(target, try tuple()) }
    let filter = isSymbol("|") ? try filterChain(afterPipe: true) : nil
    let body = try body(until: "endset")
    advance()
    return .setBlock(target, filter: filter, body: body)
  }

  private mutating func with() throws -> TemplateStatement.Kind {
    var pairs: [(TemplateTarget, TemplateExpression)] = []
    while current.kind != .blockEnd {
      if !pairs.isEmpty { try expect(",") }
      let target = try target(allowsNamespace: false, end: nil, isTuple: false)
      try expect("=")
      pairs.append((target, try expression()))
    }
    let body = try body(until: "endwith")
    advance()
    return .with(pairs, body: body)
  }

  private mutating func signature() throws -> [(name: String, defaultValue: TemplateExpression?)] {
    var parameters: [(name: String, defaultValue: TemplateExpression?)] = []
    try expect("(")
    while !isSymbol(")") {
      if !parameters.isEmpty { try expect(",") }
      let name = try anyName()
      if skip(symbol: "=") {
        parameters.append((name, try expression()))
      } else {
        if parameters.last?.defaultValue != nil { throw failure("a parameter without default follows one with a default") }
        parameters.append((name, nil))
      }
    }
    try expect(")")
    return parameters
  }

  private mutating func macro(_ name: String, _ parameters: [(name: String, defaultValue: TemplateExpression?)], end: String) throws
    -> TemplateMacro
  {
    let outerNames = namesRead
    let outerLoops = loops
    namesRead = []
    loops = 0
    let inside = try body(until: end)
    advance()
    let read = namesRead
    namesRead = outerNames.union(read)
    loops = outerLoops
    return TemplateMacro(
      name: name, parameters: parameters, body: inside, readsVarargs: read.contains("varargs"), readsKwargs: read.contains("kwargs"),
      readsCaller: read.contains("caller"))
  }

  private mutating func target(allowsNamespace: Bool, end: String?, isTuple: Bool = true) throws -> TemplateTarget {
    try nested { parser in
      var targets: [TemplateTarget] = []
      var hasComma = false
      while true {
        if hasComma, parser.isTargetEnd(end) { break }
        if parser.skip(symbol: "(") {
          targets.append(try parser.target(allowsNamespace: allowsNamespace, end: nil))
          try parser.expect(")")
        } else {
          let line = parser.line
          let name = try parser.anyName()
          if ["true", "false", "none", "True", "False", "None"].contains(name) {
            throw parser.failure("can't assign to '\(name)'", line: line)
          }
          if allowsNamespace, parser.skip(symbol: ".") {
            targets.append(.namespace(name, try parser.anyName()))
          } else {
            targets.append(.name(name))
          }
        }
        guard isTuple, parser.skip(symbol: ",") else { break }
        hasComma = true
      }
      return hasComma ? .tuple(targets) : targets[0]
    }
  }

  private func isTargetEnd(_ end: String?) -> Bool {
    if let end, isName(end) { return true }
    return isSymbol("=") || isSymbol(")") || current.kind == .blockEnd
  }

  // MARK: Expressions

  private func make(_ kind: TemplateExpression.Kind, _ line: Int, below: Int...) throws -> TemplateExpression {
    let depth = 1 + (below.max() ?? 0)
    if depth > Self.maximumDepth {
      throw ChatTemplateError(.limit, "an expression nested more than \(Self.maximumDepth) levels deep", line: line)
    }
    return TemplateExpression(kind: kind, line: line, depth: depth)
  }

  private func deepest(_ expressions: [TemplateExpression]) -> Int { expressions.lazy.map(\.depth).max() ?? 0 }

  /// One expression, or a tuple of several with commas between them.
  private mutating func tuple(withConditional: Bool = true, end: String? = nil, isInParentheses: Bool = false) throws -> TemplateExpression
  {
    let line = line
    var elements: [TemplateExpression] = []
    var isTuple = false
    while true {
      if !elements.isEmpty { try expect(",") }
      if isTupleEnd(end) { break }
      elements.append(try expression(withConditional: withConditional))
      guard isSymbol(",") else { break }
      isTuple = true
    }
    if !isTuple {
      if let first = elements.first { return first }
      if !isInParentheses { throw failure("an expression was expected, not '\(current.description)'") }
    }
    return try make(.tuple(elements), line, below: deepest(elements))
  }

  private func isTupleEnd(_ end: String?) -> Bool {
    if current.kind == .variableEnd || current.kind == .blockEnd || isSymbol(")") { return true }
    return end.map { isName($0) } ?? false
  }

  private mutating func expression(withConditional: Bool = true) throws -> TemplateExpression {
    try nested { parser in
      guard withConditional else { return try parser.or() }
      var line = parser.line
      var result = try parser.or()
      while parser.skip(name: "if") {
        let test = try parser.or()
        let otherwise = parser.skip(name: "else") ? try parser.expression() : nil
        result = try parser.make(
          .conditional(test: test, then: result, otherwise: otherwise), line, below: test.depth, result.depth, otherwise?.depth ?? 0)
        line = parser.line
      }
      return result
    }
  }

  private mutating func or() throws -> TemplateExpression {
    var left = try and()
    while isName("or") {
      let line = line
      advance()
      let right = try and()
      left = try make(.or(left, right), line, below: left.depth, right.depth)
    }
    return left
  }

  private mutating func and() throws -> TemplateExpression {
    var left = try not()
    while isName("and") {
      let line = line
      advance()
      let right = try not()
      left = try make(.and(left, right), line, below: left.depth, right.depth)
    }
    return left
  }

  private mutating func not() throws -> TemplateExpression {
    let line = line
    guard skip(name: "not") else { return try comparison() }
    let operand = try nested { try $0.not() }
    return try make(.not(operand), line, below: operand.depth)
  }

  private mutating func comparison() throws -> TemplateExpression {
    let line = line
    let first = try sum()
    var rest: [(String, TemplateExpression)] = []
    while true {
      if case .symbol(let symbol) = current.kind, ["==", "!=", "<", "<=", ">", ">="].contains(symbol) {
        advance()
        rest.append((symbol, try sum()))
      } else if skip(name: "in") {
        rest.append(("in", try sum()))
      } else if isName("not"), lookAhead().kind == .name("in") {
        advance()
        advance()
        rest.append(("not in", try sum()))
      } else {
        break
      }
    }
    if rest.isEmpty { return first }
    return try make(.comparison(first, rest), line, below: first.depth, deepest(rest.map(\.1)))
  }

  private mutating func sum() throws -> TemplateExpression {
    var left = try concatenation()
    while case .symbol(let symbol) = current.kind, symbol == "+" || symbol == "-" {
      let line = line
      advance()
      let right = try concatenation()
      left = try make(.arithmetic(left, symbol, right), line, below: left.depth, right.depth)
    }
    return left
  }

  private mutating func concatenation() throws -> TemplateExpression {
    let line = line
    var parts = [try product()]
    while skip(symbol: "~") { parts.append(try product()) }
    return parts.count == 1 ? parts[0] : try make(.concatenation(parts), line, below: deepest(parts))
  }

  private mutating func product() throws -> TemplateExpression {
    var left = try power()
    while case .symbol(let symbol) = current.kind, ["*", "/", "//", "%"].contains(symbol) {
      let line = line
      advance()
      let right = try power()
      left = try make(.arithmetic(left, symbol, right), line, below: left.depth, right.depth)
    }
    return left
  }

  private mutating func power() throws -> TemplateExpression {
    var left = try unary()
    while isSymbol("**") {
      let line = line
      advance()
      let right = try unary()
      left = try make(.arithmetic(left, "**", right), line, below: left.depth, right.depth)
    }
    return left
  }

  private mutating func unary(withFilter: Bool = true) throws -> TemplateExpression {
    let line = line
    var result: TemplateExpression
    if skip(symbol: "-") {
      let operand = try nested { try $0.unary(withFilter: false) }
      result = try make(.negative(operand), line, below: operand.depth)
    } else if skip(symbol: "+") {
      let operand = try nested { try $0.unary(withFilter: false) }
      result = try make(.positive(operand), line, below: operand.depth)
    } else {
      result = try primary()
    }
    result = try postfix(result)
    return withFilter ? try filters(result) : result
  }

  private mutating func primary() throws -> TemplateExpression {
    let line = line
    switch current.kind {
    case .name(let name):
      advance()
      switch name {
      case "true", "True": return try make(.bool(true), line)
      case "false", "False": return try make(.bool(false), line)
      case "none", "None": return try make(.none, line)
      default:
        namesRead.insert(name)
        return try make(.name(name), line)
      }
    case .string(var text):
      advance()
      while case .string(let more) = current.kind {
        text += more
        advance()
      }
      return try make(.string(text), line)
    case .integer(let value):
      advance()
      return try make(.int(value), line)
    case .float(let value):
      advance()
      return try make(.float(value), line)
    case .symbol("("):
      advance()
      let result = try tuple(isInParentheses: true)
      try expect(")")
      return result
    case .symbol("["):
      advance()
      var elements: [TemplateExpression] = []
      while !isSymbol("]") {
        if !elements.isEmpty { try expect(",") }
        if isSymbol("]") { break }
        elements.append(try expression())
      }
      try expect("]")
      return try make(.list(elements), line, below: deepest(elements))
    case .symbol("{"):
      advance()
      var pairs: [(TemplateExpression, TemplateExpression)] = []
      while !isSymbol("}") {
        if !pairs.isEmpty { try expect(",") }
        if isSymbol("}") { break }
        let key = try expression()
        try expect(":")
        pairs.append((key, try expression()))
      }
      try expect("}")
      return try make(.dict(pairs), line, below: deepest(pairs.flatMap { [$0.0, $0.1] }))
    default: throw failure("'\(current.description)' was not expected")
    }
  }

  private mutating func postfix(_ operand: TemplateExpression) throws -> TemplateExpression {
    var result = operand
    while true {
      if isSymbol(".") || isSymbol("[") {
        result = try subscripted(result)
      } else if isSymbol("(") {
        result = try called(result)
      } else {
        return result
      }
    }
  }

  private mutating func called(_ operand: TemplateExpression) throws -> TemplateExpression {
    let line = line
    let call = try arguments()
    return try make(.call(operand, call), line, below: operand.depth, call.depth)
  }

  private mutating func subscripted(_ operand: TemplateExpression) throws -> TemplateExpression {
    let line = line
    if skip(symbol: ".") {
      switch current.kind {
      case .name(let name):
        advance()
        return try make(.attribute(operand, name), line, below: operand.depth)
      case .integer(let index):
        advance()
        return try make(.item(operand, make(.int(index), line)), line, below: operand.depth)
      default: throw failure("a name or number was expected after '.', not '\(current.description)'")
      }
    }
    try expect("[")
    var indices: [TemplateExpression] = []
    while !isSymbol("]") {
      if !indices.isEmpty { try expect(",") }
      indices.append(try index())
    }
    try expect("]")
    if indices.isEmpty { throw failure("an index was expected", line: line) }
    let index = indices.count == 1 ? indices[0] : try make(.tuple(indices), line, below: deepest(indices))
    return try make(.item(operand, index), line, below: operand.depth, index.depth)
  }

  private mutating func index() throws -> TemplateExpression {
    let line = line
    var bounds: [TemplateExpression?] = [nil, nil, nil]
    if !isSymbol(":") {
      let first = try expression()
      if !isSymbol(":") { return first }
      bounds[0] = first
    }
    advance()
    if !isSymbol(":"), !isSymbol("]"), !isSymbol(",") { bounds[1] = try expression() }
    if skip(symbol: ":"), !isSymbol("]"), !isSymbol(",") { bounds[2] = try expression() }
    return try make(.slice(bounds[0], bounds[1], bounds[2]), line, below: deepest(bounds.compactMap { $0 }))
  }

  private mutating func arguments() throws -> TemplateCall {
    var call = TemplateCall()
    var isFirst = true
    try expect("(")
    while !isSymbol(")") {
      if !isFirst {
        try expect(",")
        if isSymbol(")") { break }
      }
      isFirst = false
      if skip(symbol: "*") {
        if call.expandedPositional != nil || call.expandedKeywords != nil { throw failure("'*' was not expected") }
        call.expandedPositional = try expression()
      } else if skip(symbol: "**") {
        if call.expandedKeywords != nil { throw failure("'**' was not expected") }
        call.expandedKeywords = try expression()
      } else if case .name(let name) = current.kind, lookAhead().kind == .symbol("=") {
        if call.expandedKeywords != nil { throw failure("an argument after '**'") }
        advance()
        advance()
        call.keywords.append((name, try expression()))
      } else {
        if call.expandedPositional != nil || call.expandedKeywords != nil || !call.keywords.isEmpty {
          throw failure("an argument without name follows one with a name")
        }
        call.positional.append(try expression())
      }
    }
    try expect(")")
    return call
  }

  private mutating func filters(_ operand: TemplateExpression) throws -> TemplateExpression {
    var result = operand
    while true {
      if skip(symbol: "|") {
        result = try filter(result)
      } else if isName("is") {
        result = try test(result)
      } else if isSymbol("(") {
        result = try called(result)
      } else {
        return result
      }
    }
  }

  /// `name(arguments)` with further filters behind pipes, for blocks.
  private mutating func filterChain(afterPipe: Bool = false) throws -> TemplateExpression {
    if afterPipe { try expect("|") }
    var result = try filter(nil)
    while skip(symbol: "|") { result = try filter(result) }
    return result
  }

  private mutating func filter(_ operand: TemplateExpression?) throws -> TemplateExpression {
    let line = line
    let name = try dottedName()
    let call = isSymbol("(") ? try arguments() : TemplateCall()
    if conditionals == 0 { try TemplateFilters.check(name, line: line) }
    return try make(.filter(operand, name, call), line, below: operand?.depth ?? 0, call.depth)
  }

  private mutating func dottedName() throws -> String {
    var name = try anyName()
    while skip(symbol: ".") { name += "." + (try anyName()) }
    return name
  }

  private mutating func test(_ operand: TemplateExpression) throws -> TemplateExpression {
    let line = line
    advance()
    let isNegated = skip(name: "not")
    let name = try dottedName()
    var call = TemplateCall()
    if isSymbol("(") {
      call = try arguments()
    } else if startsArgument() {
      if isName("is") { throw failure("tests can't be chained with 'is'") }
      let argument = try postfix(try nested { try $0.primary() })
      call.positional = [argument]
    }
    if conditionals == 0 { try TemplateTests.check(name, line: line) }
    let test = try make(.test(operand, name, call), line, below: operand.depth, call.depth)
    return isNegated ? try make(.not(test), line, below: test.depth) : test
  }

  private func startsArgument() -> Bool {
    switch current.kind {
    case .name(let name): !["else", "or", "and"].contains(name)
    case .string, .integer, .float, .symbol("("), .symbol("["), .symbol("{"): true
    default: false
    }
  }
}
