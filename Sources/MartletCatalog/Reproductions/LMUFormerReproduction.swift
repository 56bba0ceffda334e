import MartletModels
import MartletTraining

/// The experiment of `lmuformer`: 8×8 digits read as sixteen patches of 2×2 pixels, row after row.
///
/// An LMUFormer of 17 thousand parameters against a Transformer of 100 thousand, and the spiking LMUFormer; all by the mean of the
/// logits over the patches. The LMUFormer is also judged by the running mean after three quarters of the patches.
struct LMUFormerExperiment {
  var seeds = [0, 1, 2]
  var steps = 300
  var batchSize = 32
  var trainingImages = 1200
  var testImages = 500

  static let inequality = """
    accuracy(lmuformer) >= accuracy(transformer) and parameters(lmuformer) <= 0.25 * parameters(transformer) and \
    accuracy_after_12(lmuformer) >= accuracy(lmuformer) - 0.05 and accuracy(spiking) >= accuracy(lmuformer) - 0.18
    """

  struct Figures {
    var lmuformer, transformer, spiking, afterThreeQuarters: Double
    var parameters, transformerParameters: Int
  }

  static func holds(_ f: Figures) -> Bool {
    f.lmuformer >= f.transformer && 4 * f.parameters <= f.transformerParameters && f.afterThreeQuarters >= f.lmuformer - 0.05
      && f.spiking >= f.lmuformer - 0.18
  }

  /// Arms with their learning rates.
  static let arms: [(name: String, learningRate: Double)] = [("lmuformer", 3e-3), ("transformer", 3e-3), ("spiking", 1e-2)]

  /// [batch, 64, 1] → [batch, 16, 4]: squares of 2×2 pixels, row after row.
  static func patches(_ pixels: Tensor) -> Tensor {
    pixels.reshaped(-1, 4, 2, 4, 2).transposed(0, 1, 3, 2, 4).reshaped(-1, 16, 4)
  }

  /// A model and its logits after 1, 2, …, 16 patches, [batch, 16, classes]: running means for the LMUFormers; the Transformer sees all
  /// patches at once and has one row.
  static func arm(_ name: String, generator: RandomGenerator) throws -> (model: Module, logits: (Tensor) -> Tensor) {
    if name == "transformer" {
      let configuration = BackboneConfiguration(
        input: .continuous(channels: 4), width: 64, layers: 3, heads: 4,
        mixers: [MixerChoice("softmax", options: ["rotary": false, "bias": true])], hidden: 128, isCausal: false, positions: .learned,
        length: 16)
      let model = try SequenceClassifier(configuration, classes: 10, generator: generator)
      return (model, { model($0).expandedDimension(1) })
    }
    let isSpiking = name == "spiking"
    let model = try LMUFormer(
      .init(
        channels: 4, width: isSpiking ? 64 : 32, memory: isSpiking ? 32 : 16, window: 16, convolutions: 3, mixerRatio: 2, classes: 10,
        isSpiking: isSpiking), generator: generator)
    return (model, { LMUFormer.runningMeans(model.framewise($0)) })
  }

  /// Shares of right classes in the test split after the patches asked for (counted from 1) and at the end.
  private func evaluate(_ task: DigitsTask, after patches: Int, _ logits: (Tensor) -> Tensor) throws -> (early: Double, full: Double) {
    try withoutGradient {
      var (early, full, index) = (0, 0, 0)
      while let batch = try task.evaluationBatch(.test, index: index, size: 250) {
        let means = logits(Self.patches(batch.inputs))
        func right(_ place: Int) -> Int {
          (means.selected(axis: 1, place).argmax(axis: -1) .== batch.targets).to(.int64).sum().itemInt()
        }
        early += right(min(patches, means.dim(1)) - 1)
        full += right(means.dim(1) - 1)
        index += 1
      }
      let count = Double(task.count(.test))
      return (Double(early) / count, Double(full) / count)
    }
  }

  func run(progress: (String) -> Void) throws -> Reproduction {
    let start = ContinuousClock.now
    var full: [String: [Double]] = [:]
    var early: [String: [Double]] = [:]
    var parameters: [String: Int] = [:]
    for seed in seeds {
      let task = try DigitsTask(
        SyntheticDigits(seed: UInt64(seed)), counts: SplitCounts(train: trainingImages, validation: 0, test: testImages))
      for (name, learningRate) in Self.arms {
        let (model, logits) = try Self.arm(name, generator: RandomGenerator(seed: UInt64(seed)))
        try ExperimentLoop(steps: steps, learningRate: learningRate).train(model) {
          let batch = try task.trainingBatch(step: $0, size: batchSize, seed: UInt64(seed))
          let means = logits(Self.patches(batch.inputs))
          return crossEntropy(means.selected(axis: 1, means.dim(1) - 1), batch.targets)
        }
        let shares = try evaluate(task, after: 12, logits)
        full[name, default: []].append(shares.full)
        early[name, default: []].append(shares.early)
        parameters[name] = model.parameterCount
        progress(
          "seed \(seed), \(name): accuracy \(decimals(shares.full)), after 12 of 16 patches \(decimals(shares.early)), "
            + "\(decimals(seconds(since: start), 0)) s")
      }
    }
    func accuracy(_ name: String) -> Double { mean(full[name] ?? []) }
    let figures = Figures(
      lmuformer: accuracy("lmuformer"), transformer: accuracy("transformer"), spiking: accuracy("spiking"),
      afterThreeQuarters: mean(early["lmuformer"] ?? []), parameters: parameters["lmuformer"] ?? 0,
      transformerParameters: parameters["transformer"] ?? 0)
    return Reproduction(
      id: "lmuformer", claim: try Catalog.entry("lmuformer").claim, inequality: Self.inequality, holds: Self.holds(figures),
      seconds: seconds(since: start), seeds: seeds,
      arms: Self.arms.map { arm in
        var metrics = (full[arm.name] ?? []).metrics("accuracy", seeds: seeds)
        if arm.name != "transformer" { metrics["accuracy_after_12"] = mean(early[arm.name] ?? []) }
        metrics["parameters"] = Double(parameters[arm.name] ?? 0)
        return Reproduction.Arm(name: arm.name, metrics: metrics)
      },
      note: """
        Scaled down: \(trainingImages) drawn 8×8 digits (no handwriting) as sixteen 2×2 patches, \(steps) steps of \(batchSize), \
        \(testImages) others in the test. accuracy_after_12 is that of the mean logits of the first 12 patches; the convolutions let each \
        of these see four patches more.
        """ + Self.reservation(figures))
  }

  /// What a failing part of the inequality says, to be added to the note.
  static func reservation(_ f: Figures) -> String {
    let lost = f.lmuformer - f.afterThreeQuarters
    guard lost > 0.05 else { return "" }
    return """
       The part on early prediction fails: after 12 patches the mean is \(decimals(100 * lost, 1)) points lower, where 5 are allowed. \
      The models learn from the mean of all sixteen logits, and nothing asks the first ones to be right by themselves; these drawn \
      digits differ from the handwritten ones of UCI, for which a loss of 2.7 points was observed.
      """
  }
}

/// Runs the experiment of `lmuformer` as its sheet states it.
public func reproduceLMUFormer(progress: (String) -> Void) throws -> Reproduction {
  try onOneThread { try LMUFormerExperiment().run(progress: progress) }
}
