import MartletMixers
import Testing

@Suite struct RankAugmentedLinearAttentionTests {
  private let grid = TokenGrid(rows: 6, columns: 8)

  private func make(
    width: Int = 16, heads: Int = 2, columns: Int = 8, _ change: (inout RankAugmentedLinearAttention.Configuration) -> Void = { _ in }
  ) -> RankAugmentedLinearAttention {
    var configuration = RankAugmentedLinearAttention.Configuration(width: width, heads: heads, columns: columns)
    change(&configuration)
    return RankAugmentedLinearAttention(configuration, generator: RandomGenerator(seed: 3))
  }

  // MARK: α

  @Test func weightsOfAHeadSumToTheNumberOfTokens() {
    let q = normal([2, 3, 48, 8], .float64).elu() + 1
    let k = (normal([2, 3, 48, 8], seed: 2, .float64) * 2.0).elu() + 1
    let mask = Tensor.arange(48) .< Tensor([48, 20]).expandedDimension(1)
    for (mask, counts) in [(nil, [48.0, 48]), (mask, [48, 20])] {
      let weights = tokenWeights(q, k, mask: mask)
      for (b, count) in counts.enumerated() {
        for h in 0..<3 {
          let sum: Double = weights[b, h].sum().item()
          #expect(abs(sum - count) <= 1e-10, "sequence \(b), head \(h): \(sum), not \(count)")
        }
      }
      #expect(weights.max().item() > 1.2, "weights must differ")
    }
  }

  @Test func equalKeysMakePlainLinearAttention() {
    let q = normal([1, 48, 16], .float64)
    let k = normal([1, 1, 16], seed: 2, .float64).broadcast(to: [1, 48, 16]).contiguous()
    let v = normal([1, 48, 16], seed: 3, .float64)
    let weights = tokenWeights((q.reshaped(1, 1, 48, 16)).elu() + 1, k.reshaped(1, 1, 48, 16).elu() + 1)
    #expect((weights - 1.0).abs().max().item() <= 1e-12)
    let augmented = tokenLinearAttention(q, k, v, heads: 2, feature: .elu, grid: grid, reweighted: true, epsilon: 0)
    func heads(_ x: Tensor) -> Tensor { x.reshaped(1, 48, 2, 8).swappedAxes(1, 2) }
    let plain = linearAttentionReference(heads(q).elu() + 1, heads(k).elu() + 1, heads(v), causal: false, epsilon: 0)
    let error = relativeError(augmented, plain.swappedAxes(1, 2).reshaped(1, 48, 16))
    #expect(error <= 1e-12, "\(error), allowed 1e-12")
  }

  // MARK: The matrix of weights

  /// What the layer computes by sums over tokens, by all N × N weights.
  @Test(arguments: [true, false], [true, false]) func theSumsAreTheExplicitWeights(_ isRotary: Bool, _ isReweighted: Bool) {
    let (q, k, v) = (normal([1, 48, 16], .float64), normal([1, 48, 16], seed: 2, .float64), normal([1, 48, 16], seed: 3, .float64))
    func heads(_ x: Tensor) -> Tensor { x.reshaped(1, 48, 2, 8).swappedAxes(1, 2) }
    let fq = heads(q).elu() + 1
    var fk = heads(k).elu() + 1
    if isReweighted { fk = fk * tokenWeights(fq, fk) }
    let bottom = fq.matmul(fk.T).sum(axis: -1, keepDims: true) + (isReweighted ? 48e-6 : 1e-6)
    let rotation = RoPE2D(headWidth: 8)
    let weights = (isRotary ? rotation(fq, grid: grid).matmul(rotation(fk, grid: grid).T) : fq.matmul(fk.T)) / bottom
    if !isRotary {
      #expect(weights.min().item() >= 0)
      let sums = (weights.sum(axis: -1) - 1.0).abs().max().item()
      #expect(sums <= 1e-5, "rows sum to 1 within \(sums)")
    }
    let expected = weights.matmul(heads(v)).swappedAxes(1, 2).reshaped(1, 48, 16)
    let found = tokenLinearAttention(
      q, k, v, heads: 2, feature: .elu, rotation: isRotary ? rotation : nil, grid: grid, reweighted: isReweighted)
    #expect(relativeError(found, expected) <= 1e-12)
    let fused = tokenLinearAttention(
      q.to(.float32), k.to(.float32), v.to(.float32), heads: 2, feature: .elu, rotation: isRotary ? rotation : nil, grid: grid,
      reweighted: isReweighted)
    let error = relativeError(fused, expected)
    #expect(error <= 2e-6, "kernel: \(error), allowed 2e-6")
  }

  // MARK: Kernel

  @Test(arguments: [true, false], [true, false]) func theKernelAndItsGradientsAreTheReference(_ masked: Bool, _ relu: Bool) {
    let length = 700  // more than one piece
    let mask = masked ? Tensor.arange(length) .< Tensor([length, 555]).expandedDimension(1) : nil
    func results(_ dtype: DType) -> [Tensor] {
      let leaves = (0..<4).map { i in
        (i == 3 ? normal([length, 24], seed: 9) * 0.3 : normal([2, length, 24], seed: UInt64(i))).to(dtype).detached().copy().tracked()
      }
      let y = tokenLinearAttention(
        leaves[0], leaves[1], leaves[2], heads: 3, feature: relu ? .relu : .elu, positions: leaves[3], rotation: RoPE2D(headWidth: 8),
        grid: TokenGrid(rows: 25, columns: 29, prefix: 2), reweighted: !relu, mask: mask)
      let seed = normal(y.shape, seed: 5, dtype) * (mask.map { $0.expandedDimension(-1).to(dtype) } ?? Tensor(1, dtype: dtype))
      return [y * (mask.map { $0.expandedDimension(-1).to(dtype) } ?? Tensor(1, dtype: dtype))]
        + gradient(of: y, with: leaves, seed: seed).map { $0! }
    }
    for (name, (fused, reference)) in zip(["y", "q", "k", "v", "p"], zip(results(.float32), results(.float64))) {
      let error = relativeError(fused, reference)
      #expect(error <= 1e-5, "mask \(masked), relu \(relu), \(name): \(error), allowed 1e-5")
    }
  }

