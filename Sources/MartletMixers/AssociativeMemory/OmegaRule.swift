/// What an associative memory is made of, per head.
public enum MemoryKind: String, Codable, Sendable, CaseIterable {
  /// M(z) = z W.
  case matrix
  /// M(z) = z + GELU(z W₂) W₁, the z only where it is as wide as the values.
  case mlp
  /// M(z) = z + (GELU(z W₂) ⊙ z W₃) W₁.
  case gatedMLP = "gated_mlp"
}

/// How a memory's weights follow the gradient of its objective.
public enum InnerRule: String, Codable, Sendable, CaseIterable {
  /// W_t = α_t W_{t−1} − η_t ∇J_t: OmegaNet.
  case gradient
  /// S_t = θ_t S_{t−1} − ∇J_t, W_t = α_t W_{t−1} + η_t S_t.
  case momentum
  /// W_t = α_t W_{t−1} + η_t NS₅(S_t): Atlas.
  case muon
}

/// What a memory learns from a pair.
public enum MemoryObjective: String, Codable, Sendable, CaseIterable {
  /// ½‖M(k) − v‖².
  case squaredError = "squared_error"
  /// −⟨M(k), v⟩: a memory that only adds. Linear, it is gated linear attention (deep linear attention, sliding-window linear attention).
  case dotProduct = "dot_product"
}

/// The rule by which a memory learns.
public struct OmegaRule: Sendable, Equatable {
  public var memory: MemoryKind
  public var inner: InnerRule
  public var objective: MemoryObjective
  /// b: gradients are those of the memory before the token's chunk. Part of the function, not a matter of speed.
  public var chunk: Int

  public init(
    memory: MemoryKind = .matrix, inner: InnerRule = .gradient, objective: MemoryObjective = .squaredError, chunk: Int = 8
  ) {
    self.memory = memory
    self.inner = inner
    self.objective = objective
    self.chunk = chunk
  }
}

/// The gates of every token.
public struct OmegaGates: @unchecked Sendable {
  /// α in [0, 1], [B, H, L].
  public var retention: Tensor
  /// η ≥ 0, [B, H, L].
  public var rate: Tensor
  /// θ in [0, 1), [B, H, L]; needed by rules with momentum, unread by others.
  public var persistence: Tensor?
  /// γ in [0, 1], [B, H, L, c]: what the pair of age 0, 1, …, c − 1 counts.
  public var window: Tensor

  public init(retention: Tensor, rate: Tensor, persistence: Tensor? = nil, window: Tensor) {
    self.retention = retention
    self.rate = rate
    self.persistence = persistence
    self.window = window
  }

  /// Every gate passed through a function.
  public func mapped(_ transform: (Tensor) -> Tensor) -> OmegaGates {
    OmegaGates(
      retention: transform(retention), rate: transform(rate), persistence: persistence.map(transform), window: transform(window))
  }

  func narrowed(_ start: Int, _ length: Int) -> OmegaGates { mapped { $0.narrowed(axis: 2, start: start, length: length) } }
}

/// What a memory holds between two tokens.
public struct OmegaState: @unchecked Sendable {
  /// W, each [B, H, in, out]: the matrix, or W₁, W₂ (and W₃).
  public var weights: [Tensor]
  /// W before the first token of the chunk that is under way: where its gradients are taken.
  public var start: [Tensor]
  /// S, shaped as the weights; empty without momentum.
  public var momentum: [Tensor]
  /// Features of the last c − 1 keys, [B, H, c − 1, F]; zeros before the first.
  public var keys: Tensor
  /// Their values, [B, H, c − 1, dv].
  public var values: Tensor

  /// Before the first token, from initial weights.
  public init(weights: [Tensor], rule: OmegaRule, window: Int, features: Int, valueWidth: Int) {
    self.weights = weights
    start = weights
    momentum = rule.inner == .gradient ? [] : weights.map { .zeros($0.shape, dtype: $0.dtype, device: $0.device) }
    func zeros(_ width: Int) -> Tensor {
      .zeros([weights[0].dim(0), weights[0].dim(1), window - 1, width], dtype: weights[0].dtype, device: weights[0].device)
    }
    keys = zeros(features)
    values = zeros(valueWidth)
  }

  /// All tensors, the batch in front, in a fixed order.
  public var tensors: [Tensor] {
    get { weights + start + momentum + [keys, values] }
    set {
      let n = weights.count
      weights = Array(newValue[..<n])
      start = Array(newValue[n..<(2 * n)])
      momentum = Array(newValue[(2 * n)..<(newValue.count - 2)])
      (keys, values) = (newValue[newValue.count - 2], newValue[newValue.count - 1])
    }
  }
}

