import Testing

@testable import Martlet

@Suite struct ReductionTests {
  private let x = Tensor([3, 1, 4, 1, 5, 9] as [Float], [2, 3])

  @Test func sumsMeansAndProducts() {
    #expect(x.sum().item() == 23)
    #expect(x.sum(axis: 0).toArray(Float.self) == [4, 6, 13])
    #expect(x.sum(axis: -1, keepDims: true).shape == [2, 1])
    #expect(x.sum(axes: [0, 1]).item() == 23)
    #expect(x.mean(axis: 1).toArray(Float.self) == [Float(8) / 3, 5])
    #expect(x.product(axis: 1).toArray(Float.self) == [12, 45])
    #expect(x.cumulativeSum(axis: 1).toArray(Float.self) == [3, 4, 8, 1, 6, 15])
    #expect(x.cumulativeProduct(axis: 1).toArray(Float.self) == [3, 3, 12, 1, 5, 45])
    #expect((x .> 3.0).sum().itemInt() == 3)
  }

  @Test func extremesAndTheirPlaces() {
    #expect(x.max().item() == 9 && x.min().item() == 1)
    #expect(x.max(axis: 0).toArray(Float.self) == [3, 5, 9])
    #expect(x.min(axis: 1, keepDims: true).shape == [2, 1])
    #expect(x.argmax(axis: 1).toArray(Int.self) == [2, 2])
    #expect(x.argmin(axis: 0).toArray(Int.self) == [1, 0, 0])
  }

  @Test func variancesByTheirDefinition() {
    let y = normal([5, 7], seed: 1)
    let squares = (y - y.mean(axis: 1, keepDims: true)).square().sum(axis: 1)
    #expect(difference(y.variance(axis: 1), squares / 6.0) < 1e-14)
    #expect(difference(y.variance(axis: 1, correction: 0), squares / 7.0) < 1e-14)
    #expect(difference(y.standardDeviation(axis: 1), (squares / 6.0).sqrt()) < 1e-14)
    #expect(difference(y.norm(), y.square().sum().sqrt()) < 1e-13)
    #expect(difference(y.norm(1, axis: 0), y.abs().sum(axis: 0)) < 1e-13)
    #expect(difference(y.norm(.infinity, axis: 0), y.abs().max(axis: 0)) == 0)
  }

  @Test func logSumExpDoesNotOverflow() {
    let y = Tensor([1000, 1000] as [Double])
    #expect(abs(y.logSumExp(axis: 0).item() - 1000.6931471805599) < 1e-10)
    let z = normal([9], seed: 2)
    #expect(difference(z.cumulativeLogSumExp(axis: 0), z.exp().cumulativeSum(axis: 0).log()) < 1e-13)
  }

  @Test func truths() {
    let flags = Tensor([true, false, true, true], [2, 2])
    #expect(flags.any().item() == 1 && flags.all().item() == 0)
    #expect(flags.all(axis: 1).toArray(Bool.self) == [false, true])
    #expect(flags.any(axis: 0).toArray(Bool.self) == [true, true])
    #expect(Tensor([1, .nan] as [Float]).allFinite == false)
    #expect(Tensor([1, .infinity, .nan] as [Float]).isNaN().toArray(Bool.self) == [false, false, true])
  }

  @Test func ordersAndCounts() {
    let (values, places) = Tensor([2, 7, 1, 7] as [Int]).sorted(descending: true)
    #expect(values.toArray(Int.self) == [7, 7, 2, 1])
    #expect(places.toArray(Int.self) == [1, 3, 0, 2])
    let (top, at) = x.topK(2)
    #expect(top.toArray(Float.self) == [4, 3, 9, 5] && at.toArray(Int.self) == [2, 0, 2, 1])
    #expect(x.topK(1, largest: false).values.toArray(Float.self) == [1, 1])
    let (distinct, counts) = x.unique()
    #expect(distinct.toArray(Float.self) == [1, 3, 4, 5, 9] && counts.toArray(Int.self) == [2, 1, 1, 1, 1])
    #expect(Tensor([0, 2, 2] as [Int]).binCount(minLength: 4).toArray(Int.self) == [1, 0, 2, 0])
  }

  @Test func emptyReductionsAndBadAxes() {
    #expect(Tensor.zeros([0, 3]).sum(axis: 0).toArray(Float.self) == [0, 0, 0])
    #expect(throws: TensorError.self) { try withTorchErrors { x.sum(axis: 2) } }
    #expect(throws: TensorError.self) { try withTorchErrors { Tensor.zeros([0]).max() } }
  }

  @Test func gradientsAgreeWithFiniteDifferences() {
    let y = normal([3, 4], seed: 3)
    let errors = [
      gradientError([y]) { $0[0].variance(axis: 1).log().sum() },
      gradientError([y]) { $0[0].logSumExp(axis: 0).sin().sum() },
      gradientError([y]) { $0[0].cumulativeProduct(axis: 1).sin().sum() },
      gradientError([y]) { ($0[0].topK(2).values * $0[0].sorted().values[.all, 0..<2]).sum() },
      gradientError([y]) { $0[0].norm(3, axis: 1).sum() + $0[0].product(axis: 0).sum() },
    ]
    #expect(errors.max()! < 1e-6, "\(errors)")
  }
}
