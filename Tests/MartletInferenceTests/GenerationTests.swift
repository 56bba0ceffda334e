import Foundation
import Testing

@testable import MartletInference

@Suite struct GenerationTests {
  private func recomputed(_ model: LanguageModel, _ prompt: [Int], count: Int) -> [Int] {
    var tokens = prompt
    for _ in 0..<count {
      let logits = withoutGradient { model(Tensor(tokens, [1, tokens.count])) }
      tokens.append(logits[0, -1].argmax(axis: 0).itemInt())
    }
    return Array(tokens[prompt.count...])
  }

  @Test(arguments: ["softmax", "softmax?window=3", "gla", "retention", "s4d", "linear"])
  func unequalPromptsGoOnAsEachAlone(mixer: String) throws {
    let model = try tinyModel(mixer)
    model.eval()
    let prompts = [[3, 1, 4, 1, 5], [2], [9, 2, 6, 5, 3, 5, 8, 9, 7]]
    let options = GenerationOptions(maximumTokens: 12)
    let together = try generate(model, prompts: prompts, options: options)
    for (prompt, result) in zip(prompts, together) {
      #expect(result.tokens == recomputed(model, prompt, count: 12), "\(mixer)")
      #expect(result.finish == .length && result.logProbabilities.allSatisfy { $0 <= 0 })
    }
    // In pieces, and with sampling: what one becomes does not depend on the others.
    #expect(try generate(model, prompts: prompts, options: options.with { $0.promptChunk = 2 }).map(\.tokens) == together.map(\.tokens))
    let sampled = options.with { ($0.sampler, $0.seed) = (Sampler(temperature: 1, topP: 0.9), 7) }
    let all = try generate(model, prompts: prompts, options: sampled)
    #expect(try generate(model, prompts: [prompts[0]], options: sampled)[0].tokens == all[0].tokens)
    #expect(try generate(model, prompts: prompts, options: sampled.with { $0.seed = 8 }) != all)
  }

  @Test func sequencesEndByStopTokenCountOrReceiver() throws {
    let model = try tinyModel()
    let free = try generate(model, prompts: [[3, 1], [5]], options: GenerationOptions(maximumTokens: 10))
    let stop = free[0].tokens[3]
    let options = GenerationOptions(maximumTokens: 10).with { $0.stopTokens = [stop] }
    let ended = try generate(model, prompts: [[3, 1], [5]], options: options)
    let at = free[0].tokens.firstIndex(of: stop)!
    #expect(ended[0].tokens == Array(free[0].tokens[...at]) && ended[0].finish == .stop)
    #expect(ended[1].tokens.elementsEqual(free[1].tokens.prefix { $0 != stop } + (free[1].tokens.contains(stop) ? [stop] : [])))
    var received = 0
    let cancelled = try generate(model, prompts: [[3, 1]], options: GenerationOptions(maximumTokens: 10)) { _, _, _ in
      received += 1
      return received < 4
    }
    #expect(cancelled[0].tokens.count == 4 && cancelled[0].finish == .cancelled)
    let longer = try generate(model, prompts: [[3, 1]], options: options.with { $0.minimumTokens = 8 })
    #expect(longer[0].tokens.prefix(8).allSatisfy { $0 != stop })
  }

  @Test func penaltiesBiasesAndBansChangeLogitsAsDefined() {
    let logits = Tensor([2, -1, 0.5, 1, -3] as [Float])
    func processed(_ tokens: [Int], prompt: Int, _ change: (inout GenerationOptions) -> Void) -> [Float] {
      GenerationOptions().with(change).processed(logits, tokens: tokens, promptLength: prompt).toArray(Float.self)
    }
    #expect(processed([0, 1, 1], prompt: 2) { $0.repetitionPenalty = 2 } == [1, -2, 0.5, 1, -3])
    #expect(processed([0, 1, 1, 3], prompt: 1) { ($0.presencePenalty, $0.frequencyPenalty) = (0.5, 0.25) } == [2, -2, 0.5, 0.25, -3])
    #expect(processed([0], prompt: 1) { ($0.logitBias, $0.firstLogitBias) = ([4: 5], [0: -.infinity]) } == [-.infinity, -1, 0.5, 1, 2])
    #expect(processed([0, 4], prompt: 1) { $0.firstLogitBias = [0: -.infinity] }[0] == 2)
    // After 0 1, the run 0 1 2 would come again with 2.
    #expect(processed([0, 1, 2, 0, 1], prompt: 1) { $0.noRepeatedRun = 3 }[2] == -.infinity)
    #expect(processed([0, 1, 2, 0, 1], prompt: 1) { $0.noRepeatedRun = 1 } == [-.infinity, -.infinity, -.infinity, 1, -3])
  }

