private enum ComplexOperators {
  static let complex = Operator("aten::complex")
  static let polar = Operator("aten::polar")
  static let real = Operator("aten::real")
  static let imag = Operator("aten::imag")
  static let conj = Operator("aten::conj")
  static let angle = Operator("aten::angle")
  static let viewAsReal = Operator("aten::view_as_real")
  static let viewAsComplex = Operator("aten::view_as_complex")
  static let resolveConj = Operator("aten::resolve_conj")
}

extension Tensor {
  /// real + i · imaginary.
  public static func complex(_ real: Tensor, _ imaginary: Tensor) -> Tensor {
    ComplexOperators.complex(.tensor(real), .tensor(imaginary))
  }

  /// magnitude · e^{i · angle}.
  public static func polar(_ magnitude: Tensor, _ angle: Tensor) -> Tensor {
    ComplexOperators.polar(.tensor(magnitude), .tensor(angle))
  }

  public var realPart: Tensor { ComplexOperators.real(.tensor(self)) }
  public var imaginaryPart: Tensor { ComplexOperators.imag(.tensor(self)) }
  public func conjugated() -> Tensor { ComplexOperators.conj(.tensor(self)) }
  /// A copy without the lazy conjugation mark, whose bytes may be read.
  public func resolvingConjugate() -> Tensor { ComplexOperators.resolveConj(.tensor(self)) }
  public func angle() -> Tensor { ComplexOperators.angle(.tensor(self)) }
  /// [..., 2] view of a complex tensor.
  public func viewAsReal() -> Tensor { ComplexOperators.viewAsReal(.tensor(self)) }
  /// Complex view of a [..., 2] tensor.
  public func viewAsComplex() -> Tensor { ComplexOperators.viewAsComplex(.tensor(self)) }
}
