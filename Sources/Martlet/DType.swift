/// The type of a tensor's elements. Raw values are libtorch's.
public enum DType: Int32, Sendable, CaseIterable, Codable {
  case uint8 = 0
  case int8 = 1
  case int16 = 2
  case int32 = 3
  case int64 = 4
  case float16 = 5
  case float32 = 6
  case float64 = 7
  case complex64 = 9
  case complex128 = 10
  case bool = 11
  case bfloat16 = 15
  case float8e5m2 = 23
  case float8e4m3fn = 24
  case uint16 = 27
  case uint32 = 28
  case uint64 = 29

  /// Bytes of one element.
  public var itemSize: Int {
    switch self {
    case .uint8, .int8, .bool, .float8e5m2, .float8e4m3fn: 1
    case .int16, .float16, .bfloat16, .uint16: 2
    case .int32, .float32, .uint32: 4
    case .int64, .float64, .complex64, .uint64: 8
    case .complex128: 16
    }
  }

  public var isFloatingPoint: Bool {
    switch self {
    case .float16, .float32, .float64, .bfloat16, .float8e5m2, .float8e4m3fn: true
    default: false
    }
  }

  public var isComplex: Bool { self == .complex64 || self == .complex128 }

  /// The real type of the same precision: complex64 → float32, complex128 → float64, others unchanged.
  public var real: DType {
    switch self {
    case .complex64: .float32
    case .complex128: .float64
    default: self
    }
  }

  /// The complex type of the same precision: float64 → complex128, other real types → complex64.
  public var complex: DType {
    switch self {
    case .float64, .complex128: .complex128
    default: .complex64
    }
  }
}

/// A Swift type that can be a tensor's element.
public protocol TensorElement: Sendable, BitwiseCopyable {
  static var dtype: DType { get }
}
extension UInt8: TensorElement { public static var dtype: DType { .uint8 } }
extension Int8: TensorElement { public static var dtype: DType { .int8 } }
extension Int16: TensorElement { public static var dtype: DType { .int16 } }
extension Int32: TensorElement { public static var dtype: DType { .int32 } }
extension Int64: TensorElement { public static var dtype: DType { .int64 } }
extension Int: TensorElement { public static var dtype: DType { .int64 } }
extension Float: TensorElement { public static var dtype: DType { .float32 } }
extension Double: TensorElement { public static var dtype: DType { .float64 } }
extension Bool: TensorElement { public static var dtype: DType { .bool } }
#if !((os(macOS) || targetEnvironment(macCatalyst)) && arch(x86_64))
  extension Float16: TensorElement { public static var dtype: DType { .float16 } }
#endif
