/// libtorch's operators on lists of tensors: one call for a whole bundle (one kernel launch on a GPU).
enum ForEach {
  private static let mulScalar = Operator("aten::_foreach_mul", "Scalar")
  private static let mulScalarInPlace = Operator("aten::_foreach_mul_", "Scalar")
  private static let mulListInPlace = Operator("aten::_foreach_mul_", "List")
  private static let divScalarInPlace = Operator("aten::_foreach_div_", "Scalar")
  private static let addList = Operator("aten::_foreach_add", "List")
  private static let addListInPlace = Operator("aten::_foreach_add_", "List")
  private static let addScalarInPlace = Operator("aten::_foreach_add_", "Scalar")
  private static let lerpScalar = Operator("aten::_foreach_lerp", "Scalar")
  private static let lerpScalarInPlace = Operator("aten::_foreach_lerp_", "Scalar")
  private static let addcmulInPlace = Operator("aten::_foreach_addcmul_", "Scalar")
  private static let addcdivInPlace = Operator("aten::_foreach_addcdiv_", "Scalar")
  private static let div = Operator("aten::_foreach_div", "List")
  private static let sqrt = Operator("aten::_foreach_sqrt")
  private static let signInPlace = Operator("aten::_foreach_sign_")
  private static let norm = Operator("aten::_foreach_norm", "Scalar")
  private static let clampMinInPlace = Operator("aten::_foreach_clamp_min_", "Scalar")
  private static let clampMaxInPlace = Operator("aten::_foreach_clamp_max_", "Scalar")

  /// a · s
  static func scaled(_ a: [Tensor], _ s: Double) -> [Tensor] { mulScalar.many(.tensors(a), .double(s)).map { $0! } }
  /// a ← a · s
  static func scale(_ a: [Tensor], by s: Double) { mulScalarInPlace.run(.tensors(a), .double(s)) }
  /// a ← a · b
  static func multiply(_ a: [Tensor], by b: [Tensor]) { mulListInPlace.run(.tensors(a), .tensors(b)) }
  /// a ← a / s
  static func divide(_ a: [Tensor], by s: Double) { divScalarInPlace.run(.tensors(a), .double(s)) }
  /// a / b
  static func quotient(_ a: [Tensor], _ b: [Tensor]) -> [Tensor] { div.many(.tensors(a), .tensors(b)).map { $0! } }
  /// a + s · b
  static func sum(_ a: [Tensor], _ b: [Tensor], scale s: Double) -> [Tensor] {
    addList.many(.tensors(a), .tensors(b), .double(s)).map { $0! }
  }
  /// a ← a + s · b
  static func add(_ a: [Tensor], _ b: [Tensor], scale s: Double) { addListInPlace.run(.tensors(a), .tensors(b), .double(s)) }
  /// a ← a + s
  static func add(_ a: [Tensor], _ s: Double) { addScalarInPlace.run(.tensors(a), .double(s)) }
  /// a + w · (b − a)
  static func interpolated(_ a: [Tensor], _ b: [Tensor], weight w: Double) -> [Tensor] {
    lerpScalar.many(.tensors(a), .tensors(b), .double(w)).map { $0! }
  }
  /// a ← a + w · (b − a)
  static func interpolate(_ a: [Tensor], towards b: [Tensor], weight w: Double) {
    lerpScalarInPlace.run(.tensors(a), .tensors(b), .double(w))
  }
  /// a ← a + s · b · c
  static func addProduct(_ a: [Tensor], _ b: [Tensor], _ c: [Tensor], scale s: Double) {
    addcmulInPlace.run(.tensors(a), .tensors(b), .tensors(c), .double(s))
  }
  /// a ← a + s · b / c
  static func addQuotient(_ a: [Tensor], _ b: [Tensor], _ c: [Tensor], scale s: Double) {
    addcdivInPlace.run(.tensors(a), .tensors(b), .tensors(c), .double(s))
  }
  static func roots(_ a: [Tensor]) -> [Tensor] { sqrt.many(.tensors(a)).map { $0! } }
  /// a ← sign(a)
  static func takeSign(_ a: [Tensor]) { signInPlace.run(.tensors(a)) }
  /// The Euclidean norms, each a scalar tensor.
  static func norms(_ a: [Tensor]) -> [Tensor] { norm.many(.tensors(a), .double(2), .none).map { $0! } }
  /// a ← min(max(a, −limit), limit)
  static func clamp(_ a: [Tensor], to limit: Double) {
    clampMinInPlace.run(.tensors(a), .double(-limit))
    clampMaxInPlace.run(.tensors(a), .double(limit))
  }
}
