private enum Operators {
  static let layerNorm = Operator("martlet::layer_norm")
  static let rmsNorm = Operator("martlet::rms_norm")
  static let simpleRMSNorm = Operator("martlet::simple_rms_norm")
  static let batchNorm = Operator("aten::batch_norm")
  static let groupNorm = Operator("aten::group_norm")
}

/// A layer that maps [..., width] to the same shape position by position.
public protocol NormalizationLayer: Module {
  func callAsFunction(_ x: Tensor) -> Tensor
  /// The same, where padding must not count in statistics over several positions. mask: [batch, length] bool, true at real positions
  /// of x [batch, length, width]; `nil` when all are.
  func callAsFunction(_ x: Tensor, mask: Tensor?) -> Tensor
}

extension NormalizationLayer {
  /// Layers that treat each position by itself need no mask.
  public func callAsFunction(_ x: Tensor, mask: Tensor?) -> Tensor { self(x) }
}

/// (x − mean) / √(variance + ε) · weight + bias over the last axis (Ba et al. 2016).
public final class LayerNorm: Module, NormalizationLayer {
  @Parameter public var weight: Tensor?
  @Parameter public var bias: Tensor?
  public let epsilon: Double

  public init(_ width: Int, epsilon: Double = 1e-5, affine: Bool = true, bias: Bool = true) {
    self.epsilon = epsilon
    super.init()
    weight = affine ? Tensor.ones([width]) : nil
    self.bias = affine && bias ? Tensor.zeros([width]) : nil
  }

  public func callAsFunction(_ x: Tensor) -> Tensor {
    Operators.layerNorm(.tensor(x), .tensor(weight), .tensor(bias), .double(epsilon))
  }
}

/// x / √(mean(x²) + ε) · weight over the last axis (Zhang & Sennrich 2019).
public final class RMSNorm: Module, NormalizationLayer {
  @Parameter public var weight: Tensor?
  public let epsilon: Double
  /// The factor is 1 + weight, as Gemma's checkpoints store it.
  public let unitOffset: Bool

  public init(_ width: Int, epsilon: Double = 1e-6, affine: Bool = true, unitOffset: Bool = false) {
    self.epsilon = epsilon
    self.unitOffset = unitOffset
    super.init()
    weight = affine ? (unitOffset ? Tensor.zeros([width]) : Tensor.ones([width])) : nil
  }

  public func callAsFunction(_ x: Tensor) -> Tensor {
    let factor = unitOffset ? weight.map { $0 + 1 } : weight
    return Operators.rmsNorm(.tensor(x), .tensor(factor), .double(epsilon))
  }
}

/// x / (‖x‖₂ D^{−½} + ε) over the last axis of D channels, without parameters: TransNormer's SRMSNorm (Qin et al. 2022).
/// The derivative is at most 1/ε, also at rows that vanish.
public final class SRMSNorm: Module, NormalizationLayer {
  public let epsilon: Double

  public init(epsilon: Double = 1e-8) {
    require(epsilon > 0, "the norm's epsilon must be positive, got \(epsilon)")
    self.epsilon = epsilon
    super.init()
  }

  public func callAsFunction(_ x: Tensor) -> Tensor { Operators.simpleRMSNorm(.tensor(x), .double(epsilon)) }
}

/// Normalises each channel over batch and positions in training, by running averages in evaluation (Ioffe & Szegedy 2015).
/// x: [batch, length, width] or [batch, width]; not causal while training. Positions that a mask excludes take no part in the averages.
public final class BatchNorm: Module, NormalizationLayer {
  @Parameter public var weight: Tensor?
  @Parameter public var bias: Tensor?
  @Buffer(key: "running_mean") public var runningMean: Tensor
  @Buffer(key: "running_var") public var runningVariance: Tensor
  public let epsilon: Double
  public let momentum: Double

  public init(_ width: Int, epsilon: Double = 1e-5, momentum: Double = 0.1, affine: Bool = true) {
    self.epsilon = epsilon
    self.momentum = momentum
    super.init()
    weight = affine ? Tensor.ones([width]) : nil
    bias = affine ? Tensor.zeros([width]) : nil
    runningMean = Tensor.zeros([width])
    runningVariance = Tensor.ones([width])
  }

  public func callAsFunction(_ x: Tensor) -> Tensor { self(x, mask: nil) }

  public func callAsFunction(_ x: Tensor, mask: Tensor?) -> Tensor {
    if recalibratedBatches != nil { return recalibrating(x, mask: mask) }
    return self(x, mask: mask, updating: true)
  }

