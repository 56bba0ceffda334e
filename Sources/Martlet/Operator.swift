import CTorch

/// An argument of a libtorch operator.
public enum OperatorArgument {
  case none
  case tensor(Tensor?)
  case int(Int)
  case double(Double)
  case bool(Bool)
  case complex(Double, Double)
  case string(String)
  case ints([Int])
  case doubles([Double])
  case tensors([Tensor])
  case optionalTensors([Tensor?])
  case dtype(DType?)
  case device(Device)
  case generator(RandomGenerator?)
}

/// A libtorch operator, found once by name and overload and called through the dispatcher, so that every operator of the
/// library, and every one registered by `CKernels`, can be used without a binding of its own.
///
/// A call costs about 0.7 µs beyond the operator itself.
public struct Operator: @unchecked Sendable {
  let handle: ctorch_operator?
  let name: String

  /// - Parameters:
  ///   - name: with its namespace, e.g. `aten::add` or `martlet::attention`.
  ///   - overload: e.g. `Tensor`; empty for most.
  ///
  /// Traps when libtorch has no such operator; throws inside ``withTorchErrors(_:)``.
  public init(_ name: String, _ overload: String = "") {
    _ = Engine.started
    var handle: ctorch_operator?
    if ctorch_operator_find(name, overload, &handle) != 0 { torchFailure(torchErrorMessage()) }
    self.handle = handle
    self.name = name
  }

  /// The operator's signature in libtorch's notation.
  public var schema: String { handle.map { String(cString: ctorch_operator_schema($0)) } ?? "" }

  /// Calls an operator with one tensor as its result.
  public func callAsFunction(_ arguments: OperatorArgument...) -> Tensor {
    var value = ctorch_value()
    guard call(arguments, into: &value, capacity: 1) == 1, value.tag == Int32(CTORCH_TENSOR), let tensor = value.as.tensor else {
      return Tensor.skipped
    }
    return Tensor(owning: tensor)
  }

  /// Calls an operator with several tensors (a tuple, or one list) as its results. Absent ones are `nil`.
  public func many(_ arguments: OperatorArgument...) -> [Tensor?] {
    withUnsafeTemporaryAllocation(of: ctorch_value.self, capacity: 8) { values in
      let count = call(arguments, into: values.baseAddress!, capacity: 8)
      guard count > 0 else { return [Tensor?](repeating: Tensor.skipped, count: 8) }
      if count == 1, values[0].tag == Int32(CTORCH_TENSOR_LIST) {
        let list = UnsafeBufferPointer(start: values[0].as.tensors, count: Int(values[0].count))
        defer { ctorch_free(values[0].as.tensors) }
        return list.map { $0.map(Tensor.init(owning:)) }
      }
      return (0..<count).map { values[$0].tag == Int32(CTORCH_TENSOR) ? values[$0].as.tensor.map(Tensor.init(owning:)) : nil }
    }
  }

  /// Calls an operator for its effect on its arguments.
  public func run(_ arguments: OperatorArgument...) {
    withUnsafeTemporaryAllocation(of: ctorch_value.self, capacity: 8) { values in
      let count = call(arguments, into: values.baseAddress!, capacity: 8)
      for i in 0..<count where values[i].tag == Int32(CTORCH_TENSOR) { ctorch_release(values[i].as.tensor) }
    }
  }

  /// Calls an operator whose result is a boolean.
  public func truth(_ arguments: OperatorArgument...) -> Bool {
    var value = ctorch_value()
    return call(arguments, into: &value, capacity: 1) == 1 && value.as.integer != 0
  }

