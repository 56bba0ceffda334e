/// Zeroes elements with probability p while training and scales the others by 1/(1 − p) (Srivastava et al. 2014).
public final class Dropout: Module, GeneratorHolder {
  public let probability: Double
  public let generator: RandomGenerator

  public init(_ probability: Double, generator: RandomGenerator) {
    require(probability >= 0 && probability < 1, "a dropout probability must be in 0..<1, got \(probability)")
    self.probability = probability
    self.generator = generator
  }

  public func callAsFunction(_ x: Tensor) -> Tensor {
    guard isTraining && probability > 0 else { return x }
    return x * keepMask(x.shape, x.dtype, probability, generator)
  }
}

/// Skips a residual branch for whole samples with probability p while training (stochastic depth, Huang et al. 2016).
/// x: [batch, ...].
public final class DropPath: Module, GeneratorHolder {
  public let probability: Double
  public let generator: RandomGenerator

  public init(_ probability: Double, generator: RandomGenerator) {
    require(probability >= 0 && probability < 1, "a drop-path probability must be in 0..<1, got \(probability)")
    self.probability = probability
    self.generator = generator
  }

  public func callAsFunction(_ x: Tensor) -> Tensor {
    guard isTraining && probability > 0 else { return x }
    return x * keepMask([x.dim(0)] + [Int](repeating: 1, count: x.rank - 1), x.dtype, probability, generator)
  }
}

/// 1/(1 − p) with probability 1 − p, else 0.
private func keepMask(_ shape: [Int], _ dtype: DType, _ p: Double, _ generator: RandomGenerator) -> Tensor {
  (Tensor.random(shape, generator: generator) .>= p).to(dtype) * (1 / (1 - p))
}
