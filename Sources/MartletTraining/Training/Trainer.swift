import Foundation

/// What a trainer works on: a model, its loss at a step, and how it is judged.
public protocol TrainingProblem: AnyObject {
  var model: Module { get }
  /// The loss of the batch with a running number, a pure function of it and the model, and the input positions seen.
  func loss(batch index: Int) throws -> (loss: Tensor, positions: Int)
  /// Metrics of the held-out data, by name; empty when there is nothing to evaluate.
  func evaluate() throws -> [String: Double]
}

/// How long a training lasts.
public enum TrainingBudget: Sendable, Equatable, Codable, CustomStringConvertible {
  case steps(Int)
  /// Seconds of training, evaluation and checkpoints not counted.
  case seconds(Double)
  /// Input positions.
  case positions(Int)

  /// Reads `120s`, `3m`, `2h`, `500` or `500steps`, `2Mtokens`. Throws `ConfigurationError` otherwise.
  public init(parsing text: String) throws {
    let digits = text.prefix { $0.isNumber || $0 == "." }
    let unit = text.dropFirst(digits.count).lowercased()
    guard let number = Double(digits), number > 0 else {
      throw ConfigurationError("the budget “\(text)” is not a positive number with a unit: e.g. 120s, 5m, 1h, 2000steps, 10Mtokens")
    }
    switch unit {
    case "s": self = .seconds(number)
    case "m", "min": self = .seconds(number * 60)
    case "h": self = .seconds(number * 3600)
    case "", "steps", "step": self = .steps(max(1, Int(number)))
    case "tokens": self = .positions(Int(number))
    case "ktokens": self = .positions(Int(number * 1e3))
    case "mtokens": self = .positions(Int(number * 1e6))
    default:
      throw ConfigurationError("the budget “\(text)” has the unknown unit “\(unit)”: use s, m, h, steps, tokens, ktokens or Mtokens")
    }
  }

  /// Part of the budget.
  public func scaled(_ fraction: Double) -> TrainingBudget {
    switch self {
    case .steps(let n): .steps(max(1, Int((Double(n) * fraction).rounded())))
    case .seconds(let s): .seconds(s * fraction)
    case .positions(let n): .positions(max(1, Int((Double(n) * fraction).rounded())))
    }
  }

  /// A part of the budget and the rest, which together are the whole to the last step; neither is nothing.
  public func divided(_ fraction: Double) -> (first: TrainingBudget, rest: TrainingBudget) {
    switch self {
    case .steps(let n):
      let first = max(1, min(n - 1, Int((Double(n) * fraction).rounded())))
      return (.steps(first), .steps(max(1, n - first)))
    case .seconds(let s): return (.seconds(s * fraction), .seconds(s - s * fraction))
    case .positions(let n):
      let first = max(1, min(n - 1, Int((Double(n) * fraction).rounded())))
      return (.positions(first), .positions(max(1, n - first)))
    }
  }

  public var description: String {
    switch self {
    case .steps(let n): "\(n) steps"
    case .seconds(let s): s == s.rounded() ? "\(Int(s)) s of training" : "\(s) s of training"
    case .positions(let n): "\(n) tokens"
    }
  }
}

public struct TrainerConfiguration: Sendable {
  public var optimizer: OptimizerConfiguration
  public var weightDecay: Double
  /// Suffixes of parameters with a learning rate of at most `slowLearningRate` and no weight decay (S4's state matrices).
  public var slowParameters: [String]
  public var slowLearningRate: Double
  /// Over 10,000 units of progress through the budget, so that one schedule serves steps, seconds and tokens.
  public var schedule: ScheduleConfiguration
  public var budget: TrainingBudget
  /// Micro-batches whose gradients are summed for one step.
  public var accumulation: Int
  /// Limit of the gradients' global norm; `nil` for none.
  public var clipping: Double?
  /// Decay of an average of the weights that is used in evaluation; `nil` for none.
  public var averageDecay: Double?
  /// Matrix products in bfloat16.
  public var autocast: Bool
  /// Evaluations in the whole budget, evenly spread; the last is at the end.
  public var evaluations: Int
  /// Evaluations without improvement after which training stops; `nil` for never.
  public var patience: Int?
  /// The metric that decides what is best.
  public var metric: String
  public var higherIsBetter: Bool
  /// Seconds between checkpoints; 0 for one at every step.
  public var checkpointInterval: Double
  /// Where checkpoints and logs go; `nil` for nowhere.
  public var directory: URL?

  /// Units of the schedule.
  public static let progressUnits = 10_000

