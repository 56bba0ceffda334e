import Foundation

/// Classifies 8×8 digits read as 64 numbers 0...1, row after row: the smallest image task, for experiments of seconds.
///
/// Inputs [batch, 64, 1] float32, ten classes.
public final class DigitsTask: IndexedTask {
  public let name = "digits"
  public let summary: String
  public let inputKind = InputKind.continuous(channels: 1)
  public let objective = TaskObjective.classification(classes: 10)
  public let length = 64
  public let order: BatchOrder

  private let counts: SplitCounts
  /// [total, 64] and [total]; train, validation and test one after the other.
  private let values: [Float]
  private let labels: [Int64]

  /// Images drawn by ``SyntheticDigits``: not handwriting.
  public convenience init(
    _ digits: SyntheticDigits = SyntheticDigits(), counts: SplitCounts = SplitCounts(train: 200, validation: 500, test: 500)
  ) throws {
    var values: [Float] = []
    var labels: [Int64] = []
    for index in 0..<(try counts.checked().total) {
      let (levels, digit) = digits.image(index)
      values += levels.map { Float($0) / 16 }
      labels.append(Int64(digit))
    }
    self.init(counts: counts, values: values, labels: labels, source: "drawn by a program (no handwriting), seed \(digits.seed)")
  }

  /// Handwritten digits from a folder with MNIST's IDX files, averaged over the cells of an 8×8 grid.
  ///
  /// All images of the folder (training and test files together) are shuffled by `seed`; the first ones become the splits, so that
  /// the test file alone is enough. Throws `DataError` for damaged files and for fewer images than `counts` asks for.
  public convenience init(
    directory: String, counts: SplitCounts = SplitCounts(train: 200, validation: 500, test: 500), seed: UInt64 = 0
  ) throws {
    let folder = try ImageFolder(path: directory)
    let sets = [folder.train, folder.test].compactMap { $0 }
    let available = sets.reduce(0) { $0 + $1.count }
    guard sets.allSatisfy({ $0.channels == 1 && ($0.labels.max() ?? 0) < 10 }) else {
      throw DataError(directory, "grey images of ten classes were expected")
    }
    let needed = try counts.checked().total
    guard available >= needed else { throw DataError(directory, "\(needed) images are needed, found \(available)") }
    var random = SeededRandom(seed: seed, stream: 0x6469_6769_7473)
    var values: [Float] = []
    var labels: [Int64] = []
    for number in random.permutation(available).prefix(needed) {
      let (set, index) = number < sets[0].count ? (sets[0], number) : (sets[1], number - sets[0].count)
      values += set.areaAverages(index, size: 8)
      labels.append(Int64(set.labels[index]))
    }
    self.init(counts: counts, values: values, labels: labels, source: "from \(directory), averaged to 8×8, seed \(seed)")
  }

  private init(counts: SplitCounts, values: [Float], labels: [Int64], source: String) {
    self.counts = counts
    self.values = values
    self.labels = labels
    order = BatchOrder(count: counts.train)
    summary = "Digits: ten classes from 8×8 pixels as 64 numbers; \(counts.train)/\(counts.validation)/\(counts.test) \(source)"
  }

  public func count(_ split: DataSplit) -> Int { counts[split] }

  public func batch(_ split: DataSplit, _ indices: [Int]) -> Batch {
    let first: Int
    switch split {
    case .train: first = 0
    case .validation: first = counts.train
    case .test: first = counts.train + counts.validation
    }
    return Batch(
      inputs: Tensor(indices.flatMap { values[(first + $0) * 64..<(first + $0 + 1) * 64] }, [indices.count, 64, 1]),
      targets: Tensor(indices.map { labels[first + $0] }, [indices.count]))
  }
}
