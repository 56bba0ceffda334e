import Martlet

/// The largest absolute difference of two tensors; infinite when their shapes differ.
func difference(_ a: Tensor, _ b: Tensor) -> Double {
  guard a.shape == b.shape else { return .infinity }
  return a.count == 0 ? 0 : (a - b).abs().max().item()
}

/// A float64 tensor of normal numbers from a seed.
func normal(_ shape: [Int], seed: UInt64) -> Tensor {
  Tensor.randomNormal(shape, dtype: .float64, generator: RandomGenerator(seed: seed))
}

/// A complex128 tensor of normal numbers from a seed.
func complexNormal(_ shape: [Int], seed: UInt64) -> Tensor { Tensor.complex(normal(shape, seed: seed), normal(shape, seed: seed + 1000)) }
