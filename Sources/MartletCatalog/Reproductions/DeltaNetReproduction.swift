import MartletTraining

/// The experiment of `deltanet`: does a memory that corrects itself keep the latest of several bindings of a key?
///
/// 8 keys are bound to new values again and again (``LatestBindingTask``). Four models of equal size differ in the rule of their
/// memory only: linear attention adds, RetNet fades, GLA fades by what it reads, DeltaNet replaces. Softmax attention is reported
/// beside them.
struct DeltaNetExperiment {
  var seeds = [0, 1, 2]
  var steps = 400
  var batchSize = 32
  var learningRate = 5e-3
  /// Sequences in the test.
  var testSequences = 500

  static let inequality =
    "error(deltanet) < error(linear), error(retention) and error(gla), and error(deltanet) <= 0.5 * error(linear)"

  /// Whether the claim holds for mean errors of the four arms.
  static func holds(linear: Double, retention: Double, gla: Double, deltaNet: Double) -> Bool {
    deltaNet < linear && deltaNet < retention && deltaNet < gla && deltaNet <= 0.5 * linear
  }

  static let arms = ["linear", "retention", "gla", "deltanet", "softmax"]

  /// Two layers of width 32 with two heads, dk = 8, dv = 16, short convolutions and output gates; softmax attention with its own
  /// heads of 16.
  static func model(_ task: LatestBindingTask, arm: String, generator: RandomGenerator) throws -> TaskModel {
    let configuration = BackboneConfiguration(
      input: TaskModel.input(of: task), width: 32, layers: 2, heads: 2, mixers: [MixerChoice("softmax")], feedForward: .swiglu,
      norm: .rms, isCausal: true, length: task.length)
    let model = try TaskModel(configuration, objective: task.objective, generator: generator)
    let gates: [String: GatedLinearAttention.GateKind] = ["linear": .none, "retention": .retention, "gla": .perChannel]
    for block in model.backbone.blocks {
      if let gate = gates[arm] {
        block.mixer = GatedLinearAttention(.init(width: 32, heads: 2, gate: gate, convolution: 4), generator: generator)
      } else if arm == "deltanet" {
        block.mixer = DeltaNet(
          .init(width: 32, heads: 2, keyWidth: 16, valueWidth: 32, convolution: 4, outputGate: true), generator: generator)
      }
    }
    return model
  }

  func run(progress: (String) -> Void) throws -> Reproduction {
    let start = ContinuousClock.now
    var errors: [String: [Double]] = [:]
    var parameters: [String: Int] = [:]
    let runs = pairs(seeds, Self.arms)
    let results = try concurrently(runs, progress: progress) { run, progress in
      let (seed, arm) = run
      let task = try LatestBindingTask(
        counts: SplitCounts(train: steps * batchSize, validation: 0, test: testSequences), seed: UInt64(seed))
      let model = try Self.model(task, arm: arm, generator: RandomGenerator(seed: UInt64(seed)))
      try ExperimentLoop(steps: steps, learningRate: learningRate).train(model, on: task, batchSize: batchSize, seed: seed)
      let error = 1 - (try model.evaluate(task, .test, batchSize: 100)).accuracy
      progress("seed \(seed), \(arm): error \(decimals(error, 4)) after \(steps) steps, \(decimals(seconds(since: start), 0)) s")
      return (error: error, parameters: model.parameterCount)
    }
    for (run, result) in zip(runs, results) {
      errors[run.arm, default: []].append(result.error)
      parameters[run.arm] = result.parameters
    }
    func error(_ arm: String) -> Double { mean(errors[arm] ?? []) }
    return Reproduction(
      id: "deltanet", claim: try Catalog.entry("deltanet").claim, inequality: Self.inequality,
      holds: Self.holds(
        linear: error("linear"), retention: error("retention"), gla: error("gla"), deltaNet: error("deltanet")),
      seconds: seconds(since: start), seeds: seeds,
      arms: Self.arms.map { arm in
        var metrics = (errors[arm] ?? []).metrics("error", seeds: seeds)
        metrics["parameters"] = Double(parameters[arm] ?? 0)
        return Reproduction.Arm(name: arm, metrics: metrics)
      },
      note: """
        Scaled down: 32 pairs of 8 keys and 16 values, each key bound to a new value whenever it recurs; error is the share of wrong \
        values at recurring keys, on \(testSequences) new sequences. Softmax attention is reported and not judged.
        """)
  }
}

/// Runs the experiment of `deltanet` as its sheet states it.
public func reproduceDeltaNet(progress: (String) -> Void) throws -> Reproduction {
  try onOneThread { try DeltaNetExperiment().run(progress: progress) }
}
