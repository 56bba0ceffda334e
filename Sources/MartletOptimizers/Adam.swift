/// Adam (Kingma & Ba 2015, *Adam: A Method for Stochastic Optimization*, algorithm 1), with weight decay added to the
/// gradient; AdamW (Loshchilov & Hutter 2019, *Decoupled Weight Decay Regularization*, algorithm 2) is the subclass.
///
///     m ← β₁ m + (1 − β₁) g
///     v ← β₂ v + (1 − β₂) g²
///     θ ← θ − η / (1 − β₁ᵗ) · m / (√(v / (1 − β₂ᵗ)) + ε)
///
/// State: `exp_avg` (m) and `exp_avg_sq` (v), each as large as the parameter and of its dtype. Float32 parameters on the CPU
/// take the fused kernel `martlet::adamw_step`, which reads and writes everything once; others plain operators.
public class Adam: GroupedOptimizer {
  public struct Options: OptimizerOptions {
    public var beta1 = 0.9
    public var beta2 = 0.999
    public var epsilon = 1e-8
    public var weightDecay = 0.0

    public init(beta1: Double = 0.9, beta2: Double = 0.999, epsilon: Double = 1e-8, weightDecay: Double = 0) {
      self.beta1 = beta1
      self.beta2 = beta2
      self.epsilon = epsilon
      self.weightDecay = weightDecay
    }
  }

  public let options: Options

  /// False: plain operators everywhere, for comparison with the fused kernel.
  public var isFused = true

  private static let fusedStep = Operator("martlet::adamw_step")

  public init(_ groups: [ParameterGroup], learningRate: Double, _ options: Options = Options()) {
    self.options = options
    super.init(groups, learningRate: learningRate)
  }

  override public var optionNames: Set<String> { ["beta1", "beta2", "epsilon"] }
  override public var scalesGradients: Bool { true }

  override public func makeState(for parameter: Tensor, in group: ParameterGroup) -> [String: Tensor] {
    let like = parameter.detached()
    return ["exp_avg": .zeros(like: like), "exp_avg_sq": .zeros(like: like)]
  }

  /// Whether λ shrinks the parameters by itself rather than through the gradient.
  var decouplesDecay: Bool { false }

  override public func update(_ bundle: Bundle) {
    let beta1 = bundle.option("beta1", options.beta1)
    let beta2 = bundle.option("beta2", options.beta2)
    let epsilon = bundle.option("epsilon", options.epsilon)
    let rate = bundle.learningRate
    var decay = bundle.group.weightDecay ?? options.weightDecay
    var gradients = bundle.gradients
    var scale = bundle.gradientScale
    if !decouplesDecay && decay != 0 {
      if scale != 1 { gradients = ForEach.scaled(gradients, scale) }
      gradients = ForEach.sum(gradients, bundle.parameters, scale: decay)
      scale = 1
      decay = 0
    }
    let means = bundle.state("exp_avg")
    let squares = bundle.state("exp_avg_sq")
    let parameters = bundle.parameters
    if isFused && parameters[0].dtype == .float32 && parameters[0].device == .cpu && parameters.allSatisfy(\.isContiguous) {
      Self.fusedStep.run(
        .tensors(parameters), .tensors(gradients), .tensors(means), .tensors(squares), .double(rate), .double(beta1), .double(beta2),
        .double(epsilon), .double(decay), .int(bundle.step), .double(scale))
      return
    }
    if scale != 1 { gradients = ForEach.scaled(gradients, scale) }
    if decay != 0 { ForEach.scale(parameters, by: 1 - rate * decay) }
    ForEach.interpolate(means, towards: gradients, weight: 1 - beta1)
    ForEach.scale(squares, by: beta2)
    ForEach.addProduct(squares, gradients, gradients, scale: 1 - beta2)
    let denominators = ForEach.roots(squares)
    ForEach.divide(denominators, by: (1 - power(beta2, bundle.step)).squareRoot())
    ForEach.add(denominators, epsilon)
    ForEach.addQuotient(parameters, means, denominators, scale: -rate / (1 - power(beta1, bundle.step)))
  }
}

/// Adam whose weight decay shrinks the parameters directly: θ ← (1 − η λ) θ before the update.
public final class AdamW: Adam {
  /// λ is 0.01 unless given.
  override public init(_ groups: [ParameterGroup], learningRate: Double, _ options: Options = Options(weightDecay: 0.01)) {
    super.init(groups, learningRate: learningRate, options)
  }

  override var decouplesDecay: Bool { true }
}
