import Testing

@testable import MartletCatalog

@Suite struct TransNormerReproductionTests {
  @Test func byteTextInMiniature() throws {
    let experiment = TransNormerExperiment(
      seeds: [3, 4], steps: 2, batchSize: 2, length: 40, width: 16, validationWindows: 4, textBytes: 5000)
    var lines: [String] = []
    let reproduction = try experiment.run { lines.append($0) }
    let claim = try Catalog.entry("transnormer").claim
    #expect(reproduction.id == "transnormer" && reproduction.claim == claim)
    #expect(reproduction.arms.map(\.name) == ["transnormer", "linear", "norm", "diagonal + linear", "softmax"])
    #expect(lines.count == 10, "a line for each arm and seed: \(lines)")
    var losses: [Double] = []
    for arm in reproduction.arms {
      let loss = try #require(arm.metrics["loss"])
      let parts = try [3, 4].map { try #require(arm.metrics["loss_seed_\($0)"]) }
      #expect(loss.isFinite && loss > 0 && abs(loss - (parts[0] + parts[1]) / 2) < 1e-12, "\(arm.name): \(loss) of \(parts)")
      losses.append(loss)
    }
    let holds = TransNormerExperiment.holds(transnormer: losses[0], linear: losses[1], others: Array(losses[2...]))
    #expect(reproduction.verdict == (holds ? .holds : .fails), "losses \(losses)")
  }

  @Test func armsDifferInTheirMixersOnly() throws {
    let experiment = TransNormerExperiment()
    func names(_ arm: Int) throws -> [String: [Int]] {
      let model = try experiment.model(TransNormerExperiment.arms[arm].mixers, seed: 0)
      return Dictionary(uniqueKeysWithValues: model.parameters().map { ($0.name, $0.tensor.shape) })
    }
    let all = try TransNormerExperiment.arms.indices.map(names)
    // Biases of the maps are all that TransNormer's layers have more.
    for arm in 1..<5 { #expect(all[arm].filter { !$0.key.contains(".mixer.") } == all[0].filter { !$0.key.contains(".mixer.") }) }
    for arm in all { #expect(arm.filter { !($0.key.contains(".mixer.") && $0.key.hasSuffix(".bias")) } == all[1]) }
    let model = try experiment.model(TransNormerExperiment.arms[0].mixers, seed: 0)
    let kinds = model.backbone.blocks.map { "\(type(of: $0.mixer))" }
    #expect(kinds == ["DiagonalBlockAttention", "DiagonalBlockAttention", "NormAttention", "NormAttention"])
    #expect((model.backbone.blocks[0].mixer as? DiagonalBlockAttention)?.configuration.block == 32)
  }

  @Test func verdictFollowsTheLosses() {
    func holds(_ transnormer: Double, _ linear: Double = 2.946, _ others: [Double] = [2.939, 2.907, 2.938]) -> Bool {
      TransNormerExperiment.holds(transnormer: transnormer, linear: linear, others: others)
    }
    #expect(holds(2.888))
    #expect(holds(2.916, 2.946), "within 0.01 of the best other arm")
    #expect(!holds(2.93, 2.946), "not 0.02 below linear attention")
    #expect(!holds(2.92), "more than 0.01 above blocks with linear attention")
    #expect(!holds(2.888, 2.946, [2.87]))
    #expect(!holds(.nan))
  }
}
