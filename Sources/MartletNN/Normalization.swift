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
/// x: [batch, length, width] or [batch, width]; not causal while training.
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

  public func callAsFunction(_ x: Tensor) -> Tensor {
    let rows = x.reshaped(-1, x.dim(-1))  // [B·L, D]
    return Operators.batchNorm(
      .tensor(rows), .tensor(weight), .tensor(bias), .tensor(runningMean), .tensor(runningVariance), .bool(isTraining),
      .double(momentum), .double(epsilon), .bool(false)
    ).reshaped(x.shape)
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
  case none

  /// - Parameter epsilon: `nil` for the kind's own.
  public func make(_ width: Int, epsilon: Double? = nil) -> (any NormalizationLayer)? {
    switch self {
    case .layer: LayerNorm(width, epsilon: epsilon ?? 1e-5)
    case .rms: RMSNorm(width, epsilon: epsilon ?? 1e-6)
    case .rmsUnitOffset: RMSNorm(width, epsilon: epsilon ?? 1e-6, unitOffset: true)
    case .simpleRMS: SRMSNorm(epsilon: epsilon ?? 1e-8)
    case .batch: BatchNorm(width, epsilon: epsilon ?? 1e-5)
    case .none: nil
    }
  }
}
