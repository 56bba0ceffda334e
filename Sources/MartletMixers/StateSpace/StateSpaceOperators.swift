import Foundation
import MartletNN

private enum Kernels {
  static let vandermonde = Operator("martlet::vandermonde_kernel")
  static let cauchy = Operator("martlet::cauchy_kernel")
  static let convolution = Operator("martlet::fft_convolution")
  static let convolutionBidirectional = Operator("martlet::fft_convolution_bidirectional")
  static let step = Operator("martlet::diagonal_ssm_step")
  static let lowRankScan = Operator("martlet::dplr_ssm_scan")
}

private func fusedComplex(_ x: Tensor, _ types: [DType] = [.complex64]) -> Bool {
  !KernelChoice.referenceOnly && x.device == .cpu && types.contains(x.dtype)
}

/// K_l = 2 Re Σ_n c_n e^{l a_n}, l = 0..<length: coefficient [(S,) D, N] and log-transition [D, N] complex → [(S,) D, length].
public func vandermondeKernel(coefficient: Tensor, logTransition: Tensor, length: Int) -> Tensor {
  guard fusedComplex(coefficient) else {
    return vandermondeKernelReference(coefficient: coefficient, logTransition: logTransition, length: length)
  }
  return Kernels.vandermonde(.tensor(coefficient), .tensor(logTransition), .int(length))
}

/// The same with every power made explicitly, [D, N, length] in memory: the oracle. On the CPU in float64: a phase of many turns would
/// lose its digits.
public func vandermondeKernelReference(coefficient: Tensor, logTransition: Tensor, length: Int) -> Tensor {
  let type: DType = logTransition.device == .cpu ? .complex128 : logTransition.dtype
  let steps = Tensor.arange(0, Double(length), dtype: type.real, device: logTransition.device).to(type)
  let powers = (logTransition.to(type).expandedDimension(-1) * steps).exp()  // [D, N, L]
  return (coefficient.to(type).expandedDimension(-1) * powers).sum(axis: -2).realPart.to(coefficient.dtype.real) * 2.0
}

/// r_mj = Σ_n v_mn/(g_j − h_j p_n) + conj(v_mn)/(g_j − h_j conj(p_n)): numerators [M, D, N], poles [D, N], nodes [J] → [M, D, J].
/// All complex64 or all complex128.
public func cauchyKernel(numerators: Tensor, poles: Tensor, nodesG: Tensor, nodesH: Tensor) -> Tensor {
  guard fusedComplex(numerators, [.complex64, .complex128]) else {
    return cauchyKernelReference(numerators: numerators, poles: poles, nodesG: nodesG, nodesH: nodesH)
  }
  return Kernels.cauchy(.tensor(numerators), .tensor(poles), .tensor(nodesG), .tensor(nodesH))
}

/// The same with the whole Cauchy matrix in memory: the oracle.
public func cauchyKernelReference(numerators: Tensor, poles: Tensor, nodesG: Tensor, nodesH: Tensor) -> Tensor {
  func half(_ v: Tensor, _ p: Tensor) -> Tensor {
    let matrix = (nodesG - p.expandedDimension(-1) * nodesH).reciprocal()  // [D, N, J]
    return einsum("mdn,dnj->mdj", v, matrix)
  }
  return half(numerators, poles) + half(numerators.conjugated(), poles.conjugated())
}

/// The causal convolution y_l = Σ_{m ≤ l} k_m u_{l−m} + skip·u_l, never wrapping, plus, when `reversed` is given, the
/// convolution with that kernel of the reversed sequence.
///
/// - Parameters:
///   - input: [B, D, L], best as a transpose of [B, L, D].
///   - kernel: [D, M]; skip: [D].
public func longConvolution(_ input: Tensor, _ kernel: Tensor, reversed: Tensor? = nil, skip: Tensor? = nil) -> Tensor {
  guard fusedKernelsServe(input) else { return longConvolutionReference(input, kernel, reversed: reversed, skip: skip) }
  if let reversed {
    return Kernels.convolutionBidirectional(.tensor(input), .tensor(kernel), .tensor(reversed), .tensor(skip))
  }
  return Kernels.convolution(.tensor(input), .tensor(kernel), .tensor(skip))
}

/// The same by padded real Fourier transforms: the oracle, and the path of other devices.
public func longConvolutionReference(_ input: Tensor, _ kernel: Tensor, reversed: Tensor? = nil, skip: Tensor? = nil) -> Tensor {
  let length = input.dim(-1)
  let size = length + kernel.dim(-1)
  func causal(_ x: Tensor, _ k: Tensor) -> Tensor {
    (x.rfft(length: size) * k.rfft(length: size)).irfft(length: size)[.ellipsis, ..<length]
  }
  var y = causal(input, kernel)
  if let reversed { y = y + causal(input.flipped(axis: -1), reversed).flipped(axis: -1) }
  if let skip { y = y + input * skip.expandedDimension(-1) }
  return y
}

/// One step of diagonal systems in place: x ← Ā ⊙ x + B̄ u, returns 2 Re(Σ_n C_n x_n) + skip·u.
/// input [B, D]; c, b, transition [D, N] complex; state [B, D, N] complex.
func diagonalStep(_ input: Tensor, c: Tensor, b: Tensor, transition: Tensor, skip: Tensor?, state: Tensor) -> (y: Tensor, state: Tensor) {
  if fusedComplex(state) && !isGradientEnabled {
    return (Kernels.step(.tensor(input), .tensor(c), .tensor(b), .tensor(transition), .tensor(skip), .tensor(state)), state)
  }
  let next = transition * state + b * input.expandedDimension(-1).to(b.dtype)
  var y = (c * next).sum(axis: -1).realPart * 2.0
  if let skip { y = y + skip * input }
  return (y, next)
}

/// Diagonal-plus-rank-one systems run over input [B, L, D] from a state [B, D, N/2] complex, which they leave at the last token; returns
/// 2 Re(C x) + skip·u, [B, L, D]. See ``DPLRKernel/StepTerms``.
func lowRankScan(_ input: Tensor, _ terms: DPLRKernel.StepTerms, skip: Tensor, state: inout Tensor) -> Tensor {
  if fusedComplex(state) && !isGradientEnabled {
    return Kernels.lowRankScan(.tensor(input), .tensor(terms.packed), .tensor(terms.gain), .tensor(skip), .tensor(state))
  }
  let rows = (0..<input.dim(1)).map { DPLRKernel.step(input.selected(axis: 1, $0), &state, terms) }
  return stacked(rows, axis: 1) + input * skip
}
