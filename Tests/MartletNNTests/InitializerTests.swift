import Foundation
import MartletNN
import Testing

@Suite struct InitializerTests {
  private func draw(_ initializer: Initializer, _ shape: [Int] = [200, 300]) -> Tensor {
    initializer(shape, RandomGenerator(seed: 1)).to(.float64)
  }

  /// Checks that a uniform draw fills ±bound and has its variance.
  private func expectUniform(_ x: Tensor, _ bound: Double, _ name: String) {
    #expect(x.abs().max().item() <= bound * (1 + 1e-6), "\(name)")
    #expect(x.max().item() > 0.99 * bound && x.min().item() < -0.99 * bound, "\(name)")
    expectDeviation(x, bound / 3.0.squareRoot(), name)
  }

  private func expectDeviation(_ x: Tensor, _ deviation: Double, _ name: String) {
    let found = x.square().mean().item().squareRoot()
    #expect(abs(found / deviation - 1) < 5 / Double(x.count).squareRoot(), "\(name): \(found), not \(deviation)")
    #expect(abs(x.mean().item()) < 5 * deviation / Double(x.count).squareRoot(), "\(name)")
  }

  @Test func uniformOnesFillTheirBounds() {
    expectUniform(draw(.uniform(0.3)), 0.3, "uniform")
    expectUniform(draw(.xavierUniform()), (6.0 / 500).squareRoot(), "xavier")
    expectUniform(draw(.xavierUniform(gain: 0.5)), 0.5 * (6.0 / 500).squareRoot(), "xavier with gain")
    expectUniform(draw(.kaimingUniform), (6.0 / 300).squareRoot(), "kaiming")
    // A convolution's field counts: 20 inputs and 40 outputs of 5 × 5.
    expectUniform(draw(.xavierUniform(), [40, 20, 5, 5]), (6.0 / (25 * 60)).squareRoot(), "xavier of a convolution")
    expectUniform(draw(.kaimingUniform, [40, 20, 5, 5]), (6.0 / 500).squareRoot(), "kaiming of a convolution")
  }

  @Test func normalOnesHaveTheirDeviation() {
    expectDeviation(draw(.normal(0.02)), 0.02, "normal")
    expectDeviation(draw(.xavierNormal()), (2.0 / 500).squareRoot(), "xavier")
    expectDeviation(draw(.kaimingNormal), (2.0 / 300).squareRoot(), "kaiming")
  }

  @Test func truncatedNormalsStayWithinTwoDeviations() {
    let x = draw(.truncatedNormal(0.5))
    #expect(x.abs().max().item() <= 1 && x.abs().max().item() > 0.98)
    // Variance of a normal truncated at ±2: 1 − 4φ(2)/(2Φ(2) − 1).
    let density = exp(-2) / (2 * Double.pi).squareRoot()
    expectDeviation(x, 0.5 * (1 - 4 * density / erf(2.0.squareRoot())).squareRoot(), "truncated")
  }

  @Test(arguments: [[5, 9], [9, 5], [6, 6], [8, 2, 3]]) func orthogonalOnesAreOrthonormal(shape: [Int]) {
    let x = draw(.orthogonal(gain: 2), shape)
    #expect(x.shape == shape)
    let matrix = x.reshaped(shape[0], -1) * 0.5
    let gram = shape[0] <= matrix.dim(1) ? matrix.matmul(matrix.T) : matrix.T.matmul(matrix)
    #expect((gram - Tensor.eye(gram.dim(0), dtype: .float64)).abs().max().item() < 1e-5)
  }

  @Test func constantsAndSeeds() {
    #expect(draw(.zeros).abs().max().item() == 0 && draw(.ones).min().item() == 1 && draw(.constant(0.25)).max().item() == 0.25)
    for initializer in [Initializer.uniform(1), .normal(1), .truncatedNormal(1), .orthogonal()] {
      let a = initializer([4, 4], RandomGenerator(seed: 7))
      #expect(a.isEqual(to: initializer([4, 4], RandomGenerator(seed: 7))) && a.dtype == .float32)
      #expect(!a.isEqual(to: initializer([4, 4], RandomGenerator(seed: 8))))
    }
  }

  @Test func linearLayersStartAsInPyTorch() {
    let layer = Linear(300, 200, generator: RandomGenerator(seed: 2))
    expectUniform(layer.weight.detached().to(.float64), 1 / 300.0.squareRoot(), "weight")
    #expect(layer.bias!.abs().max().item() <= 1 / 300.0.squareRoot() && layer.bias!.abs().max().item() > 0)
    #expect(Linear(3, 2, initializer: .normal(1), generator: RandomGenerator(seed: 2)).bias!.abs().max().item() == 0)
  }
}
