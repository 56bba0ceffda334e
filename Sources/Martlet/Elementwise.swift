// Elementwise functions of one tensor, as ATen defines them.

private enum Elementwise {
  static let exp = Operator("aten::exp")
  static let log = Operator("aten::log")
  static let log2 = Operator("aten::log2")
  static let log1p = Operator("aten::log1p")
  static let expm1 = Operator("aten::expm1")
  static let sqrt = Operator("aten::sqrt")
  static let rsqrt = Operator("aten::rsqrt")
  static let sin = Operator("aten::sin")
  static let cos = Operator("aten::cos")
  static let tan = Operator("aten::tan")
  static let asin = Operator("aten::asin")
  static let acos = Operator("aten::acos")
  static let atan = Operator("aten::atan")
  static let sinh = Operator("aten::sinh")
  static let cosh = Operator("aten::cosh")
  static let tanh = Operator("aten::tanh")
  static let sigmoid = Operator("aten::sigmoid")
  static let relu = Operator("aten::relu")
  static let erf = Operator("aten::erf")
  static let erfinv = Operator("aten::erfinv")
  static let abs = Operator("aten::abs")
  static let sign = Operator("aten::sign")
  static let floor = Operator("aten::floor")
  static let ceil = Operator("aten::ceil")
  static let round = Operator("aten::round")
  static let trunc = Operator("aten::trunc")
  static let square = Operator("aten::square")
  static let logSigmoid = Operator("aten::log_sigmoid")
  static let lgamma = Operator("aten::lgamma")
  static let digamma = Operator("aten::digamma")
  static let silu = Operator("aten::silu")
  static let gelu = Operator("aten::gelu")
  static let softplus = Operator("aten::softplus")
  static let elu = Operator("aten::elu")
  static let leakyReLU = Operator("aten::leaky_relu")
}

extension Tensor {
  public func exp() -> Tensor { Elementwise.exp(.tensor(self)) }
  public func log() -> Tensor { Elementwise.log(.tensor(self)) }
  public func log2() -> Tensor { Elementwise.log2(.tensor(self)) }
  public func log1p() -> Tensor { Elementwise.log1p(.tensor(self)) }
  public func expm1() -> Tensor { Elementwise.expm1(.tensor(self)) }
  public func sqrt() -> Tensor { Elementwise.sqrt(.tensor(self)) }
  public func rsqrt() -> Tensor { Elementwise.rsqrt(.tensor(self)) }
  public func sin() -> Tensor { Elementwise.sin(.tensor(self)) }
  public func cos() -> Tensor { Elementwise.cos(.tensor(self)) }
  public func tan() -> Tensor { Elementwise.tan(.tensor(self)) }
  public func asin() -> Tensor { Elementwise.asin(.tensor(self)) }
  public func acos() -> Tensor { Elementwise.acos(.tensor(self)) }
  public func atan() -> Tensor { Elementwise.atan(.tensor(self)) }
  public func sinh() -> Tensor { Elementwise.sinh(.tensor(self)) }
  public func cosh() -> Tensor { Elementwise.cosh(.tensor(self)) }
  public func tanh() -> Tensor { Elementwise.tanh(.tensor(self)) }
  public func sigmoid() -> Tensor { Elementwise.sigmoid(.tensor(self)) }
  public func relu() -> Tensor { Elementwise.relu(.tensor(self)) }
  public func erf() -> Tensor { Elementwise.erf(.tensor(self)) }
  public func erfinv() -> Tensor { Elementwise.erfinv(.tensor(self)) }
  public func abs() -> Tensor { Elementwise.abs(.tensor(self)) }
  public func sign() -> Tensor { Elementwise.sign(.tensor(self)) }
  public func floor() -> Tensor { Elementwise.floor(.tensor(self)) }
  public func ceil() -> Tensor { Elementwise.ceil(.tensor(self)) }
  public func round() -> Tensor { Elementwise.round(.tensor(self)) }
  public func trunc() -> Tensor { Elementwise.trunc(.tensor(self)) }
  public func square() -> Tensor { Elementwise.square(.tensor(self)) }
  /// log(1 / (1 + e^{-x})), exact for large |x|.
  public func logSigmoid() -> Tensor { Elementwise.logSigmoid(.tensor(self)) }
  public func lgamma() -> Tensor { Elementwise.lgamma(.tensor(self)) }
  public func digamma() -> Tensor { Elementwise.digamma(.tensor(self)) }
  /// x · sigmoid(x).
  public func silu() -> Tensor { Elementwise.silu(.tensor(self)) }

  /// x · Φ(x), exactly by `erf` or by the tanh approximation.
  public func gelu(approximate: Bool = false) -> Tensor { Elementwise.gelu(.tensor(self), .string(approximate ? "tanh" : "none")) }

  /// log(1 + e^{βx}) / β.
  public func softplus(beta: Double = 1) -> Tensor { Elementwise.softplus(.tensor(self), .double(beta)) }

  /// x for x > 0, α (e^x − 1) otherwise.
  public func elu(alpha: Double = 1) -> Tensor { Elementwise.elu(.tensor(self), .double(alpha)) }

  public func leakyReLU(slope: Double = 0.01) -> Tensor { Elementwise.leakyReLU(.tensor(self), .double(slope)) }

  /// Softmax over one axis.
  public func softmax(axis: Int = -1) -> Tensor { Operators.softmax(.tensor(self), .int(axis)) }

  public func logSoftmax(axis: Int = -1) -> Tensor { Operators.logSoftmax(.tensor(self), .int(axis)) }
}
