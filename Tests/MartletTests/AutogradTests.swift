import Testing

@testable import Martlet

@Suite struct AutogradTests {
  @Test func backwardAccumulatesAndHigherOrdersWork() {
    let x = Tensor(3, dtype: .float64).tracked()
    let y = x * x * x
    let first = gradient(of: y, with: [x], createGraph: true)[0]!
    let second = gradient(of: first, with: [x])[0]!
    #expect(first.item() == 27)
    #expect(second.item() == 18)
    (x * 2.0).backward()
    (x * 5.0).backward()
    #expect(x.gradient?.item() == 7)
    #expect(withoutGradient { (x * 2.0).requiresGradient } == false)
  }

  @Test func customFunctionsUseTheirOwnRule() {
    let x = Tensor([1, 2, 3] as [Double]).tracked()
    let w = Tensor([2, 2, 2] as [Double]).tracked()
    let y = customFunction([x, w], name: "Product") {
      [x * w]
    } backward: { grads in
      [grads[0].map { $0 * w }, grads[0].map { $0 * x }]
    }[0]
    let gx = gradient(of: (y * y).sum(), with: [x, w], createGraph: true)
    #expect(gx[0]!.toArray(Double.self) == [8, 16, 24])
    #expect(gx[1]!.toArray(Double.self) == [4, 16, 36])
    // d/dx Σ 2 x w² = 2 w² through the rule's own operations
    let again = gradient(of: gx[0]!.sum(), with: [x])[0]
    #expect(again?.toArray(Double.self) == [8, 8, 8])
  }

  @Test func checkpointingGivesTheSameGradients() {
    let generator = RandomGenerator(seed: 1)
    let w = Tensor.randomNormal([4, 4], dtype: .float64, generator: generator).tracked()
    let x = Tensor.randomNormal([2, 4], dtype: .float64, generator: generator).tracked()
    func body(_ x: Tensor) -> Tensor { (x.matmul(w).tanh()).matmul(w).sin() }
    let plain = gradient(of: body(x).sum(), with: [x, w])
    let y = checkpointed([x], parameters: [w]) { [body($0[0])] }[0]
    let again = gradient(of: y.sum(), with: [x, w])
    for (a, b) in zip(plain, again) { #expect((a! - b!).abs().max().item() == 0) }
  }

  @Test func finiteDifferencesAgreeAndCatchWrongRules() {
    let x = Tensor.randomNormal([3, 4], dtype: .float64, generator: RandomGenerator(seed: 2))
    #expect(gradientError([x]) { $0[0].tanh().pow(2).sum() } < 1e-7)
    let wrong = gradientError([x]) { inputs in
      customFunction([inputs[0]]) {
        [inputs[0] * 2.0]
      } backward: {
        [$0[0].map { $0 * 3.0 }]
      }[0].sum()
    }
    #expect(wrong > 0.1)
  }

  @Test func errorsInsideBackwardSurface() throws {
    #expect(throws: TensorError.self) {
      try withTorchErrors {
        let x = Tensor.ones([2]).tracked()
        let y = customFunction([x]) {
          [x * 2.0]
        } backward: { _ in
          [Tensor.zeros([3]).matmul(Tensor.zeros([2]))]
        }[0]
        y.sum().backward()
      }
    }
  }
}
