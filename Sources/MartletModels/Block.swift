/// One layer: x + mixer(norm x), then x + feed-forward(norm x) (or each normalised after the sum, or both branches side by side),
/// with attention to another sequence in between where the configuration asks for it.
public final class Block: Module {
  @Child(key: "mixer") public var mixer: any SequenceMixer
  @Child(key: "cross_attention") public var crossAttention: SoftmaxAttention?
  @Child(key: "feed_forward") public var feedForward: (any FeedForward)?
  @Child(key: "mixer_norm") public var mixerNorm: (any NormalizationLayer)?
  @Child(key: "cross_attention_norm") public var crossAttentionNorm: (any NormalizationLayer)?
  @Child(key: "feed_forward_norm") public var feedForwardNorm: (any NormalizationLayer)?
  /// Of the branches' outputs, before they are added.
  @Child(key: "mixer_output_norm") public var mixerOutputNorm: (any NormalizationLayer)?
  @Child(key: "feed_forward_output_norm") public var feedForwardOutputNorm: (any NormalizationLayer)?
  private let dropout: Dropout
  private let dropPath: DropPath
  private let preNorm: Bool
  private let isParallel: Bool

  init(_ c: BackboneConfiguration, layer: Int, generator: RandomGenerator) throws {
    preNorm = c.preNorm
    isParallel = c.parallelResidual
    dropout = Dropout(c.dropout, generator: generator)
    // Stochastic depth grows linearly with the layer (Huang et al. 2016).
    dropPath = DropPath(c.layers > 1 ? c.dropPath * Double(layer) / Double(c.layers - 1) : c.dropPath, generator: generator)
    super.init()
    func norm() -> (any NormalizationLayer)? { c.norm.make(c.width, epsilon: c.normEpsilon, schedule: c.normSchedule) }
    let choice = c.mixer(layer: layer)
    let site = MixerSite(width: c.width, heads: c.heads, isCausal: c.isCausal, length: c.length, dropout: c.dropout)
    mixer = try choice.kind(site, options: choice.options, generator: generator)
    feedForward = c.feedForward.make(
      width: c.width, hidden: c.hidden, activation: c.activation, bias: c.feedForwardBias, generator: generator)
    mixerNorm = norm()
    feedForwardNorm = feedForward == nil ? nil : norm()
    mixerOutputNorm = c.branchNorm ? norm() : nil
    feedForwardOutputNorm = c.branchNorm && feedForward != nil ? norm() : nil
    crossAttention = nil
    crossAttentionNorm = nil
    if let cross = c.crossAttention {
      var site = site
      site.isCausal = false
      guard let attention = try cross.kind(site, options: cross.options, generator: generator) as? SoftmaxAttention else {
        throw ConfigurationError("attention to another sequence must be softmax attention, not \"\(cross.name)\"")
      }
      crossAttention = attention
      crossAttentionNorm = norm()
    }
  }

  /// x + branch(x), normalised where the configuration says.
  private func residual(
    _ x: Tensor, mask: Tensor?, _ norm: (any NormalizationLayer)?, _ outputNorm: (any NormalizationLayer)? = nil,
    _ branch: (Tensor) -> Tensor
  ) -> Tensor {
    var inner = branch(preNorm ? norm?(x, mask: mask) ?? x : x)
    if let outputNorm { inner = outputNorm(inner, mask: mask) }
    let sum = x + dropPath(dropout(inner))
    return preNorm ? sum : norm?(sum, mask: mask) ?? sum
  }

  /// - Parameter mask: of real positions, for norms with statistics over several of them.
  func callAsFunction(
    _ x: Tensor, mask: Tensor? = nil, cross: (Tensor) -> Tensor? = { _ in nil }, _ mix: (Tensor) -> Tensor
  ) -> Tensor {
    if isParallel, let feedForward {
      let other = feedForward(feedForwardNorm?(x, mask: mask) ?? x)
      return x + dropPath(dropout(mix(mixerNorm?(x, mask: mask) ?? x) + other))
    }
    var y = residual(x, mask: mask, mixerNorm, mixerOutputNorm, mix)
    if crossAttention != nil { y = residual(y, mask: mask, crossAttentionNorm) { cross($0) ?? Tensor.zeros(like: $0) } }
    guard let feedForward else { return y }
    return residual(y, mask: mask, feedForwardNorm, feedForwardOutputNorm) { feedForward($0) }
  }
}
