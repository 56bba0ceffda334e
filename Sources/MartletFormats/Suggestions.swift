/// What a user may have meant by a name that doesn't exist.
public enum Suggestions {
  /// The candidates nearest to `word`, the nearest first, at most `limit`; empty when none is near.
  ///
  /// A candidate is near when it or the word begins with the other (from two letters on), or when at most a third of the letters
  /// (at least one, or two from four letters on) must be inserted, deleted, replaced or swapped with their neighbour. Case and the
  /// difference between `-`, `_` and space don't count.
  public static func nearest(_ word: String, in candidates: [String], limit: Int = 3) -> [String] {
    let wanted = folded(word)
    let tolerance = max(wanted.count >= 4 ? 2 : 1, wanted.count / 3)
    var ranked: [(rank: Int, position: Int, name: String)] = []
    for (position, candidate) in candidates.enumerated() {
      let other = folded(candidate)
      // Two letters with nothing in common are within distance 2 of everything short: never replace a whole word.
      let distance = editDistance(wanted, other)
      let isPrefix = min(wanted.count, other.count) >= 2 && (other.starts(with: wanted) || wanted.starts(with: other))
      if distance <= tolerance && distance < max(wanted.count, other.count) {
        ranked.append((2 * distance, position, candidate))
      } else if isPrefix {
        ranked.append((2 * tolerance + 1 + abs(other.count - wanted.count), position, candidate))
      }
    }
    return ranked.sorted { ($0.rank, $0.position) < ($1.rank, $1.position) }.prefix(limit).map(\.name)
  }

  /// " Did you mean "a", "b"?" for the end of a message, or "".
  public static func phrase(for word: String, in candidates: [String]) -> String {
    let names = nearest(word, in: candidates)
    return names.isEmpty ? "" : " Did you mean " + names.map { "\"\($0)\"" }.joined(separator: ", ") + "?"
  }

  private static func folded(_ word: String) -> [Character] { word.lowercased().map { $0 == "_" || $0 == " " ? "-" : $0 } }

  /// Insertions, deletions, replacements and swaps of neighbours between two words (optimal string alignment).
  static func editDistance(_ a: [Character], _ b: [Character]) -> Int {
    if a.isEmpty || b.isEmpty { return max(a.count, b.count) }
    var beforePrevious = [Int](repeating: 0, count: b.count + 1)
    var previous = Array(0...b.count)
    for i in 1...a.count {
      var current = [Int](repeating: i, count: b.count + 1)
      for j in 1...b.count {
        let replacement = previous[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)
        current[j] = min(replacement, previous[j] + 1, current[j - 1] + 1)
        if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] { current[j] = min(current[j], beforePrevious[j - 2] + 1) }
      }
      beforePrevious = previous
      previous = current
    }
    return previous[b.count]
  }
}
