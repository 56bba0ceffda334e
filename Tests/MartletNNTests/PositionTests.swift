import Foundation
import MartletNN
import Testing

@Suite struct PositionTests {
  @Test func rotaryProductsDependOnTheDistanceOnly() {
    for scaling in [nil, RotaryScaling.llama3(factor: 8, original: 1024), .yarn(factor: 4, original: 512)] {
      let rotary = RotaryEmbedding(dimensions: 16, scaling: scaling)
      let q = normal([1, 1, 1, 16], seed: 1)
      let k = normal([1, 1, 1, 16], seed: 2)
      func score(_ i: Int, _ j: Int) -> Double { (rotary(q, offset: i) * rotary(k, offset: j)).sum().item() }
      #expect(abs(score(7, 3) - score(1007, 1003)) < 1e-10)
      #expect(abs(score(7, 3) - score(8, 3)) > 1e-3)
      let m = rotary.magnitude
      #expect(abs(rotary(q, offset: 9).norm().item() - m * q.norm().item()) < 1e-12, "a turn keeps lengths")
      #expect((rotary(q, offset: 0) - q * m).abs().max().item() == 0)
    }
  }

  @Test func rotaryPairsAreHalfTheWidthApart() {
    let x = Tensor([1, 0, 0, 0] as [Double], [1, 1, 1, 4])
    let y = RotaryEmbedding(dimensions: 4)(x, offset: 2).toArray(Double.self)
    #expect(abs(y[0] - cos(2)) < 1e-15 && abs(y[2] - sin(2)) < 1e-15 && y[1] == 0 && y[3] == 0)
  }

  @Test func rotaryPositionsMayBeGiven() {
    let rotary = RotaryEmbedding(dimensions: 8)
    let x = normal([2, 3, 5, 8], seed: 3)
    #expect((rotary(x, offset: 4) - rotary(x, positions: Tensor([4, 5, 6, 7, 8] as [Int]))).abs().max().item() == 0)
    let swapped = rotary(x.flipped(axis: 2), positions: Tensor([4, 3, 2, 1, 0] as [Int])).flipped(axis: 2)
    #expect((swapped - rotary(x)).abs().max().item() == 0)
    #expect(gradientError([x]) { rotary($0[0], offset: 3).sin().sum() } < 1e-7)
    #expect(throws: TensorError.self) { try withTorchErrors { RotaryEmbedding(dimensions: 7) } }
  }

  @Test func rotaryFrequenciesAreThoseOfTransformers() {
    let cases: [(String, RotaryScaling)] = [
      ("linear", .linear(factor: 4)),
      // The dynamic form with factor 3 at twice the trained length is the static one with factor 3·2 − (3 − 1).
      ("dynamic", .ntk(factor: 4)), ("yarn", .yarn(factor: 8, original: 2048)), ("llama3", .llama3(factor: 8, original: 1024)),
    ]
    for (name, scaling) in cases {
      let rotary = RotaryEmbedding(dimensions: 64, scaling: scaling)
      let expected = fixture("rope.\(name)").to(.float64)
      let error = ((rotary.frequencies() - expected) / expected).abs().max().item()
      #expect(error < 3e-6, "\(name): \(error)")
      #expect(abs(rotary.magnitude - fixture("rope.\(name).magnitude").item()) < 1e-6, "\(name)")
    }
    #expect(RotaryEmbedding(dimensions: 8, scaling: .yarn(factor: 1, original: 64)).magnitude == 1)
  }

  @Test func scalingSurvivesCoding() throws {
    for scaling in [RotaryScaling.linear(factor: 2), .ntk(factor: 3), .yarn(factor: 4, original: 8), .llama3(factor: 8, original: 16)] {
      #expect(try JSONDecoder().decode(RotaryScaling.self, from: JSONEncoder().encode(scaling)) == scaling)
    }
  }

  @Test(arguments: [8, 12]) func linearBiasSlopesAreThoseOfBLOOM(heads: Int) {
    // The fixture's column is slope · 1 − slope · 0 of the keys' positions.
    let slopes = ALiBi.slopes(heads: heads)
    for (slope, expected) in zip(slopes, fixture("alibi.\(heads)").toArray(Double.self)) { #expect(abs(slope - expected) < 1e-7) }
    #expect(slopes.count == heads && (heads != 8 || slopes == (1...8).map { pow(0.5, Double($0)) }))
    let bias = ALiBi.bias(heads: heads, queries: 3, keys: 5)
    #expect(bias.shape == [heads, 3, 5])
    #expect(abs(bias[1, 0, 0].item() + 2 * slopes[1]) < 1e-7 && bias[0, 2, 4].item() == 0, "the queries are the last of the keys")
    #expect(abs(bias[1, 0, 4].item() + 2 * slopes[1]) < 1e-7)
  }

  @Test func relativeBucketsAreThoseOfT5() {
    for both in [true, false] {
      let bias = RelativePositionBias(heads: 2, bidirectional: both, generator: RandomGenerator(seed: 1))
      let expected = fixture("t5.\(both ? "bidirectional" : "causal")").toArray(Int.self)
      let wrong = zip(-400...400, expected).filter { bias.bucket($0) != $1 }
      #expect(wrong.isEmpty, "\(both ? "bidirectional" : "causal"): \(wrong.prefix(5).map { "\($0): \(bias.bucket($0)), not \($1)" })")
    }
  }

  @Test func relativeBiasesReadTheTableByDistance() {
    let layer = RelativePositionBias(heads: 3, buckets: 8, maximumDistance: 16, bidirectional: false, generator: RandomGenerator(seed: 2))
    let y = layer(queries: 2, keys: 5)
    #expect(y.shape == [3, 2, 5])
    for i in 0..<2 {
      for j in 0..<5 { #expect(y[.all, i, j].isEqual(to: layer.weight[layer.bucket(j - (i + 3))])) }
    }
    y.sum().backward()
    #expect(layer.weight.gradient!.sum().item() == 30)
  }

  @Test(arguments: [6, 7]) func sinusoidsAreTheFormula(width: Int) {
    let table = sinusoidalPositions(length: 5, width: width, offset: 2).toArray(Double.self)
    for t in 0..<5 {
      for channel in 0..<width {
        let angle = Double(t + 2) / pow(10000, Double(channel / 2 * 2) / Double(width))
        let expected = channel % 2 == 0 ? sin(angle) : cos(angle)
        #expect(abs(table[t * width + channel] - expected) < 1e-6)
      }
    }
  }
}