  /// Without `updating`, training uses the batch but leaves the running averages alone.
  func callAsFunction(_ x: Tensor, mask: Tensor?, updating: Bool) -> Tensor {
    if let mask, isTraining {
      let (mean, variance, count) = statistics(x, mask: mask)
      if updating { average(mean, variance, count: count, weight: momentum) }
      return normalized(x, mean, variance)
    }
    let rows = x.reshaped(-1, x.dim(-1))  // [B·L, D]
    let averages = isTraining && !updating ? (nil, nil) : (runningMean, runningVariance) as (Tensor?, Tensor?)
    return Operators.batchNorm(
      .tensor(rows), .tensor(weight), .tensor(bias), .tensor(averages.0), .tensor(averages.1), .bool(isTraining),
      .double(momentum), .double(epsilon), .bool(false)
    ).reshaped(x.shape)
  }

  // MARK: Statistics

  /// Batches that a recalibration has seen; `nil` outside of one.
  var recalibratedBatches: Int?

  /// Mean and (biased) variance of each channel over real positions, and how many those are.
  private func statistics(_ x: Tensor, mask: Tensor?) -> (mean: Tensor, variance: Tensor, count: Double) {
    let rows = x.reshaped(-1, x.dim(-1))
    guard let keep = mask?.reshaped(-1, 1).to(x.dtype) else {
      return (rows.mean(axis: 0), rows.variance(axis: 0, correction: 0), Double(rows.dim(0)))
    }
    let count = max(1, keep.sum().item())
    let mean = (rows * keep).sum(axis: 0) / count
    return (mean, ((rows - mean).square() * keep).sum(axis: 0) / count, count)
  }

  private func normalized(_ x: Tensor, _ mean: Tensor, _ variance: Tensor) -> Tensor {
    var y = (x - mean) * (variance + epsilon).rsqrt()
    if let weight { y = y * weight }
    if let bias { y = y + bias }
    return y
  }

  /// Running averages move by `weight` towards a batch's mean and unbiased variance.
  private func average(_ mean: Tensor, _ variance: Tensor, count: Double, weight: Double) {
    withoutGradient {
      let unbiased = variance.detached() * (count / max(1, count - 1))
      runningMean.copyInPlace(runningMean * (1 - weight) + mean.detached() * weight)
      runningVariance.copyInPlace(runningVariance * (1 - weight) + unbiased * weight)
    }
  }

  /// By the batch's own statistics, which go into a plain average over batches.
  private func recalibrating(_ x: Tensor, mask: Tensor?) -> Tensor {
    let (mean, variance, count) = statistics(x, mask: mask)
    let seen = (recalibratedBatches ?? 0) + 1
    recalibratedBatches = seen
    average(mean, variance, count: count, weight: 1 / Double(seen))
    return normalized(x, mean, variance)
  }
}

/// Normalises groups of channels of each sample over its positions (Wu & He 2018). x: [batch, channels, ...].
public final class GroupNorm: Module {
  @Parameter public var weight: Tensor?
  @Parameter public var bias: Tensor?
  public let groups: Int
  public let epsilon: Double

  public init(groups: Int, channels: Int, epsilon: Double = 1e-5, affine: Bool = true) {
    require(channels % groups == 0, "\(channels) channels can't be divided into \(groups) groups")
    self.groups = groups
    self.epsilon = epsilon
    super.init()
    weight = affine ? Tensor.ones([channels]) : nil
    bias = affine ? Tensor.zeros([channels]) : nil
  }

  public func callAsFunction(_ x: Tensor) -> Tensor {
    Operators.groupNorm(.tensor(x), .int(groups), .tensor(weight), .tensor(bias), .double(epsilon), .bool(false))
  }
}

/// Which normalisation a backbone uses.
public enum NormalizationKind: String, Codable, Sendable, CaseIterable {
  case layer
  case rms
  /// RMS with the factor 1 + weight.
  case rmsUnitOffset = "rms_unit_offset"
  /// ``SRMSNorm``: without a factor.
  case simpleRMS = "simple_rms"
  case batch
  /// Slides from layer norm to a batch norm that can be folded away (SLAB).
  case prepbn
  case none

  /// - Parameters:
  ///   - epsilon: `nil` for the kind's own.
  ///   - schedule: of `prepbn`.
  public func make(
    _ width: Int, epsilon: Double? = nil, schedule: ProgressiveRepBatchNorm.Schedule = .init()
  ) -> (any NormalizationLayer)? {
    switch self {
    case .layer: LayerNorm(width, epsilon: epsilon ?? 1e-5)
    case .rms: RMSNorm(width, epsilon: epsilon ?? 1e-6)
    case .rmsUnitOffset: RMSNorm(width, epsilon: epsilon ?? 1e-6, unitOffset: true)
    case .simpleRMS: SRMSNorm(epsilon: epsilon ?? 1e-8)
    case .batch: BatchNorm(width, epsilon: epsilon ?? 1e-5)
    case .prepbn: ProgressiveRepBatchNorm(width, schedule: schedule, epsilon: epsilon ?? 1e-5)
    case .none: nil
    }
  }
}
