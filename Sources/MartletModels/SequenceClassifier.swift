/// How a sequence becomes one vector.
public enum Pooling: String, Codable, Sendable, CaseIterable {
  case mean
  case max
  case last

  /// x: [batch, length, width], mask [batch, length] → [batch, width], over real positions only. A sample that has none gives
  /// zeros (its first position, for `last`).
  public func callAsFunction(_ x: Tensor, mask: Tensor?) -> Tensor {
    guard let mask else {
      switch self {
      case .mean: return x.mean(axis: 1)
      case .max: return x.max(axis: 1)
      case .last: return x.selected(axis: 1, -1)
      }
    }
    let keep = mask.expandedDimension(-1)
    switch self {
    case .mean:
      let weights = keep.to(x.dtype)
      return (x * weights).sum(axis: 1) / weights.sum(axis: 1).clamped(min: 1)
    case .max:
      return x.maskedFill(.!keep, -.infinity).max(axis: 1).maskedFill(.!mask.any(axis: 1, keepDims: true), 0)
    case .last:
      let index = (mask.to(.int64).sum(axis: 1) - 1).clamped(min: 0).to(.int64)
      return x.gather(index.reshaped(-1, 1, 1).broadcast(to: [x.dim(0), 1, x.dim(2)]), axis: 1).squeezed(1)
    }
  }
}

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
