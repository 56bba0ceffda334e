import MartletMixers
import Testing

@Suite struct LinearAttentionTests {
  private func features(_ dtype: DType, length: Int) -> (q: Tensor, k: Tensor, v: Tensor) {
    (
      normal([2, 3, length, 8], seed: 1, dtype).elu() + 1, normal([2, 3, length, 8], seed: 2, dtype).elu() + 1,
      normal([2, 3, length, 8], seed: 3, dtype)
    )
  }

  /// Sums S and z, token by token.
  private func recurrence(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
    var memory = Tensor.zeros([q.dim(0), q.dim(1), 8, 8], dtype: q.dtype)
    var normalizer = Tensor.zeros([q.dim(0), q.dim(1), 8], dtype: q.dtype)
    return stacked(
      (0..<q.dim(2)).map { t in
        let (qt, kt, vt) = (q.selected(axis: 2, t), k.selected(axis: 2, t), v.selected(axis: 2, t))
        memory += kt.expandedDimension(-1) * vt.expandedDimension(-2)
        normalizer += kt
        let numerator = qt.expandedDimension(-2).matmul(memory).squeezed(-2)
        return numerator / ((qt * normalizer).sum(axis: -1, keepDims: true) + 1e-6)
      }, axis: 2)
  }

  @Test(arguments: [1, 15, 16, 100, 257]) func chunkedIsRecurrentIsQuadratic(_ length: Int) {
    for (dtype, tolerance) in [(DType.float32, 1e-5), (.float64, 1e-12)] {
      let (q, k, v) = features(dtype, length: length)
      let steps = recurrence(q, k, v)
      let chunked = relativeError(linearAttention(q, k, v, causal: true), steps)
      let quadratic = relativeError(linearAttentionReference(q, k, v, causal: true), steps)
      #expect(chunked <= tolerance, "\(dtype), L = \(length): chunked \(chunked), allowed \(tolerance)")
      #expect(quadratic <= tolerance, "\(dtype), L = \(length): quadratic \(quadratic), allowed \(tolerance)")
    }
  }

  @Test(arguments: [true, false], [false, true]) func theKernelAndItsGradientsAreTheReference(_ causal: Bool, _ masked: Bool) {
    let mask = masked ? Tensor.arange(100) .< Tensor([100, 37]).expandedDimension(1) : nil
    func results(_ dtype: DType) -> [Tensor] {
      let (q, k, v) = features(.float32, length: 100)
      let leaves = [q, k, v].map { $0.to(dtype).detached().copy().tracked() }
      let y = linearAttention(leaves[0], leaves[1], leaves[2], causal: causal, keyMask: mask)
      return [y] + gradient(of: y, with: leaves, seed: normal(y.shape, seed: 4, dtype)).map { $0! }
    }
    for (name, (fused, reference)) in zip(["y", "q", "k", "v"], zip(results(.float32), results(.float64))) {
      let error = relativeError(fused, reference)
      #expect(error <= 1e-5, "causal \(causal), mask \(masked), \(name): \(error), allowed 1e-5")
    }
  }

  /// Weights are positive and sum to 1: an average of equal values is that value.
  @Test func outputsAreAverages() {
    let (q, k, _) = features(.float32, length: 50)
    let constant = Tensor.full([2, 3, 50, 8], 3)
    for causal in [true, false] {
      #expect((linearAttention(q, k, constant, causal: causal) - 3.0).abs().max().item() <= 1e-5)
    }
  }
}
