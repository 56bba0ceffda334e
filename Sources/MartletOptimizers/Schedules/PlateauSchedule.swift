/// Lowers the learning rate when a metric stops falling: after more than `patience` measurements without a new lowest one, the factor
/// is multiplied by `decay`. Measured, not counted in steps, so it isn't a ``LearningRateSchedule``.
public struct PlateauSchedule: Codable, Sendable, Equatable {
  public var decay: Double
  /// Measurements without improvement that are borne.
  public var patience: Int
  /// A measurement counts as an improvement below (1 − threshold) times the lowest.
  public var threshold: Double
  /// The factor never falls below this.
  public var minimum: Double

  /// The factor of the peak learning rate.
  public private(set) var factor = 1.0
  /// The lowest measurement so far; infinite before the first.
  public private(set) var best = Double.infinity
  /// Measurements since the last improvement (or the last lowering).
  public private(set) var waited = 0

  public init(decay: Double = 0.1, patience: Int = 10, threshold: Double = 1e-4, minimum: Double = 0) {
    require(decay > 0 && decay < 1, "a plateau's decay must be in 0..<1, got \(decay)")
    require(patience >= 0, "patience must not be negative, got \(patience)")
    self.decay = decay
    self.patience = patience
    self.threshold = threshold
    self.minimum = minimum
  }

  /// Takes a measurement; returns the factor from now on.
  @discardableResult public mutating func update(_ metric: Double) -> Double {
    if metric < best * (1 - threshold) || best == .infinity && metric.isFinite {
      best = metric
      waited = 0
    } else {
      waited += 1
      if waited > patience {
        factor = max(minimum, factor * decay)
        waited = 0
      }
    }
    return factor
  }
}
