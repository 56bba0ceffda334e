import MartletMixers
import Testing

@Suite struct OmegaMemoryTests {
  struct Inputs {
    var q, k, v: Tensor
    var gates: OmegaGates
    var weights: [Tensor]
    var rule: OmegaRule

    var leaves: [Tensor] {
      [q, k, v, gates.retention, gates.rate, gates.window] + (gates.persistence.map { [$0] } ?? []) + weights
    }

    /// The same with other leaves, in the order of `leaves`.
    func with(_ leaves: [Tensor]) -> Inputs {
      var result = self
      (result.q, result.k, result.v) = (leaves[0], leaves[1], leaves[2])
      (result.gates.retention, result.gates.rate, result.gates.window) = (leaves[3], leaves[4], leaves[5])
      if gates.persistence != nil { result.gates.persistence = leaves[6] }
      result.weights = Array(leaves[(gates.persistence == nil ? 6 : 7)...])
      return result
    }

    func state() -> OmegaState {
      OmegaState(weights: weights, rule: rule, window: gates.window.dim(3), features: q.dim(3), valueWidth: v.dim(3))
    }

    func output() -> Tensor {
      var state = state()
      return omegaRule(q, k, v, gates, rule: rule, state: &state)
    }
  }

  private func unit(_ x: Tensor) -> Tensor { x / x.norm(axis: -1, keepDims: true) }

  private func inputs(
    _ length: Int, rule: OmegaRule, window: Int, features: Int = 6, dv: Int = 5, hidden: Int = 7, heads: Int = 2, _ dtype: DType = .float64
  ) -> Inputs {
    func gate(_ shape: [Int], _ seed: UInt64) -> Tensor { normal(shape, seed: seed, dtype).sigmoid() }
    let base = [2, heads]
    let shapes = rule.memory == .matrix ? [[features, dv]] : [[hidden, dv], [features, hidden], [features, hidden]]
    let count = rule.memory == .matrix ? 1 : rule.memory == .mlp ? 2 : 3
    return Inputs(
      q: unit(normal(base + [length, features], seed: 1, dtype)), k: unit(normal(base + [length, features], seed: 2, dtype)),
      v: normal(base + [length, dv], seed: 3, dtype),
      gates: OmegaGates(
        retention: (normal(base + [length], seed: 4, dtype) + 2).sigmoid(), rate: gate(base + [length], 5) * (1 / Double(window)),
        persistence: rule.inner == .gradient ? nil : gate(base + [length], 6), window: gate(base + [length, window], 7)),
      weights: (0..<count).map { normal(base + shapes[$0], seed: 8 + UInt64($0), dtype) * 0.4 }, rule: rule)
  }

  /// Token by token, every W_t written out, the objective's gradient by differentiation at the memory before the token's chunk.
  private func sequential(_ x: Inputs) -> (output: Tensor, weights: [Tensor]) {
    var weights = x.weights.map { $0.requiresGradient ? $0 * 1.0 : $0.copy().tracked() }
    var start = weights
    var momentum = weights.map { Tensor.zeros(like: $0) }
    var outputs: [Tensor] = []
    func row(_ tensor: Tensor, _ t: Int) -> Tensor { tensor.narrowed(axis: 2, start: t, length: 1) }
    func factor(_ tensor: Tensor, _ t: Int) -> Tensor { tensor.selected(axis: 2, t).expandedDimension(-1).expandedDimension(-1) }
    for t in 0..<x.q.dim(2) {
      if t % x.rule.chunk == 0 { start = weights }
      var loss = Tensor(0, dtype: x.q.dtype)
      for age in 0..<min(x.gates.window.dim(3), t + 1) {
        let read = recall(row(x.k, t - age), from: start, x.rule.memory)
        let target = row(x.v, t - age)
        let each =
          x.rule.objective == .squaredError ? (read - target).square().sum(axes: [-2, -1]) * 0.5 : -(read * target).sum(axes: [-2, -1])
        loss = loss + (each * x.gates.window[.ellipsis, t, age]).sum()
      }
      let slopes = gradient(of: loss, with: start, createGraph: true).map { $0! }
      for i in weights.indices {
        momentum[i] = x.rule.inner == .gradient ? -slopes[i] : momentum[i] * factor(x.gates.persistence!, t) - slopes[i]
        let step = x.rule.inner == .muon ? newtonSchulz(momentum[i]) : momentum[i]
        weights[i] = weights[i] * factor(x.gates.retention, t) + step * factor(x.gates.rate, t)
      }
      outputs.append(recall(row(x.q, t), from: weights, x.rule.memory))
    }
    return (concatenated(outputs, axis: 2), weights)
  }

