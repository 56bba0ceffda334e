/// The options of one kind of optimizer, as a recipe states them.
public protocol OptimizerOptions: Codable, Sendable, Equatable {}

/// An optimizer read from a recipe by name, e.g. `{"name": "adamw", "learningRate": 3e-4, "beta2": 0.95}`; keys may also be
/// written in snake case. What is not stated keeps the default of the optimizer's `Options`.
///
/// Names: `sgd`, `adam`, `adamw`, `adafactor`, `lion`, `lamb`.
public struct OptimizerConfiguration: Codable, Sendable {
  public enum Rule: Sendable, Equatable {
    case sgd(SGD.Options)
    case adam(Adam.Options)
    case adamw(Adam.Options)
    case adafactor(Adafactor.Options)
    case lion(Lion.Options)
    case lamb(LAMB.Options)
  }

  public static let names = ["sgd", "adam", "adamw", "adafactor", "lion", "lamb"]

  public var rule: Rule
  public var learningRate: Double

  public init(_ rule: Rule, learningRate: Double) {
    self.rule = rule
    self.learningRate = learningRate
  }

  /// The optimizer of these groups.
  public func make(_ groups: [ParameterGroup]) -> GroupedOptimizer {
    switch rule {
    case .sgd(let options): SGD(groups, learningRate: learningRate, options)
    case .adam(let options): Adam(groups, learningRate: learningRate, options)
    case .adamw(let options): AdamW(groups, learningRate: learningRate, options)
    case .adafactor(let options): Adafactor(groups, learningRate: learningRate, options)
    case .lion(let options): Lion(groups, learningRate: learningRate, options)
    case .lamb(let options): LAMB(groups, learningRate: learningRate, options)
    }
  }

  /// - Throws: `TensorError` for unknown names and keys, naming those that exist.
  public init(from decoder: any Decoder) throws {
    var options = try NamedOptions(from: decoder, what: "optimizer")
    var rate: Double?
    if let value = options.values.removeValue(forKey: "learningRate") {
      guard case .number(let number) = value, number >= 0 else {
        throw TensorError("optimizer “\(options.name)”: “learningRate” must be a number ≥ 0")
      }
      rate = number
    }
    let usual: Double
    switch options.name {
    case "sgd": (rule, usual) = (.sgd(try options.overlaid(on: SGD.Options())), 1e-2)
    case "adam": (rule, usual) = (.adam(try options.overlaid(on: Adam.Options())), 1e-3)
    case "adamw": (rule, usual) = (.adamw(try options.overlaid(on: Adam.Options(weightDecay: 0.01))), 1e-3)
    case "adafactor": (rule, usual) = (.adafactor(try options.overlaid(on: Adafactor.Options())), 1e-2)
    case "lion": (rule, usual) = (.lion(try options.overlaid(on: Lion.Options())), 1e-4)
    case "lamb": (rule, usual) = (.lamb(try options.overlaid(on: LAMB.Options())), 1e-3)
    default: throw TensorError("unknown optimizer “\(options.name)”; there are \(Self.names.joined(separator: ", "))")
    }
    learningRate = rate ?? usual
  }

  public func encode(to encoder: any Encoder) throws {
    var named =
      switch rule {
      case .sgd(let options): try NamedOptions(name: "sgd", options)
      case .adam(let options): try NamedOptions(name: "adam", options)
      case .adamw(let options): try NamedOptions(name: "adamw", options)
      case .adafactor(let options): try NamedOptions(name: "adafactor", options)
      case .lion(let options): try NamedOptions(name: "lion", options)
      case .lamb(let options): try NamedOptions(name: "lamb", options)
      }
    named.values["learningRate"] = .number(learningRate)
    try named.encode(to: encoder)
  }
}
