import Foundation
import MartletModels
import Testing

@Suite struct SequenceBackboneTests {
  // MARK: Every mixer

  @Test(arguments: MixerForm.all) func everyMixerGivesFiniteOutputsAndGradients(_ form: MixerForm) throws {
    let model = try SequenceBackbone(configuration([form.mixer], causal: form.causal), generator: generator())
    let input = tokens(2, 11)
    var mask = [Bool](repeating: true, count: 22)
    for t in 8..<11 { mask[11 + t] = false }
    for mask in [nil, Tensor(mask, [2, 11])] {
      model.zeroGradients()
      let y = model(input, mask: mask)
      #expect(y.shape == [2, 11, 16] && y.allFinite)
      let weights = Tensor.randomNormal(y.shape, generator: generator(3))
      (y * weights).sum().backward()
      for (name, tensor) in model.parameters() {
        let gradient = try #require(tensor.gradient, "\(name) has no gradient")
        #expect(gradient.allFinite && gradient.shape == tensor.shape, "\(name)")
        // An identically zero gradient would mean a parameter without effect.
        #expect(gradient.abs().max().item() > 0, "\(name) has no effect")
      }
    }
  }

  @Test(arguments: MixerForm.all) func causalModelsDoNotSeeTheFutureAndBidirectionalOnesDo(_ form: MixerForm) throws {
    let model = try SequenceBackbone(configuration([form.seeingEverything], causal: form.causal, layers: 1), generator: generator())
    model.eval()
    let input = tokens(1, 9)
    let changed = input.copy()
    changed[0, 6] = (input[0, 6] + 1) % 13
    let difference = (model(input) - model(changed)).abs().max(axis: -1)[0].toArray(Double.self)
    let scale = difference.max()!
    #expect(scale > 1e-3 && difference[6] > 0)
    // Long convolutions run through FFTs, whose rounding reaches everywhere.
    if form.causal {
      #expect(difference[..<6].allSatisfy { $0 < 1e-5 * scale }, "\(difference)")
    } else {
      #expect(difference[..<6].allSatisfy { $0 > 1e-5 * scale }, "\(difference)")
    }
  }

  @Test(arguments: MixerForm.all) func paddingChangesNothing(_ form: MixerForm) throws {
    let model = try SequenceBackbone(configuration([form.mixer], causal: form.causal), generator: generator())
    model.eval()
    let short = tokens(1, 7)
    let padded = concatenated([short, tokens(1, 5, seed: 9)], axis: 1)
    let mask = Tensor((0..<12).map { $0 < 7 }, [1, 12])
    let error = relativeDifference(model(padded, mask: mask)[.all, 0..<7], model(short, mask: nil))
    #expect(error < 2e-5, "\(form): \(error)")
  }

  @Test(arguments: recurrentMixers) func advancingInAnyPiecesIsTheParallelForm(mixer: String) throws {
    let model = try SequenceBackbone(configuration([mixer], positions: .sinusoidal), generator: generator())
    try #require(model.isRecurrent)
    model.eval()
    let input = tokens(2, 20)
    let expected = model(input)
    for pieces in [[20], Array(repeating: 1, count: 20), [7, 1, 1, 11], [1, 19]] {
      for recording in [false, true] {
        try withGradient(enabled: recording) {
          var state = try model.initialState(batch: 2)
          let parts = input.split(sizes: pieces, axis: 1).map { model.advance($0, &state) }
          let error = relativeDifference(concatenated(parts, axis: 1), expected)
          #expect(error < 5e-5, "\(pieces), recording \(recording): \(error)")
          #expect(state.positions.allSatisfy { $0 == 20 } && model.stateBytes(state) > 0)
        }
      }
    }
  }

  @Test(arguments: recurrentMixers) func lengthsAcrossChunksAndBeyondTheConfiguredOneWork(mixer: String) throws {
    let model = try SequenceBackbone(configuration([mixer], layers: 1, length: 24), generator: generator())
    model.eval()
    let input = tokens(2, 150)
    let expected = model(input)
    #expect(expected.allFinite)
    var state = try model.initialState(batch: 2)
    let parts = input.split(sizes: [64, 1, 70, 15], axis: 1).map { model.advance($0, &state) }
    let error = relativeDifference(concatenated(parts, axis: 1), expected)
    #expect(error < 1e-4, "\(error)")
    #expect(relativeDifference(model(input[.all, 0..<1]), expected[.all, 0..<1]) < 1e-4, "one position")
  }

