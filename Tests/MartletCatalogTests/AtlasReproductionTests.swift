import Testing

@testable import MartletCatalog

@Suite struct AtlasReproductionTests {
  @Test func atlasInMiniature() throws {
    var lines: [String] = []
    let experiment = AtlasExperiment(seeds: [3, 4], trials: 2, pairs: 6, width: 4, rates: [0.2, 0.5])
    let reproduction = try experiment.run { lines.append($0) }
    #expect(reproduction.id == "atlas")
    #expect(reproduction.claim == (try Catalog.entry("atlas").claim))
    #expect(reproduction.arms.map(\.name) == AtlasExperiment.arms.map(\.name))
    #expect(reproduction.seconds > 0 && reproduction.seeds == [3, 4] && lines.count == 5, "a line for each arm: \(lines)")
    var recalls: [Double] = []
    for arm in reproduction.arms {
      let figures = try [3, 4].map { try #require(arm.metrics["recall_seed_\($0)"]) }
      let recall = try #require(arm.metrics["recall"])
      #expect(abs(recall - figures.reduce(0, +) / 2) < 1e-12 && figures.allSatisfy { (0...1).contains($0) }, "\(arm.name): \(figures)")
      #expect([0.2, 0.5].contains(try #require(arm.metrics["rate"])))
      recalls.append(recall)
    }
    let holds = AtlasExperiment.holds(both: recalls[3], neither: recalls[0], window: recalls[1])
    #expect(reproduction.verdict == (holds ? .holds : .fails), "recalls \(recalls)")
  }

  /// At a rate of 1 a window of one stores orthogonal pairs exactly, and few random ones nearly so.
  @Test func fewPairsAreRecalledAndManyAreNot() {
    let arm = AtlasExperiment.arms[0]
    let few = AtlasExperiment(trials: 20, pairs: 3).recall(arm, rate: 1, seed: 0)
    let many = AtlasExperiment(trials: 20, pairs: 64).recall(arm, rate: 1, seed: 0)
    #expect(few >= 0.95, "3 pairs in 16 channels: \(few)")
    #expect(many <= 0.6, "64 pairs in 16 channels: \(many)")
  }

  @Test func verdictOfAtlasFollowsTheRecalls() {
    #expect(AtlasExperiment.holds(both: 0.79, neither: 0.58, window: 0.59))
    #expect(!AtlasExperiment.holds(both: 0.72, neither: 0.58, window: 0.59), "less than 0.15 above a window of one")
    #expect(!AtlasExperiment.holds(both: 0.79, neither: 0.58, window: 0.70), "less than 0.1 above degree one")
    #expect(!AtlasExperiment.holds(both: .nan, neither: 0.58, window: 0.59))
  }
}
