import Testing

@testable import MartletCatalog

@Suite struct RALAReproductionTests {
  @Test func rankAugmentedAttentionInMiniature() throws {
    var lines: [String] = []
    let experiment = RALAExperiment(seeds: [3, 4], steps: 2, batchSize: 4, trainingImages: 8, testImages: 10, rankImages: 2)
    let reproduction = try experiment.run { lines.append($0) }
    #expect(reproduction.id == "rala" && reproduction.arms.map(\.name) == ["linear", "+α", "+O", "rala", "softmax"])
    let entry = try Catalog.entry("rala")
    #expect(reproduction.claim == entry.claim && reproduction.seeds == [3, 4])
    #expect(lines.count == 10, "a line for each arm and seed: \(lines)")
    func figure(_ arm: Int, _ name: String) throws -> Double {
      let metrics = reproduction.arms[arm].metrics
      let value = try #require(metrics[name])
      let seeds = try [3, 4].map { try #require(metrics["\(name)_seed_\($0)"]) }
      #expect(abs(value - seeds.reduce(0, +) / 2) < 1e-12)
      return value
    }
    for arm in 0..<5 {
      let (accuracy, rank) = (try figure(arm, "accuracy"), try figure(arm, "effective_rank"))
      #expect((0...1).contains(accuracy) && (1...32).contains(rank))
    }
    let holds = RALAExperiment.holds(
      rala: try figure(3, "accuracy"), linear: try figure(0, "accuracy"), softmax: try figure(4, "accuracy"),
      ralaRank: try figure(3, "effective_rank"), linearRank: try figure(0, "effective_rank"))
    #expect(reproduction.verdict == (holds ? .holds : .fails))
  }

  @Test func armsDifferInTheMixerOnly() throws {
    let task = try DigitsTask(counts: .init(train: 4, validation: 0, test: 4))
    let counts = try RALAExperiment.arms.map { arm in
      try RALAExperiment.model(task, options: arm.options, generator: RandomGenerator(seed: 0)).parameterCount
    }
    let gate = 2 * (32 * 32 + 32)
    #expect(counts == [counts[0], counts[0], counts[0] + gate, counts[0] + gate, counts[0]])
    let mixers = try RALAExperiment.arms.map { arm in
      try #require(
        RALAExperiment.model(task, options: arm.options, generator: RandomGenerator(seed: 0)).backbone.blocks[0].mixer
          as? RankAugmentedLinearAttention
      ).configuration
    }
    #expect(mixers.map(\.isReweighted) == [false, true, false, true, true])
    #expect(mixers.map(\.isGated) == [false, false, true, true, false])
    #expect(mixers.map(\.isSoftmax) == [false, false, false, false, true])
    #expect(mixers.allSatisfy { $0.columns == 8 && $0.localKernel == 5 && $0.isRotary })
  }

  @Test func verdictFollowsEveryFigure() {
    func holds(_ rala: Double, _ linear: Double, _ softmax: Double, _ ranks: (Double, Double) = (20, 4)) -> Bool {
      RALAExperiment.holds(rala: rala, linear: linear, softmax: softmax, ralaRank: ranks.0, linearRank: ranks.1)
    }
    #expect(holds(0.79, 0.44, 0.68))
    #expect(holds(0.66, 0.66, 0.68))
    #expect(!holds(0.79, 0.8, 0.68), "below linear attention")
    #expect(!holds(0.64, 0.44, 0.68), "more than three points below softmax attention")
    #expect(!holds(0.79, 0.44, 0.68, (4, 4)), "the rank must be higher")
    #expect(!holds(.nan, 0.44, 0.68))
  }
}
