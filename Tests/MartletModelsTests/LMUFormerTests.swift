import MartletModels
import Testing

@Suite struct LMUFormerTests {
  private func model(spiking: Bool = false, layers: Int = 1, convolutions: Int = 4) throws -> LMUFormer {
    let model = try LMUFormer(
      .init(
        channels: 5, width: 8, layers: layers, memory: 6, window: 20, convolutions: convolutions, mixerRatio: 2, classes: 3,
        isSpiking: spiking),
      generator: generator())
    // Away from the first values, so that norms and biases act and neurons fire.
    withoutGradient {
      let random = generator(9)
      for (_, tensor) in model.parameters() { tensor.addInPlace(Tensor.randomNormal(tensor.shape, generator: random) * 0.3) }
      for (name, tensor) in model.buffers() where name.hasSuffix("running_var") { tensor.fillInPlace(spiking ? 0.2 : 0.7) }
    }
    model.eval()
    return model
  }

  private func frames(_ length: Int, batch: Int = 2, seed: UInt64 = 1) -> Tensor {
    Tensor.randomNormal([batch, length, 5], generator: generator(seed))
  }

  // MARK: Check 4

  @Test func theDefaultModelHasTheParametersOfThePaper() throws {
    let model = try LMUFormer(.init(), generator: generator())
    let trainable = model.trainableParameters().reduce(0) { $0 + $1.tensor.count }
    #expect(trainable == 1_621_796)
    #expect(model.delay == 5)
    let spiking = try LMUFormer(.init(isSpiking: true), generator: generator())
    #expect(spiking.blocks[0].memory.configuration.memory == 512)
  }

  // MARK: Check 6

