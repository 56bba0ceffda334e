import Foundation
import MartletOptimizers
import Testing

/// One optimizer's run by an independent implementation (Fixtures/make_optimizer_fixtures.py).
struct ReferenceRun: Decodable, CustomTestStringConvertible {
  let name: String
  let configuration: OptimizerConfiguration
  let shapes: [String: [Int]]
  let start: [String: [Float]]
  let gradients: [[String: [Float]]]
  let after: [[String: [Float]]]

  var testDescription: String { name }

  static let all: [ReferenceRun] = try! JSONDecoder().decode([ReferenceRun].self, from: fixture("optimizers.json"))
  static func named(_ name: String) -> ReferenceRun { all.first { $0.name == name }! }

  func parameters(dtype: DType = .float32) -> [(name: String, tensor: Tensor)] {
    shapes.keys.sorted().map { ($0, Tensor(start[$0]!, shapes[$0]!).to(dtype).tracked()) }
  }

  func setGradients(_ parameters: [(name: String, tensor: Tensor)], step: Int) {
    for (name, tensor) in parameters {
      tensor.gradient = gradients[step][name].map { Tensor($0, shapes[name]!).to(tensor.dtype) }
    }
  }

  /// The largest difference from the reference after a step, relative to the largest parameter.
  func error(_ parameters: [(name: String, tensor: Tensor)], step: Int) -> Double {
    parameters.map { name, tensor in
      let expected = Tensor(after[step][name]!, shapes[name]!).to(.float64)
      return (tensor.detached().to(.float64) - expected).abs().max().item() / expected.abs().max().item()
    }.max()!
  }
}

func fixture(_ name: String) throws -> Data {
  try Data(contentsOf: Bundle.module.resourceURL!.appendingPathComponent("Fixtures/" + name))
}

/// Fresh parameters of the given shapes with values and gradients from a seed.
func randomParameters(_ shapes: [[Int]], seed: UInt64, dtype: DType = .float32) -> [(name: String, tensor: Tensor)] {
  let generator = RandomGenerator(seed: seed)
  return shapes.enumerated().map { i, shape in
    ("p\(i)", Tensor.randomNormal(shape, dtype: dtype, generator: generator).tracked())
  }
}

func setRandomGradients(_ parameters: [(name: String, tensor: Tensor)], seed: UInt64) {
  let generator = RandomGenerator(seed: seed)
  for (_, tensor) in parameters { tensor.gradient = Tensor.randomNormal(tensor.shape, dtype: tensor.dtype, generator: generator) }
}

@Suite struct ReferenceTests {
  @Test(arguments: ReferenceRun.all) func everyStepAgreesWithTheReference(_ run: ReferenceRun) {
    let parameters = run.parameters()
    let optimizer = run.configuration.make([ParameterGroup("all", parameters)])
    for step in run.gradients.indices {
      run.setGradients(parameters, step: step)
      optimizer.step()
      let error = run.error(parameters, step: step)
      #expect(error < 2e-6, "\(run.name), step \(step + 1): relative error \(error), at most 2e-6 expected")
    }
  }

  @Test(arguments: ["adam", "adam-decay", "adamw", "late"]) func plainOperatorsAgreeWithTheReference(_ name: String) throws {
    let run = ReferenceRun.named(name)
    let parameters = run.parameters()
    let optimizer = try #require(run.configuration.make([ParameterGroup("all", parameters)]) as? Adam)
    optimizer.isFused = false
    for step in run.gradients.indices {
      run.setGradients(parameters, step: step)
      optimizer.step()
      let error = run.error(parameters, step: step)
      #expect(error < 2e-6, "\(name), step \(step + 1): relative error \(error), at most 2e-6 expected")
    }
  }

  @Test func fusedAndPlainStepsAgreeOnManySizes() {
    // Sizes around the vector width and the kernel's pieces, and a tensor that is not contiguous.
    let shapes = [[1], [15], [16], [17], [128, 129], [3, 5, 7], [0]]
    let a = randomParameters(shapes, seed: 3)
    let b = a.map { ($0.name, $0.tensor.detached().copy().tracked()) }
    let fused = AdamW([ParameterGroup("all", a)], learningRate: 0.01, .init(weightDecay: 0.1))
    let plain = AdamW([ParameterGroup("all", b)], learningRate: 0.01, .init(weightDecay: 0.1))
    plain.isFused = false
    for step in 0..<5 {
      setRandomGradients(a, seed: UInt64(step))
      setRandomGradients(b, seed: UInt64(step))
      fused.gradientScale = 0.5
      plain.gradientScale = 0.5
      fused.step()
      plain.step()
    }
    for ((name, x), (_, y)) in zip(a, b) where x.count > 0 {
      let error = (x.detached() - y.detached()).abs().max().item()
      #expect(error < 1e-6, "\(name) \(x.shape): \(error), at most 1e-6 expected")
    }
  }

  @Test func parametersInOtherPrecisionsAndLayoutsAreUpdated() {
    let run = ReferenceRun.named("adamw")
    let double = run.parameters(dtype: .float64)
    let strided = run.parameters().map { name, tensor in
      (name, tensor.rank < 2 ? tensor : tensor.detached().T.contiguous().T.tracked())
    }
    #expect(strided.contains { !$0.1.isContiguous })
    let optimizer = run.configuration.make([
      ParameterGroup("double", double.map { ("d." + $0.name, $0.tensor) }), ParameterGroup("strided", strided),
    ])
    for step in run.gradients.indices {
      run.setGradients(double, step: step)
      run.setGradients(strided, step: step)
      optimizer.step()
    }
    let last = run.gradients.count - 1
    #expect(run.error(double, step: last) < 2e-6)
    #expect(run.error(strided, step: last) < 2e-6)
  }
}
