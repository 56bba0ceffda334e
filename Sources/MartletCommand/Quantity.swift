import ArgumentParser
import Foundation
import MartletCatalog

/// A whole number that may end in k, M or G: 16k is 16384 as a length, 300k is 300000 as a count.
enum Quantity {
  static func count(_ text: String) throws -> Int { try parse(text, unit: 1000, of: "count") }
  static func length(_ text: String) throws -> Int { try parse(text, unit: 1024, of: "length") }

  static func lengths(_ text: String) throws -> [Int] {
    try text.split(separator: ",").map { try length(String($0)) }
  }

  /// Bytes: 500MB, 2GB (powers of 1000), 2GiB (of 1024), or a plain number.
  static func bytes(_ text: String) throws -> Int {
    let units: [(String, Double)] = [
      ("KiB", 0x1p10), ("MiB", 0x1p20), ("GiB", 0x1p30), ("TiB", 0x1p40), ("kB", 1e3), ("KB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12),
      ("B", 1), ("", 1),
    ]
    let (unit, factor) = units.first { text.hasSuffix($0.0) }!
    guard let number = Double(text.dropLast(unit.count).trimmingCharacters(in: .whitespaces)), number * factor >= 1, number * factor < 1e18
    else { throw ValidationError("“\(text)” is not a size such as 500MB or 2GB") }
    return Int(number * factor)
  }

  private static func parse(_ text: String, unit: Double, of what: String) throws -> Int {
    let units: [Character: Double] = ["k": unit, "K": unit, "M": unit * unit, "G": unit * unit * unit]
    let factor = text.last.flatMap { units[$0] }
    guard let number = Double(factor == nil ? text[...] : text.dropLast()), number > 0, number * (factor ?? 1) < 1e15 else {
      throw ValidationError("“\(text)” is not a positive \(what) such as 4096, 16k or 1M")
    }
    return Int(number * (factor ?? 1))
  }
}
