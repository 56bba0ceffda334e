import Foundation

/// What a fair comparison is asked to do; saved beside its results, so that running it again goes on with the same.
public struct ComparisonOptions: Codable, Sendable, Equatable {
  public enum Pretraining: String, Codable, Sendable, CaseIterable {
    case none
    case masked
    case causal
  }

  /// As `TaskSpecification` reads it.
  public var task: String
  /// One for each arm: a mixer for all layers, or a pattern that repeats over them.
  public var mixers: [MixerPattern]
  public var pretraining: Pretraining
  /// Part of the budget that self-pretraining takes; the total is the same for every arm.
  public var pretrainingFraction: Double
  public var budget: TrainingBudget
  public var parameters: Int
  public var lengths: [Int]
  /// Seeds 0, 1, …
  public var seeds: Int
  public var batchSize: Int
  public var learningRate: Double
  public var weightDecay: Double
  public var layers: Int
  public var heads: Int
  public var feedForward: FeedForwardKind
  public var dropout: Double
  public var pooling: Pooling
  /// Held-out examples of each evaluation on the way (also of pretraining's), and of the final test.
  public var evaluationExamples: Int
  public var testExamples: Int

  public init(
    task: String, mixers: [MixerPattern], pretraining: Pretraining = .none, pretrainingFraction: Double = 0.5,
    budget: TrainingBudget = .seconds(60), parameters: Int = 300_000, lengths: [Int] = [256, 1024, 4096, 16384], seeds: Int = 3,
    batchSize: Int = 32, learningRate: Double = 2e-3, weightDecay: Double = 0.01, layers: Int = 4, heads: Int = 4,
    feedForward: FeedForwardKind = .mlp, dropout: Double = 0, pooling: Pooling = .mean, evaluationExamples: Int = 256,
    testExamples: Int = 2000
  ) {
    self.task = task
    self.mixers = mixers
    self.pretraining = pretraining
    self.pretrainingFraction = pretrainingFraction
    self.budget = budget
    self.parameters = parameters
    self.lengths = lengths
    self.seeds = seeds
    self.batchSize = batchSize
    self.learningRate = learningRate
    self.weightDecay = weightDecay
    self.layers = layers
    self.heads = heads
    self.feedForward = feedForward
    self.dropout = dropout
    self.pooling = pooling
    self.evaluationExamples = evaluationExamples
    self.testExamples = testExamples
  }

  /// Throws `ConfigurationError` for numbers that make no comparison.
  public func validate() throws {
    func check(_ condition: Bool, _ message: String) throws { if !condition { throw ConfigurationError(message) } }
    try check(!mixers.isEmpty, "name at least one mixer: --mixers softmax,gla")
    try check(Set(mixers.map(\.text)).count == mixers.count, "a mixer is named twice")
    for pattern in mixers {
      try check(
        pattern.mixers.count <= layers,
        "the pattern \(pattern.text) spells out \(pattern.mixers.count) layers, the models have \(layers): its last mixers would have none")
    }
    try check(
      pretrainingFraction > 0 && pretrainingFraction < 1, "the pretraining fraction must be between 0 and 1, got \(pretrainingFraction)")
    try check(parameters >= 1000, "parameters must be at least 1000, got \(parameters)")
    try check(seeds >= 1, "seeds must be at least 1, got \(seeds)")
    try check(batchSize >= 1, "the batch size must be at least 1, got \(batchSize)")
    try check(learningRate > 0, "the learning rate must be positive, got \(learningRate)")
    try check(
      evaluationExamples >= 1 && testExamples >= 1,
      "validation and test examples must be at least 1, got \(evaluationExamples) and \(testExamples)")
    try check(layers >= 1 && heads >= 1, "layers and heads must be at least 1")
    try check(lengths.allSatisfy { $0 >= 1 }, "lengths must be positive, got \(lengths)")
  }
}