  public init(
    optimizer: OptimizerConfiguration = .init(.adamw(.init()), learningRate: 1e-3), weightDecay: Double = 0.01,
    slowParameters: [String] = [], slowLearningRate: Double = 1e-3,
    schedule: ScheduleConfiguration = .init(CosineSchedule(warmup: 500, total: TrainerConfiguration.progressUnits)),
    budget: TrainingBudget, accumulation: Int = 1, clipping: Double? = 1, averageDecay: Double? = nil, autocast: Bool = false,
    evaluations: Int = 10, patience: Int? = nil, metric: String = "loss", higherIsBetter: Bool = false,
    checkpointInterval: Double = 30, directory: URL? = nil
  ) {
    self.optimizer = optimizer
    self.weightDecay = weightDecay
    self.slowParameters = slowParameters
    self.slowLearningRate = slowLearningRate
    self.schedule = schedule
    self.budget = budget
    self.accumulation = accumulation
    self.clipping = clipping
    self.averageDecay = averageDecay
    self.autocast = autocast
    self.evaluations = evaluations
    self.patience = patience
    self.metric = metric
    self.higherIsBetter = higherIsBetter
    self.checkpointInterval = checkpointInterval
    self.directory = directory
  }
}

/// A loss or gradient that is no longer a number: training can't go on.
public struct DivergenceError: Error, CustomStringConvertible, Sendable {
  public let step: Int
  public let description: String
}

/// One point of the record of a training.
public struct TrainingRecord: Codable, Sendable, Equatable {
  /// Steps done.
  public var step: Int
  /// Seconds of training so far.
  public var seconds: Double
  /// Mean training loss since the last record.
  public var trainLoss: Double
  /// Metrics of the held-out data, where they were taken.
  public var metrics: [String: Double]?
}

/// What a training came to.
public struct TrainingOutcome: Sendable {
  public var steps: Int
  /// Seconds of training, without evaluation and checkpoints.
  public var seconds: Double
  public var positions: Int
  public var records: [TrainingRecord]
  /// Metrics of the last evaluation.
  public var final: [String: Double]
  /// Metrics of the best evaluation.
  public var best: [String: Double]
  public var stoppedEarly: Bool
}

/// Trains a problem: optimizer and schedule, accumulation, clipping, averages, evaluation, early stopping, logs, and
/// checkpoints from which it goes on bit for bit after any interruption.
///
/// In `directory`: `last.safetensors` and `best.safetensors` (weights, optimizer, generators and counters in one file each,
/// replaced atomically), `log.jsonl`, and TensorBoard event files.
public final class Trainer {
  public let problem: any TrainingProblem
  public let configuration: TrainerConfiguration
  public let optimizer: GroupedOptimizer
  public let average: ExponentialMovingAverage?
  /// Called after every step with progress in 0...1.
  public var onProgress: (TrainingProgress) -> Void = { _ in }
  /// Asked after every step; training is saved and stops when it returns true.
  public var shouldInterrupt: () -> Bool = { false }

  private var counters = Counters()
  private let listeners: [any OptimizerStepListener]

  /// What a checkpoint keeps besides tensors.
  private struct Counters: Codable {
    var step = 0
    var seconds = 0.0
    var positions = 0
    var evaluationsDone = 0
    var lossSum = 0.0
    var lossCount = 0
    var records: [TrainingRecord] = []
    var best: [String: Double] = [:]
    var final: [String: Double] = [:]
    var withoutImprovement = 0
    var isFinished = false
    var stoppedEarly = false
  }

  public init(_ problem: any TrainingProblem, _ configuration: TrainerConfiguration) {
    self.problem = problem
    self.configuration = configuration
    let learningRate = configuration.optimizer.learningRate
    let groups = ParameterGroup.split(
      problem.model.trainableParameters(), decay: configuration.weightDecay,
      overrides: configuration.slowParameters.map {
        .init($0, learningRate: min(learningRate, configuration.slowLearningRate), weightDecay: 0)
      })
    optimizer = configuration.optimizer.make(groups)
    average = configuration.averageDecay.map { ExponentialMovingAverage(problem.model.trainableParameters(), decay: $0) }
    listeners = problem.model.optimizerStepListeners()
  }

  /// Fraction of the budget used.
  private var progress: Double {
    switch configuration.budget {
    case .steps(let n): Double(counters.step) / Double(n)
    case .seconds(let s): counters.seconds / s
    case .positions(let n): Double(counters.positions) / Double(n)
    }
  }

  // MARK: The loop

