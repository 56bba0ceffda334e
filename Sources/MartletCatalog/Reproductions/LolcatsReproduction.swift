import MartletTraining

/// The experiment of `lolcats`: is matching attention outputs first, then low-rank adaptation, the better use of a small budget than
/// either the adaptation alone or both at once?
///
/// A softmax byte model of three layers is trained, its attention replaced by a window of 8 and 16-column feature maps, and the same
/// number of further steps spent in four ways.
struct LolcatsExperiment {
  var seeds = [0, 1]
  var pretrainingSteps = 300
  /// Of each way to repair the swap.
  var steps = 200
  var batchSize = 16
  var length = 128
  var learningRate = 2e-3
  var transferLearningRate = 1e-2
  var rank = 4
  var window = 8
  var features = 16
  /// Held-out sequences.
  var heldOut = 64
  /// Of the generated text.
  var textBytes = 400_000
  /// What to read instead.
  var text: ExperimentText.Given?

  static let inequality = """
    loss(transfer + LoRA) < loss(transfer) < loss(swap), loss(transfer + LoRA) <= loss(LoRA and maps) <= loss(LoRA), and \
    transfer + LoRA closes at least 0.6 of the gap from swap to base
    """

  /// Whether the claim holds for mean held-out losses.
  static func holds(base: Double, swap: Double, transfer: Double, transferAndLoRA: Double, lora: Double, loraAndMaps: Double) -> Bool {
    transferAndLoRA < transfer && transfer < swap && transferAndLoRA <= loraAndMaps && loraAndMaps <= lora
      && swap - transferAndLoRA >= 0.6 * (swap - base)
  }

  static let arms = ["base", "swap", "transfer", "transfer + LoRA", "LoRA", "LoRA and maps"]

  private var configuration: BackboneConfiguration {
    BackboneConfiguration(
      input: .tokens(vocabulary: 256), width: 64, layers: 3, heads: 4, mixers: [MixerChoice("softmax")], isCausal: true, length: length + 1)
  }

  private func nextByteLoss(_ model: LanguageModel, _ tokens: Tensor) -> Tensor {
    let logits = model(tokens.narrowed(axis: 1, start: 0, length: length))
    return crossEntropy(logits, tokens.narrowed(axis: 1, start: 1, length: length))
  }

