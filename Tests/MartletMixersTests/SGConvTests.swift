import MartletMixers
import Testing

@Suite struct SGConvTests {
  private func kernel(
    width: Int = 3, length: Int = 64, dimension: Int = 8, directions: Int = 1, interpolation: MultiScaleKernel.Interpolation = .linear,
    arrangement: MultiScaleKernel.Arrangement = .concatenated, decay: MultiScaleKernel.Decay = .geometric,
    decayRange: ClosedRange<Double> = 2...2, initialization: MultiScaleKernel.Initialization = .normal, seed: UInt64 = 1
  ) -> MultiScaleKernel {
    let kernel = MultiScaleKernel(
      .init(
        width: width, length: length, dimension: dimension, directions: directions, interpolation: interpolation, arrangement: arrangement,
        decay: decay, decayRange: decayRange, initialization: initialization), generator: RandomGenerator(seed: seed))
    kernel.to(.float64)
    return kernel
  }

  // MARK: Sizes

  @Test(arguments: [(1, 8, 1), (8, 8, 1), (9, 8, 2), (16, 8, 2), (17, 8, 3), (1000, 16, 7), (1024, 16, 7), (1025, 16, 8)])
  func lengthAndParametersFollowTheFormulas(_ length: Int, _ dimension: Int, _ scales: Int) {
    let kernel = kernel(width: 5, length: length, dimension: dimension)
    #expect(kernel.configuration.scales == scales)
    #expect(kernel.length == dimension << (scales - 1))
    #expect(kernel.length >= length)
    #expect(kernel(length: kernel.length).shape == [1, 5, kernel.length])
    #expect(kernel(length: 10 * kernel.length).shape == [1, 5, kernel.length], "beyond its taps there is nothing")
    #expect(kernel.parameterCount == 5 * dimension * scales)
  }

  @Test func doublingTheLengthAddsOneSmallKernel() {
    for length in [64, 100, 512] {
      let (one, two) = (kernel(width: 6, length: length), kernel(width: 6, length: 2 * length))
      #expect(two.parameterCount - one.parameterCount == 6 * 8)
    }
  }

  // MARK: Shape of the kernel

  /// With w = 1 piece i is α^i throughout.
  @Test(arguments: MultiScaleKernel.Interpolation.allCases) func constantPiecesFallByAlpha(_ interpolation: MultiScaleKernel.Interpolation)
  {
    let kernel = kernel(length: 128, interpolation: interpolation, decayRange: 1...3)
    withoutGradient {
      kernel.weight.fillInPlace(1)
      kernel.norm.fillInPlace(1)
      let k = kernel(length: kernel.length)[0]
      for channel in 0..<3 {
        let alpha = 1 / Double(channel + 1)
        var start = 0
        var expected = 1.0
        for piece in 0..<kernel.configuration.scales {
          let size = 8 << max(0, piece - 1)
          let values = k[channel, start..<(start + size)]
          let error = (values - expected).abs().max().item()
          #expect(error <= 1e-12, "\(interpolation), channel \(channel), piece \(piece): off by \(error), allowed 1e-12")
          start += size
          expected *= alpha
        }
        #expect(start == kernel.length)
      }
    }
  }

  @Test(arguments: MultiScaleKernel.Arrangement.allCases, MultiScaleKernel.Decay.allCases)
  func everyChannelStartsWithNormOne(_ arrangement: MultiScaleKernel.Arrangement, _ decay: MultiScaleKernel.Decay) {
    let kernel = kernel(width: 20, length: 1024, dimension: 16, directions: 2, arrangement: arrangement, decay: decay, decayRange: 1...2)
    let norms = withoutGradient { kernel(length: kernel.length).norm(axis: -1) }
    let error = (norms - 1.0).abs().max().item()
    #expect(error <= 1e-6, "\(arrangement), \(decay): norms differ from 1 by \(error), allowed 1e-6")
  }

