import Foundation

/// Which of eight frequencies a noisy sine has: x_t = sin(ω_c t + φ) + noise · N(0, 1), ω_c = 0.10 + 0.02 c radians a step,
/// φ uniform on the circle. No window shorter than many periods resolves the classes.
///
/// Examples are functions of (seed, split, index), made when asked for.
public final class NoisyFrequencyTask: IndexedTask {
  public let name = "frequency"
  public let summary: String
  public let inputKind = InputKind.continuous(channels: 1)
  public let objective: TaskObjective
  public let length: Int
  public let order: BatchOrder
  public let classes: Int
  public let noise: Double

  private let counts: SplitCounts
  private let seed: UInt64

  /// - Parameter noise: standard deviation of the noise; the sine has amplitude 1.
  /// - Throws: `DataError` for sizes out of range.
  public init(
    length: Int = 512, classes: Int = 8, noise: Double = 1,
    counts: SplitCounts = SplitCounts(train: 20000, validation: 500, test: 500), seed: UInt64 = 0
  ) throws {
    guard length >= 1, classes >= 2, noise >= 0, noise.isFinite else {
      throw DataError("the noisy frequency needs length >= 1, classes >= 2, noise >= 0, not \(length), \(classes), \(noise)")
    }
    // Above π radians a step a frequency can't be told from a lower one.
    guard 0.10 + 0.02 * Double(classes - 1) < Double.pi else { throw DataError("\(classes) frequencies don't fit below π; at most 152 do") }
    self.length = length
    self.classes = classes
    self.noise = noise
    self.counts = try counts.checked()
    self.seed = seed
    order = BatchOrder(count: counts.train)
    objective = .classification(classes: classes)
    summary =
      "Noisy frequency: which of \(classes) frequencies a sine of \(length) samples in noise \(noise) has; "
      + "\(counts.train)/\(counts.validation)/\(counts.test) generated, seed \(seed)"
  }

  public func count(_ split: DataSplit) -> Int { counts[split] }

  /// Samples [length] and class of one example.
  public func example(_ split: DataSplit, _ index: Int) -> (samples: [Float], class: Int) {
    var random = SeededRandom(seed: seed, split: split, index: index)
    let number = random.integer(below: classes)
    let frequency = 0.10 + 0.02 * Double(number)
    let phase = random.uniform(0, 2 * Double.pi)
    return ((0..<length).map { Float(sin(frequency * Double($0) + phase) + noise * random.normal()) }, number)
  }

  public func batch(_ split: DataSplit, _ indices: [Int]) -> Batch {
    let examples = indices.map { example(split, $0) }
    return Batch(
      inputs: Tensor(examples.flatMap(\.samples), [indices.count, length, 1]),
      targets: Tensor(examples.map { Int64($0.class) }, [indices.count]))
  }
}
