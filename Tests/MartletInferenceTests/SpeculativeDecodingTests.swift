import Testing

@testable import MartletInference

@Suite struct SpeculativeDecodingTests {
  @Test(arguments: ["softmax", "gla", "softmax?window=4", "s4d"], ["softmax", "gla"])
  func greedyTextIsTheLargeModels(mixer: String, draftMixer: String) throws {
    let large = try tinyModel(mixer)
    let draft = try tinyModel(draftMixer, seed: 5)
    for (prompt, guesses) in [([3, 1, 4], 4), ([2], 1), ([9, 9, 1, 2, 3, 4, 5, 6], 7)] {
      let options = GenerationOptions(maximumTokens: 20)
      let (made, report) = try speculate(large, draft: draft, prompt: prompt, options: options, guesses: guesses)
      let expected = try generate(large, prompts: [prompt], options: options)[0]
      #expect(made.tokens == expected.tokens, "\(mixer) with \(draftMixer)")
      #expect(zip(made.logProbabilities, expected.logProbabilities).allSatisfy { abs($0 - $1) < 1e-3 })
      #expect(report.passes <= 20 && report.accepted <= report.guessed)
      // The model that guesses for itself is always right.
      let (own, ownReport) = try speculate(large, draft: large, prompt: prompt, options: options, guesses: guesses)
      #expect(own.tokens == expected.tokens && ownReport.accepted == ownReport.guessed)
      #expect(ownReport.passes == (20 + guesses) / (guesses + 1))
    }
  }

  /// Three tokens drawn many times: each sequence as often as the large model alone makes it, within chance (χ² at 99.99 %), also
  /// with top-p and a temperature, though the draft model says something quite different.
  @Test(arguments: [Sampler(), Sampler(temperature: 0.7, topP: 0.9)]) func samplesHaveTheLargeModelsDistribution(sampler: Sampler) throws {
    let large = try tinyModel(vocabulary: 3, seed: 1, sharpness: 2)
    let draft = try tinyModel(vocabulary: 3, seed: 9, sharpness: 4)
    large.eval()
    let prompt = [1, 2]
    var expected: [[Int]: Double] = [:]
    func extend(_ tokens: [Int], _ p: Double) {
      if tokens.count == 3 || p == 0 {
        expected[tokens] = p
        return
      }
      let logits = withoutGradient { large(Tensor(prompt + tokens, [1, 2 + tokens.count]))[0, -1] }
      for (token, q) in sampler.probabilities(logits.expandedDimension(0)).toArray(Double.self).enumerated() {
        extend(tokens + [token], p * q)
      }
    }
    extend([], 1)
    let draws = 1200
    var counts: [[Int]: Int] = [:]
    var rejected = 0
    for seed in 0..<draws {
      let options = GenerationOptions(maximumTokens: 3, sampler: sampler).with { $0.seed = UInt64(seed) }
      let (made, report) = try speculate(large, draft: draft, prompt: prompt, options: options, guesses: 2)
      counts[made.tokens, default: 0] += 1
      rejected += report.guessed - report.accepted
    }
    #expect(rejected > draws / 20, "the draft model must be wrong often enough for the test to say something: \(rejected)")
    var chi = 0.0
    var cells = 0
    for (tokens, p) in expected {
      let wanted = p * Double(draws)
      guard wanted >= 5 else { continue }
      let difference = Double(counts[tokens] ?? 0) - wanted
      chi += difference * difference / wanted
      cells += 1
    }
    // The 99.99 % quantile of χ² with k degrees of freedom is below k + 4 √(2k) + 10 for k ≤ 26.
    let k = Double(cells - 1)
    #expect(chi < k + 4 * (2 * k).squareRoot() + 10, "χ² \(chi) over \(cells) sequences")
    #expect(counts.keys.allSatisfy { (expected[$0] ?? 0) > 0 })
  }

  @Test func modelsMustShareTheirTokens() throws {
    #expect(throws: ConfigurationError.self) {
      try speculate(try tinyModel(), draft: try tinyModel(vocabulary: 5), prompt: [1], options: GenerationOptions())
    }
  }
}
