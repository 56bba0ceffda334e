import Foundation
import Martlet
import MartletNN

/// What the machine can do at most, measured now, with the same threads as the cases: the yardstick of their rates.
public struct MachineLimits: Sendable, Codable {
  /// Floating-point operations a second of a large float32 matrix product.
  public var operationsPerSecond: Double
  /// Bytes a second read and written by a large copy.
  public var bytesPerSecond: Double

  public init(operationsPerSecond: Double, bytesPerSecond: Double) {
    self.operationsPerSecond = operationsPerSecond
    self.bytesPerSecond = bytesPerSecond
  }

  /// The best of many short runs within `seconds` each: what others do on the machine only slows a run down.
  public static func measure(seconds: Double = 1.5) -> MachineLimits {
    let generator = RandomGenerator(seed: 0)
    func best(_ body: () -> Void) -> Double {
      body()
      let start = ContinuousClock.now
      var shortest = Double.infinity
      repeat { shortest = min(shortest, elapsed(body)) } while (ContinuousClock.now - start).seconds < seconds
      return shortest
    }
    return withoutGradient {
      let size = 1024
      let x = Tensor.randomNormal([size, size], generator: generator)
      let weight = Tensor.randomNormal([size, size], generator: generator)
      let product = best { _ = linearMap(x, weight) }
      let source = Tensor.zeros([1 << 26])  // 256 MB, beyond any cache
      let target = Tensor.zeros([1 << 26])
      let copy = best { target.copyInPlace(source) }
      return MachineLimits(
        operationsPerSecond: 2 * Double(size * size * size) / product, bytesPerSecond: 2 * Double(source.byteCount) / copy)
    }
  }
}

/// Seconds that a call takes.
func elapsed(_ body: () throws -> Void) rethrows -> Double { try ContinuousClock().measure(body).seconds }
