import Foundation

/// Audio at another rate, by a windowed sinc (Smith, "Digital Audio Resampling"): frequencies above half the lower rate are removed.
///
/// The kernel spans 32 zero crossings on each side under a Kaiser window (β = 9.6, about −100 dB beside the band).
public func resampled(_ samples: [Float], from source: Int, to target: Int) -> [Float] {
  precondition(source > 0 && target > 0, "rates must be positive")
  if source == target || samples.isEmpty { return samples }
  let ratio = Double(source) / Double(target)
  // The cut-off relative to the source's, a little below the lower of the two so that the transition ends there.
  let cutoff = min(1, 1 / ratio) * 0.96
  let reach = Double(crossings) / cutoff
  let count = Int((Double(samples.count) / ratio).rounded(.up))
  return samples.withUnsafeBufferPointer { samples in
    kernelTable.withUnsafeBufferPointer { table in
      (0..<count).map { n in
        let centre = Double(n) * ratio
        let first = max(0, Int((centre - reach).rounded(.up)))
        let last = min(samples.count - 1, Int(centre + reach))
        var sum = 0.0
        var i = first
        while i <= last {
          // Between the entries of the table the kernel is as good as straight.
          let place = min(abs(centre - Double(i)) * cutoff, Double(crossings)) * Double(entries)
          let entry = min(Int(place), crossings * entries - 1)
          let rest = place - Double(entry)
          sum += Double(samples[i]) * (table[entry] + rest * (table[entry + 1] - table[entry]))
          i += 1
        }
        return Float(sum * cutoff)
      }
    }
  }
}

private let crossings = 32
private let entries = 1024

/// sin(πx)/(πx) under a Kaiser window for x in 0...crossings, so many entries a unit.
private let kernelTable: [Double] = {
  /// The modified Bessel function of the first kind and order 0, by its series.
  func bessel(_ x: Double) -> Double {
    var (sum, term, k) = (1.0, 1.0, 1.0)
    while term > sum * 1e-16 {
      term *= (x / 2 / k) * (x / 2 / k)
      sum += term
      k += 1
    }
    return sum
  }
  let beta = 9.6
  return (0...crossings * entries).map { i in
    let x = Double(i) / Double(entries)
    let sinc = i == 0 ? 1 : sin(.pi * x) / (.pi * x)
    let edge = x / Double(crossings)
    return sinc * bessel(beta * max(0, 1 - edge * edge).squareRoot()) / bessel(beta)
  }
}()
