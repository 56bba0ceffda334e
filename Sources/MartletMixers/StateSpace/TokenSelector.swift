/// Chooses the informative tokens of a sequence (Wang et al. 2023, *Selective Structured State-Spaces*, arXiv 2303.14526, §3.2; after
/// dynamic token sparsification, Rao et al. 2021). From guide features g that have seen the whole sequence:
///
///     l = ReLU(g W_l),   ḡ = mean over tokens of l,   z = MLP([l; ḡ]),   p = softmax(z)
///
/// The K tokens of greatest p are kept, in their temporal order. While training, Gumbel noise is added to z, so that the choice is a
/// draw from p without replacement; in evaluation there is none. The choice is hard; its gradient is that of the softmax, passed
/// back by the factor 1 + (p − stop(p)) on what is kept (straight through).
public final class TokenSelector: Module, GeneratorHolder {
  /// The share of tokens that is dropped, in 0..<1.
  public let ratio: Double
  /// Of the softmax whose gradient stands for that of the choice.
  public let temperature: Double
  @Child public var local: any LinearLayer
  @Child public var hidden: any LinearLayer
  /// Without bias: the softmax would not see it.
  @Child public var score: any LinearLayer
  public let generator: RandomGenerator

  public init(width: Int, ratio: Double = 0.5, temperature: Double = 1, generator: RandomGenerator) {
    require((0..<1).contains(ratio), "the share of dropped tokens must be in 0..<1, got \(ratio)")
    require(temperature > 0, "the temperature must be positive, got \(temperature)")
    self.ratio = ratio
    self.temperature = temperature
    self.generator = generator
    super.init()
    let half = max(1, width / 2)
    local = Linear(width, half, generator: generator)
    hidden = Linear(2 * half, half, generator: generator)
    score = Linear(half, 1, bias: false, generator: generator)
  }

  /// The tokens kept of `length`: K = length − ratio · length to the nearest integer, at least one.
  public func kept(of length: Int) -> Int { max(1, Int(((1 - ratio) * Double(length)).rounded())) }

  /// The logits z, [batch, length], of guide features [batch, length, width]. mask: [batch, length] bool; padding has no part in the mean.
  public func scores(_ guide: Tensor, mask: Tensor? = nil) -> Tensor {
    let l = local(guide).relu()
    let mean: Tensor
    if let mask {
      let weights = mask.expandedDimension(-1).to(l.dtype)
      mean = (l * weights).sum(axis: 1, keepDims: true) / weights.sum(axis: 1, keepDims: true).clamped(min: 1)
    } else {
      mean = l.mean(axis: 1, keepDims: true)
    }
    return score(hidden(concatenated([l, mean.broadcast(to: l.shape)], axis: -1)).gelu()).squeezed(-1)
  }

  /// Chooses by logits [batch, length], with noise while training.
  public func keep(_ scores: Tensor, mask: Tensor? = nil) -> TokenSelection {
    guard isTraining else { return select(scores, mask: mask) }
    return select(scores + gumbel(scores), mask: mask)
  }

  /// Chooses uniformly at random, whatever the tokens hold: the masks of contrastive pretraining, and a baseline.
  public func keepRandom(batch: Int, length: Int, mask: Tensor? = nil, dtype: DType = .float32, generator: RandomGenerator)
    -> TokenSelection
  {
    let scores = Tensor.random([batch, length], generator: generator).to(dtype)
    return withoutGradient { select(scores, mask: mask) }
  }

  /// −log(−log u).
  private func gumbel(_ like: Tensor) -> Tensor {
    let u = Tensor.random(like.shape, generator: generator).clamped(min: 1e-20)
    return (-(-u.log()).clamped(min: 1e-20).log()).to(like.dtype).to(like.device)
  }

