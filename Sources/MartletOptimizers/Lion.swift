/// Lion (Chen et al. 2023, *Symbolic Discovery of Optimization Algorithms*, algorithm 2): only the sign of an interpolation
/// between momentum and gradient is applied, so every element moves by the learning rate.
///
///     c = β₁ m + (1 − β₁) g
///     θ ← θ − η (sign(c) + λ θ)
///     m ← β₂ m + (1 − β₂) g
///
/// State: `exp_avg` (m), as large as the parameter: half of Adam's. The paper advises a learning rate 3–10 times smaller than
/// AdamW's and a decay as much larger.
public final class Lion: GroupedOptimizer {
  public struct Options: OptimizerOptions {
    public var beta1 = 0.9
    public var beta2 = 0.99
    public var weightDecay = 0.0

    public init(beta1: Double = 0.9, beta2: Double = 0.99, weightDecay: Double = 0) {
      self.beta1 = beta1
      self.beta2 = beta2
      self.weightDecay = weightDecay
    }
  }

  public let options: Options

  public init(_ groups: [ParameterGroup], learningRate: Double, _ options: Options = Options()) {
    self.options = options
    super.init(groups, learningRate: learningRate)
  }

  override public var optionNames: Set<String> { ["beta1", "beta2"] }

  override public func makeState(for parameter: Tensor, in group: ParameterGroup) -> [String: Tensor] {
    ["exp_avg": .zeros(like: parameter.detached())]
  }

  override public func update(_ bundle: Bundle) {
    let decay = bundle.group.weightDecay ?? options.weightDecay
    let momentum = bundle.state("exp_avg")
    let update = ForEach.interpolated(momentum, bundle.gradients, weight: 1 - bundle.option("beta1", options.beta1))
    ForEach.takeSign(update)
    if decay != 0 { ForEach.scale(bundle.parameters, by: 1 - bundle.learningRate * decay) }
    ForEach.add(bundle.parameters, update, scale: -bundle.learningRate)
    ForEach.interpolate(momentum, towards: bundle.gradients, weight: 1 - bundle.option("beta2", options.beta2))
  }
}
