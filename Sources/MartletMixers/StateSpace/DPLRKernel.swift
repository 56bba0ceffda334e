import Foundation
import MartletNN

/// D independent state spaces whose matrix is diagonal plus rank one (S4, Gu et al. 2021, arXiv 2111.00396, §3):
/// A = Λ − P P*, with the bilinear discretisation. The length-L kernel is found from its L-point generating function, which
/// the Woodbury identity turns into four Cauchy sums (Theorem 3 and Algorithm 1), and one inverse FFT.
///
/// What is trained is C̃ = C(I − Ā^L) for a fixed L; a longer sequence doubles L by C̃ ← C̃(I + Ā^L).
///
/// The kernel is made in float64 whatever the type of the parameters, and rounded to that type: in v/(g − h p) both v and p are
/// multiples of Δ, and the two parts of its derivative nearly cancel at low frequencies.
public final class DPLRKernel: Module {
  /// log Δ, [D].
  @Parameter(key: "log_dt") public var logStep: Tensor
  /// log(−Re Λ), [S, N/2]: of S systems that the channels share in turn, D unless told otherwise.
  @Parameter(key: "log_A_real") public var logDecay: Tensor
  /// Im Λ, [S, N/2].
  @Parameter(key: "A_imag") public var frequency: Tensor
  /// B as pairs (re, im), [S, N/2, 2].
  @Parameter(key: "B") public var input: Tensor
  /// P as pairs, [S, N/2, 2].
  @Parameter(key: "P") public var lowRank: Tensor
  /// C̃ as pairs, [directions, D, N/2, 2].
  @Parameter(key: "C") public var output: Tensor
  /// The length L that C̃ belongs to, a number kept in the state so that a checkpoint means what it says.
  @Buffer(key: "L") public var kernelLength: Tensor

  /// The state matrix at the start.
  public enum Initialization: String, Codable, Sendable, CaseIterable {
    /// HiPPO-LegS.
    case legs
    /// As ``DiagonalKernel/Initialization/random``, P too.
    case random
  }

  /// Parameters as of ``DiagonalKernel``; length: L at the start.
  public init(
    width: Int, state: Int = 64, length: Int, directions: Int = 1, systems: Int? = nil, initialization: Initialization = .legs,
    stepRange: ClosedRange<Double> = 1e-3...1e-1, inputClip: Double? = nil, generator: RandomGenerator
  ) {
    super.init()
    require(length > 0, "the kernel length must be positive, got \(length)")
    let half = state / 2
    let start = SystemStart(width: width, systems: systems, generator: generator)
    kernelLength = Tensor([length])
    let c: Tensor
    switch initialization {
    case .legs:
      let parts = HiPPO.representatives(state, inputClip: inputClip)
      logStep = start.logStep(in: stepRange)
      logDecay = start.spread((-parts.Lambda.realPart).log())
      frequency = start.spread(parts.Lambda.imaginaryPart)
      input = start.spread(pairs(parts.B))
      lowRank = start.spread(pairs(parts.P))
      c = Tensor.randomNormal([directions, width, half, 2], generator: generator) * 0.5.squareRoot()
    case .random:
      logStep = start.noise([width])
      logDecay = start.noise([start.systems, half])
      frequency = start.noise([start.systems, half])
      input = start.noise([start.systems, half, 2])
      lowRank = start.noise([start.systems, half, 2])
      c = start.noise([directions, width, half, 2])
    }
    output = c
    output = withoutGradient { pairs(multiply(c.viewAsComplex(), identityMinus: power(length)).to(.complex64)) }
  }

  public static let slowParameters = ["log_dt", "log_A_real", "A_imag", "B", "P"]

  /// The half set of Λ, [D, N/2] complex128.
  public var transitionMatrix: Tensor {
    Tensor.complex(-perChannel(logDecay).to(.float64).exp(), perChannel(frequency).to(.float64))
  }

  private func perChannel(_ x: Tensor) -> Tensor { spreadOverChannels(x, logStep.dim(0)) }
  /// Pairs as complex128, for every channel.
  private func wide(_ pairs: Tensor) -> Tensor { perChannel(pairs).to(.float64).viewAsComplex() }

  // MARK: The kernel

  /// Doubles L until it is at least `length`, without changing the function.
  public func reserve(length: Int) { while kernelLength.itemInt() < length { doubleLength() } }

  /// [directions, D, length]. A longer sequence than before doubles L first; a shorter one takes the kernel's beginning.
  public func callAsFunction(length: Int) -> Tensor {
    reserve(length: length)
    let whole = kernelLength.itemInt()
    let directions = output.dim(0)
    let lambda = transitionMatrix
    let step = logStep.to(.float64).exp().expandedDimension(-1).to(.complex128)
    let (b, p, c) = (wide(input), wide(lowRank), output.to(.float64).viewAsComplex())
    // Nodes of the unit circle; multiplied through by (1 + ω)/2 nothing is singular at ω = −1.
    let angles = Tensor.arange(0, Double(whole / 2 + 1), dtype: .float64, device: lambda.device) * (-2 * .pi / Double(whole))
    let omega = Tensor.complex(angles.cos(), angles.sin())
    let (g, h) = (1.0 - omega, (omega + 1.0) * 0.5)
    let rows = concatenated(
      [c * b, c * p].map { $0 } + [(p.conjugated() * b).expandedDimension(0), (p.conjugated() * p).expandedDimension(0)], axis: 0)
    let sums = cauchyKernel(
      numerators: (rows * step).resolvingConjugate(), poles: (lambda * step).resolvingConjugate(), nodesG: g, nodesH: h)
    let cb = sums[..<directions]
    let cp = sums[directions..<2 * directions]
    let pb = sums[2 * directions]
    let pp = sums[2 * directions + 1]
    let spectrum = cb - cp * pb * h / (pp * h + 1.0)
    return spectrum.irfft(length: whole)[.ellipsis, ..<length].to(logStep.dtype)
  }

