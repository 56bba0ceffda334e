private let fused = Operator("martlet::gated_mlp")
private let fusedQuantized = Operator("martlet::quantized_gated_mlp")

/// W_down (φ(W_gate x) ⊙ W_up x): SwiGLU with φ = SiLU, GeGLU with φ = GELU (Shazeer 2020, eqs. 5–6; without biases unless asked for).
public final class GatedMLP: Module, FeedForward {
  @Child public var gate: any LinearLayer
  @Child public var up: any LinearLayer
  @Child public var down: any LinearLayer
  public let activation: Activation

  public init(width: Int, hidden: Int, activation: Activation = .silu, bias: Bool = false, generator: RandomGenerator) {
    self.activation = activation
    super.init()
    gate = Linear(width, hidden, bias: bias, generator: generator)
    up = Linear(width, hidden, bias: bias, generator: generator)
    down = Linear(hidden, width, bias: bias, generator: generator)
  }

  public func callAsFunction(_ x: Tensor) -> Tensor {
    if let gate = gate as? Linear, let up = up as? Linear, let down = down as? Linear, activation.isFused,
      gate.bias == nil, up.bias == nil, down.bias == nil, !isAutocastEnabled(x.device)
    {
      return fused(
        .tensor(x), .tensor(gate.weight), .tensor(up.weight), .tensor(down.weight), .string(activation.rawValue))
    }
    if let gate = gate as? QuantizedLinear, let up = up as? QuantizedLinear, let down = down as? QuantizedLinear,
      gate.sharesForm(with: up), gate.sharesForm(with: down), activation.isFused, gate.bias == nil, up.bias == nil, down.bias == nil
    {
      return fusedQuantized(
        .tensor(x), .tensor(gate.packed), .tensor(gate.scales), .tensor(gate.minima), .tensor(up.packed), .tensor(up.scales),
        .tensor(up.minima), .tensor(down.packed), .tensor(down.scales), .tensor(down.minima), .int(gate.quantization.bits),
        .int(gate.quantization.group), .string(activation.rawValue))
    }
    return down(activation(gate(x)) * up(x))
  }

  public func multiplyAdds() -> Int { gate.multiplyAdds() + up.multiplyAdds() + down.multiplyAdds() }
}
