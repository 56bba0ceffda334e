private enum ClippingOperators {
  static let fusedNorm = Operator("martlet::grad_norm")
}

/// The Euclidean norm of all elements of all tensors together, √Σ‖gᵢ‖²; 0 for no tensors.
public func globalNorm(_ tensors: [Tensor]) -> Double {
  if tensors.isEmpty { return 0 }
  return withoutGradient {
    if tensors.allSatisfy({ $0.dtype == .float32 && $0.device == .cpu }) {
      return ClippingOperators.fusedNorm(.tensors(tensors)).item()
    }
    let device = tensors[0].device
    return stacked(ForEach.norms(tensors).map { $0.to(.float32).to(device) }).norm().item()
  }
}

/// Scales the gradients in place so that their common norm is at most `limit` (Pascanu et al. 2013, *On the difficulty of
/// training recurrent neural networks*, algorithm 1).
///
/// - Returns: the norm before clipping. It may be infinite or NaN, in which case the gradients are of no use afterwards.
@discardableResult
public func clipGradients(_ gradients: [Tensor], norm limit: Double) -> Double {
  require(limit > 0, "gradients can't be clipped to the norm \(limit): it must be positive")
  let norm = globalNorm(gradients)
  let factor = clippingFactor(norm: norm, limit: limit)
  if factor != 1 { withoutGradient { ForEach.scale(gradients, by: factor) } }
  return norm
}

/// Limits every element of the gradients, in place, to −limit...limit.
public func clipGradients(_ gradients: [Tensor], value limit: Double) {
  require(limit > 0, "gradients can't be clipped to the value \(limit): it must be positive")
  if !gradients.isEmpty { withoutGradient { ForEach.clamp(gradients, to: limit) } }
}

/// min(1, limit / (norm + 10⁻⁶)), the small number as in PyTorch. NaN stays NaN.
private func clippingFactor(norm: Double, limit: Double) -> Double {
  let factor = limit / (norm + 1e-6)
  return factor > 1 ? 1 : factor
}

extension Optimizer {
  /// Clips by the norm of all gradients together within the next step, which applies the factor: no pass over the gradients
  /// besides the norm's.
  ///
  /// - Returns: the norm before clipping, with `gradientScale` applied.
  @discardableResult
  public func clipNextStep(norm limit: Double) -> Double {
    require(limit > 0, "gradients can't be clipped to the norm \(limit): it must be positive")
    let norm = globalNorm(gradients) * abs(gradientScale)
    gradientScale *= clippingFactor(norm: norm, limit: limit)
    return norm
  }
}