private let kernel = Operator("martlet::omega_rule")

/// The Omega rule (Behrouz et al. 2025, arXiv 2505.23735): at every token one step on the memory's errors over the last c pairs,
///
///     J_t(W) = Σ_{i=t−c+1}^{t} γ_{t,t−i} ℓ(M(φ(k_i); W), v_i),      o_t = M(φ(q_t); W_t)
///
/// with the step of ``InnerRule`` and all gradients of a chunk of b tokens taken at the memory W′ before it: b = 1 is the
/// recurrence W_t = W_{t−1}(α_t − η_t Σ γ φᵀφ) + η_t Σ γ φᵀ v itself. A gradient is a sum of outer products aᵢᵀ gᵢ, of what enters a
/// weight and what should leave it, so that within the chunk, for coefficients A, B, C of the gates alone,
///
///     x W_t = A_t x W′ + B_t x S′ + Σ_i C_{t,i} (x·a_i) g_i
///
/// and no W_t is written out but for Muon, whose NS₅(S_t) needs each. A matrix memory without Muon runs on the kernel
/// `martlet::omega_rule` on CPU in float32, all else in batched operators. Differentiable in all arguments through the inner gradients.
///
/// - Parameters:
///   - query, key: φ(q), φ(k), [B, H, L, F]; value: [B, H, L, dv].
///   - state: moves to after the last token.
///   - phase: tokens of the state's chunk that were read before: 0 at a chunk's start, less than b.
/// - Returns: o, [B, H, L, dv].
public func omegaRule(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, _ gates: OmegaGates, rule: OmegaRule, state: inout OmegaState, phase: Int = 0
) -> Tensor {
  let length = query.dim(2)
  guard length > 0 else { return .zeros(like: value) }
  var outputs: [Tensor] = []
  func run(_ first: Int, _ count: Int, aligned: Bool) {
    guard count > 0 else { return }
    func part(_ x: Tensor) -> Tensor { count == length ? x : x.narrowed(axis: 2, start: first, length: count) }
    let (q, k, v, g) = (part(query), part(key), part(value), gates.mapped(part))
    if aligned { state.start = state.weights }
    if aligned, rule.memory == .matrix, rule.inner != .muon, fusedKernelsServe(q) {
      outputs.append(fused(q, k, v, g, rule, &state))
    } else {
      outputs.append(chunks(q, k, v, g, rule, &state))
    }
  }
  let rest = phase == 0 ? 0 : min(length, rule.chunk - phase)
  run(0, rest, aligned: false)
  let whole = (length - rest) / rule.chunk * rule.chunk
  run(rest, whole, aligned: true)
  // What begins a chunk and doesn't end it leaves the chunk's start in the state.
  run(rest + whole, length - rest - whole, aligned: true)
  return outputs.count == 1 ? outputs[0] : concatenated(outputs, axis: 2)
}

/// The last c − 1 of the state's pairs and the new ones, and these remembered.
private func withWindow(_ key: Tensor, _ value: Tensor, _ state: inout OmegaState) -> (keys: Tensor, values: Tensor) {
  let before = state.keys.dim(2)
  guard before > 0 else { return (key, value) }
  let (keys, values) = (concatenated([state.keys, key], axis: 2), concatenated([state.values, value], axis: 2))
  let count = keys.dim(2)
  state.keys = keys.narrowed(axis: 2, start: count - before, length: before)
  state.values = values.narrowed(axis: 2, start: count - before, length: before)
  return (keys, values)
}

private func fused(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, _ gates: OmegaGates, _ rule: OmegaRule, _ state: inout OmegaState
) -> Tensor {
  let (keys, values) = withWindow(key, value, &state)
  let results = kernel.many(
    .tensor(query), .tensor(keys), .tensor(values), .tensor(gates.retention), .tensor(gates.rate), .tensor(gates.window),
    .tensor(rule.inner == .momentum ? gates.persistence : nil), .tensor(state.weights[0]), .tensor(state.momentum.first),
    .int(rule.chunk), .bool(rule.objective == .squaredError))
  state.weights = [results[1] ?? .zeros([1])]
  if rule.inner == .momentum { state.momentum = [results[2] ?? .zeros([1])] }
  return results[0] ?? .zeros([1])
}

