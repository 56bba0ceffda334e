import Foundation

/// Everything that `martlet train` can be told, as a recipe file holds it: every key has a default, an unknown key is an error
/// that suggests the nearest.
public struct TrainingRecipe: Codable, Sendable, Equatable {
  public var task: String
  /// Mixers of the layers in turn: one, or a pattern that repeats.
  public var mixers: [MixerChoice]
  public var width: Int
  public var layers: Int
  public var heads: Int
  public var feedForward: FeedForwardKind
  public var hidden: Int?
  public var norm: NormalizationKind
  /// Steps in which norms of the kind `prepbn` slide to batch norm; their own default unless given.
  public var normSteps: Int?
  public var preNorm: Bool
  public var positions: PositionKind
  public var pooling: Pooling
  public var dropout: Double
  public var dropPath: Double
  /// Whether a classifier's mixers are causal (a token predictor's always are).
  public var causal: Bool
  public var optimizer: String
  public var learningRate: Double
  public var weightDecay: Double
  public var warmup: Double
  public var schedule: String
  public var batchSize: Int
  public var accumulation: Int
  public var clipping: Double?
  public var averageDecay: Double?
  public var autocast: Bool
  public var budget: String
  public var evaluations: Int
  public var patience: Int?
  public var checkpointInterval: Double
  public var seed: Int
  public var pretraining: ComparisonOptions.Pretraining
  public var pretrainingBudget: String?

  /// Names of the schedules that a recipe may choose.
  public static let schedules = ["cosine", "constant", "linear", "wsd", "one_cycle"]

  public init(task: String = "", mixers: [MixerChoice] = [MixerChoice("softmax")]) {
    self.task = task
    self.mixers = mixers
    width = 128
    layers = 4
    heads = 4
    feedForward = .mlp
    hidden = nil
    norm = .layer
    normSteps = nil
    preNorm = true
    positions = .sinusoidal
    pooling = .mean
    dropout = 0
    dropPath = 0
    causal = false
    optimizer = "adamw"
    learningRate = 2e-3
    weightDecay = 0.01
    warmup = 0.05
    schedule = "cosine"
    batchSize = 32
    accumulation = 1
    clipping = 1
    averageDecay = nil
    autocast = false
    budget = "5m"
    evaluations = 20
    patience = nil
    checkpointInterval = 30
    seed = 0
    pretraining = .none
    pretrainingBudget = nil
  }

  /// Reads a recipe's keys over the defaults. Throws `ConfigurationError` for an unknown key or a value of the wrong type.
  public init(_ object: JSONObject) throws {
    let encoder = JSONEncoder()
    guard case .object(var merged) = try JSONValue.parse(String(decoding: try encoder.encode(TrainingRecipe()), as: UTF8.self)) else {
      throw ConfigurationError("the defaults are no object")
    }
    let optional = ["hidden", "normSteps", "averageDecay", "patience", "pretrainingBudget"]
    let known = merged.keys + optional
    for (key, value) in object.pairs {
      guard known.contains(key) else {
        throw ConfigurationError("a recipe has no key \"\(key)\".\(Suggestions.phrase(for: key, in: known))")
      }
      if key == "mixers" || key == "mixer" {
        let texts = value.stringValue.map { [$0] } ?? value.arrayValue?.compactMap(\.stringValue) ?? []
        let choices = try texts.map { try MixerChoice(parsing: $0) }
        merged["mixers"] = try JSONValue.parse(String(decoding: try encoder.encode(choices), as: UTF8.self))
      } else if key == "budget", let steps = value.intValue {
        merged[key] = .string("\(steps)steps")
      } else {
        merged[key] = value
      }
    }
    do {
      self = try JSONDecoder().decode(TrainingRecipe.self, from: Data(JSONValue.object(merged).serialized().utf8))
    } catch let DecodingError.typeMismatch(type, context) {
      throw ConfigurationError(
        "the recipe's \(context.codingPath.map(\.stringValue).joined(separator: ".")) must be of type \(type): \(context.debugDescription)")
    } catch let DecodingError.dataCorrupted(context) {
      throw ConfigurationError(
        "the recipe's \(context.codingPath.map(\.stringValue).joined(separator: ".")) has an unknown value: \(context.debugDescription)")
    }
  }

  /// The schedule over the units of progress.
  public func makeSchedule() throws -> ScheduleConfiguration {
    let units = TrainerConfiguration.progressUnits
    guard warmup >= 0, warmup < 1 else { throw ConfigurationError("warmup is a fraction of the budget in 0..<1, got \(warmup)") }
    let start = Int(warmup * Double(units))
    switch schedule {
    case "cosine": return .init(CosineSchedule(warmup: start, total: units))
    case "constant": return .init(ConstantSchedule(warmup: start))
    case "linear": return .init(LinearSchedule(warmup: start, total: units))
    case "wsd": return .init(WarmupStableDecaySchedule(warmup: start, decay: units / 5, total: units))
    case "one_cycle": return .init(OneCycleSchedule(total: units))
    default:
      throw ConfigurationError(
        "no schedule is called \"\(schedule)\".\(Suggestions.phrase(for: schedule, in: Self.schedules)) There are: \(Self.schedules.joined(separator: ", "))"
      )
    }
  }

  /// The optimizer by name with its usual options.
  public func makeOptimizer() throws -> OptimizerConfiguration {
    guard OptimizerConfiguration.names.contains(optimizer) else {
      throw ConfigurationError(
        "no optimizer is called \"\(optimizer)\".\(Suggestions.phrase(for: optimizer, in: OptimizerConfiguration.names)) There are: \(OptimizerConfiguration.names.joined(separator: ", "))"
      )
    }
    let text = JSONValue.object(["name": .string(optimizer), "learningRate": .number(learningRate)]).serialized()
    return try JSONDecoder().decode(OptimizerConfiguration.self, from: Data(text.utf8))
  }

  public func backbone(for task: any LearningTask) -> BackboneConfiguration {
    var isCausal = causal || pretraining == .causal
    if case .tokens = task.objective { isCausal = true }
    var configuration = BackboneConfiguration(
      input: TaskModel.input(of: task), width: width, layers: layers, heads: heads, mixers: mixers, feedForward: feedForward,
      hidden: hidden, norm: norm, preNorm: preNorm, isCausal: isCausal, positions: positions, dropout: dropout, dropPath: dropPath,
      embeddingDeviation: 1, length: task.length)
    if let normSteps { configuration.normSchedule.steps = normSteps }
    configuration.normSchedule.passesPerStep = accumulation
    return configuration
  }

  public func trainerConfiguration(budget: TrainingBudget, directory: URL, metric: String, higherIsBetter: Bool) throws
    -> TrainerConfiguration
  {
    let slow = try Set(mixers.flatMap { try $0.kind.slowParameters }).sorted()
    guard accumulation > 0, batchSize > 0, evaluations > 0 else {
      throw ConfigurationError("batchSize, accumulation and evaluations must be positive")
    }
    return TrainerConfiguration(
      optimizer: try makeOptimizer(), weightDecay: weightDecay, slowParameters: slow, schedule: try makeSchedule(), budget: budget,
      accumulation: accumulation, clipping: clipping, averageDecay: averageDecay, autocast: autocast, evaluations: evaluations,
      patience: patience, metric: metric, higherIsBetter: higherIsBetter, checkpointInterval: checkpointInterval, directory: directory)
  }
}
