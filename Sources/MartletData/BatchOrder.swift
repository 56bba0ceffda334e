import Synchronization

/// Which examples a training step sees: each epoch is a shuffle of all examples determined by (seed, epoch), and epochs
/// follow one another without a gap, so a batch may hold the end of one and the start of the next.
public final class BatchOrder: Sendable {
  /// Number of examples.
  public let count: Int

  private struct Epoch: Sendable {
    let seed: UInt64
    let number: Int
    let order: [Int32]
  }
  /// The epochs last asked for: a function of (seed, epoch) all the same, kept only because consecutive steps share it.
  private let recent = Mutex<[Epoch]>([])

  public init(count: Int) {
    precondition(count >= 0 && count <= Int32.max, "\(count) examples can't be ordered")
    self.count = count
  }

  /// The examples of a training step, `size` indices below `count`.
  public func indices(step: Int, size: Int, seed: UInt64) -> [Int] {
    precondition(count > 0, "there are no examples to order")
    precondition(step >= 0 && size > 0, "step \(step) or batch size \(size) is out of range")
    var result: [Int] = []
    result.reserveCapacity(size)
    var position = step * size
    while result.count < size {
      let (epoch, start) = position.quotientAndRemainder(dividingBy: count)
      let taken = min(size - result.count, count - start)
      let order = self.order(epoch: epoch, seed: seed)
      for example in order[start..<start + taken] { result.append(Int(example)) }
      position += taken
    }
    return result
  }

  private func order(epoch: Int, seed: UInt64) -> [Int32] {
    if let known = recent.withLock({ $0.first { $0.number == epoch && $0.seed == seed } }) { return known.order }
    var order = Array(0..<Int32(count))
    var random = SeededRandom(seed: seed, stream: UInt64(epoch))
    random.shuffle(&order)
    recent.withLock {
      if $0.count == 4 { $0.removeFirst() }
      $0.append(Epoch(seed: seed, number: epoch, order: order))
    }
    return order
  }
}

/// A task whose examples are numbered within their split: it only says how to make a batch of given examples.
public protocol IndexedTask: LearningTask {
  /// The order of the training examples.
  var order: BatchOrder { get }

  /// The given examples of a split, in the given order.
  func batch(_ split: DataSplit, _ indices: [Int]) throws -> Batch
}

extension IndexedTask {
  public func trainingBatch(step: Int, size: Int, seed: UInt64) throws -> Batch {
    guard order.count > 0 else { throw DataError("the task \(name) has no training examples") }
    return try batch(.train, order.indices(step: step, size: size, seed: seed))
  }

  public func evaluationBatch(_ split: DataSplit, index: Int, size: Int) throws -> Batch? {
    precondition(index >= 0 && size > 0, "batch \(index) of size \(size) is out of range")
    let total = count(split)
    let start = index * size
    return start < total ? try batch(split, Array(start..<min(total, start + size))) : nil
  }
}

/// Numbers of examples of the three splits.
public struct SplitCounts: Equatable, Sendable, Codable {
  public var train: Int
  public var validation: Int
  public var test: Int

  public init(train: Int, validation: Int, test: Int) {
    self.train = train
    self.validation = validation
    self.test = test
  }

  public subscript(split: DataSplit) -> Int {
    switch split {
    case .train: train
    case .validation: validation
    case .test: test
    }
  }

  public var total: Int { train + validation + test }

  func checked() throws -> SplitCounts {
    guard train > 0, validation >= 0, test >= 0 else {
      throw DataError("a task needs at least 1 training example and no negative counts, not \(train)/\(validation)/\(test)")
    }
    return self
  }
}

extension SeededRandom {
  /// The stream of one example of a generated task: different for every split and index.
  init(seed: UInt64, split: DataSplit, index: Int) {
    let part: UInt64
    switch split {
    case .train: part = 0
    case .validation: part = 1
    case .test: part = 2
    }
    self.init(seed: seed, stream: part << 60 | UInt64(index))
  }
}