  /// Trains to the end of the budget, from the last checkpoint in the directory if there is one.
  ///
  /// - Throws: `DivergenceError`; `InterruptedError` when `shouldInterrupt` said so, after a checkpoint; errors of the problem
  ///   and of files.
  public func run() throws -> TrainingOutcome {
    try restore()
    if counters.isFinished { return outcome }
    let directory = configuration.directory
    let log = try directory.map { try JSONLinesLog($0.appendingPathComponent("log.jsonl"), resumingAt: counters.step) }
    let events = try directory.map { try EventWriter(directory: $0) }
    let units = TrainerConfiguration.progressUnits
    var lastCheckpoint = ContinuousClock.now
    problem.model.train()
    while progress < 1 {
      let start = ContinuousClock.now
      optimizer.scheduleFactor = configuration.schedule.schedule.factor(at: min(units, Int(progress * Double(units))))
      let loss = try step()
      counters.seconds += (ContinuousClock.now - start).seconds
      counters.step += 1
      counters.lossSum += loss
      counters.lossCount += 1
      onProgress(
        TrainingProgress(
          fraction: min(1, progress), step: counters.step, loss: loss, positions: counters.positions, seconds: counters.seconds))

      if shouldEvaluate {
        try evaluate()
        if let record = counters.records.last {
          try log?.write(record, step: record.step)
          var scalars = record.metrics ?? [:]
          scalars["train/loss"] = record.trainLoss
          scalars["train/learning_rate"] = optimizer.learningRate * optimizer.scheduleFactor
          try events?.write(scalars: scalars, step: record.step)
        }
        if let patience = configuration.patience, counters.withoutImprovement >= patience {
          counters.stoppedEarly = true
          break
        }
      }
      if directory != nil, progress < 1, (ContinuousClock.now - lastCheckpoint).seconds >= configuration.checkpointInterval {
        try save("last")
        lastCheckpoint = ContinuousClock.now
      }
      if shouldInterrupt() {
        if directory != nil { try save("last") }
        throw InterruptedError(step: counters.step)
      }
    }
    counters.isFinished = true
    if directory != nil { try save("last") }
    return outcome
  }

  private var outcome: TrainingOutcome {
    TrainingOutcome(
      steps: counters.step, seconds: counters.seconds, positions: counters.positions, records: counters.records,
      final: counters.final, best: counters.best, stoppedEarly: counters.stoppedEarly)
  }

  /// One update. Returns the mean loss of its micro-batches.
  private func step() throws -> Double {
    var total = 0.0
    for micro in 0..<configuration.accumulation {
      let (loss, positions) = try withAutocast(configuration.autocast) {
        try problem.loss(batch: counters.step * configuration.accumulation + micro)
      }
      let value = loss.item()
      guard value.isFinite else {
        throw DivergenceError(
          step: counters.step,
          description:
            "training diverged: the loss of step \(counters.step) is \(value) at learning rate \(format(optimizer.learningRate * optimizer.scheduleFactor))\(recent). \(remedy)"
        )
      }
      (configuration.accumulation > 1 ? loss / Double(configuration.accumulation) : loss).backward()
      total += value / Double(configuration.accumulation)
      counters.positions += positions
    }
    let norm = configuration.clipping.map { optimizer.clipNextStep(norm: $0) } ?? 0
    if !norm.isFinite {
      let broken = problem.model.trainableParameters().filter { $0.tensor.gradient.map { !$0.allFinite } ?? false }.map(\.name)
      throw DivergenceError(
        step: counters.step,
        description:
          "training diverged: the gradient of step \(counters.step) is not finite (loss \(format(total))) in \(broken.prefix(5).joined(separator: ", "))\(broken.count > 5 ? " and \(broken.count - 5) more" : ""). \(remedy)"
      )
    }
    optimizer.step()
    optimizer.zeroGradients()
    for listener in listeners { listener.optimizerDidStep() }
    average?.update()
    return total
  }

  private var recent: String { counters.records.last.map { " (mean loss before: \(format($0.trainLoss)))" } ?? "" }
  private var remedy: String { "Try a lower learning rate, a longer warm-up or stronger clipping." }
  private func format(_ x: Double) -> String { String(format: "%.4g", x) }

  private var shouldEvaluate: Bool {
    let due = Int((min(1, progress) * Double(configuration.evaluations)).rounded(.down))
    return due > counters.evaluationsDone || progress >= 1
  }

