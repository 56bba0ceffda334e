// Folding norms that are affine in evaluation (batch norm, progressive re-parameterised batch norm) into the linear maps beside them:
// the last step of SLAB (Guo et al. 2024, arXiv 2405.11582, §3.1). The model computes what it computed in evaluation, without any norm.
// It is changed in memory and can't be trained as before: keep the checkpoint of the original. Recalibrate first
// (`recalibrateNormalization`) where running averages may be stale.

/// One norm and what takes its place.
private struct Fold {
  let norm: any FoldableNormalization
  let apply: (any FoldableNormalization) -> Void
}

/// Checks everything before anything is changed.
private struct FoldingPlan {
  private(set) var folds: [Fold] = []
  private(set) var removals: [() -> Void] = []

  private func checked(_ norm: any NormalizationLayer, _ place: String) throws -> any FoldableNormalization {
    guard let foldable = norm as? any FoldableNormalization else {
      throw TensorError("\(place) is a \(type(of: norm)), which is no affine map of a position: it can't be folded")
    }
    if let progressive = norm as? ProgressiveRepBatchNorm, progressive.layerNormWeight != 0 {
      let weight = progressive.layerNormWeight.map { "\($0)" } ?? "1 (warm-up)"
      throw TensorError("\(place) still has layer norm with weight \(weight): its schedule must end before it is folded")
    }
    return foldable
  }

  private func dense(_ layer: any LinearLayer, _ place: String) throws -> Linear {
    guard let linear = layer as? Linear else {
      throw TensorError("\(place) goes to a \(type(of: layer)): only dense linear layers can take a norm in")
    }
    return linear
  }

  /// A norm whose output goes to linear layers alone.
  mutating func add(_ norm: any NormalizationLayer, into layers: [any LinearLayer], _ place: String, remove: @escaping () -> Void) throws {
    let targets = try layers.map { try dense($0, place) }
    folds.append(Fold(norm: try checked(norm, place)) { norm in for target in targets { norm.fold(into: target) } })
    removals.append(remove)
  }

  /// A norm of something that is made beside it.
  mutating func add(
    _ norm: any NormalizationLayer, _ place: String, remove: @escaping () -> Void, apply: @escaping (any FoldableNormalization) -> Void
  ) throws {
    folds.append(Fold(norm: try checked(norm, place), apply: apply))
    removals.append(remove)
  }

  /// The layers that read a branch's input.
  func readers(_ branch: Module, _ place: String) throws -> [any LinearLayer] {
    guard let reading = branch as? any LinearlyReading else {
      throw TensorError("\(place) goes to a \(type(of: branch)), which doesn't read its input by linear layers alone")
    }
    return reading.inputLayers
  }

  func run() -> Int {
    for fold in folds { fold.apply(fold.norm) }
    for remove in removals { remove() }
    return folds.count
  }
}

extension FoldingPlan {
  /// Every norm of a backbone; the last one goes into `heads`, which must be all that reads the output, position by position or
  /// through means.
  fileprivate mutating func add(_ backbone: SequenceBackbone, heads: [any LinearLayer]) throws {
    let c = backbone.configuration
    guard c.preNorm else { throw TensorError("norms after the sums feed the residual stream too: only norms before the branches fold") }
    for (i, block) in backbone.blocks.enumerated() {
      let place = "blocks.\(i)"
      guard block.mixerOutputNorm == nil, block.feedForwardOutputNorm == nil, block.crossAttentionNorm == nil else {
        throw TensorError("\(place) has norms on its branches' outputs or another sequence's, which aren't folded")
      }
      if let norm = block.mixerNorm {
        try add(norm, into: readers(block.mixer, "\(place).mixer_norm"), "\(place).mixer_norm") { block.mixerNorm = nil }
      }
      if let norm = block.feedForwardNorm, let feedForward = block.feedForward {
        try add(norm, into: readers(feedForward, "\(place).feed_forward_norm"), "\(place).feed_forward_norm") {
          block.feedForwardNorm = nil
        }
      }
    }
    if let norm = backbone.finalNorm {
      guard !heads.isEmpty else { throw TensorError("final_norm needs a head that it can be folded into") }
      try add(norm, into: heads, "final_norm") { backbone.finalNorm = nil }
    }
  }

