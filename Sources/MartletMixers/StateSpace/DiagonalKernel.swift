import Foundation
import MartletNN

/// D independent diagonal state spaces (S4D, Gu et al. 2022, arXiv 2206.11893) and the convolution kernel they amount to:
///
///     x' = Λ x + B u,  y = 2 Re(C x),      K_l = 2 Re Σ_n C_n B̄_n Ā_n^l              (eqs. 2–4)
///
/// over N/2 representatives of conjugate pairs. All parameters are trained; Re Λ < 0 by construction.
public final class DiagonalKernel: Module {
  /// The state matrix at the start.
  public enum Initialization: String, Codable, Sendable, CaseIterable {
    /// −½ + iπn: frequencies on a line.
    case lin
    /// The diagonal part of HiPPO-LegS.
    case legs
    /// −½ + i(N/π)(N/(2n+1) − 1), the closed form close to LegS's.
    case inv
  }

  /// log Δ, [D].
  @Parameter(key: "log_dt") public var logStep: Tensor
  /// log(−Re Λ), [D, N/2].
  @Parameter(key: "log_A_real") public var logDecay: Tensor
  /// Im Λ, [D, N/2].
  @Parameter(key: "A_imag") public var frequency: Tensor
  /// B as pairs (re, im), [D, N/2, 2].
  @Parameter(key: "B") public var input: Tensor
  /// C as pairs, [directions, D, N/2, 2].
  @Parameter(key: "C") public var output: Tensor
  public let discretization: Discretization

  public init(
    width: Int, state: Int = 64, directions: Int = 1, initialization: Initialization = .lin, discretization: Discretization = .zoh,
    stepRange: ClosedRange<Double> = 1e-3...1e-1, generator: RandomGenerator
  ) {
    require(state % 2 == 0 && state > 0, "the state size must be even and positive, got \(state)")
    self.discretization = discretization
    super.init()
    let half = state / 2
    let (low, high) = (log(stepRange.lowerBound), log(stepRange.upperBound))
    logStep = Tensor.random([width], generator: generator) * (high - low) + low
    let n = Tensor.arange(0, Double(half), dtype: .float64)
    let lambda: (real: Tensor, imaginary: Tensor)
    var b = Tensor.complex(Tensor.ones([half], dtype: .float64), Tensor.zeros([half], dtype: .float64))
    let realPart = Tensor.full([half], -0.5, dtype: .float64)
    switch initialization {
    case .lin: lambda = (realPart, n * .pi)
    case .inv: lambda = (realPart, ((n * 2.0 + 1.0).reciprocal() * Double(state) - 1.0) * (Double(state) / .pi))
    case .legs:
      let parts = HiPPO.representatives(state)
      lambda = (parts.Lambda.realPart, parts.Lambda.imaginaryPart)
      b = parts.B
    }
    func spread(_ x: Tensor) -> Tensor { x.to(.float32).broadcast(to: [width] + x.shape).contiguous() }
    logDecay = spread((-lambda.real).log())
    frequency = spread(lambda.imaginary)
    input = spread(b.resolvingConjugate().viewAsReal().copy())
    // Complex normal of unit variance, half of it in each part.
    output = Tensor.randomNormal([directions, width, half, 2], generator: generator) * 0.5.squareRoot()
  }

  /// Parameters that need their own, smaller learning rate and no weight decay (S4's recipe).
  public static let slowParameters = ["log_dt", "log_A_real", "A_imag", "B"]

  /// Λ [D, N/2] complex.
  public var transitionMatrix: Tensor { Tensor.complex(-logDecay.exp(), frequency) }

  /// log Ā and B̄, both [D, N/2] complex.
  public func discretized() -> (logTransition: Tensor, input: Tensor) {
    let lambda = transitionMatrix
    let step = logStep.exp().expandedDimension(-1)
    let scaled = lambda * step.to(lambda.dtype)
    let b = self.input.viewAsComplex()
    switch discretization {
    case .zoh: return (scaled, phi1(scaled) * step.to(lambda.dtype) * b)
    case .bilinear:
      // log((1 + z/2)/(1 − z/2)), whose quotient is close to 1 for small steps.
      return (atanh(.tensor(scaled * 0.5)) * 2.0, b * step.to(lambda.dtype) / (1.0 - scaled * 0.5))
    }
  }

  /// The kernels of all directions, [directions, D, length].
  public func callAsFunction(length: Int) -> Tensor {
    let (logTransition, b) = discretized()
    return vandermondeKernel(coefficient: output.viewAsComplex() * b, logTransition: logTransition, length: length)
  }
}

private let atanh = Operator("aten::atanh")

/// (e^z − 1)/z of complex numbers. Near 0, where the difference and still more its derivative lose their digits (with Δ = 10⁻³
/// four of float32's seven), it is the series 1 + z/2! + z²/3! + … instead.
func phi1(_ z: Tensor) -> Tensor {
  let isSmall = z.abs() .< 0.1
  // 0.1⁵/6! = 10⁻⁸ and 0.1¹⁰/11! = 3·10⁻¹⁸ are below the rounding of each precision.
  let terms = z.dtype == .complex128 ? 10 : 5
  var series = Tensor.ones(like: z)
  for n in stride(from: terms, through: 2, by: -1) { series = series * z * (1 / Double(n)) + 1.0 }
  return select(isSmall, series, (z.exp() - 1.0) / z)
}