  /// Lowers the arguments to C values in stack memory and calls. Returns the number of results, 0 after an error.
  private func call(_ arguments: [OperatorArgument], into results: UnsafeMutablePointer<ctorch_value>, capacity: Int64) -> Int {
    if isSkippingAfterError { return 0 }
    guard handle != nil else {
      torchFailure("\(name) was not found in libtorch, so it can't be called")
      return 0
    }
    var words = 0  // integers and tensor handles of all lists, one 8-byte word each
    for argument in arguments {
      switch argument {
      case .ints(let list): words += list.count
      case .doubles(let list): words += list.count
      case .tensors(let list): words += list.count
      case .optionalTensors(let list): words += list.count
      default: break
      }
    }
    return withUnsafeTemporaryAllocation(of: ctorch_value.self, capacity: arguments.count) { values in
      withUnsafeTemporaryAllocation(byteCount: max(words, 1) * 8, alignment: 8) { memory in
        var used = 0
        var strings: [UnsafeMutablePointer<CChar>] = []
        defer { strings.forEach { $0.deallocate() } }
        for (i, argument) in arguments.enumerated() {
          var value = ctorch_value()
          switch argument {
          case .none: value.tag = Int32(CTORCH_NONE)
          case .tensor(let tensor):
            value.tag = Int32(tensor == nil ? CTORCH_NONE : CTORCH_TENSOR)
            value.as.tensor = tensor?.handle
          case .int(let number):
            value.tag = Int32(CTORCH_INT)
            value.as.integer = Int64(number)
          case .double(let number):
            value.tag = Int32(CTORCH_DOUBLE)
            value.as.real = number
          case .bool(let flag):
            value.tag = Int32(CTORCH_BOOL)
            value.as.integer = flag ? 1 : 0
          case .complex(let real, let imaginary):
            value.tag = Int32(CTORCH_COMPLEX)
            value.as.complex.real = real
            value.as.complex.imaginary = imaginary
          case .string(let text):
            let copy = UnsafeMutablePointer<CChar>.allocate(capacity: text.utf8.count + 1)
            for (j, byte) in text.utf8.enumerated() { copy[j] = CChar(bitPattern: byte) }
            copy[text.utf8.count] = 0
            strings.append(copy)
            value.tag = Int32(CTORCH_STRING)
            value.as.string = UnsafePointer(copy)
          case .ints(let list):
            let target = memory.baseAddress! + used * 8
            for (j, number) in list.enumerated() { target.storeBytes(of: Int64(number), toByteOffset: j * 8, as: Int64.self) }
            used += list.count
            value.tag = Int32(CTORCH_INT_LIST)
            value.count = Int64(list.count)
            value.as.integers = UnsafeRawPointer(target).assumingMemoryBound(to: Int64.self)
          case .doubles(let list):
            let target = memory.baseAddress! + used * 8
            for (j, number) in list.enumerated() { target.storeBytes(of: number, toByteOffset: j * 8, as: Double.self) }
            used += list.count
            value.tag = Int32(CTORCH_DOUBLE_LIST)
            value.count = Int64(list.count)
            value.as.reals = UnsafeRawPointer(target).assumingMemoryBound(to: Double.self)
          case .tensors(let list):
            let target = (memory.baseAddress! + used * 8).assumingMemoryBound(to: ctorch_tensor?.self)
            for (j, tensor) in list.enumerated() { target[j] = tensor.handle }
            used += list.count
            value.tag = Int32(CTORCH_TENSOR_LIST)
            value.count = Int64(list.count)
            value.as.tensors = UnsafePointer(target)
          case .optionalTensors(let list):
            let target = (memory.baseAddress! + used * 8).assumingMemoryBound(to: ctorch_tensor?.self)
            for (j, tensor) in list.enumerated() { target[j] = tensor?.handle }
            used += list.count
            value.tag = Int32(CTORCH_TENSOR_LIST)
            value.count = Int64(list.count)
            value.as.tensors = UnsafePointer(target)
          case .dtype(let dtype):
            value.tag = Int32(dtype == nil ? CTORCH_NONE : CTORCH_INT)
            value.as.integer = Int64(dtype?.rawValue ?? 0)
          case .device(let device):
            value.tag = Int32(CTORCH_DEVICE)
            value.as.integer = Int64(device.kind.rawValue)
            value.index = Int32(device.index)
          case .generator(let generator):
            value.tag = Int32(generator == nil ? CTORCH_NONE : CTORCH_GENERATOR)
            value.as.generator = generator?.handle
          }
          values[i] = value
        }
        var count: Int64 = 0
        let status = withExtendedLifetime(arguments) {
          ctorch_call(handle, values.baseAddress, Int64(arguments.count), results, capacity, &count)
        }
        if status != 0 {
          torchFailure("\(name): \(torchErrorMessage())")
          return 0
        }
        return Int(count)
      }
    }
  }
}
