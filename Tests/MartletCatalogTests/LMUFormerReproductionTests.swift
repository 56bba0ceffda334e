import Testing

@testable import MartletCatalog

@Suite struct LMUFormerReproductionTests {
  @Test func theExperimentInMiniature() throws {
    let experiment = LMUFormerExperiment(seeds: [3, 4], steps: 3, batchSize: 4, trainingImages: 12, testImages: 10)
    var lines: [String] = []
    let reproduction = try experiment.run { lines.append($0) }
    #expect(reproduction.id == "lmuformer")
    #expect(reproduction.arms.map(\.name) == ["lmuformer", "transformer", "spiking"])
    #expect(lines.count == 6, "a line for each arm and seed: \(lines)")
    func metric(_ arm: Int, _ name: String) throws -> Double {
      let value = try #require(reproduction.arms[arm].metrics[name], "\(reproduction.arms[arm].name) has no \(name)")
      #expect(value.isFinite)
      return value
    }
    for arm in 0..<3 {
      let figures = try [3, 4].map { try metric(arm, "accuracy_seed_\($0)") }
      #expect(figures.allSatisfy { (0...1).contains($0) })
      #expect(abs(try metric(arm, "accuracy") - (figures[0] + figures[1]) / 2) < 1e-12)
    }
    let figures = LMUFormerExperiment.Figures(
      lmuformer: try metric(0, "accuracy"), transformer: try metric(1, "accuracy"), spiking: try metric(2, "accuracy"),
      afterThreeQuarters: try metric(0, "accuracy_after_12"), parameters: Int(try metric(0, "parameters")),
      transformerParameters: Int(try metric(1, "parameters")))
    #expect(reproduction.verdict == (LMUFormerExperiment.holds(figures) ? .holds : .fails), "\(figures)")
    // 17, 102 and 67 thousand.
    #expect(try (0..<3).map { Int(try metric($0, "parameters")) } == [17_227, 102_538, 66_637])
  }

  @Test func theVerdictFollowsEveryFigure() {
    typealias Figures = LMUFormerExperiment.Figures
    let good = Figures(
      lmuformer: 0.972, transformer: 0.916, spiking: 0.861, afterThreeQuarters: 0.945, parameters: 17_227, transformerParameters: 102_538)
    func holds(_ change: (inout Figures) -> Void) -> Bool {
      var figures = good
      change(&figures)
      return LMUFormerExperiment.holds(figures)
    }
    #expect(holds { _ in })
    #expect(holds { $0.transformer = 0.972 })
    #expect(!holds { $0.transformer = 0.98 }, "as accurate as the Transformer")
    #expect(!holds { $0.parameters = 26_000 }, "at most a quarter of its parameters")
    #expect(!holds { $0.afterThreeQuarters = 0.92 }, "at most 5 points lower after 12 patches")
    #expect(!holds { $0.spiking = 0.78 }, "the spiking form at most 18 points lower")
    #expect(!holds { $0.spiking = .nan })
    #expect(LMUFormerExperiment.reservation(good).isEmpty)
    var late = good
    late.afterThreeQuarters = 0.872
    #expect(LMUFormerExperiment.reservation(late).contains("10.0 points lower"), "\(LMUFormerExperiment.reservation(late))")
  }

  @Test func patchesAreSquaresOfTheImage() {
    let pixels = Tensor.arange(0, 64).reshaped(1, 64, 1)
    let patches = LMUFormerExperiment.patches(pixels)
    #expect(patches.shape == [1, 16, 4])
    #expect(patches[0, 0].toArray(Float.self) == [0, 1, 8, 9])
    #expect(patches[0, 5].toArray(Float.self) == [18, 19, 26, 27], "the second patch of the second row")
  }
}
