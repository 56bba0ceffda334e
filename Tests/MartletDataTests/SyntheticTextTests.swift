import MartletData
import Testing

@Suite struct SyntheticTextTests {
  @Test func aTextIsAFunctionOfItsSeed() {
    let text = SyntheticText(seed: 1).bytes(5000)
    #expect(text.count == 5000)
    #expect(text == SyntheticText(seed: 1).bytes(5000))
    #expect(Array(SyntheticText(seed: 1).bytes(9000)[..<5000]) == text, "a longer text begins alike")
    #expect(text != SyntheticText(seed: 2).bytes(5000))
    #expect(text.allSatisfy { $0 == 10 || (32..<127).contains($0) }, "ASCII")
  }

  @Test func namesRecurInTheirParagraphOnly() {
    let paragraphs = String(decoding: SyntheticText(seed: 3).bytes(60_000), as: UTF8.self).split(separator: "\n").dropLast()
    #expect(paragraphs.count > 20)
    func names(_ paragraph: Substring) -> [String: Int] {
      let words = paragraph.split { !$0.isLetter }.map(String.init).filter { $0.first!.isUppercase && $0.hasSuffix("o") }
      return Dictionary(words.map { ($0, 1) }, uniquingKeysWith: +)
    }
    let repeated = paragraphs.filter { (names($0).values.max() ?? 0) >= 3 }.count
    #expect(repeated * 10 >= paragraphs.count * 9, "\(repeated) of \(paragraphs.count) paragraphs repeat a name three times")
    let (first, second) = (
      Set(names(paragraphs.first!).filter { $0.value >= 3 }.keys), Set(names(paragraphs[paragraphs.startIndex + 1]).keys)
    )
    #expect(first.isDisjoint(with: second), "\(first) and \(second)")
  }

  @Test func frequentWordsAreFew() {
    let words = String(decoding: SyntheticText(seed: 4, words: 200).bytes(50_000), as: UTF8.self).split { !$0.isLetter }.map {
      $0.lowercased()
    }
    let counts = Dictionary(words.map { ($0, 1) }, uniquingKeysWith: +).values.sorted(by: >)
    let share = Double(counts.prefix(20).reduce(0, +)) / Double(words.count)
    #expect(share > 0.2 && share < 0.8, "the twenty most frequent words make \(share) of the text")
  }
}
