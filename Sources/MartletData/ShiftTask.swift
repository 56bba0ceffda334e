/// Shift by k: at each position the token that stood k positions before, of a sequence of random tokens. What a mixer has to know is
/// one distance, whatever stands there.
///
/// Targets are −100 at the first k positions. Examples are functions of (seed, split, index), made when asked for.
public final class ShiftTask: IndexedTask {
  public let name = "shift"
  public let summary: String
  public let inputKind: InputKind
  public let objective: TaskObjective
  public let length: Int
  public let order: BatchOrder
  public let distance: Int
  public let symbols: Int

  private let counts: SplitCounts
  private let seed: UInt64

  /// - Throws: `DataError` for sizes without a question.
  public init(
    length: Int = 64, distance: Int = 7, symbols: Int = 16,
    counts: SplitCounts = SplitCounts(train: 20000, validation: 500, test: 500), seed: UInt64 = 0
  ) throws {
    guard symbols >= 2, distance >= 0, length > distance else {
      throw DataError("shift needs symbols >= 2 and 0 <= distance < length, not \(symbols), \(distance), \(length)")
    }
    self.length = length
    self.distance = distance
    self.symbols = symbols
    self.counts = try counts.checked()
    self.seed = seed
    order = BatchOrder(count: counts.train)
    inputKind = .tokens(vocabulary: symbols, padding: nil)
    objective = .tokens(vocabulary: symbols)
    summary =
      "Shift: the token \(distance) positions before, of \(symbols) random ones, length \(length); "
      + "\(counts.train)/\(counts.validation)/\(counts.test) generated, seed \(seed)"
  }

  public func count(_ split: DataSplit) -> Int { counts[split] }

  /// Inputs and targets of one example, [length] each.
  public func example(_ split: DataSplit, _ index: Int) -> (inputs: [Int64], targets: [Int64]) {
    var random = SeededRandom(seed: seed, split: split, index: index)
    let inputs = (0..<length).map { _ in Int64(random.integer(below: symbols)) }
    return (inputs, [Int64](repeating: -100, count: distance) + inputs.dropLast(distance))
  }

  public func batch(_ split: DataSplit, _ indices: [Int]) -> Batch { Batch(examples: indices.map { example(split, $0) }, length: length) }
}