/// The fair comparison of sequence mixers: for every arm the same data in the same order, a parameter count matched by width,
/// and the same budget; trained from scratch and after self-pretraining on the same inputs (the idea of Amos et al. 2023,
/// *Never Train from Scratch*, as a tool).
///
/// In `directory`: `results.json`, `report.html`, `comparison.json` (the options) and a folder per arm with its checkpoint and
/// logs. An interrupted comparison goes on where it stopped.
public final class Comparison {
  public let options: ComparisonOptions
  public let directory: URL
  public let task: any LearningTask
  public let command: String
  public var onEvent: (Event) -> Void = { _ in }
  public var shouldInterrupt: () -> Bool = { false }
  /// Where finished arms are recorded besides; `nil` for nowhere.
  public var store: ExperimentStore?

  public enum Event {
    case armBegan(name: String, number: Int, of: Int)
    case progress(arm: String, phase: String, TrainingProgress)
    case measuringLengths(arm: String)
    case armEnded(ComparisonArm)
    /// Something that does not stop the comparison.
    case warning(String)
  }

  /// One model to train.
  struct Arm: Equatable {
    var mixer: MixerPattern
    var pretrained: Bool
    var seed: Int

    var name: String { "\(mixer.text) \(pretrained ? "pretrained" : "from scratch"), seed \(seed)" }
    var folder: String {
      let safe = String(mixer.text.map { $0.isLetter || $0.isNumber || "_.-+".contains($0) ? $0 : "-" })
      return "arms/\(safe)-\(pretrained ? "pretrained" : "scratch")-\(seed)"
    }
  }

  /// Throws `ConfigurationError`, errors of the task's data, or `FileError` when the directory holds another comparison.
  public init(_ options: ComparisonOptions, directory: URL, command: String) throws {
    try options.validate()
    self.options = options
    self.directory = directory
    self.command = command
    task = try TaskSpecification(options.task).make()
    try claimDirectory()
  }

  /// Refuses a directory whose results belong to other options; records these.
  private func claimDirectory() throws {
    let file = directory.appendingPathComponent("comparison.json")
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    if let data = try? Data(contentsOf: file) {
      guard let earlier = try? JSONDecoder().decode(ComparisonOptions.self, from: data) else {
        throw FileError(file.path, "is not a comparison's record of its options; choose another folder with --out")
      }
      guard earlier != options else { return }
      let (a, b) = (try fields(earlier), try fields(options))
      let changed = a.keys.filter { a[$0] != b[$0] }.sorted().map { "\($0) (\(a[$0]!) there, \(b[$0] ?? "nothing") now)" }
      throw FileError(
        directory.path,
        "holds a comparison with other options: \(changed.joined(separator: ", ")). Give the same ones to go on with it, or another --out")
    }
    if let names = try? FileManager.default.contentsOfDirectory(atPath: directory.path), names.contains("results.json") {
      throw FileError(directory.path, "holds results of another command; choose another folder with --out")
    }
    try writeDurably(try encoder.encode(options), to: file.path)
  }

  private func fields(_ options: ComparisonOptions) throws -> [String: String] {
    let value = try JSONValue.parse(String(decoding: try JSONEncoder().encode(options), as: UTF8.self))
    return Dictionary(uniqueKeysWithValues: (value.objectValue?.pairs ?? []).map { ($0.key, $0.value.serialized()) })
  }

  // MARK: The arms

  /// Whether self-pretraining is a phase of its own: next-byte prediction already is the task of a language model.
  private var pretrains: Bool {
    guard options.pretraining != .none else { return false }
    return !(task is ByteTextTask)
  }

  /// Bidirectional where the whole input is classified, unless the pretraining is causal.
  private var isCausal: Bool {
    if case .tokens = task.objective { return true }
    return options.pretraining == .causal
  }

  var arms: [Arm] {
    (0..<options.seeds).flatMap { seed in
      (pretrains ? [false, true] : [false]).flatMap { pretrained in
        options.mixers.map { Arm(mixer: $0, pretrained: pretrained, seed: seed) }
      }
    }
  }

  private func configuration(_ mixer: MixerPattern) throws -> (configuration: BackboneConfiguration, count: Int) {
    try ParameterMatching.match(
      BackboneConfiguration(
        input: TaskModel.input(of: task), width: 2 * options.heads, layers: options.layers, heads: options.heads, mixers: mixer.mixers,
        feedForward: options.feedForward, isCausal: isCausal, positions: .sinusoidal, dropout: options.dropout,
        embeddingDeviation: 1, length: task.length),
      objective: task.objective, target: options.parameters)
  }

