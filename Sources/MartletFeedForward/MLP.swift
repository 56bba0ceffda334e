private let fused = Operator("martlet::mlp")
private let fusedQuantized = Operator("martlet::quantized_mlp")

/// W₂ φ(W₁ x + b₁) + b₂ (Vaswani et al. 2017, eq. 2, with φ = GELU by default).
public final class MLP: Module, FeedForward {
  @Child(key: "up") public var up: any LinearLayer
  @Child(key: "down") public var down: any LinearLayer
  public let activation: Activation

  public init(width: Int, hidden: Int, activation: Activation = .gelu, bias: Bool = true, generator: RandomGenerator) {
    self.activation = activation
    super.init()
    up = Linear(width, hidden, bias: bias, generator: generator)
    down = Linear(hidden, width, bias: bias, generator: generator)
  }

  public func callAsFunction(_ x: Tensor) -> Tensor {
    // The fused form applies the activation inside the product, where the block is still in cache.
    if let up = up as? Linear, let down = down as? Linear, activation.isFused, !isAutocastEnabled(x.device) {
      return fused(
        .tensor(x), .tensor(up.weight), .tensor(up.bias), .tensor(down.weight), .tensor(down.bias), .string(activation.rawValue))
    }
    if let up = up as? QuantizedLinear, let down = down as? QuantizedLinear, up.sharesForm(with: down), activation.isFused {
      return fusedQuantized(
        .tensor(x), .tensor(up.packed), .tensor(up.scales), .tensor(up.minima), .tensor(up.bias), .tensor(down.packed),
        .tensor(down.scales), .tensor(down.minima), .tensor(down.bias), .int(up.quantization.bits), .int(up.quantization.group),
        .string(activation.rawValue))
    }
    return down(activation(up(x)))
  }

  public func multiplyAdds() -> Int { up.multiplyAdds() + down.multiplyAdds() }
}

extension Activation {
  /// Whether the fused feed-forward kernels know the activation.
  var isFused: Bool {
    switch self {
    case .gelu, .geluTanh, .relu, .silu, .quickGelu: true
    default: false
    }
  }
}

extension QuantizedLinear {
  /// Whether one fused kernel reads both.
  func sharesForm(with other: QuantizedLinear) -> Bool {
    quantization.bits == other.quantization.bits && quantization.group == other.quantization.group
  }
}
