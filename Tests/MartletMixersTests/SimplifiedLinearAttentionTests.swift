import Testing

@testable import MartletMixers

@Suite struct SimplifiedLinearAttentionTests {
  private func make(width: Int = 16, heads: Int = 2, length: Int = 48, columns: Int = 8) -> SimplifiedLinearAttention {
    let layer = SimplifiedLinearAttention(
      .init(width: width, heads: heads, length: length, columns: columns), generator: RandomGenerator(seed: 3))
    withoutGradient { layer.positions.addInPlace(normal([1, length, width], seed: 8) * 0.3) }
    return layer
  }

  @Test(arguments: [1, 7, 48]) func bothAssociationsAgree(_ length: Int) {
    let (q, k, v) = (
      normal([2, length, 16], .float64), normal([2, length, 16], seed: 2, .float64), normal([2, length, 16], seed: 3, .float64)
    )
    let p = normal([length, 16], seed: 4, .float64)
    let mask = length > 1 ? Tensor.arange(length) .< Tensor([length, length / 2]).expandedDimension(1) : nil
    for mask in [nil, mask] {
      let quadratic = SimplifiedLinearAttention.quadratic(q, k, v, heads: 2, positions: p, epsilon: 1e-6, mask: mask)
      let linear = tokenLinearAttention(
        q, k, v, heads: 2, feature: .relu, positions: p, grid: TokenGrid(length: length, columns: 8), reweighted: false, mask: mask)
      let error = relativeError(linear, quadratic)
      #expect(error <= 1e-10, "\(error), allowed 1e-10")
    }
  }

  @Test func weightsAreNonNegativeAndSumToOne() {
    let q = normal([1, 48, 16], .float64).relu()
    let k = (normal([1, 48, 16], seed: 2, .float64) + normal([48, 16], seed: 4, .float64)).relu()
    let weights = q.reshaped(1, 48, 2, 8).swappedAxes(1, 2).matmul(k.reshaped(1, 48, 2, 8).swappedAxes(1, 2).T)
    let bottom = weights.sum(axis: -1, keepDims: true)
    #expect(weights.min().item() >= 0)
    // An average of equal values is that value wherever the denominator is far above ε.
    let y = tokenLinearAttention(
      normal([1, 48, 16], .float64), normal([1, 48, 16], seed: 2, .float64), Tensor.ones([1, 48, 16], dtype: .float64), heads: 2,
      feature: .relu, positions: normal([48, 16], seed: 4, .float64), grid: TokenGrid(length: 48, columns: 8), reweighted: false)
    let sums = y.reshaped(1, 48, 2, 8).swappedAxes(1, 2)[.all, .all, .all, ..<1]
    let error: Double = select(bottom .> 1e-2, (sums - 1.0).abs(), Tensor.zeros(like: sums)).max().item()
    #expect(error <= 1e-4 && bottom.max().item() > 1, "\(error), allowed ε over the denominator, 1e-4")
  }

  @Test func parametersCountByFormula() {
    for (width, heads, length) in [(16, 2, 48), (24, 3, 10)] {
      let count = make(width: width, heads: heads, length: length).parameterCount
      let expected = 4 * width * width + 4 * width + length * width + 26 * width / heads
      #expect(count == expected, "\(count), not \(expected)")
    }
  }

  @Test func theLayerIsItsEquation() {
    let layer = make()
    layer.to(.float64)
    let x = normal([2, 48, 16], .float64)
    let parts = layer.projection(x).split(size: 16, axis: -1)
    func heads(_ x: Tensor) -> Tensor { x.reshaped(2, 48, 2, 8).swappedAxes(1, 2) }
    let (q, k) = (heads(parts[0]).relu(), heads(parts[1] + layer.positions).relu())
    let y = q.matmul(k.T).matmul(heads(parts[2])) / (q.matmul(k.T).sum(axis: -1, keepDims: true) + 1e-6)
    // One kernel of d channels: each head is an image of its own.
    let images = heads(parts[2]).reshaped(4, 48, 8)
    let local = layer.local!(images, grid: TokenGrid(rows: 6, columns: 8)).reshaped(2, 2, 48, 8)
    let expected = layer.output((y + local).swappedAxes(1, 2).reshaped(2, 48, 16))
    let error = relativeError(layer(x), expected)
    #expect(error <= 1e-12, "\(error), allowed 1e-12")
    #expect(layer.local!.weight.shape == [8, 1, 5, 5])
  }

  @Test func positionsStartAtZeroAndEndWithTheTable() {
    let fresh = SimplifiedLinearAttention(.init(width: 16, heads: 2, length: 48, columns: 8), generator: RandomGenerator(seed: 3))
    #expect(fresh.positions.abs().max().item() == 0)
    let layer = make(length: 20)
    layer.to(.float64)
    let longer = make(length: 30)
    longer.to(.float64)
    withoutGradient {
      longer.positions[.all, ..<20] = layer.positions
      longer.positions[.all, 20...] = Tensor.zeros([1, 10, 16], dtype: .float64)
      let x = normal([1, 30, 16], .float64)
      #expect(relativeError(layer(x), longer(x)) <= 1e-12, "later keys have no position")
    }
  }

  @Test func theCheaperAssociationCounts() {
    let layer = make(length: 4096, columns: 64)
    let d = 16
    let perToken = 4 * d * d + 25 * d
    #expect(layer.multiplyAdds(length: 4096) == 4096 * (perToken + 2 * d * 8))
    #expect(layer.multiplyAdds(length: 3) == 3 * (perToken + 2 * d * 3))
  }
}
