import Foundation
import Testing

@testable import MartletMixers

@Suite struct NormalizedKernelAttentionTests {
  private func attention(
    width: Int = 8, heads: Int = 2, features: Int = 6, causal: Bool = true, rpe: Bool = true, distance: Int = 20, columns: Int? = nil,
    normalized: Bool = true, form: NormalizedKernelAttention.Form = .automatic, dtype: DType = .float64
  ) -> NormalizedKernelAttention {
    let layer = NormalizedKernelAttention(
      .init(
        width: width, heads: heads, features: features, isCausal: causal, rpe: rpe, distance: distance, columns: columns,
        normalized: normalized, form: form), generator: RandomGenerator(seed: 4))
    if let rpe = layer.rpe {
      withoutGradient { rpe.weight.copyInPlace(normal(rpe.weight.shape, seed: 5)) }
    }
    layer.to(dtype)
    return layer
  }

  // MARK: The two forms

  /// In float32 the transform's rounding is one of the largest sum, the first positions of a causal layer have small ones.
  @Test(arguments: [1, 2, 17, 40, 63, 64], [true, false]) func theFourierFormIsTheQuadraticOne(_ length: Int, _ causal: Bool) {
    for columns in [nil, 7] {
      for (dtype, tolerance) in [(DType.float32, causal ? 2e-4 : 1e-5), (.float64, 1e-12)] {
        let quadratic = attention(causal: causal, columns: columns, form: .quadratic, dtype: dtype)
        let fourier = attention(causal: causal, columns: columns, form: .fourier, dtype: dtype)
        let x = normal([2, length, 8], dtype)
        func results(_ layer: NormalizedKernelAttention, referenceOnly: Bool) -> [Tensor] {
          KernelChoice.$referenceOnly.withValue(referenceOnly) {
            let input = x.copy().tracked()
            let y = layer(input)
            let leaves = [input, layer.value.denseWeight(), layer.rpe!.weight, layer.query.denseWeight(), layer.key.denseWeight()]
            return [y] + gradient(of: y, with: leaves, seed: normal(y.shape, seed: 6, dtype)).map { $0! }
          }
        }
        let expected = results(quadratic, referenceOnly: true)
        for referenceOnly in [true, false] {
          for (name, (a, b)) in zip(
            ["y", "x", "value", "bias", "query", "key"], zip(results(fourier, referenceOnly: referenceOnly), expected))
          {
            // A single token's output doesn't depend on weights.
            if b.abs().max().item() < 1e-6 {
              #expect(a.abs().max().item() < 1e-5)
              continue
            }
            let error = relativeError(a, b)
            #expect(
              error <= tolerance,
              "L = \(length), causal \(causal), grid \(columns ?? 0), \(dtype), reference \(referenceOnly), \(name): \(error), allowed \(tolerance)"
            )
          }
        }
      }
    }
  }

  /// Long sequences take both forms: the first positions keep their digits.
  @Test(arguments: [130, 700, 3000]) func theFirstPositionsKeepTheirDigits(_ length: Int) {
    let (single, double) = (attention(dtype: .float32), attention(form: .quadratic, dtype: .float64))
    withoutGradient {
      let x = normal([1, length, 8])
      let error = relativeError(single(x), double(x.to(.float64)))
      #expect(error <= 1e-5, "L = \(length): off by \(error), allowed 1e-5")
    }
  }

  @Test(arguments: [1, 15, 16, 17, 100, 513], [true, false]) func theKernelAndItsGradientsAreTheReference(_ length: Int, _ causal: Bool) {
    func results(_ dtype: DType, referenceOnly: Bool = false) -> [Tensor] {
      let leaves =
        ([normal([2, 3, length, 5], seed: 1).exp(), normal([2, 3, length, 5], seed: 2).exp(), normal([2, 3, length, 18], seed: 3)]
        + (causal ? [4] : [4, 5]).map { normal([3, length], seed: $0).exp() }).map { $0.to(dtype).copy().tracked() }
      let (n, d) = KernelChoice.$referenceOnly.withValue(referenceOnly) {
        toeplitzAttention(leaves[0], leaves[1], leaves[2], past: leaves[3], future: causal ? nil : leaves[4])
      }
      let loss = (n * normal(n.shape, seed: 6, dtype)).sum() + (d * normal(d.shape, seed: 7, dtype)).sum()
      return [n, d] + gradient(of: loss, with: leaves).map { $0 ?? .zeros(like: leaves[0]) }
    }
    let exact = results(.float64)
    for (name, (a, b)) in zip(["N", "D", "q", "k", "v", "past", "future"], zip(results(.float32), exact)) {
      let error = b.abs().max().item() == 0 ? a.abs().max().item() : relativeError(a, b)
      #expect(error <= 5e-6, "L = \(length), causal \(causal), \(name): off by \(error), allowed 5e-6")
    }
  }

  /// The reference's own oracle: the definition.
  @Test(arguments: [1, 6, 9]) func theReferenceIsTheDefinition(_ length: Int) {
    let (q, k, v) = (
      normal([1, 2, length, 3], seed: 1, .float64).exp(), normal([1, 2, length, 3], seed: 2, .float64).exp(),
      normal([1, 2, length, 4], .float64)
    )
    let (past, future) = (normal([2, length], seed: 4, .float64).exp(), normal([2, length], seed: 5, .float64).exp())
    let (n, d) = toeplitzAttentionReference(q, k, v, past: past, future: future, block: 2)
    for i in 0..<length {
      var numerator = Tensor.zeros([2, 4], dtype: .float64)
      var denominator = Tensor.zeros([2], dtype: .float64)
      for j in 0..<length {
        let weight = (j <= i ? past[0..., i - j] : future[0..., j - i]) * (q[0, 0..., i] * k[0, 0..., j]).sum(axis: -1)
        numerator += weight.expandedDimension(-1) * v[0, 0..., j]
        denominator += weight
      }
      #expect(relativeError(n[0, 0..., i], numerator) <= 1e-12)
      #expect(relativeError(d[0, 0..., i], denominator) <= 1e-12)
    }
  }

  // MARK: Limits

  /// With b = 0 only the features are left: φ(q)(φ(k)ᵀV), by whichever form.
  @Test(arguments: [true, false], NormalizedKernelAttention.Form.allCases)
  func withoutBiasItIsPlainKernelAttention(_ causal: Bool, _ form: NormalizedKernelAttention.Form) {
    let (biased, plain) = (attention(causal: causal, form: form), attention(causal: causal, rpe: false))
    withoutGradient {
      biased.rpe!.weight.fillInPlace(0)
      let x = normal([2, 33, 8], .float64)
      let error = relativeError(biased(x), plain(x))
      #expect(error <= 1e-10, "causal \(causal), \(form): off by \(error), allowed 1e-10")
    }
  }

  /// E φ(x)·φ(y) = e^{x·y}, with an error that grows with the norms.
  @Test func theFeaturesAreUnbiasedAndNoisierForLongVectors() {
    let (draws, d) = (100_000, 8)
    let w = normal([draws, d], seed: 11, .float64)
    var spreads: [Double] = []
    for length in [1.0, 2.0] {
      let unit = { (seed: UInt64) -> Tensor in
        let v = normal([d], seed: seed, .float64)
        return v / v.norm() * length
      }
      let (x, y) = (unit(12), unit(13))
      // One feature each: φ(x)·φ(y) = e^{w·(x + y) − (‖x‖² + ‖y‖²)/2}.
      let estimates = (w.matmul((x + y).expandedDimension(-1)).squeezed(-1) - length * length).exp()
      let exact = exp((x * y).sum().item())
      let deviation = estimates.standardDeviation(axis: 0).item()
      let standardError = deviation / Double(draws).squareRoot()
      let mean = estimates.mean().item()
      #expect(abs(mean - exact) <= 3 * standardError, "norm \(length): mean \(mean) of e^{x·y} = \(exact), standard error \(standardError)")
      spreads.append(deviation / exact)
    }
    #expect(spreads[1] > 2 * spreads[0], "relative deviations \(spreads)")
  }

  /// The layer's own directions, both kinds: over many heads their features estimate e^{x·y} without bias.
  @Test(arguments: [true, false]) func drawnDirectionsAreUnbiased(_ orthogonal: Bool) {
    let (heads, m, d) = (2000, 4, 4)
    let layer = NormalizedKernelAttention(
      .init(width: heads * d, heads: heads, features: m, rpe: false, orthogonal: orthogonal), generator: RandomGenerator(seed: 2))
    let w = layer.features.to(.float64)  // [H, m, d]
    let (x, y) = (Tensor([0.6, 0, 0.8, 0] as [Double], [4]), Tensor([0, 0.6, 0.8, 0] as [Double], [4]))
    let estimates = (w.matmul((x + y).expandedDimension(-1)).squeezed(-1) - 1.0).exp().mean(axis: 1)  // [H]
    let standardError = estimates.standardDeviation(axis: 0).item() / Double(heads).squareRoot()
    let mean = estimates.mean().item()
    #expect(abs(mean - exp(0.64)) <= 3 * standardError, "mean \(mean), exact \(exp(0.64)), standard error \(standardError)")
    if orthogonal {
      let gram = w.matmul(w.T)
      let off = (gram - gram * Tensor.eye(m, dtype: .float64)).abs().max().item()
      #expect(off <= 1e-4, "directions of a block are orthogonal: \(off)")
    }
    let before = layer.features.copy()
    layer.redrawFeatures(generator: RandomGenerator(seed: 3))
    #expect(!layer.features.isEqual(to: before))
  }

  /// Only the directions of queries and keys count, and only differences of b.
  @Test func scalesAndConstantsCancel() throws {
    for form in [NormalizedKernelAttention.Form.quadratic, .fourier] {
      let (a, b) = (attention(causal: false, form: form), attention(causal: false, form: form))
      withoutGradient {
        let x = normal([2, 30, 8], .float64)
        let expected = a(x)
        b.query.denseWeight().multiplyInPlace(7.0)
        b.key.denseWeight().multiplyInPlace(0.01)
        let scaled = relativeError(b(x), expected)
        #expect(scaled <= 1e-10, "\(form), scaled queries and keys: \(scaled), allowed 1e-10")
        b.rpe!.weight.addInPlace(Tensor.full([1], 500, dtype: .float64))
        let shifted = relativeError(b(x), expected)
        #expect(shifted <= 1e-10, "\(form), b + 500: \(shifted), allowed 1e-10")
      }
    }
  }

  /// Each vector is normalised by itself: rescaling one token's key changes nothing.
  @Test func oneTokensScaleCancels() {
    let layer = attention(width: 4, heads: 1, causal: false)
    withoutGradient {
      // Values don't depend on the token's scale here: only q and k do.
      layer.value.denseWeight().fillInPlace(0)
      layer.value.denseWeight()[0, 3] = Tensor(1, dtype: .float64)
      layer.query.denseWeight()[0..., 3] = Tensor.zeros([4], dtype: .float64)
      layer.key.denseWeight()[0..., 3] = Tensor.zeros([4], dtype: .float64)
      let x = normal([1, 12, 4], .float64)
      let scaled = x.copy()
      scaled[0, 5, ..<3] = x[0, 5, ..<3] * 9.0
      let error = relativeError(layer(scaled), layer(x))
      #expect(error <= 1e-12, "off by \(error), allowed 1e-12")
    }
  }

  /// One large b_δ picks the token at that distance.
  @Test(arguments: [-7, -1, 0, 3], [NormalizedKernelAttention.Form.quadratic, .fourier])
  func aLargeBiasLooksAtOneDistance(_ distance: Int, _ form: NormalizedKernelAttention.Form) {
    for dtype in [DType.float32, .float64] {
      let layer = attention(causal: false, form: form, dtype: dtype)
      withoutGradient {
        let bias = layer.rpe!.weight
        bias.fillInPlace(0)
        bias[0..., distance + 19] = Tensor.full([2], 20, dtype: dtype)
        let x = normal([1, 20, 8], dtype)
        let v = linearMap(x, layer.value.denseWeight())
        let o = layer(x)
        let expected = linearMap(v, layer.output.denseWeight())
        for i in 0..<20 where (0..<20).contains(i + distance) {
          let error = (o[0, i] - expected[0, i + distance]).abs().max().item()
          #expect(error <= 1e-5, "\(form) \(dtype), δ = \(distance), query \(i): off by \(error), allowed 1e-5")
        }
      }
    }
  }

  @Test(arguments: [nil, 5]) func theFutureChangesNothingInTheFourierForm(_ columns: Int?) {
    for dtype in [DType.float32, .float64] {
      let layer = attention(causal: true, columns: columns, form: .fourier, dtype: dtype)
      withoutGradient {
        let x = normal([1, 40, 8], dtype)
        for position in [1, 17, 39] {
          let changed = x.copy()
          changed[0, position] = normal([8], seed: 9, dtype) * 3.0
          let (a, b) = (layer(x), layer(changed))
          let error = relativeError(b[0..., ..<position], a[0..., ..<position])
          let allowed = dtype == .float64 ? 1e-12 : 1e-5
          #expect(error <= allowed, "\(dtype), grid \(columns ?? 0), before \(position): \(error), allowed \(allowed)")
          #expect(relativeError(b[0, position], a[0, position]) > 1e-3)
        }
      }
    }
  }

  // MARK: The bias

  @Test func distancesBeyondTheLargestShareItsBias() {
    let line = RelativeBias(.init(heads: 1, distance: 3, isCausal: false))
    let query = Tensor.arange(8).expandedDimension(-1)
    #expect(line.weight.shape == [1, 5])
    let places = line.places(query: query, key: Tensor.arange(8).expandedDimension(0))
    for i in 0..<8 { for j in 0..<8 { #expect(places[i, j].itemInt() == min(2, max(-2, j - i)) + 2) } }
    let causal = RelativeBias(.init(heads: 1, distance: 3, isCausal: true)).places(query: query, key: Tensor.arange(8).expandedDimension(0))
    for i in 0..<8 { for j in 0...i { #expect(causal[i, j].itemInt() == min(2, i - j)) } }
    let grid = RelativeBias(.init(heads: 1, distance: 2, columns: 4, isCausal: false))
    #expect(grid.weight.shape == [1, 3 * 7])
    let cells = grid.places(query: query, key: Tensor.arange(8).expandedDimension(0))
    for i in 0..<8 {
      for j in 0..<8 {
        let (rows, columns): (Int, Int) = (j / 4 - i / 4 + 1, j % 4 - i % 4 + 3)
        #expect(cells[i, j].itemInt() == rows * 7 + columns)
      }
    }
  }

  @Test func layersShareABias() {
    let shared = RelativeBias(.init(heads: 2, distance: 10, isShared: true))
    let layers = (0..<2).map {
      NormalizedKernelAttention(
        .init(width: 8, heads: 2, features: 4, distance: 10), bias: shared, generator: RandomGenerator(seed: UInt64($0)))
    }
    let x = normal([1, 12, 8])
    layers[1](layers[0](x)).square().sum().backward()
    #expect(layers[0].rpe === layers[1].rpe)
    #expect(shared.weight.shape == [1, 10])
    #expect(shared.weight.gradient != nil)
  }

  /// Without normalisation nothing overflows either, however large the features' exponents are.
  @Test func largeUnnormalizedInputsStayFinite() {
    for rpe in [true, false] {
      let layer = attention(rpe: rpe, normalized: false, dtype: .float32)
      withoutGradient {
        #expect(layer(normal([1, 30, 8]) * 100.0).allFinite)
      }
    }
  }

  @Test func theStateGoesBack() {
    let layer = attention()
    withoutGradient {
      let x = normal([1, 20, 8], .float64)
      var state = layer.initialState(batch: 1)
      _ = layer.advance(x[0..., ..<15], &state)
      let isShorter = state.truncate(to: 9)
      #expect(isShorter)
      let error = relativeError(layer.advance(x[0..., 9...], &state), layer(x)[0..., 9...])
      #expect(error <= 1e-12, "off by \(error), allowed 1e-12")
      let isLonger = state.truncate(to: 30)
      #expect(!isLonger)
    }
  }

  /// Sequences read alone, of different lengths, go on together as each would alone.
  @Test func statesOfDifferentLengthsJoin() {
    for normalized in [true, false] {
      let layer = attention(normalized: normalized)
      withoutGradient {
        let (a, b) = (normal([1, 12, 8], .float64), normal([1, 12, 8], seed: 2, .float64))
        var (first, second) = (layer.initialState(batch: 1), layer.initialState(batch: 1))
        _ = layer.advance(a[0..., ..<9], &first)
        for t in 0..<4 { _ = layer.step(b.selected(axis: 1, t), &second) }
        var both = NormalizedKernelAttention.State.joined([first, second, first]).selecting([1, 0])
        for t in 0..<3 {
          let y = layer.step(concatenated([b.selected(axis: 1, 4 + t), a.selected(axis: 1, 9 + t)]), &both)
          let expected = concatenated([layer(b[0..., ..<(5 + t)])[0..., 4 + t], layer(a[0..., ..<(10 + t)])[0..., 9 + t]])
          let error = relativeError(y, expected)
          #expect(error <= 1e-12, "normalized \(normalized), step \(t): off by \(error), allowed 1e-12")
        }
        let goesBack = both.truncate(to: 2)
        #expect(!goesBack, "what is the second token of each isn't known")
      }
    }
  }
}
