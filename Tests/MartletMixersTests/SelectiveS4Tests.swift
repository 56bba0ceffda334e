import MartletMixers
import Testing

@Suite struct SelectiveS4Tests {
  private func mixer(
    ratio: Double = 0.5, width: Int = 8, length: Int = 20, structure: S4.Structure = .diagonal,
    unselected: SelectiveS4.Unselected = .zero, dtype: DType = .float32, seed: UInt64 = 5
  ) -> SelectiveS4 {
    let s4 = S4.Configuration(width: width, state: 8, structure: structure, length: length, isCausal: false)
    let mixer = SelectiveS4(
      .init(s4: s4, ratio: ratio, momentum: 0.9, temperature: 0.7, unselected: unselected), generator: RandomGenerator(seed: seed))
    if dtype != .float32 { mixer.to(dtype) }
    return mixer
  }

  // MARK: Check 1

  @Test(arguments: S4.Structure.allCases) func withoutDroppingItIsThePlainLayer(_ structure: S4.Structure) {
    let mixer = mixer(ratio: 0, structure: structure)
    let x = normal([2, 20, 8])
    let mask = Tensor.arange(20) .< Tensor([20, 13]).expandedDimension(1)
    for isTraining in [false, true] {
      mixer.train(isTraining)
      for mask in [nil, mask] {
        // Every token is kept, in order, and the factor of the straight-through gradient is exactly 1.
        let real = mask?.expandedDimension(-1).to(.float32) ?? Tensor.ones([1])
        let (selective, plain) = (mixer(x, MixingContext(mask: mask)), mixer.s4(x, MixingContext(mask: mask)))
        #expect(((selective - plain) * real).abs().max().item() == 0, "\(structure), training \(isTraining), mask \(mask != nil)")
      }
    }
  }

  // MARK: Check 2

  @Test(arguments: [0.25, 0.5, 0.9]) func exactlyKTokensAreKeptInOrder(_ ratio: Double) {
    let selector = TokenSelector(width: 8, ratio: ratio, generator: RandomGenerator(seed: 1))
    for isTraining in [false, true] {
      selector.train(isTraining)
      let selection = selector.keep(normal([3, 30], seed: 2).tracked())
      let k = selector.kept(of: 30)
      #expect(k == Int(((1 - ratio) * 30).rounded()))
      #expect(selection.indices.shape == [3, k] && selection.mask == nil)
      let gaps = selection.indices[.all, 1...] - selection.indices[.all, ..<(k - 1)]
      #expect(gaps.min().itemInt() >= 1, "indices must increase: \(selection.indices.toArray(Int.self))")
      #expect(selection.factor!.isEqual(to: Tensor.ones([3, k])), "the factor must be 1 in value")
    }
  }

  @Test func evaluationKeepsTheGreatestScores() {
    let selector = TokenSelector(width: 8, ratio: 0.5, generator: RandomGenerator(seed: 1))
    selector.eval()
    let scores = Tensor([3, -1, 2, 5, 0, 4] as [Float], [1, 6])
    #expect(selector.keep(scores).indices.toArray(Int.self) == [0, 3, 5])
    selector.train()
    // With noise the choice is a draw: of many, some differ, and a much greater score is always kept.
    let draws = (0..<50).map { _ in Set(selector.keep(scores * 0.1 + Tensor([0, 0, 0, 50, 0, 0] as [Float])).indices.toArray(Int.self)) }
    #expect(Set(draws).count > 1 && draws.allSatisfy { $0.contains(3) })
  }