  /// In float32 the memory is made by Fourier transforms, in which a frame changes all others by rounding.
  @Test(arguments: [(false, DType.float64), (true, .float64), (false, .float32)])
  func anOutputSeesDelayFramesAheadAndNoMore(_ spiking: Bool, _ dtype: DType) throws {
    for convolutions in [1, 3, 4] {
      let model = try model(spiking: spiking, convolutions: convolutions)
      model.to(dtype)
      let x = frames(40, batch: 6).to(dtype)
      let position = 24
      let changed = x.copy()
      changed[.all, position] = Tensor.randomNormal([6, 5], generator: generator(4)).to(dtype) * 5.0
      withoutGradient {
        let difference = (model.framewise(x) - model.framewise(changed)).abs().sum(axes: [0, 2]).toArray(Double.self)
        let last = position - model.delay
        let allowed = dtype == .float64 ? 0 : 1e-5 * model.framewise(x).abs().max().item()
        let early = difference[..<last].max() ?? 0
        #expect(early <= allowed, "\(convolutions) convolutions: an output before \(last) changed by \(early), allowed \(allowed)")
        // Spikes may hide a change of one frame; real values don't.
        if !spiking { #expect(difference[last] > 1e-4, "output \(last) doesn't see input \(position)") }
        #expect(difference[position...].max() ?? 0 > 1e-4)
      }
    }
  }

  @Test(arguments: [false, true], [1, 2, 5, 6, 30]) func streamingGivesTheWholeSequencesLogits(_ spiking: Bool, _ length: Int) throws {
    for convolutions in [1, 4] {
      let model = try model(spiking: spiking, layers: 2, convolutions: convolutions)
      let x = frames(length)
      withoutGradient {
        let expected = model.framewise(x)
        var stream = model.stream(batch: 2)
        var logits: [Tensor] = []
        for t in 0..<length {
          let found = stream.step(x.selected(axis: 1, t))
          #expect((found != nil) == (t >= model.delay), "frame \(t)")
          if let found { logits.append(found) }
          #expect((stream.prediction != nil) == (t >= model.delay))
        }
        logits += stream.end()
        #expect(logits.count == length && stream.count == length)
        let error = relativeDifference(stacked(logits, axis: 1), expected)
        #expect(error <= 1e-5, "\(convolutions) convolutions, L = \(length): \(error), allowed 1e-5")
        let mean = relativeDifference(stream.prediction!, model(x))
        #expect(mean <= 1e-5, "running mean: \(mean), allowed 1e-5")
      }
    }
  }

  @Test func theRunningMeanEndsInTheMean() throws {
    let model = try model()
    let x = frames(12)
    withoutGradient {
      let logits = model.framewise(x)
      let means = LMUFormer.runningMeans(logits)
      #expect(relativeDifference(means[.all, 11], model(x)) <= 1e-6)
      #expect(relativeDifference(means[.all, 0], logits[.all, 0]) <= 1e-6)
      #expect(relativeDifference(means[.all, 4], logits[.all, ..<5].mean(axis: 1)) <= 1e-6)
    }
  }

  // MARK: Padding

  @Test(arguments: [false, true]) func paddingChangesNothing(_ spiking: Bool) throws {
    let lengths = [20, 7]
    let mask = Tensor.arange(20) .< Tensor(lengths).expandedDimension(1)
    let x = frames(20)
    let other = select(mask.expandedDimension(-1), x, frames(20, seed: 5) * 4.0)
    for training in [false, true] {
      // Batch norms change while training: each run has a model of its own.
      func run(_ body: (LMUFormer) -> Tensor) throws -> Tensor {
        let model = try model(spiking: spiking)
        model.train(training)
        return withoutGradient { body(model) }
      }
      let (a, b) = (try run { $0(x, mask: mask) }, try run { $0(other, mask: mask) })
      #expect(a.isEqual(to: b), "training \(training): values of padded frames changed the logits by \(relativeDifference(a, b))")
      guard !training else { continue }
      for (row, length) in lengths.enumerated() {
        let alone = try run { $0(x[row..<(row + 1), ..<length]) }
        let error = relativeDifference(a[row..<(row + 1)], alone)
        #expect(error <= 1e-5, "row \(row): padding changed the logits by \(error), allowed 1e-5")
      }
    }
  }

  // MARK: Gradients

  @Test func gradientsAreThoseOfFiniteDifferences() throws {
    let model = try model()
    model.to(.float64)
    let x = frames(9).to(.float64)
    let weight = Tensor.randomNormal([2, 3], generator: generator(3)).to(.float64)
    let error = gradientError([x]) { (model($0[0]) * weight).sum() }
    #expect(error <= 1e-6, "x: \(error), allowed 1e-6")
  }

  @Test(arguments: [false, true]) func everyParameterLearns(_ spiking: Bool) throws {
    let model = try model(spiking: spiking)
    model.train()
    crossEntropy(model(frames(20, batch: 8)), Tensor([0, 1, 2, 0, 1, 2, 0, 1])).backward()
    for (name, tensor) in model.parameters() {
      let size = tensor.gradient?.abs().max().item() ?? 0
      #expect(size > 0 && size.isFinite, "\(name) has the gradient \(size)")
    }
  }

  // MARK: Checkpoints

  @Test(arguments: [false, true]) func checkpointsOfTheAuthorsLoad(_ spiking: Bool) throws {
    let model = try model(spiking: spiking)
    // The names and shapes that the authors' modules have.
    var original: [String: Tensor] = [:]
    for (key, tensor) in model.stateDictionary() {
      var parts = key.split(separator: ".").map(String.init)
      if parts[1] == "residual" { parts[1] = "rpe_conv" }
      if ["convolutions", "norms"].contains(parts[1]) {
        let isConvolution = parts[1] == "convolutions"
        if spiking {
          let name = (isConvolution ? "proj_conv" : "proj_bn") + (parts[2] == "0" ? "" : parts[2])
          parts.replaceSubrange(1...2, with: [name])
        } else {
          parts.replaceSubrange(1...2, with: ["conv_layers", parts[2], isConvolution ? "0" : "3"])
        }
      }
      let isPointwise =
        parts.contains { ["proj_conv", "fc1_conv", "fc2_conv"].contains($0) } && parts[0] == "block" && parts.last == "weight"
      original[parts.joined(separator: ".")] = isPointwise || parts.last == "B" ? tensor.expandedDimension(-1).copy() : tensor.copy()
    }
    original["block.0.attn.lmu.H"] = Tensor.zeros([6, 128])
    original["block.0.attn.lmu.fft_H"] = Tensor.zeros([6, 129])
    original["head_bn.num_batches_tracked"] = Tensor.zeros([])
    let fresh = try LMUFormer(model.configuration, generator: generator(77))
    fresh.eval()
    let x = frames(10)
    #expect(relativeDifference(fresh(x), model(x)) > 1e-3)
    try fresh.loadOriginal(original)
    #expect(relativeDifference(fresh(x), model(x)) == 0)
    original["head.weight"] = nil
    #expect(throws: LoadingError.self) { try fresh.loadOriginal(original) }
  }

  @Test func impossibleNumbersAreRefused() {
    for configuration in [
      LMUFormer.Configuration(channels: 0), .init(width: 0), .init(layers: 0), .init(memory: 0), .init(window: 0), .init(convolutions: 0),
      .init(classes: 0),
    ] {
      #expect(throws: ConfigurationError.self) { try LMUFormer(configuration, generator: generator()) }
    }
  }
}