  /// The mean magnitude of a piece is 0.4–0.5 of that of the one before; the ends, which interpolation leaves alone, make the first ratio ½.
  @Test func magnitudesHalveFromScaleToScale() {
    let kernel = kernel(width: 256, length: 2048, dimension: 32)
    withoutGradient {
      let k = kernel(length: kernel.length)[0].abs()
      var start = 0
      var means: [Double] = []
      for piece in 0..<kernel.configuration.scales {
        let size = 32 << max(0, piece - 1)
        means.append(k[0..., start..<(start + size)].mean().item())
        start += size
      }
      for (i, (a, b)) in zip(means, means.dropFirst()).enumerated() {
        #expect((0.38...0.52).contains(b / a), "piece \(i + 1) over piece \(i): \(b / a)")
      }
      // Interpolation shrinks the first stretched piece most.
      #expect(means[2] / means[1] < 0.47, "\(means[2] / means[1])")
    }
  }

  @Test func linearInterpolationIsBetweenTheCentresOfTheTaps() {
    let kernel = kernel(width: 1, length: 12, dimension: 3)
    withoutGradient {
      kernel.norm.fillInPlace(1)
      kernel.weight.copyInPlace(Tensor([0, 0, 0, 0, 0, 0, 4, 8, 0] as [Double], [1, 3, 1, 3]))
      // Piece 2 has α² = ¼ and is stretched by 2: at −¼, ¼, ¾, 1¼, 1¾, 2¼ of 1, 2, 0.
      let found = kernel(length: 12)[0, 0, 6...].toArray(Double.self)
      for (a, b) in zip(found, [1, 1.25, 1.75, 1.5, 0.5, 0]) { #expect(abs(a - b) <= 1e-12, "\(found)") }
    }
  }

  @Test func powerLawMultipliesTheDistance() {
    let kernel = kernel(length: 32, decay: .power, decayRange: 0.5...1.5)
    withoutGradient {
      kernel.weight.fillInPlace(1)
      kernel.norm.fillInPlace(1)
      let k = kernel(length: 32)[0]
      for channel in 0..<3 {
        let rho = kernel.exponent![channel].item()
        #expect((0.5...1.5).contains(rho))
        let expected = (Tensor.arange(1, 33, dtype: .float64).log() * -rho).exp()
        let error = relativeError(k[channel], expected)
        #expect(error <= 1e-12, "channel \(channel): off by \(error), allowed 1e-12")
      }
    }
  }

  @Test func cosinesAreDealtToTheChannels() {
    let kernel = kernel(width: 7, length: 64, dimension: 8, initialization: .cosine)
    let phase = Tensor.linspace(0, 2 * .pi, count: 8, dtype: .float64)
    for scale in 0..<kernel.configuration.scales {
      var missing = Set(0..<7)
      for channel in 0..<7 {
        let piece = kernel.weight[0, scale, channel].detached()
        let periods = (0..<7).filter { relativeError(piece, (phase * Double($0)).cos()) <= 1e-6 }
        #expect(!periods.isEmpty, "scale \(scale), channel \(channel)")
        // 7 periods on 8 points are 0 periods.
        periods.forEach { missing.remove($0) }
      }
      #expect(missing.isEmpty, "scale \(scale): no channel has \(missing) periods")
    }
  }

  // MARK: The layer

  private func layer(
    width: Int = 5, length: Int = 40, dimension: Int = 4, causal: Bool = true, glu: Bool = false, dtype: DType = .float64
  ) -> SGConv {
    let layer = SGConv(
      .init(kernel: .init(width: width, length: length, dimension: dimension), isCausal: causal, glu: glu),
      generator: RandomGenerator(seed: 3))
    layer.to(dtype)
    layer.eval()
    return layer
  }

  /// Makes the output map the identity, so that the layer gives GELU of the convolution.
  private func exposeConvolution(_ layer: SGConv) throws {
    let width = layer.configuration.kernel.width
    try layer.replace(
      "output", with: Linear(weight: Tensor.eye(width, dtype: layer.skip.dtype), bias: Tensor.zeros([width], dtype: layer.skip.dtype)))
  }

  @Test(arguments: [(1, true), (13, true), (40, true), (57, true), (600, true), (33, false), (40, false)])
  func theLayerIsTheDirectSum(_ length: Int, _ causal: Bool) throws {
    for (dtype, tolerance) in [(DType.float64, 1e-12), (.float32, 1e-5)] {
      let layer = layer(causal: causal, dtype: dtype)
      try exposeConvolution(layer)
      withoutGradient {
        let x = normal([2, length, 5], dtype)
        let k = layer.kernel(length: length)
        let taps = k.dim(-1)
        let direct = (0..<length).map { t in
          var y = x.selected(axis: 1, t) * layer.skip
          for m in 0..<min(taps, t + 1) { y += k[0, 0..., m] * x.selected(axis: 1, t - m) }
          if !causal { for m in 0..<min(taps, length - t - 1) { y += k[1, 0..., m] * x.selected(axis: 1, t + 1 + m) } }
          return y
        }
        let error = relativeError(layer(x), stacked(direct, axis: 1).gelu())
        #expect(error <= tolerance, "L = \(length), causal \(causal), \(dtype): off by \(error), allowed \(tolerance)")
      }
    }
  }

  /// The norm is a constant: training moves the kernel, not Z.
  @Test func theNormStaysWhenTheKernelLearns() {
    let layer = layer()
    let before = layer.kernel.norm.copy()
    layer(normal([2, 40, 5], .float64)).square().sum().backward()
    withoutGradient {
      for (_, parameter) in layer.parameters() { parameter.addInPlace(parameter.gradient!, scale: -0.05) }
    }
    #expect(layer.kernel.norm.isEqual(to: before))
    #expect(!layer.parameters().contains { $0.name.contains("norm") })
    #expect(layer.buffers().contains { $0.name == "kernel.norm" })
    let norms = withoutGradient { layer.kernel(length: layer.kernel.length).norm(axis: -1) }
    #expect((norms - 1.0).abs().max().item() > 1e-3, "the kernel's own norm may change")
  }

  /// Cropped, not rescaled: the first outputs don't depend on the length.
  @Test func theFirstOutputsDoNotDependOnTheLength() {
    let layer = layer()
    withoutGradient {
      let x = normal([2, 90, 5], .float64)
      let whole = layer(x)
      for length in [1, 7, 39, 64] {
        let error = relativeError(layer(x[0..., ..<length]), whole[0..., ..<length])
        #expect(error <= 1e-12, "L = \(length): off by \(error), allowed 1e-12")
      }
    }
  }

  @Test func theStateIsARingOfConstantSize() {
    let layer = layer(length: 16, dtype: .float32)
    withoutGradient {
      let x = normal([2, 50, 5])
      let whole = layer(x)
      var state = layer.initialState(batch: 2)
      let bytes = layer.stateBytes(state)
      #expect(bytes == 2 * 5 * 16 * 4)
      for t in 0..<50 {
        let error = relativeError(layer.step(x.selected(axis: 1, t), &state), whole.selected(axis: 1, t))
        #expect(error <= 1e-5, "step \(t): off by \(error), allowed 1e-5")
        #expect(layer.stateBytes(state) == bytes)
      }
    }
  }

  /// Sequences that were read alone, to different places of their rings, go on together.
  @Test func statesOfDifferentPlacesJoin() {
    let layer = layer(length: 16, dtype: .float32)
    withoutGradient {
      let (a, b) = (normal([1, 30, 5]), normal([1, 30, 5], seed: 2))
      var (first, second) = (layer.initialState(batch: 1), layer.initialState(batch: 1))
      for t in 0..<21 { _ = layer.step(a.selected(axis: 1, t), &first) }
      _ = layer.advance(b[0..., ..<5], &second)
      for t in 5..<8 { _ = layer.step(b.selected(axis: 1, t), &second) }
      var both = SGConv.State.joined([first, second, first]).selecting([1, 0])
      let y = layer.step(concatenated([b.selected(axis: 1, 8), a.selected(axis: 1, 21)]), &both)
      let expected = concatenated([layer(b)[0..., 8], layer(a)[0..., 21]])
      let error = relativeError(y, expected)
      #expect(error <= 1e-5, "off by \(error), allowed 1e-5")
    }
  }

  @Test func badOptionsAreRefused() {
    let site = MixerSite(width: 8, heads: 2, isCausal: true, length: 32)
    for options: JSONValue in [["kernel_dim": 0], ["decay_min": 3], ["decay_min": 0], ["interpolation": "cubic"], ["scales": "product"]] {
      #expect(throws: ConfigurationError.self, "\(options)") {
        try MixerKind.sgconv(site, options: options, generator: RandomGenerator(seed: 0))
      }
    }
  }
}
