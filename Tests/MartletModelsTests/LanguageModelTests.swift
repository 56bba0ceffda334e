import Foundation
import MartletModels
import Testing

@Suite struct LanguageModelTests {
  @Test func aTiedHeadIsTheEmbedding() throws {
    let tied = try LanguageModel(configuration(), generator: generator())
    let untied = try LanguageModel(configuration(), tiedEmbedding: false, generator: generator())
    #expect(untied.parameterCount - tied.parameterCount == 13 * 16)
    #expect(tied.head == nil && untied.head?.outFeatures == 13)
    let input = tokens(2, 7)
    #expect(relativeDifference(tied(input), tied.backbone(input).matmul(tied.backbone.embedding!.weight.T)) < 1e-6)
    #expect(relativeDifference(untied(input), untied.head!(untied.backbone(input))) < 1e-6)
    #expect(tied(input).shape == [2, 7, 13])
  }

  @Test(arguments: [["softmax"], ["gla", "window?window=3"], ["s4d"]]) func advancingGivesTheLastLogits(mixers: [String]) throws {
    let model = try LanguageModel(configuration(mixers, positions: .learned), tiedEmbedding: false, generator: generator())
    model.eval()
    let input = tokens(3, 12)
    let expected = model(input)
    var state = try model.initialState(batch: 3)
    #expect(relativeDifference(model.advance(input[.all, 0..<5], &state), expected[.all, 4]) < 5e-5)
    for t in 5..<12 {
      #expect(relativeDifference(model.advance(input[.all, t..<(t + 1)], &state), expected[.all, t]) < 5e-5, "position \(t)")
    }
  }

  @Test func otherConfigurationsAreErrors() throws {
    #expect(throws: ConfigurationError.self) { try LanguageModel(configuration(causal: false), generator: generator()) }
    #expect(throws: ConfigurationError.self) { try LanguageModel(configuration(input: .continuous(channels: 2)), generator: generator()) }
  }

  @Test func statesGoThroughFilesExactly() throws {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("martlet-\(UUID().uuidString).safetensors").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    for tiedEmbedding in [true, false] {
      func make(_ seed: UInt64) throws -> LanguageModel {
        try LanguageModel(configuration(causalMixers, layers: causalMixers.count), tiedEmbedding: tiedEmbedding, generator: generator(seed))
      }
      let (model, other) = (try make(1), try make(2))
      let input = tokens(2, 9)
      #expect(relativeDifference(other(input), model(input)) > 0.01)
      try Safetensors.save(model.stateDictionary(), to: path)
      try other.load(Safetensors.load(path))
      #expect(other(input).isEqual(to: model(input)))
    }
  }

  @Test func aFewStepsOfDescentLowerTheLoss() throws {
    let model = try LanguageModel(configuration(["gla", "softmax"]), generator: generator())
    let text = tokens(4, 13)
    func loss() -> Tensor { crossEntropy(model(text[.all, ..<(-1)]), text[.all, 1...]) }
    let before = loss().item()
    for _ in 0..<20 {
      model.zeroGradients()
      loss().backward()
      withoutGradient { for (_, tensor) in model.parameters() { tensor.addInPlace(tensor.gradient!, scale: -0.3) } }
    }
    let after = loss().item()
    #expect(abs(before - 2.565) < 0.5, "near log 13 at the start: \(before)")
    #expect(after < before - 0.3, "\(before) to \(after)")
  }
}
