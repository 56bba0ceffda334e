private let joined = Operator("martlet::joined_linear")
private let joinedQuantized = Operator("martlet::joined_quantized_linear")

/// The results of several linear layers for one input, x: [..., in] → [..., out] each, as `layers.map { $0(x) }`.
///
/// Dense layers, and quantised ones of one form, run as one operator: queries, keys and values of a decoding step then read their
/// weights in one parallel pass. The results are views of one tensor, apart by the sum of all `out`.
public func joinedLinear(_ x: Tensor, _ layers: [any LinearLayer]) -> [Tensor] {
  guard layers.count > 1, !isAutocastEnabled(x.device) else { return layers.map { $0(x) } }
  let y: Tensor
  let dense = layers.compactMap { $0 as? Linear }
  let quantised = layers.compactMap { $0 as? QuantizedLinear }
  if dense.count == layers.count {
    y = joined(.tensor(x), .tensors(dense.map(\.weight)), .optionalTensors(dense.map(\.bias)))
  } else if quantised.count == layers.count, let form = quantised.first?.quantization,
    quantised.allSatisfy({ $0.quantization == form })
  {
    y = joinedQuantized(
      .tensor(x), .tensors(quantised.map(\.packed)), .tensors(quantised.map(\.scales)), .optionalTensors(quantised.map(\.minima)),
      .optionalTensors(quantised.map(\.bias)), .int(form.bits), .int(form.group))
  } else {
    return layers.map { $0(x) }
  }
  var start = 0
  return layers.map { layer in
    defer { start += layer.outFeatures }
    return y.narrowed(axis: -1, start: start, length: layer.outFeatures)
  }
}
