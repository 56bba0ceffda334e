import Testing

@testable import MartletData

@Suite struct SeededRandomTests {
  @Test func theStreamIsThatOfAnIndependentImplementation() {
    // From a Python implementation of the definition, with unbounded integers.
    let expected: [(seed: UInt64, stream: UInt64, numbers: [UInt64])] = [
      (0, 0, [0xd76b_386b_30a9_80bd, 0x1218_92a4_8a76_9d62, 0xf09f_bc13_fb65_3c2d]),
      (1, 0, [0x8195_1e12_521d_ea49, 0x825a_9386_1c97_5359, 0x413a_59e2_2be3_6e49]),
      (0, 1, [0xb31d_215c_fdaf_3a6f, 0xcb8f_cdce_cba4_d91a, 0x2a9b_dbb8_740e_f8a1]),
      (.max, 12_345_678_901_234_567, [0x2837_433a_498c_80f7, 0xee4e_8c04_9dd4_4783, 0xf999_9e85_ec86_e605]),
    ]
    for (seed, stream, numbers) in expected {
      var random = SeededRandom(seed: seed, stream: stream)
      #expect(numbers.map { _ in random.next() } == numbers, "seed \(seed), stream \(stream)")
    }
    var random = SeededRandom(seed: 7, stream: 3)
    #expect(random.permutation(12) == [7, 6, 2, 5, 9, 0, 1, 8, 3, 4, 10, 11])
  }

  @Test func integersAreUniform() {
    var random = SeededRandom(seed: 3)
    var counts = [Double](repeating: 0, count: 7)
    for _ in 0..<70_000 { counts[random.integer(below: 7)] += 1 }
    let chiSquare = counts.reduce(0) { $0 + ($1 - 10_000) * ($1 - 10_000) / 10_000 }
    #expect(chiSquare < 22.5, "chi² with 6 degrees of freedom is \(chiSquare); 22.5 has probability 0.001")
  }

  @Test func normalNumbersHaveTheirMoments() {
    var random = SeededRandom(seed: 4)
    let numbers = (0..<40_000).map { _ in random.normal() }
    let mean = numbers.reduce(0, +) / 40_000
    let variance = numbers.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / 40_000
    let fourth = numbers.reduce(0) { $0 + $1 * $1 * $1 * $1 } / 40_000
    #expect(abs(mean) < 0.02 && abs(variance - 1) < 0.03 && abs(fourth - 3) < 0.2, "\(mean), \(variance), \(fourth)")
  }

  @Test func samplesAreDifferentAndEquallyLikely() {
    var random = SeededRandom(seed: 5)
    var counts = [Int](repeating: 0, count: 10)
    var first = counts
    for _ in 0..<20_000 {
      let sample = random.sample(4, below: 10)
      #expect(Set(sample).count == 4)
      for number in sample { counts[number] += 1 }
      first[sample[0]] += 1
    }
    #expect(counts.allSatisfy { abs($0 - 8000) < 350 }, "\(counts)")
    #expect(first.allSatisfy { abs($0 - 2000) < 220 }, "\(first)")
    #expect(Set(random.sample(10, below: 10)) == Set(0..<10))
  }

  @Test func streamsOfNeighboursAreUnrelated() {
    // Bits of the first numbers of consecutive streams agree in half the cases.
    var agreeing = 0
    for stream in 0..<2000 as Range<UInt64> {
      var (a, b) = (SeededRandom(seed: 9, stream: stream), SeededRandom(seed: 9, stream: stream + 1))
      agreeing += (a.next() ^ b.next()).nonzeroBitCount
    }
    #expect(abs(Double(agreeing) / 2000 - 32) < 0.5, "\(Double(agreeing) / 2000) of 64 bits differ")
  }
}

@Suite struct BatchOrderTests {
  @Test(arguments: [1, 7, 32, 100, 250]) func noExampleComesTwiceInAnEpoch(size: Int) {
    let order = BatchOrder(count: 100)
    let all = (0..<(300 + size - 1) / size).flatMap { order.indices(step: $0, size: size, seed: 5) }
    for epoch in 0..<3 {
      let examples = all[epoch * 100..<(epoch + 1) * 100]
      #expect(Set(examples).count == 100, "epoch \(epoch)")
    }
    #expect(Array(all[0..<100]) != Array(all[100..<200]))
  }

  @Test func aStepDoesNotDependOnWhatWasAskedBefore() {
    let order = BatchOrder(count: 50)
    let forwards = (0..<40).map { order.indices(step: $0, size: 8, seed: 1) }
    for step in [39, 3, 17, 0, 39] { #expect(BatchOrder(count: 50).indices(step: step, size: 8, seed: 1) == forwards[step]) }
    for step in (0..<40).reversed() { #expect(order.indices(step: step, size: 8, seed: 1) == forwards[step]) }
    #expect(order.indices(step: 0, size: 8, seed: 2) != forwards[0])
  }
}
