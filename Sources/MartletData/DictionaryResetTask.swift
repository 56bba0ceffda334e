/// A dictionary that is forgotten now and then: what a memory with a data-dependent gate can do and one with fixed decay can't.
///
/// Steps of two tokens: a key and its value; or, always first and later with probability `resetRate`, two RESET tokens, after which
/// every key gets a new random value. At a key that was seen since the last reset the target is its value, −100 elsewhere.
/// Ids: keys 0..<keys, then the values, then RESET.
///
/// Examples are functions of (seed, split, index), made when asked for.
public final class DictionaryResetTask: IndexedTask {
  public let name = "dictionary"
  public let summary: String
  public let inputKind: InputKind
  public let objective: TaskObjective
  public let length: Int
  public let order: BatchOrder
  public let keys: Int
  public let values: Int
  public let resetRate: Double

  private let counts: SplitCounts
  private let seed: UInt64

  /// - Parameter steps: pairs of tokens; the sequence is twice as long.
  /// - Throws: `DataError` for sizes without a question.
  public init(
    steps: Int = 32, keys: Int = 4, values: Int = 8, resetRate: Double = 0.1,
    counts: SplitCounts = SplitCounts(train: 20000, validation: 500, test: 500), seed: UInt64 = 0
  ) throws {
    guard steps >= 3, keys >= 1, values >= 2, (0..<1).contains(resetRate) else {
      throw DataError(
        "the dictionary needs steps >= 3, keys >= 1, values >= 2 and a reset rate in 0..<1, not \(steps), \(keys), \(values), \(resetRate)")
    }
    length = 2 * steps
    self.keys = keys
    self.values = values
    self.resetRate = resetRate
    self.counts = try counts.checked()
    self.seed = seed
    order = BatchOrder(count: counts.train)
    inputKind = .tokens(vocabulary: keys + values + 1, padding: nil)
    objective = .tokens(vocabulary: keys + values + 1)
    summary =
      "Dictionary with resets: the value of a key seen since the last reset (\(keys) keys, \(values) values, reset rate \(resetRate)), length \(length); "
      + "\(counts.train)/\(counts.validation)/\(counts.test) generated, seed \(seed)"
  }

  /// The id of the RESET token.
  public var reset: Int { keys + values }

  public func count(_ split: DataSplit) -> Int { counts[split] }

  /// Inputs and targets of one example, [length] each.
  public func example(_ split: DataSplit, _ index: Int) -> (inputs: [Int64], targets: [Int64]) {
    var random = SeededRandom(seed: seed, split: split, index: index)
    var inputs: [Int64] = []
    var targets: [Int64] = []
    var value: [Int64] = []
    var seen: [Bool] = []
    for step in 0..<length / 2 {
      if step == 0 || random.uniform() < resetRate {
        value = (0..<keys).map { _ in Int64(keys + random.integer(below: values)) }
        seen = [Bool](repeating: false, count: keys)
        inputs += [Int64(reset), Int64(reset)]
        targets += [-100, -100]
      } else {
        let key = random.integer(below: keys)
        inputs += [Int64(key), value[key]]
        targets += [seen[key] ? value[key] : -100, -100]
        seen[key] = true
      }
    }
    return (inputs, targets)
  }

  public func batch(_ split: DataSplit, _ indices: [Int]) -> Batch { Batch(examples: indices.map { example(split, $0) }, length: length) }
}
