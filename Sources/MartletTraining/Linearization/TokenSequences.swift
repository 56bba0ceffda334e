/// A text's tokens, packed end to end into rows of one length.
public struct TokenSequences: Sendable {
  /// Rows of `length` tokens, one after the other.
  public let tokens: [Int32]
  public let length: Int

  public var count: Int { tokens.count / length }

  /// Tokens beyond the last whole row are left out. Throws `DataError` where there isn't one.
  public init(_ tokens: [Int], length: Int) throws {
    guard length > 1 else { throw DataError("a sequence needs at least two tokens, got \(length)") }
    guard tokens.count >= length else {
      throw DataError("\(tokens.count) tokens don't fill one sequence of \(length): give more text or shorter sequences")
    }
    self.tokens = tokens[..<(tokens.count / length * length)].map { Int32($0) }
    self.length = length
  }

  /// The last share of a text apart, whole rows on both sides. Throws `DataError` for a text that is too short.
  public static func split(_ tokens: [Int], length: Int, heldOut share: Double = 0.1) throws -> (train: Self, heldOut: Self) {
    let rows = length > 0 ? tokens.count / length : 0
    guard rows >= 2 else {
      throw DataError(
        "\(tokens.count) tokens make \(rows) sequences of \(length), and one more is needed to be held out: give more text or shorter sequences"
      )
    }
    let kept = min(rows - 1, max(1, Int((Double(rows) * (1 - share)).rounded())))
    return (try Self(Array(tokens[..<(kept * length)]), length: length), try Self(Array(tokens[(kept * length)...]), length: length))
  }

  /// The last share of the rows apart, at least one; of a single row both.
  public func settingAside(_ share: Double) throws -> (rest: Self, aside: Self) {
    guard count >= 2 else { return (self, self) }
    let kept = min(count - 1, max(1, Int((Double(count) * (1 - share)).rounded())))
    let all = tokens.map(Int.init)
    return (try Self(Array(all[..<(kept * length)]), length: length), try Self(Array(all[(kept * length)...]), length: length))
  }

  /// Rows as [count, length] int64.
  public func batch(_ rows: some Collection<Int>) -> Tensor {
    Tensor(rows.flatMap { tokens[($0 * length)..<(($0 + 1) * length)].map(Int.init) }, [rows.count, length])
  }

  /// Consecutive batches of the first `limit` rows.
  public func batches(size: Int, limit: Int = .max) -> [Tensor] {
    let rows = min(count, limit)
    return stride(from: 0, to: rows, by: size).map { batch($0..<min(rows, $0 + size)) }
  }
}
