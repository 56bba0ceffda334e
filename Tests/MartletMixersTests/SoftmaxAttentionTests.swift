import Foundation
import MartletMixers
import Testing

@Suite struct SoftmaxAttentionTests {
  struct Shape: Sendable, CustomStringConvertible {
    var heads = 4
    var sharedHeads = 4
    var queries = 70
    var keys = 70
    var causal = false
    var window: Int?
    var lengths: [Int]?
    var scale: Double?

    var description: String {
      "\(heads)/\(sharedHeads) heads, \(queries)×\(keys)\(causal ? ", causal" : ""), window \(window.map(String.init) ?? "none")"
        + ", lengths \(lengths.map(String.init(describing:)) ?? "all")"
    }
  }

  static let shapes: [Shape] = [
    Shape(), Shape(causal: true), Shape(sharedHeads: 2), Shape(sharedHeads: 1, causal: true), Shape(window: 5),
    Shape(causal: true, window: 5),
    Shape(causal: true, window: 0), Shape(lengths: [70, 13]), Shape(causal: true, lengths: [70, 13]),
    Shape(sharedHeads: 2, causal: true, window: 9, lengths: [50, 66]), Shape(queries: 1, keys: 90, causal: true),
    Shape(queries: 30, keys: 90, causal: true), Shape(queries: 30, keys: 90, causal: true, window: 20), Shape(queries: 20, keys: 45),
    Shape(queries: 1, keys: 1), Shape(causal: true, scale: 0.7),
  ]

  private func results(_ shape: Shape, _ dtype: DType, referenceOnly: Bool) -> [Tensor] {
    let leaves = [
      normal([2, shape.heads, shape.queries, 16], seed: 1), normal([2, shape.sharedHeads, shape.keys, 16], seed: 2),
      normal([2, shape.sharedHeads, shape.keys, 16], seed: 3),
    ].map { $0.to(dtype).copy().tracked() }
    let mask = shape.lengths.map { Tensor.arange(shape.keys) .< Tensor($0).expandedDimension(1) }
    let y = KernelChoice.$referenceOnly.withValue(referenceOnly) {
      softmaxAttention(
        leaves[0], leaves[1], leaves[2], keyMask: mask, causal: shape.causal, window: shape.window.map { ($0, $0) }, scale: shape.scale)
    }
    return [y] + gradient(of: y, with: leaves, seed: normal(y.shape, seed: 4, dtype)).map { $0! }
  }

  @Test(arguments: shapes) func theKernelAndItsGradientsAreTheReference(_ shape: Shape) {
    let exact = results(shape, .float64, referenceOnly: true)
    for (form, found) in [
      ("fused", results(shape, .float32, referenceOnly: false)), ("reference", results(shape, .float32, referenceOnly: true)),
    ] {
      for (name, (a, b)) in zip(["y", "q", "k", "v"], zip(found, exact)) {
        if b.abs().max().item() < 1e-12 {  // a single key: the weight is 1 whatever q and k are
          #expect(a.abs().max().item() <= 1e-5, "\(shape), \(form), \(name) must vanish")
          continue
        }
        let error = relativeError(a, b)
        #expect(error <= 1e-5, "\(shape), \(form), \(name): \(error), allowed 1e-5")
      }
    }
  }

  /// The reference itself, by the equation for one query and key at a time.
  @Test func theReferenceIsTheEquation() {
    let (q, k, v) = (
      normal([1, 2, 6, 4], seed: 1, .float64), normal([1, 1, 6, 4], seed: 2, .float64), normal([1, 1, 6, 4], seed: 3, .float64)
    )
    let y = softmaxAttentionReference(q, k, v, causal: true, window: (2, 2))
    for head in 0..<2 {
      for i in 0..<6 {
        let seen = max(0, i - 2)...i
        let weights = seen.map { j in (q[0, head, i] * k[0, 0, j]).sum().item() / 2 }.map { exp($0) }
        let total = weights.reduce(0, +)
        var expected = Tensor.zeros([4], dtype: .float64)
        for (j, weight) in zip(seen, weights) { expected += v[0, 0, j] * (weight / total) }
        #expect(largestDifference(y[0, head, i], expected) <= 1e-14)
      }
    }
  }

  /// Rows without any key: 0 and no gradient, in a batch where others have some.
  @Test(arguments: [false, true]) func fullyMaskedRowsGiveZero(_ referenceOnly: Bool) {
    let shape = Shape(causal: false, lengths: [0, 70])
    let found = results(shape, .float32, referenceOnly: referenceOnly)
    for (name, tensor) in zip(["y", "q", "k", "v"], found) {
      #expect(tensor.isFinite().all().toArray(Bool.self) == [true], "\(name) isn't finite")
      #expect(tensor[0].abs().max().item() == 0, "\(name) of the masked sequence isn't 0")
      #expect(tensor[1].abs().max().item() > 0)
    }
  }

  /// Keys hidden at the start, so that the first queries of a causal row see none.
  @Test(arguments: [false, true]) func causalRowsBeforeTheFirstKeyGiveZero(_ referenceOnly: Bool) {
    let mask = Tensor.arange(20).expandedDimension(0) .>= 5
    KernelChoice.$referenceOnly.withValue(referenceOnly) {
      let y = softmaxAttention(
        normal([1, 2, 20, 8], seed: 1), normal([1, 2, 20, 8], seed: 2), normal([1, 2, 20, 8], seed: 3), keyMask: mask, causal: true)
      #expect(y[0..., 0..., ..<5].abs().max().item() == 0)
      #expect(y[0..., 0..., 5...].abs().min().item() > 0)
    }
  }

  @Test func largeLogitsStayFinite() {
    let q = normal([1, 2, 40, 16], seed: 1) * 100.0
    let k = normal([1, 2, 40, 16], seed: 2) * 100.0
    let v = normal([1, 2, 40, 16], seed: 3)
    let leaves = [q, k, v].map { $0.copy().tracked() }
    let y = softmaxAttention(leaves[0], leaves[1], leaves[2], causal: true)
    let gradients = gradient(of: y, with: leaves, seed: v)
    for tensor in [y] + gradients.map({ $0! }) { #expect(tensor.isFinite().all().toArray(Bool.self) == [true]) }
    #expect(y.abs().max().item() <= v.abs().max().item() + 1e-5, "outputs are averages of values")
  }

  /// The cache beyond its first 64 positions, grouped heads, a window: each step is the last row of the parallel form.
  @Test(arguments: [nil, 10] as [Int?], [1, 2, 4]) func aCachedStepIsTheParallelForm(_ window: Int?, _ sharedHeads: Int) {
    let attention = SoftmaxAttention(
      .init(width: 32, heads: 4, keyValueHeads: sharedHeads, window: window, bias: true, queryKeyNorm: true),
      generator: RandomGenerator(seed: 1))
    let x = normal([2, 140, 32])
    withoutGradient {
      let whole = attention(x)
      var state = attention.initialState(batch: 2)
      let steps = (0..<140).map { attention.step(x.selected(axis: 1, $0), &state) }
      let error = relativeError(stacked(steps, axis: 1), whole)
      #expect(error <= 1e-5, "window \(window ?? -1), \(sharedHeads) key heads: \(error), allowed 1e-5")
      #expect(state.lengths == [140, 140] && state.capacity == (window.map { $0 + 1 } ?? 256))
    }
  }
}
