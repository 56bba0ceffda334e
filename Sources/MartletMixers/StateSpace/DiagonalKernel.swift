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
    /// Every parameter of the kernel, log Δ and C too, normal of deviation 0.1: the ablation of *Never Train from Scratch* (Amos et
    /// al. 2023), which asks what the structured start is worth.
    case random
  }

  /// log Δ, [D].
  @Parameter(key: "log_dt") public var logStep: Tensor
  /// log(−Re Λ), [S, N/2]: of S systems that the channels share in turn, D unless told otherwise.
  @Parameter(key: "log_A_real") public var logDecay: Tensor
  /// Im Λ, [S, N/2].
  @Parameter(key: "A_imag") public var frequency: Tensor
  /// B as pairs (re, im), [S, N/2, 2].
  @Parameter(key: "B") public var input: Tensor
  /// C as pairs, [directions, D, N/2, 2].
  @Parameter(key: "C") public var output: Tensor
  public let discretization: Discretization

  /// - Parameters:
  ///   - systems: S, the number of different (A, B), a divisor of the width; `nil` for one a channel.
  ///   - inputClip: bounds |Im B| at the start; `nil` for not (the authors' code has 2 for LegS).
  public init(
    width: Int, state: Int = 64, directions: Int = 1, systems: Int? = nil, initialization: Initialization = .lin,
    discretization: Discretization = .zoh, stepRange: ClosedRange<Double> = 1e-3...1e-1, inputClip: Double? = nil,
    generator: RandomGenerator
  ) {
    require(state % 2 == 0 && state > 0, "the state size must be even and positive, got \(state)")
    self.discretization = discretization
    super.init()
    let half = state / 2
    let start = SystemStart(width: width, systems: systems, generator: generator)
    guard initialization != .random else {
      logStep = start.noise([width])
      logDecay = start.noise([start.systems, half])
      frequency = start.noise([start.systems, half])
      input = start.noise([start.systems, half, 2])
      output = start.noise([directions, width, half, 2])
      return
    }
    logStep = start.logStep(in: stepRange)
    let n = Tensor.arange(0, Double(half), dtype: .float64)
    let lambda: (real: Tensor, imaginary: Tensor)
    var b = Tensor.complex(Tensor.ones([half], dtype: .float64), Tensor.zeros([half], dtype: .float64))
    let realPart = Tensor.full([half], -0.5, dtype: .float64)
    switch initialization {
    case .lin: lambda = (realPart, n * .pi)
    case .inv: lambda = (realPart, ((n * 2.0 + 1.0).reciprocal() * Double(state) - 1.0) * (Double(state) / .pi))
    case .legs, .random:
      let parts = HiPPO.representatives(state, inputClip: inputClip)
      lambda = (parts.Lambda.realPart, parts.Lambda.imaginaryPart)
      b = parts.B
    }
    logDecay = start.spread((-lambda.real).log())
    frequency = start.spread(lambda.imaginary)
    input = start.spread(pairs(b))
    // Complex normal of unit variance, half of it in each part.
    output = Tensor.randomNormal([directions, width, half, 2], generator: generator) * 0.5.squareRoot()
  }

  /// Parameters that need their own, smaller learning rate and no weight decay (S4's recipe).
  public static let slowParameters = ["log_dt", "log_A_real", "A_imag", "B"]

  /// Λ [D, N/2] complex.
  public var transitionMatrix: Tensor { Tensor.complex(-perChannel(logDecay).exp(), perChannel(frequency)) }

  private func perChannel(_ x: Tensor) -> Tensor { spreadOverChannels(x, logStep.dim(0)) }

  /// log Ā and B̄, both [D, N/2] complex.
  public func discretized() -> (logTransition: Tensor, input: Tensor) {
    let lambda = transitionMatrix
    let step = logStep.exp().expandedDimension(-1)
    let scaled = lambda * step.to(lambda.dtype)
    let b = perChannel(self.input).viewAsComplex()
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

/// What the state spaces' parameters are at the start.
struct SystemStart {
  let width: Int
  let systems: Int
  let generator: RandomGenerator

  init(width: Int, systems: Int?, generator: RandomGenerator) {
    self.width = width
    self.systems = systems ?? width
    self.generator = generator
    require(self.systems > 0 && width % self.systems == 0, "\(self.systems) systems don't divide \(width) channels")
  }

  /// log Δ ~ U(log least, log greatest), [D].
  func logStep(in range: ClosedRange<Double>) -> Tensor {
    let (low, high) = (log(range.lowerBound), log(range.upperBound))
    return Tensor.random([width], generator: generator) * (high - low) + low
  }
  /// One row for every system.
  func spread(_ x: Tensor) -> Tensor { x.to(.float32).broadcast(to: [systems] + x.shape).contiguous() }
  func noise(_ shape: [Int]) -> Tensor { Tensor.randomNormal(shape, generator: generator) * 0.1 }
}

/// [S, …] → [D, …]: channel d has system d mod S.
func spreadOverChannels(_ x: Tensor, _ width: Int) -> Tensor {
  x.dim(0) == width ? x : x.expandedDimension(0).broadcast(to: [width / x.dim(0)] + x.shape).reshaped([width] + x.shape.dropFirst())
}

/// Complex numbers as pairs (re, im) in a last axis of 2.
func pairs(_ x: Tensor) -> Tensor { x.resolvingConjugate().viewAsReal().copy() }

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