  @Test(arguments: MixerForm.all) func float32AgreesWithFloat64(_ form: MixerForm) throws {
    let model = try SequenceBackbone(
      configuration([form.mixer], causal: form.causal, positions: .sinusoidal), generator: generator())
    // Both runs are to draw no noise.
    model.eval()
    let input = tokens(2, 70)
    func run(_ dtype: DType) -> (y: Tensor, gradients: [(String, Tensor)]) {
      model.to(dtype)
      let y = model(input)
      let weights = Tensor.randomNormal(y.shape, dtype: .float64, generator: generator(5)).to(dtype)
      let found = gradient(of: (y * weights).sum(), with: model.parameters().map(\.tensor))
      return (y, zip(model.parameters(), found).map { ($0.name, $1!) })
    }
    let (single, double) = (run(.float32), run(.float64))
    #expect(double.y.dtype == .float64)
    #expect(relativeDifference(single.y.to(.float64), double.y) < 2e-5)
    for ((name, a), (_, b)) in zip(single.gradients, double.gradients) {
      let error = relativeDifference(a.to(b.dtype), b)
      #expect(error < 3e-4, "\(name): \(error)")
    }
  }

  @Test func hybridsRepeatTheirPattern() throws {
    let model = try SequenceBackbone(configuration(["gla", "softmax", "s4d?state=8"], layers: 5), generator: generator())
    #expect(
      model.blocks.map { "\(type(of: $0.mixer))" } == [
        "GatedLinearAttention", "SoftmaxAttention", "S4", "GatedLinearAttention", "SoftmaxAttention",
      ])
    #expect((model.blocks[2].mixer as? S4)?.configuration.state == 8)
    model.eval()
    let input = tokens(1, 10)
    var state = try model.initialState(batch: 1)
    let parts = input.split(sizes: [4, 6], axis: 1).map { model.advance($0, &state) }
    #expect(relativeDifference(concatenated(parts, axis: 1), model(input)) < 5e-5)
  }

  // MARK: The residual structure

  @Test(arguments: NormalizationKind.allCases) func normsStandWhereTheConfigurationSays(norm: NormalizationKind) throws {
    for preNorm in [true, false] {
      let model = try SequenceBackbone(
        configuration(["linear"], input: .continuous(channels: 3), norm: norm, preNorm: preNorm), generator: generator())
      model.eval()
      let input = Tensor.randomNormal([2, 6, 3], generator: generator(2))
      var x = model.inputProjection!(input)
      for block in model.blocks {
        func normed(_ layer: (any NormalizationLayer)?, _ x: Tensor) -> Tensor { layer.map { $0(x) } ?? x }
        if preNorm {
          x = x + block.mixer(normed(block.mixerNorm, x))
          x = x + block.feedForward!(normed(block.feedForwardNorm, x))
        } else {
          x = normed(block.mixerNorm, x + block.mixer(x))
          x = normed(block.feedForwardNorm, x + block.feedForward!(x))
        }
      }
      #expect((model.finalNorm != nil) == (preNorm && norm != .none))
      if let final = model.finalNorm { x = final(x) }
      #expect(relativeDifference(model(input), x) < 1e-6)
    }
  }

  @Test(arguments: FeedForwardKind.allCases) func parametersCountByFormula(kind: FeedForwardKind) throws {
    let d = 16
    let model = try SequenceBackbone(configuration(["softmax"], feedForward: kind, positions: .learned), generator: generator())
    let gated = (8 * d / 3 + 7) / 8 * 8
    let inner = kind == .mlp ? 2 * d * 4 * d + 4 * d + d : kind == .none ? 0 : 3 * d * gated
    let norms = kind == .none ? 1 : 2
    let expected = 13 * d + 24 * d + 2 * (4 * d * d + inner + norms * 2 * d) + 2 * d
    #expect(model.parameterCount == expected, "\(model.parameterCount), not \(expected)")
    #expect(model(tokens(1, 5)).shape == [1, 5, d])
    let perToken = kind == .mlp ? 8 * d * d : kind == .none ? 0 : 3 * d * gated
    #expect(model.multiplyAdds(length: 10) == 2 * (10 * (4 * d * d + perToken) + 2 * 10 * 10 / 2 * d))
  }

  /// The fused GELU is a rational function between clamps: over both, and far beyond, it is x Φ(x).
  @Test func theFusedGELUIsThatOfTheNormalDistribution() {
    let x = Tensor((-14_000...14_000).map { Float($0) / 1000 } + [-1e6, -1e3, 1e3]).expandedDimension(1)
    let (one, zero) = (Tensor([Float(1)], [1, 1]), Tensor([Float(0)]))
    let found = withoutGradient {
      Operator("martlet::mlp")(.tensor(x), .tensor(one), .tensor(zero), .tensor(one), .tensor(zero), .string("gelu"))
    }
    let exact = x.to(.float64).gelu()
    let error = ((found.to(.float64) - exact).abs() / (exact.abs() + 1)).max().item()
    #expect(error <= 1e-6, "\(error), allowed 1e-6")
  }

  @Test func fusedFeedForwardsAreTheirFormulas() throws {
    let x = Tensor.randomNormal([2, 5, 16], generator: generator(4))
    let mlp = MLP(width: 16, hidden: 24, generator: generator())
    #expect(relativeDifference(mlp(x), mlp.down(mlp.up(x).gelu())) < 2e-6)
    for activation in [Activation.silu, .gelu, .tanh] {
      let gated = GatedMLP(width: 16, hidden: 24, activation: activation, generator: generator())
      #expect(relativeDifference(gated(x), gated.down(activation(gated.gate(x)) * gated.up(x))) < 2e-6, "\(activation)")
      let single = gradient(of: gated(x).square().sum(), with: gated.parameters().map(\.tensor)).map { $0! }
      gated.to(.float64)
      let double = gradient(of: gated(x.to(.float64)).square().sum(), with: gated.parameters().map(\.tensor)).map { $0! }
      for (a, b) in zip(single, double) { #expect(relativeDifference(a.to(.float64), b) < 5e-6, "\(activation)") }
    }
  }

  @Test func positionsTellTokensApart() throws {
    let same = Tensor.zeros([1, 6], dtype: .int64)
    for positions in PositionKind.allCases {
      let model = try SequenceBackbone(configuration(["linear"], causal: false, positions: positions), generator: generator())
      model.eval()
      let y = model(same)
      let spread = (y - y[.all, 0..<1]).abs().max().item()
      #expect(positions == .none ? spread < 1e-5 : spread > 1e-3, "\(positions): \(spread)")
    }
  }

  @Test func learnedPositionsEndWhereTheySay() throws {
    let model = try SequenceBackbone(configuration(positions: .learned, length: 8), generator: generator())
    #expect(model(tokens(1, 8)).shape == [1, 8, 16])
    let error = #expect(throws: TensorError.self) { try withTorchErrors { model(tokens(1, 9)) } }
    #expect(error?.message.contains("learned positions end at 8, the input at 9") == true)
    var state = try model.initialState(batch: 1)
    _ = model.advance(tokens(1, 6), &state)
    #expect(throws: TensorError.self) { try withTorchErrors { model.advance(tokens(1, 3), &state) } }
  }

  @Test func dropoutActsInTrainingOnlyAndRepeatsFromTheState() throws {
    let random = generator()
    let model = try SequenceBackbone(configuration(["s4d"], dropout: 0.2, dropPath: 0.3), generator: random)
    let input = tokens(4, 6)
    let state = random.state
    let first = model(input)
    #expect(!model(input).isEqual(to: first))
    random.state = state
    #expect(model(input).isEqual(to: first))
    #expect(model.generators().count == 1 && model.generators()[0] === random)
    model.eval()
    #expect(model(input).isEqual(to: model(input)))
  }

  @Test(arguments: MixerForm.all) func modelsTrainUnderAutocast(_ form: MixerForm) throws {
    let model = try SequenceBackbone(
      configuration([form.seeingEverything], causal: form.causal, feedForward: .swiglu, norm: .rms), generator: generator())
    let input = tokens(2, 10)
    let low = withAutocast { model(input) }.to(.float32)
    #expect(relativeDifference(low, model(input)) < 0.1)
    low.square().sum().backward()
    #expect(model.parameters().allSatisfy { $0.tensor.gradient?.allFinite == true && $0.tensor.gradient?.dtype == $0.tensor.dtype })
  }

  // MARK: Configurations

  @Test func impossibleConfigurationsAreErrorsThatSayWhy() throws {
    func message(_ change: (inout BackboneConfiguration) -> Void) throws -> String {
      var c = try configuration()
      change(&c)
      do {
        _ = try SequenceBackbone(c, generator: generator())
        return "no error"
      } catch let error as ConfigurationError { return error.message }
    }
    #expect(try message { $0.width = 0 }.contains("width must be positive"))
    #expect(try message { $0.layers = 0 }.contains("layers must be in"))
    #expect(try message { $0.heads = 3 }.contains("width 16 is not a multiple of 3 heads"))
    #expect(try message { $0.mixers = [] }.contains("at least one mixer"))
    #expect(try message { $0.dropout = 1 }.contains("dropout"))
    #expect(try message { $0.dropPath = -0.1 }.contains("dropout and drop path"))
    #expect(try message { $0.dropout = .nan }.contains("dropout"))
    #expect(try message { $0.length = 0 }.contains("length must be positive"))
    #expect(try message { $0.input = .tokens(vocabulary: 0) }.contains("vocabulary"))
    #expect(try message { $0.input = .continuous(channels: 0) }.contains("at least one channel"))
    #expect(try message { $0.mixers = [MixerChoice("softmacks")] }.contains("softmax"))
    #expect(try message { $0.mixers = [MixerChoice("softmax", options: ["kv_heads": 3])] }.contains("kv_heads 3"))
    #expect(try message { $0.hidden = 0 }.contains("hidden"))
    #expect(try message { $0.heads = 16 }.contains("rotary positions need an even head width"))
  }

  @Test func bidirectionalModelsHaveNoRecurrence() throws {
    let model = try SequenceBackbone(configuration(["gla"], causal: false), generator: generator())
    #expect(!model.isRecurrent)
    let error = #expect(throws: ConfigurationError.self) { _ = try model.initialState(batch: 1) }
    #expect(error?.message.contains("bidirectional") == true)
  }

  @Test func configurationsSurviveCoding() throws {
    let c = try configuration(["gla?chunk=16", "softmax"], feedForward: .geglu, norm: .rms, positions: .learned, dropout: 0.1)
    #expect(try JSONDecoder().decode(BackboneConfiguration.self, from: JSONEncoder().encode(c)) == c)
  }

  @Test func equalSeedsMakeEqualModels() throws {
    let c = try configuration(["s4", "gla"])
    let states = try [1, 1, 2].map { try SequenceBackbone(c, generator: generator($0)).stateDictionary() }
    #expect(states[0].allSatisfy { $0.value.isEqual(to: states[1][$0.key]!) })
    #expect(!states[0].allSatisfy { $0.value.isEqual(to: states[2][$0.key]!) })
  }

  // MARK: Packed sequences

  /// Sequences end to end = each alone, outputs and gradients, for mixers that heed the packing and those that run one by one.
  @Test(arguments: MixerForm.all) func packedSequencesAreEachAlone(_ form: MixerForm) throws {
    let packing = SequencePacking(lengths: [9, 1, 14])
    for positions in [PositionKind.none, .sinusoidal] {
      let backbone = try SequenceBackbone(configuration([form.mixer], causal: form.causal, positions: positions), generator: generator())
      backbone.eval()
      let ids = tokens(1, 24)
      let parameters = backbone.parameters().map(\.tensor)
      let seed = Tensor.randomNormal([1, 24, 16], generator: generator(3))
      let together = backbone(ids, packing: packing)
      let alone = packing.forEachSequence(ids) { backbone($0) }
      let error = relativeDifference(together, alone)
      #expect(error <= 1e-5, "\(form), positions \(positions): \(error), allowed 1e-5")
      let (found, expected) = (gradient(of: together, with: parameters, seed: seed), gradient(of: alone, with: parameters, seed: seed))
      for (parameter, (a, b)) in zip(backbone.parameters(), zip(found, expected)) {
        guard let b else {
          #expect(a == nil, "\(form): \(parameter.name) takes part in packed sequences only")
          continue
        }
        let error = relativeDifference(try #require(a), b)
        #expect(error <= 3e-5, "\(form), positions \(positions), gradient of \(parameter.name): \(error), allowed 3e-5")
      }
    }
  }
}
