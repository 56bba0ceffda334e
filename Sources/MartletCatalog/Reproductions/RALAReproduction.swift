import MartletTraining

/// The experiment of `rala`: do the weights on the keys and the gate on the output make linear attention as good as softmax attention,
/// by a higher rank of what it gives?
///
/// Drawn 8×8 digits are read as 64 tokens of one pixel on their grid. The arms differ in the mixer of two layers only; all of them have
/// the same rotary positions and the same depthwise convolution of the values (LePE).
struct RALAExperiment {
  var seeds = [0, 1, 2]
  var steps = 250
  var batchSize = 32
  var learningRate = 3e-3
  var trainingImages = 400
  var testImages = 1000
  /// Test images whose mixers' outputs are measured.
  var rankImages = 32

  static let inequality = """
    accuracy(rala) >= accuracy(linear) and accuracy(rala) >= accuracy(softmax) - 0.03 and \
    effective_rank(rala) > effective_rank(linear)
    """

  /// Whether the claim holds for mean figures.
  static func holds(rala: Double, linear: Double, softmax: Double, ralaRank: Double, linearRank: Double) -> Bool {
    rala >= linear && rala >= softmax - 0.03 && ralaRank > linearRank
  }

  /// The mixers compared, under the names of the arms.
  static let arms: [(name: String, options: JSONObject)] = [
    ("linear", ["reweighted": false, "gated": false]),
    ("+α", ["gated": false]),
    ("+O", ["reweighted": false]),
    ("rala", [:]),
    ("softmax", ["softmax": true, "gated": false]),
  ]

  /// Two layers of width 32 with two heads; nothing but the mixer knows positions.
  static func model(_ task: DigitsTask, options: JSONObject, generator: RandomGenerator) throws -> TaskModel {
    var options = options
    options["columns"] = 8
    let configuration = BackboneConfiguration(
      input: TaskModel.input(of: task), width: 32, layers: 2, heads: 2, mixers: [MixerChoice("rala", options: .object(options))],
      isCausal: false, length: task.length)
    return try TaskModel(configuration, objective: task.objective, pooling: .mean, generator: generator)
  }

  /// The mean effective rank of the mixers' outputs [64, 32] over images and layers.
  static func effectiveRank(_ model: TaskModel, _ pixels: Tensor) -> Double {
    withoutGradient {
      let backbone = model.backbone
      var x = backbone.inputProjection?(pixels) ?? pixels
      var ranks: [Double] = []
      for block in backbone.blocks {
        let mixed = block.mixer(block.mixerNorm?(x) ?? x)
        ranks += (0..<mixed.dim(0)).map { mixed.selected(axis: 0, $0).effectiveRank() }
        x = x + mixed
        if let feedForward = block.feedForward { x = x + feedForward(block.feedForwardNorm?(x) ?? x) }
      }
      return mean(ranks)
    }
  }

  func run(progress: (String) -> Void) throws -> Reproduction {
    let start = ContinuousClock.now
    var accuracies: [String: [Double]] = [:]
    var ranks: [String: [Double]] = [:]
    var parameters: [String: Int] = [:]
    let runs = pairs(seeds, Self.arms)
    let results = try concurrently(runs, progress: progress) { run, progress in
      let (seed, (name, options)) = run
      let task = try DigitsTask(
        SyntheticDigits(seed: UInt64(seed)), counts: SplitCounts(train: trainingImages, validation: 0, test: testImages))
      let model = try Self.model(task, options: options, generator: RandomGenerator(seed: UInt64(seed)))
      try ExperimentLoop(steps: steps, learningRate: learningRate).train(model, on: task, batchSize: batchSize, seed: seed)
      let accuracy = try model.evaluate(task, .test, batchSize: 250).accuracy
      let measured = task.batch(.test, Array(0..<min(rankImages, testImages)))
      let rank = Self.effectiveRank(model, measured.inputs)
      progress(
        "seed \(seed), \(name): accuracy \(decimals(accuracy)), effective rank \(decimals(rank, 1)), "
          + "\(decimals(seconds(since: start), 0)) s")
      return (accuracy: accuracy, rank: rank, parameters: model.parameterCount)
    }
    for (run, result) in zip(runs, results) {
      accuracies[run.arm.name, default: []].append(result.accuracy)
      ranks[run.arm.name, default: []].append(result.rank)
      parameters[run.arm.name] = result.parameters
    }
    func accuracy(_ name: String) -> Double { mean(accuracies[name] ?? []) }
    func rank(_ name: String) -> Double { mean(ranks[name] ?? []) }
    return Reproduction(
      id: "rala", claim: try Catalog.entry("rala").claim, inequality: Self.inequality,
      holds: Self.holds(
        rala: accuracy("rala"), linear: accuracy("linear"), softmax: accuracy("softmax"), ralaRank: rank("rala"),
        linearRank: rank("linear")), seconds: seconds(since: start), seeds: seeds,
      arms: Self.arms.map { arm in
        let metrics = (accuracies[arm.name] ?? []).metrics("accuracy", seeds: seeds)
          .merging((ranks[arm.name] ?? []).metrics("effective_rank", seeds: seeds)) { first, _ in first }
          .merging(["parameters": Double(parameters[arm.name] ?? 0)]) { first, _ in first }
        return Reproduction.Arm(name: arm.name, metrics: metrics)
      },
      note: """
        Scaled down: \(trainingImages) drawn 8×8 digits (no handwriting) as 64 tokens of one pixel, \(testImages) others in the test, two \
        layers of width 32, \(steps) steps. All arms have the same rotary positions and LePE; softmax has no gate. effective_rank is e to \
        the entropy of the singular values of a mixer's output [64, 32], the mean over \(rankImages) test images and both layers.
        """)
  }
}

/// Runs the experiment of `rala` at its full size.
public func reproduceRALA(progress: (String) -> Void) throws -> Reproduction {
  try onOneThread { try RALAExperiment().run(progress: progress) }
}
