import Foundation

/// One cycle (Smith & Topin 2018, *Super-Convergence*) in the form of PyTorch's `OneCycleLR`: up from 1 / `divisor` to 1 in the
/// first `rise` of the updates, then down to 1 / (`divisor` · `finalDivisor`) at the last of `total`; with `threePhases` first
/// down to the initial value as long as it rose.
public struct OneCycleSchedule: LearningRateSchedule {
  public static let name = "one_cycle"
  public static let defaults = OneCycleSchedule(total: 0)
  public static let required: Set<String> = ["total"]

  public enum Shape: String, Codable, Sendable { case cosine, linear }

  public var total: Int
  /// A fraction of `total`.
  public var rise: Double
  public var divisor: Double
  public var finalDivisor: Double
  public var shape: Shape
  public var threePhases: Bool

  public init(
    total: Int, rise: Double = 0.3, divisor: Double = 25, finalDivisor: Double = 1e4, shape: Shape = .cosine,
    threePhases: Bool = false
  ) {
    self.total = total
    self.rise = rise
    self.divisor = divisor
    self.finalDivisor = finalDivisor
    self.shape = shape
    self.threePhases = threePhases
  }

  public func factor(at step: Int) -> Double {
    let initial = 1 / divisor
    let final = initial / finalDivisor
    let top = rise * Double(total) - 1
    let last = Double(total) - 1
    var phases = [(end: top, from: initial, to: 1.0)]
    if threePhases {
      phases += [(2 * rise * Double(total) - 2, 1, initial), (last, initial, final)]
    } else {
      phases += [(last, 1, final)]
    }
    let t = min(Double(step), last)
    var start = 0.0
    for phase in phases {
      if t <= phase.end {
        let x = phase.end > start ? (t - start) / (phase.end - start) : 1
        switch shape {
        case .linear: return phase.from + (phase.to - phase.from) * x
        case .cosine: return phase.to + (phase.from - phase.to) * 0.5 * (1 + cos(.pi * x))
        }
      }
      start = phase.end
    }
    return final
  }
}
