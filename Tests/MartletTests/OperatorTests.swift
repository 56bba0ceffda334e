import Testing

@testable import Martlet

@Suite struct OperatorTests {
  @Test func anyOperatorOfLibtorchCanBeCalledByName() {
    let x = Tensor([3, 1, 2] as [Double])
    #expect(Operator("aten::hypot")(.tensor(x), .tensor(x)).toArray(Double.self).map { ($0 * $0).rounded() } == [18, 2, 8])
    #expect(Operator("aten::addcmul")(.tensor(x), .tensor(x), .tensor(x), .double(2)).toArray(Double.self) == [21, 3, 10])
    #expect(
      Operator("aten::logspace")(.int(0), .int(3), .int(4), .double(10), .dtype(.float64)).toArray(Double.self) == [1, 10, 100, 1000])
    // Absent trailing arguments take the operator's defaults.
    #expect(Operator("aten::cumsum")(.tensor(x), .int(0)).toArray(Double.self) == [3, 4, 6])
    #expect(Operator("aten::searchsorted", "Tensor")(.tensor(Tensor([1, 2, 3] as [Double])), .tensor(x)).toArray(Int.self) == [2, 0, 1])
  }

  @Test func severalResultsAndListsOfTensors() {
    let x = Tensor([3, 1, 2] as [Double])
    let results = Operator("aten::kthvalue").many(.tensor(x), .int(2))
    #expect(results.count == 2 && results[0]?.item() == 2 && results[1]?.itemInt() == 2)
    let grids = Operator("aten::meshgrid", "indexing").many(.tensors([x, x[0..<2]]), .string("ij"))
    #expect(grids.map { $0?.shape } == [[3, 2], [3, 2]])
    #expect(Operator("aten::block_diag")(.tensors([Tensor.ones([1, 2]), Tensor.ones([2, 1])])).shape == [3, 3])
  }

  @Test func resultsThatAreNotTensorsAndEffects() {
    let x = Tensor([1, 2] as [Float])
    #expect(Operator("aten::allclose").truth(.tensor(x), .tensor(x + 1e-7)))
    #expect(!Operator("aten::allclose").truth(.tensor(x), .tensor(x + 1)))
    Operator("aten::zero_").run(.tensor(x))
    #expect(x.toArray(Float.self) == [0, 0])
  }

  @Test func schemasCanBeRead() {
    #expect(Operator("aten::add", "Tensor").schema.hasPrefix("aten::add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1)"))
    #expect(Operator("martlet::linear").schema.hasPrefix("martlet::linear("))
  }

  @Test func aMissingOperatorIsAnErrorThatNamesIt() {
    let error = #expect(throws: TensorError.self) { try withTorchErrors { _ = Operator("aten::no_such_operator") } }
    #expect(error?.message.contains("no operator aten::no_such_operator") == true, "\(error?.message ?? "none")")
    let overload = #expect(throws: TensorError.self) { try withTorchErrors { _ = Operator("aten::add", "Nothing") } }
    #expect(overload?.message.contains("aten::add.Nothing") == true)
    // A value that outlives the failed look-up must not be called.
    var kept: Operator?
    _ = try? withTorchErrors { kept = Operator("aten::no_such_operator") }
    let later = #expect(throws: TensorError.self) { try withTorchErrors { kept!(.tensor(Tensor.ones([1]))) } }
    #expect(later?.message.contains("aten::no_such_operator") == true)
    #expect(kept!.schema == "")
  }

  @Test func wrongArgumentsAreErrorsThatNameTheOperator() {
    let cases: [() -> Void] = [
      { _ = Operator("aten::cumsum")(.string("no"), .int(0)) },
      { _ = Operator("aten::cumsum")(.tensor(Tensor.ones([2]))) },
      { _ = Operator("aten::cumsum")(.tensor(Tensor.ones([2])), .int(0), .none, .int(1), .int(2)) },
      { _ = Operator("aten::cumsum")(.tensor(Tensor.ones([2])), .tensor(Tensor.ones([2]))) },
    ]
    for (i, body) in cases.enumerated() {
      let error = #expect(throws: TensorError.self, "case \(i)") { try withTorchErrors { body() } }
      #expect(error?.message.contains("cumsum") == true, "case \(i): \(error?.message ?? "none")")
    }
  }
}
