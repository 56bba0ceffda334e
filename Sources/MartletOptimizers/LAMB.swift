/// LAMB (You et al. 2020, *Large Batch Optimization for Deep Learning: Training BERT in 76 minutes*, algorithm 2): Adam's
/// direction, rescaled for each parameter to the parameter's own norm.
///
///     r = m̂ / (√v̂ + ε),   u = r + λ θ          (m̂, v̂ as in Adam, with bias correction)
///     θ ← θ − η · φ(‖θ‖) / ‖u‖ · u              (the ratio is 1 where either norm is 0)
///
/// φ limits the norm to `minimumNorm...maximumNorm`. State: `exp_avg` and `exp_avg_sq`, each as large as the parameter.
public final class LAMB: GroupedOptimizer {
  public struct Options: OptimizerOptions {
    public var beta1 = 0.9
    public var beta2 = 0.999
    public var epsilon = 1e-6
    public var weightDecay = 0.01
    /// φ's bounds; `nil`: none, φ(z) = z.
    public var minimumNorm: Double?
    public var maximumNorm: Double?

    public init(
      beta1: Double = 0.9, beta2: Double = 0.999, epsilon: Double = 1e-6, weightDecay: Double = 0.01, minimumNorm: Double? = nil,
      maximumNorm: Double? = nil
    ) {
      self.beta1 = beta1
      self.beta2 = beta2
      self.epsilon = epsilon
      self.weightDecay = weightDecay
      self.minimumNorm = minimumNorm
      self.maximumNorm = maximumNorm
    }
  }

  public let options: Options

  public init(_ groups: [ParameterGroup], learningRate: Double, _ options: Options = Options()) {
    self.options = options
    super.init(groups, learningRate: learningRate)
  }

  override public var optionNames: Set<String> { ["beta1", "beta2", "epsilon"] }

  override public func makeState(for parameter: Tensor, in group: ParameterGroup) -> [String: Tensor] {
    let like = parameter.detached()
    return ["exp_avg": .zeros(like: like), "exp_avg_sq": .zeros(like: like)]
  }

  override public func update(_ bundle: Bundle) {
    let beta1 = bundle.option("beta1", options.beta1)
    let beta2 = bundle.option("beta2", options.beta2)
    let decay = bundle.group.weightDecay ?? options.weightDecay
    let means = bundle.state("exp_avg")
    let squares = bundle.state("exp_avg_sq")
    ForEach.interpolate(means, towards: bundle.gradients, weight: 1 - beta1)
    ForEach.scale(squares, by: beta2)
    ForEach.addProduct(squares, bundle.gradients, bundle.gradients, scale: 1 - beta2)
    let denominators = ForEach.roots(squares)
    ForEach.divide(denominators, by: (1 - power(beta2, bundle.step)).squareRoot())
    ForEach.add(denominators, bundle.option("epsilon", options.epsilon))
    let updates = ForEach.quotient(means, denominators)
    ForEach.divide(updates, by: 1 - power(beta1, bundle.step))
    if decay != 0 { ForEach.add(updates, bundle.parameters, scale: decay) }
    // The ratios stay tensors: reading them would stop a GPU at every step.
    var norms = stacked(ForEach.norms(bundle.parameters))
    if options.minimumNorm != nil || options.maximumNorm != nil {
      norms = norms.clamped(min: options.minimumNorm, max: options.maximumNorm)
    }
    let lengths = stacked(ForEach.norms(updates))
    let ratios = select((norms .> 0) .& (lengths .> 0), norms / lengths, Tensor.ones(like: norms))
    ForEach.multiply(updates, by: updates.indices.map { ratios[$0] })
    ForEach.add(bundle.parameters, updates, scale: -bundle.learningRate)
  }
}
