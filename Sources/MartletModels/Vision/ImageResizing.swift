import Foundation

/// How a resized image's pixels are made of the old ones; the numbers are those of the ecosystem's configurations (`resample`).
public enum ResizingFilter: Int, Sendable, Codable, CaseIterable {
  case nearest = 0
  case lanczos = 1
  case bilinear = 2
  case bicubic = 3
  case box = 4
  case hamming = 5

  /// Pixels on each side that take part, at the old size.
  var reach: Double {
    switch self {
    case .nearest, .box: 0.5
    case .bilinear, .hamming: 1
    case .bicubic: 2
    case .lanczos: 3
    }
  }

  func weight(_ distance: Double) -> Double {
    let x = abs(distance)
    func sinc(_ x: Double) -> Double { x == 0 ? 1 : sin(.pi * x) / (.pi * x) }
    switch self {
    // The right half belongs to the next pixel.
    case .nearest, .box: return distance > -0.5 && distance <= 0.5 ? 1 : 0
    case .bilinear: return x < 1 ? 1 - x : 0
    case .hamming: return x >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * cos(.pi * x))
    case .bicubic:
      // Keys' kernel with a = −½ (Keys 1981).
      if x < 1 { return (1.5 * x - 2.5) * x * x + 1 }
      return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0
    case .lanczos: return x < 3 ? sinc(x) * sinc(x / 3) : 0
    }
  }
}

extension PixelImage {
  /// The image at another size. Where it shrinks, the filter widens by as much, so that every old pixel counts (antialiasing).
  ///
  /// Weights have 22 fractional bits and each of the two passes, first along rows, rounds to bytes, as Pillow does: the bytes agree.
  public func resized(width newWidth: Int, height newHeight: Int, filter: ResizingFilter) -> PixelImage {
    require(newWidth > 0 && newHeight > 0, "an image needs a size, got \(newWidth)×\(newHeight)")
    if filter == .nearest { return nearest(newWidth, newHeight) }
    var result = pixels
    if newWidth != width {
      result = Self.pass(result, lines: height, from: width, to: newWidth, lineStep: width * channels, step: channels, channels, filter) {
        line, place, channel in (line * newWidth + place) * channels + channel
      }
    }
    if newHeight != height {
      let row = newWidth * channels
      result = Self.pass(result, lines: newWidth, from: height, to: newHeight, lineStep: channels, step: row, channels, filter) {
        line, place, channel in place * row + line * channels + channel
      }
    }
    return PixelImage(width: newWidth, height: newHeight, channels: channels, pixels: result)
  }

  /// One pass along rows or columns.
  private static func pass(
    _ source: [UInt8], lines: Int, from: Int, to: Int, lineStep: Int, step: Int, _ channels: Int, _ filter: ResizingFilter,
    target: (_ line: Int, _ place: Int, _ channel: Int) -> Int
  ) -> [UInt8] {
    let bits = 22
    let scale = Double(from) / Double(to)
    let widened = max(scale, 1)
    let reach = filter.reach * widened
    var result = [UInt8](repeating: 0, count: lines * to * channels)
    source.withUnsafeBufferPointer { source in
      for place in 0..<to {
        let centre = (Double(place) + 0.5) * scale
        let first = max(0, Int(centre - reach + 0.5))
        let last = min(from, Int(centre + reach + 0.5))
        var weights = (first..<last).map { filter.weight((Double($0) - centre + 0.5) / widened) }
        let sum = weights.reduce(0, +)
        if sum != 0 { weights = weights.map { $0 / sum } }
        let fixed = weights.map { Int(($0 < 0 ? -0.5 : 0.5) + $0 * Double(1 << bits)) }
        for line in 0..<lines {
          for channel in 0..<channels {
            var total = 1 << (bits - 1)
            var index = line * lineStep + first * step + channel
            for weight in fixed {
              total += Int(source[index]) * weight
              index += step
            }
            result[target(line, place, channel)] = UInt8(max(0, min(255, total >> bits)))
          }
        }
      }
    }
    return result
  }

  private func nearest(_ newWidth: Int, _ newHeight: Int) -> PixelImage {
    let columns = (0..<newWidth).map { min(width - 1, Int((Double($0) + 0.5) * Double(width) / Double(newWidth))) }
    var result: [UInt8] = []
    result.reserveCapacity(newWidth * newHeight * channels)
    for row in 0..<newHeight {
      let old = min(height - 1, Int((Double(row) + 0.5) * Double(height) / Double(newHeight))) * width
      for column in columns { result += pixels[(old + column) * channels..<(old + column + 1) * channels] }
    }
    return PixelImage(width: newWidth, height: newHeight, channels: channels, pixels: result)
  }

  /// The middle of the image; black where it doesn't reach.
  public func centreCropped(width newWidth: Int, height newHeight: Int) -> PixelImage {
    require(newWidth > 0 && newHeight > 0, "an image needs a size, got \(newWidth)×\(newHeight)")
    // Odd rests: what is cut off is rounded down on the left, and so (being negative) is what is added.
    let top = (Double(height - newHeight) / 2).rounded(.down)
    let left = (Double(width - newWidth) / 2).rounded(.down)
    var result = [UInt8](repeating: 0, count: newWidth * newHeight * channels)
    for row in 0..<newHeight {
      let old = row + Int(top)
      guard (0..<height).contains(old) else { continue }
      for column in 0..<newWidth {
        let oldColumn = column + Int(left)
        guard (0..<width).contains(oldColumn) else { continue }
        for channel in 0..<channels {
          result[(row * newWidth + column) * channels + channel] = pixels[(old * width + oldColumn) * channels + channel]
        }
      }
    }
    return PixelImage(width: newWidth, height: newHeight, channels: channels, pixels: result)
  }
}