  @Test func badRequestsAreRefused() throws {
    let model = try tinyModel()
    func message(_ prompts: [[Int]], _ change: (inout GenerationOptions) -> Void = { _ in }) -> String {
      do {
        _ = try generate(model, prompts: prompts, options: GenerationOptions(maximumTokens: 2).with(change))
        return "accepted"
      } catch { return "\(error)" }
    }
    #expect(message([[1], []]).contains("prompt 1 is empty"))
    #expect(message([[19]]).contains("token 19, which is outside the vocabulary of 19"))
    #expect(message([[1]]) { $0.repetitionPenalty = 0 }.contains("repetition penalty"))
    #expect(message([[1]]) { $0.stopTokens = [99] }.contains("token 99"))
    #expect(message([[1]]) { $0.sampler.topP = 2 }.contains("top-p"))
    withoutGradient { model.backbone.embedding!.weight.copyInPlace(model.backbone.embedding!.weight * Double.nan) }
    #expect(message([[1]]).contains("not numbers"))
  }

  @Test(arguments: ["softmax", "gla", "softmax?window=4"]) func aCachedPromptGivesTheSameText(mixer: String) throws {
    let model = try tinyModel(mixer)
    let options = GenerationOptions(maximumTokens: 8)
    let cache = PromptCache(limit: 2)
    let system = [1, 2, 3, 4, 5, 6]
    for prompt in [system, system + [7, 8], system + [9], [1, 2, 3, 9, 9], system] {
      let fresh = try generate(model, prompts: [prompt], options: options)
      let cached = try generate(model, prompts: [prompt], options: options, promptCache: cache)
      #expect(cached[0].tokens == fresh[0].tokens, "\(mixer) \(prompt)")
    }
    #expect(cache.count == 2)
    #expect(cache.longestPrefix(of: [8]) == nil)
  }

  /// With as many beams as sequences the search is exhaustive: it finds the likeliest.
  @Test func aWideBeamFindsTheLikeliestSequences() throws {
    let model = try tinyModel(vocabulary: 4, sharpness: 2)
    model.eval()
    let prompt = [1, 3]
    var all: [(tokens: [Int], score: Double)] = []
    func extend(_ tokens: [Int], _ sum: Double) {
      if tokens.count == 3 || tokens.last == 0 {
        all.append((tokens, sum / pow(Double(tokens.count), 0.7)))
        return
      }
      let logits = withoutGradient { model(Tensor(prompt + tokens, [1, 2 + tokens.count]))[0, -1].logSoftmax().toArray(Double.self) }
      for token in 0..<4 { extend(tokens + [token], sum + logits[token]) }
    }
    extend([], 0)
    all.sort { $0.score > $1.score }
    var search = BeamSearchOptions(beams: 60)
    search.lengthPenalty = 0.7
    search.results = 5
    let options = GenerationOptions(maximumTokens: 3).with { $0.stopTokens = [0] }
    let found = try beamSearch(model, prompts: [prompt, [2]], options: options, beams: search)
    #expect(found[0].map(\.tokens) == all.prefix(5).map(\.tokens))
    for (a, b) in zip(found[0], all) { #expect(abs(a.score - b.score) < 1e-4) }
    // One beam is greedy.
    let greedy = try generate(model, prompts: [prompt], options: options)[0].tokens
    #expect(try beamSearch(model, prompts: [prompt], options: options, beams: BeamSearchOptions(beams: 1))[0][0].tokens == greedy)
  }

  @Test func perplexityIsThatOfEachTokenGivenItsWindow() throws {
    let model = try tinyModel()
    model.eval()
    let tokens = (0..<50).map { ($0 * 7 + $0 * $0) % 19 }
    func logProbability(_ position: Int, from start: Int) -> Double {
      withoutGradient {
        model(Tensor(Array(tokens[start..<position]), [1, position - start]))[0, -1].logSoftmax()[tokens[position]].item()
      }
    }
    let whole = try perplexity(model, tokens: tokens, window: 64)
    let expected = (1..<50).reduce(0.0) { $0 - logProbability($1, from: 0) }
    #expect(whole.tokens == 49 && abs(whole.negativeLogLikelihood - expected) < 1e-3 * expected)
    for (window, stride) in [(16, 16), (16, 5), (16, 1)] {
      let result = try perplexity(model, tokens: tokens, window: window, stride: stride)
      #expect(result.tokens == 49, "every token but the first is predicted once")
      // With stride 1 each token sees exactly the window − 1 tokens before it.
      guard stride == 1 else { continue }
      let sliding = (1..<50).reduce(0.0) { $0 - logProbability($1, from: max(0, $1 - 15)) }
      #expect(abs(result.negativeLogLikelihood - sliding) < 1e-3 * sliding)
    }
    #expect(throws: ConfigurationError.self) { try perplexity(model, tokens: [1], window: 4) }
    #expect(throws: ConfigurationError.self) { try perplexity(model, tokens: tokens, window: 4, stride: 5) }
  }
}