  static let rules: [OmegaRule] = MemoryKind.allCases.flatMap { memory in
    InnerRule.allCases.flatMap { inner in
      MemoryObjective.allCases.map { OmegaRule(memory: memory, inner: inner, objective: $0, chunk: 1) }
    }
  }

  // MARK: Check 1

  /// c = 1, keys of length one as they are, α = 1, no momentum, b = 1, η = β.
  @Test func aWindowOfOneIsTheDeltaRule() {
    var x = inputs(23, rule: OmegaRule(chunk: 1), window: 1)
    x.gates.retention = .ones(like: x.gates.retention)
    x.gates.window = .ones(like: x.gates.window)
    let (expected, end) = deltaRuleReference(x.q, x.k, x.v, rate: x.gates.rate, initialState: x.weights[0], scale: 1)
    var state = x.state()
    let y = omegaRule(x.q, x.k, x.v, x.gates, rule: x.rule, state: &state)
    #expect(relativeError(y, expected) <= 1e-12, "\(relativeError(y, expected))")
    #expect(relativeError(state.weights[0], end) <= 1e-12, "\(relativeError(state.weights[0], end))")
  }

  // MARK: Check 2

  /// The objective −⟨k W, v⟩ adds η γ kᵀ v: gated linear attention, and over a window its sum of the last c.
  @Test(arguments: [1, 4, 16]) func aDotProductObjectiveIsGatedLinearAttention(chunk: Int) {
    var x = inputs(23, rule: OmegaRule(objective: .dotProduct, chunk: chunk), window: 1)
    x.weights = [.zeros(like: x.weights[0])]
    let values = x.v * (x.gates.rate * x.gates.window.selected(axis: 3, 0)).expandedDimension(-1)
    let (expected, _) = gatedLinearAttentionReference(x.q, x.k, values, logGate: x.gates.retention.log(), scale: 1)
    let error = relativeError(x.output(), expected)
    #expect(error <= 1e-12, "b = \(chunk): \(error)")
    x.gates.retention = .ones(like: x.gates.retention)
    let (plain, _) = gatedLinearAttentionReference(x.q, x.k, values, logGate: nil, scale: 1)
    #expect(relativeError(x.output(), plain) <= 1e-12, "b = \(chunk), α = 1: \(relativeError(x.output(), plain))")
  }

  // MARK: Check 3

  @Test(arguments: rules) func chunksAreTheLoopThatTakesGradientsAtTheirStart(_ rule: OmegaRule) {
    for (chunk, window, length) in [(1, 4, 9), (8, 3, 19), (4, 9, 14), (16, 4, 11)] {
      var rule = rule
      rule.chunk = chunk
      let x = inputs(length, rule: rule, window: window)
      let expected = sequential(x)
      var state = x.state()
      let y = omegaRule(x.q, x.k, x.v, x.gates, rule: rule, state: &state)
      let errors = [relativeError(y, expected.output)] + zip(state.weights, expected.weights).map { relativeError($0, $1) }
      #expect(errors.max()! <= 1e-10, "\(rule), c = \(window): \(errors), allowed 1e-10")
    }
  }

