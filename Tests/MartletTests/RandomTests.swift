import Testing

@testable import Martlet

@Suite struct RandomTests {
  private let count = 40_000

  @Test func uniformNumbersAreUniform() {
    let x = Tensor.random([count], dtype: .float64, generator: RandomGenerator(seed: 1))
    #expect(x.min().item() >= 0 && x.max().item() < 1)
    // Five standard errors: σ = 1/√12.
    #expect(abs(x.mean().item() - 0.5) < 5 * 0.2887 / Double(count).squareRoot())
    let tenths = (x * 10.0).floor().to(.int64).binCount(minLength: 10).toArray(Int.self)
    let expected = Double(count) / 10
    let chiSquared = tenths.reduce(0) { $0 + (Double($1) - expected) * (Double($1) - expected) / expected }
    #expect(chiSquared < 33.7, "χ² of 9 degrees is \(chiSquared); 33.7 is passed once in 10,000")
  }

  @Test func normalNumbersHaveTheirMoments() {
    let x = Tensor.randomNormal([count], dtype: .float64, generator: RandomGenerator(seed: 2))
    let root = Double(count).squareRoot()
    #expect(abs(x.mean().item()) < 5 / root)
    #expect(abs(x.variance(axis: 0).item() - 1) < 5 * 2.0.squareRoot() / root)
    #expect(abs(x.pow(4).mean().item() - 3) < 5 * 96.0.squareRoot() / root)
  }

  @Test func integersStayInTheirRangeAndReachItsEnds() {
    let x = Tensor.randomIntegers(from: -2, below: 3, [1000], generator: RandomGenerator(seed: 3))
    #expect(x.dtype == .int64 && x.unique().values.toArray(Int.self) == [-2, -1, 0, 1, 2])
    #expect(throws: TensorError.self) {
      try withTorchErrors { Tensor.randomIntegers(from: 3, below: 3, [1], generator: RandomGenerator(seed: 3)) }
    }
  }

  @Test func permutationsHoldEveryNumberOnce() {
    let order = Tensor.randomPermutation(100, generator: RandomGenerator(seed: 4)).toArray(Int.self)
    #expect(order.sorted() == Array(0..<100) && order != Array(0..<100))
  }

  @Test func drawsFollowTheirProbabilities() {
    let flips = Tensor.full([count], 0.3).bernoulli(generator: RandomGenerator(seed: 5))
    #expect(abs(flips.mean().item() - 0.3) < 5 * 0.21.squareRoot() / Double(count).squareRoot())
    let weights = Tensor([1, 0, 3] as [Float])
    let draws = weights.multinomial(count, replacement: true, generator: RandomGenerator(seed: 6)).binCount(minLength: 3).toArray(Int.self)
    #expect(draws[1] == 0)
    #expect(abs(Double(draws[2]) / Double(count) - 0.75) < 5 * 0.1875.squareRoot() / Double(count).squareRoot())
    #expect(Set(weights.multinomial(2, generator: RandomGenerator(seed: 7)).toArray(Int.self)) == [0, 2])
  }

  @Test func streamsWithDifferentSeedsDifferAndDoNotTouchEachOther() {
    let (a, b) = (RandomGenerator(seed: 8), RandomGenerator(seed: 9))
    let alone = Tensor.random([4], generator: RandomGenerator(seed: 8))
    _ = Tensor.random([100], generator: b)
    #expect(Tensor.random([4], generator: a).isEqual(to: alone))
    #expect(!Tensor.random([4], generator: RandomGenerator(seed: 9)).isEqual(to: alone))
    #expect(RandomGenerator(seed: 8).nextSeed() == RandomGenerator(seed: 8).nextSeed())
    let stream = RandomGenerator(seed: 8)
    #expect(stream.nextSeed() != stream.nextSeed())
  }

  @Test func aStateContinuesInAnotherGenerator() {
    let a = RandomGenerator(seed: 10)
    _ = Tensor.randomNormal([7], generator: a)
    let b = RandomGenerator(seed: 99)
    b.state = a.state
    #expect(Tensor.randomNormal([33], generator: a).isEqual(to: Tensor.randomNormal([33], generator: b)))
    #expect(throws: TensorError.self) { try withTorchErrors { b.state = Tensor.zeros([3], dtype: .uint8) } }
  }
}
