import MartletModels
import Testing

@Suite struct TransNormerTests {
  private func model(_ form: TransNormerForm = .t2, layers: Int = 4, dtype: DType = .float32) throws -> TransNormer {
    let model = try TransNormer(
      .init(vocabulary: 13, width: 16, layers: layers, heads: 2, block: 8, form: form), generator: generator())
    model.eval()
    if dtype != .float32 { model.to(dtype) }
    return model
  }

  @Test func theFirstHalfLooksCloselyAndTheSecondFar() throws {
    for (layers, early) in [(4, 2), (6, 3), (5, 2), (1, 0)] {
      let kinds = try model(layers: layers).decoder.backbone.blocks.map { "\(type(of: $0.mixer))" }
      let expected = (0..<layers).map { $0 < early ? "DiagonalBlockAttention" : "NormAttention" }
      #expect(kinds == expected, "\(layers) layers: \(kinds)")
    }
  }

  /// Pre-norm residual blocks by the formula, with the norms without parameters.
  @Test(arguments: TransNormerForm.allCases) func blocksAreResidualBehindTheirNorms(_ form: TransNormerForm) throws {
    let model = try model(form, dtype: .float64)
    func norm(_ x: Tensor) -> Tensor { x / (x.norm(2, axis: -1, keepDims: true) / 4.0 + 1e-8) }  // √16
    let backbone = model.decoder.backbone
    let input = tokens(2, 21)
    var x = backbone.embedding!(input)
    for block in backbone.blocks {
      x = x + block.mixer(norm(x))
      let glu = try #require(block.feedForward as? GatedMLP)
      let z = norm(x)
      x = x + glu.down(glu.gate(z).silu() * glu.up(z))
      #expect((glu.down as? Linear)?.bias != nil)
    }
    let expected = linearMap(norm(x), backbone.embedding!.weight)
    #expect(relativeDifference(model(input), expected) < 1e-12, "\(relativeDifference(model(input), expected)), allowed 1e-12")
    #expect(!model.parameters().contains { $0.name.contains("norm") }, "the norms have no parameters")
  }

  @Test(arguments: TransNormerForm.allCases) func generationIsTheParallelForm(_ form: TransNormerForm) throws {
    for (dtype, tolerance) in [(DType.float32, 5e-5), (.float64, 1e-10)] {
      let model = try model(form, dtype: dtype)
      let input = tokens(2, 43)
      try withoutGradient {
        let whole = model(input)
        var state = try model.initialState(batch: 2)
        let empty = model.decoder.backbone.stateBytes(state)
        var parts = [model.advanceEvery(input[.all, ..<13], &state)]
        for t in 13..<43 { parts.append(model.advance(input[.all, t..<(t + 1)], &state).expandedDimension(1)) }
        let difference = relativeDifference(concatenated(parts, axis: 1), whole)
        #expect(difference < tolerance, "\(form) \(dtype): \(difference), allowed \(tolerance)")
        #expect(model.decoder.backbone.stateBytes(state) == empty, "the state doesn't grow")
      }
    }
  }

  @Test func activationsCanBeChosen() throws {
    let input = tokens(1, 9)
    let logits = try [Activation.silu, .identity].map { activation in
      let model = try TransNormer(
        .init(vocabulary: 13, width: 16, layers: 2, heads: 2, activation: activation), generator: generator())
      return model(input)
    }
    #expect(relativeDifference(logits[0], logits[1]) > 1e-3)
  }

  /// The paper's model: 6 layers of width 512 with eight heads; four maps with biases, the GLU of 8/3 of the width to a multiple of 8, and
  /// 32 angles a layer.
  @Test func parametersCountByFormula() throws {
    let model = try TransNormer(.init(vocabulary: 1000), generator: generator())
    let (d, hidden) = (512, 1368)
    let layer = 4 * (d * d + d) + 2 * (d * hidden + hidden) + hidden * d + d + 32
    #expect(model.parameterCount == 1000 * d + 6 * layer, "\(model.parameterCount)")
  }

  @Test func trainingLowersTheLoss() throws {
    let model = try model()
    model.train()
    let input = tokens(4, 33)
    func loss() -> Tensor { crossEntropy(model(input[.all, ..<32]), input[.all, 1...]) }
    let before = loss().item()
    for _ in 0..<20 {
      model.zeroGradients()
      loss().backward()
      withoutGradient { for (_, p) in model.parameters() { p.addInPlace(p.gradient!, scale: -0.3) } }
    }
    #expect(loss().item() < before - 0.02, "\(before) became \(loss().item())")
  }

  @Test func sizesThatDoNotFitAreRefused() {
    #expect(throws: ConfigurationError.self) { try TransNormer(.init(vocabulary: 13, width: 16, layers: 0), generator: generator()) }
    #expect(throws: ConfigurationError.self) { try TransNormer(.init(vocabulary: 13, width: 16, heads: 3), generator: generator()) }
    #expect(throws: ConfigurationError.self) {
      try TransNormer(.init(vocabulary: 13, width: 16, heads: 2, block: 0), generator: generator())
    }
  }
}
