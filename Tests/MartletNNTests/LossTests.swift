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
}
