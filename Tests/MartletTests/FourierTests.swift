import Foundation
import Testing

@testable import Martlet

@Suite struct FourierTests {
  @Test func transformsAreTheirDefinition() {
    let n = 7
    let x = complexNormal([n], seed: 1)
    let phases = Tensor.arange(0, Double(n), dtype: .float64)
    let angles = phases.expandedDimension(1) * phases * (-2 * Double.pi / Double(n))
    let matrix = Tensor.polar(Tensor.ones(like: angles), angles)
    #expect(difference(x.fft(), matrix.matmul(x)) < 1e-13)
    #expect(difference(x.fft().ifft(), x) < 1e-14)
  }

  @Test(arguments: [8, 9]) func realTransformsKeepTheNonNegativeFrequencies(n: Int) {
    let x = normal([2, n], seed: 2)
    let spectrum = x.rfft()
    #expect(spectrum.shape == [2, n / 2 + 1])
    #expect(difference(spectrum, x.to(.complex128).fft()[.all, ..<(n / 2 + 1)]) < 1e-13)
    #expect(difference(spectrum.irfft(length: n), x) < 1e-14)
  }

  @Test func lengthsPadAndTruncate() {
    let x = normal([5], seed: 3)
    #expect(difference(x.rfft(length: 8), x.padded([0, 3]).rfft()) < 1e-14)
    #expect(difference(x.rfft(length: 4), x[0..<4].rfft()) < 1e-14)
    #expect(difference(normal([5, 3], seed: 4).fft(axis: 0), normal([5, 3], seed: 4).T.fft().T) < 1e-13)
  }

  @Test func parsevalHolds() {
    let x = normal([32], seed: 5)
    #expect(abs(x.fft().abs().square().sum().item() / 32 - x.square().sum().item()) < 1e-12)
  }

  @Test func productsOfSpectraAreCircularConvolutions() {
    let (a, b) = (normal([6], seed: 6), normal([6], seed: 7))
    let direct = stacked((0..<6).map { shift in (a * b.flipped(axis: 0).rolled(by: shift + 1, axis: 0)).sum() })
    #expect(difference((a.rfft() * b.rfft()).irfft(length: 6), direct) < 1e-13)
  }

  @Test func twoDimensionalTransformsAreOneAfterTheOther() {
    let x = complexNormal([3, 4, 5], seed: 8)
    #expect(difference(x.fft2(), x.fft(axis: -1).fft(axis: -2)) < 1e-13)
    #expect(difference(x.fft2().ifft2(), x) < 1e-14)
  }

  @Test func gradientsAgreeWithFiniteDifferences() {
    let x = normal([2, 9], seed: 9)
    let real = gradientError([x]) { ($0[0].rfft(length: 12).abs().square() + 1.0).log().sum() }
    let inverse = gradientError([x.reshaped(2, 9)]) { ($0[0].rfft() * $0[0].rfft()).irfft(length: 9).sin().sum() }
    let complex = gradientError([x]) { Tensor.complex($0[0], $0[0].sin()).fft().realPart.tanh().sum() }
    #expect(real < 1e-7 && inverse < 1e-7 && complex < 1e-7, "\(real), \(inverse), \(complex)")
  }
}