  // MARK: Rank

  @Test func theGateRaisesTheRankOfTheOutput() {
    let layer = make(width: 32, heads: 1, columns: 14) { $0.localKernel = 0 }
    withoutGradient {
      let x = normal([1, 196, 32])
      let parts = layer.projection(x).split(size: 32, axis: -1)
      let y = tokenLinearAttention(
        parts[0], parts[1], parts[2], heads: 1, feature: .elu, rotation: layer.rotation, grid: TokenGrid(rows: 14, columns: 14),
        reweighted: true)[0]
      let (plain, gated) = (y.effectiveRank(), (y * parts[3][0]).effectiveRank())
      #expect(gated >= 4 * plain, "effective rank \(gated) of Y ⊙ O, \(plain) of Y")
      let singular = y.to(.float64).svd().S
      #expect(singular.count <= 32)
      // Two heads' worth of channels from one head's d directions: the rank stays d.
      let wide = tokenLinearAttention(
        parts[0], parts[1], concatenated([parts[2], parts[3]], axis: -1), heads: 1, feature: .elu, grid: TokenGrid(rows: 14, columns: 14),
        reweighted: true)[0].to(.float64).svd().S
      let next: Double = wide[32].item() / wide[0].item()
      #expect(wide.count == 64 && next < 1e-6, "singular value d + 1 over the first: \(next)")
    }
  }

  // MARK: The layer

  @Test func theGateStandsAfterTheLocalTermAndBeforeTheOutput() {
    let layer = make()
    layer.to(.float64)
    let x = normal([2, 48, 16], .float64)
    let parts = layer.projection(x).split(size: 16, axis: -1)
    let y = tokenLinearAttention(
      parts[0], parts[1], parts[2], heads: 2, feature: .elu, rotation: layer.rotation, grid: grid, reweighted: true)
    let expected = layer.output((y + layer.local!(parts[2], grid: grid)) * parts[3])
    #expect(relativeError(layer(x), expected) <= 1e-12)
    // The context's grid takes the place of the layer's own.
    let other = TokenGrid(rows: 4, columns: 12)
    #expect(relativeError(layer(x, MixingContext(grid: other)), layer(x)) > 1e-3)
    #expect(relativeError(make(columns: 12)(x.to(.float32)), layer(x, MixingContext(grid: other))) <= 1e-5)
  }

  @Test func parametersCountByFormula() {
    let d = 16
    #expect(make().parameterCount == 4 * d * d + 4 * d + 26 * d + d * d + d)
    #expect(make { $0.isGated = false }.parameterCount == 3 * d * d + 3 * d + 26 * d + d * d + d)
    #expect(make { $0.localKernel = 0 }.parameterCount == 5 * d * d + 5 * d)
  }

  @Test func softmaxWithTheSamePositionsIsTheLaterStages() {
    let layer = make { $0.isSoftmax = true }
    layer.to(.float64)
    let x = normal([2, 48, 16], .float64)
    let mask = Tensor.arange(48) .< Tensor([48, 30]).expandedDimension(1)
    let parts = layer.projection(x).split(size: 16, axis: -1)
    func heads(_ x: Tensor) -> Tensor { x.reshaped(2, 48, 2, 8).swappedAxes(1, 2) }
    let rotation = RoPE2D(headWidth: 8)
    let scores = rotation(heads(parts[0]), grid: grid).matmul(rotation(heads(parts[1]), grid: grid).T) / 8.0.squareRoot()
    let weights = scores.maskedFill(.!mask[.all, .newAxis, .newAxis, .all], -.infinity).softmax()
    let y = weights.matmul(heads(parts[2])).swappedAxes(1, 2).reshaped(2, 48, 16)
    let v = parts[2] * mask.expandedDimension(-1).to(.float64)
    let expected = layer.output((y + layer.local!(v, grid: grid)) * parts[3]) * mask.expandedDimension(-1).to(.float64)
    let found = layer(x, MixingContext(mask: mask)) * mask.expandedDimension(-1).to(.float64)
    let error = relativeError(found, expected)
    #expect(error <= 1e-12, "\(error), allowed 1e-12")
  }

  // MARK: Cost

  @Test func costGrowsLinearlyWithTheTokens() {
    let layer = make(columns: 64)
    #expect(layer.multiplyAdds(length: 4000) == 4 * layer.multiplyAdds(length: 1000))
    let d = 16
    #expect(layer.multiplyAdds(length: 1) == 4 * d * d + d * d + 25 * d + 2 * d * 8)
    withoutGradient {
      func time(_ length: Int) -> Double {
        let x = normal([1, length, 16])
        _ = layer(x)
        return (0..<5).map { _ in
          let start = ContinuousClock.now
          _ = layer(x)
          return Double((ContinuousClock.now - start) / .nanoseconds(1))
        }.min()!
      }
      let (short, long) = (time(4096), time(65536))
      // Quadratic would be 256.
      #expect(long / short < 64, "16 times the tokens took \(long / short) times as long")
    }
  }
}
