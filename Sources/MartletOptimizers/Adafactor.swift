/// Adafactor (Shazeer & Stern 2018, *Adafactor: Adaptive Learning Rates with Sublinear Memory Cost*, algorithms 4 and 5):
/// the second moments of a matrix are kept as one mean per row and one per column.
///
///     β̂ₜ = 1 − t^γ                                      (γ = −0.8)
///     R ← β̂ R + (1 − β̂) mean_columns(g² + ε₁),   C likewise over rows
///     v = R Cᵀ / mean(R)                                (rank < 2: v itself is kept)
///     u = g / √v,   u ← u / max(1, RMS(u) / d)
///     θ ← θ − ρₜ · max(ε₂, RMS(θ)) · u                  (ρₜ = min(η, 1 / √t))
///
/// The paper's relative step is η = 0.01, `relativeStep`; with `relativeStep` off, ρₜ = η. `scaleByParameter` off drops the factor
/// max(ε₂, RMS(θ)). With `beta1` the update (learning rate included, as in the authors' code) is averaged: m ← β₁ m + (1 − β₁) Δ.
/// Weight decay is decoupled: θ ← (1 − η λ) θ.
///
/// State: `exp_avg_sq_row` [..., n] and `exp_avg_sq_col` [..., m] of a tensor [..., n, m], or `exp_avg_sq`; `exp_avg` with `beta1`.
public final class Adafactor: GroupedOptimizer {
  public struct Options: OptimizerOptions {
    /// β₁; `nil`: no first moment.
    public var beta1: Double?
    /// γ
    public var decayExponent = -0.8
    /// ε₁
    public var epsilon1 = 1e-30
    /// ε₂
    public var epsilon2 = 1e-3
    /// d
    public var clipThreshold = 1.0
    public var relativeStep = true
    public var scaleByParameter = true
    public var weightDecay = 0.0

    public init(
      beta1: Double? = nil, decayExponent: Double = -0.8, epsilon1: Double = 1e-30, epsilon2: Double = 1e-3,
      clipThreshold: Double = 1, relativeStep: Bool = true, scaleByParameter: Bool = true, weightDecay: Double = 0
    ) {
      self.beta1 = beta1
      self.decayExponent = decayExponent
      self.epsilon1 = epsilon1
      self.epsilon2 = epsilon2
      self.clipThreshold = clipThreshold
      self.relativeStep = relativeStep
      self.scaleByParameter = scaleByParameter
      self.weightDecay = weightDecay
    }
  }

  public let options: Options

  private static let lerpInPlace = Operator("aten::lerp_", "Scalar")
  private static let rsqrtInPlace = Operator("aten::rsqrt_")

  public init(_ groups: [ParameterGroup], learningRate: Double = 1e-2, _ options: Options = Options()) {
    self.options = options
    super.init(groups, learningRate: learningRate)
  }

  override public func makeState(for parameter: Tensor, in group: ParameterGroup) -> [String: Tensor] {
    var state: [String: Tensor] = [:]
    let shape = parameter.shape
    func zeros(_ shape: [Int]) -> Tensor { .zeros(shape, dtype: parameter.dtype, device: parameter.device) }
    if shape.count >= 2 {
      state["exp_avg_sq_row"] = zeros(Array(shape.dropLast()))
      state["exp_avg_sq_col"] = zeros(Array(shape.dropLast(2)) + [shape[shape.count - 1]])
    } else {
      state["exp_avg_sq"] = zeros(shape)
    }
    if options.beta1 != nil { state["exp_avg"] = zeros(shape) }
    return state
  }

  /// The root of the mean square, a scalar tensor.
  private func rms(_ x: Tensor) -> Tensor { x.norm() * (1 / Double(x.count).squareRoot()) }

  override public func update(_ bundle: Bundle) {
    for (i, (parameter, gradient)) in zip(bundle.parameters, bundle.gradients).enumerated() where parameter.count > 0 {
      let state = bundle.state(of: i)
      let freshness = power(Double(bundle.step), options.decayExponent)  // 1 − β̂ₜ
      let rate = bundle.learningRate
      let relative = options.relativeStep ? min(rate, 1 / Double(bundle.step).squareRoot()) : rate
      var size = Tensor.full(like: parameter.norm(), relative)
      if options.scaleByParameter { size = rms(parameter).clamped(min: options.epsilon2) * relative }

      let update = secondMoment(of: gradient, state, freshness)
      Self.rsqrtInPlace.run(.tensor(update))
      update.multiplyInPlace(gradient)
      let clip = (rms(update) * (1 / options.clipThreshold)).clamped(min: 1)
      update.multiplyInPlace(size / clip)

      let decay = bundle.group.weightDecay ?? options.weightDecay
      if decay != 0 { parameter.multiplyInPlace(1 - rate * decay) }
      if let beta1 = options.beta1, let mean = state["exp_avg"] {
        Self.lerpInPlace.run(.tensor(mean), .tensor(update), .double(1 - beta1))
        parameter.addInPlace(mean, scale: -1)
      } else {
        parameter.addInPlace(update, scale: -1)
      }
    }
  }

  /// Brings the running second moments up to date; returns v, new memory of the gradient's shape.
  private func secondMoment(of gradient: Tensor, _ state: [String: Tensor], _ freshness: Double) -> Tensor {
    func mix(_ moment: Tensor, _ new: Tensor) { Self.lerpInPlace.run(.tensor(moment), .tensor(new), .double(freshness)) }
    if let rows = state["exp_avg_sq_row"], let columns = state["exp_avg_sq_col"] {
      let squares = gradient.square() + options.epsilon1
      mix(rows, squares.mean(axis: -1))  // [..., n]
      mix(columns, squares.mean(axis: -2))  // [..., m]
      let share = rows / rows.mean(axis: -1, keepDims: true)
      return share.expandedDimension(-1) * columns.expandedDimension(-2)  // [..., n, m]
    }
    let moment = state["exp_avg_sq"]!
    mix(moment, gradient.square() + options.epsilon1)
    return moment.copy()
  }
}
