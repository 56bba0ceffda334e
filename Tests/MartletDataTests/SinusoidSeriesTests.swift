import Foundation
import Testing

@testable import MartletData

@Suite struct SinusoidSeriesTests {
  @Test func seriesAreFunctionsOfSeedSplitAndIndex() throws {
    let (a, b) = (try SinusoidSeries(seed: 1), try SinusoidSeries(seed: 1))
    let other = try SinusoidSeries(seed: 2)
    let series = a.series(.train, 7)
    _ = b.series(.train, 3)
    #expect(series.count == 72 && series == b.series(.train, 7))
    for different in [a.series(.train, 8), a.series(.test, 7), other.series(.train, 7)] { #expect(series != different) }
  }

  @Test func targetsFollowTheirInputs() throws {
    let data = try SinusoidSeries(length: 10, horizon: 3, seed: 4)
    let batch = data.batch(.train, [5, 2])
    #expect(batch.inputs.shape == [2, 10, 1] && batch.targets.shape == [2, 10, 3])
    for (row, index) in [5, 2].enumerated() {
      let series = data.series(.train, index)
      #expect(batch.inputs[row].toArray(Float.self) == Array(series[..<10]))
      for t in 0..<10 { #expect(batch.targets[row, t].toArray(Float.self) == Array(series[t + 1..<t + 4]), "row \(row), position \(t)") }
    }
  }

  /// A sum of two sinusoids obeys x_{t+2} + x_{t−2} + 2x_t = 2(c₁ + c₂)(x_{t+1} + x_{t−1}) − 4 c₁c₂ x_t with c = cos ω: two unknowns,
  /// found by least squares, give the frequencies.
  @Test func seriesAreTwoSinusoidsInTheirRanges() throws {
    let data = try SinusoidSeries(length: 400, noise: 0, seed: 3)
    var told = 0
    for index in 0..<60 {
      let x = data.series(.train, index).map(Double.init)
      #expect(x.allSatisfy { abs($0) <= 3.0001 }, "two amplitudes of at most 1.5")
      var (aa, ab, bb, ay, by) = (0.0, 0.0, 0.0, 0.0, 0.0)
      for t in 2..<x.count - 2 {
        let a = x[t + 1] + x[t - 1]
        let b = -x[t]
        let y = x[t + 2] + x[t - 2] + 2 * x[t]
        aa += a * a
        ab += a * b
        bb += b * b
        ay += a * y
        by += b * y
      }
      let determinant = aa * bb - ab * ab
      let sum = (ay * bb - by * ab) / determinant / 2
      let product = (by * aa - ay * ab) / determinant / 4
      let root = max(0, sum * sum / 4 - product).squareRoot()
      // Frequencies near each other can't be told apart.
      guard root > 0.01 else { continue }
      told += 1
      for c in [sum / 2 + root, sum / 2 - root] {
        #expect(c > cos(0.5) - 1e-3 && c < cos(0.1) + 1e-3, "series \(index): cos ω = \(c)")
      }
    }
    #expect(told > 30, "two frequencies in \(told) of 60 series")
  }

  @Test func theLastValueIsAPoorForecast() throws {
    let data = try SinusoidSeries(seed: 0)
    let batch = data.batch(.test, Array(0..<500))
    let error = (batch.inputs - batch.targets).square().mean().item()
    #expect(error > 1.5 && error < 1.9, "\(error); the expectation is 1.70")
    let noise = try SinusoidSeries(noise: 0.5, seed: 0).batch(.test, Array(0..<500)).inputs.square().mean().item()
    let clean = batch.inputs.square().mean().item()
    #expect(abs(noise - clean - 0.25) < 0.06, "noise of deviation 0.5 adds 0.25 to the mean square: \(noise - clean)")
  }

  @Test func sizesOutOfRangeAreRefused() {
    #expect(throws: DataError.self) { try SinusoidSeries(length: 0) }
    #expect(throws: DataError.self) { try SinusoidSeries(horizon: 0) }
    #expect(throws: DataError.self) { try SinusoidSeries(noise: -1) }
  }
}
