extension Tensor {
  public static func + (a: Tensor, b: Tensor) -> Tensor { Operators.add(.tensor(a), .tensor(b)) }
  public static func + (a: Tensor, b: Double) -> Tensor { Operators.addScalar(.tensor(a), .double(b)) }
  public static func + (a: Double, b: Tensor) -> Tensor { Operators.addScalar(.tensor(b), .double(a)) }
  public static func + (a: Tensor, b: Int) -> Tensor { Operators.addScalar(.tensor(a), .int(b)) }
  public static func - (a: Tensor, b: Tensor) -> Tensor { Operators.sub(.tensor(a), .tensor(b)) }
  public static func - (a: Tensor, b: Double) -> Tensor { Operators.subScalar(.tensor(a), .double(b)) }
  public static func - (a: Double, b: Tensor) -> Tensor { Operators.rsub(.tensor(b), .double(a)) }
  public static func - (a: Tensor, b: Int) -> Tensor { Operators.subScalar(.tensor(a), .int(b)) }
  public static func * (a: Tensor, b: Tensor) -> Tensor { Operators.mul(.tensor(a), .tensor(b)) }
  public static func * (a: Tensor, b: Double) -> Tensor { Operators.mulScalar(.tensor(a), .double(b)) }
  public static func * (a: Double, b: Tensor) -> Tensor { Operators.mulScalar(.tensor(b), .double(a)) }
  public static func * (a: Tensor, b: Int) -> Tensor { Operators.mulScalar(.tensor(a), .int(b)) }
  public static func / (a: Tensor, b: Tensor) -> Tensor { Operators.div(.tensor(a), .tensor(b)) }
  public static func / (a: Tensor, b: Double) -> Tensor { Operators.divScalar(.tensor(a), .double(b)) }
  public static func / (a: Double, b: Tensor) -> Tensor { Operators.mulScalar(.tensor(b.reciprocal()), .double(a)) }
  public static func % (a: Tensor, b: Tensor) -> Tensor { Operators.remainder(.tensor(a), .tensor(b)) }
  public static func % (a: Tensor, b: Int) -> Tensor { Operators.remainderScalar(.tensor(a), .int(b)) }
  public static prefix func - (a: Tensor) -> Tensor { Operators.mulScalar(.tensor(a), .int(-1)) }

  public static func += (a: inout Tensor, b: Tensor) { a = a + b }
  public static func -= (a: inout Tensor, b: Tensor) { a = a - b }
  public static func *= (a: inout Tensor, b: Tensor) { a = a * b }

  public func reciprocal() -> Tensor { Operators.reciprocal(.tensor(self)) }
  public func pow(_ exponent: Double) -> Tensor { Operators.pow(.tensor(self), .double(exponent)) }
  public func pow(_ exponent: Tensor) -> Tensor { Operators.powTensor(.tensor(self), .tensor(exponent)) }
  /// Division rounded towards minus infinity.
  public func floorDivided(by other: Tensor) -> Tensor { Operators.divMode(.tensor(self), .tensor(other), .string("floor")) }

  /// Values limited to `lower...upper`; either bound may be absent.
  public func clamped(min lower: Double? = nil, max upper: Double? = nil) -> Tensor {
    Operators.clamp(.tensor(self), lower.map { .double($0) } ?? .none, upper.map { .double($0) } ?? .none)
  }

  // MARK: Comparison and selection (elementwise, boolean results)

  public static func .== (a: Tensor, b: Tensor) -> Tensor { Operators.eq(.tensor(a), .tensor(b)) }
  public static func .== (a: Tensor, b: Double) -> Tensor { Operators.eqScalar(.tensor(a), .double(b)) }
  public static func .== (a: Tensor, b: Int) -> Tensor { Operators.eqScalar(.tensor(a), .int(b)) }
  public static func .!= (a: Tensor, b: Tensor) -> Tensor { Operators.ne(.tensor(a), .tensor(b)) }
  public static func .!= (a: Tensor, b: Double) -> Tensor { Operators.neScalar(.tensor(a), .double(b)) }
  public static func .!= (a: Tensor, b: Int) -> Tensor { Operators.neScalar(.tensor(a), .int(b)) }
  public static func .< (a: Tensor, b: Tensor) -> Tensor { Operators.lt(.tensor(a), .tensor(b)) }
  public static func .< (a: Tensor, b: Double) -> Tensor { Operators.ltScalar(.tensor(a), .double(b)) }
  public static func .<= (a: Tensor, b: Tensor) -> Tensor { Operators.le(.tensor(a), .tensor(b)) }
  public static func .<= (a: Tensor, b: Double) -> Tensor { Operators.leScalar(.tensor(a), .double(b)) }
  public static func .> (a: Tensor, b: Tensor) -> Tensor { Operators.gt(.tensor(a), .tensor(b)) }
  public static func .> (a: Tensor, b: Double) -> Tensor { Operators.gtScalar(.tensor(a), .double(b)) }
  public static func .>= (a: Tensor, b: Tensor) -> Tensor { Operators.ge(.tensor(a), .tensor(b)) }
  public static func .>= (a: Tensor, b: Double) -> Tensor { Operators.geScalar(.tensor(a), .double(b)) }
  public static func .& (a: Tensor, b: Tensor) -> Tensor { Operators.logicalAnd(.tensor(a), .tensor(b)) }
  public static func .| (a: Tensor, b: Tensor) -> Tensor { Operators.logicalOr(.tensor(a), .tensor(b)) }
  public static prefix func .! (a: Tensor) -> Tensor { Operators.logicalNot(.tensor(a)) }

  public func isNaN() -> Tensor { Operators.isnan(.tensor(self)) }
  public func isFinite() -> Tensor { Operators.isfinite(.tensor(self)) }

  /// True when every element is neither infinite nor NaN.
  public var allFinite: Bool { isFinite().all().item() != 0 }

  /// Where `mask` is true the value, elsewhere the elements of `self`.
  public func maskedFill(_ mask: Tensor, _ value: Double) -> Tensor {
    Operators.maskedFill(.tensor(self), .tensor(mask), .double(value))
  }

  /// True when shape and every element are equal.
  public func isEqual(to other: Tensor) -> Bool { Operators.equal.truth(.tensor(self), .tensor(other)) }

  // MARK: Products

  /// The matrix product over the last two axes, batched and broadcast over the others.
  public func matmul(_ other: Tensor) -> Tensor { Operators.matmul(.tensor(self), .tensor(other)) }
}

infix operator .& : LogicalConjunctionPrecedence
infix operator .| : LogicalDisjunctionPrecedence
prefix operator .!

/// Elements of `a` where `condition` is true, of `b` elsewhere (all broadcast).
public func select(_ condition: Tensor, _ a: Tensor, _ b: Tensor) -> Tensor {
  Operators.whereSelf(.tensor(condition), .tensor(a), .tensor(b))
}

public func maximum(_ a: Tensor, _ b: Tensor) -> Tensor { Operators.maximum(.tensor(a), .tensor(b)) }
public func minimum(_ a: Tensor, _ b: Tensor) -> Tensor { Operators.minimum(.tensor(a), .tensor(b)) }

/// Einstein summation, e.g. `einsum("blhd,bshd->bhls", query, key)`.
public func einsum(_ equation: String, _ operands: Tensor...) -> Tensor {
  Operators.einsum(.string(equation), .tensors(operands))
}