/// Chunk by chunk in plain operators: the oracle, and the path of other memories, devices and dtypes. Without the kernel's alignment:
/// one chunk's gradients may be taken at weights that stood before the first token.
private func chunks(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, _ gates: OmegaGates, _ rule: OmegaRule, _ state: inout OmegaState
) -> Tensor {
  let (length, window) = (query.dim(2), gates.window.dim(3))
  let size = min(rule.chunk, length)
  let (keys, values) = withWindow(key, value, &state)
  // Whole chunks of coefficients at once; what fills the last one writes nothing and forgets nothing.
  let tail = (length + size - 1) / size * size - length
  let coefficients = OmegaCoefficients(gates, tail: tail, size: size)
  var outputs: [Tensor] = []
  for (chunk, first) in stride(from: 0, to: length, by: size).enumerated() {
    let count = min(size, length - first)
    if first > 0 { state.start = state.weights }
    let own = coefficients.chunk(chunk, count: count, window: window)
    outputs.append(
      advance(
        query.narrowed(axis: 2, start: first, length: count),
        keys.narrowed(axis: 2, start: first, length: window - 1 + count),
        values.narrowed(axis: 2, start: first, length: window - 1 + count), own, rule, &state))
  }
  return outputs.count == 1 ? outputs[0] : concatenated(outputs, axis: 2)
}

/// The coefficients of chunks of b tokens, m = b + c − 1 columns for the pairs that their windows see:
///
///     R_t = θ_t R_{t−1} + Γ_t,   C_t = α_t C_{t−1} + η_t R_t,   A_t = α_t A_{t−1},   Θ_t = θ_t Θ_{t−1},   B_t = α_t B_{t−1} + η_t Θ_t
struct OmegaCoefficients {
  /// [B, H, N, b]
  var retention, rate: Tensor
  /// A, B, Θ: [B, H, N, b].
  var ofStart, ofMomentum, persistence: Tensor
  /// C and R, [B, H, N, b, m].
  var ofErrors, ofMomentumErrors: Tensor

  init(_ gates: OmegaGates, tail: Int, size: Int) {
    func grouped(_ x: Tensor, _ fill: Double) -> Tensor {
      let padded = tail == 0 ? x : x.padded((x.rank == 4 ? [0, 0] : []) + [0, tail], value: fill)
      return padded.reshaped(Array(x.shape[..<2]) + [-1, size] + x.shape.dropFirst(3))
    }
    let (alpha, eta) = (grouped(gates.retention, 1), grouped(gates.rate, 0))
    let theta = gates.persistence.map { grouped($0, 1) }
    let gamma = grouped(gates.window, 0).flipped(axis: -1)  // the oldest first, as the columns stand
    (retention, rate) = (alpha, eta)
    func column(_ x: Tensor, _ t: Int) -> Tensor { x.selected(axis: 3, t) }  // [B, H, N] or [B, H, N, m]
    var (a, b, c, r, kept): ([Tensor], [Tensor], [Tensor], [Tensor], [Tensor]) = ([], [], [], [], [])
    for t in 0..<size {
      let (alphaT, etaT) = (column(alpha, t), column(eta, t))
      let band = column(gamma, t).padded([t, size - 1 - t])
      if let theta {
        let thetaT = column(theta, t)
        r.append(r.last.map { $0 * thetaT.expandedDimension(-1) + band } ?? band)
        kept.append(kept.last.map { $0 * thetaT } ?? thetaT)
      } else {
        r.append(band)
        kept.append(.zeros(like: alphaT))
      }
      let write = r[t] * etaT.expandedDimension(-1)
      c.append(c.last.map { $0 * alphaT.expandedDimension(-1) + write } ?? write)
      a.append(a.last.map { $0 * alphaT } ?? alphaT)
      b.append(b.last.map { $0 * alphaT + etaT * kept[t] } ?? etaT * kept[t])
    }
    (ofStart, ofMomentum, persistence) = (stacked(a, axis: 3), stacked(b, axis: 3), stacked(kept, axis: 3))
    (ofErrors, ofMomentumErrors) = (stacked(c, axis: 3), stacked(r, axis: 3))
  }

  /// Those of one chunk's first `count` tokens, without the axis of chunks.
  func chunk(_ index: Int, count: Int, window: Int) -> OmegaCoefficients {
    func part(_ x: Tensor) -> Tensor {
      let own = x.selected(axis: 2, index)
      let rows = own.dim(2) == count ? own : own.narrowed(axis: 2, start: 0, length: count)
      return rows.rank == 4 ? rows.narrowed(axis: 3, start: 0, length: count + window - 1) : rows
    }
    var result = self
    for path in [\OmegaCoefficients.retention, \.rate, \.ofStart, \.ofMomentum, \.persistence, \.ofErrors, \.ofMomentumErrors] {
      result[keyPath: path] = part(self[keyPath: path])
    }
    return result
  }
}

