import Foundation

/// Mean and spread of one quantity over seeds.
public struct Spread: Sendable, Equatable {
  public var mean: Double
  /// The sample's (divisor n − 1); nil below two values, which have no spread.
  public var standardDeviation: Double?
  public var minimum: Double
  public var maximum: Double
  /// How many finite values went in.
  public var count: Int

  /// Of the finite ones among `values`; without any, NaN with a count of zero.
  public init(_ values: [Double]) {
    let finite = values.filter(\.isFinite)
    count = finite.count
    minimum = finite.min() ?? .nan
    maximum = finite.max() ?? .nan
    guard !finite.isEmpty else {
      mean = .nan
      return
    }
    let mean = finite.reduce(0, +) / Double(finite.count)
    self.mean = mean
    if finite.count > 1 {
      standardDeviation = (finite.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(finite.count - 1)).squareRoot()
    }
  }
}

/// All seeds of one mixer, either from scratch or after self-pretraining.
public struct ArmSummary: Sendable {
  public let mixer: String
  public let pretrained: Bool
  public let parameters: Int
  public let width: Int
  /// Ascending.
  public let seeds: [Int]
  /// Seeds whose loss or primary metric is not a number, or missing.
  public let diverged: [Int]
  public let metrics: [String: Spread]

  /// "gla", or "gla, pretrained".
  public var name: String { pretrained ? mixer + ", pretrained" : mixer }
  /// Mean of a metric, NaN where no seed has it.
  public func mean(_ metric: String) -> Double { metrics[metric]?.mean ?? .nan }
}

/// What self-pretraining changed for one mixer.
public struct PretrainingGain: Sendable {
  public let mixer: String
  /// The primary metric after self-pretraining minus from scratch, over the seeds that have both.
  public let difference: Spread
  /// More than the spread of the arms explains, and in the same direction for every seed; with one seed never.
  public let isClear: Bool
  /// The direction of the mean is the better one.
  public let isImprovement: Bool
}

/// What one mixer takes at each length: the median over its arms, since the time of one run on a busy machine is not to be trusted.
public struct ScalingCurve: Sendable {
  public struct Point: Sendable, Equatable {
    public let length: Int
    public let value: Double
  }
  public let mixer: String
  public let seconds: [Point]
  public let trainSeconds: [Point]
  public let bytes: [Point]
  /// Lengths without a measurement, with the reason.
  public let missing: [(length: Int, note: String)]
}

/// A length at which one mixer becomes faster than another.
public struct Crossing: Sendable, Equatable {
  /// The one that is faster beyond the length.
  public let faster: String
  public let slower: String
  public let length: Double
}

extension ComparisonResults {
  /// Mixers in the order of the arms.
  public var mixers: [String] {
    var seen: Set<String> = []
    return arms.map(\.mixer).filter { seen.insert($0).inserted }
  }

  /// One summary for each mixer and way of training, in the order of the arms, from scratch first.
  public var summaries: [ArmSummary] {
    mixers.flatMap { mixer in
      [false, true].compactMap { pretrained in
        let group = arms.filter { $0.mixer == mixer && $0.pretrained == pretrained }.sorted { $0.seed < $1.seed }
        guard let first = group.first else { return nil }
        let keys = Set(group.flatMap(\.metrics.keys))
        return ArmSummary(
          mixer: mixer, pretrained: pretrained, parameters: first.parameters, width: first.width, seeds: group.map(\.seed),
          diverged: group.filter { hasDiverged($0) }.map(\.seed),
          metrics: Dictionary(uniqueKeysWithValues: keys.map { key in (key, Spread(group.map { $0.metrics[key] ?? .nan })) }))
      }
    }
  }

  public func hasDiverged(_ arm: ComparisonArm) -> Bool {
    !(arm.metrics[primaryMetric] ?? .nan).isFinite || !(arm.metrics[MetricName.loss] ?? 0).isFinite
  }

  public func isBetter(_ a: Double, than b: Double) -> Bool { primaryMetricHigherIsBetter ? a > b : a < b }