  @Test(arguments: rules) func gradientsFlowThroughTheInnerGradients(_ rule: OmegaRule) {
    var rule = rule
    rule.chunk = 3
    let x = inputs(7, rule: rule, window: 2)
    let error = gradientError(x.leaves, probes: 6) { x.with($0).output().sin().sum() }
    #expect(error <= 1e-6, "\(rule): \(error), allowed 1e-6")
    let leaves = x.leaves.map { $0.copy().tracked() }
    let seed = normal(x.v.shape, seed: 20, .float64)
    let found = gradient(of: x.with(leaves).output(), with: leaves, seed: seed)
    let others = x.leaves.map { $0.copy().tracked() }
    let expected = gradient(of: sequential(x.with(others)).output, with: others, seed: seed)
    for i in leaves.indices {
      let error = relativeError(found[i]!, expected[i]!)
      #expect(error <= 1e-9, "\(rule), argument \(i): \(error), allowed 1e-9")
    }
  }

  // MARK: The kernel

  @Test(arguments: [
    OmegaRule(), OmegaRule(inner: .momentum), OmegaRule(objective: .dotProduct), OmegaRule(inner: .momentum, objective: .dotProduct),
  ])
  func theKernelAndItsGradientsAreTheReference(_ rule: OmegaRule) {
    for (chunk, window, length, features, dv) in [
      (1, 3, 12, 6, 5), (8, 4, 77, 21, 16), (8, 12, 40, 10, 33), (16, 4, 300, 5, 8), (3, 1, 10, 17, 1),
    ] {
      var rule = rule
      rule.chunk = chunk
      func results(_ dtype: DType) -> [Tensor] {
        let x = inputs(length, rule: rule, window: window, features: features, dv: dv, .float32)
        let leaves = x.leaves.map { $0.to(dtype).copy().tracked() }
        let own = x.with(leaves)
        var state = own.state()
        let y = omegaRule(own.q, own.k, own.v, own.gates, rule: rule, state: &state)
        let ends = state.weights + state.momentum
        let slopes = gradient(
          of: [y] + ends, with: leaves, seeds: [normal(y.shape, seed: 21, dtype)] + ends.map { normal($0.shape, seed: 22, dtype) })
        return [y] + ends + slopes.map { $0! }
      }
      for (i, (a, b)) in zip(results(.float32), results(.float64)).enumerated() {
        let error = relativeError(a, b)
        #expect(error <= 1e-5, "\(rule), c = \(window), \(length) tokens, result \(i): \(error), allowed 1e-5")
      }
    }
  }

  @Test func theKernelRefusesASecondDerivative() {
    let x = inputs(9, rule: OmegaRule(), window: 2, .float32)
    let q = x.q.copy().tracked()
    var changed = x
    changed.q = q
    #expect(throws: TensorError.self) { try withTorchErrors { _ = gradient(of: changed.output().sum(), with: [q], createGraph: true) } }
  }

  // MARK: Check 4

  @Test(arguments: [(1, 5), (2, 1), (2, 12), (3, 4), (4, 3)]) func productsOfFeaturesArePolynomials(degree: Int, width: Int) {
    let features = PolynomialFeatures(width: width, degree: degree)
    features.to(.float64)
    let count = (0..<degree).reduce(1.0) { $0 * Double(width + degree - $1) / Double(degree - $1) }
    #expect(features.features == Int(count.rounded()), "C(d + p, p)")
    // First the a_i are 1/i!.
    var factorial = 1.0
    for i in 0...degree {
      factorial *= Double(max(i, 1))
      #expect(abs(features.coefficients[i].item() - 1 / factorial) <= 1e-7)
    }
    withoutGradient { features.logCoefficients.addInPlace(normal([degree + 1], .float64)) }
    let (x, y) = (normal([2, 3, 7, width], seed: 1, .float64), normal([2, 3, 7, width], seed: 2, .float64))
    let product = (x * y).sum(axis: -1)
    let polynomial = (0...degree).map { product.pow(Double($0)) * features.coefficients[$0] }.reduce(Tensor.zeros(like: product), +)
    let found = (features(x) * features(y)).sum(axis: -1)
    #expect(features(x).dim(-1) == features.features)
    #expect(relativeError(found, polynomial) <= 1e-6, "\(relativeError(found, polynomial))")
    // Divided by their sum, vectors of length one stay so.
    let normalized = PolynomialFeatures(width: width, degree: degree, normalized: true)
    let length = normalized(unit(normal([3, width]))).norm(axis: -1)
    #expect((length - 1).abs().max().item() <= 1e-6, "\(length)")
  }

