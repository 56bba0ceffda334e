import MartletFormats
import Testing

@Suite struct SuggestionsTests {
  let names = ["softmax", "gla", "s4", "s4d", "deltanet", "learning_rate", "lra"]

  @Test func typingErrorsFindTheName() {
    #expect(Suggestions.nearest("sofmtax", in: names) == ["softmax"])
    #expect(Suggestions.nearest("deltnaet", in: names) == ["deltanet"])
    #expect(Suggestions.nearest("learning-rate", in: names) == ["learning_rate"])
    #expect(Suggestions.nearest("Softmax", in: names) == ["softmax"])
  }

  @Test func beginningsFindTheName() {
    #expect(Suggestions.nearest("delta", in: names) == ["deltanet"])
    #expect(Suggestions.nearest("s4", in: names).first == "s4")
  }

  @Test func nothingNearIsNothing() {
    #expect(Suggestions.nearest("transformer", in: names) == [])
    #expect(Suggestions.nearest("", in: names) == [])
    #expect(Suggestions.phrase(for: "transformer", in: names) == "")
    #expect(Suggestions.phrase(for: "softmx", in: names) == " Did you mean \"softmax\"?")
  }

  @Test func atMostTheLimit() {
    #expect(Suggestions.nearest("ab", in: ["aba", "abb", "abc", "abd"], limit: 2).count == 2)
  }
}
