import Testing

@testable import MartletInference

@Suite struct SamplerTests {
  private let logits = Tensor([2, 1, 0, -1, -5] as [Float], [1, 5])

  private func probabilities(_ sampler: Sampler) -> [Double] { sampler.probabilities(logits).toArray(Double.self) }

  @Test func temperatureSharpensAndZeroIsGreedy() {
    #expect(probabilities(Sampler(temperature: 0)) == [1, 0, 0, 0, 0])
    let (cold, warm) = (probabilities(Sampler(temperature: 0.5)), probabilities(Sampler(temperature: 2)))
    #expect(cold[0] > warm[0] && abs(cold.reduce(0, +) - 1) < 1e-6)
    #expect(Sampler(temperature: 0)(logits, generator: RandomGenerator(seed: 0)).toArray(Int.self) == [0])
  }

  @Test func restrictionsKeepTheLikeliestAndTheirRatios() {
    let all = probabilities(Sampler())
    let top = probabilities(Sampler(topK: 2))
    #expect(top[2...].allSatisfy { $0 == 0 })
    #expect(abs(top[0] / top[1] - all[0] / all[1]) < 1e-4)
    // 0.643 + 0.237 = 0.88 < 0.9: the third is needed, the fourth is not.
    #expect(probabilities(Sampler(topP: 0.9)).map { $0 > 0 } == [true, true, true, false, false])
    // e^{-2} = 0.135 of the likeliest is kept at 0.1, e^{-3} = 0.0498 is not.
    #expect(probabilities(Sampler(minP: 0.1)).map { $0 > 0 } == [true, true, true, false, false])
  }

  @Test func drawsFollowTheDistribution() {
    let sampler = Sampler()
    let draws = sampler(logits.broadcast(to: [20000, 5]), generator: RandomGenerator(seed: 4))
    let counts = draws.binCount(minLength: 5).toArray(Double.self)
    for (count, p) in zip(counts, probabilities(sampler)) {
      let sigma = (p * (1 - p) / 20000).squareRoot()
      #expect(abs(count / 20000 - p) < 4 * sigma + 1e-6, "\(count / 20000) for \(p)")
    }
  }

  @Test func valuesOutOfRangeAreRefused() {
    for sampler in [Sampler(temperature: -1), Sampler(topK: 0), Sampler(topP: 0), Sampler(topP: 1.5), Sampler(minP: 1)] {
      #expect(throws: ConfigurationError.self) { try sampler.validate() }
    }
  }
}
