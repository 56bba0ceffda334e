/// The three running sums of a softmax average, Σ e^{s_j} v_j / Σ e^{s_j}, which can be taken over any part of a sequence and joined
/// (Milakov & Gimelshein 2018; Feng et al. 2024, "Attention as an RNN", §3.2):
///
///     m = max s_j,   u = Σ e^{s_j − m},   w = Σ e^{s_j − m} v_j
///     (m_A, u_A, w_A) ⊕ (m_B, u_B, w_B) = (m, u_A e^{m_A − m} + u_B e^{m_B − m}, w_A e^{m_A − m} + w_B e^{m_B − m}),  m = max(m_A, m_B)
///
/// ⊕ is associative and (−∞, 0, 0) its identity. A scan of single tokens gives attention's outputs for every prefix
/// (``scan(_:_:)``); a fold of blocks of keys gives attention in memory that doesn't grow with their number
/// (``blockwiseSoftmaxAttention(_:_:_:causal:block:scale:)``). Plain operators throughout: every dtype, device and gradient.
///
/// The maxima are constants to differentiation: moving them changes no output. The gradient of the scores goes through u and w, so that
/// a single token's u is e^{s − m}, not the number 1 that it equals.
public struct OnlineSoftmax: @unchecked Sendable {
  /// m, [...].
  public var maximum: Tensor
  /// u, [...].
  public var normalizer: Tensor
  /// w, [..., d].
  public var accumulated: Tensor

  /// Over given sums.
  public init(maximum: Tensor, normalizer: Tensor, accumulated: Tensor) {
    self.maximum = maximum
    self.normalizer = normalizer
    self.accumulated = accumulated
  }

  /// The sums of nothing, for values [..., d] of a shape.
  public static func identity(_ shape: [Int], dtype: DType = .float32, device: Device = .cpu) -> OnlineSoftmax {
    let outer = Array(shape.dropLast())
    return OnlineSoftmax(
      maximum: .full(outer, -Double.infinity, dtype: dtype, device: device), normalizer: .zeros(outer, dtype: dtype, device: device),
      accumulated: .zeros(shape, dtype: dtype, device: device))
  }

  /// The sums of single tokens: scores [...], values [..., d]. A score of −∞ stands for no token.
  public static func leaf(_ scores: Tensor, _ values: Tensor) -> OnlineSoftmax {
    let maximum = scores.detached()
    let normalizer = (scores - finite(maximum)).exp()
    return OnlineSoftmax(maximum: maximum, normalizer: normalizer, accumulated: normalizer.expandedDimension(-1) * values)
  }

  /// The sums of blocks of tokens: scores [..., Q, b] of Q queries, values [..., b, d].
  public static func block(_ scores: Tensor, _ values: Tensor) -> OnlineSoftmax {
    let maximum = scores.detached().max(axis: -1)
    let weights = (scores - finite(maximum).expandedDimension(-1)).exp()
    return OnlineSoftmax(maximum: maximum, normalizer: weights.sum(axis: -1), accumulated: weights.matmul(values))
  }

  /// −∞ as 0: e^{−∞ − 0} is 0 where e^{−∞ − (−∞)} would not be a number.
  private static func finite(_ maximum: Tensor) -> Tensor { maximum.maskedFill(maximum .== -Double.infinity, 0) }

  /// a ⊕ b, elementwise.
  public static func combined(_ a: OnlineSoftmax, _ b: OnlineSoftmax) -> OnlineSoftmax {
    let m = Martlet.maximum(a.maximum, b.maximum)
    let (fromA, fromB) = ((a.maximum - finite(m)).exp(), (b.maximum - finite(m)).exp())
    return OnlineSoftmax(
      maximum: m, normalizer: a.normalizer * fromA + b.normalizer * fromB,
      accumulated: a.accumulated * fromA.expandedDimension(-1) + b.accumulated * fromB.expandedDimension(-1))
  }

  /// w / u, [..., d]; 0 where there was no token.
  public var output: Tensor {
    let u = normalizer.maskedFill(normalizer .== 0, 1)
    return accumulated / u.expandedDimension(-1)
  }

  /// The elements start ..< start + length of the last axis of the sums, which is an axis of positions.
  func positions(_ start: Int, _ length: Int) -> OnlineSoftmax {
    OnlineSoftmax(
      maximum: maximum.narrowed(axis: -1, start: start, length: length),
      normalizer: normalizer.narrowed(axis: -1, start: start, length: length),
      accumulated: accumulated.narrowed(axis: -2, start: start, length: length))
  }

  /// The sums of every prefix by Hillis & Steele's scan (algorithm 1 of the paper): ⌈log₂ L⌉ rounds, in which each position takes in
  /// the sums of the one 1, 2, 4, … before it. Scores [..., L], values [..., L, d]; work O(L log L · d).
  public static func scan(_ scores: Tensor, _ values: Tensor) -> OnlineSoftmax {
    // The parts have their positions at one axis when the two numbers of a token are a last axis of one.
    func parts(_ sums: OnlineSoftmax) -> [Tensor] {
      [sums.maximum.expandedDimension(-1), sums.normalizer.expandedDimension(-1), sums.accumulated]
    }
    func sums(_ parts: [Tensor]) -> OnlineSoftmax {
      OnlineSoftmax(maximum: parts[0].squeezed(-1), normalizer: parts[1].squeezed(-1), accumulated: parts[2])
    }
    return sums(associativeScan(parts(leaf(scores, values)), axis: -2) { parts(combined(sums($0), sums($1))) })
  }

