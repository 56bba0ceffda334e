import Foundation
import Testing

@testable import MartletData

@Suite struct SyntheticTextTests {
  private let text = String(decoding: SyntheticText().bytes(60_000, seed: 5), as: UTF8.self)

  @Test func textsAreFunctionsOfTheirSeed() {
    let a = SyntheticText().bytes(5000, seed: 1)
    #expect(a == SyntheticText().bytes(5000, seed: 1) && a != SyntheticText().bytes(5000, seed: 2))
    #expect(a.count >= 5000 && a.count < 8000)
    // A longer text begins with the shorter one.
    #expect(SyntheticText().bytes(20_000, seed: 1).prefix(a.count) == a)
  }

  @Test func textsAreSentencesOfPlainLetters() {
    #expect(text.utf8.allSatisfy { $0 < 128 })
    #expect(text.allSatisfy { $0.isLetter || " .?\n".contains($0) })
    let sentences = text.split(whereSeparator: { ".?\n".contains($0) }).map { $0.trimmingCharacters(in: .whitespaces) }.filter {
      !$0.isEmpty
    }
    #expect(sentences.count > 500 && sentences.allSatisfy { $0.first!.isUppercase })
    #expect(sentences.allSatisfy { (5...14).contains($0.split(separator: " ").count) })
  }

  /// What a far memory is worth: the names of a paragraph are its own, and come back in it.
  @Test func paragraphsKeepToTheirNames() {
    let paragraphs = text.split(separator: "\n")
    var owners: [Substring: Int] = [:]
    var repeated = 0
    var shared = 0
    for (number, paragraph) in paragraphs.enumerated() {
      // Names are capitalised inside sentences.
      let words = paragraph.split(separator: " ")
      var here: [Substring: Int] = [:]
      for (previous, word) in zip(words, words.dropFirst()) where word.first!.isUppercase && !".?".contains(previous.last!) {
        here[word.prefix { $0.isLetter }, default: 0] += 1
      }
      #expect(here.count <= 3, "paragraph \(number) has the names \(here.keys.sorted())")
      repeated += here.values.filter { $0 > 1 }.count
      for name in here.keys {
        shared += owners[name] == nil ? 0 : 1
        owners[name] = number
      }
    }
    #expect(Double(repeated) > 1.5 * Double(paragraphs.count), "\(repeated) names come back in \(paragraphs.count) paragraphs")
    #expect(Double(shared) < 0.05 * Double(owners.count), "\(shared) of \(owners.count) names belong to more than one")
  }

  @Test func frequentWordsAreFew() {
    var counts: [Substring: Int] = [:]
    for word in text.lowercased().split(whereSeparator: { " .?\n".contains($0) }) { counts[Substring(word), default: 0] += 1 }
    let sorted = counts.values.sorted(by: >)
    let total = sorted.reduce(0, +)
    #expect(Double(sorted.prefix(40).reduce(0, +)) > 0.4 * Double(total), "the 40 most frequent words")
    #expect(counts.count > 400)
  }

  @Test func bytesNeedNoFile() throws {
    let bytes = SyntheticText().bytes(5000, seed: 2)
    let task = try ByteTextTask(texts: [(name: "written", bytes: bytes)], length: 32)
    let batch = try task.evaluationBatch(.train, index: 0, size: 1)
    #expect(batch?.inputs[0].toArray(Int.self) == bytes.prefix(32).map(Int.init))
    #expect(task.summary.contains("written"))
    let error = #expect(throws: DataError.self) { try ByteTextTask(texts: [(name: "short", bytes: bytes.prefix(100))], length: 32) }
    #expect("\(error!)".contains("short"))
  }
}
