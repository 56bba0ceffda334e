import Testing

@testable import MartletCatalog

@Suite struct SelectiveS4ReproductionTests {
  @Test func selectionInMiniature() throws {
    let experiment = SelectiveS4Experiment(seeds: [3, 4], steps: 2, batchSize: 2, frames: 4, places: 4, testVideos: 6)
    var lines: [String] = []
    let reproduction = try experiment.run { lines.append($0) }
    #expect(reproduction.id == "selective-s4" && reproduction.seeds == [3, 4])
    #expect(reproduction.arms.map(\.name) == ["all", "random", "selected"])
    #expect(lines.count == 6, "a line for each arm and seed: \(lines)")
    for arm in reproduction.arms {
      for (name, value) in arm.metrics { #expect(value.isFinite, "\(arm.name): \(name) is \(value)") }
      let accuracies = try [3, 4].map { try #require(arm.metrics["accuracy_seed_\($0)"]) }
      #expect(abs(try #require(arm.metrics["accuracy"]) - (accuracies[0] + accuracies[1]) / 2) < 1e-12)
    }
    #expect(reproduction.arms.map { $0.metrics["tokens"] } == [16, 4, 4])
    #expect(reproduction.arms[0].metrics["event_tokens_kept"] == 1)
    let figures = reproduction.arms.map { ($0.metrics["accuracy"] ?? .nan, $0.metrics["event_tokens_kept"] ?? .nan) }
    let holds = SelectiveS4Experiment.holds(
      all: figures[0].0, random: figures[1].0, selected: figures[2].0, kept: figures[2].1, tokens: 0.25)
    #expect(reproduction.verdict == (holds ? .holds : .fails), "figures \(figures)")
  }

  @Test func armsDifferInTheirTokensOnly() {
    let models = SelectiveVideoArm.allCases.map {
      SelectiveVideoArmModel($0, channels: 12, length: 64, generator: RandomGenerator(seed: 1))
    }
    for model in models { model.eval() }
    let x = Tensor.randomNormal([2, 64, 12], generator: RandomGenerator(seed: 2))
    for (name, tensor) in models[0].stateDictionary() {
      #expect(models.allSatisfy { $0.stateDictionary()[name]!.isEqual(to: tensor) }, "\(name)")
    }
    #expect(models[0](x).selection == nil)
    #expect(models[1](x).selection?.count == 16 && models[2](x).selection?.count == 16)
    #expect(!models[1](x).selection!.indices.isEqual(to: models[1](x).selection!.indices), "drawn anew each time")
    #expect(models[2](x).selection!.indices.isEqual(to: models[2](x).selection!.indices))
    let trained = models.map { Set($0.trainableParameters().map(\.name)) }
    #expect(trained[0] == trained[1] && trained[2].subtracting(trained[0]).allSatisfy { $0.hasPrefix("first.selector.") })
    #expect(models[2].optimizerStepListeners().count == 1, "the guide follows")
  }

  @Test func theVerdictFollowsEveryFigure() {
    func holds(_ all: Double, _ random: Double, _ selected: Double, _ kept: Double = 0.98, _ tokens: Double = 0.25) -> Bool {
      SelectiveS4Experiment.holds(all: all, random: random, selected: selected, kept: kept, tokens: tokens)
    }
    #expect(holds(0.965, 0.68, 0.996))
    #expect(!holds(0.965, 0.82, 0.96), "the gain over a random choice must be 0.15")
    #expect(!holds(0.99, 0.68, 0.95), "no more than 0.03 below all tokens")
    #expect(!holds(0.965, 0.68, 0.996, 0.89), "nine tenths of the event tokens must be kept")
    #expect(!holds(0.965, 0.68, 0.996, 0.98, 0.5), "a quarter of the tokens")
    #expect(!holds(0.965, 0.68, .nan))
  }
}
