import MartletModels
import Testing

@Suite struct NormalizationFoldingTests {
  /// Parameters and running averages away from their first values.
  private func stir(_ model: Module) {
    let random = generator(11)
    withoutGradient {
      for (_, parameter) in model.parameters() { parameter.addInPlace(Tensor.randomNormal(parameter.shape, generator: random) * 0.1) }
      for (name, buffer) in model.buffers() where buffer.dtype.isFloatingPoint {
        let noise = Tensor.randomNormal(buffer.shape, generator: random)
        buffer.copyInPlace(name.hasSuffix("var") ? noise.square() + 0.5 : noise * 0.5)
      }
    }
    model.eval()
  }

  private func norms(_ model: Module) -> [String] { model.modules().filter { $0.module is any NormalizationLayer }.map(\.path) }

  private func classifier(
    _ mixers: [String], norm: NormalizationKind = .prepbn, feedForward: FeedForwardKind = .mlp, causal: Bool = false,
    pooling: Pooling = .mean, _ change: (inout BackboneConfiguration) -> Void = { _ in }
  ) throws -> SequenceClassifier {
    var c = try configuration(mixers, causal: causal, feedForward: feedForward, norm: norm, positions: .learned)
    c.normSchedule.steps = 0
    change(&c)
    let model = try SequenceClassifier(c, classes: 5, pooling: pooling, generator: generator())
    stir(model)
    return model
  }

  @Test(arguments: ["slab", "rala", "softmax", "linear"], [NormalizationKind.prepbn, .batch])
  func foldedModelsComputeTheSameWithoutNorms(_ mixer: String, _ norm: NormalizationKind) throws {
    for feedForward in [FeedForwardKind.mlp, .swiglu] {
      let model = try classifier([mixer], norm: norm, feedForward: feedForward) { $0.embeddingNorm = true }
      let input = tokens(3, 20)
      let mask = Tensor.arange(20) .< Tensor([20, 7, 12]).expandedDimension(1)
      let before = [model(input), model(input, mask: mask)]
      // Two a block, the last and that of the embedding; a sliding norm holds two others.
      #expect(norms(model).count == (norm == .prepbn ? 18 : 6), "\(norms(model))")
      #expect(try foldNormalization(model) == 6)
      // Norms inside of mixers are the mixers' own.
      #expect(norms(model).isEmpty, "\(norms(model))")
      #expect(!model.modules().contains { $0.module is BatchNorm || $0.module is LayerNorm })
      for (a, b) in zip([model(input), model(input, mask: mask)], before) {
        let error = relativeDifference(a, b)
        #expect(error <= 1e-5, "\(mixer), \(norm), \(feedForward): \(error), allowed 1e-5")
      }
    }
  }

  @Test(arguments: ["gla", "deltanet"]) func causalMixersFoldToo(_ mixer: String) throws {
    let model = try classifier([mixer], causal: true, pooling: .last)
    let input = tokens(2, 20)
    let before = model(input)
    try foldNormalization(model)
    #expect(relativeDifference(model(input), before) <= 2e-5)
  }

  @Test func visionTransformersFoldWithTheirPatches() throws {
    for head in [VisionTransformerConfiguration.Head.averaged(classes: 7), .classes(7), .pooler(width: 5, activation: .tanh)] {
      var backbone = BackboneConfiguration(
        input: .continuous(channels: 16), width: 16, layers: 2, heads: 2, mixers: [MixerChoice("slab")], norm: .prepbn, isCausal: false,
        length: 17)
      backbone.projectsInput = false
      backbone.embeddingNorm = true
      backbone.normSchedule.steps = 0
      let model = try VisionTransformer(
        .init(backbone: backbone, imageHeight: 12, imageWidth: 12, patch: 3, channels: 2, head: head), generator: generator())
      stir(model)
      let isAveraged = head == .averaged(classes: 7)
      #expect((model.classToken == nil) == isAveraged && model.positions.shape == [1, isAveraged ? 16 : 17, 16])
      let pixels = Tensor.randomNormal([3, 2, 12, 12], generator: generator(3))
      let before = model(pixels)
      #expect(try foldNormalization(model) == 6)
      #expect(norms(model).isEmpty)
      let error = relativeDifference(model(pixels), before)
      #expect(error <= 1e-5, "\(head): \(error), allowed 1e-5")
    }
  }

