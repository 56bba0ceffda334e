import Foundation

/// All monomials of degree at most p of the channels, weighted so that products of features are a polynomial in products of vectors
/// (Behrouz et al. 2025, arXiv 2505.23735):
///
///     φ(x)·φ(y) = Σ_{i ≤ p} a_i (x·y)^i,      F = C(d + p, p) features
///
/// with trainable a_i > 0 that begin as 1/i!, the series of e^{x·y}. For p = 2: [√a₀, √a₁ x, √a₂ (x_i²; √2 x_i x_j)]. A linear memory
/// of such keys holds O(d^p) pairs instead of d. On CPU in float32 it is `martlet::polynomial_features`.
public final class PolynomialFeatures: Module {
  /// log a_i, [p + 1].
  @Parameter(key: "log_coefficients") public var logCoefficients: Tensor
  /// Channels.
  public let width: Int
  /// p.
  public let degree: Int
  /// Divides the a_i by their sum, so that vectors of length one have features of length one.
  public let normalized: Bool

  private let monomials: Monomials

  public var features: Int { Self.count(width: width, degree: degree) }

  public init(width: Int, degree: Int, normalized: Bool = false) {
    require(width > 0 && degree >= 0, "polynomial features need channels and a degree, got \(width) and \(degree)")
    self.width = width
    self.degree = degree
    self.normalized = normalized
    monomials = Monomials(width: width, degree: degree)
    super.init()
    var value = 0.0
    let logs = (0...degree).map { i -> Double in
      if i > 1 { value -= log(Double(i)) }
      return value
    }
    logCoefficients = Initializer.isSkipped ? Initializer.zeros([degree + 1], RandomGenerator(seed: 0)) : Tensor(logs).to(.float32)
  }

  /// C(d + p, p).
  public static func count(width: Int, degree: Int) -> Int { (0..<degree).reduce(1) { $0 * (width + $1 + 1) / ($1 + 1) } }

  /// a_0 … a_p.
  public var coefficients: Tensor { normalized ? logCoefficients.softmax() : logCoefficients.exp() }

  /// x: [..., d] → [..., F].
  public func callAsFunction(_ x: Tensor) -> Tensor {
    guard fusedKernelsServe(x), logCoefficients.dtype == .float32 else { return reference(x) }
    return kernel(.tensor(x), .tensor(coefficients))
  }

  /// By the equation, in plain operators: the product of p channels of [1, x], picked in order.
  public func reference(_ x: Tensor) -> Tensor {
    let extended = concatenated([.ones(Array(x.shape.dropLast()) + [1], dtype: x.dtype, device: x.device), x], axis: -1)
    let scale = coefficients.take(Tensor(monomials.degrees).to(x.device)) * Tensor(monomials.multiplicities).to(x.dtype).to(x.device)
    let factors = scale.sqrt().broadcast(to: x.shape.dropLast() + [features])
    return monomials.factors.reduce(factors) { $0 * extended.take(Tensor($1).to(x.device), axis: -1) }
  }

  public func multiplyAdds() -> Int { features }
}

private let kernel = Operator("martlet::polynomial_features")

/// The monomials by degree and lexicographic inside one, as the kernel lists them.
private struct Monomials {
  /// p lists: the factors of each monomial among [1, x].
  let factors: [[Int]]
  let degrees: [Int]
  /// n!/Π m_j! of the exponents m_j.
  let multiplicities: [Double]

  init(width: Int, degree: Int) {
    var all: [[Int]] = [[]]
    var last = all
    for _ in 0..<degree {
      last = (1...width).flatMap { variable in last.filter { ($0.first ?? variable) >= variable }.map { [variable] + $0 } }
      all += last
    }
    factors = (0..<degree).map { place in all.map { place < $0.count ? $0[place] : 0 } }
    degrees = all.map(\.count)
    multiplicities = all.map { monomial in
      // A run of m equal factors among n: n!/Π m! as a product of one fraction a factor.
      var (result, run) = (1.0, 0)
      for (i, factor) in monomial.enumerated() {
        run = i > 0 && monomial[i - 1] == factor ? run + 1 : 1
        result *= Double(i + 1) / Double(run)
      }
      return result
    }
  }
}
