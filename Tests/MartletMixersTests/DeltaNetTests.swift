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

  /// The kernel in float32 and the recurrence in float64: outputs, last state and the gradients of everything.
  @Test(arguments: [1, 16, 37, 150], [false, true]) func theKernelIsTheRecurrence(length: Int, gated: Bool) throws {
    for isUnit in [false, true] {
      for start in [false, true] {
        let epsilon = isUnit ? 1e-6 : nil
        let x = inputs(length, dk: 20, dv: 33)
        let given = [isUnit ? x.q * 3.0 : x.q, isUnit ? x.k * 2.0 : x.k, x.v, x.beta] + (gated ? [x.g * 0.1] : []) + (start ? [x.s] : [])
        let seeds = [normal([2, 3, length, 33], seed: 7, .float64), normal([2, 3, 20, 33], seed: 8, .float64)]
        func results(_ dtype: DType, _ rule: ([Tensor]) -> (output: Tensor, state: Tensor)) -> [Tensor] {
          let leaves = given.map { $0.to(dtype).copy().tracked() }
          let (o, s) = rule(leaves)
          let total = (o * seeds[0].to(dtype)).sum() + (s * seeds[1].to(dtype)).sum()
          let gradients = gradient(of: total, with: leaves)
          return [o, s] + zip(gradients, leaves).map { $0 ?? .zeros(like: $1) }
        }
        func gate(_ x: [Tensor]) -> Tensor? { gated ? x[4] : nil }
        func state(_ x: [Tensor]) -> Tensor? { start ? x[x.count - 1] : nil }
        let found = results(.float32) {
          deltaRule($0[0], $0[1], $0[2], rate: $0[3], logDecay: gate($0), initialState: state($0), unitEpsilon: epsilon)
        }
        let expected = results(.float64) {
          deltaRuleReference($0[0], $0[1], $0[2], rate: $0[3], logDecay: gate($0), initialState: state($0), unitEpsilon: epsilon)
        }
        for (i, (a, b)) in zip(found, expected).enumerated() where a.count > 0 {
          let error = relativeError(a, b)
          #expect(error <= 5e-6, "length \(length), gated \(gated), unit \(isUnit), start \(start), result \(i): \(error), allowed 5e-6")
        }
      }
    }
  }

  @Test(arguments: [false, true]) func theKernelOfOneTokenIsTheRecurrence(gated: Bool) {
    let x = inputs(9, dk: 20, dv: 33)
    let state = x.s.to(.float32).copy()
    var expected = x.s
    for t in 0..<9 {
      func row(_ x: Tensor) -> Tensor { x.selected(axis: 2, t) }
      func one(_ x: Tensor) -> Tensor { x[.all, .all, t..<(t + 1)] }
      let o = Operator("martlet::delta_rule_step")(
        .tensor(row(x.q).to(.float32)), .tensor(row(x.k * 2.0).to(.float32)), .tensor(row(x.v).to(.float32)),
        .tensor(row(x.beta).to(.float32)), .tensor(gated ? row(x.g).to(.float32) : nil), .tensor(state), .none, .double(1e-6))
      let (r, end) = deltaRuleReference(
        one(x.q), one(x.k * 2.0), one(x.v), rate: one(x.beta), logDecay: gated ? one(x.g) : nil, initialState: expected, unitEpsilon: 1e-6)
      expected = end
      let error = max(relativeError(o, r.selected(axis: 2, 0)), relativeError(state, expected))
      #expect(error <= 2e-6, "token \(t): \(error), allowed 2e-6")
    }
  }

  /// e^{−5 L} is far below float32's range: decays are products of gates, never quotients of their sums.
  @Test func strongAndClosedGatesStayFinite() {
    let x = inputs(64, dk: 8, dv: 8)
    let g = x.g * 0.0 - 5.0
    g[.all, .all, 20] = Tensor(-Double.infinity, dtype: .float64)
    let changed = x.v.copy()
    changed[.all, .all, 3] = normal([2, 3, 8], seed: 9, .float64)
    func output(_ v: Tensor) -> Tensor {
      deltaRule(x.q.to(.float32), x.k.to(.float32), v.to(.float32), rate: x.beta.to(.float32), logDecay: g.to(.float32)).output
    }
    let (expected, _) = deltaRuleReference(x.q, x.k, x.v, rate: x.beta, logDecay: g)
    #expect(relativeError(output(x.v), expected) <= 1e-5)
    #expect(
      relativeError(output(changed)[.all, .all, 20...], output(x.v)[.all, .all, 20...]) == 0, "nothing passes a gate that is closed")
  }

  /// C = L: O = tril(Q Kᵀ) A⁻¹ Diag(β) V, whose matrix is the attention map.
  @Test func oneChunkIsTheParallelForm() {
    let x = inputs(23)
    let beta = x.beta.expandedDimension(-1)
    let system = (beta * x.k.matmul(x.k.T)).lowerTriangle(-1)
    let map = (x.q.matmul(x.k.T) * (1 / 6.0.squareRoot())).lowerTriangle().matmul(
      system.solveTriangular(Tensor.eye(23, dtype: .float64).broadcast(to: [2, 3, 23, 23]) * beta, upper: false, unitDiagonal: true))
    let expected = deltaRuleReference(x.q, x.k, x.v, rate: x.beta).output
    #expect(relativeError(map.matmul(x.v), expected) < 1e-11)
    #expect(relativeError(deltaRule(x.q, x.k, x.v, rate: x.beta, chunk: 23).output, expected) < 1e-11)
  }

  @Test func stepsWriteTheirStateInPlaceAndItDoesNotGrow() {
    let layer = DeltaNet(.init(width: 16, heads: 2, gated: true), generator: RandomGenerator(seed: 1))
    withoutGradient {
      var state = layer.initialState(batch: 2)
      let bytes = layer.stateBytes(state)
      #expect(bytes == 4 * (2 * 2 * 8 * 8 + 3 * 2 * 3 * 16))
      for t in 0..<20 { _ = layer.step(normal([2, 16], seed: UInt64(t)), &state) }
      #expect(layer.stateBytes(state) == bytes)
    }
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
