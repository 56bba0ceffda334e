/// A backbone, a pooling and a linear head: one class for a sequence. → logits [batch, classes].
public final class SequenceClassifier: Module {
  @Child public var backbone: SequenceBackbone
  @Child public var head: any LinearLayer
  public let pooling: Pooling

  /// Throws `ConfigurationError` for a configuration that makes no model.
  public init(_ configuration: BackboneConfiguration, classes: Int, pooling: Pooling = .mean, generator: RandomGenerator) throws {
    self.pooling = pooling
    super.init()
    backbone = try SequenceBackbone(configuration, generator: generator)
    head = Linear(configuration.width, classes, generator: generator)
  }

  public func callAsFunction(_ input: Tensor, mask: Tensor? = nil) -> Tensor {
    head(pooling(backbone(input, mask: mask), mask: mask))
  }
}

/// A backbone and a linear head at every position. → logits [batch, length, classes].
public final class SequenceTagger: Module {
  @Child public var backbone: SequenceBackbone
  @Child public var head: any LinearLayer

  /// Throws `ConfigurationError` for a configuration that makes no model.
  public init(_ configuration: BackboneConfiguration, classes: Int, generator: RandomGenerator) throws {
    super.init()
    backbone = try SequenceBackbone(configuration, generator: generator)
    head = Linear(configuration.width, classes, generator: generator)
  }

  public func callAsFunction(_ input: Tensor, mask: Tensor? = nil) -> Tensor { head(backbone(input, mask: mask)) }
}
