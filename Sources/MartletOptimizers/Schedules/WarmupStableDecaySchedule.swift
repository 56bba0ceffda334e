/// Warm-up, a plateau at 1, and a short decay at the end (Hu et al. 2024, *MiniCPM*; the shapes of Hägele et al. 2024, *Scaling
/// Laws and Compute-Optimal Training Beyond Fixed Training Durations*): with x from 0 to 1 in the last `decay` of `total` updates,
/// linear 1 − (1 − floor) x, or root 1 − (1 − floor) √x.
public struct WarmupStableDecaySchedule: LearningRateSchedule {
  public static let name = "wsd"
  public static let defaults = WarmupStableDecaySchedule(decay: 0, total: 0)
  public static let required: Set<String> = ["decay", "total"]

  public enum Shape: String, Codable, Sendable {
    case linear
    case root = "sqrt"
  }

  public var warmup: Int
  /// Updates, not a fraction.
  public var decay: Int
  public var total: Int
  public var floor: Double
  public var shape: Shape
  public var start: Double

  public init(warmup: Int = 0, decay: Int, total: Int, floor: Double = 0, shape: Shape = .root, start: Double = 0) {
    self.warmup = warmup
    self.decay = decay
    self.total = total
    self.floor = floor
    self.shape = shape
    self.start = start
  }

  public func factor(at step: Int) -> Double {
    if step < warmup { return warmupFactor(step, warmup: warmup, start: start) }
    if decay <= 0 { return 1 }
    let x = progress(step, from: total - decay, to: total)
    return 1 - (1 - floor) * (shape == .linear ? x : x.squareRoot())
  }
}