  @Test(arguments: [(0, 3), (1, 5), (2, 12), (3, 6)], [1, 37]) func theFeaturesKernelIsTheReference(shape: (Int, Int), length: Int) {
    let (degree, width) = shape
    let features = PolynomialFeatures(width: width, degree: degree)
    let exact = PolynomialFeatures(width: width, degree: degree)
    exact.to(.float64)
    for inside in [false, true] {
      func results(_ module: PolynomialFeatures, _ dtype: DType) -> [Tensor] {
        let x = normal(inside ? [2, length, 3, width] : [2, 3, length, width], dtype).tracked()
        let y = module(inside ? x.swappedAxes(1, 2) : x)
        let slopes = gradient(of: y, with: [x, module.logCoefficients], seed: normal(y.shape, seed: 3, dtype))
        return [y] + slopes.map { $0 ?? .zeros(like: x) }
      }
      for (i, (a, b)) in zip(results(features, .float32), results(exact, .float64)).enumerated() where b.abs().max().item() > 0 {
        #expect(relativeError(a, b) <= 1e-5, "degree \(degree), width \(width), result \(i): \(relativeError(a, b))")
      }
    }
  }

  // MARK: Check 5

  /// Least squares on random pairs is exact while there are no more pairs than independent features: F of them for keys of any length;
  /// F − 1 for keys of length one, whose squares add up to the constant.
  @Test(arguments: [(1, 16), (2, 152)]) func aMemoryHoldsAsManyPairsAsItHasIndependentFeatures(degree: Int, capacity: Int) {
    func residual(_ pairs: Int, ofLengthOne: Bool) -> Double {
      let keys = normal([pairs, 16], seed: 1, .float64)
      let features = PolynomialFeatures(width: 16, degree: 2)
      features.to(.float64)
      let own = ofLengthOne ? unit(keys) : keys
      let z = degree == 1 ? own : features(own)
      let v = normal([pairs, 3], seed: 2, .float64)
      return relativeError(z.matmul(z.pseudoInverse().matmul(v)), v)
    }
    #expect(residual(capacity, ofLengthOne: true) <= 1e-6, "\(residual(capacity, ofLengthOne: true))")
    #expect(residual(capacity + 1, ofLengthOne: true) >= 1e-3, "\(residual(capacity + 1, ofLengthOne: true))")
    let free = degree == 1 ? capacity : capacity + 1
    #expect(residual(free, ofLengthOne: false) <= 1e-6, "\(residual(free, ofLengthOne: false))")
    #expect(residual(free + 1, ofLengthOne: false) >= 1e-3, "\(residual(free + 1, ofLengthOne: false))")
  }

  // MARK: Check 7

