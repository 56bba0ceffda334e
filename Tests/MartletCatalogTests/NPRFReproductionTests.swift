import Testing

@testable import MartletCatalog

@Suite struct NPRFReproductionTests {
  @Test func everyArmRunsAndIsReported() throws {
    var lines: [String] = []
    let experiment = NPRFExperiment(seeds: [3, 4], steps: 2, batchSize: 4, length: 12, testSequences: 10)
    let reproduction = try experiment.run { lines.append($0) }
    #expect(reproduction.id == "nprf")
    #expect(reproduction.claim == (try Catalog.entry("nprf").claim))
    #expect(reproduction.arms.map(\.name) == ["nprf+rpe", "nprf", "prf", "softmax", "softmax+rpe"])
    #expect(lines.count == 10, "a line for each arm and seed: \(lines)")
    var accuracies: [Double] = []
    for arm in reproduction.arms {
      let figures = [3, 4].map { arm.metrics["accuracy_seed_\($0)"] ?? .nan }
      #expect(figures.allSatisfy { (0...1).contains($0) }, "\(arm.name): \(figures)")
      accuracies.append(arm.metrics["accuracy"] ?? .nan)
      #expect(abs(accuracies.last! - (figures[0] + figures[1]) / 2) < 1e-12)
    }
    let holds = NPRFExperiment.holds(biased: accuracies[0], normalized: accuracies[1], plain: accuracies[2])
    #expect(reproduction.verdict == (holds ? .holds : .fails), "accuracies \(accuracies)")
  }

  @Test func armsDifferInTheirAttentionOnly() throws {
    let task = try ShiftTask(counts: .init(train: 4, validation: 0, test: 4))
    func names(_ arm: String) throws -> [String: [Int]] {
      let model = try NPRFExperiment.model(task, arm: arm, generator: RandomGenerator(seed: 0))
      return Dictionary(uniqueKeysWithValues: model.parameters().map { ($0.name, $0.tensor.shape) })
    }
    let plain = try names("nprf")
    #expect(try names("prf") == plain)
    #expect(try names("softmax") == plain)
    #expect(try names("nprf+rpe").filter { plain[$0.key] == nil } == ["backbone.blocks.0.mixer.rpe.weight": [2, 127]])
    #expect(try names("softmax+rpe").filter { plain[$0.key] == nil } == ["backbone.relative_bias.weight": [256, 2]])
    #expect(plain["backbone.blocks.0.mixer.query.weight"] == [32, 32])
  }

  @Test func theVerdictFollowsTheAccuracies() {
    #expect(NPRFExperiment.holds(biased: 0.96, normalized: 0.13, plain: 0.17))
    #expect(!NPRFExperiment.holds(biased: 0.89, normalized: 0.13, plain: 0.17))
    #expect(!NPRFExperiment.holds(biased: 0.96, normalized: 0.31, plain: 0.17))
    #expect(!NPRFExperiment.holds(biased: 0.96, normalized: 0.13, plain: 0.4))
    #expect(!NPRFExperiment.holds(biased: .nan, normalized: 0.13, plain: 0.17))
  }
}
