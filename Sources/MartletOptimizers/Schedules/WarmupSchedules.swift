import Foundation

/// Linear warm-up from `start` to 1 in `warmup` updates, then 1.
public struct ConstantSchedule: LearningRateSchedule {
  public static let name = "constant"
  public static let defaults = ConstantSchedule()

  public var warmup: Int
  public var start: Double

  public init(warmup: Int = 0, start: Double = 0) {
    self.warmup = warmup
    self.start = start
  }

  public func factor(at step: Int) -> Double { step < warmup ? warmupFactor(step, warmup: warmup, start: start) : 1 }
}

/// Linear warm-up, then a straight line from 1 at `warmup` to `floor` at `total`.
public struct LinearSchedule: LearningRateSchedule {
  public static let name = "linear"
  public static let defaults = LinearSchedule(total: 0)
  public static let required: Set<String> = ["total"]

  public var warmup: Int
  public var total: Int
  public var floor: Double
  public var start: Double

  public init(warmup: Int = 0, total: Int, floor: Double = 0, start: Double = 0) {
    self.warmup = warmup
    self.total = total
    self.floor = floor
    self.start = start
  }

  public func factor(at step: Int) -> Double {
    if step < warmup { return warmupFactor(step, warmup: warmup, start: start) }
    return 1 - (1 - floor) * progress(step, from: warmup, to: total)
  }
}

/// Linear warm-up, then half a cosine wave from 1 at `warmup` to `floor` at `total` (Loshchilov & Hutter 2017, *SGDR*, one cycle).
public struct CosineSchedule: LearningRateSchedule {
  public static let name = "cosine"
  public static let defaults = CosineSchedule(total: 0)
  public static let required: Set<String> = ["total"]

  public var warmup: Int
  public var total: Int
  public var floor: Double
  public var start: Double

  public init(warmup: Int = 0, total: Int, floor: Double = 0, start: Double = 0) {
    self.warmup = warmup
    self.total = total
    self.floor = floor
    self.start = start
  }

  public func factor(at step: Int) -> Double {
    if step < warmup { return warmupFactor(step, warmup: warmup, start: start) }
    return floor + (1 - floor) * 0.5 * (1 + cos(.pi * progress(step, from: warmup, to: total)))
  }
}

/// Linear warm-up, then √(warmup / t): the shape of Vaswani et al. 2017, scaled to a peak of 1.
public struct InverseSquareRootSchedule: LearningRateSchedule {
  public static let name = "inverse_square_root"
  public static let defaults = InverseSquareRootSchedule(warmup: 1)
  public static let required: Set<String> = ["warmup"]

  public var warmup: Int
  public var start: Double

  public init(warmup: Int, start: Double = 0) {
    self.warmup = warmup
    self.start = start
  }

  public func factor(at step: Int) -> Double {
    if step < warmup { return warmupFactor(step, warmup: warmup, start: start) }
    return (Double(max(warmup, 1)) / Double(max(step, warmup, 1))).squareRoot()
  }
}

/// min(1, t / warmup) / √max(t, warmup), not scaled to 1: the schedule of the Long Range Arena's tasks (Tay et al. 2021), whose
/// learning rate of 0.05 stands before it. With 1000 steps of warm-up the peak learning rate is 0.05 / √1000 = 0.00158.
public struct ReciprocalRootSchedule: LearningRateSchedule {
  public static let name = "rsqrt"
  public static let defaults = ReciprocalRootSchedule(warmup: 1)
  public static let required: Set<String> = ["warmup"]

  public var warmup: Int

  public init(warmup: Int) { self.warmup = warmup }

  public func factor(at step: Int) -> Double {
    let rise = warmup > 0 ? min(1, Double(step) / Double(warmup)) : 1
    return rise / Double(max(step, warmup, 1)).squareRoot()
  }
}
