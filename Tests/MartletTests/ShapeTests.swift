import Testing

@testable import Martlet

@Suite struct ShapeTests {
  @Test func reshapesAreViewsWhereTheyCanBe() {
    let x = Tensor.arange(12)
    let y = x.reshaped(3, -1)
    #expect(y.shape == [3, 4] && y.storageIdentity == x.storageIdentity)
    #expect(y.T.shape == [4, 3] && !y.T.isContiguous && y.T.strides == [1, 4])
    #expect(y.T.contiguous().toArray(Int.self) == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11])
    #expect(y.transposed().shape == [4, 3])
    #expect(x.reshaped(2, 2, 3).transposed(2, 0, 1).shape == [3, 2, 2])
    #expect(x.reshaped(2, 2, 3).flattened(1).shape == [2, 6])
    #expect(x.expandedDimension(-1).shape == [12, 1] && x.expandedDimension(0).squeezed(0).shape == [12])
    #expect(y.dim(-1) == 4 && y.count == 12 && y.rank == 2)
  }

  @Test func joiningUndoesSplitting() {
    let x = Tensor.arange(10).reshaped(5, 2)
    #expect(x.split(size: 2).map { $0.dim(0) } == [2, 2, 1])
    #expect(x.split(sizes: [1, 4]).map { $0.dim(0) } == [1, 4])
    #expect(concatenated(x.split(sizes: [1, 4])).isEqual(to: x))
    #expect(stacked(x.chunked(2, axis: 1), axis: 0).shape == [2, 5, 1])
    // More results than a call's fixed buffer holds.
    #expect(Tensor.arange(40).split(size: 1).map { $0.itemInt() } == Array(0..<40))
  }

  @Test func rearrangements() {
    let x = Tensor([1, 2, 3, 4] as [Int], [2, 2])
    #expect(x.flipped(axis: 1).toArray(Int.self) == [2, 1, 4, 3])
    #expect(x.rolled(by: 1, axis: 0).toArray(Int.self) == [3, 4, 1, 2])
    #expect(x.tiled([1, 2]).toArray(Int.self) == [1, 2, 1, 2, 3, 4, 3, 4])
    #expect(x.repeated(2, axis: 1).toArray(Int.self) == [1, 1, 2, 2, 3, 3, 4, 4])
    #expect(x.padded([1, 0, 0, 1], value: 9).toArray(Int.self) == [9, 1, 2, 9, 3, 4, 9, 9, 9])
    #expect(x.lowerTriangle().toArray(Int.self) == [1, 0, 3, 4])
    #expect(x.upperTriangle(1).toArray(Int.self) == [0, 2, 0, 0])
    #expect(x.diagonal().toArray(Int.self) == [1, 4])
    #expect(x.diagonal().asDiagonal().toArray(Int.self) == [1, 0, 0, 4])
    #expect(Tensor.arange(5).windows(axis: 0, size: 3, step: 2).toArray(Int.self) == [0, 1, 2, 2, 3, 4])
    #expect(x.selected(axis: 1, 0).broadcast(to: [3, 2]).toArray(Int.self) == [1, 3, 1, 3, 1, 3])
  }

  @Test func rangesIncludeTheirEndsAndCountFromTheEnd() {
    let x = Tensor.arange(6)
    #expect(x[1...3].toArray(Int.self) == [1, 2, 3])
    #expect(x[...2].toArray(Int.self) == [0, 1, 2])
    #expect(x[(-2)...].toArray(Int.self) == [4, 5])
    #expect(x[..<(-4)].toArray(Int.self) == [0, 1])
    #expect(x[(-3)...(-1)].toArray(Int.self) == [3, 4, 5], "a range up to the last element")
    #expect(x[...(-1)].toArray(Int.self) == [0, 1, 2, 3, 4, 5])
    #expect(x[...(-2)].toArray(Int.self) == [0, 1, 2, 3, 4])
    #expect(x.narrowed(axis: 0, start: 2, length: 2).toArray(Int.self) == [2, 3])
  }

  @Test func gatheringAndScattering() {
    let x = Tensor([10, 20, 30, 40] as [Float], [2, 2])
    #expect(x.take(Tensor([1, 1, 0] as [Int])).toArray(Float.self) == [30, 40, 30, 40, 10, 20])
    #expect(x.gather(Tensor([1, 0] as [Int], [2, 1]), axis: 1).toArray(Float.self) == [20, 30])
    #expect(x.scatter(Tensor([0, 1] as [Int], [2, 1]), 7, axis: 1).toArray(Float.self) == [7, 20, 30, 7])
    let sums = Tensor.zeros([3]).scatterAdd(Tensor([2, 0, 2] as [Int]), Tensor([1, 2, 3] as [Float]), axis: 0)
    #expect(sums.toArray(Float.self) == [2, 0, 4])
    #expect(Tensor.zeros([2, 2]).indexAdd(Tensor([1, 1] as [Int]), x, axis: 0).toArray(Float.self) == [0, 0, 40, 60])
    #expect(x.maskedSelect(x .> 15.0).toArray(Float.self) == [20, 30, 40])
    #expect((x .> 15.0).nonzero().toArray(Int.self) == [0, 1, 1, 0, 1, 1])
    #expect(throws: TensorError.self) { try withTorchErrors { x.take(Tensor([2] as [Int])) } }
  }

  @Test func assignmentThroughIndicesIsDifferentiable() {
    let source = normal([2, 3], seed: 1)
    let error = gradientError([source]) { inputs in
      let y = Tensor.zeros([4, 3], dtype: .float64)
      y[1..<3] = inputs[0]
      y[Tensor([0, 3] as [Int]), 1] = inputs[0][.all, 0]
      return y.pow(3).sum() + (inputs[0].T[1...2] * inputs[0].windows(axis: 1, size: 2, step: 1).sum(axis: -1).T).sum()
    }
    #expect(error < 1e-7, "\(error)")
  }

  @Test func finiteDifferencesTakeTensorsInAnyOrderOfMemory() {
    #expect(gradientError([normal([3, 4], seed: 2).T]) { $0[0].pow(3).sum() } < 1e-7)
  }

  @Test func shapeErrorsNameTheShape() {
    let error = #expect(throws: TensorError.self) { try withTorchErrors { Tensor.zeros([2, 3]).dim(2) } }
    #expect(error?.message.contains("axis 2") == true && error?.message.contains("[2, 3]") == true)
    #expect(throws: TensorError.self) { try withTorchErrors { Tensor([1, 2, 3] as [Float], [2, 2]) } }
    #expect(throws: TensorError.self) { try withTorchErrors { Tensor.zeros([2])[0, 0] } }
  }
}
