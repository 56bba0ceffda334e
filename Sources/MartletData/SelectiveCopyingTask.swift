/// Selective copying (Gu and Dao, "Mamba", 2023, §3.1): items stand at random places among noise; at the end the model repeats
/// them in order. A fixed convolution can't do it, since the distances change from example to example.
///
/// Ids: 0 noise, 1...symbols the items, symbols + 1 the marker. Positions: `length` − items of noise and items, then one marker
/// for each item, whose target is that item; −100 elsewhere.
///
/// Examples are functions of (seed, split, index), made when asked for.
public final class SelectiveCopyingTask: IndexedTask {
  public let name = "copying"
  public let summary: String
  public let inputKind: InputKind
  public let objective: TaskObjective
  public let length: Int
  public let order: BatchOrder
  public let items: Int
  public let symbols: Int

  private let counts: SplitCounts
  private let seed: UInt64

  /// The paper's sizes are length 4096 (here with the answer), 16 items, 14 symbols (16 ids with noise and marker).
  ///
  /// Throws `DataError` when the items don't fit.
  public init(
    length: Int = 256, items: Int = 16, symbols: Int = 14,
    counts: SplitCounts = SplitCounts(train: 20000, validation: 500, test: 500), seed: UInt64 = 0
  ) throws {
    guard items >= 1, symbols >= 2, length >= 2 * items else {
      throw DataError("selective copying needs items >= 1, symbols >= 2 and length >= 2·items, not \(items), \(symbols), \(length)")
    }
    self.length = length
    self.items = items
    self.symbols = symbols
    self.counts = try counts.checked()
    self.seed = seed
    order = BatchOrder(count: counts.train)
    inputKind = .tokens(vocabulary: symbols + 2, padding: nil)
    objective = .tokens(vocabulary: symbols + 2)
    summary =
      "Selective copying: \(items) items of \(symbols) kinds among noise, repeated in order at the end of \(length) positions; "
      + "\(counts.train)/\(counts.validation)/\(counts.test) generated, seed \(seed)"
  }

  public func count(_ split: DataSplit) -> Int { counts[split] }

  /// Inputs and targets of one example, [length] each.
  public func example(_ split: DataSplit, _ index: Int) -> (inputs: [Int64], targets: [Int64]) {
    var random = SeededRandom(seed: seed, split: split, index: index)
    var inputs = [Int64](repeating: 0, count: length)
    var targets = [Int64](repeating: -100, count: length)
    let end = length - items
    for (item, place) in random.sample(items, below: end).sorted().enumerated() {
      let symbol = Int64(1 + random.integer(below: symbols))
      inputs[place] = symbol
      inputs[end + item] = Int64(symbols + 1)
      targets[end + item] = symbol
    }
    return (inputs, targets)
  }

  public func batch(_ split: DataSplit, _ indices: [Int]) -> Batch { Batch(examples: indices.map { example(split, $0) }, length: length) }
}
