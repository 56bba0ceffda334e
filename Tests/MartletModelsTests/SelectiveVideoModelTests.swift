import MartletModels
import Testing

@Suite struct SelectiveVideoModelTests {
  private func model(ratio: Double = 0.5, length: Int = 40, stages: Int = 2) throws -> SelectiveVideoClassifier {
    try SelectiveVideoClassifier(
      .init(channels: 6, width: 16, stages: stages, ratio: ratio, state: 8, length: length), classes: 3, generator: generator())
  }

  @Test func aStageKeepsPoolsAndNarrows() throws {
    let trunk = try model().trunk
    trunk.eval()
    let x = Tensor.randomNormal([2, 40, 6], generator: generator(1))
    let embedded = trunk.input!(x)
    let stage = trunk.stages[0]
    let (y, mask) = stage(embedded)
    #expect(y.shape == [2, 10, 8] && mask == nil, "40 tokens, 20 kept, 10 pairs of half the width")
    let (mixed, selection) = stage.mixer.compact(stage.norm(embedded))
    let sum = selection.gather(embedded) + mixed
    let pooled = sum.reshaped(2, 10, 2, 16).mean(axis: 2)
    #expect(relativeDifference(y, stage.reduction(pooled).gelu()) < 1e-6)
    #expect(trunk(x).x.shape == [2, 2, 4] && trunk.outputWidth == 4, "10 tokens, 5 kept, 2 pairs")
    #expect(try model()(x).shape == [2, 3])
  }

  @Test func paddingChangesNothing() throws {
    let model = try model()
    model.eval()
    let x = Tensor.randomNormal([3, 40, 6], generator: generator(1))
    let lengths = [40, 23, 2]
    let mask = Tensor.arange(40) .< Tensor(lengths, [3, 1])
    let other = select(mask.expandedDimension(-1), x, Tensor.full(like: x, 30))
    let together = model(other, mask: mask)
    for (row, length) in lengths.enumerated() {
      let alone = model(x[row..<(row + 1), ..<length])[0]
      let difference = relativeDifference(together[row], alone)
      #expect(difference < 2e-5, "\(length) tokens: \(difference)")
    }
  }

  @Test func everyParameterHasAnEffect() throws {
    let model = try model()
    (model(Tensor.randomNormal([2, 40, 6], generator: generator(1))).square()).sum().backward()
    for (name, tensor) in model.parameters() {
      let gradient = try #require(tensor.gradient, "\(name)")
      #expect(gradient.allFinite && gradient.abs().max().item() > 0, "\(name)")
    }
    #expect(model.optimizerStepListeners().count == 2, "a guide for each stage")
  }

  @Test func configurationsThatMakeNoModelAreRefused() {
    #expect(throws: ConfigurationError.self) { try model(stages: 5) }
    #expect(throws: ConfigurationError.self) { try model(ratio: 1) }
  }
}
