import Testing

@testable import Martlet

@Suite struct TensorTests {
  @Test func indexingFollowsNumPy() {
    let x = Tensor.arange(24).reshaped(2, 3, 4)
    #expect(x[1, 2].toArray(Int.self) == [20, 21, 22, 23])
    #expect(x[.ellipsis, 1].shape == [2, 3])
    #expect(x[0, .newAxis, 1...].shape == [1, 2, 4])
    #expect(x[.all, -1, 0..<2].toArray(Int.self) == [8, 9, 20, 21])
    #expect(x[0, 0][stride(from: 0, to: 4, by: 2)].toArray(Int.self) == [0, 2])
    #expect(x[Tensor([1, 0, 1]), 0, 0].toArray(Int.self) == [12, 0, 12])
    #expect(x[x .> 20.0].toArray(Int.self) == [21, 22, 23])
    let y = Tensor.zeros([3, 3])
    y[1] = Tensor([1, 2, 3] as [Float])
    y[.all, 0] = Tensor(9)
    y[y .== 0.0] = Tensor(-1)
    #expect(y.toArray(Float.self) == [9, -1, -1, 9, 2, 3, 9, -1, -1])
  }

  @Test func shapeErrorsThrowInsideWithTorchErrors() throws {
    let error = #expect(throws: TensorError.self) {
      try withTorchErrors {
        let a = Tensor.zeros([2, 3])
        let b = a.matmul(Tensor.zeros([4, 5]))  // fails
        return (b + a).reshaped(7, 7)[3, 2].item()  // skipped
      }
    }
    #expect(error?.message.contains("2x3 and 4x5") == true, "the first error is the one reported: \(error?.message ?? "none")")
    #expect(error?.message.contains("Exception raised") == false)
    // Afterwards everything works again.
    #expect((Tensor.ones([2]) + 1).toArray(Float.self) == [2, 2])
  }

  @Test func memoryOfTensorsIsCounted() {
    // Large against what the tests that run at the same time free meanwhile (the next one 44 MB); its pages are never touched.
    let before = MemoryUsage.tensorBytes
    let x = Tensor.empty([10_000, 10_000])
    #expect(MemoryUsage.tensorBytes - before >= 340_000_000)
    #expect(MemoryUsage.peakTensorBytes >= 340_000_000)
    #expect(x.byteCount == 400_000_000)
  }

  @Test func memoryOfLargeTensorsIsUsedAgain() {
    // 44 MB: beyond what the C library itself keeps, so a fresh block would hold zeros. A test that runs at the same time may be handed
    // the block first, hence several tries.
    let isUsedAgain = (0..<20).contains { _ in
      do { _ = Tensor.full([11_000_000], 7) }
      return Tensor.empty([11_000_000])[10_999_999].item() == 7
    }
    #expect(isUsedAgain)
    MemoryUsage.releaseKept()
    #expect((Tensor.ones([11_000_000])[5] + 1).item() == 2)
  }

  @Test func generatorsRepeatFromSeedAndState() {
    let a = RandomGenerator(seed: 5)
    let b = RandomGenerator(seed: 5)
    #expect(Tensor.randomNormal([10], generator: a).isEqual(to: Tensor.randomNormal([10], generator: b)))
    let state = a.state
    let next = Tensor.random([3], generator: a)
    a.state = state
    #expect(Tensor.random([3], generator: a).isEqual(to: next))
  }
}
