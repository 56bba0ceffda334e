/// Progressive re-parameterised batch norm (Guo et al. 2024, SLAB, arXiv 2405.11582, §3.1 and the authors' code): a norm that slides
/// from layer norm, which trains well, to a batch norm that costs nothing once it is folded into a neighbouring linear map.
///
///     RepBN(x) = BN(x) + η x                           η one trained number, 1 at the start
///     training:   λ LN(x) + (1 − λ) RepBN(x),          λ_t = max(0, 1 − t/T) r₀
///     evaluation: RepBN(x)
///
/// t counts forward passes in training, after `warmup` passes of layer norm alone; it belongs to the state and is saved and restored
/// with the buffers (`passes`). Evaluation doesn't advance it, nor does a pass inside ``isRecomputing``. Until λ is 0 evaluation uses
/// averages that the model wasn't trained with: judge it after T. x: [..., width]; positions that a mask excludes take no part in the
/// batch's statistics.
public final class ProgressiveRepBatchNorm: Module, NormalizationLayer {
  /// How λ falls.
  public struct Schedule: Sendable, Equatable, Codable {
    /// Steps of layer norm alone before λ starts to fall.
    public var warmup: Int
    /// T, steps until λ is 0; 0 for RepBN from the start.
    public var steps: Int
    /// r₀
    public var initialWeight: Double
    /// Forward passes that make one step: the number of batches whose gradients are accumulated.
    public var passesPerStep: Int

    public init(warmup: Int = 0, steps: Int = 300_000, initialWeight: Double = 1, passesPerStep: Int = 1) {
      self.warmup = warmup
      self.steps = steps
      self.initialWeight = initialWeight
      self.passesPerStep = passesPerStep
    }

    /// λ of a forward pass, counted from 0; `nil` in the warm-up, when there is layer norm only.
    public func weight(pass: Int) -> Double? {
      let step = pass / max(1, passesPerStep)
      if step < warmup { return nil }
      let t = step - warmup
      return t < steps ? initialWeight * (1 - Double(t) / Double(steps)) : 0
    }
  }

  public var schedule: Schedule
  @Child(key: "layer_norm") public var layerNorm: LayerNorm
  @Child(key: "batch_norm") public var batchNorm: BatchNorm
  /// η, [1]
  @Parameter public var eta: Tensor
  /// Forward passes in training so far, int64 [].
  @Buffer public var passes: Tensor

  /// True while activations of an earlier pass are computed again for its gradients: the pass has λ of the one before it counted, and
  /// changes neither the count nor the running averages.
  @TaskLocal public static var isRecomputing = false

  public init(_ width: Int, schedule: Schedule = Schedule(), epsilon: Double = 1e-5, momentum: Double = 0.1) {
    require(
      schedule.warmup >= 0 && schedule.steps >= 0 && schedule.passesPerStep > 0,
      "a schedule has no negative steps and at least one pass a step, got \(schedule)")
    self.schedule = schedule
    super.init()
    layerNorm = LayerNorm(width, epsilon: epsilon)
    batchNorm = BatchNorm(width, epsilon: epsilon, momentum: momentum)
    eta = Tensor.ones([1])
    passes = Tensor.zeros([], dtype: .int64)
  }

  /// λ of the next forward pass in training; `nil` in the warm-up.
  public var layerNormWeight: Double? { schedule.weight(pass: passes.itemInt()) }

  public func callAsFunction(_ x: Tensor) -> Tensor { self(x, mask: nil) }

  public func callAsFunction(_ x: Tensor, mask: Tensor?) -> Tensor {
    guard isTraining else { return batchNorm(x, mask: mask) + x * eta }
    let count = passes.itemInt()
    let isRepeated = Self.isRecomputing
    let weight = schedule.weight(pass: isRepeated ? max(0, count - 1) : count)
    if !isRepeated { withoutGradient { passes.copyInPlace(Tensor([count + 1]).squeezed(0)) } }
    guard let weight else { return layerNorm(x) }
    let batch = batchNorm(x, mask: mask, updating: !isRepeated) + x * eta
    // Without the factor 0 of λ's end, layer norm's parameters would go on to decay.
    if weight == 0 { return batch }
    return layerNorm(x) * weight + batch * (1 - weight)
  }
}

