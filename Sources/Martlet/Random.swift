import CTorch

/// A stream of random numbers of its own, restored exactly from its seed or its state. The global generator of libtorch is
/// never used: every random operation names its generator.
public final class RandomGenerator: @unchecked Sendable {
  let handle: ctorch_generator
  public let device: Device

  public init(seed: UInt64, device: Device = .cpu) {
    _ = Engine.started
    var handle: ctorch_generator?
    if ctorch_generator_create(seed, device.kind.rawValue, Int32(device.index), &handle) != 0 { fatalError(torchErrorMessage()) }
    self.handle = handle!
    self.device = device
  }

  deinit { ctorch_generator_release(handle) }

  /// The whole state as bytes, [n] uint8: writing it back continues the stream exactly.
  public var state: Tensor {
    get {
      var tensor: ctorch_tensor?
      checkTorch(ctorch_generator_state(handle, &tensor))
      return tensor.map(Tensor.init(owning:)) ?? .skipped
    }
    set { checkTorch(ctorch_generator_set_state(handle, newValue.handle)) }
  }

  /// A seed for a further stream.
  public func nextSeed() -> UInt64 {
    UInt64(bitPattern: Int64(Tensor.randomIntegers(below: Int.max, [1], generator: self).itemInt()))
  }
}

private enum RandomOperators {
  static let rand = Operator("aten::rand", "generator")
  static let randn = Operator("aten::randn", "generator")
  static let randint = Operator("aten::randint", "low_generator")
  static let randperm = Operator("aten::randperm", "generator")
  static let bernoulli = Operator("aten::bernoulli")
  static let multinomial = Operator("aten::multinomial")
}

extension Tensor {
  /// Uniform on [0, 1).
  public static func random(_ shape: [Int], dtype: DType = .float32, generator: RandomGenerator) -> Tensor {
    RandomOperators.rand(.ints(shape), .generator(generator), .dtype(dtype), .none, .device(generator.device))
  }

  /// Normal with mean 0 and variance 1.
  public static func randomNormal(_ shape: [Int], dtype: DType = .float32, generator: RandomGenerator) -> Tensor {
    RandomOperators.randn(.ints(shape), .generator(generator), .dtype(dtype), .none, .device(generator.device))
  }

  /// Integers uniform on lower..<upper.
  public static func randomIntegers(
    from lower: Int = 0, below upper: Int, _ shape: [Int], generator: RandomGenerator
  ) -> Tensor {
    RandomOperators.randint(
      .int(lower), .int(upper), .ints(shape), .generator(generator), .dtype(.int64), .none, .device(generator.device))
  }

  /// A random order of 0..<count.
  public static func randomPermutation(_ count: Int, generator: RandomGenerator) -> Tensor {
    RandomOperators.randperm(.int(count), .generator(generator), .dtype(.int64), .none, .device(generator.device))
  }

  /// 1 with the probability that stands in each element, else 0.
  public func bernoulli(generator: RandomGenerator) -> Tensor { RandomOperators.bernoulli(.tensor(self), .generator(generator)) }

  /// `count` draws of positions by the (unnormalised) weights of the last axis.
  public func multinomial(_ count: Int, replacement: Bool = false, generator: RandomGenerator) -> Tensor {
    RandomOperators.multinomial(.tensor(self), .int(count), .bool(replacement), .generator(generator))
  }
}
