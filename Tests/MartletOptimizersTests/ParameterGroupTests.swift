import MartletOptimizers
import Testing

@Suite struct ParameterGroupTests {
  @Test func splitSeparatesDecayAndOverrides() {
    let tensors: [(name: String, tensor: Tensor)] = [
      ("embed.weight", .zeros([4, 3])), ("norm.weight", .zeros([3])), ("layers.0.log_dt", .zeros([3])),
      ("layers.0.A", .zeros([3, 2])), ("layers.0.NA", .zeros([3, 2])), ("position", .zeros([5, 3])), ("A", .zeros([2, 2])),
    ]
    let groups = ParameterGroup.split(
      tensors, decay: 0.1, undecayed: ["position"],
      overrides: [.init("log_dt", learningRate: 1e-3, weightDecay: 0), .init("A", learningRateFactor: 0.1)])
    func names(_ group: String) -> [String]? { groups.first { $0.name == group }?.parameters.map(\.name) }
    #expect(names("decay") == ["embed.weight", "layers.0.NA"])
    #expect(names("no_decay") == ["norm.weight", "position"])
    #expect(names("log_dt") == ["layers.0.log_dt"])
    #expect(names("A.decay") == ["layers.0.A", "A"])
    #expect(names("A") == nil, "empty groups are left out")
    #expect(groups.first { $0.name == "decay" }?.weightDecay == 0.1)
    #expect(groups.first { $0.name == "no_decay" }?.weightDecay == 0)
    #expect(groups.first { $0.name == "A.decay" }?.weightDecay == 0.1)
    #expect(groups.first { $0.name == "A.decay" }?.learningRateFactor == 0.1)
    #expect(groups.first { $0.name == "log_dt" }?.learningRate == 1e-3)
    #expect(groups.reduce(0) { $0 + $1.parameters.count } == tensors.count)
  }

  @Test func groupsHaveTheirOwnRatesDecaysAndOptions() {
    func one() -> Tensor { Tensor([1] as [Float]).tracked() }
    let (a, b, c) = (one(), one(), one())
    let optimizer = SGD(
      [
        ParameterGroup("a", [("a", a)], learningRateFactor: 0.5), ParameterGroup("b", [("b", b)], learningRate: 0.01),
        ParameterGroup("c", [("c", c)], weightDecay: 0.5, options: ["momentum": 0.9]),
      ], learningRate: 0.1)
    for _ in 0..<2 {
      for tensor in [a, b, c] { tensor.gradient = Tensor([1] as [Float]) }
      optimizer.scheduleFactor = 0.5
      optimizer.step()
    }
    #expect(abs(a.item() - (1 - 2 * 0.025)) < 1e-6)
    #expect(abs(b.item() - (1 - 2 * 0.005)) < 1e-6)
    // d₁ = 1.5, θ₁ = 0.925, d₂ = 1.4625, b₂ = 0.9 · 1.5 + 1.4625
    #expect(abs(c.item() - (0.925 - 0.05 * (1.35 + 1.4625))) < 1e-6)
    #expect(optimizer.stateBytes == 4)
  }

  @Test func groupsCanBeAddedWhileTrainingWithTheirOwnSchedule() throws {
    let a = Tensor([0] as [Float]).tracked()
    let b = Tensor([0] as [Float]).tracked()
    let optimizer = SGD([ParameterGroup("a", [("a", a)])], learningRate: 1)
    func step() {
      for tensor in [a, b] { tensor.gradient = Tensor([-1] as [Float]) }
      optimizer.step()
    }
    step()
    step()
    optimizer.add(ParameterGroup("b", [("b", b)], schedule: LinearSchedule(warmup: 0, total: 4)))
    step()  // b: factor 1
    step()  // b: factor 0.75
    #expect(a.item() == 4)
    #expect(b.item() == 1.75)
    let state = optimizer.stateDictionary()
    #expect(state["group.b.steps"]?.itemInt() == 2 && state["b.step"]?.itemInt() == 2 && state["a.step"]?.itemInt() == 4)
    let resumed = SGD(
      [ParameterGroup("a", [("a", a)]), ParameterGroup("b", [("b", b)], schedule: LinearSchedule(warmup: 0, total: 4))], learningRate: 1)
    try resumed.load(state)
    #expect(resumed.learningRate(ofGroup: 1) == 0.5)
  }

  @Test func misuseIsNamed() {
    func message(_ groups: [ParameterGroup]) -> String {
      do {
        _ = try withTorchErrors { Lion(groups, learningRate: 1) }
        return "accepted"
      } catch { return "\(error)" }
    }
    let tensor = Tensor.zeros([1])
    #expect(message([ParameterGroup("x", [("a", tensor)]), ParameterGroup("x", [])]).contains("“x”"))
    #expect(message([ParameterGroup("x", [("a", tensor)]), ParameterGroup("y", [("a", tensor)])]).contains("parameter “a” is given twice"))
    #expect(message([ParameterGroup("x", [], options: ["beta3": 1])]).contains("no option “beta3”; it has beta1, beta2"))
  }

  @Test func oneParameterCanBeUpdatedAlone() {
    let parameters = randomParameters([[3], [3]], seed: 1)
    let optimizer = AdamW([ParameterGroup("all", parameters)], learningRate: 0.1)
    setRandomGradients(parameters, seed: 2)
    let before = parameters.map { $0.tensor.detached().copy() }
    optimizer.step { $0 == "p1" }
    #expect(parameters[0].tensor.isEqual(to: before[0]))
    #expect(!parameters[1].tensor.isEqual(to: before[1]))
  }
}