  /// The sums of a whole sequence, folded by blocks of `block` tokens: the same numbers in memory O(block · d) besides the values.
  /// Scores [..., L], values [..., L, d].
  public static func fold(_ scores: Tensor, _ values: Tensor, block size: Int, from start: OnlineSoftmax? = nil) -> OnlineSoftmax {
    require(size > 0, "a block has at least one token, got \(size)")
    var sums = start ?? identity(Array(values.shape.dropLast(2)) + [values.dim(-1)], dtype: values.dtype, device: values.device)
    for first in stride(from: 0, to: scores.dim(-1), by: size) {
      let length = min(size, scores.dim(-1) - first)
      let part = block(
        scores.narrowed(axis: -1, start: first, length: length).expandedDimension(-2),
        values.narrowed(axis: -2, start: first, length: length))
      sums = combined(
        sums,
        OnlineSoftmax(
          maximum: part.maximum.squeezed(-1), normalizer: part.normalizer.squeezed(-1), accumulated: part.accumulated.squeezed(-2)))
    }
    return sums
  }
}

/// Softmax attention block by block (§3.2 of the paper; the recursion of FlashAttention): queries [B, H, L, d] fold the keys and values
/// [B, H, S, d] by ⊕ in blocks of `block`, so that no more than L · block scores exist at a time. Causal: query i sees keys up to
/// i + S − L.
public func blockwiseSoftmaxAttention(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, causal: Bool, block: Int, scale: Double? = nil
) -> Tensor {
  require(block > 0, "a block has at least one key, got \(block)")
  let factor = scale ?? 1 / Double(query.dim(-1)).squareRoot()
  let (l, s) = (query.dim(2), key.dim(2))
  let last = (Tensor.arange(l, device: query.device) + (s - l)).expandedDimension(1)
  var sums = OnlineSoftmax.identity(Array(query.shape.dropLast()) + [value.dim(-1)], dtype: value.dtype, device: value.device)
  for first in stride(from: 0, to: s, by: block) {
    let length = min(block, s - first)
    var scores = query.matmul(key.narrowed(axis: 2, start: first, length: length).T) * factor
    if causal { scores = scores.maskedFill(Tensor.arange(length, device: query.device) + first .> last, -.infinity) }
    sums = .combined(sums, .block(scores, value.narrowed(axis: 2, start: first, length: length)))
  }
  return sums.output
}

private let kernel = Operator("martlet::prefix_attention")

/// Softmax attention of one fixed query over every prefix: o_t = Σ_{j≤t} e^{s_j} v_j / Σ_{j≤t} e^{s_j}, and the sums after the last token.
///
/// On CPU in float32 it runs on the kernel `martlet::prefix_attention`, one pass over memory; elsewhere, and where gradients go through
/// the sums it starts from, by ``OnlineSoftmax/scan(_:_:)``.
///
/// - Parameters:
///   - scores: [B, H, L], −∞ where there is no token.
///   - values: [B, H, L, d].
///   - start: the sums of what precedes, [B, H] and [B, H, d].
/// - Returns: [B, H, L, d], and sums through which no gradient goes on the kernel.
public func prefixAttention(_ scores: Tensor, _ values: Tensor, from start: OnlineSoftmax? = nil) -> (output: Tensor, sums: OnlineSoftmax) {
  let given = start.map { [$0.maximum, $0.normalizer, $0.accumulated] } ?? []
  guard fusedKernelsServe(values), !(isGradientEnabled && given.contains(where: \.requiresGradient)) else {
    return prefixAttentionReference(scores, values, from: start)
  }
  let results = kernel.many(
    .tensor(scores), .tensor(values), .tensor(start?.maximum), .tensor(start?.normalizer), .tensor(start?.accumulated)
  ).map { $0! }
  return (results[0], OnlineSoftmax(maximum: results[1], normalizer: results[2], accumulated: results[3]))
}

/// The same by the scan of the paper in plain operators.
public func prefixAttentionReference(
  _ scores: Tensor, _ values: Tensor, from start: OnlineSoftmax? = nil
) -> (output: Tensor, sums: OnlineSoftmax) {
  var sums = OnlineSoftmax.scan(scores, values)
  if let start {
    let first = OnlineSoftmax(
      maximum: start.maximum.expandedDimension(-1), normalizer: start.normalizer.expandedDimension(-1),
      accumulated: start.accumulated.expandedDimension(-2))
    sums = .combined(first, sums)
  }
  let last = sums.positions(scores.dim(-1) - 1, 1)
  return (
    sums.output,
    OnlineSoftmax(
      maximum: last.maximum.squeezed(-1), normalizer: last.normalizer.squeezed(-1), accumulated: last.accumulated.squeezed(-2))
  )
}
