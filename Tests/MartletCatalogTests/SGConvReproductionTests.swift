import Testing

@testable import MartletCatalog

@Suite struct SGConvReproductionTests {
  @Test func everyArmRunsAndIsReported() throws {
    var lines: [String] = []
    var experiment = SGConvExperiment(seeds: [3, 4], steps: 6, earlyStep: 2)
    experiment.length = 64
    experiment.dimension = 8
    let reproduction = try experiment.run { lines.append($0) }
    #expect(reproduction.id == "sgconv")
    #expect(reproduction.claim == (try Catalog.entry("sgconv").claim))
    #expect(reproduction.arms.map(\.name) == ["sgconv", "no decay", "free"])
    #expect(lines.count == 6, "a line for each arm and seed: \(lines)")
    for arm in reproduction.arms {
      for (name, value) in arm.metrics { #expect(value.isFinite, "\(arm.name): \(name) is \(value)") }
      for name in ["error", "early_error", "best_error"] {
        let figures = [3, 4].map { arm.metrics["\(name)_seed_\($0)"] ?? .nan }
        #expect(abs((arm.metrics[name] ?? .nan) - (figures[0] + figures[1]) / 2) < 1e-12, "\(arm.name): \(name)")
      }
      #expect((arm.metrics["best_error"] ?? .nan) <= (arm.metrics["error"] ?? .nan))
    }
    #expect(reproduction.arms.map { $0.metrics["parameters"] } == [32, 32, 64])
    func metric(_ arm: Int, _ name: String) -> Double { reproduction.arms[arm].metrics[name] ?? .nan }
    let holds = SGConvExperiment.holds(
      sgconv: metric(0, "error"), freeBest: metric(2, "best_error"), early: metric(0, "early_error"),
      earlyWithoutDecay: metric(1, "early_error"))
    #expect(reproduction.verdict == (holds ? .holds : .fails))
  }

  @Test func theDataAreTheSheets() throws {
    let experiment = SGConvExperiment()
    let data = experiment.data(seed: 1)
    #expect(abs(data.filter.norm().item() - 1) < 1e-5)
    #expect(data.filter.shape == [1, 1024] && data.inputs.shape == [4, 1, 1024] && data.testInputs.shape == [16, 1, 1024])
    // A filter of norm 1 makes white noise of variance near 1 (a little less at the start), seen with a quarter more.
    let variance = data.testOutputs.square().mean().item()
    #expect((0.7...1.2).contains(variance), "variance \(variance)")
    let noise = withoutGradient { (data.observed - longConvolution(data.inputs, data.filter)).square().mean().item() }
    #expect(abs(noise - 0.25) < 0.03, "noise of variance \(noise)")
    let decay = data.filter.abs()
    #expect(decay[0, ..<128].mean().item() > 4 * decay[0, 512...].mean().item())
    let kernel = MultiScaleKernel(.init(width: 1, length: 1024, dimension: 16), generator: RandomGenerator(seed: 0))
    #expect(kernel.parameterCount == 112)
  }

  @Test func theVerdictFollowsTheErrors() {
    func holds(_ sgconv: Double, _ free: Double, _ early: Double, _ flat: Double) -> Bool {
      SGConvExperiment.holds(sgconv: sgconv, freeBest: free, early: early, earlyWithoutDecay: flat)
    }
    #expect(holds(0.008, 0.116, 0.013, 0.037))
    #expect(holds(0.25, 1, 0.7, 1))
    #expect(!holds(0.03, 0.116, 0.013, 0.037), "more than a quarter of the free kernel's")
    #expect(!holds(0.008, 0.116, 0.03, 0.037), "without decay it learns as fast")
    #expect(!holds(.nan, 0.116, 0.013, 0.037))
  }
}