  /// With a small rate, a step lowers the objective of its own window below what the decayed memory has.
  @Test func aSmallStepLowersTheWindowsObjective() {
    for inner in [InnerRule.gradient, .momentum] {
      var x = inputs(12, rule: OmegaRule(inner: inner, chunk: 1), window: 4, heads: 1)
      x.gates.rate = .full(like: x.gates.rate, 0.02)
      // With momentum, from its first step: later ones carry older gradients.
      let last = inner == .gradient ? 11 : 0
      func part(_ count: Int) -> [Tensor] {
        var state = x.state()
        func part(_ y: Tensor) -> Tensor { y.narrowed(axis: 2, start: 0, length: count) }
        _ = omegaRule(part(x.q), part(x.k), part(x.v), x.gates.mapped(part), rule: x.rule, state: &state)
        return state.weights
      }
      let before = last == 0 ? x.weights : part(last)
      let decayed = [before[0] * x.gates.retention.selected(axis: 2, last).expandedDimension(-1).expandedDimension(-1)]
      // The gradient is that of W_{t−1}; α close to one keeps it a descent for the decayed memory too.
      func objective(_ weights: [Tensor]) -> Double {
        (0..<min(4, last + 1)).reduce(0.0) { sum, age in
          let i = last - age
          let error =
            recall(x.k.narrowed(axis: 2, start: i, length: 1), from: weights, .matrix) - x.v.narrowed(axis: 2, start: i, length: 1)
          return sum + (error.square().sum(axes: [-2, -1]) * x.gates.window[.ellipsis, last, age]).sum().item()
        }
      }
      let (after, without) = (objective(part(last + 1)), objective(decayed))
      #expect(after < without, "\(inner): \(after), and \(without) without the step")
    }
  }

  // MARK: Check 8

  @Test(arguments: [OmegaRule(chunk: 4), OmegaRule(inner: .muon, chunk: 4), OmegaRule(memory: .mlp, inner: .momentum, chunk: 4)])
  func aPairThatCountsNothingChangesNothing(_ rule: OmegaRule) {
    let x = inputs(14, rule: rule, window: 3)
    let gates = x.gates.window.copy()
    for age in 0..<3 { gates[.ellipsis, 5 + age, age] = Tensor(0, dtype: .float64) }  // the pair of token 5
    var (first, second) = (x, x)
    first.gates.window = gates
    second.gates.window = gates
    second.v = x.v.copy()
    second.v[.all, .all, 5] = normal([2, 2, 5], seed: 9, .float64) * 10.0
    let error = relativeError(second.output(), first.output())
    #expect(error == 0, "\(rule): \(error)")
    first.gates.window = x.gates.window
    second.gates.window = x.gates.window
    #expect(relativeError(second.output(), first.output()) > 1e-3, "\(rule): where it counts it must")
  }

  // MARK: Implicit features

  @Test(arguments: [1, 4, 32]) func theExponentialKernelIsAttentionWithoutItsDenominator(chunk: Int) {
    var x = inputs(17, rule: OmegaRule(), window: 1)
    x.gates = OmegaGates(
      retention: .ones(like: x.gates.retention), rate: .ones(like: x.gates.rate), window: .ones(like: x.gates.window))
    let y = implicitOmegaRule(x.q, x.k, x.v, x.gates, objective: .dotProduct, chunk: chunk)
    let expected = x.q.matmul(x.k.T).exp().lowerTriangle().matmul(x.v)
    #expect(relativeError(y, expected) <= 1e-12, "b = \(chunk): \(relativeError(y, expected))")
  }

  @Test(arguments: MemoryObjective.allCases) func theImplicitRuleOfAPolynomialIsTheExplicitOne(_ objective: MemoryObjective) {
    for (chunk, window) in [(1, 3), (4, 6), (8, 2)] {
      let x = inputs(19, rule: OmegaRule(objective: objective, chunk: chunk), window: window)
      let features = PolynomialFeatures(width: 6, degree: 2)
      features.to(.float64)
      let z = (features(x.q), features(x.k))
      var state = OmegaState(
        weights: [.zeros([2, 2, 28, 5], dtype: .float64)], rule: x.rule, window: window, features: 28, valueWidth: 5)
      let explicit = omegaRule(z.0, z.1, x.v, x.gates, rule: x.rule, state: &state)
      let implicit = implicitOmegaRule(x.q, x.k, x.v, x.gates, objective: objective, chunk: chunk) { x, y in
        let product = x.matmul(y.T)
        return 1 + product + product.square() * 0.5
      }
      let error = relativeError(implicit, explicit)
      #expect(error <= 1e-7, "b = \(chunk), c = \(window): \(error), allowed 1e-7 (the coefficients are kept in float32)")
    }
  }

