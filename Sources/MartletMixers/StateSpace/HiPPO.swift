import Foundation
import MartletNN

/// The HiPPO-LegS system (Gu et al. 2020; S4's appendix B): its state holds the Legendre coefficients of the whole past.
public enum HiPPO {
  /// A [N, N] and B [N] in float64: A_nk = −√(2n+1)√(2k+1) below the diagonal, −(n+1) on it; B_n = √(2n+1).
  public static func legS(_ n: Int) -> (A: Tensor, B: Tensor) {
    var a = [Double](repeating: 0, count: n * n)
    for i in 0..<n {
      for k in 0...i { a[i * n + k] = i == k ? -Double(i + 1) : -(Double((2 * i + 1) * (2 * k + 1)).squareRoot()) }
    }
    return (Tensor(a, [n, n]), Tensor((0..<n).map { Double(2 * $0 + 1).squareRoot() }))
  }

  /// The Legendre system of a sliding window (LegT; Voelker et al. 2019, eqs. 1–2): its state holds the shifted Legendre coefficients of
  /// the last `window` time units, u(t − τ) ≈ Σ_i P_i(2τ/θ − 1) m_i.
  ///
  /// - Returns: A [n, n] and B [n] in float64 with R_i = (2i + 1)/θ: A_ij = R_i · (−1 above the diagonal, else (−1)^{i−j+1}),
  ///   B_i = R_i (−1)^i.
  public static func legT(_ n: Int, window: Double) -> (A: Tensor, B: Tensor) {
    let rates = (0..<n).map { Double(2 * $0 + 1) / window }
    var a = [Double](repeating: 0, count: n * n)
    for i in 0..<n {
      for j in 0..<n {
        let isNegative = i < j || (i - j) % 2 == 0
        a[i * n + j] = isNegative ? -rates[i] : rates[i]
      }
    }
    let b = rates.enumerated().map { $0.offset % 2 == 0 ? $0.element : -$0.element }
    return (Tensor(a, [n, n]), Tensor(b))
  }

  /// P [N] of the normal-plus-low-rank form: A + P Pᵀ = −½ I + skew; P_n = √(n + ½).
  public static func lowRank(_ n: Int) -> Tensor { Tensor((0..<n).map { (Double($0) + 0.5).squareRoot() }) }

  /// A = V (Λ − P̃ P̃*) V* with B̃ = V* B, diagonalised in float64 through the Hermitian matrix −i(S + ½I): float32 loses
  /// LegS from N = 64 on.
  ///
  /// - Returns: complex128 Λ [N], P̃ [N], B̃ [N] and V [N, N], all N of them.
  public static func diagonalPlusLowRank(_ n: Int) -> (Lambda: Tensor, P: Tensor, B: Tensor, V: Tensor) {
    let (a, b) = legS(n)
    let p = lowRank(n)
    let skew = a + p.expandedDimension(1) * p + Tensor.eye(n, dtype: .float64) * 0.5
    let hermitian = Tensor.complex(Tensor.zeros(like: skew), -skew)
    let (omega, v) = hermitian.eigh()
    let lambda = Tensor.complex(Tensor.full([n], -0.5, dtype: .float64), omega)
    let adjoint = v.conjugated().T
    func rotate(_ x: Tensor) -> Tensor { adjoint.matmul(x.to(.complex128).expandedDimension(1)).squeezed(1) }
    return (lambda, rotate(p), rotate(b), v)
  }

  /// The half of a conjugate-closed set with negative imaginary parts: N/2 representatives. N must be even.
  ///
  /// - Parameter inputClip: bounds |Im B|, as the authors' code does with 2. Eigenvectors are fixed up to a phase, so what this changes
  ///   depends on the library that finds them.
  public static func representatives(_ n: Int, inputClip: Double? = nil) -> (Lambda: Tensor, P: Tensor, B: Tensor) {
    require(n % 2 == 0 && n > 0, "the state size must be even and positive, got \(n)")
    let (lambda, p, b, _) = diagonalPlusLowRank(n)
    let half = Tensor.arange(n / 2)  // eigh sorts ω ascending: the first half is the negative one
    var input = b.take(half)
    if let inputClip { input = Tensor.complex(input.realPart, input.imaginaryPart.clamped(min: -inputClip, max: inputClip)) }
    return (lambda.take(half), p.take(half), input)
  }
}

/// How the continuous system becomes a recurrence with step Δ.
public enum Discretization: String, Codable, Sendable, CaseIterable {
  /// Ā = (1 − Δ/2 A)⁻¹ (1 + Δ/2 A), B̄ = (1 − Δ/2 A)⁻¹ Δ B.
  case bilinear
  /// Ā = e^{ΔA}, B̄ = (e^{ΔA} − 1) A⁻¹ B: exact for inputs held between samples.
  case zoh
}

/// Ā = e^{ΔA} and B̄ = A⁻¹(Ā − I)B, exact for an input held between samples, through the exponential of the augmented matrix
/// (ΔA ΔB; 0 0): A need not be invertible. A [n, n], B [n]; in float64, or LegT's signs cancel badly.
public func zeroOrderHold(_ A: Tensor, _ B: Tensor, step: Double = 1) -> (A: Tensor, B: Tensor) {
  let n = A.dim(0)
  let upper = concatenated([A, B.expandedDimension(1)], axis: 1)
  let augmented = concatenated([upper, Tensor.zeros([1, n + 1], dtype: A.dtype)])
  let exponential = (augmented * step).matrixExponential()
  return (exponential[..<n, ..<n].contiguous(), exponential[..<n, n].contiguous())
}
