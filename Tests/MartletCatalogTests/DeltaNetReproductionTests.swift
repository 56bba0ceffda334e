import Testing

@testable import MartletCatalog

/// The experiment of `deltanet` in miniature, and its verdict on given figures.
@Suite struct DeltaNetReproductionTests {
  @Test func latestBindingsInMiniature() throws {
    var lines: [String] = []
    let experiment = DeltaNetExperiment(seeds: [3, 4], steps: 3, batchSize: 4, testSequences: 10)
    let reproduction = try experiment.run { lines.append($0) }
    let claim = try Catalog.entry("deltanet").claim
    #expect(reproduction.id == "deltanet" && reproduction.claim == claim)
    #expect(reproduction.arms.map(\.name) == ["linear", "retention", "gla", "deltanet", "softmax"])
    #expect(lines.count == 10, "a line for each arm and seed: \(lines)")
    var errors: [Double] = []
    for arm in reproduction.arms {
      let figures = try [3, 4].map { try #require(arm.metrics["error_seed_\($0)"]) }
      let error = try #require(arm.metrics["error"])
      #expect(figures.allSatisfy { (0...1).contains($0) } && abs(error - (figures[0] + figures[1]) / 2) < 1e-12, "\(arm.name): \(figures)")
      errors.append(error)
    }
    let holds = DeltaNetExperiment.holds(linear: errors[0], retention: errors[1], gla: errors[2], deltaNet: errors[3])
    #expect(reproduction.verdict == (holds ? .holds : .fails), "errors \(errors)")
  }

  @Test func armsDifferInTheRuleOfTheirMemoryOnly() throws {
    let task = try LatestBindingTask(counts: .init(train: 4, validation: 0, test: 4))
    func shapes(_ arm: String) throws -> [String: [Int]] {
      let model = try DeltaNetExperiment.model(task, arm: arm, generator: RandomGenerator(seed: 0))
      return Dictionary(uniqueKeysWithValues: model.parameters().map { ($0.name, $0.tensor.shape) })
    }
    let (plain, retention, gla, deltaNet) = (try shapes("linear"), try shapes("retention"), try shapes("gla"), try shapes("deltanet"))
    #expect(plain == retention)
    #expect(plain == gla.filter { !$0.key.contains(".gate_in.") && !$0.key.contains(".gate_out.") })
    #expect(plain == deltaNet.filter { !$0.key.contains(".rate.") })
    #expect(plain["backbone.blocks.0.mixer.query.weight"] == [16, 32], "two heads of dk = 8")
    #expect(plain["backbone.blocks.0.mixer.value.weight"] == [32, 32], "two heads of dv = 16")
    #expect(plain["backbone.blocks.0.mixer.key_convolution.weight"] == [16, 4])
  }

  @Test func theVerdictFollowsTheErrors() {
    func holds(_ linear: Double, _ retention: Double, _ gla: Double, _ deltaNet: Double) -> Bool {
      DeltaNetExperiment.holds(linear: linear, retention: retention, gla: gla, deltaNet: deltaNet)
    }
    #expect(holds(0.17, 0.06, 0.002, 0))
    #expect(holds(0.2, 0.2, 0.2, 0.1))
    #expect(!holds(0.2, 0.2, 0.2, 0.11), "more than half of linear's")
    #expect(!holds(0.2, 0.05, 0.2, 0.06), "retention is better")
    #expect(!holds(0.2, 0.2, 0.01, 0.01), "GLA is as good")
    #expect(!holds(0.2, 0.2, 0.2, .nan))
  }
}
