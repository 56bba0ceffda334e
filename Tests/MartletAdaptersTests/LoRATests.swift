import MartletAdapters
import Testing

@Suite struct LoRATests {
  private func normal(_ shape: [Int], seed: UInt64 = 1) -> Tensor {
    Tensor.randomNormal(shape, dtype: .float64, generator: RandomGenerator(seed: seed))
  }

  private func difference(_ a: Tensor, _ b: Tensor) -> Double { (a - b).abs().max().item() }

  private final class Pair: Module {
    @Child var first: any LinearLayer
    @Child var second: any LinearLayer

    init(generator: RandomGenerator) {
      super.init()
      first = Linear(6, 5, generator: generator)
      second = Linear(5, 3, bias: false, generator: generator)
    }

    func callAsFunction(_ x: Tensor) -> Tensor { second(first(x).tanh()) }
  }

  private func pair() -> Pair {
    let pair = Pair(generator: RandomGenerator(seed: 0))
    pair.eval()
    return pair
  }

  private func adapted(_ configuration: LoRA.Configuration = .init(rank: 2, alpha: 6)) throws -> Pair {
    let pair = pair()
    try pair.attachAdapters(to: ["first", "second"]) { try LoRA(configuration, for: $0, generator: RandomGenerator(seed: 5)) }
    return pair
  }

  @Test func beforeTrainingNothingChanges() throws {
    let x = normal([4, 6]).to(.float32)
    #expect(difference(try adapted()(x), pair()(x)) == 0)
  }

  @Test func theAdaptedLayerIsTheEquation() throws {
    let lora = try LoRA(.init(rank: 2, alpha: 6), inFeatures: 6, outFeatures: 5, generator: RandomGenerator(seed: 1))
    lora.eval()
    let base = Linear(weight: normal([5, 6]), bias: normal([5], seed: 2))
    lora.to(.float64)
    withoutGradient { lora.up.copyInPlace(normal([5, 2], seed: 3)) }
    let x = normal([7, 6], seed: 4)
    let expected = x.matmul(base.weight.T) + base.bias! + x.matmul(lora.down.T).matmul(lora.up.T) * 3.0
    let error = difference(lora(x, base: base), expected)
    #expect(error <= 1e-12, "\(error), allowed 1e-12")
    let merged = try lora.merged(into: base.weight)
    #expect(difference(x.matmul(merged.T) + base.bias!, expected) <= 1e-12)
    #expect(throws: TensorError.self) { try lora.merged(into: normal([6, 5])) }
  }

  @Test func mergedIsUnmerged() throws {
    let model = try adapted()
    withoutGradient {
      for (path, layer) in model.adaptedLayers {
        (layer.adapter as! LoRA).up.copyInPlace(normal(path == "first" ? [5, 2] : [3, 2], seed: 3).to(.float32))
      }
    }
    let x = normal([4, 6]).to(.float32)
    let before = withoutGradient { model(x) }
    #expect(difference(before, withoutGradient { pair()(x) }) > 0.01)
    try model.mergeAdapters()
    let error = difference(withoutGradient { model(x) }, before)
    #expect(error <= 1e-5, "\(error), allowed 1e-5")
    #expect(model.adaptedLayers.isEmpty)
    #expect(model.parameters().map(\.name) == pair().parameters().map(\.name))
    #expect(model.trainableParameters().isEmpty, "what was frozen stays frozen")
  }

  @Test func onlyAdaptersAreTrained() throws {
    let model = try adapted()
    #expect(
      model.trainableParameters().map(\.name).sorted() == [
        "first.adapter.lora_A.weight", "first.adapter.lora_B.weight", "second.adapter.lora_A.weight", "second.adapter.lora_B.weight",
      ])
    let count = model.trainableParameters().reduce(0) { $0 + $1.tensor.count }
    #expect(count == 38, "rank 2 times 6 + 5 and 5 + 3 features")
    model(normal([4, 6]).to(.float32)).square().sum().backward()
    for (name, tensor) in model.parameters() { #expect((tensor.gradient != nil) == name.contains(".lora_"), "\(name)") }
    try model.detachAdapters()
    #expect(model.first is Linear && model.second is Linear)
  }

  @Test func dropoutActsWhileTrainingOnly() throws {
    let model = try adapted(.init(rank: 2, alpha: 6, dropout: 0.5))
    withoutGradient {
      for (_, layer) in model.adaptedLayers { (layer.adapter as! LoRA).up.fillInPlace(1) }
      let x = normal([64, 6]).to(.float32)
      #expect(difference(model(x), model(x)) == 0)
      model.train()
      #expect(difference(model(x), model(x)) > 1e-3)
    }
  }

  @Test func gradientsAreThoseOfFiniteDifferences() throws {
    let lora = try LoRA(.init(rank: 2, alpha: 6), inFeatures: 6, outFeatures: 5, generator: RandomGenerator(seed: 1))
    lora.eval()
    let base = Linear(weight: normal([5, 6]))
    base.freeze()
    let error = gradientError([normal([3, 6], seed: 2), normal([2, 6], seed: 3), normal([5, 2], seed: 4)]) {
      lora.down = $0[1]
      lora.up = $0[2]
      return (lora($0[0], base: base) * normal([3, 5], seed: 5)).sum()
    }
    #expect(error <= 1e-6, "\(error), allowed 1e-6")
  }

  @Test func whatDoesNotFitIsRefused() throws {
    let model = try adapted()
    let make: (any LinearLayer) throws -> any Adapter = { try LoRA(for: $0, generator: RandomGenerator(seed: 0)) }
    let twice = #expect(throws: TensorError.self) { try model.attachAdapters(to: ["first"], make) }
    #expect(twice?.message.contains("already") == true)
    let unknown = #expect(throws: TensorError.self) { try pair().attachAdapters(to: ["third"], make) }
    #expect(unknown?.message.contains("third") == true)
    #expect(throws: ConfigurationError.self) {
      try LoRA(.init(rank: 0), inFeatures: 2, outFeatures: 2, generator: RandomGenerator(seed: 0))
    }
    #expect(throws: ConfigurationError.self) {
      try LoRA(.init(dropout: 1), inFeatures: 2, outFeatures: 2, generator: RandomGenerator(seed: 0))
    }
    #expect(pair().linearPaths { $0.hasSuffix("second") } == ["second"])
  }
}