  /// For every mixer trained both ways, paired by seed.
  public var pretrainingGains: [PretrainingGain] {
    mixers.compactMap { mixer in
      func values(_ pretrained: Bool) -> [Int: Double] {
        arms.filter { $0.mixer == mixer && $0.pretrained == pretrained && !hasDiverged($0) }
          .reduce(into: [:]) { $0[$1.seed] = $1.metrics[primaryMetric] }
      }
      let (before, after) = (values(false), values(true))
      let seeds = before.keys.filter { after[$0] != nil }.sorted()
      guard !seeds.isEmpty else { return nil }
      let differences = seeds.map { after[$0]! - before[$0]! }
      let spread = Spread(differences)
      var isClear = false
      if let a = Spread(seeds.map { before[$0]! }).standardDeviation, let b = Spread(seeds.map { after[$0]! }).standardDeviation {
        let pooled = ((a * a + b * b) / 2).squareRoot()
        isClear = abs(spread.mean) > pooled && (differences.allSatisfy { $0 > 0 } || differences.allSatisfy { $0 < 0 })
      }
      return PretrainingGain(
        mixer: mixer, difference: spread, isClear: isClear, isImprovement: primaryMetricHigherIsBetter ? spread.mean > 0 : spread.mean < 0)
    }
  }

  /// Time and memory against length, one curve a mixer.
  public var scalingCurves: [ScalingCurve] {
    mixers.compactMap { mixer in
      let points = arms.filter { $0.mixer == mixer }.flatMap(\.scaling)
      guard !points.isEmpty else { return nil }
      let measured = Set(points.map(\.length)).sorted()
      func medians(_ value: (ScalingPoint) -> Double?) -> [ScalingCurve.Point] {
        measured.compactMap { length in
          let values = points.filter { $0.length == length }.compactMap(value).filter { $0.isFinite && $0 > 0 }.sorted()
          guard !values.isEmpty else { return nil }
          let middle = values.count / 2
          let median = values.count % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2
          return ScalingCurve.Point(length: length, value: median)
        }
      }
      let seconds = medians(\.seconds)
      return ScalingCurve(
        mixer: mixer, seconds: seconds, trainSeconds: medians(\.trainSeconds), bytes: medians { $0.bytes.map(Double.init) },
        missing: measured.filter { length in !seconds.contains { $0.length == length } }
          .map { length in (length, points.first { $0.length == length && $0.note != nil }?.note ?? "not measured") })
    }
  }
}

extension ScalingCurve {
  /// How many times the value grows when the length doubles, over the last measured step; nil below two points.
  public static func growthPerDoubling(_ points: [Point]) -> Double? {
    guard points.count >= 2 else { return nil }
    let (a, b) = (points[points.count - 2], points[points.count - 1])
    return pow(b.value / a.value, 1 / log2(Double(b.length) / Double(a.length)))
  }

  /// Lengths at which the order of two curves turns, by straight lines between the measured points on log-log axes. Points that
  /// are closer than `tolerance` (a share of the value) count as neither faster nor slower.
  public static func crossings(_ a: (name: String, points: [Point]), _ b: (name: String, points: [Point]), tolerance: Double = 0.05)
    -> [Crossing]
  {
    let other = Dictionary(uniqueKeysWithValues: b.points.map { ($0.length, $0.value) })
    // Logarithm of the ratio a : b; negative where a is the faster.
    let ratios = a.points.compactMap { point in other[point.length].map { (log(Double(point.length)), log(point.value / $0)) } }
      .filter { abs($0.1) > log(1 + tolerance) }
    return zip(ratios, ratios.dropFirst()).compactMap { left, right in
      guard (left.1 < 0) != (right.1 < 0) else { return nil }
      let share = left.1 / (left.1 - right.1)
      return Crossing(
        faster: right.1 < 0 ? a.name : b.name, slower: right.1 < 0 ? b.name : a.name,
        length: exp(left.0 + share * (right.0 - left.0)))
    }
  }
}
