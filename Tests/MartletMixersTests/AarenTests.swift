import MartletFeedForward
import MartletMixers
import Testing

@Suite struct AarenTests {
  /// Scores [2, 3, L] times `scale` and values [2, 3, L, d].
  private func inputs(_ length: Int, scale: Double = 1, width: Int = 8, _ dtype: DType = .float32) -> (s: Tensor, v: Tensor) {
    (normal([2, 3, length], seed: 1, dtype) * scale, normal([2, 3, length, width], seed: 2, dtype))
  }

  /// softmax(s_1 … s_t)·v for every t, by the whole matrix of weights.
  private func maskedSoftmax(_ s: Tensor, _ v: Tensor) -> Tensor {
    let length = s.dim(2)
    let future = Tensor.ones([length, length], dtype: .bool).upperTriangle(1)
    let rows = s.expandedDimension(2).broadcast(to: [s.dim(0), s.dim(1), length, length])
    return rows.maskedFill(future, -.infinity).softmax().matmul(v)
  }

  /// The cell of §3.1, token by token.
  private func cell(_ s: Tensor, _ v: Tensor) -> Tensor {
    var sums = OnlineSoftmax.identity([s.dim(0), s.dim(1), v.dim(3)], dtype: v.dtype)
    return stacked(
      (0..<s.dim(2)).map { t in
        sums = .combined(sums, .leaf(s.selected(axis: 2, t), v.selected(axis: 2, t)))
        return sums.output
      }, axis: 2)
  }

  private func difference(_ a: OnlineSoftmax, _ b: OnlineSoftmax) -> Double {
    max(
      largestDifference(a.maximum, b.maximum), relativeError(a.normalizer, b.normalizer), relativeError(a.accumulated, b.accumulated))
  }

  // MARK: The forms

  @Test(arguments: [1, 2, 3, 64, 75, 300], [1.0, 20]) func scanIsCellIsKernelIsMaskedSoftmax(_ length: Int, _ scale: Double) {
    for (dtype, tolerance) in [(DType.float32, 1e-5), (.float64, 1e-12)] {
      let (s, v) = inputs(length, scale: scale, dtype)
      // What the float32 forms are judged by is not itself rounded to float32.
      let exact = maskedSoftmax(s.to(.float64), v.to(.float64))
      let forms = [
        ("scan", OnlineSoftmax.scan(s, v).output), ("cell", cell(s, v)), ("kernel or its stand-in", prefixAttention(s, v).output),
        ("reference", prefixAttentionReference(s, v).output),
      ]
      for (name, found) in forms {
        let error = relativeError(found, exact)
        #expect(error <= tolerance, "\(name), \(dtype), L = \(length), scores × \(scale): \(error), allowed \(tolerance)")
      }
    }
  }

  @Test(arguments: [1, 7, 16, 64, 150]) func foldingByBlocksGivesTheLastOutput(_ block: Int) {
    let (s, v) = inputs(150, scale: 20, .float64)
    let scan = OnlineSoftmax.scan(s, v)
    let folded = OnlineSoftmax.fold(s, v, block: block)
    let error = relativeError(folded.output, scan.output.selected(axis: 2, 149))
    #expect(error <= 1e-12, "block \(block): \(error), allowed 1e-12")
    let later = OnlineSoftmax.fold(
      s[.all, .all, 60...], v[.all, .all, 60...], block: block, from: .fold(s[.all, .all, ..<60], v[.all, .all, ..<60], block: 9))
    #expect(difference(later, folded) <= 1e-12, "continued after 60 tokens, block \(block)")
  }

