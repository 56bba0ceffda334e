import Martlet
import Testing

@Suite struct NewtonSchulzTests {
  private func normal(_ shape: [Int], seed: UInt64 = 1) -> Tensor {
    Tensor.randomNormal(shape, generator: RandomGenerator(seed: seed)).to(.float64)
  }

  /// a σ + b σ³ + c σ⁵, five times, from σ/‖S‖_F.
  private func mapped(_ values: [Double]) -> [Double] {
    let norm = values.reduce(0) { $0 + $1 * $1 }.squareRoot()
    return values.map { value in (0..<5).reduce(value / norm) { s, _ in 3.4445 * s - 4.7750 * s * s * s + 2.0315 * s * s * s * s * s } }
  }

  @Test(arguments: [[7, 7], [4, 9], [9, 4], [2, 3, 5, 8]]) func itKeepsSingularVectorsAndLevelsSingularValues(_ shape: [Int]) {
    let s = normal(shape)
    let (u, sigma, vh) = s.svd()
    let found = u.T.matmul(newtonSchulz(s)).matmul(vh.T)
    let values = sigma.reshaped(-1, sigma.dim(-1)).toNested()
    let diagonals = found.reshaped(-1, found.dim(-2), found.dim(-1))
    for (i, row) in values.enumerated() {
      let expected = Tensor(mapped(row)).asDiagonal()
      let error = (diagonals[i] - expected).abs().max().item()
      #expect(error <= 1e-9, "\(shape), matrix \(i): off the diagonal of f(σ) by \(error)")
      let norm = row.reduce(0) { $0 + $1 * $1 }.squareRoot()
      for (value, level) in zip(row, mapped(row)) where value >= 0.01 * norm {
        #expect((0.5...1.3).contains(level), "σ = \(value) became \(level)")
      }
    }
  }

  @Test func itDoesNotDependOnTheScaleAndKeepsZero() {
    let s = normal([5, 8])
    for factor in [1e-3, 7.0, 1e4] {
      let error = (newtonSchulz(s * factor) - newtonSchulz(s)).abs().max().item()
      #expect(error <= 1e-7, "times \(factor): \(error)")
    }
    #expect(newtonSchulz(Tensor.zeros([3, 4])).abs().max().item() == 0)
    let zero = Tensor.zeros([3, 4], dtype: .float64).tracked()
    #expect(gradient(of: newtonSchulz(zero).sum(), with: [zero])[0]!.allFinite)
  }

  @Test(arguments: [[3, 5], [5, 3]]) func itsGradientIsThatOfFiniteDifferences(_ shape: [Int]) {
    let weight = normal(shape, seed: 2)
    let error = gradientError([normal(shape)]) { (newtonSchulz($0[0]) * weight).sum() }
    #expect(error <= 1e-6, "\(error), allowed 1e-6")
  }

  @Test func shortTypesAreComputedInFloat32() {
    let s = normal([6, 9]).to(.bfloat16)
    let error = (newtonSchulz(s).to(.float32) - newtonSchulz(s.to(.float32))).abs().max().item()
    #expect(newtonSchulz(s).dtype == .bfloat16)
    #expect(error <= 1.0 / 256, "only the result is rounded: \(error)")
  }
}

extension Tensor {
  /// The rows of a matrix.
  fileprivate func toNested() -> [[Double]] { (0..<dim(0)).map { self[$0].toArray(Double.self) } }
}
