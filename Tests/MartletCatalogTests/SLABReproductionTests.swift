import Testing

@testable import MartletCatalog

@Suite struct SLABReproductionTests {
  @Test func slidingNormsInMiniature() throws {
    var experiment = SLABExperiment(seeds: [3, 4], steps: 5, batchSize: 4, trainingImages: 8, testImages: 10)
    experiment.timings = 2
    experiment.timedImages = 3
    experiment.lengths = [16, 64]
    experiment.mixerTimings = 1
    var lines: [String] = []
    let reproduction = try experiment.run { lines.append($0) }
    let entry = try Catalog.entry("slab")
    #expect(reproduction.id == "slab" && reproduction.claim == entry.claim)
    #expect(reproduction.arms.map(\.name) == ["layer", "batch", "repbn", "prepbn", "folded", "slab mixer", "softmax mixer"])
    #expect(lines.count == 12, "a line for each arm and seed, folded models and lengths: \(lines)")
    func figure(_ arm: Int, _ name: String) throws -> Double { try #require(reproduction.arms[arm].metrics[name], "\(name)") }
    for seed in [3, 4] {
      let (before, after) = (try figure(3, "accuracy_seed_\(seed)"), try figure(4, "accuracy_seed_\(seed)"))
      #expect(before == after, "folding changes no answer")
    }
    let ratios = try [16, 64].map { try figure(5, "time_ratio_\($0)") }
    for (ratio, length) in zip(ratios, [16, 64]) {
      let (slab, softmax) = (try figure(5, "seconds_\(length)"), try figure(6, "seconds_\(length)"))
      #expect(abs(ratio - slab / softmax) < 1e-9)
    }
    let holds = SLABExperiment.holds(
      layer: try figure(0, "accuracy"), progressive: try figure(3, "accuracy"), folded: try figure(4, "accuracy"),
      layerSeconds: try figure(0, "forward_seconds"), foldedSeconds: try figure(4, "forward_seconds"), timeRatios: ratios)
    #expect(reproduction.verdict == (holds ? .holds : .fails))
  }

  @Test func armsDifferInTheNormsOnly() throws {
    let objective = TaskObjective.classification(classes: 10)
    let arms = SLABExperiment(steps: 250).arms()
    #expect(arms.map(\.name) == ["layer", "batch", "repbn", "prepbn"] && arms[3].slide == 150 && arms[2].slide == 0)
    let models = try arms.map {
      try SLABExperiment.model($0.norm, slide: $0.slide, objective: objective, generator: RandomGenerator(seed: 0))
    }
    // Nine norms of width 48; the sliding one has both and η.
    #expect(models[1].parameterCount == models[0].parameterCount && models[2].parameterCount == models[3].parameterCount)
    #expect(models[3].parameterCount == models[0].parameterCount + 9 * (2 * 48 + 1))
    #expect((models[3].backbone.blocks[0].mixerNorm as? ProgressiveRepBatchNorm)?.schedule.steps == 150)
  }

  @Test func patchesAreSquaresOfPixels() {
    let pixels = Tensor.arange(64).to(.float32).reshaped(1, 64, 1)
    let patches = SLABExperiment.patches(Batch(inputs: pixels, targets: Tensor([0])))
    #expect(patches.inputs.shape == [1, 16, 4])
    #expect(patches.inputs[0, 0].toArray(Double.self) == [0, 1, 8, 9])
    #expect(patches.inputs[0, 5].toArray(Double.self) == [18, 19, 26, 27])
  }

  @Test func verdictFollowsEveryFigure() {
    func holds(
      _ layer: Double = 0.84, _ progressive: Double = 0.94, _ folded: Double = 0.94, _ times: (Double, Double) = (2, 1),
      _ ratios: [Double] = [1, 0.5, 0.2]
    ) -> Bool {
      SLABExperiment.holds(
        layer: layer, progressive: progressive, folded: folded, layerSeconds: times.0, foldedSeconds: times.1, timeRatios: ratios)
    }
    #expect(holds())
    #expect(holds(0.955, 0.94, 0.94))
    #expect(!holds(0.97, 0.94, 0.94), "more than two points below")
    #expect(!holds(0.84, 0.94, 0.9399), "the folded model answers otherwise")
    #expect(!holds(0.84, 0.94, 0.94, (1, 1)), "the folded model isn't faster")
    #expect(!holds(0.84, 0.94, 0.94, (2, 1), [1, 0.5, 0.6]), "the ratio must fall")
    #expect(!holds(.nan))
  }
}