  @Test(arguments: [1, 16, 33, 100], [true, false]) func attentionFoldedByBlocksIsAttention(_ block: Int, _ causal: Bool) {
    let (q, k, v) = (
      normal([2, 3, 40, 8], seed: 1, .float64) * 4.0, normal([2, 3, 75, 8], seed: 2, .float64), normal([2, 3, 75, 6], seed: 3, .float64)
    )
    let leaves = [q, k, v].map { $0.copy().tracked() }
    func results(_ attend: (Tensor, Tensor, Tensor) -> Tensor) -> [Tensor] {
      let y = attend(leaves[0], leaves[1], leaves[2])
      return [y] + gradient(of: y, with: leaves, seed: normal(y.shape, seed: 4, .float64)).map { $0! }
    }
    let folded = results { blockwiseSoftmaxAttention($0, $1, $2, causal: causal, block: block) }
    let whole = results { softmaxAttentionReference($0, $1, $2, causal: causal) }
    for (name, (a, b)) in zip(["y", "q", "k", "v"], zip(folded, whole)) {
      #expect(relativeError(a, b) <= 1e-12, "block \(block), causal \(causal), \(name): \(relativeError(a, b)), allowed 1e-12")
    }
  }

  @Test func sumsCanBeContinued() {
    for (dtype, tolerance) in [(DType.float32, 1e-5), (.float64, 1e-12)] {
      let (s, v) = inputs(90, scale: 5, dtype)
      let whole = prefixAttention(s, v)
      for cut in [1, 40, 89] {
        let first = prefixAttention(s[.all, .all, ..<cut], v[.all, .all, ..<cut])
        let rest = prefixAttention(s[.all, .all, cut...], v[.all, .all, cut...], from: first.sums)
        let error = relativeError(rest.output, whole.output[.all, .all, cut...])
        #expect(error <= tolerance, "\(dtype), after \(cut): \(error), allowed \(tolerance)")
        #expect(difference(rest.sums, whole.sums) <= tolerance, "\(dtype), sums after \(cut)")
      }
    }
  }

  // MARK: The operator ⊕

  @Test func combiningIsAssociative() {
    let parts = [UInt64(0), 3, 6].map { seed -> OnlineSoftmax in
      let maximum: Tensor = normal([5, 4], seed: seed, .float64) * 30.0
      let normalizer: Tensor = normal([5, 4], seed: seed + 1, .float64).exp()
      return OnlineSoftmax(maximum: maximum, normalizer: normalizer, accumulated: normal([5, 4, 6], seed: seed + 2, .float64))
    }
    let left = OnlineSoftmax.combined(.combined(parts[0], parts[1]), parts[2])
    let right = OnlineSoftmax.combined(parts[0], .combined(parts[1], parts[2]))
    #expect(difference(left, right) <= 1e-14, "\(difference(left, right)), allowed 1e-14")
    let swapped = OnlineSoftmax.combined(.combined(parts[1], parts[0]), parts[2])
    #expect(difference(left, swapped) <= 1e-14, "the order of the parts doesn't matter either")
  }

