extension Tensor {
  public static func full(_ shape: [Int], _ value: Double, dtype: DType = .float32, device: Device = .cpu) -> Tensor {
    Operators.full(.ints(shape), .double(value), .dtype(dtype), .none, .device(device))
  }

  public static func zeros(_ shape: [Int], dtype: DType = .float32, device: Device = .cpu) -> Tensor {
    full(shape, 0, dtype: dtype, device: device)
  }

  public static func ones(_ shape: [Int], dtype: DType = .float32, device: Device = .cpu) -> Tensor {
    full(shape, 1, dtype: dtype, device: device)
  }

  /// Uninitialised memory.
  public static func empty(_ shape: [Int], dtype: DType = .float32, device: Device = .cpu) -> Tensor {
    Operators.empty(.ints(shape), .dtype(dtype), .none, .device(device))
  }

  /// start, start + step, … below (above, for a negative step) `end`.
  public static func arange(_ start: Double, _ end: Double, step: Double = 1, dtype: DType = .float32, device: Device = .cpu) -> Tensor {
    Operators.arange(.double(start), .double(end), .double(step), .dtype(dtype), .none, .device(device))
  }

  /// 0, 1, …, count − 1 as integers.
  public static func arange(_ count: Int, device: Device = .cpu) -> Tensor {
    Operators.arange(.int(0), .int(count), .int(1), .dtype(.int64), .none, .device(device))
  }

  /// `count` evenly spaced values from `start` to `end`, both included.
  public static func linspace(_ start: Double, _ end: Double, count: Int, dtype: DType = .float32) -> Tensor {
    Operators.linspace(.double(start), .double(end), .int(count), .dtype(dtype))
  }

  /// The identity matrix.
  public static func eye(_ rows: Int, _ columns: Int? = nil, dtype: DType = .float32, device: Device = .cpu) -> Tensor {
    Operators.eye(.int(rows), .int(columns ?? rows), .dtype(dtype), .none, .device(device))
  }

  public static func zeros(like other: Tensor) -> Tensor { Operators.zerosLike(.tensor(other)) }
  public static func ones(like other: Tensor) -> Tensor { Operators.onesLike(.tensor(other)) }
  public static func empty(like other: Tensor) -> Tensor { Operators.emptyLike(.tensor(other)) }
  public static func full(like other: Tensor, _ value: Double) -> Tensor { Operators.fullLike(.tensor(other), .double(value)) }

  // MARK: Copies and conversions

  /// The same values in another dtype; `self` when it has it already.
  public func to(_ dtype: DType) -> Tensor { dtype == self.dtype ? self : Operators.toDtype(.tensor(self), .dtype(dtype)) }

  /// The same values on another device; `self` when it is there already.
  public func to(_ device: Device) -> Tensor {
    device == self.device ? self : Operators.to(.tensor(self), .dtype(dtype), .none, .device(device))
  }

  /// A view of the same memory in row-major order where possible, else a copy.
  public func contiguous() -> Tensor { isContiguous ? self : Operators.contiguous(.tensor(self)) }

  /// A copy with its own memory (differentiable).
  public func copy() -> Tensor { Operators.clone(.tensor(self)) }

  /// The same memory outside the graph of differentiation.
  public func detached() -> Tensor { Operators.detach(.tensor(self)) }

  /// Overwrites the elements with those of `other` (broadcast).
  public func copyInPlace(_ other: Tensor) { Operators.copyInPlace.run(.tensor(self), .tensor(other)) }

  public func fillInPlace(_ value: Double) { Operators.fillInPlace.run(.tensor(self), .double(value)) }
  public func addInPlace(_ other: Tensor, scale: Double = 1) { Operators.addInPlace.run(.tensor(self), .tensor(other), .double(scale)) }
  public func multiplyInPlace(_ factor: Int) { Operators.mulInPlaceScalar.run(.tensor(self), .int(factor)) }
  public func multiplyInPlace(_ factor: Double) { Operators.mulInPlaceScalar.run(.tensor(self), .double(factor)) }
  public func multiplyInPlace(_ other: Tensor) { Operators.mulInPlace.run(.tensor(self), .tensor(other)) }
}
