import Testing

@testable import Martlet

@Suite struct LinearAlgebraTests {
  /// A well-conditioned symmetric positive definite batch.
  private func positive(_ shape: [Int], seed: UInt64) -> Tensor {
    let a = normal(shape, seed: seed)
    return a.matmul(a.T) + Tensor.eye(shape.last!, dtype: .float64)
  }

  @Test(arguments: [[5, 3], [3, 5], [2, 4, 4]]) func singularValuesRebuildTheMatrixInDescendingOrder(shape: [Int]) {
    let a = normal(shape, seed: 1)
    let (u, s, vh) = a.svd()
    let k = min(shape[shape.count - 2], shape[shape.count - 1])
    #expect(u.dim(-1) == k && s.dim(-1) == k && vh.dim(-2) == k)
    #expect(difference((u * s.expandedDimension(-2)).matmul(vh), a) < 1e-12)
    #expect(difference(u.T.matmul(u), Tensor.eye(k, dtype: .float64).broadcast(to: u.T.matmul(u).shape)) < 1e-12)
    #expect((s[.ellipsis, 1...] .<= s[.ellipsis, ..<(-1)]).all().item() == 1)
    #expect(a.svd(full: true).U.dim(-1) == shape[shape.count - 2])
  }

  @Test func aDiagonalMatrixHasItsEntriesAsSingularValuesAndEigenvalues() {
    let a = Tensor([3, 0, 0, -4] as [Double], [2, 2])
    #expect(difference(a.svd().S, Tensor([4, 3] as [Double])) < 1e-15)
    #expect(difference(a.eigh().values, Tensor([-4, 3] as [Double])) < 1e-15)
    #expect(a.matrixNorm(.frobenius).item() == 5)
    #expect(abs(a.matrixNorm(.nuclear).item() - 7) < 1e-14)
    #expect(abs(a.matrixNorm(.spectral).item() - 4) < 1e-14)
    #expect(abs(a.determinant().item() + 12) < 1e-14)
  }

  @Test func qrGivesAnOrthonormalAndATriangularFactor() {
    let a = normal([6, 4], seed: 2)
    let (q, r) = a.qr()
    #expect(difference(q.matmul(r), a) < 1e-13)
    #expect(difference(q.T.matmul(q), Tensor.eye(4, dtype: .float64)) < 1e-13)
    #expect(difference(r, r.upperTriangle()) == 0)
  }

  @Test func eigenvectorsDiagonalise() {
    let a = positive([2, 5, 5], seed: 3)
    let (values, vectors) = a.eigh()
    #expect(difference(a.matmul(vectors), vectors * values.expandedDimension(-2)) < 1e-11)
    // A quarter turn has the eigenvalues ±i.
    let turn = Tensor([0, -1, 1, 0] as [Double], [2, 2])
    let (complexValues, complexVectors) = turn.eig()
    #expect(complexValues.dtype == .complex128)
    #expect(difference(complexValues.imaginaryPart.abs(), Tensor([1, 1] as [Double])) < 1e-14)
    #expect(difference(turn.to(.complex128).matmul(complexVectors), complexVectors * complexValues) < 1e-14)
  }

  @Test func choleskyOfAKnownMatrix() {
    let a = Tensor([4, 2, 2, 5] as [Double], [2, 2])
    #expect(difference(a.cholesky(), Tensor([2, 0, 1, 2] as [Double], [2, 2])) < 1e-15)
    #expect(throws: TensorError.self) { try withTorchErrors { Tensor([1, 2, 2, 1] as [Double], [2, 2]).cholesky() } }
  }

  @Test func solversInvertTheProduct() {
    let a = positive([3, 4, 4], seed: 4)
    let x = normal([3, 4, 2], seed: 5)
    #expect(difference(a.solve(a.matmul(x)), x) < 1e-10)
    #expect(difference(a.inverse().matmul(a), Tensor.eye(4, dtype: .float64).broadcast(to: [3, 4, 4])) < 1e-11)
    let lower = a.lowerTriangle()
    #expect(difference(lower.solveTriangular(lower.matmul(x), upper: false), x) < 1e-10)
    let unit = a.lowerTriangle(-1) * 0.1 + Tensor.eye(4, dtype: .float64)
    let noise = Tensor.eye(4, dtype: .float64) * 7.0
    #expect(difference((unit + noise).solveTriangular(unit.matmul(x), upper: false, unitDiagonal: true), x) < 1e-10)
    #expect(difference(a.T.upperTriangle().solveTriangular(a.T.upperTriangle().matmul(x), upper: true), x) < 1e-10)
  }

  @Test func leastSquaresAndPseudoInverseSolveTheNormalEquations() {
    let a = normal([8, 3], seed: 6)
    let b = normal([8, 2], seed: 7)
    let x = a.leastSquares(b)
    #expect(a.T.matmul(a.matmul(x) - b).abs().max().item() < 1e-12)
    #expect(difference(a.pseudoInverse().matmul(b), x) < 1e-12)
  }

  @Test func matrixPowersAndExponentials() {
    let a = normal([3, 3], seed: 8) * 0.5
    #expect(difference(a.matrixPower(3), a.matmul(a).matmul(a)) < 1e-14)
    #expect(difference(a.matrixPower(-1), a.inverse()) < 1e-10)
    #expect(difference(a.matrixExponential().matmul((-a).matrixExponential()), Tensor.eye(3, dtype: .float64)) < 1e-12)
    // e^{θJ} is the turn by θ.
    let turn = Tensor([0, -0.7, 0.7, 0] as [Double], [2, 2]).matrixExponential().toArray(Double.self)
    #expect(abs(turn[0] - 0.7648421872844885) < 1e-14 && abs(turn[2] - 0.644217687237691) < 1e-14)
  }

  @Test func gradientsAgreeWithFiniteDifferences() {
    let a = normal([4, 4], seed: 9)
    let weights = normal([4, 4], seed: 10)
    let tall = normal([5, 3], seed: 11)
    let symmetric = positive([4, 4], seed: 12)
    // Singular and eigenvectors have free signs: only functions that don't depend on them have a gradient.
    let errors: [(String, Double)] = [
      (
        "svd",
        gradientError([tall]) {
          let (u, s, vh) = $0[0].svd()
          return ((u * s.log()).matmul(vh) * weights[0..<1, 0..<3]).sum() + s.pow(3).sum()
        }
      ),
      (
        "qr",
        gradientError([tall]) {
          let (q, r) = $0[0].qr()
          return q.square().matmul(weights[0..<3, 0..<3]).sum() + r.square().sum(axis: 0).sin().sum()
        }
      ),
      (
        "eigh",
        gradientError([symmetric]) {
          let (values, vectors) = (($0[0] + $0[0].T) * 0.5).eigh()
          return ((vectors * values.log().expandedDimension(-2)).matmul(vectors.T) * weights).sum()
        }
      ),
      ("cholesky", gradientError([symmetric]) { ((($0[0] + $0[0].T) * 0.5).cholesky() * weights).sum() }),
      ("solve", gradientError([symmetric, weights]) { $0[0].solve($0[1]).sin().sum() }),
      ("triangular", gradientError([symmetric, weights]) { $0[0].solveTriangular($0[1], upper: false).sin().sum() }),
      ("expm", gradientError([a]) { ($0[0].matrixExponential() * weights).sum() }),
      ("inverse", gradientError([symmetric]) { ($0[0].inverse() * weights).sum() }),
      ("determinant", gradientError([a]) { $0[0].determinant() }),
    ]
    for (name, error) in errors { #expect(error < 1e-6, "\(name): \(error)") }
  }
}
