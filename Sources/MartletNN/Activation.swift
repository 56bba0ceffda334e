/// A pointwise non-linearity, named as in configurations.
public enum Activation: String, Codable, Sendable, CaseIterable {
  case identity
  case relu
  case gelu
  case geluTanh = "gelu_tanh"
  case silu
  /// x · sigmoid(1.702 x), the approximation of GELU that CLIP and early GPTs use (Hendrycks & Gimpel 2016).
  case quickGelu = "quick_gelu"
  case sigmoid
  case tanh
  case elu
  case softplus
  /// relu(x)².
  case reluSquared = "relu_squared"

  public func callAsFunction(_ x: Tensor) -> Tensor {
    switch self {
    case .identity: x
    case .relu: x.relu()
    case .gelu: x.gelu()
    case .geluTanh: x.gelu(approximate: true)
    case .silu: x.silu()
    case .quickGelu: x * (x * 1.702).sigmoid()
    case .sigmoid: x.sigmoid()
    case .tanh: x.tanh()
    case .elu: x.elu()
    case .softplus: x.softplus()
    case .reluSquared: x.relu().square()
    }
  }
}
