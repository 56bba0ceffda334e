/// The language of ListOps (Nangia and Bowman 2018): nested lists of digits under MIN, MAX, MED and SM (sum modulo 10).
///
/// An expression is a sequence of ids in reading order without parentheses, `[MAX 2 7 ]`: one byte a token.
public enum ListOps {
  /// Padding 0, digits 1...10, `[MIN` 11, `[MAX` 12, `[MED` 13, `[SM` 14, `]` 15, unknown 16 (never produced here; the
  /// seventeenth id of the Long Range Arena's vocabulary).
  public static let vocabulary = 17
  public static let padding = 0

  static let firstOperator: UInt8 = 11
  static let close: UInt8 = 15

  private static let symbols = ["", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "[MIN", "[MAX", "[MED", "[SM", "]"]
  private static let ids: [String: UInt8] = {
    var ids = Dictionary(uniqueKeysWithValues: symbols.enumerated().dropFirst().map { ($1, UInt8($0)) })
    ids["X"] = close  // what the reference reader renames `]` to
    return ids
  }()

  /// One operator that is still open.
  private struct Frame {
    let operation: UInt8
    let start: Int
  }

  /// The value, 0...9. MED of an even number of arguments is the mean of the two middle ones, truncated.
  ///
  /// Throws `DataError` when the ids aren't one whole expression.
  public static func evaluate(_ tokens: some Sequence<UInt8>) throws -> Int {
    var frames: [Frame] = []
    var values: [Int] = []
    for token in tokens {
      if frames.isEmpty && !values.isEmpty { throw DataError("something follows the end of the expression") }
      switch token {
      case 1...10: values.append(Int(token) - 1)
      case 11...14: frames.append(Frame(operation: token, start: values.count))
      case close:
        guard let frame = frames.popLast() else { throw DataError("a ] closes nothing") }
        guard values.count > frame.start else { throw DataError("\(symbols[Int(frame.operation)]) has no arguments") }
        let value = apply(frame.operation, values[frame.start...])
        values.removeSubrange(frame.start...)
        values.append(value)
      default: throw DataError("the id \(token) is no symbol of ListOps")
      }
    }
    guard frames.isEmpty else { throw DataError("\(frames.count) lists are not closed") }
    guard let value = values.first else { throw DataError("the expression is empty") }
    return value
  }

  private static func apply(_ operation: UInt8, _ values: ArraySlice<Int>) -> Int {
    switch operation {
    case 11: return values.min()!
    case 12: return values.max()!
    case 13:
      let sorted = values.sorted()
      let middle = sorted.count / 2
      return sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
    default: return values.reduce(0, +) % 10
    }
  }

  /// Levels of nesting; a digit alone has depth 1.
  public static func depth(_ tokens: some Sequence<UInt8>) -> Int {
    var open = 0
    var deepest = 0
    for token in tokens {
      if token == close { open -= 1 } else { deepest = max(deepest, open + 1) }
      if (firstOperator..<close).contains(token) { open += 1 }
    }
    return deepest
  }

  /// The written form of the released files: every application in parentheses, nested to the left,
  /// `( ( ( [MAX 2 ) 7 ) ] )`. The ids must be one whole expression.
  public static func write(_ tokens: some Collection<UInt8>) -> String {
    // An operator opens one parenthesis for each of its arguments and one for its end.
    var openings: [Int] = []
    var frames: [Int] = []
    for token in tokens {
      if token == close {
        frames.removeLast()
      } else if let parent = frames.last {
        openings[parent] += 1
      }
      if token >= firstOperator && token < close {
        frames.append(openings.count)
        openings.append(1)
      }
    }
    var text = ""
    var next = 0
    var open = 0
    for token in tokens {
      if !text.isEmpty { text += " " }
      if token >= firstOperator && token < close {
        for _ in 0..<openings[next] { text += "( " }
        next += 1
        text += symbols[Int(token)]
        open += 1
        continue
      }
      text += symbols[Int(token)]
      if token == close {
        text += " )"
        open -= 1
      }
      if open > 0 { text += " )" }
    }
    return text
  }

  /// Reads the written form (parentheses are dropped, `X` is another spelling of `]`).
  ///
  /// Throws `DataError` for a symbol outside the language and for parentheses that don't match.
  public static func parse(_ text: String) throws -> [UInt8] { try parse(text.utf8) }

  static func parse(_ text: some Collection<UInt8>) throws -> [UInt8] {
    var tokens: [UInt8] = []
    var open = 0
    for word in text.split(separator: UInt8(ascii: " ")) {
      if word.count == 1, let byte = word.first {
        switch byte {
        case UInt8(ascii: "("): open += 1
        case UInt8(ascii: ")"):
          open -= 1
          if open < 0 { throw DataError("a ) closes nothing") }
        case UInt8(ascii: "0")...UInt8(ascii: "9"): tokens.append(byte - UInt8(ascii: "0") + 1)
        case UInt8(ascii: "]"), UInt8(ascii: "X"): tokens.append(close)
        default: throw unknown(word)
        }
      } else if let id = ids[String(decoding: word, as: UTF8.self)] {
        tokens.append(id)
      } else {
        throw unknown(word)
      }
    }
    guard open == 0 else { throw DataError("\(open) parentheses are not closed") }
    return tokens
  }

