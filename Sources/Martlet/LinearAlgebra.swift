private enum Linalg {
  static let svd = Operator("aten::linalg_svd")
  static let qr = Operator("aten::linalg_qr")
  static let eigh = Operator("aten::linalg_eigh")
  static let eig = Operator("aten::linalg_eig")
  static let cholesky = Operator("aten::linalg_cholesky")
  static let solve = Operator("aten::linalg_solve")
  static let solveTriangular = Operator("aten::linalg_solve_triangular")
  static let inv = Operator("aten::linalg_inv")
  static let pinv = Operator("aten::linalg_pinv", "atol_rtol_float")
  static let lstsq = Operator("aten::linalg_lstsq")
  static let det = Operator("aten::linalg_det")
  static let matrixNorm = Operator("aten::linalg_matrix_norm", "str_ord")
  static let matrixNormOrder = Operator("aten::linalg_matrix_norm")
  static let matrixExp = Operator("aten::linalg_matrix_exp")
  static let matrixPower = Operator("aten::linalg_matrix_power")
}

/// Linear algebra over the last two axes, batched over the others.
extension Tensor {
  /// `self = U diag(S) Vh`, reduced unless `full`. S is in descending order.
  public func svd(full: Bool = false) -> (U: Tensor, S: Tensor, Vh: Tensor) {
    let r = Linalg.svd.many(.tensor(self), .bool(full))
    return (r[0] ?? .skipped, r[1] ?? .skipped, r[2] ?? .skipped)
  }

  /// `self = Q R`, reduced.
  public func qr() -> (Q: Tensor, R: Tensor) {
    let r = Linalg.qr.many(.tensor(self), .string("reduced"))
    return (r[0] ?? .skipped, r[1] ?? .skipped)
  }

  /// Eigenvalues (ascending) and eigenvectors of a symmetric or Hermitian matrix.
  public func eigh() -> (values: Tensor, vectors: Tensor) {
    let r = Linalg.eigh.many(.tensor(self), .string("L"))
    return (r[0] ?? .skipped, r[1] ?? .skipped)
  }

  /// Complex eigenvalues and eigenvectors of a square matrix.
  public func eig() -> (values: Tensor, vectors: Tensor) {
    let r = Linalg.eig.many(.tensor(self))
    return (r[0] ?? .skipped, r[1] ?? .skipped)
  }

  /// The lower factor L of `self = L Lᴴ`.
  public func cholesky() -> Tensor { Linalg.cholesky(.tensor(self)) }

  /// X of `self X = right`.
  public func solve(_ right: Tensor) -> Tensor { Linalg.solve(.tensor(self), .tensor(right)) }

  /// X of `self X = right` for a triangular `self`.
  public func solveTriangular(_ right: Tensor, upper: Bool, unitDiagonal: Bool = false) -> Tensor {
    Linalg.solveTriangular(.tensor(self), .tensor(right), .bool(upper), .bool(true), .bool(unitDiagonal))
  }

  public func inverse() -> Tensor { Linalg.inv(.tensor(self)) }
  public func pseudoInverse() -> Tensor { Linalg.pinv(.tensor(self)) }

  /// X minimising ‖self X − right‖.
  public func leastSquares(_ right: Tensor) -> Tensor { Linalg.lstsq.many(.tensor(self), .tensor(right))[0] ?? .skipped }
  public func determinant() -> Tensor { Linalg.det(.tensor(self)) }

  public enum MatrixNorm: Sendable {
    case frobenius
    case nuclear
    /// The largest singular value.
    case spectral
  }

  public func matrixNorm(_ kind: MatrixNorm = .frobenius) -> Tensor {
    switch kind {
    case .frobenius: Linalg.matrixNorm(.tensor(self), .string("fro"))
    case .nuclear: Linalg.matrixNorm(.tensor(self), .string("nuc"))
    case .spectral: Linalg.matrixNormOrder(.tensor(self), .double(2))
    }
  }

  /// e^H of the entropy H of the singular values divided by their sum, of a matrix (Roy & Vetterli 2007): the number of directions it
  /// has, counted by their size.
  public func effectiveRank() -> Double {
    let values = detached().to(.float64).svd().S
    let shares = values / values.sum()
    return (-(shares * (shares + 1e-300).log()).sum()).exp().item()
  }

  /// e^A.
  public func matrixExponential() -> Tensor { Linalg.matrixExp(.tensor(self)) }
  public func matrixPower(_ exponent: Int) -> Tensor { Linalg.matrixPower(.tensor(self), .int(exponent)) }
}
