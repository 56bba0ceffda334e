/// What turns queries and keys into non-negative features.
public enum TokenFeature: Int, Sendable {
  /// elu + 1
  case elu = 0
  case relu = 1

  func callAsFunction(_ x: Tensor) -> Tensor { self == .elu ? x.elu() + 1 : x.relu() }
}

private let kernel = Operator("martlet::token_linear_attention")

/// Linear attention among all tokens on projections as they lie in memory:
///
///     y_i = R_i φ(q_i) Σ_j (R_j α_j φ(k_j + p_j))ᵀ v_j / (φ(q_i) · Σ_j α_j φ(k_j + p_j) + ε)
///
/// - Parameters:
///   - query, key, value: [B, L, width].
///   - positions: p [L, width], added to the keys.
///   - rotation: R; `nil` for none. The denominator is never rotated.
///   - reweighted: α_j = N softmax_j(mean_i φ(q_i) · φ(k_j) / √d) over N real tokens, and means over tokens in place of the sums
///     (what ε is added to); else α = 1.
///   - mask: [B, L] bool, true at real tokens.
/// - Returns: [B, L, width of values].
public func tokenLinearAttention(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, heads: Int, feature: TokenFeature, positions: Tensor? = nil, rotation: RoPE2D? = nil,
  grid: TokenGrid, reweighted: Bool, epsilon: Double = 1e-6, mask: Tensor? = nil
) -> Tensor {
  guard fusedKernelsServe(query), positions.map({ $0.dtype == .float32 }) ?? true else {
    return tokenLinearAttentionReference(
      query, key, value, heads: heads, feature: feature, positions: positions, rotation: rotation, grid: grid, reweighted: reweighted,
      epsilon: epsilon, mask: mask)
  }
  return kernel(
    .tensor(query), .tensor(key), .tensor(value), .int(heads), .int(feature.rawValue), .bool(reweighted), .double(epsilon),
    .tensor(positions), .tensor(rotation.map { Tensor($0.angles) }), .int(grid.columns), .int(grid.prefix), .tensor(mask))
}

/// The same by the equation in plain operators, linear in the length: the oracle.
public func tokenLinearAttentionReference(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, heads: Int, feature: TokenFeature, positions: Tensor? = nil, rotation: RoPE2D? = nil,
  grid: TokenGrid, reweighted: Bool, epsilon: Double = 1e-6, mask: Tensor? = nil
) -> Tensor {
  var q = feature(splitHeads(query, heads))  // [B, H, L, d]
  var k = feature(splitHeads(positions.map { key + $0 } ?? key, heads))
  let v = splitHeads(value, heads)
  let keep = mask?[.all, .newAxis, .all, .newAxis].to(q.dtype)  // [B, 1, L, 1]
  let count = keep?.sum(axis: 2, keepDims: true).clamped(min: 1) ?? Tensor(Double(q.dim(2)), dtype: q.dtype, device: q.device)
  if reweighted { k = k * tokenWeights(q, k, mask: mask) }
  if let keep { k = k * keep }
  let scale = reweighted ? count : Tensor(1, dtype: q.dtype, device: q.device)
  let denominator = q.matmul((k.sum(axis: 2, keepDims: true) / scale).T) + epsilon  // [B, H, L, 1]
  if let rotation { (q, k) = (rotation(q, grid: grid), rotation(k, grid: grid)) }
  return mergeHeads(q.matmul(k.T.matmul(v) / scale) / denominator)
}

/// α_j = N softmax_j(mean_i q_i · k_j / √d) for features q and k [B, H, L, d] → [B, H, L, 1]; 0 at padding.
public func tokenWeights(_ queryFeatures: Tensor, _ keyFeatures: Tensor, mask: Tensor? = nil) -> Tensor {
  let (q, k) = (queryFeatures, keyFeatures)
  let keep = mask?[.all, .newAxis, .all, .newAxis]
  let count =
    keep?.to(q.dtype).sum(axis: 2, keepDims: true).clamped(min: 1) ?? Tensor(Double(q.dim(2)), dtype: q.dtype, device: q.device)
  let mean = (keep.map { q * $0.to(q.dtype) } ?? q).sum(axis: 2, keepDims: true) / count  // [B, H, 1, d]
  var scores = k.matmul(mean.T) * (1 / Double(q.dim(3)).squareRoot())  // [B, H, L, 1]
  // A sequence without any real token would have no softmax: a large finite score keeps it finite.
  if let keep { scores = scores.maskedFill(.!keep, -1e30) }
  let weights = scores.softmax(axis: 2) * count
  return keep.map { weights * $0.to(weights.dtype) } ?? weights
}