  // MARK: Dense forms, over all N states in complex128

  /// Ā and B̄ of every channel: [D, N, N] and [D, N] complex128.
  public func dense() -> (A: Tensor, B: Tensor) {
    func closed(_ x: Tensor) -> Tensor { concatenated([x, x.conjugated()], axis: -1).resolvingConjugate() }
    let lambda = closed(transitionMatrix)
    let p = closed(wide(lowRank))
    let b = closed(wide(input))
    let step = logStep.to(.float64).exp().reshaped(-1, 1, 1).to(.complex128)
    let a = lambda.asDiagonal() - p.expandedDimension(-1) * p.conjugated().expandedDimension(-2)
    let identity = Tensor.eye(a.dim(-1), dtype: .float64).to(.complex128)
    let left = identity - a * step * 0.5
    return (left.solve(identity + a * step * 0.5), left.solve(b.expandedDimension(-1) * step).squeezed(-1))
  }

  /// Ā^n by repeated squaring, [D, N, N] complex128.
  private func power(_ n: Int) -> Tensor { dense().A.matrixPower(n) }

  /// The half set of c (I − M) for c [S, D, N/2] given by its half and M [D, N, N].
  private func multiply(_ c: Tensor, identityMinus m: Tensor) -> Tensor {
    let half = c.dim(-1)
    let row = concatenated([c, c.conjugated()], axis: -1).to(.complex128).expandedDimension(-2)  // [S, D, 1, N]
    return (row - row.matmul(m)).squeezed(-2)[.ellipsis, ..<half]
  }

  /// C̃ ← C̃ (I + Ā^L), L ← 2L.
  private func doubleLength() {
    withoutGradient {
      let length = kernelLength.itemInt()
      let longer = multiply(output.viewAsComplex(), identityMinus: power(length) * -1.0)
      output.copyInPlace(pairs(longer))
      kernelLength.copyInPlace(Tensor([2 * length]))
    }
  }

  /// C of the recurrence, C̃ (I − Ā^L)⁻¹, as its half set [directions, D, N/2] complex128.
  public func recurrentOutput() -> Tensor {
    let half = output.dim(-2)
    let c = output.viewAsComplex()
    let row = concatenated([c, c.conjugated()], axis: -1).to(.complex128)  // [S, D, N]
    let identity = Tensor.eye(2 * half, dtype: .float64).to(.complex128)
    let m = (identity - power(kernelLength.itemInt())).T  // x (I − M) = c  ⇔  (I − M)ᵀ xᵀ = cᵀ
    return m.solve(row.expandedDimension(-1)).squeezed(-1)[.ellipsis, ..<half]
  }

  /// What the O(N) step needs: with E = 2/Δ + Λ and F = 1/(2/Δ − Λ),
  /// t = E⊙x − P(P*x) + 2Bu,  x ← F⊙(t − P(P*(F⊙t))/(1 + P*(F⊙P))); inner products over the conjugate-closed set.
  public struct StepTerms: @unchecked Sendable {
    /// F⊙E, F⊙P, 2F⊙B, P and C, [D, N/2].
    let fe, fp, fb, p, c: Tensor
    /// 1/(1 + P*(F⊙P)), [D, 1].
    let gain: Tensor
    /// The five vectors as the kernel reads them, sixteen channels side by side: [⌈D/16⌉, N/2, 5, 2, 16].
    let packed: Tensor

    fileprivate init(fe: Tensor, fp: Tensor, fb: Tensor, p: Tensor, c: Tensor, gain: Tensor) {
      (self.fe, self.fp, self.fb, self.p, self.c, self.gain) = (fe, fp, fb, p, c, gain)
      let vectors = stacked([fe, fp, fb, p, c].map { $0.detached().viewAsReal() })  // [5, D, N/2, 2]
      let (width, states) = (vectors.dim(1), vectors.dim(2))
      let padded = vectors.padded([0, 0, 0, 0, 0, (16 - width % 16) % 16])
      packed = padded.reshaped(5, -1, 16, states, 2).transposed(1, 3, 0, 4, 2).contiguous()
    }
  }

  public func stepTerms() -> StepTerms {
    let lambda = transitionMatrix
    let twoOverStep = ((-logStep.to(.float64)).exp() * 2.0).expandedDimension(-1).to(.complex128)
    let p = wide(lowRank)
    let f = (twoOverStep - lambda).reciprocal()
    let inner = (p.conjugated() * f * p).sum(axis: -1, keepDims: true).realPart * 2.0 + 1.0
    let type = logStep.dtype
    func rounded(_ x: Tensor) -> Tensor { x.to(type.complex).resolvingConjugate().contiguous() }
    return StepTerms(
      fe: rounded(f * (twoOverStep + lambda)), fp: rounded(f * p), fb: rounded(f * wide(input) * 2.0), p: rounded(p),
      c: rounded(recurrentOutput()[0]), gain: inner.reciprocal().to(type))
  }

  /// One token. u: [B, D]; x: [B, D, N/2] complex → 2 Re(C x), [B, D].
  public static func step(_ u: Tensor, _ x: inout Tensor, _ terms: StepTerms) -> Tensor {
    func inner(_ v: Tensor) -> Tensor {  // P* v over the closed set: real
      (terms.p.conjugated() * v).sum(axis: -1, keepDims: true).realPart * 2.0
    }
    let ft = terms.fe * x - terms.fp * inner(x) + terms.fb * u.expandedDimension(-1)
    x = ft - terms.fp * (inner(ft) * terms.gain)
    return (terms.c * x).sum(axis: -1).realPart * 2.0
  }
}
