private enum Operators {
  static let crossEntropy = Operator("martlet::cross_entropy")
  static let binary = Operator("aten::binary_cross_entropy_with_logits")
  static let huber = Operator("aten::huber_loss")
  static let klDiv = Operator("aten::kl_div")
}

/// The id of positions that a loss leaves out.
public let ignoredTarget = -100

/// Mean negative log-likelihood of integer targets. logits [..., classes], targets [...] int64; targets of `ignoredTarget`
/// do not enter the mean. Traps when a target is neither ignored nor below `classes`.
public func crossEntropy(_ logits: Tensor, _ targets: Tensor, labelSmoothing: Double = 0) -> Tensor {
  let classes = logits.dim(-1)
  return Operators.crossEntropy(
    .tensor(logits.reshaped(-1, classes)), .tensor(targets.reshaped(-1)), .int(ignoredTarget), .double(labelSmoothing))
}

/// Mean binary cross-entropy of logits against targets in [0, 1].
public func binaryCrossEntropy(_ logits: Tensor, _ targets: Tensor) -> Tensor {
  Operators.binary(.tensor(logits), .tensor(targets))
}

public func meanSquaredError(_ prediction: Tensor, _ target: Tensor) -> Tensor { (prediction - target).square().mean() }

public func meanAbsoluteError(_ prediction: Tensor, _ target: Tensor) -> Tensor { (prediction - target).abs().mean() }

/// Quadratic below `delta`, linear above.
public func huberLoss(_ prediction: Tensor, _ target: Tensor, delta: Double = 1) -> Tensor {
  Operators.huber(.tensor(prediction), .tensor(target), .int(1), .double(delta))
}

/// KL(target ‖ prediction) summed over the last axis and averaged over the rest; both as log-probabilities.
public func klDivergence(logPrediction: Tensor, logTarget: Tensor) -> Tensor {
  (logTarget.exp() * (logTarget - logPrediction)).sum(axis: -1).mean()
}

/// InfoNCE (van den Oord et al. 2018): the cross-entropy of picking each query's own key among it and the negatives, by cosine
/// similarity over a temperature.
///
///     −mean_i log( e^{q_i·k_i/τ} / (e^{q_i·k_i/τ} + Σ_n e^{q_i·n/τ}) )
///
/// - Parameters:
///   - queries, keys: [batch, d]; row i of both belongs together. They are brought to length one here.
///   - negatives: [count, d], the same for all queries; `nil` for the other keys of the batch.
public func contrastiveLoss(queries: Tensor, keys: Tensor, negatives: Tensor? = nil, temperature: Double) -> Tensor {
  func unit(_ x: Tensor) -> Tensor { x * (x.square().sum(axis: -1, keepDims: true) + 1e-12).rsqrt() }
  let (q, k) = (unit(queries), unit(keys))
  guard let negatives else {
    return crossEntropy(q.matmul(k.T) / temperature, Tensor.arange(q.dim(0), device: q.device))
  }
  let own = (q * k).sum(axis: -1, keepDims: true)
  let logits = concatenated([own, q.matmul(unit(negatives).T)], axis: -1) / temperature
  return crossEntropy(logits, Tensor.zeros([q.dim(0)], dtype: .int64, device: q.device))
}
