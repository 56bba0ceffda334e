import Testing

@testable import MartletCatalog

@Suite struct AarenReproductionTests {
  @Test func forecastingInMiniature() throws {
    var experiment = AarenExperiment(seeds: [3, 4], steps: 2, batchSize: 4, length: 12, horizon: 3, testSeries: 6)
    experiment.streams = [8, 40]
    var lines: [String] = []
    let reproduction = try experiment.run { lines.append($0) }
    let claim = try Catalog.entry("aaren").claim
    #expect(reproduction.id == "aaren" && reproduction.claim == claim)
    #expect(reproduction.arms.map(\.name) == ["aaren", "transformer", "last value"])
    #expect(lines.count == 4, "a line for each trained arm and seed: \(lines)")
    var errors: [Double] = []
    for arm in reproduction.arms {
      let error = try #require(arm.metrics["mse"])
      let parts = try [3, 4].map { try #require(arm.metrics["mse_seed_\($0)"]) }
      #expect(error.isFinite && error > 0 && abs(error - (parts[0] + parts[1]) / 2) < 1e-12, "\(arm.name): \(error) of \(parts)")
      errors.append(error)
    }
    func bytes(_ arm: Int) -> [Int] { [8, 40].map { Int(reproduction.arms[arm].metrics["state_bytes_\($0)"] ?? -1) } }
    // Three layers of m and c of four heads and a of 48 channels in float32.
    #expect(bytes(0) == [3 * 56 * 4, 3 * 56 * 4], "\(bytes(0))")
    #expect(bytes(1)[0] > 0)
    let holds = AarenExperiment.holds(
      aaren: errors[0], transformer: errors[1], lastValue: errors[2], aarenBytes: bytes(0), transformerBytes: bytes(1))
    #expect(reproduction.verdict == (holds ? .holds : .fails))
  }

  @Test func armsDifferByAVectorALayer() throws {
    let counts = try AarenExperiment.arms.map { try AarenExperiment().model($0.mixer, seed: 0).parameterCount }
    #expect(counts[0] == counts[1] + 3 * 48, "\(counts)")
  }

  @Test func verdictFollowsErrorsAndBytes() {
    func holds(_ aaren: Double, _ transformer: Double = 0.279, _ last: Double = 1.69, _ a: [Int] = [672, 672], _ t: [Int] = [10, 90])
      -> Bool
    {
      AarenExperiment.holds(aaren: aaren, transformer: transformer, lastValue: last, aarenBytes: a, transformerBytes: t)
    }
    #expect(holds(0.285))
    #expect(!holds(0.37), "more than 1.3 times the Transformer's")
    #expect(!holds(0.9, 0.9), "more than half of the last value's")
    #expect(!holds(0.285, 0.279, 1.69, [672, 673]), "memory that grows")
    #expect(!holds(0.285, 0.279, 1.69, [672, 672], [90, 90]), "a cache that doesn't")
    #expect(!holds(.nan))
  }
}
