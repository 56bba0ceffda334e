import Testing

@testable import MartletCatalog

/// The experiments in miniature: a few steps show that every arm runs and is reported. What they would find is not expected here;
/// the verdict's dependence on the figures is tested on figures that are given.
@Suite struct ReproductionTests {
  private func checkForm(_ reproduction: Reproduction, id: String, arms: [String]) throws {
    #expect(reproduction.id == id)
    #expect(reproduction.claim == (try Catalog.entry(id).claim))
    #expect(reproduction.arms.map(\.name) == arms)
    #expect(reproduction.seconds > 0)
    for arm in reproduction.arms {
      for (name, value) in arm.metrics { #expect(value.isFinite, "\(arm.name): \(name) is \(value)") }
    }
    let object = try #require(try JSONValue.parse(reproduction.json.serialized()).objectValue)
    #expect(object["verdict"]?.stringValue == reproduction.verdict.rawValue)
    #expect(object["inequality"]?.stringValue == reproduction.inequality)
  }

  /// The mean of an arm's figures by seed is the figure that is judged.
  private func checkMean(_ arm: Reproduction.Arm, _ name: String, seeds: [Int]) throws {
    let figures = try seeds.map { try #require(arm.metrics["\(name)_seed_\($0)"], "\(arm.name), seed \($0)") }
    let average = try #require(arm.metrics[name])
    #expect(figures.allSatisfy { (0...1).contains($0) }, "\(arm.name): \(figures)")
    #expect(abs(average - figures.reduce(0, +) / Double(figures.count)) < 1e-12, "\(arm.name): \(average) of \(figures)")
  }

  @Test func gatedLinearAttentionInMiniature() throws {
    var lines: [String] = []
    let experiment = GLAExperiment(seeds: [3, 4], steps: 3, batchSize: 4, testSequences: 10)
    let reproduction = try experiment.run { lines.append($0) }
    try checkForm(reproduction, id: "gla", arms: ["linear", "retention", "gla"])
    #expect(lines.count == 6, "a line for each arm and seed: \(lines)")
    #expect(reproduction.seeds == [3, 4])
    var errors: [Double] = []
    for arm in reproduction.arms {
      try checkMean(arm, "error", seeds: [3, 4])
      errors.append(arm.metrics["error"] ?? .nan)
    }
    let holds = GLAExperiment.holds(linear: errors[0], retention: errors[1], gla: errors[2])
    #expect(reproduction.verdict == (holds ? .holds : .fails), "errors \(errors)")
  }

  @Test func armsOfGLADifferInTheirGateOnly() throws {
    let task = try DictionaryResetTask(counts: .init(train: 4, validation: 0, test: 4))
    func names(_ gate: GatedLinearAttention.GateKind) throws -> [String: [Int]] {
      let model = try GLAExperiment.model(task, gate: gate, generator: RandomGenerator(seed: 0))
      return Dictionary(uniqueKeysWithValues: model.parameters().map { ($0.name, $0.tensor.shape) })
    }
    let (plain, retention, gated) = (try names(.none), try names(.retention), try names(.perChannel))
    #expect(plain == retention)
    #expect(gated.filter { !$0.key.contains(".gate_in.") && !$0.key.contains(".gate_out.") } == plain)
    #expect(gated.count == plain.count + 6, "W₁, W₂ and b in each of two layers")
    #expect(gated["backbone.blocks.0.mixer.query.weight"] == [16, 32], "two heads of dk = 8")
    #expect(gated["backbone.blocks.0.mixer.value.weight"] == [32, 32], "two heads of dv = 16")
  }

  @Test func verdictOfGLAFollowsTheErrors() {
    #expect(GLAExperiment.holds(linear: 0.037, retention: 0.007, gla: 0))
    #expect(GLAExperiment.holds(linear: 0.04, retention: 0.02, gla: 0.01))
    #expect(!GLAExperiment.holds(linear: 0.04, retention: 0.019, gla: 0.01), "more than half of retention's")
    #expect(!GLAExperiment.holds(linear: 0.039, retention: 0.02, gla: 0.01), "more than a quarter of linear's")
    #expect(!GLAExperiment.holds(linear: 0.04, retention: 0.02, gla: .nan))
  }

  @Test func stateSpacesInMiniature() throws {
    var experiment = S4Experiment(seeds: [5], steps: 2, batchSize: 4, length: 24, testSequences: 8)
    experiment.contexts = [4, 16]
    experiment.timings = 3
    var lines: [String] = []
    let reproduction = try experiment.run { lines.append($0) }
    try checkForm(reproduction, id: "s4", arms: ["s4d", "lstm", "s4d step", "softmax step"])
    #expect(lines.count >= 2, "a line for each trained arm: \(lines)")
    let accuracies = try reproduction.arms[..<2].map { arm in
      try checkMean(arm, "accuracy", seeds: [5])
      return try #require(arm.metrics["accuracy"])
    }
    let growths = try reproduction.arms[2...].map { arm in
      let (short, long) = (try #require(arm.metrics["step_seconds_4"]), try #require(arm.metrics["step_seconds_16"]))
      #expect(short > 0 && long > 0)
      let growth = try #require(arm.metrics["step_growth"])
      #expect(abs(growth - long / short) < 1e-9)
      return growth
    }
    let holds = S4Experiment.holds(s4d: accuracies[0], lstm: accuracies[1], s4dGrowth: growths[0], softmaxGrowth: growths[1])
    #expect(reproduction.verdict == (holds ? .holds : .fails), "accuracies \(accuracies), growths \(growths)")
    // The sheet's baseline: an input projection, two LSTM layers of 32 and a head of eight classes.
    #expect(reproduction.arms[1].metrics["parameters"] == Double(64 + 2 * 4 * 32 * 66 + 33 * 8))
  }

  @Test func verdictOfS4FollowsEveryFigure() {
    func holds(_ s4d: Double, _ lstm: Double, _ s4dGrowth: Double = 1, _ softmaxGrowth: Double = 5) -> Bool {
      S4Experiment.holds(s4d: s4d, lstm: lstm, s4dGrowth: s4dGrowth, softmaxGrowth: softmaxGrowth)
    }
    #expect(holds(0.996, 0.125))
    #expect(!holds(0.89, 0.125), "the state space must reach 0.9")
    #expect(!holds(0.95, 0.56), "the LSTM must stay 0.4 below")
    #expect(!holds(0.996, 0.125, 1.6, 5), "a step must not become slower")
    #expect(!holds(0.996, 0.125, 1, 1.9), "attention's must")
    #expect(!holds(0.996, 0.125, .nan, 5))
  }

  @Test func selfPretrainingInMiniature() throws {
    let experiment = SPTExperiment(
      seeds: [6, 7], pretrainingSteps: 3, fineTuningSteps: 2, batchSize: 4, trainingImages: 8, testImages: 10)
    var lines: [String] = []
    let reproduction = try experiment.run { lines.append($0) }
    try checkForm(reproduction, id: "spt", arms: ["scratch", "self-pretrained"])
    #expect(lines.count == 4, "a line for each arm and seed: \(lines)")
    var accuracies: [Double] = []
    for arm in reproduction.arms {
      try checkMean(arm, "accuracy", seeds: [6, 7])
      accuracies.append(arm.metrics["accuracy"] ?? .nan)
    }
    let steps = reproduction.arms.map { ($0.metrics["pretraining_steps"] ?? 0) + ($0.metrics["supervised_steps"] ?? 0) }
    #expect(steps == [5, 5], "the arms have the same budget")
    let holds = SPTExperiment.holds(scratch: accuracies[0], pretrained: accuracies[1])
    #expect(reproduction.verdict == (holds ? .holds : .fails), "accuracies \(accuracies)")
  }

  @Test func verdictOfSelfPretrainingFollowsTheAccuracies() {
    #expect(SPTExperiment.holds(scratch: 0.74, pretrained: 0.80))
    #expect(!SPTExperiment.holds(scratch: 0.74, pretrained: 0.75))
    #expect(!SPTExperiment.holds(scratch: 0.80, pretrained: 0.74))
    #expect(!SPTExperiment.holds(scratch: 0.74, pretrained: .nan))
  }

  @Test func probedSelfPretrainingCountsHiddenPositionsOnly() throws {
    let implementation = try Catalog.implementation("spt")
    let configuration: JSONValue = ["width": 8, "heads": 2, "layers": 1]
    let x = Tensor([0.5, -2, 3, 7] as [Float], [1, 4, 1])
    let hidden = Tensor([1, 0, 1, 0] as [Float], [1, 4]).to(.bool)
    var tensors = ["x": x, "hidden": hidden, "weight.head.weight": Tensor.zeros([1, 8]), "weight.head.bias": Tensor.zeros([1])]
    let found = try implementation.probe(configuration: configuration, tensors: tensors)
    // Everything is restored as 0: the loss is the mean of |0.5| and |3|, and both errors fall as the bias grows.
    #expect(found["loss"]?.item() == 1.75)
    #expect(found["grad.head.bias"]?.item() == -1)
    let shapes = try implementation.parameterShapes(configuration: ["width": 8, "heads": 2, "layers": 1, "length": 4])
    #expect(Set(found.keys) == Set(["loss"] + shapes.map { "grad." + $0.key }))
    tensors["hidden"] = nil
    #expect(throws: TensorError.self) { try implementation.probe(configuration: configuration, tensors: tensors) }
    tensors["hidden"] = hidden
    tensors["weight.heat.bias"] = Tensor.zeros([1])
    #expect(throws: TensorError.self) { try implementation.probe(configuration: configuration, tensors: tensors) }
  }
}