  func run(progress: (String) -> Void) throws -> Reproduction {
    let start = ContinuousClock.now
    var losses: [String: [Double]] = [:]
    var trained: [String: Int] = [:]
    let results = try concurrently(seeds, progress: progress) { seed, progress in
      var (losses, trained) = ([String: Double](), [String: Int]())
      let bytes = text?.bytes ?? SyntheticText().bytes(textBytes, seed: UInt64(seed)).prefix(textBytes)
      let (train, held) = try TokenSequences.split(bytes.map(Int.init), length: length + 1)
      let measured = held.batches(size: batchSize, limit: heldOut)
      let order = BatchOrder(count: train.count)
      func batch(_ step: Int, _ stream: UInt64) -> Tensor {
        train.batch(order.indices(step: step, size: batchSize, seed: UInt64(seed) + 100 * stream))
      }
      func fit(_ model: LanguageModel, steps: Int, stream: UInt64) throws {
        try ExperimentLoop(steps: steps, learningRate: learningRate, weightDecay: 0).train(model) {
          nextByteLoss(model, batch($0, stream))
        }
      }
      func report(_ name: String, _ model: LanguageModel) {
        model.eval()
        let value = LinearizeWithLoRA.loss(model, measured)
        losses[name] = value
        progress("seed \(seed), \(name): held-out loss \(decimals(value, 4)), \(decimals(seconds(since: start), 0)) s")
      }

      let base = try LanguageModel(configuration, generator: RandomGenerator(seed: UInt64(seed)))
      try fit(base, steps: pretrainingSteps, stream: 0)
      report("base", base)
      let weights = base.stateDictionary()
      /// The base model with new maps, and its layers' adapters.
      func swapped(lora: Bool) throws -> LanguageModel {
        let model = try LanguageModel(configuration, generator: RandomGenerator(seed: 0))
        try model.load(weights)
        model.freeze()
        let generator = RandomGenerator(seed: UInt64(seed) + 1)
        try model.linearize(layers: [0, 1, 2], .init(window: window, features: features), generator: generator)
        if lora { try adapt(model, generator) }
        return model
      }
      func adapt(_ model: LanguageModel, _ generator: RandomGenerator) throws {
        let names = ["query", "key", "value", "output"]
        let paths = model.linearPaths { path in names.contains { path.hasSuffix("mixer." + $0) } }
        try model.attachAdapters(to: paths) { try LoRA(.init(rank: rank, alpha: 2 * Double(rank)), for: $0, generator: generator) }
      }
      func count(_ name: String, _ model: LanguageModel) { trained[name] = model.trainableParameters().reduce(0) { $0 + $1.tensor.count } }

      let student = try swapped(lora: false)
      report("swap", student)
      let transfer = AttentionTransfer(
        .init(
          steps: steps / 2, batchSize: batchSize, learningRate: transferLearningRate, measureEvery: max(1, steps / 8),
          heldOutLimit: batchSize, seed: UInt64(seed)))
      count("transfer", student)
      _ = try transfer.run(student, train: train, heldOut: held)
      report("transfer", student)
      try adapt(student, RandomGenerator(seed: UInt64(seed) + 2))
      count("transfer + LoRA", student)
      try fit(student, steps: steps - steps / 2, stream: 1)
      try student.mergeAdapters()
      report("transfer + LoRA", student)

      let adapted = try swapped(lora: true)
      count("LoRA", adapted)
      try fit(adapted, steps: steps, stream: 1)
      report("LoRA", adapted)

      let both = try swapped(lora: true)
      both.unfreeze { $0.contains("_map.") || $0.hasSuffix("window_factor") }
      count("LoRA and maps", both)
      try fit(both, steps: steps, stream: 1)
      report("LoRA and maps", both)
      return (losses: losses, trained: trained)
    }
    for result in results {
      for (name, loss) in result.losses { losses[name, default: []].append(loss) }
      trained = result.trained
    }
    func loss(_ name: String) -> Double { mean(losses[name] ?? []) }
    let closed = (loss("swap") - loss("transfer + LoRA")) / (loss("swap") - loss("base"))
    return Reproduction(
      id: "lolcats", claim: try Catalog.entry("lolcats").claim, inequality: Self.inequality,
      holds: Self.holds(
        base: loss("base"), swap: loss("swap"), transfer: loss("transfer"), transferAndLoRA: loss("transfer + LoRA"), lora: loss("LoRA"),
        loraAndMaps: loss("LoRA and maps")), seconds: seconds(since: start), seeds: seeds,
      arms: Self.arms.map { name in
        var metrics = (losses[name] ?? []).metrics("loss", seeds: seeds)
        if let count = trained[name] { metrics["trained_parameters"] = Double(count) }
        if name == "transfer + LoRA" { metrics["gap_closed"] = closed }
        return Reproduction.Arm(name: name, metrics: metrics)
      },
      note: """
        Scaled down: a softmax byte model of three layers (width 64, four heads) trained \(pretrainingSteps) steps on \
        \(text?.name ?? "generated text"), then linearised with a window of \(window) and \(features) columns of \
        features; every way to repair it has \(steps) steps (the transfer alone half of them). Losses in nats a byte. \(ExperimentText.hint)
        """)
  }
}

/// Runs the experiment of `lolcats` as its sheet states it, on ``ExperimentText``.
public func reproduceLolcats(progress: (String) -> Void) throws -> Reproduction {
  var experiment = LolcatsExperiment()
  experiment.text = try ExperimentText.given()
  return try onOneThread { try experiment.run(progress: progress) }
}
