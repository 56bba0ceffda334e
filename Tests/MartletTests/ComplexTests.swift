import Testing

@testable import Martlet

@Suite struct ComplexTests {
  @Test func partsAndPolarForm() {
    let z = Tensor.complex(Tensor([3, 0] as [Double]), Tensor([4, -2] as [Double]))
    #expect(z.dtype == .complex128)
    #expect(z.abs().toArray(Double.self) == [5, 2])
    #expect(difference(Tensor.polar(z.abs(), z.angle()), z) < 1e-15)
    #expect(z.conjugated().imaginaryPart.toArray(Double.self) == [-4, 2])
    #expect((z * z.conjugated()).realPart.toArray(Double.self) == [25, 4])
    #expect(z.viewAsReal().toArray(Double.self) == [3, 4, 0, -2])
    #expect(difference(z.viewAsReal().viewAsComplex(), z) == 0)
    #expect(z.viewAsReal().storageIdentity == z.storageIdentity)
  }

  @Test func dtypesOfEqualPrecisionCorrespond() {
    #expect(DType.float64.complex == .complex128 && DType.complex64.real == .float32)
    #expect(DType.bfloat16.complex == .complex64 && DType.int64.real == .int64)
    for dtype in DType.allCases { #expect(Tensor.zeros([3], dtype: dtype).byteCount == 3 * dtype.itemSize, "\(dtype)") }
  }

  @Test func arithmeticMixesRealAndComplex() {
    let z = complexNormal([4], seed: 1)
    let x = normal([4], seed: 2)
    #expect(difference((z * x).realPart, z.realPart * x) < 1e-15)
    #expect(difference(z + x - x, z) < 1e-15)
    #expect(difference(z.exp(), Tensor.polar(z.realPart.exp(), z.imaginaryPart)) < 1e-14)
    #expect(difference((1.0 / z) * z, Tensor.ones([4], dtype: .float64).to(.complex128)) < 1e-14)
  }

  @Test func gradientsOfRealFunctionsAgreeWithFiniteDifferences() {
    let error = gradientError([normal([3, 2], seed: 3), normal([3, 2], seed: 4)]) {
      let z = Tensor.complex($0[0], $0[1])
      return (z * z.conjugated() + z.exp()).abs().log().sum()
    }
    #expect(error < 1e-7, "\(error)")
  }

  @Test func matrixProductsOfComplexTensors() {
    let (a, b) = (complexNormal([2, 3], seed: 5), complexNormal([3, 2], seed: 6))
    let real = a.realPart.matmul(b.realPart) - a.imaginaryPart.matmul(b.imaginaryPart)
    #expect(difference(a.matmul(b).realPart, real) < 1e-14)
    #expect(difference(a.conjugated().T.matmul(a), a.conjugated().T.matmul(a).conjugated().T) < 1e-14)
  }
}
