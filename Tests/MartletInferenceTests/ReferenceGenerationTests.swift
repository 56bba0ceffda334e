import Foundation
import Testing

@testable import MartletInference

/// What `transformers` generates from the same checkpoint with beams, penalties and bans (Tests/Fixtures/generation.py).
@Suite struct ReferenceGenerationTests {
  private static let tests = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()

  private static func cases() throws -> [JSONValue] {
    let file = tests.appendingPathComponent("MartletInferenceTests/Fixtures/generation.json")
    return try JSONValue.parse(String(contentsOf: file, encoding: .utf8)).arrayValue ?? []
  }

  @Test func theTextsAreTheReferences() throws {
    let folder = Self.tests.appendingPathComponent("MartletModelsTests/Fixtures/checkpoints/llama-2").path
    let model = try #require(try PretrainedModel.load(folder).languageModel)
    func integers(_ value: JSONValue?) -> [Int] { value?.arrayValue?.compactMap(\.intValue) ?? [] }
    let cases = try Self.cases()
    #expect(cases.count == 12)
    for reference in cases {
      let name = reference["name"]?.stringValue ?? ""
      let prompt = integers(reference["prompt"])
      let asked = reference["options"]!
      var options = GenerationOptions(maximumTokens: reference["maximumTokens"]!.intValue!)
      options.stopTokens = Set(integers(reference["stopTokens"]))
      options.repetitionPenalty = asked["repetition_penalty"]?.doubleValue ?? 1
      options.noRepeatedRun = asked["no_repeat_ngram_size"]?.intValue ?? 0
      let sequences = reference["sequences"]!.arrayValue!.map { integers($0) }
      guard let beams = asked["num_beams"]?.intValue else {
        let made = try generate(model, prompts: [prompt], options: options)[0].tokens
        #expect(made == sequences[0], "\(name)")
        continue
      }
      var search = BeamSearchOptions(beams: beams)
      search.lengthPenalty = asked["length_penalty"]?.doubleValue ?? 1
      search.stopsEarly = asked["early_stopping"]?.boolValue ?? false
      search.results = sequences.count
      let found = try beamSearch(model, prompts: [prompt], options: options, beams: search)[0]
      #expect(found.map(\.tokens) == sequences, "\(name), prompt of \(prompt.count)")
      let scores = reference["scores"]!.arrayValue!.compactMap(\.doubleValue)
      for (a, b) in zip(found.map(\.score), scores) { #expect(abs(a - b) < 1e-4 * abs(b), "\(name): \(a), \(b)") }
    }
  }
}