  /// The probability that a token is the one kept is its softmax: Gumbel-max.
  @Test func noiseDrawsFromTheSoftmax() {
    let selector = TokenSelector(width: 8, ratio: 0.75, generator: RandomGenerator(seed: 3))
    let scores = Tensor([0, 1, 2, -1] as [Float])
    let count = 20_000
    let kept = selector.keep(scores.broadcast(to: [count, 4])).indices.reshaped(-1)
    let shares = kept.binCount(minLength: 4).to(.float64) / Double(count)
    let p = scores.to(.float64).softmax()
    for (found, expected) in zip(shares.toArray(Double.self), p.toArray(Double.self)) {
      let sigma = (expected * (1 - expected) / Double(count)).squareRoot()
      #expect(abs(found - expected) <= 4 * sigma, "kept in \(found) of the draws, expected \(expected) ± \(4 * sigma)")
    }
  }

  @Test func paddingIsNeverKept() {
    let selector = TokenSelector(width: 8, ratio: 0.5, generator: RandomGenerator(seed: 1))
    let lengths = [12, 5, 1, 0]
    let mask = Tensor.arange(12) .< Tensor(lengths, [4, 1])
    for isTraining in [false, true] {
      selector.train(isTraining)
      // Padding has the greatest scores.
      let scores = select(mask, normal([4, 12]), Tensor.full([4, 12], 9)).tracked()
      let selection = selector.keep(scores, mask: mask)
      let chosen = selection.chosen().to(.int64)
      #expect((chosen * (.!mask).to(.int64)).sum().itemInt() == 0, "padding was kept")
      #expect(chosen.sum(axis: 1).toArray(Int.self) == [6, 3, 1, 0])
      let slope = gradient(of: (selection.factor! * normal(selection.indices.shape, seed: 4)).sum(), with: [scores])[0]!
      #expect(slope.allFinite && (slope * (.!mask).to(.float32)).abs().max().item() == 0)
    }
  }

  // MARK: Forms