  /// The norm on the sum of a backbone's own embeddings: all that is summed is scaled, one part is shifted.
  fileprivate mutating func addEmbeddingNorm(_ backbone: SequenceBackbone) throws {
    guard let norm = backbone.embeddingNorm else { return }
    let c = backbone.configuration
    guard c.positions != .sinusoidal, c.embeddingScale == 1, backbone.embeddingProjection == nil else {
      throw TensorError("embedding_norm: fixed positions, scaled and projected embeddings can't take a norm in")
    }
    let input = try backbone.inputProjection.map { try dense($0, "embedding_norm") }
    guard input != nil || backbone.embedding != nil else { throw TensorError("embedding_norm stands behind nothing that could take it in") }
    try add(norm, "embedding_norm", remove: { backbone.embeddingNorm = nil }) { norm in
      if let input { norm.fold(after: input) }
      if let embedding = backbone.embedding {
        let (scale, shift) = norm.affine
        embedding.weight = withoutGradient { (embedding.weight.detached().to(.float64) * scale + shift).to(embedding.weight.dtype) }
      }
      if let positions = backbone.learnedPositions { backbone.learnedPositions = norm.scaled(positions) }
      if let types = backbone.tokenTypes { types.weight = norm.scaled(types.weight) }
    }
  }
}

extension FoldableNormalization {
  /// a ⊙ x
  fileprivate func scaled(_ x: Tensor) -> Tensor { withoutGradient { (x.detached().to(.float64) * affine.scale).to(x.dtype) } }
}

/// Folds every norm of a backbone; the last one into the heads that read its output.
///
/// - Returns: The number of norms that are gone: no norm is left.
/// - Throws: `TensorError` that names the norm, for one that isn't affine in evaluation, whose schedule hasn't ended, or that goes to
///   anything but dense linear layers. Nothing is changed then.
@discardableResult
public func foldNormalization(_ backbone: SequenceBackbone, heads: [any LinearLayer]) throws -> Int {
  var plan = FoldingPlan()
  try plan.add(backbone, heads: heads)
  try plan.addEmbeddingNorm(backbone)
  return plan.run()
}

/// The same for a classifier: its pooling must be a mean or one position (the largest of scaled numbers is not the scaled largest).
/// A sample without any real position gives the folded norm's shift rather than zeros.
@discardableResult
public func foldNormalization(_ model: SequenceClassifier) throws -> Int {
  guard model.pooling != .max else { throw TensorError("final_norm can't be folded through a pooling by maxima") }
  return try foldNormalization(model.backbone, heads: [model.head])
}

/// The same for a vision transformer; a norm of its patches, positions and first tokens goes into these.
@discardableResult
public func foldNormalization(_ model: VisionTransformer) throws -> Int {
  var plan = FoldingPlan()
  let backbone = model.backbone
  try plan.add(backbone, heads: [model.pooler, model.classifier, model.distillationClassifier].compactMap { $0 })
  if let norm = backbone.embeddingNorm {
    try plan.add(norm, "embedding_norm", remove: { backbone.embeddingNorm = nil }) { norm in
      (model.patchEmbedding.weight, model.patchEmbedding.bias) = norm.after(model.patchEmbedding.weight, model.patchEmbedding.bias)
      model.positions = norm.scaled(model.positions)
      let (scale, shift) = norm.affine
      func moved(_ token: Tensor) -> Tensor { withoutGradient { (token.detached().to(.float64) * scale + shift).to(token.dtype) } }
      if let token = model.classToken { model.classToken = moved(token) }
      if let token = model.distillationToken { model.distillationToken = moved(token) }
    }
  }
  return plan.run()
}
