import MartletMixers
import Testing

@Suite struct TransNormerLayerTests {
  private func norm(_ form: TransNormerForm = .t2, positions: Bool = true, causal: Bool = true, dtype: DType = .float64) -> NormAttention {
    let mixer = NormAttention(
      .init(width: 16, heads: 2, form: form, positions: positions, isCausal: causal), generator: RandomGenerator(seed: 4))
    mixer.to(dtype)
    return mixer
  }

  private func diagonal(
    _ form: TransNormerForm = .t2, positions: Bool = true, causal: Bool = true, block: Int = 8, dtype: DType = .float64
  ) -> DiagonalBlockAttention {
    let mixer = DiagonalBlockAttention(
      .init(width: 16, heads: 2, block: block, form: form, positions: positions, isCausal: causal), generator: RandomGenerator(seed: 4))
    mixer.to(dtype)
    return mixer
  }

  /// The layer's queries and keys after φ and positions, and its values: [B, H, L, d].
  private func projections(_ m: NormAttention, _ x: Tensor, _ feature: LRPE.Feature) -> (q: Tensor, k: Tensor, v: Tensor) {
    func heads(_ y: Tensor) -> Tensor { y.reshaped(y.dim(0), y.dim(1), 2, 8).swappedAxes(1, 2) }
    func placed(_ y: Tensor) -> Tensor { m.positions?.reference(heads(y), feature: feature) ?? feature(heads(y)) }
    return (placed(m.query(x)), placed(m.key(x)), heads(m.value(x)))
  }

  /// SRMSNorm by its formula.
  private func simpleRMS(_ x: Tensor, epsilon: Double = 1e-8) -> Tensor {
    x / (x.norm(2, axis: -1, keepDims: true) / Double(x.dim(-1)).squareRoot() + epsilon)
  }

  private func joined(_ o: Tensor) -> Tensor { o.swappedAxes(1, 2).reshaped(o.dim(0), o.dim(2), -1) }

  // MARK: NormAttention

  @Test(arguments: TransNormerForm.allCases, [true, false])
  func maskedProductIsChunkScanIsRecurrence(_ form: TransNormerForm, _ positions: Bool) {
    let feature: LRPE.Feature = form == .t1 ? .elu : .onePlusElu
    let length = 75
    let x = normal([2, length, 16], .float64)
    let exact = norm(form, positions: positions)
    let (q, k, v) = projections(exact, x, feature)
    let product = exact.output(simpleRMS(joined(q.matmul(k.T).lowerTriangle().matmul(v))))
    for (dtype, tolerance) in [(DType.float64, 1e-10), (.float32, 1e-5)] {
      let mixer = norm(form, positions: positions, dtype: dtype)
      let input = x.to(dtype)
      withoutGradient {
        var state = mixer.initialState(batch: 2)
        let steps = stacked((0..<length).map { mixer.step(input.selected(axis: 1, $0), &state) }, axis: 1)
        for (name, y) in [("chunk scan", mixer(input)), ("recurrence", steps)] {
          let error = relativeError(y, product)
          #expect(error <= tolerance, "\(form), positions \(positions), \(dtype), \(name): \(error), allowed \(tolerance)")
        }
      }
    }
  }

