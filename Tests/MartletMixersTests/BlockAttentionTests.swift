import MartletMixers
import Testing

@Suite struct BlockAttentionTests {
  /// softmax over |block(i) − block(j)| ≤ 1, and j ≤ i when causal.
  private func direct(_ q: Tensor, _ k: Tensor, _ v: Tensor, block: Int, causal: Bool, mask: Tensor?) -> Tensor {
    let places = Tensor.arange(q.dim(2))
    let blocks = Tensor((0..<q.dim(2)).map { $0 / block })
    let distance = (blocks.expandedDimension(1) - blocks).abs()
    var seen = distance .<= 1
    if causal { seen = seen .& (places .<= places.expandedDimension(1)) }
    var scores = q.matmul(k.T) / Double(q.dim(-1)).squareRoot()
    scores = scores.maskedFill(.!seen, -.infinity)
    if let mask { scores = scores.maskedFill(.!mask[.all, .newAxis, .newAxis], -.infinity) }
    return scores.softmax().matmul(v)
  }

  @Test(arguments: [1, 8, 16, 24, 37, 64], [false, true]) func aBlockSeesItselfAndItsNeighbours(_ length: Int, _ causal: Bool) {
    for (dtype, tolerance) in [(DType.float64, 1e-12), (.float32, 1e-5)] {
      let parts = (1...3).map { normal([2, 2, length, 4], seed: UInt64($0), dtype) }
      for mask in [nil, Tensor.arange(length) .< Tensor([length, length / 2 + 1], [2, 1])] {
        let found = blockAttention(parts[0], parts[1], parts[2], block: 8, causal: causal, keyMask: mask)
        let expected = direct(parts[0], parts[1], parts[2], block: 8, causal: causal, mask: mask)
        // Queries that see padding only have no answer in the direct form.
        let real = (.!expected.isNaN()).to(dtype)
        let error = relativeError(found * real, expected.maskedFill(expected.isNaN(), 0))
        #expect(error <= tolerance, "L = \(length), causal \(causal), mask \(mask != nil), \(dtype): \(error), allowed \(tolerance)")
      }
    }
  }

  @Test func aLongBlockIsFullAttention() throws {
    let site = MixerSite(width: 16, heads: 2, isCausal: false, length: 20)
    let block = try MixerKind.block(site, generator: RandomGenerator(seed: 3))
    let full = try MixerKind.softmax(site, generator: RandomGenerator(seed: 9))
    try full.load(block.stateDictionary())
    let x = normal([2, 20, 16])
    #expect(relativeError(block(x), full(x)) <= 1e-6)
    #expect(throws: ConfigurationError.self) { try MixerKind.block(site, options: ["block": 0], generator: RandomGenerator(seed: 3)) }
  }
}
