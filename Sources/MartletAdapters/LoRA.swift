/// Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685, §4.1): a frozen layer learns a change of rank r,
///
///     y = W x + b + (α/r) B A dropout(x),     A [r, in], B [out, r]
///
/// A is uniform on ±1/√in and B zero, so that nothing changes before training. Merged, W' = W + (α/r) B A costs nothing at all.
public final class LoRA: Module, Adapter {
  public struct Configuration: Sendable, Equatable, Codable {
    public var rank: Int
    public var alpha: Double
    /// On the input of A, while training.
    public var dropout: Double

    public init(rank: Int = 8, alpha: Double = 16, dropout: Double = 0) {
      self.rank = rank
      self.alpha = alpha
      self.dropout = dropout
    }

    /// Throws `ConfigurationError` for numbers out of range.
    public func validate() throws {
      guard (1...(1 << 16)).contains(rank) else { throw ConfigurationError("LoRA's rank must be in 1...65536, got \(rank)") }
      guard alpha > 0, alpha.isFinite else { throw ConfigurationError("LoRA's alpha must be positive, got \(alpha)") }
      guard dropout >= 0, dropout < 1 else { throw ConfigurationError("LoRA's dropout must be in 0..<1, got \(dropout)") }
    }
  }

  public let configuration: Configuration
  /// A, [rank, in].
  @Parameter(key: "lora_A.weight") public var down: Tensor
  /// B, [out, rank].
  @Parameter(key: "lora_B.weight") public var up: Tensor
  private let dropout: Dropout

  /// α/r.
  public var scaling: Double { configuration.alpha / Double(configuration.rank) }

  /// For a layer with so many features. Throws `ConfigurationError` for a configuration out of range.
  public init(_ configuration: Configuration = Configuration(), inFeatures: Int, outFeatures: Int, generator: RandomGenerator) throws {
    try configuration.validate()
    self.configuration = configuration
    dropout = Dropout(configuration.dropout, generator: generator)
    super.init()
    down = Initializer.uniform(1 / Double(inFeatures).squareRoot())([configuration.rank, inFeatures], generator)
    up = Initializer.zeros([outFeatures, configuration.rank], generator)
  }

  /// For a layer.
  public convenience init(_ configuration: Configuration = Configuration(), for layer: any LinearLayer, generator: RandomGenerator) throws {
    try self.init(configuration, inFeatures: layer.inFeatures, outFeatures: layer.outFeatures, generator: generator)
  }

  public func callAsFunction(_ x: Tensor, base: any LinearLayer) -> Tensor {
    base(x) + linearMap(linearMap(dropout(x), down), up) * scaling
  }

  public func merged(into weight: Tensor) throws -> Tensor {
    guard weight.shape == [up.dim(0), down.dim(1)] else {
      throw TensorError("LoRA of \(down.dim(1)) to \(up.dim(0)) features can't be merged into a weight of shape \(weight.shape)")
    }
    return weight + up.matmul(down).to(weight.dtype) * scaling
  }

  public func multiplyAdds() -> Int { down.count + up.count }
}
