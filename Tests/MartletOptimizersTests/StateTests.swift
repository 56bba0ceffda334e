import Foundation
import MartletOptimizers
import Testing

@Suite struct StateTests {
  @Test func stateBytesAreExact() {
    // [8, 6] f32, [2, 3, 4] f32, [5] f32; the fourth is frozen and the fifth has no gradient.
    let elements = 48 + 24 + 5
    let cases: [(OptimizerConfiguration.Rule, Int)] = [
      (.sgd(.init()), 0),
      (.sgd(.init(momentum: 0.9)), 4 * elements),
      (.adam(.init()), 8 * elements),
      (.adamw(.init()), 8 * elements),
      (.lion(.init()), 4 * elements),
      (.lamb(.init()), 8 * elements),
      (.adafactor(.init()), 4 * ((8 + 6) + (2 * 3 + 2 * 4) + 5)),
      (.adafactor(.init(beta1: 0.9)), 4 * ((8 + 6) + (2 * 3 + 2 * 4) + 5 + elements)),
    ]
    for (rule, bytes) in cases {
      let parameters = randomParameters([[8, 6], [2, 3, 4], [5], [100], [50]], seed: 1)
      let optimizer = OptimizerConfiguration(rule, learningRate: 0.01).make([ParameterGroup("all", parameters)])
      #expect(optimizer.stateBytes == 0)
      setRandomGradients(parameters, seed: 2)
      parameters[3].tensor.requiresGradient = false
      parameters[4].tensor.gradient = nil
      optimizer.step()
      #expect(optimizer.stateBytes == bytes, "\(rule): \(optimizer.stateBytes) bytes, \(bytes) expected")
      optimizer.step()
      #expect(optimizer.stateBytes == bytes)
    }
  }

  @Test(arguments: ReferenceRun.all) func resumingFromTheStateIsExact(_ run: ReferenceRun) throws {
    let parameters = run.parameters()
    let optimizer = run.configuration.make([ParameterGroup("all", parameters)])
    let half = 4
    for step in 0..<half {
      run.setGradients(parameters, step: step)
      optimizer.step()
    }
    let saved = optimizer.stateDictionary().mapValues { $0.copy() }
    let resumed = parameters.map { ($0.name, $0.tensor.detached().copy().tracked()) }
    let second = run.configuration.make([ParameterGroup("all", resumed)])
    try second.load(saved)
    #expect(second.stateBytes == optimizer.stateBytes)
    for step in half..<run.gradients.count {
      run.setGradients(parameters, step: step)
      run.setGradients(resumed, step: step)
      optimizer.step()
      second.step()
    }
    for ((name, a), (_, b)) in zip(parameters, resumed) { #expect(a.isEqual(to: b), "\(run.name): \(name) differs after resuming") }
  }

  @Test func loadingNamesWhatDoesNotFit() throws {
    let parameters = randomParameters([[3, 4], [5]], seed: 1)
    func fresh() -> AdamW { AdamW([ParameterGroup("all", parameters)], learningRate: 0.1) }
    let optimizer = fresh()
    setRandomGradients(parameters, seed: 2)
    optimizer.step()
    let state = optimizer.stateDictionary().mapValues { $0.copy() }
    #expect(Set(state.keys) == ["group.all.steps", "p0.step", "p0.exp_avg", "p0.exp_avg_sq", "p1.step", "p1.exp_avg", "p1.exp_avg_sq"])
    #expect(state["p0.step"]?.dtype == .int64)

    func message(_ change: (inout [String: Tensor]) -> Void) -> String {
      var changed = state
      change(&changed)
      let target = fresh()
      do {
        try target.load(changed)
        return "loaded"
      } catch {
        #expect(target.stateBytes == 0, "a state that does not fit must leave the optimizer as it was")
        return "\(error)"
      }
    }
    #expect(message { _ in } == "loaded")
    #expect(message { $0["p1.exp_avg"] = nil }.contains("“p1.exp_avg” is missing"))
    #expect(message { $0["p1.step"] = nil }.contains("“p1.step” is missing"))
    #expect(message { $0["p0.exp_avg"] = .zeros([4, 3]) }.contains("shape [4, 3], expected float32 of shape [3, 4]"))
    #expect(message { $0["p0.exp_avg"] = .zeros([3, 4], dtype: .float64) }.contains("float64"))
    #expect(message { $0["p9.exp_avg"] = .zeros([4]) }.contains("“p9.exp_avg”"))
    #expect(message { $0["p0.step"] = Tensor(1.5) }.contains("int64"))
    #expect(message { $0["group.all.steps"] = nil }.contains("group “all”"))
  }

  @Test func skippedParametersKeepTheirValuesAndCounts() {
    let parameters = randomParameters([[4], [4]], seed: 5)
    let optimizer = AdamW([ParameterGroup("all", parameters)], learningRate: 0.1)
    let before = parameters[1].tensor.detached().copy()
    for _ in 0..<3 {
      setRandomGradients(parameters, seed: 6)
      parameters[1].tensor.gradient = nil
      optimizer.step()
    }
    #expect(parameters[1].tensor.isEqual(to: before))
    #expect(optimizer.stateDictionary()["p1.step"]?.itemInt() == 0)
    #expect(optimizer.stateDictionary()["p0.step"]?.itemInt() == 3)
    #expect(optimizer.stateDictionary()["p1.exp_avg"] == nil)
    // A frozen parameter with a gradient is left alone too, by weight decay as well.
    setRandomGradients(parameters, seed: 7)
    parameters[1].tensor.requiresGradient = false
    optimizer.step()
    #expect(parameters[1].tensor.isEqual(to: before))
  }

  @Test func stepsAreNotRecorded() {
    for name in OptimizerConfiguration.names {
      let parameters = randomParameters([[4, 3], [2]], seed: 5)
      let optimizer = try! JSONDecoder().decode(OptimizerConfiguration.self, from: Data(#"{"name": "\#(name)"}"#.utf8))
        .make([ParameterGroup("all", parameters)])
      setRandomGradients(parameters, seed: 7)
      optimizer.step()
      for (_, tensor) in parameters {
        #expect(tensor.isLeaf && tensor.requiresGradient, "\(name)")
        #expect(tensor.allFinite)
      }
      #expect(optimizer.stateDictionary().values.allSatisfy { !$0.requiresGradient }, "\(name)")
      optimizer.zeroGradients()
      #expect(parameters.allSatisfy { $0.tensor.gradient == nil })
    }
  }
}
