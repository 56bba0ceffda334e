import MartletMixers
import Testing

@Suite struct DeltaNetTests {
  private func unit(_ x: Tensor) -> Tensor { x / x.norm(axis: -1, keepDims: true) }

  private func inputs(_ length: Int, dk: Int = 6, dv: Int = 5) -> (q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, s: Tensor) {
    (
      unit(normal([2, 3, length, dk], seed: 1, .float64)), unit(normal([2, 3, length, dk], seed: 2, .float64)),
      normal([2, 3, length, dv], seed: 3, .float64), normal([2, 3, length], seed: 4, .float64).sigmoid() * 2.0,
      -normal([2, 3, length], seed: 5, .float64).exp(), normal([2, 3, dk, dv], seed: 6, .float64)
    )
  }

  @Test(arguments: [1, 5, 16, 37], [1, 16, 64]) func chunksAreTheRecurrence(length: Int, chunk: Int) {
    let x = inputs(length)
    for gate in [nil, x.g] {
      for start in [nil, x.s] {
        let (o, s) = deltaRule(x.q, x.k, x.v, rate: x.beta, logDecay: gate, initialState: start, chunk: chunk)
        let (expected, end) = deltaRuleReference(x.q, x.k, x.v, rate: x.beta, logDecay: gate, initialState: start)
        #expect(relativeError(o, expected) < 1e-11 && relativeError(s, end) < 1e-11, "length \(length), chunk \(chunk)")
      }
    }
  }

  @Test func gradientsOfChunksAreExact() {
    let x = inputs(11)
    let error = gradientError([x.q, x.k, x.v, x.beta, x.g, x.s]) {
      let (o, s) = deltaRule($0[0], $0[1], $0[2], rate: $0[3], logDecay: $0[4], initialState: $0[5], chunk: 4)
      return o.sin().sum() + s.cos().sum()
    }
    #expect(error < 1e-6, "\(error)")
  }

  @Test func orthonormalKeysReadTheirValuesBack() {
    let k = normal([6, 6], seed: 1, .float64).qr().Q.reshaped(1, 1, 6, 6)
    let v = normal([1, 1, 6, 4], seed: 2, .float64)
    let one = Tensor.ones([1, 1, 6], dtype: .float64)
    let (_, s) = deltaRule(k, k, v, rate: one, chunk: 4)
    #expect(relativeError(k.matmul(s), v) < 1e-12)
    // On orthogonal keys the rule is linear attention with values β v.
    let beta = normal([1, 1, 6], seed: 3, .float64).sigmoid()
    let q = normal([1, 1, 6, 6], seed: 4, .float64)
    let (o, _) = deltaRule(q, k, v, rate: beta)
    let (linear, _) = gatedLinearAttentionReference(q, k, v * beta.expandedDimension(-1), logGate: nil)
    #expect(relativeError(o, linear) < 1e-12)
  }

  @Test func aSecondWriteReplacesTheFirst() {
    let key = unit(normal([1, 1, 1, 4], seed: 1, .float64))
    let k = concatenated([key, key], axis: 2)
    let v = normal([1, 1, 2, 3], seed: 2, .float64)
    let (_, s) = deltaRule(k, k, v, rate: .ones([1, 1, 2], dtype: .float64))
    #expect(relativeError(key.matmul(s), v[.all, .all, 1...]) < 1e-12, "linear attention would give the sum")
  }

  @Test func aRateOfZeroChangesNothingAndReflectionsNeverGrow() {
    let x = inputs(9)
    let zero = Tensor.zeros([2, 3, 9], dtype: .float64)
    let (still, same) = deltaRule(x.q, x.k, x.v, rate: zero, initialState: x.s)
    #expect(relativeError(same, x.s) < 1e-14 && relativeError(still, x.q.matmul(x.s) * (1 / 6.0.squareRoot())) < 1e-12)
    #expect(deltaRule(x.q, x.k, x.v, rate: zero).output.abs().max().item() == 0)
    var state = x.s
    for t in 0..<9 {
      let next = deltaRule(
        x.q[.all, .all, t..<(t + 1)], x.k[.all, .all, t..<(t + 1)], x.v[.all, .all, t..<(t + 1)] * 0.0,
        rate: x.beta[.all, .all, t..<(t + 1)], initialState: state
      ).state
      #expect(next.norm().item() <= state.norm().item() * (1 + 1e-12))
      state = next
    }
    let (gated, _) = deltaRule(x.q, x.k, x.v, rate: x.beta, logDecay: zero)
    #expect(relativeError(gated, deltaRule(x.q, x.k, x.v, rate: x.beta).output) < 1e-13)
  }

  /// The layer of the paper: four projections of D², rates, three convolutions, a norm per head.
  @Test func theLayerHasTheParametersOfThePaper() {
    let layer = DeltaNet(.init(width: 64, heads: 4), generator: RandomGenerator(seed: 1))
    #expect(layer.parameterCount == 4 * 64 * 64 + 64 * 4 + 3 * 64 * 4 + 16)
    let gated = DeltaNet(.init(width: 64, heads: 4, gated: true, outputGate: true), generator: RandomGenerator(seed: 1))
    #expect(gated.parameterCount == 5 * 64 * 64 + 64 * 4 + (64 * 4 + 4) + 3 * 64 * 4 + 16)
  }
}
