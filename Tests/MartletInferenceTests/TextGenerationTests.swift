import Foundation
import Testing

@testable import MartletInference

@Suite struct TextGenerationTests {
  /// Words and letters, decoded side by side.
  private func tokenizer() throws -> Tokenizer {
    let words = ["<end>", "a", "b", "c", "ab", "bc", "abc", "é", "stop", "s", "t", "op", "x", "y", "z", "1", "2", "3", "4"]
    let vocabulary = words.enumerated().map { "\"\($1)\": \($0)" }.joined(separator: ", ")
    let json = """
      {"added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
       "decoder": {"type": "Fuse"}, "model": {"type": "WordLevel", "vocab": {\(vocabulary)}, "unk_token": "x"}}
      """
    return try Tokenizer(json: Data(json.utf8))
  }

  @Test func aTextEndsBeforeAStopStringHoweverItIsCut() throws {
    let tokenizer = try tokenizer()
    func released(_ tokens: [Int], _ stops: [String]) throws -> (pieces: [String], hasStopped: Bool) {
      var stream = TextStream(tokenizer, stopStrings: stops)
      var pieces = try tokens.map { try stream.append($0) }
      let hasStopped = stream.hasStopped
      pieces.append(try stream.finish())
      return (pieces, hasStopped)
    }
    // a, s, t, op, b: "stop" comes in three tokens; nothing of it is given out.
    let (pieces, hasStopped) = try released([1, 9, 10, 11, 2], ["stop"])
    #expect(pieces == ["a", "", "", "", "", ""] && hasStopped)
    // s, t, x: what looked like a beginning is given out once it isn't one.
    #expect(try released([9, 10, 12], ["stop"]).pieces == ["", "", "stx", ""])
    // The end of the text gives out what waits.
    #expect(try released([1, 9, 10], ["stop"]).pieces == ["a", "", "", "st"])
    // The first of several, also inside one token.
    #expect(try released([6, 1], ["c", "bc"]).pieces.joined() == "a")
    #expect(try released([1, 2], []).pieces == ["a", "b", ""])
  }

  @Test func generatedTextsAreTheirTokens() throws {
    let tokenizer = try tokenizer()
    let model = try tinyModel()
    let generator = try TextGenerator(model: model, tokenizer: tokenizer)
    let options = GenerationOptions(maximumTokens: 12)
    var pieces: [[String]] = [[], []]
    let texts = try generator.generate(["a b", "c"], options: options) { index, piece in
      pieces[index].append(piece)
      return true
    }
    let alone = try generate(model, prompts: [[1, 2], [3]], options: options)
    for i in 0..<2 {
      #expect(texts[i].sequence == alone[i] && texts[i].promptTokens == [2, 1][i])
      #expect(texts[i].text == pieces[i].joined() && !texts[i].text.isEmpty)
      #expect(try generator.text(of: alone[i].tokens, after: [[1, 2], [3]][i]) == texts[i].text)
    }
    // A draft changes nothing but the number of passes.
    let drafted = try generator.generate(
      prompts: [[1, 2]], options: options, draft: TextGenerator.Draft(model: model, guesses: 3))
    #expect(drafted[0].text == texts[0].text && drafted[0].speculation?.passes == 3)
    // A stop string cuts the text and ends it.
    let stop = String(texts[0].text.dropFirst(2).prefix(2))
    let cut = try generator.generate(["a b"], options: options, stopStrings: [stop])[0]
    #expect(cut.sequence.finish == .stop && !cut.text.contains(stop) && texts[0].text.hasPrefix(cut.text))
  }

  @Test func aTokenizerOfAnotherModelIsRefused() throws {
    #expect(throws: ConfigurationError.self) { try TextGenerator(model: try tinyModel(vocabulary: 5), tokenizer: try tokenizer()) }
  }
}