  // MARK: The layer

  static let layers: [(String, JSONObject)] = [
    ("momentum", ["inner": "momentum", "chunk": 4, "window": 6]), ("muon", ["inner": "muon", "chunk": 4, "window": 3, "key_width": 3]),
    ("mlp", ["memory": "mlp", "degree": 1, "chunk": 5]),
    ("gated mlp", ["memory": "gated_mlp", "inner": "momentum", "key_width": 3, "chunk": 3]),
    ("exact", ["chunk": 1, "window": 2]), ("dot product", ["objective": "dot_product", "convolution": 0, "output_gate": false]),
    ("mag", ["hybrid": "mag", "attention_window": 5]), ("mal", ["hybrid": "mal", "attention_window": 5]),
  ]

  private func layer(_ options: JSONObject, _ dtype: DType = .float64) throws -> any RecurrentMixer {
    let site = MixerSite(width: 12, heads: 2, isCausal: true, length: 30)
    let generator = RandomGenerator(seed: 3)
    let mixer = try MixerKind.atlas(site, options: .object(options), generator: generator)
    withoutGradient {
      for (_, parameter) in mixer.parameters() { parameter.addInPlace(Tensor.randomNormal(parameter.shape, generator: generator) * 0.1) }
    }
    mixer.to(dtype)
    return try #require(mixer as? any RecurrentMixer)
  }

  @Test(arguments: layers.indices) func everyKindOfMemoryStreams(index: Int) throws {
    let (name, options) = Self.layers[index]
    for (dtype, tolerance) in [(DType.float64, 1e-10), (.float32, 1e-5)] {
      let mixer = try layer(options, dtype)
      let x = normal([2, 23, 12], dtype)
      withoutGradient {
        let whole = mixer(x)
        for pieces in [[23], Array(repeating: 1, count: 23), [7, 1, 1, 9, 5], [1, 22]] {
          var state = mixer.initialAnyState(batch: 2)
          let bytes = mixer.anyStateBytes(state)
          var (start, outputs) = (0, [Tensor]())
          for count in pieces {
            outputs.append(mixer.advanceAny(x.narrowed(axis: 1, start: start, length: count), &state))
            start += count
          }
          let error = relativeError(concatenated(outputs, axis: 1), whole)
          #expect(error <= tolerance, "\(name), \(dtype), pieces \(pieces): \(error), allowed \(tolerance)")
          if options["hybrid"] == nil { #expect(mixer.anyStateBytes(state) == bytes, "\(name): the state grows") }
        }
      }
    }
  }

  /// Sequences at different places of their chunks step together, as continuous batching needs.
  @Test func sequencesAtDifferentPlacesOfTheirChunksStepTogether() throws {
    let mixer = try #require(layer(["chunk": 4, "window": 3]) as? OmegaMemory)
    let x = normal([2, 13, 12], .float64)
    withoutGradient {
      let alone = [0, 1].map { row in mixer(x[row..<(row + 1)]) }
      let states = [5, 7].enumerated().map { row, count in
        var state = mixer.initialState(batch: 1)
        _ = mixer.advance(x[row..<(row + 1), ..<count], &state)
        return state
      }
      var state = OmegaMemory.State.joined(states)
      for t in 0..<5 {
        let y = mixer.step(stacked([x[0, 5 + t], x[1, 7 + t]]), &state)
        for row in 0..<2 {
          let error = relativeError(y[row], alone[row][0, [5, 7][row] + t])
          #expect(error <= 1e-10, "sequence \(row), step \(t): \(error)")
        }
      }
      let swapped = state.selecting([1, 0])
      var (a, b) = (state, swapped)
      let next = normal([2, 3, 12], seed: 4, .float64)
      let y = mixer.advance(next, &a)
      let z = mixer.advance(next.flipped(axis: 0), &b).flipped(axis: 0)
      #expect(relativeError(z, y) <= 1e-12)
    }
  }

  @Test func aHybridIsItsParts() throws {
    for name in ["mag", "mal"] {
      let hybrid = try #require(layer(["hybrid": .string(name), "attention_window": 4]) as? MemoryHybrid)
      let x = normal([1, 15, 12], .float64)
      let expected = name == "mag" ? hybrid.attention(x) * hybrid.memory(x).sigmoid() : hybrid.attention(hybrid.memory(x))
      #expect(relativeError(hybrid(x), expected) == 0)
      // The window alone would not see so far back.
      let changed = x.copy()
      changed[.all, 2] = normal([1, 12], seed: 9, .float64)
      #expect(relativeError(hybrid(changed)[.all, 14], hybrid(x)[.all, 14]) > 1e-9, "\(name): the memory must reach further than attention")
    }
  }

  /// Repeating one token is the worst case of many gradients at one memory; the largest rate is chosen for it.
  @Test(arguments: [1, 8, 32]) func theSameTokenForeverStaysBounded(chunk: Int) throws {
    let site = MixerSite(width: 8, heads: 1, isCausal: true, length: 600)
    let mixer = try #require(
      MixerKind.atlas(site, options: ["chunk": .integer(chunk)], generator: RandomGenerator(seed: 1)) as? OmegaMemory)
    withoutGradient {
      // The largest gates: nothing is forgotten, everything counts.
      for gate in [mixer.retention, mixer.rate, mixer.window] { (gate as? Linear)?.bias?.fillInPlace(50) }
      mixer.memory.copyInPlace(normal(mixer.memory.shape))
      var state = mixer.initialState(batch: 1)
      let first = state.memory.weights[0].norm().item()
      _ = mixer.advance(Tensor.ones([1, 600, 8]), &state)
      let last = state.memory.weights[0].norm().item()
      #expect(last <= first + 5, "b = \(chunk): the memory's norm went from \(first) to \(last)")
    }
  }

