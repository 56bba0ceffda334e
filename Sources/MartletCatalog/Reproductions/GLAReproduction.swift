import MartletTraining

/// The experiment of `gla`: does a memory with a data-dependent gate forget when it should?
///
/// A dictionary of 4 keys and 8 values is redrawn at RESET tokens (``DictionaryResetTask``). Three models differ in the gate of their
/// linear attention only: none, RetNet's constant decay (with the rotary positions that belong to it), GLA's.
struct GLAExperiment {
  var seeds = [0, 1, 2]
  var steps = 500
  var batchSize = 32
  var learningRate = 5e-3
  /// Sequences in the test.
  var testSequences = 500

  static let inequality = "error(gla) <= 0.5 * error(retention) and error(gla) <= 0.25 * error(linear)"

  /// Whether the claim holds for mean errors of the three arms.
  static func holds(linear: Double, retention: Double, gla: Double) -> Bool { gla <= 0.5 * retention && gla <= 0.25 * linear }

  /// The gates compared, under the names of the arms.
  static let arms: [(name: String, gate: GatedLinearAttention.GateKind)] = [
    ("linear", .none), ("retention", .retention), ("gla", .perChannel),
  ]

  /// Two layers of width 32 with two heads, dk = 8, dv = 16, short convolutions and output gates.
  static func model(_ task: DictionaryResetTask, gate: GatedLinearAttention.GateKind, generator: RandomGenerator) throws -> TaskModel {
    let configuration = BackboneConfiguration(
      input: TaskModel.input(of: task), width: 32, layers: 2, heads: 2, mixers: [MixerChoice("gla")], feedForward: .swiglu, norm: .rms,
      isCausal: true, length: task.length)
    let model = try TaskModel(configuration, objective: task.objective, generator: generator)
    for block in model.backbone.blocks {
      block.mixer = GatedLinearAttention(.init(width: 32, heads: 2, gate: gate, convolution: 4), generator: generator)
    }
    return model
  }

  func run(progress: (String) -> Void) throws -> Reproduction {
    let start = ContinuousClock.now
    var errors: [String: [Double]] = [:]
    var parameters: [String: Int] = [:]
    let runs = pairs(seeds, Self.arms)
    let results = try concurrently(runs, progress: progress) { run, progress in
      let (seed, (name, gate)) = run
      let task = try DictionaryResetTask(
        counts: SplitCounts(train: steps * batchSize, validation: 0, test: testSequences), seed: UInt64(seed))
      let model = try Self.model(task, gate: gate, generator: RandomGenerator(seed: UInt64(seed)))
      try ExperimentLoop(steps: steps, learningRate: learningRate).train(model, on: task, batchSize: batchSize, seed: seed)
      let error = 1 - (try model.evaluate(task, .test, batchSize: 100)).accuracy
      progress("seed \(seed), \(name): error \(decimals(error, 4)) after \(steps) steps, \(decimals(seconds(since: start), 0)) s")
      return (error: error, parameters: model.parameterCount)
    }
    for (run, result) in zip(runs, results) {
      errors[run.arm.name, default: []].append(result.error)
      parameters[run.arm.name] = result.parameters
    }
    func error(_ name: String) -> Double { mean(errors[name] ?? []) }
    return Reproduction(
      id: "gla", claim: try Catalog.entry("gla").claim, inequality: Self.inequality,
      holds: Self.holds(linear: error("linear"), retention: error("retention"), gla: error("gla")), seconds: seconds(since: start),
      seeds: seeds,
      arms: Self.arms.map { arm in
        var metrics = (errors[arm.name] ?? []).metrics("error", seeds: seeds)
        metrics["parameters"] = Double(parameters[arm.name] ?? 0)
        return Reproduction.Arm(name: arm.name, metrics: metrics)
      },
      note: """
        Scaled down: a dictionary of 4 keys and 8 values that is redrawn at RESET tokens, 32 steps of two tokens; error is the share \
        of wrong values at keys seen since the last reset, on \(testSequences) new sequences.
        """)
  }
}

/// Runs the experiment of `gla` as its sheet states it.
public func reproduceGLA(progress: (String) -> Void) throws -> Reproduction {
  try onOneThread { try GLAExperiment().run(progress: progress) }
}
