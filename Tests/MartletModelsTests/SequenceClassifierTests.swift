import MartletModels
import Testing

@Suite struct SequenceClassifierTests {
  private let lengths = [5, 1, 3, 4]

  private var mask: Tensor { Tensor(lengths.flatMap { n in (0..<5).map { $0 < n } }, [4, 5]) }

  @Test(arguments: Pooling.allCases) func poolingIsTheLoopOverRealPositions(pooling: Pooling) {
    let x = Tensor.randomNormal([4, 5, 3], dtype: .float64, generator: generator(1))
    let pooled = pooling(x, mask: mask)
    #expect(pooled.shape == [4, 3])
    for (b, n) in lengths.enumerated() {
      let real = x[b, 0..<n]
      let expected =
        switch pooling {
        case .mean: real.sum(axis: 0) / Double(n)
        case .max: real.max(axis: 0)
        case .last: real[n - 1]
        case .first: real[0]
        }
      #expect(relativeDifference(pooled[b], expected) < 1e-14, "sample \(b)")
      #expect(relativeDifference(pooling(real.expandedDimension(0), mask: nil)[0], expected) < 1e-14, "sample \(b) alone")
    }
    #expect(gradientError([x]) { pooling($0[0], mask: mask).sin().sum() } < 1e-7)
  }

  @Test(arguments: Pooling.allCases) func packedSequencesPoolLikePaddedOnes(pooling: Pooling) {
    let x = Tensor.randomNormal([4, 5, 3], generator: generator(1))
    let packed = concatenated(lengths.enumerated().map { b, n in x[b..<(b + 1), ..<n] }, axis: 1)
    #expect(relativeDifference(pooling(packed, packing: SequencePacking(lengths: lengths)), pooling(x, mask: mask)) < 1e-6)
  }

  @Test(arguments: Pooling.allCases) func aSampleWithoutRealPositionsStaysFinite(pooling: Pooling) {
    let x = Tensor.randomNormal([2, 3, 2], generator: generator(2))
    let y = pooling(x, mask: Tensor([true, true, false, false, false, false], [2, 3]))
    #expect(y.allFinite, "\(y)")
  }

  @Test(arguments: bidirectionalMixers, Pooling.allCases) func theClassDoesNotDependOnPadding(mixer: String, pooling: Pooling) throws {
    let model = try SequenceClassifier(
      configuration([mixer], causal: false, input: .continuous(channels: 2), positions: .sinusoidal), classes: 3, pooling: pooling,
      generator: generator())
    model.eval()
    let x = Tensor.randomNormal([4, 5, 2], generator: generator(3))
    let together = model(x, mask: mask)
    #expect(together.shape == [4, 3])
    for (b, n) in lengths.enumerated() {
      #expect(relativeDifference(together[b], model(x[b..<(b + 1), 0..<n])[0]) < 5e-5, "sample \(b)")
    }
    let noise = select(mask.expandedDimension(-1), x, Tensor.full(like: x, 50))
    #expect(relativeDifference(model(noise, mask: mask), together) < 5e-5, "what stands in the padding has no part")
  }

  @Test func headsAddTheirParameters() throws {
    let c = try configuration(causal: false)
    let backbone = try SequenceBackbone(c, generator: generator()).parameterCount
    #expect(try SequenceClassifier(c, classes: 5, generator: generator()).parameterCount == backbone + 16 * 5 + 5)
    let tagger = try SequenceTagger(c, classes: 4, generator: generator())
    #expect(tagger.parameterCount == backbone + 16 * 4 + 4)
    #expect(tagger(tokens(2, 6)).shape == [2, 6, 4])
    #expect(tagger.parameters().last?.name == "head.bias" && tagger.parameters().first?.name == "backbone.embedding.weight")
  }

  @Test func headsAndInnerLayersAreReplacedByPath() throws {
    let model = try SequenceClassifier(configuration(causal: false), classes: 2, generator: generator())
    let zero = Linear(weight: Tensor.zeros([16, 16]))
    try model.replace("backbone.blocks.1.mixer.output", with: zero)
    try model.replace("backbone.blocks.0.mixer.output", with: zero)
    try model.replace("head", with: Linear(weight: Tensor.ones([6, 16])))
    #expect(model(tokens(2, 4)).shape == [2, 6])
    #expect(model.parameters().filter { $0.name.hasSuffix("mixer.output.weight") }.count == 1, "one layer in two places")
  }
}
