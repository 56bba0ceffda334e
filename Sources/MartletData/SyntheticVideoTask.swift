/// Videos of noise in which two short events happen: what most tokens hold is of no use, and which tokens do can't be known beforehand.
///
/// `frames` frames of `places` tokens with `channels` channels, noise of deviation 0.5. In one frame of the first half, `draws` draws of a
/// place (with repetition) are overwritten by event A: channel 0 is 3, channel 1 or 2 is 3 by its type, the others 0, with noise of
/// deviation 0.3; likewise in the second half by event B, channel 3 or 4. The class is (type of A, type of B), one of four.
///
/// Inputs [batch, frames · places, channels] float32. Examples are functions of (seed, split, index), made when asked for.
public final class SyntheticVideoTask: IndexedTask {
  public let name = "video"
  public let summary: String
  public let inputKind: InputKind
  public let objective = TaskObjective.classification(classes: 4)
  public let length: Int
  public let order: BatchOrder
  public let frames: Int
  public let places: Int
  public let channels: Int
  public let draws: Int

  private let counts: SplitCounts
  private let seed: UInt64

  /// - Throws: `DataError` for sizes without room for the events.
  public init(
    frames: Int = 16, places: Int = 16, channels: Int = 12, draws: Int = 8,
    counts: SplitCounts = SplitCounts(train: 20000, validation: 500, test: 500), seed: UInt64 = 0
  ) throws {
    guard frames >= 2, places >= 1, channels >= 5, draws >= 1 else {
      throw DataError(
        "the videos need frames >= 2, places >= 1, channels >= 5 and draws >= 1, not \(frames), \(places), \(channels), \(draws)")
    }
    self.frames = frames
    self.places = places
    self.channels = channels
    self.draws = draws
    self.counts = try counts.checked()
    self.seed = seed
    length = frames * places
    order = BatchOrder(count: counts.train)
    inputKind = .continuous(channels: channels)
    summary =
      "Synthetic video: the types of two events in \(frames) frames of \(places) noisy tokens with \(channels) channels; "
      + "\(counts.train)/\(counts.validation)/\(counts.test) generated, seed \(seed)"
  }

  public func count(_ split: DataSplit) -> Int { counts[split] }

  /// One video: values [frames · places · channels], its class, and the tokens of its events in order.
  public func example(_ split: DataSplit, _ index: Int) -> (values: [Float], class: Int, events: [Int]) {
    var random = SeededRandom(seed: seed, split: split, index: index)
    var values = (0..<length * channels).map { _ in Float(0.5 * random.normal()) }
    var events = Set<Int>()
    var label = 0
    for half in 0..<2 {
      let first = half * (frames / 2)
      let frame = first + random.integer(below: half == 0 ? frames / 2 : frames - frames / 2)
      let type = random.integer(below: 2)
      label = 2 * label + type
      for _ in 0..<draws {
        let token = frame * places + random.integer(below: places)
        events.insert(token)
        for channel in 0..<channels {
          let mean = channel == 0 || channel == 1 + 2 * half + type ? 3.0 : 0
          values[token * channels + channel] = Float(mean + 0.3 * random.normal())
        }
      }
    }
    return (values, label, events.sorted())
  }

  public func batch(_ split: DataSplit, _ indices: [Int]) -> Batch {
    let examples = indices.map { example(split, $0) }
    return Batch(
      inputs: Tensor(examples.flatMap(\.values), [indices.count, length, channels]),
      targets: Tensor(examples.map { Int64($0.class) }, [indices.count]))
  }
}