  /// Runs all arms that are not finished and writes results and report after each.
  ///
  /// - Throws: `InterruptedError` after saving, when `shouldInterrupt` said so; errors of data and files.
  public func run() throws -> ComparisonResults {
    if options.pretraining != .none && !pretrains {
      onEvent(.warning("next-byte prediction is its own pretraining: every arm is trained once, from scratch"))
    }
    if case .masked = pretrainingObjective, isCausal, pretrains {
      onEvent(.warning("the task needs causal models; masked positions are restored from what precedes them"))
    }
    var sizes: [String: (configuration: BackboneConfiguration, count: Int)] = [:]
    for mixer in options.mixers { sizes[mixer.text] = try configuration(mixer) }
    var results = try emptyResults()
    let storedRun = beginStoredRun(results)
    for (i, arm) in arms.enumerated() {
      onEvent(.armBegan(name: arm.name, number: i + 1, of: arms.count))
      let finished: ComparisonArm
      if let earlier = try finishedArm(arm) {
        finished = earlier
      } else {
        finished = try run(arm, sizes[arm.mixer.text]!)
        try writeDurably(
          try JSONEncoder.withNonFinite.encode(finished), to: directory.appendingPathComponent(arm.folder + "/arm.json").path)
      }
      results.arms.append(finished)
      if let store, let storedRun { try? store.addArm(finished, to: storedRun) }
      try results.write(to: directory.appendingPathComponent("results.json").path)
      try ComparisonReport.write(results, to: directory.appendingPathComponent("report.html").path)
      onEvent(.armEnded(finished))
    }
    if let store, let storedRun { try? store.finish(storedRun) }
    return results
  }

  private func emptyResults() throws -> ComparisonResults {
    let metric: String
    switch task.objective {
    case _ where task is ByteTextTask: metric = MetricName.bitsPerByte
    case .classification, .tokens: metric = MetricName.accuracy
    }
    return ComparisonResults(
      task: options.task, taskSummary: task.summary, budget: options.budget.description, command: command,
      machine: .current(libtorch: Engine.torchVersion), version: martletVersion, lengths: options.lengths.sorted(),
      primaryMetric: metric, primaryMetricHigherIsBetter: metric == MetricName.accuracy)
  }

  private func beginStoredRun(_ results: ComparisonResults) -> Int64? {
    guard let store else { return nil }
    do {
      let text = String(decoding: try JSONEncoder().encode(options), as: UTF8.self)
      return try store.begin(
        command: "compare", task: options.task, directory: directory.path, machine: results.machine, version: results.version,
        budget: results.budget, configuration: text)
    } catch {
      onEvent(.warning("this run is not in the experiment store: \(error)"))
      return nil
    }
  }

  private func finishedArm(_ arm: Arm) throws -> ComparisonArm? {
    let file = directory.appendingPathComponent(arm.folder + "/arm.json")
    guard let data = try? Data(contentsOf: file) else { return nil }
    do {
      return try JSONDecoder.withNonFinite.decode(ComparisonArm.self, from: data)
    } catch {
      throw FileError(file.path, "is damaged; remove it to run the arm again")
    }
  }

  private var pretrainingObjective: DenoisingObjective {
    options.pretraining == .causal
      ? .causal : .masked(ratio: SelfPretraining.defaultRatio(for: TaskModel.input(of: task)))
  }

  private func trainerConfiguration(_ arm: Arm, _ budget: TrainingBudget, phase: String) throws -> TrainerConfiguration {
    return TrainerConfiguration(
      optimizer: .init(.adamw(.init()), learningRate: options.learningRate), weightDecay: options.weightDecay,
      slowParameters: try arm.mixer.slowParameters,
      budget: budget, metric: MetricName.loss, directory: directory.appendingPathComponent(arm.folder + "/" + phase))
  }

