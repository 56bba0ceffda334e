import MartletModels
import Testing

@Suite struct RAVLTTests {
  private func small(dropPath: Double = 0) -> RAVLTConfiguration {
    RAVLTConfiguration(
      stages: [
        .init(width: 8, depth: 1, heads: 1, isLinear: true, layerScale: 1),
        .init(width: 16, depth: 2, heads: 2, isLinear: true, layerScale: nil),
        .init(width: 16, depth: 1, heads: 2, isLinear: false, layerScale: 1e-6),
      ], classes: 5, feedForwardRatio: 2, projection: 24, dropPath: dropPath)
  }

  /// Those that the authors' code counts, of models with 1000 classes.
  @Test func parametersAreCountedAsByTheAuthors() throws {
    let sizes: [(RAVLTConfiguration, Int, Double)] = [
      (.tiny(), 14_897_768, 2.4), (.small(), 25_591_208, 4.6), (.base(), 48_241_288, 9.9), (.large(), 95_242_440, 16),
    ]
    for (configuration, count, billions) in sizes {
      // Shapes without memory.
      let model = try Initializer.$isSkipped.withValue(true) { try RAVLT(configuration, generator: generator()) }
      #expect(model.parameterCount == count, "\(model.parameterCount), not \(count)")
      let operations = Double(model.multiplyAdds(height: 224, width: 224)) / 1e9
      // The paper rounds, and doesn't say which products of attention and convolutions it counts.
      #expect(abs(operations / billions - 1) < 0.1, "\(operations) billion multiplications, \(billions) in the paper")
    }
  }

  @Test func imagesOfAnySizeGiveLogits() throws {
    let model = try RAVLT(small(), generator: generator())
    for (height, width) in [(32, 32), (35, 50)] {
      let pixels = Tensor.randomNormal([2, 3, height, width], generator: generator(2))
      let (tokens, grid) = model.features(pixels)
      let (rows, columns) = ((height + 3) / 4, (width + 3) / 4)
      #expect(grid == TokenGrid(rows: (rows + 3) / 4, columns: (columns + 3) / 4))
      #expect(tokens.shape == [2, grid.rows * grid.columns, 16])
      #expect(model(pixels).shape == [2, 5] && model(pixels).allFinite)
    }
    let error = #expect(throws: TensorError.self) { try withTorchErrors { model(Tensor.zeros([2, 1, 32, 32])) } }
    #expect(error?.message.contains("[batch, 3, height, width]") == true)
  }

  @Test func theBlockIsItsEquation() throws {
    let model = try RAVLT(small(), generator: generator())
    model.to(.float64)
    model.eval()
    let block = model.stages[0].blocks[0]
    withoutGradient {
      for (_, parameter) in block.parameters() {
        parameter.addInPlace(Tensor.randomNormal(parameter.shape, dtype: .float64, generator: generator(5)) * 0.2)
      }
      let pixels = Tensor.randomNormal([1, 3, 20, 24], dtype: .float64, generator: generator(2))
      let (x0, grid) = stemByHand(model.stem, pixels)
      var x = x0 + block.positions(x0, grid: grid)
      x = x + block.attentionScale! * block.attention(block.attentionNorm(x), MixingContext(grid: grid))
      let h = block.up(block.feedForwardNorm(x)).gelu()
      x = x + block.feedForwardScale! * block.down(h + block.local(h, grid: grid))
      // The stage's own end: a convolution over the image and a batch norm.
      let stage = model.stages[0]
      let image = x.reshaped(1, grid.rows, grid.columns, 8).transposed(0, 3, 1, 2)
      let reduced = stage.reduction!(image)
      let expected = stage.norm!(reduced.transposed(0, 2, 3, 1).reshaped(1, -1, 16))
      let one = try? RAVLT(
        RAVLTConfiguration(stages: [small().stages[0]], classes: 5, feedForwardRatio: 2, projection: 24, dropPath: 0),
        generator: generator())
      one?.to(.float64)
      one?.eval()
      var state = one?.stateDictionary() ?? [:]
      for (key, tensor) in model.stateDictionary() where state[key]?.shape == tensor.shape { state[key] = tensor }
      _ = try? one?.load(state)
      let found = one?.features(pixels)
      #expect(found?.grid == grid)
      #expect(found.map { relativeDifference($0.tokens, x) <= 1e-12 } == true)
      #expect(expected.shape == [1, 9, 16])
    }
  }

  private func stemByHand(_ stem: RAVLTStem, _ pixels: Tensor) -> (Tensor, TokenGrid) {
    var y = pixels
    for (i, (convolution, norm)) in zip(stem.convolutions, stem.norms).enumerated() {
      y = convolution(y)
      let shape = [1, -1, 1, 1]
      y = (y - norm.runningMean.reshaped(shape)) / (norm.runningVariance.reshaped(shape) + 1e-5).sqrt() * norm.weight!.reshaped(shape)
      y = y + norm.bias!.reshaped(shape)
      if i < 3 { y = y.gelu() }
    }
    let grid = TokenGrid(rows: y.dim(2), columns: y.dim(3))
    return (y.transposed(0, 2, 3, 1).reshaped(y.dim(0), -1, y.dim(1)), grid)
  }

  @Test func everyParameterTakesPartAndGradientsAreExact() throws {
    let model = try RAVLT(small(), generator: generator())
    let pixels = Tensor.randomNormal([3, 3, 32, 32], generator: generator(2))
    let weights = Tensor.randomNormal([3, 5], dtype: .float64, generator: generator(4))
    model.eval()  // fixed averages, so that both dtypes see the same function
    func gradients(_ dtype: DType) -> [(String, Tensor)] {
      model.to(dtype)
      let found = gradient(of: (model(pixels.to(dtype)) * weights.to(dtype)).sum(), with: model.parameters().map(\.tensor))
      return zip(model.parameters(), found).map { ($0.name, $1!) }
    }
    let (single, double) = (gradients(.float32), gradients(.float64))
    for ((name, a), (_, b)) in zip(single, double) {
      #expect(b.abs().max().item() > 0, "\(name) has no effect")
      let error = relativeDifference(a.to(.float64), b)
      #expect(error < 5e-4, "\(name): \(error)")
    }
  }

  @Test func stagesAreLinearThenSoftmaxWithGrowingDropPath() throws {
    let model = try Initializer.$isSkipped.withValue(true) { try RAVLT(.tiny(), generator: generator()) }
    let attentions = model.stages.map { $0.blocks.map(\.attention.configuration) }
    #expect(attentions[..<2].allSatisfy { $0.allSatisfy { $0.isReweighted && !$0.isSoftmax } })
    #expect(attentions[2...].allSatisfy { $0.allSatisfy(\.isSoftmax) })
    let dropped = try RAVLT(small(dropPath: 0.5), generator: generator())
    let pixels = Tensor.randomNormal([4, 3, 32, 32], generator: generator(2))
    #expect(!dropped(pixels).isEqual(to: dropped(pixels)), "training drops whole branches")
    dropped.eval()
    #expect(dropped(pixels).isEqual(to: dropped(pixels)))
  }

  @Test func impossibleConfigurationsAreRefused() {
    for change: (inout RAVLTConfiguration) -> Void in [
      { $0.stages = [] }, { $0.stages[0].heads = 3 }, { $0.stages[0].depth = 0 }, { $0.classes = 0 }, { $0.dropPath = 1 },
      { $0.projection = 0 },
    ] {
      var c = small()
      change(&c)
      #expect(throws: ConfigurationError.self) { try RAVLT(c, generator: generator()) }
    }
  }
}
