@_exported import MartletFormats
import CTorch

/// An n-dimensional array with reverse-mode differentiation, on libtorch.
///
/// A `Tensor` is a reference: assigning it shares it, and the few in-place operations (named as in ATen with `InPlace`,
/// and subscript assignment) are seen by every holder. All other operations return new tensors or views.
///
/// A shape error traps with libtorch's message, being a programmer's error; where input enters, wrap the work in
/// ``withTorchErrors(_:)``, which throws instead.
public final class Tensor: @unchecked Sendable {
  let handle: ctorch_tensor

  /// Takes over one reference.
  init(owning handle: ctorch_tensor) { self.handle = handle }

  deinit { ctorch_release(handle) }

  /// What operations return after an error inside `withTorchErrors`: one element in eight dimensions, so that code which
  /// reads shapes on its way out does not trap.
  static let skipped: Tensor = {
    var zero: Float = 0
    var handle: ctorch_tensor?
    let shape = [Int64](repeating: 1, count: 8)
    if ctorch_copy_from(&zero, 4, shape, 8, Int32(DType.float32.rawValue), &handle) != 0 { fatalError(torchErrorMessage()) }
    return Tensor(owning: handle!)
  }()

  // MARK: Properties

  public var rank: Int { Int(ctorch_rank(handle)) }

  public var shape: [Int] {
    [Int](unsafeUninitializedCapacity: rank) { buffer, count in
      count = rank
      for i in 0..<count { buffer[i] = Int(ctorch_size(handle, Int64(i))) }
    }
  }

  public var strides: [Int] { (0..<rank).map { Int(ctorch_stride(handle, Int64($0))) } }

  /// The length of one axis; negative axes count from the end.
  public func dim(_ axis: Int) -> Int {
    let rank = self.rank
    let index = axis < 0 ? axis + rank : axis
    guard index >= 0 && index < rank else {
      torchFailure("axis \(axis) is out of range for shape \(shape)")
      return 1
    }
    return Int(ctorch_size(handle, Int64(index)))
  }

  /// The number of elements.
  public var count: Int { Int(ctorch_count(handle)) }

  /// Bytes of the elements.
  public var byteCount: Int { count * Int(ctorch_item_size(handle)) }

  public var dtype: DType {
    guard let dtype = DType(rawValue: ctorch_dtype(handle)) else { fatalError("libtorch dtype \(ctorch_dtype(handle)) is unknown here") }
    return dtype
  }

  public var device: Device {
    var type: Int32 = 0
    var index: Int32 = 0
    ctorch_device(handle, &type, &index)
    return Device(kind: Device.Kind(rawValue: type) ?? .cpu, index: Int(index))
  }

  public var isContiguous: Bool { ctorch_is_contiguous(handle) }

  /// Equal for tensors that are views of one memory.
  public var storageIdentity: UInt { UInt(ctorch_storage_identity(handle)) }

  // MARK: Creation from Swift values

  /// A tensor with the given elements in row-major order.
  ///
  /// ```swift
  /// let x = Tensor([1, 2, 3, 4] as [Float], [2, 2])
  /// ```
  public convenience init<Element: TensorElement>(_ elements: [Element], _ shape: [Int]? = nil) {
    _ = Engine.started
    let shape = shape ?? [elements.count]
    if shape.reduce(1, *) != elements.count {
      torchFailure("shape \(shape) needs \(shape.reduce(1, *)) elements, got \(elements.count)")
      self.init(owning: Tensor.retained(Tensor.skipped))
      return
    }
    var handle: ctorch_tensor?
    let sizes = shape.map(Int64.init)
    elements.withUnsafeBytes {
      checkTorch(ctorch_copy_from($0.baseAddress, $0.count, sizes, Int64(sizes.count), Int32(Element.dtype.rawValue), &handle))
    }
    self.init(owning: handle ?? Tensor.retained(Tensor.skipped))
  }

  /// A zero-dimensional tensor.
  public convenience init(_ value: Double, dtype: DType = .float32, device: Device = .cpu) {
    let made = Tensor.full([], value, dtype: dtype, device: device)
    self.init(owning: Tensor.retained(made))
  }

  /// A tensor over memory that someone else owns, without a copy. `release` runs when the last view is gone.
  public static func over(
    _ memory: UnsafeMutableRawPointer, shape: [Int], dtype: DType, release: @escaping @Sendable () -> Void
  ) throws -> Tensor {
    _ = Engine.started
    let context = Unmanaged.passRetained(ReleaseBox(release))
    var handle: ctorch_tensor?
    let status = ctorch_from_memory(
      memory, shape.map(Int64.init), nil, Int64(shape.count), Int32(dtype.rawValue),
      { Unmanaged<ReleaseBox>.fromOpaque($0!).takeRetainedValue().release() }, context.toOpaque(), &handle)
    guard status == 0, let handle else {
      context.release()
      throw TensorError(torchErrorMessage())
    }
    return Tensor(owning: handle)
  }

  /// One more reference to the same tensor, for an initialiser that must own its handle.
  private static func retained(_ tensor: Tensor) -> ctorch_tensor {
    ctorch_retain(tensor.handle)
    return tensor.handle
  }

  // MARK: Reading values

  /// The elements in row-major order, converted to `Element`'s dtype.
  public func toArray<Element: TensorElement>(_ type: Element.Type = Element.self) -> [Element] {
    let ready = detached().to(.cpu).to(Element.dtype).contiguous()
    var data: UnsafeMutableRawPointer?
    if ctorch_data(ready.handle, &data) != 0 {
      torchFailure(torchErrorMessage())
      return []
    }
    let count = ready.count
    return withExtendedLifetime(ready) {
      guard count > 0, let data else { return [] }
      return [Element](UnsafeBufferPointer(start: data.assumingMemoryBound(to: Element.self), count: count))
    }
  }

  /// The one element as a `Double` (the real part of a complex one).
  public func item() -> Double {
    var real = 0.0
    var imaginary = 0.0
    var integer: Int64 = 0
    checkTorch(ctorch_item(handle, &real, &imaginary, &integer))
    return real
  }

  /// The one element as an integer.
  public func itemInt() -> Int {
    var real = 0.0
    var imaginary = 0.0
    var integer: Int64 = 0
    checkTorch(ctorch_item(handle, &real, &imaginary, &integer))
    return dtype.isFloatingPoint ? Int(real) : Int(integer)
  }

  /// Calls `body` with the elements' bytes. The tensor must be contiguous and on the CPU.
  public func withUnsafeBytes<Result>(_ body: (UnsafeMutableRawBufferPointer) throws -> Result) rethrows -> Result {
    require(isContiguous, "the bytes of a non-contiguous tensor of shape \(shape) can't be read in place; call contiguous() first")
    var data: UnsafeMutableRawPointer?
    checkTorch(ctorch_data(handle, &data))
    return try body(UnsafeMutableRawBufferPointer(start: data, count: byteCount))
  }
}

/// Keeps a release closure alive for libtorch.
private final class ReleaseBox: Sendable {
  let release: @Sendable () -> Void
  init(_ release: @escaping @Sendable () -> Void) { self.release = release }
}