// MARK: Folding

/// A norm that is an affine map a ⊙ x + b of each position in evaluation, and can be folded into a linear map beside it.
public protocol FoldableNormalization: NormalizationLayer {
  /// a and b, [width], float64.
  var affine: (scale: Tensor, shift: Tensor) { get }
}

extension BatchNorm: FoldableNormalization {
  /// a = γ/√(σ² + ε), b = β − γμ/√(σ² + ε).
  public var affine: (scale: Tensor, shift: Tensor) {
    let inverse = (runningVariance.detached().to(.float64) + epsilon).rsqrt()
    let scale = weight.map { $0.detached().to(.float64) * inverse } ?? inverse
    let shift = -(scale * runningMean.detached().to(.float64))
    return (scale, bias.map { shift + $0.detached().to(.float64) } ?? shift)
  }
}

extension ProgressiveRepBatchNorm: FoldableNormalization {
  /// Batch norm's with η added to a.
  public var affine: (scale: Tensor, shift: Tensor) {
    let (scale, shift) = batchNorm.affine
    return (scale + eta.detached().to(.float64), shift)
  }
}

extension FoldableNormalization {
  /// W' = W Diag(a), c' = c + W b: the layer applied to x then gives what it gave for the norm's output. A bias is made where there
  /// was none.
  public func fold(into next: Linear) {
    let (scale, shift) = affine
    withoutGradient {
      let weight = next.weight.detached().to(.float64)
      let moved = weight.matmul(shift.expandedDimension(-1)).squeezed(-1)
      next.bias = (next.bias.map { $0.detached().to(.float64) + moved } ?? moved).to(next.weight.dtype)
      next.weight = (weight * scale).to(next.weight.dtype)
    }
  }

  /// W' = Diag(a) W, c' = a ⊙ c + b: the layer then gives the norm of what it gave.
  public func fold(after previous: Linear) {
    let (weight, bias) = after(previous.weight, previous.bias)
    (previous.weight, previous.bias) = (weight, bias)
  }

  /// The same for a convolution, whose first axis are its output channels.
  public func fold(after previous: Conv2d) {
    let (weight, bias) = after(previous.weight, previous.bias)
    (previous.weight, previous.bias) = (weight, bias)
  }

  /// The same for a convolution along one axis.
  public func fold(after previous: Conv1d) {
    let (weight, bias) = after(previous.weight, previous.bias)
    (previous.weight, previous.bias) = (weight, bias)
  }

  /// A weight [channels, ...] and bias with the norm behind them.
  public func after(_ weight: Tensor, _ bias: Tensor?) -> (weight: Tensor, bias: Tensor) {
    let (scale, shift) = affine
    return withoutGradient {
      let rows = scale.reshaped([-1] + [Int](repeating: 1, count: weight.rank - 1))
      let moved = bias.map { $0.detached().to(.float64) * scale + shift } ?? shift
      return ((weight.detached().to(.float64) * rows).to(weight.dtype), moved.to(weight.dtype))
    }
  }
}

/// A module whose input is read by linear layers alone, so that an affine map before it can be folded into them.
public protocol LinearlyReading: Module {
  var inputLayers: [any LinearLayer] { get }
}

// MARK: Recalibration

/// Replaces the running averages of every batch norm below a model by plain averages over batches, so that none is stale: the last
/// step before folding. Batch norms use the batch meanwhile; everything else is in evaluation, as the model is afterwards.
///
/// - Parameter forward: runs the model on a batch, 0..<batches.
public func recalibrateNormalization(_ model: Module, batches: Int, forward: (Int) throws -> Void) rethrows {
  let norms = model.modules().compactMap { $0.module as? BatchNorm }
  model.eval()
  for norm in norms { norm.recalibratedBatches = 0 }
  defer { for norm in norms { norm.recalibratedBatches = nil } }
  try withoutGradient { for i in 0..<batches { try forward(i) } }
}