/// One chunk, or a part of one. key, value: c − 1 pairs more than queries.
private func advance(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, _ own: OmegaCoefficients, _ rule: OmegaRule, _ state: inout OmegaState
) -> Tensor {
  let writes = descents(key, value, state.start, rule)
  let last = query.dim(2) - 1
  /// The last row of coefficients as weights of pairs, [B, H, m, 1], and as a factor of matrices, [B, H, 1, 1].
  func ofPairs(_ x: Tensor) -> Tensor { x.selected(axis: 2, last).expandedDimension(-1) }
  func ofMatrix(_ x: Tensor) -> Tensor { x.selected(axis: 2, last).expandedDimension(-1).expandedDimension(-1) }
  let (weights, momentum) = (state.weights, state.momentum)
  var next: [Tensor] = []
  var reads: [(Tensor) -> Tensor] = []
  for (i, (a, g)) in writes.enumerated() {
    if rule.inner == .muon {
      // S_t for every token: Σ_j R_{t,j} a_jᵀ g_j.
      let sums = (a.expandedDimension(2) * own.ofMomentumErrors.expandedDimension(-1)).T.matmul(g.expandedDimension(2))
      let s = sums + own.persistence.expandedDimension(-1).expandedDimension(-1) * momentum[i].expandedDimension(2)
      let steps = newtonSchulz(s) * own.rate.expandedDimension(-1).expandedDimension(-1)  // [B, H, n, in, out]
      var each: [Tensor] = []
      for t in 0...last {
        let alpha = own.retention.selected(axis: 2, t).expandedDimension(-1).expandedDimension(-1)
        each.append((each.last ?? weights[i]) * alpha + steps.selected(axis: 2, t))
      }
      let all = stacked(each, axis: 2)
      reads.append { $0.expandedDimension(-2).matmul(all).squeezed(-2) }
      next.append(each[last])
      state.momentum[i] = s.selected(axis: 2, last)
      continue
    }
    let hasMomentum = rule.inner == .momentum
    reads.append { x in
      var y = x.matmul(weights[i]) * own.ofStart.expandedDimension(-1) + (x.matmul(a.T) * own.ofErrors).matmul(g)
      if hasMomentum { y = y + x.matmul(momentum[i]) * own.ofMomentum.expandedDimension(-1) }
      return y
    }
    var end = weights[i] * ofMatrix(own.ofStart) + a.T.matmul(g * ofPairs(own.ofErrors))
    if hasMomentum {
      end = end + momentum[i] * ofMatrix(own.ofMomentum)
      state.momentum[i] = momentum[i] * ofMatrix(own.persistence) + a.T.matmul(g * ofPairs(own.ofMomentumErrors))
    }
    next.append(end)
  }
  state.weights = next
  return recall(query, rule.memory, valueWidth: value.dim(3)) { reads[$0]($1) }
}

/// M(z), by functions that apply each weight.
private func recall(_ z: Tensor, _ kind: MemoryKind, valueWidth: Int, _ apply: (Int, Tensor) -> Tensor) -> Tensor {
  guard kind != .matrix else { return apply(0, z) }
  var hidden = apply(1, z).gelu()
  if kind == .gatedMLP { hidden = hidden * apply(2, z) }
  let y = apply(0, hidden)
  return z.dim(-1) == valueWidth ? z + y : y
}

/// −∇ℓ of every pair with respect to each weight as an outer product aᵀ g, a [B, H, m, in] and g [B, H, m, out].
private func descents(_ key: Tensor, _ value: Tensor, _ weights: [Tensor], _ rule: OmegaRule) -> [(a: Tensor, g: Tensor)] {
  let isSquared = rule.objective == .squaredError
  guard rule.memory != .matrix else { return [(key, isSquared ? value - key.matmul(weights[0]) : value)] }
  let z = key.matmul(weights[1])
  let gate = rule.memory == .gatedMLP ? key.matmul(weights[2]) : nil
  let active = z.gelu()
  let hidden = gate.map { active * $0 } ?? active
  var error = value
  if isSquared {
    error = value - hidden.matmul(weights[0])
    if key.dim(-1) == value.dim(-1) { error = error - key }
  }
  let back = error.matmul(weights[0].T)
  // GELU′(z) = Φ(z) + z φ(z).
  let slope = (z * 0.5.squareRoot()).erf() * 0.5 + 0.5 + z * (z.square() * -0.5).exp() * (1 / (2 * Double.pi).squareRoot())
  var result = [(hidden, error), (key, (gate.map { back * $0 } ?? back) * slope)]
  if gate != nil { result.append((key, back * active)) }
  return result
}

/// What a memory answers. z: [B, H, L, F], weights as in ``OmegaState``.
public func recall(_ z: Tensor, from weights: [Tensor], _ kind: MemoryKind) -> Tensor {
  recall(z, kind, valueWidth: weights[0].dim(-1)) { $1.matmul(weights[$0]) }
}