  private func run(_ arm: Arm, _ size: (configuration: BackboneConfiguration, count: Int)) throws -> ComparisonArm {
    MemoryUsage.resetPeak()
    let seed = UInt64(arm.seed)
    let model = try TaskModel(
      size.configuration, objective: task.objective, pooling: options.pooling, generator: RandomGenerator(seed: seed))
    // Compute-tied: both phases together are what the arm from scratch has.
    let parts = options.budget.divided(options.pretrainingFraction)
    var result = ComparisonArm(
      mixer: arm.mixer.text, pretrained: arm.pretrained, seed: arm.seed, parameters: size.count, width: size.configuration.width,
      metrics: [:], curve: [], scaling: [])
    var (steps, seconds, positions) = (0, 0.0, 0)
    do {
      if arm.pretrained {
        let pretraining = try SelfPretraining(
          size.configuration, objective: pretrainingObjective, generator: RandomGenerator(seed: seed))
        let outcome = try train(
          PretrainingProblem(
            task, pretraining, batchSize: options.batchSize, seed: seed, evaluationExamples: options.evaluationExamples),
          arm, parts.first, "pretraining")
        try pretraining.transfer(to: model)
        (steps, seconds, positions) = (outcome.steps, outcome.seconds, outcome.positions)
      }
      let problem = TaskProblem(
        task, model, batchSize: options.batchSize, seed: seed, evaluationExamples: options.evaluationExamples)
      let outcome = try train(
        problem, arm, arm.pretrained ? parts.rest : options.budget, "training")
      result.curve = outcome.records.map {
        CurvePoint(
          step: steps + $0.step, seconds: seconds + $0.seconds, trainLoss: $0.trainLoss,
          validationMetric: $0.metrics?[primaryMetric(problem)])
      }
      result.metrics[MetricName.peakTensorBytes] = Double(MemoryUsage.peakTensorBytes)
      let test = try model.evaluate(task, .test, batchSize: options.batchSize, limit: options.testExamples)
      result.metrics.merge(problem.metrics(test)) { $1 }
      result.metrics[MetricName.inferenceTokensPerSecond] = Double(test.positions) / test.seconds
      (steps, seconds, positions) = (steps + outcome.steps, seconds + outcome.seconds, positions + outcome.positions)
    } catch let error as DivergenceError {
      onEvent(.warning("\(arm.name): \(error)"))
      result.metrics[MetricName.loss] = .nan
      result.metrics[MetricName.accuracy] = .nan
      if task is ByteTextTask { result.metrics[MetricName.bitsPerByte] = .nan }
    }
    result.metrics[MetricName.trainSeconds] = seconds
    result.metrics[MetricName.steps] = Double(steps)
    if seconds > 0 { result.metrics[MetricName.trainTokensPerSecond] = Double(positions) / seconds }
    if let bytes = MemoryUsage.peakResidentBytes { result.metrics[MetricName.peakResidentBytes] = Double(bytes) }
    if arm.seed == 0 && !arm.pretrained && !options.lengths.isEmpty {
      onEvent(.measuringLengths(arm: arm.name))
      result.scaling = try ScalingMeasurement(configuration: size.configuration, objective: task.objective).measure(
        lengths: options.lengths, shouldInterrupt: shouldInterrupt)
    }
    return result
  }

  private func primaryMetric(_ problem: TaskProblem) -> String { problem.isByteModel ? MetricName.bitsPerByte : MetricName.accuracy }

  private func train(
    _ problem: any TrainingProblem, _ arm: Arm, _ budget: TrainingBudget, _ phase: String
  ) throws -> TrainingOutcome {
    let trainer = Trainer(problem, try trainerConfiguration(arm, budget, phase: phase))
    trainer.shouldInterrupt = shouldInterrupt
    trainer.onProgress = { [onEvent] in onEvent(.progress(arm: arm.name, phase: phase, $0)) }
    let outcome = try trainer.run()
    // What is fine-tuned is the body that restored held-out inputs best.
    if phase == "pretraining" { try trainer.loadBest() }
    return outcome
  }
}

extension JSONEncoder {
  static var withNonFinite: JSONEncoder {
    let encoder = JSONEncoder()
    encoder.nonConformingFloatEncodingStrategy = .convertToString(positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
    return encoder
  }
}

extension JSONDecoder {
  static var withNonFinite: JSONDecoder {
    let decoder = JSONDecoder()
    decoder.nonConformingFloatDecodingStrategy = .convertFromString(positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
    return decoder
  }
}

/// The version of the package.
public let martletVersion = "0.1.0"