  private func evaluate() throws {
    counters.evaluationsDone = Int((min(1, progress) * Double(configuration.evaluations)).rounded(.down))
    let metrics = try average.map { average in try average.withAverages { try problem.evaluate() } } ?? problem.evaluate()
    problem.model.train()
    counters.records.append(
      TrainingRecord(
        step: counters.step, seconds: counters.seconds, trainLoss: counters.lossSum / Double(max(1, counters.lossCount)),
        metrics: metrics.isEmpty ? nil : metrics))
    (counters.lossSum, counters.lossCount) = (0, 0)
    counters.final = metrics
    guard let value = metrics[configuration.metric] else { return }
    let best = counters.best[configuration.metric]
    if best == nil || (configuration.higherIsBetter ? value > best! : value < best!) {
      counters.best = metrics
      counters.withoutImprovement = 0
      if configuration.directory != nil { try save("best") }
    } else {
      counters.withoutImprovement += 1
    }
  }

  // MARK: Checkpoints

  /// Everything in one file, so that one rename replaces it all.
  private func save(_ name: String) throws {
    guard let directory = configuration.directory else { return }
    var tensors: [String: Tensor] = [:]
    for (key, tensor) in problem.model.stateDictionary() { tensors["model." + key] = tensor }
    for (key, tensor) in optimizer.stateDictionary() { tensors["optimizer." + key] = tensor }
    if let average { for (key, tensor) in average.stateDictionary() { tensors["average." + key] = tensor } }
    for (i, generator) in problem.model.generators().enumerated() { tensors["generator.\(i)"] = generator.state }
    let text = String(decoding: try Self.encoder.encode(counters), as: UTF8.self)
    try Safetensors.save(
      tensors, to: directory.appendingPathComponent(name + ".safetensors").path, metadata: ["format": "pt", "trainer": text])
  }

  private static let encoder: JSONEncoder = {
    let encoder = JSONEncoder()
    encoder.nonConformingFloatEncodingStrategy = .convertToString(positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
    return encoder
  }()
  private static let decoder: JSONDecoder = {
    let decoder = JSONDecoder()
    decoder.nonConformingFloatDecodingStrategy = .convertFromString(positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
    return decoder
  }()

  private func restore() throws {
    guard let directory = configuration.directory else { return }
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    let path = directory.appendingPathComponent("last.safetensors").path
    guard FileManager.default.fileExists(atPath: path) else { return }
    let file = try SafetensorsFile(path)
    guard let text = file.metadata["trainer"], let saved = try? Self.decoder.decode(Counters.self, from: Data(text.utf8)) else {
      throw TensorError(
        "\(path) is not a trainer's checkpoint: its metadata lack a readable “trainer” entry. Move it away to start afresh.")
    }
    var parts: [String: [String: Tensor]] = [:]
    for (key, tensor) in try file.tensors() {
      let sides = key.split(separator: ".", maxSplits: 1).map(String.init)
      if sides.count == 2 { parts[sides[0], default: [:]][sides[1]] = tensor }
    }
    try problem.model.load(parts["model"] ?? [:])
    try optimizer.load(parts["optimizer"] ?? [:])
    if let average { try average.load(parts["average"] ?? [:]) }
    for (i, generator) in problem.model.generators().enumerated() {
      guard let state = parts["generator"]?["\(i)"] else { throw TensorError("\(path) lacks the state of generator \(i)") }
      generator.state = state.copy()
    }
    counters = saved
  }

  /// Loads the weights of the best evaluation, when there is a checkpoint of it.
  public func loadBest() throws {
    guard let path = configuration.directory?.appendingPathComponent("best.safetensors").path,
      FileManager.default.fileExists(atPath: path)
    else { return }
    try problem.model.load(Trainer.weights(path))
  }

  /// The model's weights in a trainer's checkpoint.
  public static func weights(_ path: String) throws -> [String: Tensor] {
    var state: [String: Tensor] = [:]
    for (key, tensor) in try SafetensorsFile(path).tensors() where key.hasPrefix("model.") { state[String(key.dropFirst(6))] = tensor }
    guard !state.isEmpty else { throw TensorError("\(path) holds no tensors named model.…: it is not a trainer's checkpoint") }
    return state
  }
}

/// A training that was asked to stop; its checkpoint is written.
public struct InterruptedError: Error, CustomStringConvertible, Sendable {
  public let step: Int
  public var description: String { "interrupted after step \(step); run the same command again to go on" }
}

/// Where a training stands.
public struct TrainingProgress: Sendable {
  public var fraction: Double
  public var step: Int
  public var loss: Double
  public var positions: Int
  public var seconds: Double
}
