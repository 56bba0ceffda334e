import MartletOptimizers
import Testing

@Suite struct ClippingTests {
  @Test(arguments: [DType.float32, .float64]) func clippingByNormScalesAllGradientsTogether(_ dtype: DType) {
    let a = Tensor([3, 0, 0] as [Float]).to(dtype)
    let b = Tensor([0, 4] as [Float]).to(dtype)
    #expect(abs(globalNorm([a, b]) - 5) < 1e-6)
    #expect(clipGradients([a, b], norm: 10) == 5)
    #expect(a.toArray(Float.self) == [3, 0, 0], "a norm below the limit leaves the gradients as they are")
    #expect(abs(clipGradients([a, b], norm: 1) - 5) < 1e-6)
    #expect(abs(a[0].item() - 0.6) < 1e-6 && abs(b[1].item() - 0.8) < 1e-6)
    #expect(globalNorm([]) == 0)
  }

  @Test func clippingByValueLimitsElements() {
    let a = Tensor([-3, 0.5, 2] as [Float])
    clipGradients([a], value: 1)
    #expect(a.toArray(Float.self) == [-1, 0.5, 1])
  }

  @Test func nonFiniteNormsAreReturned() {
    #expect(clipGradients([Tensor([Float.infinity])], norm: 1).isInfinite)
    #expect(clipGradients([Tensor([Float.nan])], norm: 1).isNaN)
  }

  @Test func clippingInsideTheStepEqualsClippingBeforeIt() {
    for rule: OptimizerConfiguration.Rule in [
      .adamw(.init(epsilon: 0.1)), .adam(.init(epsilon: 0.1, weightDecay: 0.1)), .sgd(.init(momentum: 0.9)),
    ] {
      let a = randomParameters([[30, 7], [11]], seed: 8)
      let b = a.map { ($0.name, $0.tensor.detached().copy().tracked()) }
      let first = OptimizerConfiguration(rule, learningRate: 0.1).make([ParameterGroup("all", a)])
      let second = OptimizerConfiguration(rule, learningRate: 0.1).make([ParameterGroup("all", b)])
      for step in 0..<3 {
        setRandomGradients(a, seed: UInt64(step))
        setRandomGradients(b, seed: UInt64(step))
        let norm = clipGradients(first.gradients, norm: 1)
        #expect(second.clipNextStep(norm: 1) == norm && norm > 10)
        first.step()
        second.step()
        #expect(second.gradientScale == 1, "the scale holds for one step")
      }
      for ((name, x), (_, y)) in zip(a, b) {
        let error = (x.detached() - y.detached()).abs().max().item()
        #expect(error < 1e-6, "\(rule) \(name): \(error), at most 1e-6 expected")
      }
    }
  }
}

@Suite struct ExponentialMovingAverageTests {
  @Test func averagesFollowTheFormula() {
    let p = Tensor([1, 2] as [Double]).tracked()
    let plain = ExponentialMovingAverage([("p", p)], decay: 0.9)
    let warm = ExponentialMovingAverage([("p", p)], decay: 0.9, warmup: true)
    var expected = 1.0
    var expectedWarm = 1.0
    for t in 1...200 {
      withoutGradient { p.fillInPlace(Double(t)) }
      plain.update()
      warm.update()
      expected = 0.9 * expected + 0.1 * Double(t)
      let d = min(0.9, Double(1 + t) / Double(10 + t))
      expectedWarm = d * expectedWarm + (1 - d) * Double(t)
    }
    plain.withAverages { #expect(abs(p[0].item() - expected) < 1e-9) }
    warm.withAverages { #expect(abs(p[0].item() - expectedWarm) < 1e-9) }
    #expect(p.toArray(Double.self) == [200, 200])
    #expect(plain.updates == 200)
    #expect(plain.stateBytes == 16)
    #expect(p.requiresGradient && p.isLeaf)
  }

  @Test func swappingTwiceRestoresAndStateContinues() throws {
    let p = randomParameters([[4, 3], [5]], seed: 3)
    let average = ExponentialMovingAverage(p, decay: 0.8, warmup: true)
    withoutGradient { p.forEach { $0.tensor.multiplyInPlace(3) } }
    average.update()
    let before = p.map { $0.tensor.detached().copy() }
    average.swap()
    #expect(average.isSwappedIn && !p[0].tensor.isEqual(to: before[0]))
    average.swap()
    #expect(p[0].tensor.isEqual(to: before[0]) && p[1].tensor.isEqual(to: before[1]))

    let second = ExponentialMovingAverage(p, decay: 0.8, warmup: true)
    try second.load(average.stateDictionary().mapValues { $0.copy() })
    withoutGradient { p.forEach { $0.tensor.addInPlace(Tensor(1)) } }
    average.update()
    second.update()
    for (key, tensor) in average.stateDictionary() { #expect(second.stateDictionary()[key]?.isEqual(to: tensor) == true, "\(key)") }

    var state = average.stateDictionary()
    state["average.p1"] = .zeros([6])
    #expect(throws: TensorError.self) { try second.load(state) }
    state["average.p1"] = nil
    #expect(throws: TensorError.self) { try second.load(state) }
  }
}
