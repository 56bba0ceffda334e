import MartletTraining

/// The experiment of `slab`: does a norm that slides from layer norm to a foldable batch norm lose nothing, and cost nothing once it is
/// folded? And does the time of simplified linear attention over that of softmax attention fall with the number of tokens?
///
/// Drawn 8×8 digits are read as 16 patches of 2×2 pixels by four layers of width 48 with simplified linear attention; the arms differ in
/// the norms only.
struct SLABExperiment {
  var seeds = [0, 1, 2]
  var steps = 250
  var batchSize = 32
  var learningRate = 3e-3
  var trainingImages = 400
  var testImages = 1000
  /// Forward passes timed for each of the two models.
  var timings = 60
  /// Images in a timed pass.
  var timedImages = 100
  var lengths = [256, 1024, 4096]
  /// Forward passes timed for each mixer and length.
  var mixerTimings = 7

  static let inequality = """
    accuracy(prepbn) >= accuracy(layer) - 0.02 and accuracy(folded) = accuracy(prepbn) and \
    forward_seconds(folded) < forward_seconds(layer) and time_ratio_256 > time_ratio_1024 > time_ratio_4096 (of slab to softmax)
    """

  /// Whether the claim holds: mean accuracies of layer norm, of the sliding norm and of the same models folded (which must be equal),
  /// seconds of a forward pass, and times of the mixer over softmax attention's in the order of lengths.
  static func holds(
    layer: Double, progressive: Double, folded: Double, layerSeconds: Double, foldedSeconds: Double, timeRatios: [Double]
  ) -> Bool {
    progressive >= layer - 0.02 && folded == progressive && foldedSeconds < layerSeconds && timeRatios.count > 1
      && zip(timeRatios, timeRatios.dropFirst()).allSatisfy { $0 > $1 }
  }

  /// The norms compared, under the names of the arms; RepBN is the sliding norm without a slide.
  func arms() -> [(name: String, norm: NormalizationKind, slide: Int)] {
    [("layer", .layer, 0), ("batch", .batch, 0), ("repbn", .prepbn, 0), ("prepbn", .prepbn, steps * 3 / 5)]
  }

  static func model(_ norm: NormalizationKind, slide: Int, objective: TaskObjective, generator: RandomGenerator) throws -> TaskModel {
    var configuration = BackboneConfiguration(
      input: .continuous(channels: 4), width: 48, layers: 4, heads: 4, mixers: [MixerChoice("slab", options: ["columns": 4])], norm: norm,
      isCausal: false, positions: .learned, length: 16)
    configuration.normSchedule.steps = slide
    return try TaskModel(configuration, objective: objective, pooling: .mean, generator: generator)
  }

  /// [batch, 64, 1] pixels row by row → [batch, 16, 4] patches row by row.
  static func patches(_ batch: Batch) -> Batch {
    let x = batch.inputs.reshaped(-1, 4, 2, 4, 2).transposed(0, 1, 3, 2, 4).reshaped(-1, 16, 4)
    return Batch(inputs: x, targets: batch.targets)
  }

  /// The share of right classes in the test split.
  private func accuracy(_ model: TaskModel, _ task: DigitsTask) throws -> Double {
    model.eval()
    return try withoutGradient {
      var correct = 0
      var index = 0
      while let batch = try task.evaluationBatch(.test, index: index, size: 250) {
        let patches = Self.patches(batch)
        correct += (model(patches.inputs).argmax(axis: -1) .== patches.targets).to(.int64).sum().itemInt()
        index += 1
      }
      return Double(correct) / Double(testImages)
    }
  }

  /// The least seconds of a call of each; they take turns, so that a slow moment strikes all.
  private func leastSeconds(_ rounds: Int, _ calls: [() -> Void]) -> [Double] {
    var least = [Double](repeating: .infinity, count: calls.count)
    withoutGradient {
      for call in calls { call() }
      for _ in 0..<rounds {
        for (i, call) in calls.enumerated() {
          let start = ContinuousClock.now
          call()
          least[i] = min(least[i], seconds(since: start))
        }
      }
    }
    return least
  }

