import Foundation
import MartletTraining

/// The experiment of `transnormer`: does a stack that looks closely first and far later model bytes better than its parts alone?
///
/// Five models of the next byte differ in their mixers only: attention in blocks of 32 below NormAttention; each of the two linear forms
/// alone; blocks below linear attention with its denominator; softmax. The text is written by a program (``SyntheticText``) unless a
/// file is given.
struct TransNormerExperiment {
  var seeds = [0, 1, 2]
  var steps = 250
  var batchSize = 16
  var learningRate = 2e-3
  var length = 128
  var width = 64
  /// Windows of the validation part that are judged.
  var validationWindows = 100
  /// Bytes of the written text.
  var textBytes = 400_000
  /// A file to read instead.
  var file: String?

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
    let task =
      try file.map { try ByteTextTask(files: [$0], length: length, evaluationLimit: validationWindows) }
      ?? ByteTextTask(
        texts: [(name: "written text", bytes: SyntheticText().bytes(textBytes))], length: length, evaluationLimit: validationWindows)
    var losses: [String: [Double]] = [:]
    var parameters: [String: Int] = [:]
    for seed in seeds {
      for (name, mixers) in Self.arms {
        let model = try model(mixers, seed: seed)
        try ExperimentLoop(steps: steps, learningRate: learningRate).train(model) { step in
          try model.loss(task.trainingBatch(step: step, size: batchSize, seed: UInt64(seed)))
        }
        let loss = try model.evaluate(task, .validation, batchSize: 50).meanLoss
        losses[name, default: []].append(loss)
        parameters[name] = model.parameterCount
        progress("seed \(seed), \(name): \(decimals(loss)) nats a byte after \(steps) steps, \(decimals(seconds(since: start), 0)) s")
      }
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
        Scaled down: the next byte of \(file.map { URL(fileURLWithPath: $0).lastPathComponent } ?? "a text that a program writes"), windows \
        of \(length), four layers of width \(width), \(steps) steps of \(batchSize) windows; loss in nats a byte on \(validationWindows) windows \
        that weren't trained on. MARTLET_TEXT names a file to read instead.
        """)
  }
}

/// Runs the experiment of `transnormer` as its sheet states it; on the file that the environment's MARTLET_TEXT names, if it does.
public func reproduceTransNormer(progress: (String) -> Void) throws -> Reproduction {
  var experiment = TransNormerExperiment()
  experiment.file = ProcessInfo.processInfo.environment["MARTLET_TEXT"]
  return try onOneThread { try experiment.run(progress: progress) }
}
