import Foundation

/// Forecasting of sums of two random sinusoids: the next `horizon` values after every one of `length`,
///
///     x_t = Σ_{k=1,2} A_k sin(ω_k t + φ_k) + noise · N(0, 1)
///
/// with frequencies ω uniform on 0.1...0.5 radians a step, amplitudes on 0.5...1.5 and phases on the circle, drawn anew for each series.
/// Two frequencies can be told apart only by a memory of some periods.
///
/// Series are functions of (seed, split, index), made when asked for.
public struct SinusoidSeries: Sendable {
  public let length: Int
  public let horizon: Int
  public let noise: Double
  private let seed: UInt64

  /// Throws `DataError` for sizes out of range.
  public init(length: Int = 64, horizon: Int = 8, noise: Double = 0.05, seed: UInt64 = 0) throws {
    guard length >= 1, horizon >= 1, noise >= 0, noise.isFinite else {
      throw DataError("sinusoid series need length >= 1, horizon >= 1 and noise >= 0, not \(length), \(horizon), \(noise)")
    }
    self.length = length
    self.horizon = horizon
    self.noise = noise
    self.seed = seed
  }

  /// The length + horizon values of one series.
  public func series(_ split: DataSplit, _ index: Int) -> [Float] {
    var random = SeededRandom(seed: seed, split: split, index: index)
    let waves = (0..<2).map { _ in
      (frequency: random.uniform(0.1, 0.5), amplitude: random.uniform(0.5, 1.5), phase: random.uniform(0, 2 * Double.pi))
    }
    return (0..<length + horizon).map { t in
      let clean = waves.reduce(0) { $0 + $1.amplitude * sin($1.frequency * Double(t) + $1.phase) }
      return Float(clean + noise * random.normal())
    }
  }

  /// Inputs [batch, length, 1] and, after each of them, the values that follow: targets [batch, length, horizon].
  public func batch(_ split: DataSplit, _ indices: [Int]) -> (inputs: Tensor, targets: Tensor) {
    let whole = Tensor(indices.flatMap { series(split, $0) }, [indices.count, length + horizon])
    let targets = whole.narrowed(axis: 1, start: 1, length: length + horizon - 1).windows(axis: 1, size: horizon, step: 1)
    return (whole.narrowed(axis: 1, start: 0, length: length).expandedDimension(-1).contiguous(), targets.contiguous())
  }
}
