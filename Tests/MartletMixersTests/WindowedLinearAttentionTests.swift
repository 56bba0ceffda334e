import MartletMixers
import Testing

@Suite struct WindowedLinearAttentionTests {
  typealias Layout = WindowedLinearAttention.Layout

  struct Inputs {
    var q, k, v, queryFeatures, keyFeatures, gate: Tensor
    var leaves: [Tensor] { [q, k, v, queryFeatures, keyFeatures, gate] }

    init(_ leaves: [Tensor]) {
      (q, k, v, queryFeatures, keyFeatures, gate) = (leaves[0], leaves[1], leaves[2], leaves[3], leaves[4], leaves[5])
    }

    /// Two sequences, two heads; features not negative, gates between 0.1 and 0.9.
    init(_ length: Int, _ dtype: DType = .float64) {
      func make(_ width: Int, _ seed: UInt64) -> Tensor { normal([2, 2, length, width], seed: seed, dtype) }
      self.init([
        make(8, 1), make(8, 2), make(12, 3), make(10, 4).softmax(), make(10, 5).softmax(), Tensor([0.1, 0.9]).to(dtype),
      ])
    }
  }

  private func quadratic(_ x: Inputs, _ window: Int, _ layout: Layout) -> Tensor {
    windowedLinearAttentionReference(
      x.q, x.k, x.v, queryFeatures: x.queryFeatures, keyFeatures: x.keyFeatures, windowFactor: x.gate, window: window, layout: layout)
  }

  /// A layer with every part: grouped keys, biases, norms of queries and keys, rotary positions with scaling.
  private func layer(
    _ options: WindowedLinearAttention.Options = .init(window: 8), dtype: DType = .float64, seed: UInt64 = 3
  ) throws -> WindowedLinearAttention {
    let generator = RandomGenerator(seed: seed)
    let attention = SoftmaxAttention(
      .init(
        width: 16, heads: 4, keyValueHeads: 2, headWidth: 6, rotaryScaling: .llama3(factor: 8, low: 1, high: 4, original: 16),
        bias: true, outputBias: false, queryKeyNorm: true),
      generator: generator)
    let layer = try WindowedLinearAttention(from: attention, options, generator: generator)
    withoutGradient {
      for (_, parameter) in layer.parameters() {
        parameter.addInPlace(Tensor.randomNormal(parameter.shape, generator: generator) * 0.3)
      }
    }
    layer.eval()
    if dtype != .float32 { layer.to(dtype) }
    return layer
  }

  static let options: [WindowedLinearAttention.Options] = [
    .init(window: 8), .init(window: 8, layout: .blocks), .init(window: 8, featureMap: .rectified, affine: true),
    .init(window: 7, layout: .blocks, features: 5, affine: true), .init(window: 1),
    .init(window: 8, features: 6, initialization: .identity),
  ]

  // MARK: Check 1

  @Test(arguments: [3, 8, 9, 75], [Layout.sliding, .blocks]) func chunkedIsQuadratic(_ length: Int, _ layout: Layout) {
    let x = Inputs(length)
    let whole = quadratic(x, 8, layout)
    for chunk in [1, 5, 8, 64] {
      let found = windowedLinearAttentionChunked(
        x.q, x.k, x.v, queryFeatures: x.queryFeatures, keyFeatures: x.keyFeatures, windowFactor: x.gate, window: 8, layout: layout,
        chunk: chunk)
      let error = relativeError(found, whole)
      #expect(error <= 1e-10, "L = \(length), \(layout), chunk \(chunk): \(error), allowed 1e-10")
    }
  }

