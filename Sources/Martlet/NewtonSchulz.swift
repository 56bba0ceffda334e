/// Newton–Schulz iterations towards the orthogonal factor of each matrix (Jordan et al. 2024, *Muon*), over the last two axes:
///
///     X₀ = M/‖M‖_F,      X ← a X + (b G + c G²) X with G = X Xᵀ,      (a, b, c) = (3.4445, −4.7750, 2.0315)
///
/// For M = U Σ Vᵀ the result is U f(Σ) Vᵀ with f(σ) in about [0.7, 1.2], not exactly 1, for every σ ≥ 0.01 ‖M‖_F; smaller ones are
/// lifted less. Tall matrices are transposed meanwhile. Differentiable. Computed in float32 at least: in 16 bits the iterations drift.
///
/// - Parameter epsilon: added to the norm, so that a matrix of zeros gives zeros.
public func newtonSchulz(_ matrix: Tensor, steps: Int = 5, epsilon: Double = 1e-7) -> Tensor {
  require(matrix.rank >= 2, "an orthogonal factor needs matrices, got \(matrix.shape)")
  let isShort = matrix.dtype == .bfloat16 || matrix.dtype == .float16
  if isShort { return newtonSchulz(matrix.to(.float32), steps: steps, epsilon: epsilon).to(matrix.dtype) }
  if isAutocastEnabled(matrix.device) {
    return withAutocast(false, device: matrix.device) { newtonSchulz(matrix, steps: steps, epsilon: epsilon) }
  }
  let isTall = matrix.dim(-2) > matrix.dim(-1)
  var x = isTall ? matrix.T : matrix
  // √(Σ + ε²) has a slope at 0; ‖·‖ hasn't.
  x = x / (x.square().sum(axes: [-2, -1], keepDims: true) + epsilon * epsilon).sqrt()
  for _ in 0..<steps {
    let gram = x.matmul(x.T)
    x = x * 3.4445 + (gram * -4.7750 + gram.matmul(gram) * 2.0315).matmul(x)
  }
  return isTall ? x.T : x
}