  private static func unknown(_ word: some Collection<UInt8>) -> DataError {
    DataError(
      "“\(String(decoding: word.prefix(40), as: UTF8.self))” is no symbol of ListOps (digits, [MIN, [MAX, [MED, [SM, ], parentheses)")
  }
}

/// The tree generator of the Long Range Arena, with all its parameters.
///
/// A node at depth d is a digit with probability 3/4 (always, at `maxDepth`), else an operator with 2...`maxArguments` children at
/// depth d + 1. A tree is kept when `minLength` < tokens < `maxLength`, both exclusive, and when it was not drawn before.
public struct ListOpsGenerator: Equatable, Sendable, Codable {
  public var maxDepth: Int
  public var maxArguments: Int
  /// Exclusive.
  public var minLength: Int
  /// Exclusive.
  public var maxLength: Int
  public var seed: UInt64

  public init(maxDepth: Int = 10, maxArguments: Int = 10, minLength: Int = 500, maxLength: Int = 2000, seed: UInt64 = 0) {
    self.maxDepth = maxDepth
    self.maxArguments = maxArguments
    self.minLength = minLength
    self.maxLength = maxLength
    self.seed = seed
  }

  /// 20 to 128 tokens, depth 5: seconds instead of hours for a comparison.
  public static func small(seed: UInt64 = 0) -> ListOpsGenerator {
    ListOpsGenerator(maxDepth: 5, maxArguments: 10, minLength: 19, maxLength: 129, seed: seed)
  }

  /// 6 to 39 tokens, depth 4, at most 5 arguments.
  public static func tiny(seed: UInt64 = 0) -> ListOpsGenerator {
    ListOpsGenerator(maxDepth: 4, maxArguments: 5, minLength: 5, maxLength: 40, seed: seed)
  }

  /// Draws tree number `attempt`; false when its length is outside the bounds. Every attempt has its own random stream, so a
  /// tree that grows too long is given up at once without changing those that follow.
  func draw(attempt: UInt64, into tokens: inout [UInt8]) -> Bool {
    tokens.removeAll(keepingCapacity: true)
    var random = SeededRandom(seed: seed, stream: attempt)
    return grow(depth: 1, &tokens, &random) && tokens.count > minLength && tokens.count < maxLength
  }

  private func grow(depth: Int, _ tokens: inout [UInt8], _ random: inout SeededRandom) -> Bool {
    guard tokens.count < maxLength else { return false }
    guard depth < maxDepth && random.uniform() <= 0.25 else {
      tokens.append(UInt8(1 + random.integer(below: 10)))
      return true
    }
    let place = tokens.count
    tokens.append(ListOps.firstOperator)
    for _ in 0..<2 + random.integer(below: maxArguments - 1) {
      guard grow(depth: depth + 1, &tokens, &random) else { return false }
    }
    tokens[place] += UInt8(random.integer(below: 4))
    tokens.append(ListOps.close)
    return true
  }

  /// The first `count` different trees within the bounds, in the order of their drawing.
  ///
  /// Throws `DataError` for senseless parameters, and when new trees have become too rare for the bounds.
  func generate(_ count: Int, patience: UInt64 = 2_000_000) throws -> ByteSequences {
    guard maxDepth >= 1, maxArguments >= 2, minLength >= 0, maxLength > minLength + 1 else {
      throw DataError(
        "ListOps needs depth >= 1, arguments >= 2 and a length between its bounds: depth \(maxDepth), arguments \(maxArguments), "
          + "\(minLength) < length < \(maxLength)")
    }
    var trees = ByteSequences()
    var numbers: [Int: [Int]] = [:]  // hash -> trees with it: a set without a second copy of every tree
    var tokens: [UInt8] = []
    var attempt: UInt64 = 0
    var lastNew: UInt64 = 0
    while trees.count < count {
      if draw(attempt: attempt, into: &tokens) {
        let hash = tokens.hashValue
        if !(numbers[hash]?.contains { trees[$0].elementsEqual(tokens) } ?? false) {
          numbers[hash, default: []].append(trees.count)
          trees.append(tokens)
          lastNew = attempt
        }
      }
      attempt += 1
      guard attempt - lastNew < patience else {
        throw DataError(
          "only \(trees.count) of \(count) different ListOps trees were found with depth <= \(maxDepth), arguments <= \(maxArguments) "
            + "and \(minLength) < length < \(maxLength): none among the last \(patience) drawn; widen the bounds or ask for fewer")
      }
    }
    return trees
  }
}