  @Test(arguments: options) func stepsAreTheQuadraticForm(_ options: WindowedLinearAttention.Options) throws {
    for dtype in [DType.float64, .float32] {
      let layer = try layer(options, dtype: dtype)
      for length in [options.window - 1, options.window, 45] where length > 0 {
        let x = normal([2, length, 16], dtype)
        withoutGradient {
          let (q, k, v) = layer.projections(x)
          let weights = layer.weights(q, k)
          let expected = layer.joined(weights.matmul(v.repeated(2, axis: 1)))
          var state = layer.initialState(batch: 2)
          let steps = stacked((0..<length).map { layer.step(x.selected(axis: 1, $0), &state) }, axis: 1)
          let errors = [relativeError(steps, expected), relativeError(layer(x), expected)]
          let allowed = dtype == .float64 ? 1e-10 : 1e-5
          #expect(
            errors.max()! <= allowed, "\(options) \(dtype), L = \(length): steps and parallel form off by \(errors), allowed \(allowed)")
        }
      }
    }
  }

  @Test(arguments: [1, 8, 64, 65, 200], [Layout.sliding, .blocks]) func theKernelAndItsGradientsAreTheEquation(
    _ length: Int, _ layout: Layout
  ) {
    for window in [1, 8, 64, 100] {
      func results(_ dtype: DType) -> [Tensor] {
        let x = Inputs(Inputs(length, .float32).leaves.map { $0.to(dtype).copy().tracked() })
        let y =
          dtype == .float32
          ? windowedLinearAttention(
            x.q, x.k, x.v, queryFeatures: x.queryFeatures, keyFeatures: x.keyFeatures, windowFactor: x.gate, window: window, layout: layout)
          : quadratic(x, window, layout)
        return [y] + gradient(of: y, with: x.leaves, seed: normal(y.shape, seed: 9).to(dtype)).map { $0! }
      }
      for (name, (a, b)) in zip(["o", "dq", "dk", "dv", "dφq", "dφk", "dg"], zip(results(.float32), results(.float64))) {
        // Features take no part where no key is outside a window; they and the gate then have no gradient.
        guard b.abs().max().item() > 1e-8 else {
          #expect(a.abs().max().item() < 1e-4, "L = \(length), window \(window), \(layout): \(name) must vanish")
          continue
        }
        let error = relativeError(a, b)
        #expect(error <= 1e-5, "L = \(length), window \(window), \(layout): \(name) off by \(error), allowed 1e-5")
      }
    }
  }

  @Test func theKernelOfTheFeaturesIsTheEquation() {
    let generator = RandomGenerator(seed: 1)
    let single = HedgehogFeatureMap(heads: 3, width: 20, columns: 9, generator: generator)
    let double = HedgehogFeatureMap(heads: 3, width: 20, columns: 9, generator: generator)
    withoutGradient { single.weight.addInPlace(normal([3, 20, 9], seed: 4) * 0.4) }
    double.to(.float64)
    withoutGradient { double.weight.copyInPlace(single.weight) }
    let x = normal([2, 3, 130, 20])
    let seed = normal([2, 3, 130, 18], seed: 2)
    let (a, b) = (x.copy().tracked(), x.to(.float64).copy().tracked())
    let (y, exact) = (single(a), double.reference(b))
    let found = [y] + gradient(of: y, with: [a, single.weight], seed: seed).map { $0! }
    let wanted = [exact] + gradient(of: exact, with: [b, double.weight], seed: seed.to(.float64)).map { $0! }
    for (name, (f, w)) in zip(["φ", "dx", "dA"], zip(found, wanted)) {
      let error = relativeError(f, w)
      #expect(error <= 1e-5, "\(name) off by \(error), allowed 1e-5")
    }
  }

  @Test func sequencesOfDifferentLengthsStepTogether() throws {
    for layout in Layout.allCases {
      let layer = try layer(.init(window: 5, layout: layout), dtype: .float32)
      let x = normal([2, 30, 16])
      withoutGradient {
        let alone = (0..<2).map { layer(x[$0..<($0 + 1)])[0] }
        var states = (0..<2).map { _ in layer.initialState(batch: 1) }
        _ = layer.advance(x[0..<1, ..<3], &states[0])
        _ = layer.advance(x[1..<2, ..<17], &states[1])
        var state = WindowedLinearAttention.State.joined(states)
        for t in 0..<10 {
          let token = stacked([x[0, 3 + t], x[1, 17 + t]])
          let y = layer.step(token, &state)
          let error = max(relativeError(y[0], alone[0][3 + t]), relativeError(y[1], alone[1][17 + t]))
          #expect(error <= 1e-5, "\(layout), token \(t): \(error), allowed 1e-5")
          if t == 5 { state = state.selecting([0, 1]) }
        }
        let rest = stacked([x[0, 13..<16], x[1, 27..<30]])
        let y = layer.advance(rest, &state)
        let error = max(relativeError(y[0], alone[0][13..<16]), relativeError(y[1], alone[1][27..<30]))
        #expect(error <= 1e-5, "\(layout), advance: \(error), allowed 1e-5")
      }
    }
  }

  // MARK: Check 2

  @Test(arguments: options) func insideTheWindowItIsSoftmaxAttention(_ options: WindowedLinearAttention.Options) throws {
    for seed in [3, 4] as [UInt64] {
      let layer = try layer(options, seed: seed)
      let x = normal([2, options.window, 16], .float64)
      let error = withoutGradient { relativeError(layer(x), layer.softmaxAttention()(x)) }
      #expect(error <= 1e-12, "\(options), seed \(seed): \(error), allowed 1e-12")
    }
  }

  @Test func itSharesTheLayersOfTheAttentionItIsMadeFrom() throws {
    let attention = SoftmaxAttention(.init(width: 16, heads: 2, bias: true), generator: RandomGenerator(seed: 0))
    let layer = try WindowedLinearAttention(from: attention, generator: RandomGenerator(seed: 1))
    let names = Set(layer.parameters().map(\.name))
    #expect(names.isSuperset(of: attention.parameters().map(\.name)))
    #expect(names.subtracting(attention.parameters().map(\.name)) == ["query_map.weight", "key_map.weight", "window_factor"])
    #expect(layer.query === attention.query && layer.output === attention.output)
    #expect(abs(layer.gate[0].item() - 0.1) < 1e-4)
  }

  // MARK: Check 3

  @Test(arguments: options) func weightsAreAMeanOfThePast(_ options: WindowedLinearAttention.Options) throws {
    let layer = try layer(options)
    withoutGradient {
      let (q, k, _) = layer.projections(normal([2, 40, 16], .float64))
      let weights = layer.weights(q, k)
      let sums = (weights.sum(axis: -1) - 1.0).abs().max().item()
      #expect(sums <= 1e-12, "rows sum to 1 up to \(sums), allowed 1e-12")
      let least: Double = weights.min().item()
      #expect(least >= 0)
      #expect(weights.upperTriangle(1).abs().max().item() == 0)
      #expect(weights.diagonal().min().item() > 0)
    }
  }

  // MARK: Check 6

  @Test(arguments: Layout.allCases) func theStateDoesNotGrow(_ layout: Layout) throws {
    let layer = try layer(.init(window: 8, layout: layout), dtype: .float32)
    withoutGradient {
      var state = layer.initialState(batch: 1)
      let bytes = layer.stateBytes(state)
      let places = layout == .blocks ? 16 : 8
      // Two key/value heads of 6 channels in the ring; four heads of 2·3 features by 6 channels, and their sums.
      let (ring, sums): (Int, Int) = (2 * 2 * places * 6, 4 * 6 * 6 + 4 * 6)
      #expect(bytes == 4 * (ring + sums))
      for length in [1, 7, 30, 300] {
        _ = layer.advance(normal([1, length, 16]), &state)
        _ = layer.step(normal([1, 16]), &state)
        #expect(layer.stateBytes(state) == bytes, "after \(state.positions[0]) positions")
      }
    }
  }

  // MARK: Check 7

  @Test func hedgehogFeaturesIgnoreAConstantAndSumToOne() {
    let map = HedgehogFeatureMap(heads: 2, width: 6, columns: 5, generator: RandomGenerator(seed: 0))
    map.to(.float64)
    let x = normal([1, 2, 20, 6], .float64)
    withoutGradient {
      // A direction in which every column of A grows alike.
      let features = map(x)
      map.weight.copyInPlace(normal([2, 6, 5], .float64))
      let before = map(x)
      let extra = normal([2, 6, 1], seed: 7, .float64)
      map.weight.addInPlace(extra.broadcast(to: [2, 6, 5]))
      let error = relativeError(map(x), before)
      #expect(error <= 1e-12, "adding a constant to x A changes φ by \(error), allowed 1e-12")
      for half in [features[.ellipsis, ..<5], features[.ellipsis, 5...], before[.ellipsis, ..<5], before[.ellipsis, 5...]] {
        let sum = (half.sum(axis: -1) - 1.0).abs().max().item()
        #expect(sum <= 1e-10, "a half sums to 1 up to \(sum), allowed 1e-10")
      }
    }
  }

  // MARK: Boundaries

  @Test func whatCannotBeLinearisedIsRefused() throws {
    let generator = RandomGenerator(seed: 0)
    func attempt(_ configuration: SoftmaxAttention.Configuration, _ options: WindowedLinearAttention.Options = .init()) throws {
      _ = try WindowedLinearAttention(from: SoftmaxAttention(configuration, generator: generator), options, generator: generator)
    }
    let bidirectional = #expect(throws: ConfigurationError.self) { try attempt(.init(width: 16, isCausal: false)) }
    #expect(bidirectional?.message.contains("causal") == true)
    let capped = #expect(throws: ConfigurationError.self) { try attempt(.init(width: 16, softcap: 50)) }
    #expect(capped?.message.contains("softcap") == true)
    #expect(throws: ConfigurationError.self) { try attempt(.init(width: 16), .init(window: 0)) }
    #expect(throws: ConfigurationError.self) { try attempt(.init(width: 16), .init(features: 0)) }
    let identity = #expect(throws: ConfigurationError.self) { try attempt(.init(width: 16), .init(features: 3, initialization: .identity)) }
    #expect(identity?.message.contains("features = 4") == true)
    let choice = try MixerChoice(parsing: "lolcats?window=16&layout=blocks&features=12")
    #expect(choice.options["window"]?.intValue == 16)
    #expect(throws: ConfigurationError.self) { try MixerChoice(parsing: "lolcats?layout=round") }
  }
}
