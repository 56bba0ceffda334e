import Foundation

/// Small pictures of the ten digits, drawn by a program: **no handwriting**. They stand in for the UCI set of 8×8 digits where no
/// data can be brought along; results on them are not comparable with published ones on real digits.
///
/// A digit is a set of strokes (one of a few templates), bent by jitter of its points, turned, sheared, scaled and shifted at
/// random, drawn with a random pen on a 32×32 bitmap and counted in 4×4 blocks, as the UCI digits were made of scans; then noise
/// is added to the counts. An image is a function of (seed, index).
public struct SyntheticDigits: Sendable {
  public var seed: UInt64
  /// 1 = the usual variation of shape and position; 0 draws the bare templates.
  public var variation: Double
  /// Standard deviation of the noise of a count (0...16).
  public var noise: Double

  public init(seed: UInt64 = 0, variation: Double = 1, noise: Double = 1) {
    self.seed = seed
    self.variation = variation
    self.noise = noise
  }

  /// 8×8 counts 0...16 row by row, and the digit. Digits are equally likely.
  public func image(_ index: Int) -> (counts: [UInt8], digit: Int) {
    var random = SeededRandom(seed: seed, stream: UInt64(index))
    let digit = random.integer(below: 10)
    let templates = Self.templates[digit]
    let strokes = templates[random.integer(below: templates.count)]

    let angle = 0.14 * variation * random.normal()
    let shear = 0.16 * variation * random.normal()
    let (scaleX, scaleY) = (0.95 + 0.12 * variation * random.normal(), 0.92 + 0.07 * variation * random.normal())
    let (shiftX, shiftY) = (0.045 * variation * random.normal(), 0.035 * variation * random.normal())
    let radius = 0.065 + variation * random.uniform(-0.02, 0.03)
    var segments: [Segment] = []
    for stroke in strokes {
      let points = stroke.map { point in
        let x = (point.x - 0.5 + 0.025 * variation * random.normal()) * scaleX
        let y = (point.y - 0.5 + 0.025 * variation * random.normal()) * scaleY
        let sheared = x - shear * y
        return Point(
          x: 0.5 + shiftX + cos(angle) * sheared - sin(angle) * y, y: 0.5 + shiftY + sin(angle) * sheared + cos(angle) * y)
      }
      for (a, b) in zip(points, points.dropFirst()) { segments.append(Segment(a: a, b: b)) }
    }

    var counts = [UInt8](repeating: 0, count: 64)
    for y in 0..<32 {
      for x in 0..<32 {
        let place = Point(x: (Double(x) + 0.5) / 32, y: (Double(y) + 0.5) / 32)
        if segments.contains(where: { $0.squaredDistance(to: place) < radius * radius }) { counts[y / 4 * 8 + x / 4] += 1 }
      }
    }
    return (counts.map { UInt8(min(16, max(0, (Double($0) + noise * random.normal()).rounded()))) }, digit)
  }

  private struct Point {
    var x: Double
    var y: Double
  }

  private struct Segment {
    let a: Point
    let b: Point

    func squaredDistance(to p: Point) -> Double {
      let (dx, dy) = (b.x - a.x, b.y - a.y)
      let squaredLength = dx * dx + dy * dy
      let along = squaredLength > 0 ? min(1, max(0, ((p.x - a.x) * dx + (p.y - a.y) * dy) / squaredLength)) : 0
      let (ex, ey) = (p.x - a.x - along * dx, p.y - a.y - along * dy)
      return ex * ex + ey * ey
    }
  }

  private typealias Stroke = [Point]

  private static func stroke(_ coordinates: (Double, Double)...) -> Stroke { coordinates.map { Point(x: $0.0, y: $0.1) } }

  private static func oval(_ x: Double, _ y: Double, _ width: Double, _ height: Double) -> Stroke {
    (0...12).map { step in
      let angle = 2 * Double.pi * Double(step) / 12
      return Point(x: x + width * sin(angle), y: y - height * cos(angle))
    }
  }

  /// For each digit a few ways to write it, in a unit square, y downwards.
  private static let templates: [[[Stroke]]] = {
    let six = [
      stroke(
        (0.66, 0.1), (0.45, 0.2), (0.31, 0.42), (0.27, 0.68), (0.36, 0.87), (0.54, 0.92), (0.71, 0.82), (0.74, 0.65), (0.62, 0.53),
        (0.44, 0.54), (0.29, 0.67))
    ]
    return [
      [[oval(0.5, 0.5, 0.26, 0.41)], [oval(0.5, 0.5, 0.2, 0.4)]],
      [[stroke((0.36, 0.25), (0.52, 0.08), (0.52, 0.92))], [stroke((0.52, 0.08), (0.5, 0.92))]],
      [
        [
          stroke(
            (0.26, 0.28), (0.33, 0.13), (0.5, 0.07), (0.67, 0.13), (0.72, 0.3), (0.62, 0.48), (0.42, 0.72), (0.25, 0.92), (0.77, 0.92))
        ]
      ],
      [
        [
          stroke(
            (0.27, 0.15), (0.46, 0.07), (0.66, 0.13), (0.7, 0.3), (0.58, 0.44), (0.42, 0.47), (0.6, 0.51), (0.73, 0.67), (0.67, 0.85),
            (0.46, 0.93), (0.25, 0.85))
        ], [stroke((0.27, 0.09), (0.72, 0.09), (0.47, 0.42), (0.68, 0.53), (0.73, 0.72), (0.6, 0.9), (0.4, 0.93), (0.25, 0.84))],
      ],
      [
        [stroke((0.62, 0.92), (0.62, 0.08), (0.22, 0.65), (0.8, 0.65))],
        [stroke((0.33, 0.1), (0.27, 0.52), (0.75, 0.52)), stroke((0.7, 0.1), (0.64, 0.92))],
      ],
      [
        [
          stroke(
            (0.72, 0.08), (0.33, 0.08), (0.29, 0.45), (0.5, 0.4), (0.69, 0.5), (0.74, 0.68), (0.65, 0.86), (0.45, 0.93), (0.25, 0.85))
        ]
      ],
      [six],
      [
        [stroke((0.24, 0.09), (0.76, 0.09), (0.57, 0.45), (0.42, 0.92))],
        [stroke((0.24, 0.09), (0.76, 0.09), (0.42, 0.92)), stroke((0.35, 0.5), (0.68, 0.5))],
      ],
      [[oval(0.5, 0.28, 0.19, 0.2), oval(0.5, 0.7, 0.23, 0.22)]],
      [six.map { $0.map { Point(x: 1 - $0.x, y: 1 - $0.y) } }, [oval(0.47, 0.3, 0.2, 0.21), stroke((0.68, 0.3), (0.6, 0.92))]],
    ]
  }()
}
