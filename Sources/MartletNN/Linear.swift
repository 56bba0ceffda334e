/// A linear map over the last axis, in whatever form it is stored: dense, low-rank, quantised, adapted.
///
/// Models hold their linear layers as `any LinearLayer`, so that another form can take a layer's place by path.
public protocol LinearLayer: Module {
  var inFeatures: Int { get }
  var outFeatures: Int { get }
  /// x: [..., inFeatures] → [..., outFeatures].
  func callAsFunction(_ x: Tensor) -> Tensor
  /// The weight as a dense matrix, [outFeatures, inFeatures].
  func denseWeight() -> Tensor
  /// Bytes that the stored form takes.
  var storageBytes: Int { get }
  /// Multiplications with addition for one position.
  func multiplyAdds() -> Int
}

private let linear = Operator("martlet::linear")

/// y = x Wᵀ + b with W [outFeatures, inFeatures], on the fastest matrix product of the machine. A bfloat16 weight may meet float32
/// activations: on the CPU it is widened as it is read, the sums and y are float32.
public final class Linear: Module, LinearLayer {
  @Parameter public var weight: Tensor
  @Parameter public var bias: Tensor?

  public var inFeatures: Int { weight.dim(1) }
  public var outFeatures: Int { weight.dim(0) }

  /// Weight and bias uniform on ±1/√inFeatures (PyTorch's default), unless an initialiser is given; its bias is then zero.
  public init(
    _ inFeatures: Int, _ outFeatures: Int, bias: Bool = true, initializer: Initializer? = nil, generator: RandomGenerator
  ) {
    super.init()
    let bound = 1 / Double(inFeatures).squareRoot()
    weight = (initializer ?? .uniform(bound))([outFeatures, inFeatures], generator)
    if bias {
      self.bias = initializer == nil ? Initializer.uniform(bound)([outFeatures], generator) : Tensor.zeros([outFeatures])
    } else {
      self.bias = nil
    }
  }

  /// Over given tensors.
  public init(weight: Tensor, bias: Tensor? = nil) {
    super.init()
    self.weight = weight
    self.bias = bias
  }

  public func callAsFunction(_ x: Tensor) -> Tensor { linearMap(x, weight, bias) }
  public func denseWeight() -> Tensor { weight }
  public var storageBytes: Int { weight.byteCount + (bias?.byteCount ?? 0) }
  public func multiplyAdds() -> Int { inFeatures * outFeatures }
}

/// x Wᵀ + b for x [..., in] and W [out, in].
public func linearMap(_ x: Tensor, _ weight: Tensor, _ bias: Tensor? = nil) -> Tensor {
  if isAutocastEnabled(x.device) { return autocastLinear(.tensor(x), .tensor(weight), .tensor(bias)) }
  return linear(.tensor(x), .tensor(weight), .tensor(bias))
}

private let autocastLinear = Operator("aten::linear")
