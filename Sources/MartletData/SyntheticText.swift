import Foundation

/// Text written by a program, for experiments on language models where no text can be brought along: **no language**, but with the
/// structure that a model's parts must find. Words are syllables, frequent ones short (Zipf's law); each word has a few likely
/// followers; sentences have a capital and a stop; and every paragraph has people and a thing of its own, whose names recur in it, so
/// that attention to what stood far back pays. A function of the seed.
public struct SyntheticText: Sendable {
  public var seed: UInt64
  /// Words of the vocabulary, besides names.
  public var words: Int
  /// Likely followers of a word.
  public var followers: Int

  public init(seed: UInt64 = 0, words: Int = 400, followers: Int = 6) {
    precondition(words > 1 && followers > 0, "a text needs at least two words and one follower")
    self.seed = seed
    self.words = words
    self.followers = followers
  }

  private static func syllable(_ random: inout SeededRandom) -> String {
    let onsets = ["b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "st", "tr", "sh", "th", "br", "cl", ""]
    let vowels = ["a", "e", "i", "o", "u", "ea", "ou"]
    let codas = ["", "", "", "n", "r", "s", "t", "l", "nd", "st"]
    return onsets[random.integer(below: onsets.count)] + vowels[random.integer(below: vowels.count)]
      + codas[random.integer(below: codas.count)]
  }

  /// The first `count` bytes (ASCII).
  public func bytes(_ count: Int) -> [UInt8] {
    var random = SeededRandom(seed: seed, stream: 0)
    var vocabulary: [String] = []
    var known = Set<String>()
    while vocabulary.count < words {
      let syllables = 1 + vocabulary.count * 3 / words
      let word = (0..<syllables).map { _ in Self.syllable(&random) }.joined()
      if word.count > 1, known.insert(word).inserted { vocabulary.append(word) }
    }
    // Zipf: the n-th word is drawn with weight 1/(n + 2), by its inverse distribution on the logarithm.
    let spread = Double(words + 2) / 2
    func frequent() -> Int { min(words - 1, Int(2 * pow(spread, random.uniform()) - 2)) }
    let next = (0..<words).map { _ in (0..<followers).map { _ in frequent() } }

    var text: [UInt8] = []
    text.reserveCapacity(count + 1000)
    while text.count < count {
      let names = (0..<3).map { _ in
        let name = (0..<2).map { _ in Self.syllable(&random) }.joined() + "o"
        return name.prefix(1).uppercased() + name.dropFirst()
      }
      for _ in 0..<(4 + random.integer(below: 6)) {
        var word = frequent()
        var sentence: [String] = random.uniform() < 0.7 ? [names[random.integer(below: names.count)]] : []
        for _ in 0..<(4 + random.integer(below: 8)) {
          if random.uniform() < 0.15 {
            sentence.append(names[random.integer(below: names.count)])
          } else {
            word = random.uniform() < 0.8 ? next[word][random.integer(below: followers)] : frequent()
            sentence.append(vocabulary[word])
          }
        }
        sentence[0] = sentence[0].prefix(1).uppercased() + sentence[0].dropFirst()
        text += Array(sentence.joined(separator: " ").utf8) + Array(". ".utf8)
      }
      text[text.count - 1] = 10
    }
    return Array(text[..<count])
  }
}
