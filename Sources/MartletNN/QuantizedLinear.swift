private let quantizeWeight = Operator("martlet::quantize_weight")
private let dequantizeWeight = Operator("martlet::dequantize_weight")
private let quantizedLinear = Operator("martlet::quantized_linear")

/// How weights are rounded: to the nearest of 2^bits levels, with one scale for each group of neighbouring inputs of an output.
public struct WeightQuantization: Sendable, Equatable, Codable {
  /// 8 or 4.
  public var bits: Int
  /// Inputs that share a scale: 32, 64 or 128; with 8 bits also 0, one scale for each output.
  public var group: Int
  /// Whether groups have a minimum of their own (4 bits only) instead of levels around zero.
  public var isAsymmetric: Bool

  /// 4 bits in groups of 64 (4.25 bits a weight), or 8 bits with a scale for each output, unless told otherwise.
  public init(bits: Int, group: Int? = nil, asymmetric: Bool = false) {
    self.bits = bits
    self.group = group ?? (bits == 8 ? 0 : 64)
    isAsymmetric = asymmetric
  }

  /// - Throws: `ConfigurationError` when no kernel knows the form.
  public func validate() throws {
    guard bits == 8 || bits == 4 else { throw ConfigurationError("weights are quantised to 8 or 4 bits, not to \(bits)") }
    guard [32, 64, 128].contains(group) || (bits == 8 && group == 0) else {
      let whole = bits == 8 ? ", or 0 for one scale an output" : ""
      throw ConfigurationError("a group of quantised weights is 32, 64 or 128 inputs\(whole), not \(group)")
    }
    guard bits == 4 || !isAsymmetric else { throw ConfigurationError("8-bit weights are symmetric; ask for 4 bits or no minima") }
  }

  /// Shapes of the packed weight and of its scales (and minima).
  func shapes(_ inFeatures: Int, _ outFeatures: Int) -> (packed: [Int], scales: [Int]) {
    let span = group == 0 ? max(inFeatures, 1) : group
    return ([outFeatures, bits == 8 ? inFeatures : (inFeatures + 127) / 128 * 64], [outFeatures, (inFeatures + span - 1) / span])
  }
}

/// y = x Ŵᵀ + b where Ŵ [outFeatures, inFeatures] is stored in 8 or 4 bits a weight: q · scale, or q · scale + minimum.
///
/// Activations stay in float32, and so do the sums: the only error is the weights' rounding, at most half a scale each. A few
/// rows of x read the packed weight once from memory; many unpack it in pieces for the machine's fastest product. Differentiable in
/// x and the bias. Rows are packed independently of each other: layers with one input can be joined along the first axis.
public final class QuantizedLinear: Module, LinearLayer {
  /// Int8 [out, in]; or UInt8 [out, ⌈in / 128⌉ · 64], two weights a byte (their order: `Weights.h` of the kernels).
  @Buffer public var packed: Tensor
  /// bfloat16 [out, groups].
  @Buffer public var scales: Tensor
  /// bfloat16 [out, groups] when asymmetric.
  @Buffer public var minima: Tensor?
  @Parameter public var bias: Tensor?

  public let inFeatures: Int
  public let quantization: WeightQuantization

  public var outFeatures: Int { packed.dim(0) }

  /// Rounds a weight [out, in].
  ///
  /// - Throws: `ConfigurationError` for an unknown form, `TensorError` when weights are not finite.
  public init(weight: Tensor, bias: Tensor? = nil, _ quantization: WeightQuantization) throws {
    try quantization.validate()
    inFeatures = weight.dim(1)
    self.quantization = quantization
    let parts = try withTorchErrors {
      quantizeWeight.many(
        .tensor(weight.detached()), .int(quantization.bits), .int(quantization.group), .bool(quantization.isAsymmetric))
    }
    super.init()
    packed = parts[0]!
    scales = parts[1]!
    minima = quantization.isAsymmetric ? parts[2] : nil
    self.bias = bias
  }

  public convenience init(_ linear: Linear, _ quantization: WeightQuantization) throws {
    try self.init(weight: linear.weight, bias: linear.bias, quantization)
  }

  /// With all weights zero, to load a state into.
  ///
  /// - Throws: `ConfigurationError` for an unknown form.
  public init(_ inFeatures: Int, _ outFeatures: Int, bias: Bool, _ quantization: WeightQuantization) throws {
    try quantization.validate()
    self.inFeatures = inFeatures
    self.quantization = quantization
    let shapes = quantization.shapes(inFeatures, outFeatures)
    super.init()
    packed = .zeros(shapes.packed, dtype: quantization.bits == 8 ? .int8 : .uint8)
    scales = .zeros(shapes.scales, dtype: .bfloat16)
    minima = quantization.isAsymmetric ? .zeros(shapes.scales, dtype: .bfloat16) : nil
    self.bias = bias ? .zeros([outFeatures]) : nil
  }

  public func callAsFunction(_ x: Tensor) -> Tensor {
    quantizedLinear(
      .tensor(x), .tensor(packed), .tensor(scales), .tensor(minima), .tensor(bias), .int(quantization.bits), .int(quantization.group))
  }

  /// Float32.
  public func denseWeight() -> Tensor {
    dequantizeWeight(
      .tensor(packed), .tensor(scales), .tensor(minima), .int(inFeatures), .int(quantization.bits), .int(quantization.group))
  }

  public var storageBytes: Int { packed.byteCount + scales.byteCount + (minima?.byteCount ?? 0) + (bias?.byteCount ?? 0) }
  public func multiplyAdds() -> Int { inFeatures * outFeatures }
}

extension Module {
  /// Puts a quantised layer in the place of every ``Linear`` below this module whose path `predicate` accepts. Each original is let
  /// go before the next is rounded, so that the peak of memory is the dense model's.
  ///
  /// - Returns: the paths that were replaced.
  /// - Throws: `ConfigurationError` for an unknown form; `TensorError` where a layer is not marked `@Child` or has weights that are
  ///   not finite. Layers before that one stay replaced.
  @discardableResult
  public func quantizeLinears(
    _ quantization: WeightQuantization, where predicate: (_ path: String) -> Bool = { _ in true }
  ) throws -> [String] {
    try quantization.validate()
    return try quantizeLinears(quantization, where: predicate, prefix: "")
  }

  private func quantizeLinears(
    _ quantization: WeightQuantization, where predicate: (String) -> Bool, prefix: String
  ) throws -> [String] {
    var replaced: [String] = []
    for key in nodes().compactMap({ if case .module = $0.node { $0.key } else { nil } }) {
      // Looked up one at a time, so that nothing keeps a replaced layer alive.
      guard case .module(let child, _, _)? = nodes().first(where: { $0.key == key })?.node else { continue }
      let path = prefix.isEmpty ? key : "\(prefix).\(key)"
      guard let linear = child as? Linear else {
        replaced += try child.quantizeLinears(quantization, where: predicate, prefix: path)
        continue
      }
      guard predicate(path) else { continue }
      try replace(key, with: QuantizedLinear(linear, quantization))
      replaced.append(path)
    }
    return replaced
  }
}
