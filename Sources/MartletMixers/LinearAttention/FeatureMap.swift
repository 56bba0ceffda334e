/// φ of linear attention: features of queries and keys, not negative, whose products φ(q)·φ(k) stand for the weights e^{q·k}. Each head
/// has its own.
public protocol FeatureMap: Module {
  /// x: [batch, heads, length, d] → [batch, heads, length, features].
  func callAsFunction(_ x: Tensor) -> Tensor
  /// Features of a head.
  var features: Int { get }
  /// Multiplications with addition for one position.
  func multiplyAdds() -> Int
}

/// The trained maps that a linearised attention can have.
public enum FeatureMapKind: String, Codable, Sendable, CaseIterable {
  /// ``HedgehogFeatureMap``.
  case hedgehog
  /// ``RectifiedFeatureMap``.
  case rectified

  /// - Parameters:
  ///   - width: channels of a head.
  ///   - features: columns f of A_h; `nil` for half the channels of a head (Hedgehog, which has 2 f features) or all (rectified).
  public func make(
    heads: Int, width: Int, features: Int? = nil, initialization: FeatureMapInitialization, generator: RandomGenerator
  ) -> any FeatureMap {
    switch self {
    case .hedgehog:
      HedgehogFeatureMap(
        heads: heads, width: width, columns: features ?? max(1, width / 2), initialization: initialization, generator: generator)
    case .rectified:
      RectifiedFeatureMap(heads: heads, width: width, features: features ?? width, initialization: initialization, generator: generator)
    }
  }
}

/// How the matrices of a feature map begin.
public enum FeatureMapInitialization: String, Codable, Sendable, CaseIterable {
  /// Uniform on ±√(6/(d f)), as PyTorch's `kaiming_uniform_` counts the inputs of [heads, d, f]: nearly equal features.
  case kaiming
  /// The identity in each head; needs f = d.
  case identity

  func callAsFunction(heads: Int, width: Int, columns: Int, _ generator: RandomGenerator) -> Tensor {
    switch self {
    case .kaiming: return Initializer.kaimingUniform([heads, width, columns], generator)
    case .identity:
      require(width == columns, "maps that begin as the identity need as many columns as channels, got \(columns) for \(width)")
      if Initializer.isSkipped { return Initializer.zeros([heads, width, columns], generator) }
      return Tensor.ones([heads, width]).asDiagonal()
    }
  }
}

private let hedgehog = Operator("martlet::hedgehog_features")

/// The Hedgehog map (Zhang et al. 2024, arXiv 2402.04347) with the softmax over features, as LoLCATs trains it:
///
///     φ(x) = [softmax(x A_h) ; softmax(−x A_h)],     A_h ∈ R^{d×f}
///
/// clamped at 1e-12. Each half sums to 1, and adding a constant to all of x A_h changes nothing. On CPU in float32 it is one pass of
/// `martlet::hedgehog_features`, elsewhere plain operators.
public final class HedgehogFeatureMap: Module, FeatureMap {
  /// A, [heads, d, f].
  @Parameter public var weight: Tensor

  public var features: Int { 2 * weight.dim(2) }

  /// - Parameter columns: f; there are 2 f features.
  public init(heads: Int, width: Int, columns: Int, initialization: FeatureMapInitialization = .kaiming, generator: RandomGenerator) {
    require(columns > 0, "a feature map needs at least one column, got \(columns)")
    super.init()
    weight = initialization(heads: heads, width: width, columns: columns, generator)
  }

  public func callAsFunction(_ x: Tensor) -> Tensor {
    if fusedKernelsServe(x) && weight.dtype == .float32 { return hedgehog(.tensor(x), .tensor(weight)) }
    return reference(x)
  }

  /// By the equation, in plain operators.
  public func reference(_ x: Tensor) -> Tensor {
    let y = x.matmul(weight)  // [B, H, L, f]
    return concatenated([y.softmax(), (-y).softmax()], axis: -1).clamped(min: leastFeature)
  }

  public func multiplyAdds() -> Int { weight.count }
}

/// Features are at least this, so that a denominator is never 0.
private let leastFeature = 1e-12

/// The map of "Transformer to RNN" (Kasai et al. 2021, arXiv 2103.13076): φ(x) = relu(x A_h + b_h), clamped at 1e-12.
public final class RectifiedFeatureMap: Module, FeatureMap {
  /// A, [heads, d, f].
  @Parameter public var weight: Tensor
  /// b, [heads, f].
  @Parameter public var bias: Tensor

  public var features: Int { weight.dim(2) }

  public init(heads: Int, width: Int, features: Int, initialization: FeatureMapInitialization = .kaiming, generator: RandomGenerator) {
    require(features > 0, "a feature map needs at least one feature, got \(features)")
    super.init()
    weight = initialization(heads: heads, width: width, columns: features, generator)
    bias = Initializer.zeros([heads, features], generator)
  }

  public func callAsFunction(_ x: Tensor) -> Tensor {
    (x.matmul(weight) + bias.expandedDimension(1)).relu().clamped(min: leastFeature)
  }

  public func multiplyAdds() -> Int { weight.count }
}
