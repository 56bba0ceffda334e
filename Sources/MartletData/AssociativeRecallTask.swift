import Foundation

/// Multi-query associative recall (Arora et al., "Zoology", 2023): key–value pairs first, then the keys come back in any order
/// among noise, and each time the model must name the key's value.
///
/// Ids: 0 is never a key, keys are 1..<vocabulary/2, values vocabulary/2..<vocabulary. The first 2 · pairs positions hold the
/// pairs, key value key value …, all keys different and all values different. Each key is asked once, 2 · gap positions behind
/// the pairs; the gaps follow the power law p(g) ∝ (g + 1)^(power − 1), drawn without replacement. All other positions hold
/// random ids. The target at the position of an asked key is its value, −100 elsewhere.
///
/// Examples are functions of (seed, split, index), made when asked for.
public final class AssociativeRecallTask: IndexedTask {
  public let name = "recall"
  public let summary: String
  public let inputKind: InputKind
  public let objective: TaskObjective
  public let length: Int
  public let order: BatchOrder
  public let vocabulary: Int
  public let pairs: Int

  private let counts: SplitCounts
  private let seed: UInt64
  /// 1 / p(g) for every gap, unnormalised.
  private let rarity: [Double]

  /// - Parameters:
  ///   - length: positions; even, at least 4 · pairs.
  ///   - vocabulary: at least 2 · pairs + 2.
  ///   - power: 0.01 in the paper; near 0 favours short gaps, 1 makes all gaps equally likely.
  /// - Throws: `DataError` for sizes that leave no room.
  public init(
    length: Int = 64, vocabulary: Int = 64, pairs: Int = 8, power: Double = 0.01,
    counts: SplitCounts = SplitCounts(train: 20000, validation: 500, test: 500), seed: UInt64 = 0
  ) throws {
    guard pairs >= 1, length % 2 == 0, length >= 4 * pairs else {
      throw DataError("associative recall of \(pairs) pairs needs an even length of at least \(4 * max(1, pairs)), not \(length)")
    }
    guard vocabulary / 2 - 1 >= pairs else {
      throw DataError("associative recall of \(pairs) pairs needs a vocabulary of at least \(2 * pairs + 2), not \(vocabulary)")
    }
    guard power > 0, power.isFinite else { throw DataError("the power of the gaps must be positive, not \(power)") }
    self.length = length
    self.vocabulary = vocabulary
    self.pairs = pairs
    self.counts = try counts.checked()
    self.seed = seed
    order = BatchOrder(count: counts.train)
    rarity = (0..<(length - 2 * pairs) / 2).map { pow(Double($0 + 1), 1 - power) }
    inputKind = .tokens(vocabulary: vocabulary, padding: nil)
    objective = .tokens(vocabulary: vocabulary)
    summary =
      "Associative recall: the values of \(pairs) keys asked for among \(length) positions, vocabulary \(vocabulary); "
      + "\(counts.train)/\(counts.validation)/\(counts.test) generated, seed \(seed)"
  }

  public func count(_ split: DataSplit) -> Int { counts[split] }

  /// Inputs and targets of one example, [length] each.
  public func example(_ split: DataSplit, _ index: Int) -> (inputs: [Int64], targets: [Int64]) {
    var random = SeededRandom(seed: seed, split: split, index: index)
    let half = vocabulary / 2
    let keys = random.sample(pairs, below: half - 1).map { Int64($0 + 1) }
    let values = random.sample(pairs, below: vocabulary - half).map { Int64($0 + half) }
    // Successive draws without replacement are the first arrivals of exponential clocks with rates p(g).
    let arrivals = rarity.map { -log(1 - random.uniform()) * $0 }
    let gaps = arrivals.indices.sorted { arrivals[$0] < arrivals[$1] }.prefix(pairs)

    var inputs = (0..<length).map { _ in Int64(random.integer(below: vocabulary)) }
    var targets = [Int64](repeating: -100, count: length)
    for (pair, gap) in gaps.enumerated() {
      inputs[2 * pair] = keys[pair]
      inputs[2 * pair + 1] = values[pair]
      inputs[2 * pairs + 2 * gap] = keys[pair]
      targets[2 * pairs + 2 * gap] = values[pair]
    }
    return (inputs, targets)
  }

  public func batch(_ split: DataSplit, _ indices: [Int]) -> Batch { Batch(examples: indices.map { example(split, $0) }, length: length) }
}

extension Batch {
  /// Token inputs with a target at every position.
  init(examples: [(inputs: [Int64], targets: [Int64])], length: Int) {
    self.init(
      inputs: Tensor(examples.flatMap(\.inputs), [examples.count, length]),
      targets: Tensor(examples.flatMap(\.targets), [examples.count, length]))
  }
}
