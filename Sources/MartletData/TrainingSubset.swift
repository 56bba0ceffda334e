/// A task with fewer training examples: how a model does when labels are scarce. Smaller subsets of one task and seed lie within larger
/// ones; validation and test stay whole.
public final class TrainingSubset: IndexedTask {
  public let whole: any IndexedTask
  public let order: BatchOrder
  private let chosen: [Int]

  public var name: String { whole.name }
  public var summary: String { "\(whole.summary); \(chosen.count) of \(whole.count(.train)) training examples" }
  public var inputKind: InputKind { whole.inputKind }
  public var objective: TaskObjective { whole.objective }
  public var length: Int { whole.length }

  /// - Parameter fraction: of the training examples, in 0...1; at least one is taken.
  /// - Throws: `DataError` for a fraction out of range and for a task without training examples.
  public init(_ whole: any IndexedTask, fraction: Double, seed: UInt64 = 0) throws {
    let count = whole.count(.train)
    guard fraction > 0, fraction <= 1, count > 0 else {
      throw DataError("a subset needs a fraction above 0 and at most 1 of some training examples, not \(fraction) of \(count)")
    }
    self.whole = whole
    var random = SeededRandom(seed: seed, stream: 0x7375_6273_6574)
    chosen = Array(random.permutation(count).prefix(max(1, Int((Double(count) * fraction).rounded()))))
    order = BatchOrder(count: chosen.count)
  }

  public func count(_ split: DataSplit) -> Int { split == .train ? chosen.count : whole.count(split) }

  public func batch(_ split: DataSplit, _ indices: [Int]) throws -> Batch {
    try whole.batch(split, split == .train ? indices.map { chosen[$0] } : indices)
  }
}
