/// The Omega rule of a linear memory over features that are known by their products only, φ(x)·φ(y) = κ(x, y) (Behrouz et al. 2025,
/// arXiv 2505.23735): with κ = e^{x·y}, the polynomial series without end φ*, it is *Dot*, and for the objective −⟨M(φ*(k)), v⟩ the
/// *DeepTransformer* of a linear memory, which under α = η = 1 is softmax attention without its denominator:
///
///     M_t(x) = Σ_i κ(x, k_i) β_{t,i},      o_t = M_t(q_t)            (DeepTransformer: o_t = Σ_{i ≤ t} e^{q_t·k_i} v_i)
///
/// The memory is a coefficient vector β_{t,i} for every key read, so that time is quadratic in the length and a state would grow.
/// Gates, objective and chunk as in ``omegaRule(_:_:_:_:rule:state:phase:)``; gradient steps without momentum.
///
/// - Parameters:
///   - query, key: [B, H, L, d]; value: [B, H, L, dv].
///   - kernel: of x [B, H, n, d] and y [B, H, m, d] → [B, H, n, m]; e^{x·y} unless given.
/// - Returns: o, [B, H, L, dv].
public func implicitOmegaRule(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, _ gates: OmegaGates, objective: MemoryObjective = .squaredError, chunk: Int,
  kernel: (Tensor, Tensor) -> Tensor = { $0.matmul($1.T).exp() }
) -> Tensor {
  let (length, window) = (query.dim(2), gates.window.dim(3))
  guard length > 0 else { return .zeros(like: value) }
  let (size, reach) = (min(chunk, length), window - 1)
  var gates = gates
  // Pairs before the first don't exist, and κ(0, k) isn't 0.
  let exists = Tensor.arange(window, device: key.device) .<= Tensor.arange(length, device: key.device).expandedDimension(1)
  gates.window = gates.window * exists.to(key.dtype)
  gates.persistence = nil
  let coefficients = OmegaCoefficients(gates, tail: (length + size - 1) / size * size - length, size: size)
  let (keys, values) = (key.padded([0, 0, reach, 0]), value.padded([0, 0, reach, 0]))
  // β of the keys read so far, with the c − 1 that don't exist in front.
  var beta = Tensor.zeros([value.dim(0), value.dim(1), reach, value.dim(3)], dtype: value.dtype, device: value.device)
  var outputs: [Tensor] = []
  for (index, first) in stride(from: 0, to: length, by: size).enumerated() {
    let count = min(size, length - first)
    let own = coefficients.chunk(index, count: count, window: window)
    let read = keys.narrowed(axis: 2, start: 0, length: reach + first)
    func memory(_ x: Tensor) -> Tensor { kernel(x, read).matmul(beta) }
    let k = keys.narrowed(axis: 2, start: first, length: reach + count)
    let v = values.narrowed(axis: 2, start: first, length: reach + count)
    let error = objective == .squaredError ? v - memory(k) : v
    let q = query.narrowed(axis: 2, start: first, length: count)
    outputs.append(memory(q) * own.ofStart.expandedDimension(-1) + (kernel(q, k) * own.ofErrors).matmul(error))
    func last(_ x: Tensor) -> Tensor { x.selected(axis: 2, count - 1).expandedDimension(-1) }
    let kept = beta * last(own.ofStart).expandedDimension(-1)
    beta = kept.padded([0, 0, 0, count]) + (error * last(own.ofErrors)).padded([0, 0, first, 0])
  }
  return concatenated(outputs, axis: 2)
}
