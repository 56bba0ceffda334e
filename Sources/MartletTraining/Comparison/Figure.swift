import Foundation

/// Writes quantities the way a reader wants them: three significant digits and a unit that fits.
public enum Figure {
  /// `value` with about three significant digits: 0.0123, 1.23, 12.3, 123, 1,230.
  public static func number(_ value: Double) -> String {
    guard value.isFinite else { return value.isNaN ? "n/a" : (value > 0 ? "∞" : "−∞") }
    let size = abs(value)
    if size == 0 { return "0" }
    if size >= 1000 { return size < 1e15 ? grouped(Int(value.rounded())) : String(format: "%.2e", value).replacing("-", with: "−") }
    if size < 1e-4 { return String(format: "%.2e", value).replacing("-", with: "−") }
    let decimals = max(0, 2 - Int(floor(log10(size))))
    return fixed(value, decimals)
  }

  /// `value` with exactly `decimals` digits after the point and a true minus sign.
  public static func fixed(_ value: Double, _ decimals: Int) -> String {
    let text = String(format: "%.\(decimals)f", value)
    guard text.hasPrefix("-") else { return text }
    return text.contains { $0 != "-" && $0 != "0" && $0 != "." } ? "−" + text.dropFirst() : String(text.dropFirst())
  }

  /// 1234567 as "1,234,567".
  public static func grouped(_ value: Int) -> String {
    var digits = ""
    for (index, digit) in String(value.magnitude).reversed().enumerated() {
      if index > 0 && index % 3 == 0 { digits.append(",") }
      digits.append(digit)
    }
    return (value < 0 ? "−" : "") + String(digits.reversed())
  }

  /// 1234567 as "1.23 M", 48000 as "48.0 k".
  public static func count(_ value: Double) -> String { scaled(value, 1000, ["", "k", "M", "G", "T"]) }

  /// Bytes in decimal units: 12300000 as "12.3 MB".
  public static func bytes(_ value: Double) -> String { scaled(value, 1000, ["B", "kB", "MB", "GB", "TB"]) }

  /// Seconds as "850 µs", "12.3 ms", "4.20 s", "3.1 min", "2.5 h".
  public static func seconds(_ value: Double) -> String {
    guard value.isFinite else { return "n/a" }
    let size = abs(value)
    switch size {
    case 0: return "0 s"
    case ..<1e-6: return significant(value * 1e9) + " ns"
    case ..<1e-3: return significant(value * 1e6) + " µs"
    case ..<1: return significant(value * 1e3) + " ms"
    case ..<120: return significant(value) + " s"
    case ..<7200: return significant(value / 60) + " min"
    default: return significant(value / 3600) + " h"
    }
  }

  /// A sequence length: whole multiples of 1024 as "1k", "64k", "1M"; everything else in digits.
  public static func length(_ value: Int) -> String {
    if value >= 1 << 20 && value % (1 << 20) == 0 { return "\(value >> 20)M" }
    if value >= 1 << 10 && value % (1 << 10) == 0 { return "\(value >> 10)k" }
    return grouped(value)
  }

  /// A length between measured ones, rounded to two significant digits: 1234 as "about 1,200".
  public static func roughLength(_ value: Double) -> String {
    let step = pow(10, max(0, floor(log10(max(value, 1))) - 1))
    return "about " + grouped(Int((value / step).rounded() * step))
  }

  /// A value of the named metric. Accuracies are fractions, shown in percent.
  public static func metric(_ name: String, _ value: Double) -> String {
    guard value.isFinite else { return "diverged" }
    return name == "accuracy" ? fixed(value * 100, 1) + " %" : fixed(value, metricDecimals(value))
  }

  /// "87.3 ± 0.4 %", or the mean alone where one seed gives no spread.
  public static func metric(_ name: String, _ spread: Spread) -> String {
    guard spread.count > 0 else { return "diverged" }
    guard let deviation = spread.standardDeviation else { return metric(name, spread.mean) }
    if name == "accuracy" { return "\(fixed(spread.mean * 100, 1)) ± \(fixed(deviation * 100, 1)) %" }
    let decimals = metricDecimals(spread.mean)
    return "\(fixed(spread.mean, decimals)) ± \(fixed(deviation, decimals))"
  }

  /// A difference of two values of the metric with its sign: "+1.2 points" for accuracies, "−0.034" otherwise.
  public static func difference(_ name: String, _ value: Double) -> String {
    guard value.isFinite else { return "n/a" }
    let text = name == "accuracy" ? fixed(value * 100, 1) : fixed(value, 3)
    return (value > 0 && !text.hasPrefix("−") ? "+" : "") + text + (name == "accuracy" ? " points" : "")
  }

  /// A quantity with its unit, without zeros that say nothing: "1.00 ms" as "1 ms".
  public static func trimmed(_ text: String) -> String {
    let parts = text.split(separator: " ", maxSplits: 1)
    guard let number = parts.first, number.contains(".") else { return text }
    var short = String(number)
    while short.hasSuffix("0") { short.removeLast() }
    if short.hasSuffix(".") { short.removeLast() }
    return ([short] + parts.dropFirst().map(String.init)).joined(separator: " ")
  }

  private static func metricDecimals(_ value: Double) -> Int { abs(value) >= 100 ? 1 : abs(value) >= 10 ? 2 : 3 }

  private static func significant(_ value: Double) -> String {
    let size = abs(value)
    return fixed(value, size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2)
  }

  private static func scaled(_ value: Double, _ base: Double, _ units: [String]) -> String {
    guard value.isFinite else { return "n/a" }
    var rest = value
    var unit = 0
    while abs(rest) >= 999.5 && unit + 1 < units.count {
      rest /= base
      unit += 1
    }
    let number = unit == 0 && rest == rest.rounded() ? fixed(rest, 0) : significant(rest)
    return units[unit].isEmpty ? number : number + " " + units[unit]
  }
}