  @Test func theLayerHasTheParametersItSays() {
    let (d, h, dk, dv, c) = (64, 4, 12, 16, 4)
    let layer = OmegaMemory(.init(width: d, heads: h), generator: RandomGenerator(seed: 1))
    let maps = 2 * d * h * dk + 3 * d * h * dv
    let gates = (d + 1) * h * (2 + c)
    #expect(layer.parameterCount == maps + gates + 3 + h * 91 * dv + dv + 4 * h * (2 * dk + dv))
    #expect(layer.parameters().contains { $0.name == "features.log_coefficients" })
    #expect(layer.configuration.features == 91 && layer.configuration.largestRate == 2 / 32.0)
    #expect(layer.multiplyAdds(length: 200) == 2 * layer.multiplyAdds(length: 100))
  }

  @Test func badOptionsAreRefused() {
    let site = MixerSite(width: 16, heads: 2, isCausal: true, length: 8)
    for options: JSONValue in [
      ["chunk": 0], ["window": 0], ["degree": 0], ["degree": 9], ["key_width": 200, "degree": 3], ["rate": -1], ["memory": "tree"],
      ["hybrid": "mag", "attention_window": -1], ["expansion": 0],
    ] {
      #expect(throws: ConfigurationError.self, "\(options)") {
        try MixerKind.atlas(site, options: options, generator: RandomGenerator(seed: 0))
      }
    }
  }

  // MARK: Time

  @Test func timeIsLinearInTheLength() throws {
    let mixer = try MixerKind.atlas(MixerSite(width: 16, heads: 2, isCausal: true, length: 64), generator: RandomGenerator(seed: 0))
    #expect(mixer.multiplyAdds(length: 1 << 16) == 64 * mixer.multiplyAdds(length: 1 << 10))
  }
}