  @Test func nothingIsTheIdentity() {
    let nothing = OnlineSoftmax.identity([2, 3, 8], dtype: .float64)
    let some = OnlineSoftmax.leaf(normal([2, 3], seed: 1, .float64) * 20.0, normal([2, 3, 8], seed: 2, .float64))
    for both in [OnlineSoftmax.combined(nothing, some), .combined(some, nothing)] { #expect(difference(both, some) == 0) }
    let none = OnlineSoftmax.combined(nothing, nothing)
    #expect(none.normalizer.abs().max().item() == 0 && none.output.abs().max().item() == 0, "no token: 0, not a number that isn't")
    #expect((none.maximum .== -Double.infinity).all().item() == 1)
    // Scores of −∞ are tokens that aren't there, in every form.
    let (s, v) = inputs(30)
    let absent = s.maskedFill(Tensor.arange(30) .< 3, -.infinity)
    for y in [prefixAttention(absent, v).output, prefixAttentionReference(absent, v).output] {
      #expect(y.allFinite && y[.all, .all, ..<3].abs().max().item() == 0)
      let error = relativeError(y[.all, .all, 3...], maskedSoftmax(s[.all, .all, 3...], v[.all, .all, 3...]))
      #expect(error <= 1e-5, "\(error), allowed 1e-5")
    }
  }

  // MARK: What softmax promises

  @Test func aConstantAddedToAllScoresChangesNothing() {
    let (s, v) = inputs(100, scale: 3, .float64)
    for constant in [-50.0, 1000] {
      let error = relativeError(prefixAttention(s + constant, v).output, prefixAttention(s, v).output)
      #expect(error <= 1e-12, "\(constant): \(error), allowed 1e-12")
      // In float32 a shift by a power of two times whole scores is exact.
      let whole = (s * 4.0).round().to(.float32)
      #expect(prefixAttention(whole + 64.0, v.to(.float32)).output.isEqual(to: prefixAttention(whole, v.to(.float32)).output))
    }
  }

  @Test func equalScoresGiveTheRunningMean() {
    let (_, v) = inputs(200)
    let count = Tensor.arange(1, 201).expandedDimension(-1)
    let mean = v.to(.float64).cumulativeSum(axis: 2) / count.to(.float64)
    for y in [prefixAttention(Tensor.full([2, 3, 200], -7), v).output, prefixAttentionReference(Tensor.full([2, 3, 200], -7), v).output] {
      #expect(relativeError(y, mean) <= 1e-5, "\(relativeError(y, mean)), allowed 1e-5")
    }
  }

  @Test func anOverwhelmingScoreHoldsTheOutput() {
    let (s, v) = inputs(80)
    let place = 23
    let high = select(Tensor.arange(80) .== place, s + 40.0, s)
    for y in [prefixAttention(high, v).output, prefixAttentionReference(high, v).output] {
      let held = v.narrowed(axis: 2, start: place, length: 1)
      let after = (y[.all, .all, place...] - held).abs().max().item()
      #expect(after <= 1e-6, "outputs after the score differ from its value by \(after), allowed 1e-6")
      #expect((y[.all, .all, ..<place] - held).abs().max().item() > 0.1, "outputs before it don't know it")
    }
  }

  // MARK: Gradients

  @Test(arguments: [1.0, 20]) func gradientsAreThoseOfMaskedSoftmax(_ scale: Double) {
    func results(_ dtype: DType, _ form: (Tensor, Tensor) -> Tensor) -> [Tensor] {
      let (s, v) = inputs(75, scale: scale)
      let leaves = [s, v].map { $0.to(dtype).detached().copy().tracked() }
      let y = form(leaves[0], leaves[1])
      return [y] + gradient(of: y, with: leaves, seed: normal(y.shape, seed: 4, dtype)).map { $0! }
    }
    let exact = results(.float64, maskedSoftmax)
    for (form, found, tolerance) in [
      ("scan, float64", results(.float64) { OnlineSoftmax.scan($0, $1).output }, 1e-12),
      ("scan, float32", results(.float32) { OnlineSoftmax.scan($0, $1).output }, 1e-5),
      ("kernel, float32", results(.float32) { prefixAttention($0, $1).output }, 1e-5),
    ] {
      for (name, (a, b)) in zip(["o", "s", "v"], zip(found, exact)) {
        let error = relativeError(a, b)
        #expect(error <= tolerance, "\(form), scores × \(scale), \(name): \(error), allowed \(tolerance)")
      }
    }
  }

  @Test func gradientsOfTheScanAreThoseOfFiniteDifferences() {
    let (s, v) = inputs(9, scale: 2, width: 3, .float64)
    let weight = normal([2, 3, 9, 3], seed: 5, .float64)
    let error = gradientError([s, v]) { (OnlineSoftmax.scan($0[0], $0[1]).output * weight).sum() }
    #expect(error <= 1e-6, "\(error), allowed 1e-6")
  }

  /// Sums that carry gradients are continued by the scan: none is lost.
  @Test func gradientsGoThroughTheSums() {
    func results(_ cut: Int?) -> [Tensor] {
      let (s, v) = inputs(30)
      let leaves = [s.copy().tracked(), v.copy().tracked()]
      let y: Tensor
      if let cut {
        let first = prefixAttentionReference(leaves[0][.all, .all, ..<cut], leaves[1][.all, .all, ..<cut])
        y = concatenated(
          [first.output, prefixAttention(leaves[0][.all, .all, cut...], leaves[1][.all, .all, cut...], from: first.sums).output], axis: 2)
      } else {
        y = maskedSoftmax(leaves[0], leaves[1])
      }
      return gradient(of: y, with: leaves, seed: normal(y.shape, seed: 4)).map { $0! }
    }
    for (a, b) in zip(results(11), results(nil)) { #expect(relativeError(a, b) <= 1e-5, "\(relativeError(a, b)), allowed 1e-5") }
  }

  // MARK: The layer

  @Test func aLayerHasOneVectorMoreThanAttention() {
    let generator = RandomGenerator(seed: 0)
    let attention = SoftmaxAttention(.init(width: 512, heads: 8, rotaryBase: nil, bias: true), generator: generator)
    let aaren = Aaren(.init(width: 512, heads: 8, bias: true), generator: generator)
    let others: [Module] = [MLP(width: 512, hidden: 2048, generator: generator), LayerNorm(512), LayerNorm(512)]
    let rest = others.reduce(0) { $0 + $1.parameterCount }
    #expect(attention.parameterCount + rest == 3_152_384)
    #expect(aaren.parameterCount + rest == 3_152_896)
  }

  /// Taking the query into the key's map changes rounding only.
  @Test func scoresAreQueryTimesKey() throws {
    for bias in [false, true] {
      let mixer = Aaren(.init(width: 12, heads: 3, bias: bias), generator: RandomGenerator(seed: 3))
      mixer.to(.float64)
      let x = normal([2, 20, 12], .float64)
      let q = mixer.query(mixer.queryToken.expandedDimension(0)).reshaped(3, 1, 4)
      let k = mixer.key(x).reshaped(2, 20, 3, 4).swappedAxes(1, 2)
      let v = mixer.value(x).reshaped(2, 20, 3, 4).swappedAxes(1, 2)
      let s = q.matmul(k.T).squeezed(2) / 2.0  // d = 4
      let expected = mixer.output(maskedSoftmax(s, v).swappedAxes(1, 2).reshaped(2, 20, 12))
      #expect(relativeError(mixer(x), expected) <= 1e-12, "bias \(bias): \(relativeError(mixer(x), expected)), allowed 1e-12")
    }
  }

  @Test func streamingTakesTheSameMemoryForEveryLength() {
    let mixer = Aaren(.init(width: 16, heads: 2), generator: RandomGenerator(seed: 3))
    mixer.eval()
    withoutGradient {
      var state = mixer.initialState(batch: 1)
      var bytes: Set<Int> = []
      for count in [1, 255, 3840] {
        _ = mixer.advance(normal([1, count, 16], seed: UInt64(count)), &state)
        bytes.insert(mixer.stateBytes(state))
      }
      #expect(bytes == [(2 + 2 + 16) * 4], "m and c of two heads and a of 16 channels, in float32: \(bytes)")
    }
  }

  /// Long sequences: the running mean keeps its accuracy.
  @Test func theKernelHoldsAtLength() {
    let (s, v) = (normal([1, 1, 20000], seed: 1), normal([1, 1, 20000, 4], seed: 2))
    let weights = s.to(.float64).exp().expandedDimension(-1)
    let exact = (weights * v.to(.float64)).cumulativeSum(axis: 2) / weights.cumulativeSum(axis: 2)
    let error = relativeError(prefixAttention(s, v).output, exact)
    #expect(error <= 1e-6, "\(error), allowed 1e-6")
  }
}
