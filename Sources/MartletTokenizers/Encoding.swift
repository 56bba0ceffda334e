/// A text as tokens.
public struct Encoding: Sendable {
  /// The tokens' ids.
  public private(set) var ids: [Int32]
  /// Where each token comes from, in bytes of the text given (of the second text for its tokens); special and padding tokens have 0..<0.
  /// Empty unless offsets were asked for.
  public private(set) var offsets: [Range<Int>]

  enum Kind: UInt8 { case text, special, padding }
  struct Run {
    var count: Int
    var typeId: Int32
    var kind: Kind
    var text: Int8  // 0 or 1; -1 for special tokens and padding
  }
  private var runs: [Run]
  private let tokenizer: Tokenizer.Core

  init(ids: [Int32], offsets: [Range<Int>], runs: [Run], tokenizer: Tokenizer.Core) {
    self.ids = ids
    self.offsets = offsets
    self.runs = runs
    self.tokenizer = tokenizer
  }

  public var count: Int { ids.count }

  private func spread<T>(_ value: (Run) -> T) -> [T] {
    var result: [T] = []
    result.reserveCapacity(ids.count)
    for run in runs { result.append(contentsOf: repeatElement(value(run), count: run.count)) }
    return result
  }

  /// Which text of a pair each token belongs to, as the model is told (BERT's token types).
  public var typeIds: [Int32] { spread(\.typeId) }
  /// 1 for tokens, 0 for padding.
  public var attentionMask: [Int32] { spread { $0.kind == .padding ? 0 : 1 } }
  /// 1 for tokens that aren't from the text.
  public var specialTokensMask: [Int32] { spread { $0.kind == .text ? 0 : 1 } }
  /// 0 or 1 for tokens of the first and second text, nil for the others.
  public var sequenceIds: [Int?] { spread { $0.text < 0 ? nil : Int($0.text) } }
  /// The tokens as the vocabulary spells them.
  public var tokens: [String] { ids.map { tokenizer.token(of: Int($0)) ?? "" } }

  /// Adds padding up to `length` tokens; a longer encoding stays.
  mutating func pad(to length: Int, _ padding: Padding) {
    guard length > ids.count else { return }
    let extra = length - ids.count
    let run = Run(count: extra, typeId: Int32(padding.typeId), kind: .padding, text: -1)
    let padIds = repeatElement(Int32(padding.id), count: extra)
    switch padding.direction {
    case .right:
      ids.append(contentsOf: padIds)
      runs.append(run)
      if !offsets.isEmpty { offsets.append(contentsOf: repeatElement(0..<0, count: extra)) }
    case .left:
      ids.insert(contentsOf: padIds, at: 0)
      runs.insert(run, at: 0)
      if !offsets.isEmpty { offsets.insert(contentsOf: repeatElement(0..<0, count: extra), at: 0) }
    }
  }
}

/// Cuts encodings that are too long.
public struct Truncation: Sendable, Equatable {
  public enum Strategy: String, Sendable { case longestFirst = "LongestFirst", onlyFirst = "OnlyFirst", onlySecond = "OnlySecond" }
  public enum Direction: String, Sendable { case left = "Left", right = "Right" }

  /// Tokens left, special ones included.
  public var maximumLength: Int
  /// Which text of a pair is cut.
  public var strategy: Strategy
  /// Which end is cut off.
  public var direction: Direction
  /// The overlap of overflowing parts. Kept for writing the file again: only the first part is made.
  public var stride: Int

  public init(maximumLength: Int, strategy: Strategy = .longestFirst, direction: Direction = .right, stride: Int = 0) {
    self.maximumLength = maximumLength
    self.strategy = strategy
    self.direction = direction
    self.stride = stride
  }

  /// How many tokens of each text stay, of `first` and `second`, when `limit` are allowed.
  /// Throws ``TokenizationError`` when the strategy can't reach that.
  func kept(first: Int, second: Int?, limit: Int) throws -> (Int, Int) {
    let total = first + (second ?? 0)
    if limit == 0 { return (0, 0) }
    if total <= limit { return (first, second ?? 0) }
    switch strategy {
    case .longestFirst:
      guard let second else { return (limit, 0) }
      var shorter = min(first, second)
      var longer = shorter > limit ? shorter : max(shorter, limit - shorter)
      if shorter + longer > limit {
        shorter = limit / 2
        longer = shorter + limit % 2
      }
      return first > second ? (min(longer, first), min(shorter, second)) : (min(shorter, first), min(longer, second))
    case .onlyFirst, .onlySecond:
      let target = strategy == .onlyFirst ? first : second
      guard let target else { throw TokenizationError("truncation is set to the second text, and there is none") }
      let left = target - (total - limit)
      guard left > 0 else {
        throw TokenizationError("the text is too short to be truncated so that all fits into \(maximumLength) tokens")
      }
      return strategy == .onlyFirst ? (left, second ?? 0) : (first, left)
    }
  }
}

/// Makes encodings equally long.
public struct Padding: Sendable, Equatable {
  public enum Strategy: Sendable, Equatable {
    /// As the longest of the batch.
    case longest
    case fixed(Int)
  }
  public var strategy: Strategy
  public var direction: Truncation.Direction
  public var multiple: Int?
  public var id: Int
  public var typeId: Int
  public var token: String

  public init(
    strategy: Strategy = .longest, direction: Truncation.Direction = .right, multiple: Int? = nil, id: Int = 0, typeId: Int = 0,
    token: String = "[PAD]"
  ) {
    self.strategy = strategy
    self.direction = direction
    self.multiple = multiple
    self.id = id
    self.typeId = typeId
    self.token = token
  }

  func length(longest: Int) -> Int {
    var length = if case .fixed(let length) = strategy { length } else { longest }
    if let multiple, multiple > 0, length % multiple > 0 { length += multiple - length % multiple }
    return length
  }
}
