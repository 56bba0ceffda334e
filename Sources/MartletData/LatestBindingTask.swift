/// Keys that are bound again and again: what a memory that replaces can do and one that only adds can't.
///
/// Pairs of a key and a value, each drawn at random, the value never the key's last one. At a key that was seen before the target
/// is the value it was bound to most recently, −100 elsewhere. Ids: keys 0..<keys, then the values.
///
/// Examples are functions of (seed, split, index), made when asked for.
public final class LatestBindingTask: IndexedTask {
  public let name = "latest_binding"
  public let summary: String
  public let inputKind: InputKind
  public let objective: TaskObjective
  public let length: Int
  public let order: BatchOrder
  public let keys: Int
  public let values: Int

  private let counts: SplitCounts
  private let seed: UInt64

  /// - Parameter pairs: of a key and a value; the sequence is twice as long.
  /// - Throws: `DataError` for sizes without a question.
  public init(
    pairs: Int = 32, keys: Int = 8, values: Int = 16, counts: SplitCounts = SplitCounts(train: 20000, validation: 500, test: 500),
    seed: UInt64 = 0
  ) throws {
    guard pairs > keys, keys >= 1, values >= 2 else {
      throw DataError("latest bindings need keys >= 1, more pairs than keys and values >= 2, not \(keys), \(pairs), \(values)")
    }
    length = 2 * pairs
    self.keys = keys
    self.values = values
    self.counts = try counts.checked()
    self.seed = seed
    order = BatchOrder(count: counts.train)
    inputKind = .tokens(vocabulary: keys + values, padding: nil)
    objective = .tokens(vocabulary: keys + values)
    summary =
      "Latest bindings: the value a recurring key was last bound to (\(pairs) pairs, \(keys) keys, \(values) values), length \(length); "
      + "\(counts.train)/\(counts.validation)/\(counts.test) generated, seed \(seed)"
  }

  public func count(_ split: DataSplit) -> Int { counts[split] }

  /// Inputs and targets of one example, [length] each.
  public func example(_ split: DataSplit, _ index: Int) -> (inputs: [Int64], targets: [Int64]) {
    var random = SeededRandom(seed: seed, split: split, index: index)
    var inputs: [Int64] = []
    var targets: [Int64] = []
    var latest = [Int?](repeating: nil, count: keys)
    for _ in 0..<length / 2 {
      let key = random.integer(below: keys)
      // With one of the other values, counted from the last.
      let value = latest[key].map { ($0 + 1 + random.integer(below: values - 1)) % values } ?? random.integer(below: values)
      inputs += [Int64(key), Int64(keys + value)]
      targets += [latest[key].map { Int64(keys + $0) } ?? -100, -100]
      latest[key] = value
    }
    return (inputs, targets)
  }

  public func batch(_ split: DataSplit, _ indices: [Int]) -> Batch { Batch(examples: indices.map { example(split, $0) }, length: length) }
}
