import Foundation
import MartletTraining

/// The experiment of `transnormer`: does a stack that looks closely first and far later model bytes better than its parts alone?
///
/// Five models of the next byte differ in their mixers only: attention in blocks of 32 below NormAttention; each of the two linear forms
/// alone; blocks below linear attention with its denominator; softmax. The text is written by a program (``SyntheticText``) unless a
/// file is given.
struct TransNormerExperiment {
  var seeds = [0, 1]
  var steps = 250
  var batchSize = 16
  var learningRate = 2e-3
  var length = 128
  var width = 64
  /// Windows of the validation part that are judged.
  var validationWindows = 100
  /// Bytes of the written text.
  var textBytes = 400_000
  /// What to read instead.
  var text: ExperimentText.Given?

  static let inequality = """
    loss(transnormer) <= loss(linear) - 0.02 and \
    loss(transnormer) <= loss(norm) + 0.01, loss(diagonal + linear) + 0.01, loss(softmax) + 0.01
    """

  /// Whether the claim holds for mean losses in nats a byte; `others` are those of the other arms.
  static func holds(transnormer: Double, linear: Double, others: [Double]) -> Bool {
    transnormer <= linear - 0.02 && others.allSatisfy { transnormer <= $0 + 0.01 }
  }

  private static let diagonal = MixerChoice("diagonal_attention", options: ["positions": "none", "block": 32])
  private static let norm = MixerChoice("norm_attention", options: ["positions": "none"])
  private static let linear = MixerChoice("linear")

  /// The mixers of four layers, by arm.
  static let arms: [(name: String, mixers: [MixerChoice])] = [
    ("transnormer", [diagonal, diagonal, norm, norm]), ("linear", [linear]), ("norm", [norm]),
    ("diagonal + linear", [diagonal, diagonal, linear, linear]), ("softmax", [MixerChoice("softmax", options: ["rotary": false])]),
  ]

  /// Four layers with four heads between parameter-free norms, GLUs, and learned absolute positions.
  func model(_ mixers: [MixerChoice], seed: Int) throws -> TaskModel {
    var configuration = BackboneConfiguration(
      input: .tokens(vocabulary: 256), width: width, layers: 4, heads: 4, mixers: mixers, feedForward: .swiglu, norm: .simpleRMS,
      isCausal: true, positions: .learned, length: length)
    configuration.feedForwardBias = true
    return try TaskModel(configuration, objective: .tokens(vocabulary: 256), generator: RandomGenerator(seed: UInt64(seed)))
  }

  func run(progress: (String) -> Void) throws -> Reproduction {
    let start = ContinuousClock.now
    let task = try ByteTextTask(
      texts: [(name: "text", bytes: text?.bytes ?? SyntheticText().bytes(textBytes))], length: length, evaluationLimit: validationWindows)
    var losses: [String: [Double]] = [:]
    var parameters: [String: Int] = [:]
    let runs = pairs(seeds, Self.arms)
    let results = try concurrently(runs, progress: progress) { run, progress in
      let (seed, (name, mixers)) = run
      let model = try model(mixers, seed: seed)
      try ExperimentLoop(steps: steps, learningRate: learningRate).train(model, on: task, batchSize: batchSize, seed: seed)
      let loss = try model.evaluate(task, .validation, batchSize: 50).meanLoss
      progress("seed \(seed), \(name): \(decimals(loss)) nats a byte after \(steps) steps, \(decimals(seconds(since: start), 0)) s")
      return (loss: loss, parameters: model.parameterCount)
    }
    for (run, result) in zip(runs, results) {
      losses[run.arm.name, default: []].append(result.loss)
      parameters[run.arm.name] = result.parameters
    }
    func loss(_ name: String) -> Double { mean(losses[name] ?? []) }
    return Reproduction(
      id: "transnormer", claim: try Catalog.entry("transnormer").claim, inequality: Self.inequality,
      holds: Self.holds(
        transnormer: loss("transnormer"), linear: loss("linear"), others: ["norm", "diagonal + linear", "softmax"].map(loss)),
      seconds: seconds(since: start), seeds: seeds,
      arms: Self.arms.map { arm in
        var metrics = (losses[arm.name] ?? []).metrics("loss", seeds: seeds)
        metrics["parameters"] = Double(parameters[arm.name] ?? 0)
        return Reproduction.Arm(name: arm.name, metrics: metrics)
      },
      note: """
        Scaled down: the next byte of \(text?.name ?? "a text that a program writes"), windows \
        of \(length), four layers of width \(width), \(steps) steps of \(batchSize) windows; loss in nats a byte on \(validationWindows) windows \
        that weren't trained on. \(ExperimentText.hint)
        """)
  }
}

/// Runs the experiment of `transnormer` as its sheet states it, on ``ExperimentText``.
public func reproduceTransNormer(progress: (String) -> Void) throws -> Reproduction {
  var experiment = TransNormerExperiment()
  experiment.text = try ExperimentText.given()
  return try onOneThread { try experiment.run(progress: progress) }
}
