import Testing

@testable import Martlet

@Suite struct DescriptionTests {
  @Test func smallTensorsAreWrittenWhole() {
    #expect("\(Tensor([1, 2.5, -3, 0.123456] as [Float], [2, 2]))" == "Tensor([[1, 2.5],\n [-3, 0.1235]], shape: [2, 2], dtype: float32)")
    #expect("\(Tensor(7, dtype: .float64))" == "Tensor(7, shape: [], dtype: float64)")
    #expect("\(Tensor([true, false]))" == "Tensor([true, false], shape: [2], dtype: bool)")
    #expect("\(Tensor.zeros([0]))" == "Tensor([], shape: [0], dtype: float32)")
    #expect("\(Tensor([Double.nan, .infinity, -.infinity]))".hasPrefix("Tensor([nan, inf, -inf]"))
  }

  @Test func integersKeepEveryDigit() {
    let x = Tensor([Int.max, Int.min, 9_007_199_254_740_993])
    #expect("\(x)".hasPrefix("Tensor([9223372036854775807, -9223372036854775808, 9007199254740993]"))
    #expect("\(Tensor([255, 0] as [UInt8]))".hasPrefix("Tensor([255, 0]"))
  }

  @Test func complexNumbersHaveBothParts() {
    let z = Tensor.complex(Tensor([1, -0.5] as [Float]), Tensor([2, -3.25] as [Float]))
    #expect("\(z)" == "Tensor([1+2i, -0.5-3.25i], shape: [2], dtype: complex64)")
    #expect("\(z.conjugated())" == "Tensor([1-2i, -0.5+3.25i], shape: [2], dtype: complex64)", "the lazy conjugate is resolved")
    #expect("\(z.to(.complex128).selected(axis: 0, 0))" == "Tensor(1+2i, shape: [], dtype: complex128)")
  }

  @Test func everyTypeCanBeWritten() {
    for dtype in DType.allCases {
      let text = "\(Tensor.ones([2], dtype: .float32).to(dtype))"
      let one = dtype == .bool ? "true" : dtype.isComplex ? "1+0i" : "1"
      #expect(text == "Tensor([\(one), \(one)], shape: [2], dtype: \(dtype))")
    }
  }

  @Test func longTensorsShowTheirEdges() {
    #expect("\(Tensor.arange(2000))" == "Tensor([0, 1, 2, …, 1997, 1998, 1999], shape: [2000], dtype: int64)")
    let lines = "\(Tensor.zeros([100, 100]))".split(separator: "\n")
    #expect(lines.count == 7 && lines[0].hasPrefix("Tensor([[0, 0, 0, …, 0, 0, 0]"))
  }

  @Test func trackedTensorsCanBeWritten() {
    #expect("\(Tensor([1] as [Float]).tracked() * 2.0)" == "Tensor([2], shape: [1], dtype: float32)")
  }
}