  /// The norm takes the size away: of the values, of the keys, and of queries where φ lets it through.
  @Test(arguments: [true, false]) func sizesOfValuesAndKeysChangeNothing(_ causal: Bool) {
    let x = normal([1, 40, 16], .float64)
    for form in TransNormerForm.allCases {
      let mixer = norm(form, causal: causal)
      let feature: LRPE.Feature = form == .t1 ? .elu : .onePlusElu
      let (q, k, v) = projections(mixer, x, feature)
      func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
        let weights = q.matmul(k.T)
        return mixer.output(simpleRMS(joined((causal ? weights.lowerTriangle() : weights).matmul(v))))
      }
      let y = mixer(x)
      for (name, scaled) in [
        ("values", attend(q, k, v * 7.5)), ("keys", attend(q, k * 0.2, v)), ("queries", attend(q * 300.0, k, v)),
      ] {
        #expect(relativeError(scaled, y) <= 1e-6, "\(form), causal \(causal), \(name): \(relativeError(scaled, y)), allowed 1e-6")
      }
    }
    // Through the layer: its values' map, bias included, times 5.
    for dtype in [DType.float32, .float64] {
      let mixer = norm(causal: causal, dtype: dtype)
      let y = mixer(x.to(dtype))
      withoutGradient { for p in mixer.value.parameters() { p.tensor.multiplyInPlace(5) } }
      #expect(
        relativeError(mixer(x.to(dtype)), y) <= 1e-6, "causal \(causal), \(dtype): \(relativeError(mixer(x.to(dtype)), y)), allowed 1e-6")
    }
  }

  @Test(arguments: TransNormerForm.allCases) func withoutCausalityTheOrderOfProductsDoesNotMatter(_ form: TransNormerForm) {
    let mixer = norm(form, causal: false)
    let x = normal([2, 50, 16], .float64)
    let (q, k, v) = projections(mixer, x, form == .t1 ? .elu : .onePlusElu)
    let expected = mixer.output(simpleRMS(joined(q.matmul(k.T).matmul(v))))
    #expect(relativeError(mixer(x), expected) <= 1e-10, "\(relativeError(mixer(x), expected)), allowed 1e-10")
  }

  @Test func theNormGoesOverAllHeadsTogether() {
    let mixer = norm()
    let x = normal([1, 30, 16], .float64)
    withoutGradient {
      // The identity shows what the norm gives.
      (mixer.output as! Linear).weight.copyInPlace(Tensor.eye(16, dtype: .float64))
      let rows = mixer(x).square().mean(axis: -1)
      #expect((rows - 1.0).abs().max().item() <= 1e-6, "a row of all heads has a mean square of 1")
      let oneHead = mixer(x)[.ellipsis, ..<8].square().mean(axis: -1)
      #expect((oneHead - 1.0).abs().max().item() > 0.05, "a head alone has not")
    }
  }

  /// The kernel of positions and feature, the scan and the norm in float32 over a long sequence.
  @Test func theFusedFormHoldsAtLength() {
    let x = normal([1, 5000, 16])
    let single = norm(dtype: .float32)
    let double = norm()
    withoutGradient {
      let error = relativeError(single(x), double(x.to(.float64)))
      #expect(error <= 1e-5, "\(error), allowed 1e-5")
    }
  }

  // MARK: DiagAttention

  @Test(arguments: TransNormerForm.allCases, [true, false])
  func aTokenReachesItsOwnBlockOnly(_ form: TransNormerForm, _ causal: Bool) {
    for dtype in [DType.float32, .float64] {
      let mixer = diagonal(form, causal: causal, dtype: dtype)
      let x = normal([1, 37, 16], dtype)
      for place in [0, 7, 8, 19, 33, 36] {
        let changed = x.copy()
        changed[.all, place] = normal([1, 16], seed: 9, dtype) * 3.0
        let difference = (mixer(x) - mixer(changed)).abs().max(axis: -1)[0].toArray(Double.self)
        let block = place / 8 * 8..<min(37, place / 8 * 8 + 8)
        #expect(difference[block].contains { $0 > 0 }, "\(form), causal \(causal), \(dtype): token \(place) has no effect")
        for t in 0..<37 {
          let reaches = block.contains(t) && (!causal || t >= place)
          if reaches {
            // Behind a relu a single weight may be 0.
            #expect(difference[t] > 0 || form == .t1, "\(form), causal \(causal), \(dtype): token \(place) doesn't reach \(t)")
          } else {
            #expect(difference[t] == 0, "\(form), causal \(causal), \(dtype): token \(place) reaches \(t) by \(difference[t])")
          }
        }
      }
    }
  }

  /// Every block is attention over itself, with distances from its own beginning: relative positions don't know where it stands.
  @Test(arguments: TransNormerForm.allCases, [true, false]) func blocksAreAttentionByThemselves(_ form: TransNormerForm, _ causal: Bool) {
    let mixer = diagonal(form, causal: causal)
    let x = normal([2, 29, 16], .float64)
    let y = mixer(x)
    for start in stride(from: 0, to: 29, by: 8) {
      let part = x[.all, start..<min(29, start + 8)]
      let error = relativeError(y[.all, start..<min(29, start + 8)], mixer(part))
      #expect(error <= 1e-10, "\(form), causal \(causal), block at \(start): \(error), allowed 1e-10")
    }
  }

  @Test func aBlockAsLongAsTheSequenceIsAttention() {
    let mixer = diagonal(positions: false, block: 100)
    let x = normal([2, 40, 16], .float64)
    func heads(_ y: Tensor) -> Tensor { y.reshaped(2, 40, 2, 8).swappedAxes(1, 2) }
    let o = softmaxAttentionReference(heads(mixer.query(x)), heads(mixer.key(x)), heads(mixer.value(x)), causal: true)
    #expect(relativeError(mixer(x), mixer.output(joined(o))) <= 1e-12)
  }

  /// A sequence that goes on in the middle of a block, in parallel and in a state.
  @Test(arguments: TransNormerForm.allCases, [DType.float32, .float64]) func blocksAreCountedFromTheFirstToken(
    _ form: TransNormerForm, _ dtype: DType
  ) {
    let mixer = diagonal(form, dtype: dtype)
    let tolerance = dtype == .float64 ? 1e-10 : 1e-5
    let x = normal([2, 40, 16], dtype)
    withoutGradient {
      // From position 13 = 8 + 5 the first block holds 3 tokens more.
      let late = mixer(x, MixingContext(offset: 13))
      for (places, part) in [(0..<3, x[.all, ..<3]), (3..<11, x[.all, 3..<11]), (35..<40, x[.all, 35...])] {
        let error = relativeError(late[.all, places], mixer(part))
        #expect(error <= tolerance, "\(form) \(dtype), \(places): \(error), allowed \(tolerance)")
      }
      // Rows at different places of their blocks.
      var first = mixer.initialState(batch: 1)
      _ = mixer.advance(x[..<1, ..<13], &first)
      var state = DiagonalBlockAttention.State.joined([first, mixer.initialState(batch: 1)])
      let y = mixer.advance(x[.all, 13..<30], &state)
      let whole = mixer(x[..<1, ..<30])
      #expect(relativeError(y[..<1], whole[.all, 13...]) <= tolerance && relativeError(y[1...], mixer(x[1..., 13..<30])) <= tolerance)
      let next = mixer.step(x.selected(axis: 1, 30), &state)
      #expect(relativeError(next[..<1], mixer(x[..<1, ..<31])[.all, 30]) <= tolerance, "\(form) \(dtype): a step of the first row")
      #expect(relativeError(next[1...], mixer(x[1..., 13..<31])[.all, 17]) <= tolerance, "\(form) \(dtype): a step of the second row")
    }
  }

  // MARK: Positions

  /// Positions in float64, whose direction is a unit vector to that precision.
  private func exactPositions() -> LRPE {
    let positions = LRPE(dimensions: 8, generator: RandomGenerator(seed: 2))
    positions.to(.float64)
    withoutGradient { positions.direction.copyInPlace(positions.direction / positions.direction.norm()) }
    return positions
  }

  @Test func scoresDependOnTheDistanceOnly() {
    let positions = exactPositions()
    withoutGradient { positions.theta.addInPlace(normal([4], .float64) * 0.3) }
    let (q, k) = (normal([1, 1, 1, 8], seed: 1, .float64), normal([1, 1, 1, 8], seed: 2, .float64))
    for feature in LRPE.Feature.allCases {
      func score(_ i: Int, _ j: Int) -> Double {
        (positions(q, feature: feature, starts: [i]) * positions(k, feature: feature, starts: [j])).sum().item()
      }
      for (i, j) in [(5, 2), (30, 2), (9, 9), (0, 40)] {
        for shift in [1, 17, 100_000] {
          let error = abs(score(i + shift, j + shift) - score(i, j))
          #expect(error <= 1e-9, "\(feature), positions \(i) and \(j) moved by \(shift): \(error), allowed 1e-9")
        }
      }
      #expect(abs(score(5, 2) - score(6, 2)) > 1e-3, "and do depend on it")
      let lengths = positions(q, feature: feature, starts: [77]).norm(2, axis: -1)
      #expect(abs(lengths.item() - feature(q).norm(2, axis: -1).item()) <= 1e-12, "\(feature): norms are kept")
    }
  }

  @Test func withoutTurningScoresArePlain() {
    let positions = exactPositions()
    withoutGradient { positions.theta.multiplyInPlace(0) }
    let (q, k) = (normal([2, 2, 9, 8], seed: 1, .float64), normal([2, 2, 9, 8], seed: 2, .float64))
    let error = relativeError(positions(q).matmul(positions(k).T), q.matmul(k.T))
    #expect(error <= 1e-12, "\(error), allowed 1e-12")
    #expect(relativeError(positions(q), q) > 0.1, "though the reflection moves every vector")
    let drawn = LRPE(dimensions: 64, generator: RandomGenerator(seed: 2)).direction
    #expect(abs(drawn.norm().item() - 1) <= 1e-6)
  }

  @Test(arguments: LRPE.Feature.allCases) func theKernelOfPositionsIsTheReference(_ feature: LRPE.Feature) {
    for (width, length, starts) in [(4, 9, [0]), (32, 100, [3]), (18, 1, [5, 900]), (64, 33, [100_000])] {
      func results(_ dtype: DType) -> [Tensor] {
        let positions = LRPE(dimensions: width, generator: RandomGenerator(seed: 2))
        positions.to(dtype)
        // The channels of a layer: heads inside tokens.
        let x = normal([2, length, 3, width], seed: 1).to(dtype).swappedAxes(1, 2).detached().tracked()
        let y = positions(x, feature: feature, starts: starts)
        return [y] + gradient(of: y, with: [x, positions.theta], seed: normal(y.shape, seed: 4, dtype)).map { $0! }
      }
      for (name, (fused, reference)) in zip(["y", "x", "theta"], zip(results(.float32), results(.float64))) {
        let error = relativeError(fused, reference)
        #expect(error <= 1e-5, "\(feature), \(width) channels from \(starts), \(name): \(error), allowed 1e-5")
      }
    }
  }

  // MARK: The gradients of a denominator

  /// The weights s/Σs have gradients that grow without bound as the scores shrink, those of softmax stay below 1/4, and those of
  /// an output behind SRMSNorm stay bounded by its ε.
  @Test func aDenominatorMakesGradientsUnboundedAndANormDoesNot() {
    let scores = (normal([6], seed: 3, .float64).abs() + 0.3)
    let values = normal([6, 8], seed: 4, .float64)
    /// The largest entry of the Jacobian at scores times a scale.
    func steepest(_ scale: Double, _ function: (Tensor) -> Tensor) -> Double {
      let s = (scores * scale).copy().tracked()
      let y = function(s)
      return (0..<y.count).map { i in gradient(of: y.reshaped(-1)[i], with: [s], retainGraph: true)[0]!.abs().max().item() }.max()!
    }
    let scales = [1, 1e-2, 1e-4]
    let divided = scales.map { scale in steepest(scale) { $0 / $0.sum() } }
    let softmax = scales.map { scale in steepest(scale) { $0.softmax() } }
    for i in 1..<3 {
      let growth = divided[i] / divided[i - 1]
      #expect(growth > 99 && growth < 101, "s/Σs at scales \(scales): \(divided), each 100 times the one before")
    }
    #expect(softmax.allSatisfy { $0 > 0 && $0 <= 0.25 }, "softmax: \(softmax), at most 1/4")
    let epsilon = 1e-3
    let normed = (scales + [1e-6, 1e-8]).map { scale in
      steepest(scale) { s in self.simpleRMS(s.expandedDimension(0).matmul(values), epsilon: epsilon) }
    }
    // ‖∂y/∂o‖ ≤ 1/ε for y = o/(rms(o) + ε), and ∂o/∂s = v.
    let bound = values.abs().max().item() * Double(8).squareRoot() / epsilon
    #expect(normed.allSatisfy { $0 <= bound }, "behind the norm: \(normed), at most \(bound)")
    #expect(normed[4] < 1.01 * normed[3], "and it saturates as the scores shrink: \(normed)")
  }

  @Test func everyGradientFlowsInFloat64() {
    for form in TransNormerForm.allCases {
      for causal in [true, false] {
        let mixers: [any SequenceMixer] = [norm(form, causal: causal), diagonal(form, causal: causal, block: 4)]
        for mixer in mixers {
          let x = normal([2, 7, 16], .float64)
          let weight = normal([2, 7, 16], seed: 3, .float64)
          let error = gradientError([x]) { (mixer($0[0]) * weight).sum() }
          #expect(error <= 1e-6, "\(type(of: mixer)) \(form), causal \(causal): \(error), allowed 1e-6")
        }
      }
    }
  }

  @Test func initialValuesAreTheAuthors() {
    let generator = RandomGenerator(seed: 1)
    let late = NormAttention(.init(width: 64, heads: 4), generator: generator)
    let early = DiagonalBlockAttention(.init(width: 64, heads: 4), generator: generator)
    let bound = (6.0 / 128).squareRoot()
    func largest(_ layer: any LinearLayer) -> Double { layer.denseWeight().abs().max().item() }
    for (layer, gain) in [
      (late.query, 0.5.squareRoot()), (late.value, 0.5.squareRoot()), (late.output, 1), (early.key, 1), (early.output, 1),
    ] {
      #expect(largest(layer) <= bound * gain && largest(layer) > 0.98 * bound * gain, "\(largest(layer)), bound \(bound * gain)")
    }
    let expected = (0..<8).map { pow10000(-2 * Double($0) / 16) }
    #expect(relativeError(late.positions!.theta, Tensor(expected)) <= 1e-6)
    #expect(late.parameters().map(\.name).filter { $0.hasPrefix("positions") } == ["positions.theta"], "the reflection is fixed")
  }

  private func pow10000(_ exponent: Double) -> Double { Tensor([10000.0]).pow(exponent).item() }

  @Test func oddHeadWidthsHaveNoLinearizedPositions() throws {
    let site = MixerSite(width: 6, heads: 2, isCausal: true, length: 8)
    for name in ["norm_attention", "diagonal_attention"] {
      #expect(throws: ConfigurationError.self) { try MixerKind.named(name)(site, generator: RandomGenerator(seed: 0)) }
      #expect(try MixerKind.named(name)(site, options: ["positions": "none"], generator: RandomGenerator(seed: 0)).isCausal)
    }
    #expect(throws: ConfigurationError.self) {
      try MixerKind.diagonalAttention(
        MixerSite(width: 8, heads: 2, isCausal: true, length: 8), options: ["block": 0], generator: RandomGenerator(seed: 0))
    }
  }
}