  @Test(arguments: [false, true]) func droppedTokensPassThrough(_ masked: Bool) {
    let mask = masked ? Tensor.arange(20) .< Tensor([20, 9]).expandedDimension(1) : nil
    let x = normal([2, 20, 8])
    for unselected in SelectiveS4.Unselected.allCases {
      let mixer = mixer(unselected: unselected)
      mixer.eval()
      let context = MixingContext(mask: mask)
      let y = mixer(x, context)
      let (compact, selection) = mixer.compact(x, context)
      let chosen = selection.chosen().expandedDimension(-1)
      let elsewhere = unselected == .zero ? Tensor.zeros(like: x) : x
      #expect(((y - elsewhere) * (1.0 - chosen)).abs().max().item() == 0, "\(unselected)")
      let back = selection.gather(y) - compact
      let real = selection.mask?.expandedDimension(-1).to(.float32) ?? Tensor.ones([1])
      #expect((back * real).abs().max().item() == 0, "\(unselected): what was computed must stand at the kept places")
      // In a residual block nothing is added to them.
      if unselected == .zero { #expect(((x + y - x) * (1.0 - chosen)).abs().max().item() == 0) }
      // The kept tokens run as a sequence of their own.
      let alone = mixer.s4(selection.gather(x), MixingContext(mask: selection.mask))
      #expect(((alone - compact) * real).abs().max().item() == 0)
    }
  }

  @Test func gatherAndScatterAreTransposes() {
    let selector = TokenSelector(width: 8, ratio: 0.6, generator: RandomGenerator(seed: 2))
    let mask = Tensor.arange(11) .< Tensor([11, 4]).expandedDimension(1)
    for mask in [nil, mask] {
      let selection = selector.keep(normal([2, 11], .float64), mask: mask)
      let (x, y) = (normal([2, 11, 3], seed: 3, .float64), normal([2, selection.count, 3], seed: 4, .float64))
      let real = selection.mask?.expandedDimension(-1).to(.float64) ?? Tensor.ones([1], dtype: .float64)
      // ⟨gather x, y⟩ = ⟨x, scatter y⟩
      let (a, b) = ((selection.gather(x) * y * real).sum().item(), (x * selection.scatter(y)).sum().item())
      #expect(abs(a - b) <= 1e-12, "\(a) and \(b)")
      #expect(gradientError([x]) { (selection.gather($0[0]) * y * real).sum() } <= 1e-8)
      #expect(gradientError([y]) { (selection.scatter($0[0]) * x).sum() } <= 1e-8)
    }
  }

  // MARK: Check 3

  @Test(arguments: S4.Structure.allCases) func theGuideFollowsAndTakesNoGradient(_ structure: S4.Structure) throws {
    let mixer = mixer(structure: structure)
    let x = normal([2, 20, 8])
    func guide() -> [String: Tensor] { mixer.stateDictionary().filter { $0.key.hasPrefix("guide.") }.mapValues { $0.copy() } }
    func layer() -> [String: Tensor] { mixer.stateDictionary().filter { $0.key.hasPrefix("s4.") }.mapValues { $0.copy() } }
    var expected = guide()
    for (name, tensor) in layer() { #expect(expected["guide" + name.dropFirst(2)]!.isEqual(to: tensor), "\(name) must be equal at first") }
    #expect(expected.count == layer().count && expected.count >= 6)
    #expect(!mixer.parameters().contains { $0.name.hasPrefix("guide.") }, "the guide is not trained")
    for step in 0..<3 {
      (mixer(x) * normal([2, 20, 8], seed: UInt64(step))).sum().backward()
      for (name, parameter) in mixer.parameters() {
        let gradient = try #require(parameter.gradient, "\(name) has no gradient")
        #expect(gradient.abs().max().item() > 0, "\(name) has no effect")
        withoutGradient { parameter.addInPlace(gradient, scale: -0.01) }
        parameter.gradient = nil
      }
      for (_, tensor) in mixer.guide.module.parameters() { #expect(tensor.gradient == nil && !tensor.requiresGradient) }
      for listener in mixer.optimizerStepListeners() { listener.optimizerDidStep() }
      for (name, tensor) in layer() {
        let key = "guide" + name.dropFirst(2)
        expected[key] = tensor.dtype == .int64 ? tensor : expected[key]! * 0.9 + tensor * 0.1
      }
    }
    for (name, tensor) in guide() {
      let error = relativeError(tensor, expected[name]!)
      #expect(error <= 1e-6, "\(name): off the formula by \(error), allowed 1e-6")
      #expect(!tensor.isEqual(to: layer()["s4" + name.dropFirst(5)]!) || tensor.dtype == .int64, "\(name) must lag behind")
    }
    mixer.resetGuide()
    for (name, tensor) in guide() { #expect(tensor.isEqual(to: layer()["s4" + name.dropFirst(5)]!)) }
  }

  /// The gradient is that of the function in which the choice is fixed and kept tokens are multiplied by 1 + p − p₀.
  @Test func theGradientIsStraightThrough() {
    let mixer = mixer(width: 6, length: 9, dtype: .float64)
    mixer.eval()
    let (x, weight) = (normal([2, 9, 6], .float64), normal([2, 9, 6], seed: 3, .float64))
    let selection = mixer.selection(x.copy().tracked())
    func soft() -> Tensor {
      (mixer.selector.scores(mixer.guideFeatures(x)) / 0.7).softmax(axis: -1).gather(selection.indices, axis: 1)
    }
    let start = withoutGradient { soft() }
    let hard = TokenSelection(indices: selection.indices, mask: nil, factor: nil, length: 9)
    func surrogate(_ x: Tensor, _ factor: Tensor) -> Tensor {
      (hard.scatter(mixer.s4(hard.gather(x) * factor.expandedDimension(-1))) * weight).sum()
    }
    let exact = gradient(of: (mixer(x) * weight).sum(), with: mixer.parameters().map(\.tensor))
    for ((name, parameter), slope) in zip(mixer.parameters(), exact) {
      let other = gradient(of: surrogate(x, soft() - start + 1.0), with: [parameter])[0]!
      let error = relativeError(slope!, other)
      #expect(error <= 1e-10, "\(name): \(error), allowed 1e-10")
    }
    // By differences, for a weight of the scores.
    let flat = mixer.selector.score.denseWeight().detached().reshaped(-1)
    let found = exact[mixer.parameters().firstIndex { $0.name == "selector.score.weight" }!]!.reshaped(-1)[0].item()
    func at(_ change: Double) -> Double {
      withoutGradient {
        flat[0] = flat[0] + change
        defer { flat[0] = flat[0] - change }
        return surrogate(x, soft() - start + 1.0).item()
      }
    }
    let numeric = (at(1e-6) - at(-1e-6)) / 2e-6
    #expect(abs(numeric - found) <= 1e-6 * max(abs(found), 1e-3), "\(found), by differences \(numeric)")
    // Through the input too, with the choice held: guide features have no gradient.
    let tracked = x.copy().tracked()
    let ofInput = gradient(of: (mixer(tracked) * weight).sum(), with: [tracked])[0]!
    #expect(
      relativeError(ofInput, gradient(of: surrogate(tracked, Tensor.ones(start.shape, dtype: .float64)), with: [tracked])[0]!) <= 1e-10)
  }

  // MARK: Check 4

  @Test(arguments: [-3.0, 100.0]) func aConstantOnAllScoresChangesNoChoice(_ constant: Double) {
    let selector = TokenSelector(width: 8, ratio: 0.5, generator: RandomGenerator(seed: 1))
    selector.eval()
    let scores = normal([4, 64], .float64)
    #expect(selector.keep(scores).indices.isEqual(to: selector.keep(scores + constant).indices))
  }

  @Test func theScoresFollowTheEquations() {
    let selector = TokenSelector(width: 6, generator: RandomGenerator(seed: 1))
    let g = normal([2, 5, 6])
    let mask = Tensor.arange(5) .< Tensor([5, 3]).expandedDimension(1)
    for (mask, counts) in [(nil, [5, 5]), (mask, [5, 3])] {
      let z = selector.scores(g, mask: mask)
      for (row, count) in counts.enumerated() {
        let l = selector.local(g[row, ..<count]).relu()
        let mean = l.mean(axis: 0, keepDims: true).broadcast(to: l.shape)
        let expected = selector.score(selector.hidden(concatenated([l, mean], axis: -1)).gelu()).squeezed(-1)
        #expect(relativeError(z[row, ..<count], expected) <= 1e-6)
      }
    }
  }

  // MARK: Check 5

  /// The tests beside this one allocate too: the medians of several measurements, and another try while something disturbs them.
  @Test func whatIsKeptForTheBackwardPassGrowsWithK() {
    let (length, width) = (16384, 32)
    let x = normal([1, length, width])
    let mixers = [0.5, 0.75, 0.875].map { mixer(ratio: $0, width: width, length: length) }
    let selections = mixers.map { mixer in withoutGradient { mixer.selection(x) } }
    #expect(zip(selections, [2, 4, 8]).allSatisfy { $0.count == length / $1 })
    /// Bytes of tensors that outlive the forward pass, and of the kernels that don't depend on K.
    func held(_ i: Int) -> Double {
      let input = x.copy().tracked()
      let before = MemoryUsage.tensorBytes
      let y = mixers[i].mix(input, selections[i])
      return withExtendedLifetime(y) { Double(MemoryUsage.tensorBytes - before) }
    }
    var tries: [[Double]] = []
    for _ in 0..<10 {
      let medians = mixers.indices.map { i in (0..<7).map { _ in held(i) }.sorted()[3] }
      tries.append(medians)
      if medians[1] <= 0.6 * medians[0] && medians[2] <= 0.6 * medians[1] && medians[2] > 0 { break }
    }
    let last = tries.last!
    #expect(
      last[1] <= 0.6 * last[0] && last[2] <= 0.6 * last[1] && last[2] > 0,
      "bytes for K = L/2, L/4, L/8: \(tries), each allowed 0.6 of the one before")
  }
}
