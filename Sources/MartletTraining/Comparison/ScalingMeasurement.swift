import Foundation

/// Time and memory of a model against the length of one sequence, up to what fits.
public struct ScalingMeasurement {
  public var configuration: BackboneConfiguration
  public var objective: TaskObjective
  /// Bytes that may be used; beyond it a length is left out with a note.
  public var memoryLimit: Int
  /// Seconds that one training step may take.
  public var timeLimit: Double

  public init(
    configuration: BackboneConfiguration, objective: TaskObjective,
    memoryLimit: Int = Int(ProcessInfo.processInfo.physicalMemory / 2), timeLimit: Double = 30
  ) {
    self.configuration = configuration
    self.objective = objective
    self.memoryLimit = memoryLimit
    self.timeLimit = timeLimit
  }

  /// One point per length, in ascending order. Medians of at least three runs.
  public func measure(lengths: [Int], shouldInterrupt: () -> Bool = { false }) throws -> [ScalingPoint] {
    var points: [ScalingPoint] = []
    var measured: [(length: Int, trainSeconds: Double, bytes: Int)] = []
    for length in lengths.sorted() {
      if shouldInterrupt() { throw InterruptedError(step: 0) }
      // What the last two lengths foretell; before that, at worst quadratic growth.
      if let last = measured.last {
        let ratio = Double(length) / Double(last.length)
        func foretold(_ now: Double, _ before: Double?, _ shorter: Int?) -> Double {
          guard let before, let shorter, before > 0 else { return now * ratio * ratio }
          let exponent = min(2.2, max(1, log(now / before) / log(Double(last.length) / Double(shorter))))
          return now * pow(ratio, exponent)
        }
        let previous = measured.dropLast().last
        let bytes = foretold(Double(last.bytes), previous.map { Double($0.bytes) }, previous?.length)
        let seconds = foretold(last.trainSeconds, previous?.trainSeconds, previous?.length)
        if bytes > Double(memoryLimit) {
          points.append(
            ScalingPoint(length: length, note: "needs about \(Figure.bytes(bytes)), the limit is \(Figure.bytes(Double(memoryLimit)))"))
          continue
        }
        if seconds > timeLimit {
          points.append(
            ScalingPoint(length: length, note: "would take about \(Int(seconds)) s a training step, the limit is \(Int(timeLimit)) s"))
          continue
        }
      }
      let point = try measure(length)
      points.append(point.point)
      measured.append((length, point.point.trainSeconds ?? 0, point.trainBytes))
    }
    return points
  }

  private func measure(_ length: Int) throws -> (point: ScalingPoint, trainBytes: Int) {
    var c = configuration
    c.length = length
    let generator = RandomGenerator(seed: 1)
    let model = try TaskModel(c, objective: objective, generator: generator)
    let inputs: Tensor
    switch c.input {
    case .tokens(let vocabulary): inputs = Tensor.randomIntegers(below: vocabulary, [1, length], generator: generator)
    case .continuous(let channels): inputs = Tensor.randomNormal([1, length, channels], generator: generator)
    }
    let targets: Tensor
    switch objective {
    case .classification: targets = Tensor([0])
    case .tokens(let vocabulary): targets = Tensor.randomIntegers(below: vocabulary, [1, length], generator: generator)
    }
    let batch = Batch(inputs: inputs, targets: targets)
    func timed(_ body: () -> Void) -> Double {
      body()
      var times: [Double] = []
      while times.count < 3 || (times.reduce(0, +) < 0.2 && times.count < 15) {
        let start = ContinuousClock.now
        body()
        times.append((ContinuousClock.now - start).seconds)
        if times[0] > 2 { break }
      }
      return times.sorted()[times.count / 2]
    }
    func peak(_ body: () -> Void) -> Int {
      let before = MemoryUsage.tensorBytes
      MemoryUsage.resetPeak()
      body()
      return MemoryUsage.peakTensorBytes - before
    }
    model.eval()
    let forward = { withoutGradient { _ = model(batch.inputs) } }
    let seconds = timed(forward)
    let bytes = peak(forward)
    model.train()
    let training = {
      model.loss(batch).backward()
      model.zeroGradients()
    }
    let trainBytes = peak(training)
    let trainSeconds = timed(training)
    return (ScalingPoint(length: length, seconds: seconds, bytes: bytes, trainSeconds: trainSeconds), trainBytes)
  }
}
