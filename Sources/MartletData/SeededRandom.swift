import Foundation

/// A stream of random numbers that (seed, stream) alone determine: the same on every platform and in every version, which
/// the standard library's `shuffled(using:)` and `random(in:using:)` don't promise.
///
/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014). A stream starts at a mixed
/// place with an odd increment of its own, so numbering examples and giving each its stream makes data addressable.
public struct SeededRandom: RandomNumberGenerator, Sendable {
  private var state: UInt64
  private let increment: UInt64
  private var spareNormal: Double?

  public init(seed: UInt64, stream: UInt64 = 0) {
    let start = Self.mixed(Self.mixed(seed &+ Self.golden) &+ stream &* 0xD1B5_4A32_D192_ED03)
    state = start
    // An increment with few changes between neighbouring bits mixes badly (§5 of the paper).
    let odd = Self.mixed(start ^ 0x5851_F42D_4C95_7F2D) | 1
    increment = (odd ^ (odd >> 1)).nonzeroBitCount < 24 ? odd ^ 0xAAAA_AAAA_AAAA_AAAA : odd
  }

  private static let golden: UInt64 = 0x9E37_79B9_7F4A_7C15

  private static func mixed(_ value: UInt64) -> UInt64 {
    var z = value
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }

  public mutating func next() -> UInt64 {
    state &+= increment
    return Self.mixed(state)
  }

  /// Uniform on [0, 1), 53 bits.
  public mutating func uniform() -> Double { Double(next() >> 11) * 0x1p-53 }

  /// Uniform on [lower, upper).
  public mutating func uniform(_ lower: Double, _ upper: Double) -> Double { lower + (upper - lower) * uniform() }

  /// Uniform on 0..<bound without bias (Lemire 2019: multiply, reject the few low products).
  public mutating func integer(below bound: Int) -> Int {
    precondition(bound > 0, "the bound of a random integer must be positive, not \(bound)")
    let range = UInt64(bound)
    var product = next().multipliedFullWidth(by: range)
    if product.low < range {
      let threshold = (0 &- range) % range
      while product.low < threshold { product = next().multipliedFullWidth(by: range) }
    }
    return Int(product.high)
  }

  /// Normal with mean 0 and variance 1 (Box–Muller). Equal across platforms up to the last bits of their `log` and `cos`.
  public mutating func normal() -> Double {
    if let spare = spareNormal {
      spareNormal = nil
      return spare
    }
    let radius = (-2 * log(1 - uniform())).squareRoot()
    let angle = 2 * Double.pi * uniform()
    spareNormal = radius * sin(angle)
    return radius * cos(angle)
  }

  /// Puts the elements in random order (Fisher–Yates).
  public mutating func shuffle<Element>(_ elements: inout [Element]) {
    elements.withUnsafeMutableBufferPointer { buffer in
      for last in stride(from: buffer.count - 1, to: 0, by: -1) { buffer.swapAt(last, integer(below: last + 1)) }
    }
  }

  /// A random order of 0..<count.
  public mutating func permutation(_ count: Int) -> [Int] {
    var order = Array(0..<count)
    shuffle(&order)
    return order
  }

  /// `count` different numbers of 0..<bound in random order (Floyd's algorithm, then a shuffle).
  public mutating func sample(_ count: Int, below bound: Int) -> [Int] {
    precondition(count <= bound, "\(count) different numbers can't be drawn from \(bound)")
    var chosen = Set<Int>(minimumCapacity: count)
    var drawn: [Int] = []
    drawn.reserveCapacity(count)
    for last in (bound - count)..<bound {
      let candidate = integer(below: last + 1)
      let number = chosen.insert(candidate).inserted ? candidate : last
      if number == last { chosen.insert(last) }
      drawn.append(number)
    }
    shuffle(&drawn)
    return drawn
  }
}
