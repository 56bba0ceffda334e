/// An expression of a template. `depth` bounds how deep evaluating it recurses.
struct TemplateExpression: Sendable {
  indirect enum Kind: Sendable {
    case none
    case bool(Bool)
    case int(Int)
    case float(Double)
    case string(String)
    case name(String)
    case list([TemplateExpression])
    case tuple([TemplateExpression])
    case dict([(TemplateExpression, TemplateExpression)])
    case attribute(TemplateExpression, String)
    case item(TemplateExpression, TemplateExpression)
    case slice(TemplateExpression?, TemplateExpression?, TemplateExpression?)
    case call(TemplateExpression, TemplateCall)
    /// Without an operand for the filter of a block.
    case filter(TemplateExpression?, String, TemplateCall)
    case test(TemplateExpression, String, TemplateCall)
    case not(TemplateExpression)
    case and(TemplateExpression, TemplateExpression)
    case or(TemplateExpression, TemplateExpression)
    case negative(TemplateExpression)
    case positive(TemplateExpression)
    case arithmetic(TemplateExpression, String, TemplateExpression)
    case concatenation([TemplateExpression])
    case comparison(TemplateExpression, [(String, TemplateExpression)])
    case conditional(test: TemplateExpression, then: TemplateExpression, otherwise: TemplateExpression?)
  }
  let kind: Kind
  let line: Int
  let depth: Int
}

struct TemplateCall: Sendable {
  var positional: [TemplateExpression] = []
  var keywords: [(name: String, value: TemplateExpression)] = []
  var expandedPositional: TemplateExpression?
  var expandedKeywords: TemplateExpression?

  var depth: Int {
    max(
      positional.lazy.map(\.depth).max() ?? 0, keywords.lazy.map(\.value.depth).max() ?? 0, expandedPositional?.depth ?? 0,
      expandedKeywords?.depth ?? 0)
  }
}

indirect enum TemplateTarget: Sendable {
  case name(String)
  case namespace(String, String)
  case tuple([TemplateTarget])
}

struct TemplateStatement: Sendable {
  indirect enum Kind: Sendable {
    case data(String)
    case output([TemplateExpression])
    case conditional([(test: TemplateExpression, body: [TemplateStatement])], otherwise: [TemplateStatement])
    case loop(TemplateLoopStatement)
    case set(TemplateTarget, TemplateExpression)
    case setBlock(TemplateTarget, filter: TemplateExpression?, body: [TemplateStatement])
    case with([(TemplateTarget, TemplateExpression)], body: [TemplateStatement])
    case macro(TemplateMacro)
    case call(TemplateExpression, TemplateMacro)
    case filter(TemplateExpression, body: [TemplateStatement])
    case generation(body: [TemplateStatement])
    case breakLoop
    case continueLoop
  }
  let kind: Kind
  let line: Int
}

struct TemplateLoopStatement: Sendable {
  let target: TemplateTarget
  let iterable: TemplateExpression
  let condition: TemplateExpression?
  let body: [TemplateStatement]
  let otherwise: [TemplateStatement]
}

struct TemplateMacro: Sendable {
  let name: String
  let parameters: [(name: String, defaultValue: TemplateExpression?)]
  let body: [TemplateStatement]
  /// Whether the body reads these names, which makes Jinja accept what they collect.
  let readsVarargs: Bool
  let readsKwargs: Bool
  let readsCaller: Bool
}
