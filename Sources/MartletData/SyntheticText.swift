import Foundation

/// Text that a program writes, for experiments that must not depend on a file. It has what makes real text worth different kinds of
/// memory: spelling (words of a fixed lexicon, made of syllables), word order (each word has its own few likely successors), and
/// subjects (a paragraph keeps to the few names that it introduced, so that the rest of a name can be known from far back).
///
/// A text is a function of its seed: the same on every platform.
public struct SyntheticText: Sendable {
  /// Words of the lexicon.
  public var words: Int
  /// Names that a paragraph is about.
  public var names: Int
  /// The share of words that are names.
  public var nameShare: Double

  public init(words: Int = 400, names: Int = 3, nameShare: Double = 0.2) {
    self.words = words
    self.names = names
    self.nameShare = nameShare
  }

  private static let onsets = ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "st", "tr", "ch", "sh", "w", "h", "br"]
  private static let vowels = ["a", "e", "i", "o", "u", "ea", "ou", "ai"]
  private static let codas = ["", "", "", "n", "r", "s", "t", "l", "nd", "ck"]

  private static func word(_ random: inout SeededRandom, syllables: Int) -> String {
    (0..<syllables).map { _ in
      onsets[random.integer(below: onsets.count)] + vowels[random.integer(below: vowels.count)]
        + codas[random.integer(below: codas.count)]
    }.joined()
  }

  /// At least `count` bytes of ASCII text: whole paragraphs.
  public func bytes(_ count: Int, seed: UInt64 = 0) -> Data {
    var random = SeededRandom(seed: seed, stream: 1)
    // Frequent words are short.
    let lexicon = (0..<words).map { Self.word(&random, syllables: $0 < words / 8 ? 1 : $0 < words / 2 ? 2 : 3) }
    let successors = (0..<words).map { _ in (0..<4).map { _ in frequent(&random) } }
    var text = ""
    while text.utf8.count < count {
      let subjects = (0..<names).map { _ in Self.word(&random, syllables: 2).capitalized }
      for _ in 0..<4 + random.integer(below: 6) {
        var previous = frequent(&random)
        var sentence: [String] = []
        for _ in 0..<5 + random.integer(below: 10) {
          if random.uniform() < nameShare {
            sentence.append(subjects[random.integer(below: names)])
          } else {
            previous = random.uniform() < 0.7 ? successors[previous][random.integer(below: 4)] : frequent(&random)
            sentence.append(lexicon[previous])
          }
        }
        let first = sentence[0]
        sentence[0] = first.prefix(1).uppercased() + first.dropFirst()
        text += sentence.joined(separator: " ") + (random.uniform() < 0.2 ? "?" : ".") + " "
      }
      text += "\n"
    }
    return Data(text.utf8)
  }

  /// A word by Zipf's law: rank r with probability ∝ 1 / r, by the inverse of its (continuous) distribution function.
  private func frequent(_ random: inout SeededRandom) -> Int {
    min(words - 1, Int(pow(Double(words + 1), random.uniform())) - 1)
  }
}