  func run(progress: (String) -> Void) throws -> Reproduction {
    let start = ContinuousClock.now
    var accuracies: [String: [Double]] = [:]
    var times: [String: [Double]] = [:]
    var parameters: [String: Int] = [:]
    func task(_ seed: Int) throws -> DigitsTask {
      try DigitsTask(
        SyntheticDigits(seed: UInt64(seed)), counts: SplitCounts(train: trainingImages, validation: 0, test: testImages))
    }
    let runs = pairs(seeds, arms())
    let trained = try concurrently(runs, progress: progress) { run, progress in
      let (seed, (name, norm, slide)) = run
      let task = try task(seed)
      let model = try Self.model(norm, slide: slide, objective: task.objective, generator: RandomGenerator(seed: UInt64(seed)))
      try ExperimentLoop(steps: steps, learningRate: learningRate).train(model) { step in
        model.loss(Self.patches(try task.trainingBatch(step: step, size: batchSize, seed: UInt64(seed))))
      }
      let accuracy = try accuracy(model, task)
      progress("seed \(seed), \(name): accuracy \(decimals(accuracy)), \(decimals(seconds(since: start), 0)) s")
      return (model: model, accuracy: accuracy)
    }
    for (run, result) in zip(runs, trained) {
      parameters[run.arm.name] = result.model.parameterCount
      accuracies[run.arm.name, default: []].append(result.accuracy)
    }
    // Times are measured one after another, when nothing else runs.
    for seed in seeds {
      let task = try task(seed)
      func model(_ name: String) -> TaskModel? { zip(runs, trained).first { $0.0.seed == seed && $0.0.arm.name == name }?.1.model }
      guard let layer = model("layer"), let folded = model("prepbn") else { continue }
      try foldNormalization(folded)
      parameters["folded"] = folded.parameterCount
      accuracies["folded", default: []].append(try accuracy(folded, task))
      let batch = Self.patches(task.batch(.test, Array(0..<min(timedImages, testImages))))
      let measured = leastSeconds(timings, [{ _ = layer(batch.inputs) }, { _ = folded(batch.inputs) }])
      for (name, value) in zip(["layer", "folded"], measured) { times[name, default: []].append(value) }
      progress(
        "seed \(seed), folded: accuracy \(decimals(accuracies["folded"]!.last!)), forward \(decimals(measured[1] * 1e6, 0)) µs, "
          + "with layer norm \(decimals(measured[0] * 1e6, 0)) µs")
    }
    let (ratios, mixerTimes) = try mixers(progress: progress)
    func meanAccuracy(_ name: String) -> Double { mean(accuracies[name] ?? []) }
    func time(_ name: String) -> Double { (times[name] ?? []).min() ?? .nan }
    var results = (arms().map(\.name) + ["folded"]).map { name in
      var metrics = (accuracies[name] ?? []).metrics("accuracy", seeds: seeds)
      metrics["parameters"] = Double(parameters[name] ?? 0)
      if times[name] != nil { metrics["forward_seconds"] = time(name) }
      return Reproduction.Arm(name: name, metrics: metrics)
    }
    for name in ["slab mixer", "softmax mixer"] {
      var metrics: [String: Double] = [:]
      for (i, length) in lengths.enumerated() {
        metrics["seconds_\(length)"] = mixerTimes[name]?[i]
        if name == "slab mixer" { metrics["time_ratio_\(length)"] = ratios[i] }
      }
      results.append(Reproduction.Arm(name: name, metrics: metrics))
    }
    return Reproduction(
      id: "slab", claim: try Catalog.entry("slab").claim, inequality: Self.inequality,
      holds: Self.holds(
        layer: meanAccuracy("layer"), progressive: meanAccuracy("prepbn"), folded: meanAccuracy("folded"), layerSeconds: time("layer"),
        foldedSeconds: time("folded"), timeRatios: ratios), seconds: seconds(since: start), seeds: seeds, arms: results,
      note: """
        Scaled down: \(trainingImages) drawn 8×8 digits (no handwriting) as 16 patches, \(testImages) others in the test, four layers of \
        width 48, \(steps) steps, of which the norm slides in the first \(steps * 3 / 5). The comparison with plain batch norm is reported, \
        not judged: its collapse needs depth and scale. forward_seconds is the least time of a pass over \(timedImages) images; \
        time_ratio_N that of one layer of simplified linear attention over softmax attention, width 64, four heads, N tokens.
        """)
  }

  // MARK: Time of the mixers

  private func mixers(progress: (String) -> Void) throws -> (ratios: [Double], seconds: [String: [Double]]) {
    var times: [String: [Double]] = [:]
    let generator = RandomGenerator(seed: 0)
    for length in lengths {
      let site = MixerSite(width: 64, heads: 4, isCausal: false, length: length)
      let layers = try [MixerKind.slab, .softmax].map { try $0(site, generator: generator) }
      let x = Tensor.randomNormal([1, length, 64], generator: generator)
      let measured = leastSeconds(mixerTimings, layers.map { layer in { _ = layer(x) } })
      times["slab mixer", default: []].append(measured[0])
      times["softmax mixer", default: []].append(measured[1])
      progress("\(length) tokens: slab \(decimals(measured[0] * 1e3)) ms, softmax \(decimals(measured[1] * 1e3)) ms")
    }
    let ratios = zip(times["slab mixer"] ?? [], times["softmax mixer"] ?? []).map { $0 / $1 }
    return (ratios, times)
  }
}

/// Runs the experiment of `slab` at its full size.
public func reproduceSLAB(progress: (String) -> Void) throws -> Reproduction {
  try onOneThread { try SLABExperiment().run(progress: progress) }
}
