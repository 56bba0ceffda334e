import Foundation
import MartletNN
import Testing

@Suite struct LossTests {
  private static let losses: [(name: String, function: @Sendable (Tensor) -> Tensor)] = [
    ("cross_entropy", { crossEntropy($0, fixture("targets")) }),
    ("cross_entropy_smoothed", { crossEntropy($0, fixture("targets"), labelSmoothing: 0.1) }),
    ("binary", { binaryCrossEntropy($0, fixture("loss_target").to($0.dtype)) }),
    ("huber", { huberLoss($0, fixture("loss_target").to($0.dtype), delta: 0.7) }),
    ("mse", { meanSquaredError($0, fixture("loss_target").to($0.dtype)) }),
    ("mae", { meanAbsoluteError($0, fixture("loss_target").to($0.dtype)) }),
    ("kl", { klDivergence(logPrediction: $0, logTarget: fixture("log_target").to($0.dtype)) }),
  ]

  @Test(arguments: losses.indices) func valuesAndGradientsAreThoseOfPyTorch(index: Int) {
    let (name, function) = Self.losses[index]
    for dtype in [DType.float32, .float64] {
      let x = fixture("\(name).x").to(dtype).copy().tracked()
      let y = function(x)
      y.backward(seed: fixture("\(name).grad_y").to(dtype))
      #expect(relativeDifference(y, fixture("\(name).y")) < 2e-6, "\(name), \(dtype)")
      #expect(relativeDifference(x.gradient!, fixture("\(name).grad_x")) < 2e-6, "\(name), \(dtype)")
    }
  }

  @Test(arguments: losses.indices) func gradientsAgreeWithFiniteDifferences(index: Int) {
    let (name, function) = Self.losses[index]
    let error = gradientError([fixture("\(name).x").to(.float64)]) { function($0[0]) }
    #expect(error < 1e-6, "\(name): \(error)")
  }

  @Test func crossEntropyOfUniformLogitsIsTheLogarithmOfTheClasses() {
    let loss = crossEntropy(Tensor.zeros([2, 3, 8]), Tensor.zeros([2, 3], dtype: .int64))
    #expect(abs(loss.item() - 2.0794415416798357) < 1e-6)
    // Far logits neither overflow nor lose the answer.
    let sure = crossEntropy(Tensor([1000, 0, 0, 1000] as [Float], [2, 2]), Tensor([0, 1] as [Int]))
    #expect(sure.item() == 0)
  }

  @Test func ignoredTargetsHaveNoPart() {
    let logits = normal([3, 5], seed: 1).to(.float32).tracked()
    let some = crossEntropy(logits, Tensor([2, ignoredTarget, 4] as [Int]))
    let rest = crossEntropy(logits.take(Tensor([0, 2] as [Int])), Tensor([2, 4] as [Int]))
    #expect(relativeDifference(some, rest) < 1e-6)
    some.backward()
    #expect(logits.gradient![1].abs().max().item() == 0)
  }

  @Test(arguments: [DType.float32, .float64]) func impossibleTargetsAreErrors(dtype: DType) {
    for target in [5, -1] {
      #expect(throws: TensorError.self, "target \(target)") {
        try withTorchErrors { crossEntropy(Tensor.zeros([1, 5], dtype: dtype), Tensor([target])).item() }
      }
    }
  }

  @Test func divergenceFromItselfIsZero() {
    let p = normal([4, 6], seed: 2).logSoftmax()
    #expect(abs(klDivergence(logPrediction: p, logTarget: p).item()) < 1e-15)
    #expect(klDivergence(logPrediction: normal([4, 6], seed: 3).logSoftmax(), logTarget: p).item() > 0)
  }

  // MARK: Contrastive

  private func rows(_ seed: UInt64, _ count: Int = 6) -> Tensor {
    Tensor.randomNormal([count, 5], dtype: .float64, generator: RandomGenerator(seed: seed))
  }

  @Test func theContrastiveLossFollowsItsFormula() {
    func unit(_ x: Tensor) -> Tensor { x / x.square().sum(axis: -1, keepDims: true).sqrt() }
    let (q, k, n) = (rows(1), rows(2), rows(3, 9))
    for temperature in [0.07, 1.0] {
      for negatives in [nil, n] {
        let found = contrastiveLoss(queries: q, keys: k, negatives: negatives, temperature: temperature).item()
        var expected = 0.0
        for i in 0..<6 {
          func similarity(_ other: Tensor) -> Double { (unit(q[i]) * unit(other)).sum().item() / temperature }
          let own = similarity(k[i])
          let others = negatives.map { n in (0..<9).map { similarity(n[$0]) } } ?? (0..<6).filter { $0 != i }.map { similarity(k[$0]) }
          expected += log(exp(own) + others.reduce(0) { $0 + exp($1) }) - own
        }
        #expect(abs(found - expected / 6) <= 1e-9, "τ = \(temperature): \(found), expected \(expected / 6)")
        #expect(
          gradientError([q, k]) { contrastiveLoss(queries: $0[0], keys: $0[1], negatives: negatives, temperature: temperature) } <= 1e-6)
      }
    }
  }

  /// With equal pairs and orthogonal negatives the loss vanishes as the temperature falls.
  @Test func equalPairsAmongOrthogonalOnesCostNothing() {
    let keys = Tensor.eye(5, dtype: .float64)
    let losses = [1.0, 0.3, 0.1, 0.03].map { contrastiveLoss(queries: keys * 3.0, keys: keys, temperature: $0).item() }
    #expect(losses == losses.sorted(by: >), "\(losses)")
    #expect(abs(losses[0] - log(1 + 4 * exp(-1.0))) <= 1e-9)
    #expect(losses[3] <= 1e-12, "\(losses)")
    let apart = contrastiveLoss(queries: keys[..<2], keys: keys[..<2], negatives: keys[2...], temperature: 0.03).item()
    #expect(apart <= 1e-12, "with a queue of orthogonal negatives: \(apart)")
  }
}