  @Test func mixersLearnTheGridOfTheImage() throws {
    var backbone = BackboneConfiguration(
      input: .continuous(channels: 16), width: 16, layers: 1, heads: 2, mixers: [MixerChoice("rala")], isCausal: false, length: 15)
    backbone.projectsInput = false
    let model = try VisionTransformer(
      .init(backbone: backbone, imageHeight: 9, imageWidth: 15, patch: 3, channels: 1, head: .averaged(classes: 3)), generator: generator())
    let pixels = Tensor.randomNormal([2, 1, 9, 15], generator: generator(3))
    let hidden = model.hiddenStates(pixels)
    #expect(hidden.grid == TokenGrid(rows: 3, columns: 5))
    let x = model.patchEmbedding(pixels) + model.positions
    #expect(relativeDifference(hidden.tokens, model.backbone(x, grid: TokenGrid(rows: 3, columns: 5))) == 0)
    #expect(relativeDifference(hidden.tokens, model.backbone(x, grid: TokenGrid(rows: 5, columns: 3))) > 1e-4)
    #expect(relativeDifference(model(pixels), model.classifier!(hidden.tokens.mean(axis: 1))) <= 1e-6)
  }

  @Test func whatCannotBeFoldedIsRefusedWithoutAChange() throws {
    func message(_ model: SequenceClassifier) throws -> String {
      let state = model.stateDictionary().mapValues { $0.copy() }
      do {
        try foldNormalization(model)
        return "folded"
      } catch let error as TensorError {
        let after = model.stateDictionary()
        #expect(after.count == state.count && after.allSatisfy { $0.value.isEqual(to: state[$0.key]!) }, "nothing is changed")
        return error.message
      }
    }
    #expect(try message(classifier(["slab"], norm: .layer)).contains("blocks.0.mixer_norm is a LayerNorm"))
    #expect(try message(classifier(["slab"]) { $0.normSchedule.steps = 10 }).contains("layer norm with weight 1.0"))
    #expect(try message(classifier(["slab"]) { $0.normSchedule.warmup = 10 }).contains("warm-up"))
    #expect(try message(classifier(["s4d"])).contains("goes to a S4"))
    #expect(try message(classifier(["slab", "s4d"])).contains("blocks.1"))
    #expect(try message(classifier(["slab"]) { $0.preNorm = false }).contains("after the sums"))
    #expect(try message(classifier(["slab"]) { $0.branchNorm = true }).contains("outputs"))
    #expect(try message(classifier(["slab"], pooling: .max)).contains("maxima"))
    #expect(
      try message(
        classifier(["slab"]) {
          $0.embeddingNorm = true
          $0.positions = .sinusoidal
        }
      ).contains("fixed positions"))
    #expect(throws: TensorError.self) { try foldNormalization(classifier(["slab"]).backbone, heads: []) }
  }

  @Test func trainingMasksPaddingFromTheStatistics() throws {
    let model = try classifier(["slab"])
    model.train()
    let input = tokens(2, 12)
    let mask = Tensor.arange(12) .< Tensor([12, 5]).expandedDimension(1)
    let other = select(mask, input, tokens(2, 12, seed: 9))
    func averages(_ input: Tensor) throws -> [Tensor] {
      let copy = try classifier(["slab"])
      copy.train()
      _ = copy(input, mask: mask)
      return copy.buffers().map(\.tensor)
    }
    for (a, b) in zip(try averages(input), try averages(other)) { #expect(relativeDifference(a.to(.float32), b.to(.float32)) <= 1e-5) }
  }
}