  private func select(_ scores: Tensor, mask: Tensor?) -> TokenSelection {
    let (batch, length) = (scores.dim(0), scores.dim(1))
    let logits = mask.map { scores.maskedFill(.!$0, -.infinity) } ?? scores
    let order = logits.detached()
    var indices: Tensor
    var real: Tensor?
    if let mask {
      let counts = mask.to(.int64).sum(axis: 1).toArray(Int.self).map { $0 == 0 ? 0 : kept(of: $0) }
      let most = max(1, counts.max() ?? 1)
      let places = Tensor.arange(most, device: scores.device) .< Tensor(counts, [batch, 1]).to(scores.device)
      // What a shorter sequence doesn't use is sorted to the end.
      indices = order.topK(most).indices.maskedFill(.!places, Double(length)).sorted().values
      indices = indices.clamped(max: Double(length - 1)).to(.int64)
      real = counts.allSatisfy { $0 == most } ? nil : places
    } else {
      indices = order.topK(kept(of: length)).indices.sorted().values
    }
    var factor: Tensor?
    if isGradientEnabled && scores.requiresGradient {
      // A sequence of padding alone has no probabilities.
      var soft = (logits / temperature).softmax(axis: -1)
      if mask != nil { soft = soft.maskedFill(soft.isNaN(), 0) }
      soft = soft.gather(indices, axis: 1)
      factor = (soft - soft.detached()) + 1.0
    }
    return TokenSelection(indices: indices, mask: real, factor: factor, length: length)
  }
}

/// Tokens chosen from sequences of one length, K of each (fewer where padding left fewer).
public struct TokenSelection: @unchecked Sendable {
  /// Positions in the sequence, strictly increasing, [batch, K] int64; beyond those of a shorter sequence they mean nothing.
  public let indices: Tensor
  /// [batch, K] bool, true at chosen tokens; `nil` when all are.
  public let mask: Tensor?
  /// 1 in value, with the gradient of the soft choice, [batch, K]; `nil` where none is recorded.
  public let factor: Tensor?
  /// Of the sequences chosen from.
  public let length: Int

  public init(indices: Tensor, mask: Tensor? = nil, factor: Tensor? = nil, length: Int) {
    self.indices = indices
    self.mask = mask
    self.factor = factor
    self.length = length
  }

  /// K.
  public var count: Int { indices.dim(1) }

  /// Rows of [batch · length, …] that hold the chosen tokens, [batch · K]: whole rows are copied, forward and backward.
  private var rows: Tensor {
    let starts = Tensor.arange(indices.dim(0), device: indices.device).expandedDimension(1) * length
    return (indices + starts).reshaped(-1)
  }

  /// The chosen tokens of x [batch, length, width] → [batch, K, width].
  public func gather(_ x: Tensor) -> Tensor {
    if count == length { return x }
    return x.reshaped(-1, x.dim(2)).take(rows).reshaped(x.dim(0), count, x.dim(2))
  }

  /// Puts y [batch, K, width] at the places of the chosen tokens. Elsewhere stands 0, or what `others` [batch, length, width] has there.
  public func scatter(_ y: Tensor, others: Tensor? = nil) -> Tensor {
    let shape = [y.dim(0), length, y.dim(2)]
    let values = mask.map { y * $0.expandedDimension(-1).to(y.dtype) } ?? y
    let placed =
      count == length && mask == nil
      ? values
      : Tensor.zeros([shape[0] * length, shape[2]], dtype: y.dtype, device: y.device)
        .indexAdd(rows, values.reshaped(-1, shape[2]), axis: 0).reshaped(shape)
    guard let others else { return placed }
    return placed + others * (1.0 - chosen(y.dtype)).expandedDimension(-1)
  }

  /// 1 at chosen positions and 0 elsewhere, [batch, length].
  public func chosen(_ dtype: DType = .float32) -> Tensor {
    let ones = mask?.to(dtype) ?? Tensor.ones(indices.shape, dtype: dtype, device: indices.device)
    return Tensor.zeros([indices.dim(0), length], dtype: dtype, device: indices.device).scatterAdd(indices, ones, axis: 1)
  }
}
