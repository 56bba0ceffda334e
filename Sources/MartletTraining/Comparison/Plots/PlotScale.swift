import Foundation

/// Maps values to places along an axis and chooses its ticks.
struct PlotScale {
  struct Tick {
    let position: Double
    let label: String
  }

  let isLogarithmic: Bool
  let domain: ClosedRange<Double>
  /// Places of the domain's ends; the first may be the larger, as on a vertical axis.
  let ends: (Double, Double)

  func position(_ value: Double) -> Double {
    let (low, high) = (transformed(domain.lowerBound), transformed(domain.upperBound))
    let share = high > low ? (transformed(value) - low) / (high - low) : 0.5
    return ends.0 + share * (ends.1 - ends.0)
  }

  private func transformed(_ value: Double) -> Double { isLogarithmic ? log10(value) : value }

  /// A linear scale around `values` with a little air at both ends, from zero where the values come near it.
  static func linear(_ values: [Double], _ ends: (Double, Double), air: Double = 0.08, includesZero: Bool = false) -> PlotScale {
    let finite = values.filter(\.isFinite)
    var low = finite.min() ?? 0
    var high = finite.max() ?? 1
    if includesZero { low = min(0, low) }
    if high - low < 1e-9 * max(abs(high), abs(low), 1e-300) {
      (low, high) = (low - max(abs(low) * 0.05, 1e-6), high + max(abs(high) * 0.05, 1e-6))
    }
    let margin = (high - low) * air
    let bottom = low >= 0 && (low - margin < 0 || includesZero) ? 0 : low - margin
    return PlotScale(isLogarithmic: false, domain: bottom...(high + margin), ends: ends)
  }

  /// A logarithmic scale around the positive ones of `values`.
  static func logarithmic(_ values: [Double], _ ends: (Double, Double), air: Double = 0.06) -> PlotScale {
    let usable = values.filter { $0.isFinite && $0 > 0 }
    let low = log10(usable.min() ?? 1)
    let high = log10(usable.max() ?? 10)
    let margin = max((high - low) * air, high - low < 0.3 ? (0.3 - (high - low)) / 2 : 0)
    return PlotScale(isLogarithmic: true, domain: pow(10, low - margin)...pow(10, high + margin), ends: ends)
  }

  /// Round values inside the domain, about `count` of them.
  func tickValues(count: Int) -> [Double] {
    if isLogarithmic {
      let decades = Int(floor(log10(domain.lowerBound)))...Int(ceil(log10(domain.upperBound)))
      for factors in [[1.0, 2, 5], [1.0, 3], [1.0]] {
        let values = decades.flatMap { decade in factors.map { $0 * pow(10, Double(decade)) } }.filter { domain.contains($0) }
        if values.count <= count + 1 && values.count >= 2 { return values }
      }
      let powers = decades.map { pow(10, Double($0)) }.filter { domain.contains($0) }
      if powers.count > count { return powers.enumerated().filter { $0.offset % 2 == 0 }.map(\.element) }
      if powers.count >= 2 { return powers }
    }
    let (low, high) = (domain.lowerBound, domain.upperBound)
    let rough = (high - low) / Double(max(count, 1))
    let power = pow(10, floor(log10(rough)))
    let step = ([1.0, 2, 2.5, 5, 10].first { $0 * power >= rough * 0.999 } ?? 10) * power
    let values = stride(from: (low / step).rounded(.up), through: (high / step).rounded(.down), by: 1).map { $0 * step }
    return values.filter { domain.contains($0) && (!isLogarithmic || $0 > 0) }
  }

  /// Ticks that are round in the unit a reader would use for times of this size: seconds, minutes or hours.
  func timeTicks(count: Int) -> [Tick] {
    let largest = domain.upperBound
    let unit = largest >= 7200 ? 3600.0 : largest >= 120 ? 60 : 1
    let inUnit = PlotScale(
      isLogarithmic: isLogarithmic, domain: (domain.lowerBound / unit)...(domain.upperBound / unit), ends: ends)
    let name = unit == 1 ? nil : unit == 60 ? "min" : "h"
    return inUnit.tickValues(count: count).map { value in
      let label = name.map { Figure.trimmed(Figure.number(value)) + " " + $0 } ?? Figure.trimmed(Figure.seconds(value))
      return Tick(position: inUnit.position(value), label: value == 0 ? "0" : label)
    }
  }

  func ticks(count: Int, _ format: (Double) -> String) -> [Tick] {
    tickValues(count: count).map { Tick(position: position($0), label: format($0)) }
  }

  /// Metric values with as many decimals as the distance of the ticks asks for; accuracies in percent.
  func metricTicks(_ metric: String, count: Int) -> [Tick] {
    let values = tickValues(count: count)
    let factor = metric == MetricName.accuracy ? 100.0 : 1
    let step = values.count > 1 ? abs(values[1] - values[0]) * factor : 1
    // Steps of 2.5 need a digit more than their size says.
    let decimals = (0...6).first { abs(step * pow(10, Double($0)) - (step * pow(10, Double($0))).rounded()) < 1e-6 } ?? 3
    return values.map { Tick(position: position($0), label: Figure.fixed($0 * factor, decimals) + (factor == 100 ? " %" : "")) }
  }
}
