/// Stochastic gradient descent with momentum (Polyak 1964; Nesterov 1983 in the form of Sutskever et al. 2013, *On the
/// importance of initialization and momentum in deep learning*, with the learning rate outside of the velocity).
///
///     d = g + λ θ
///     b ← μ b + (1 − τ) d          (b ← d in the first step)
///     θ ← θ − η b                  (Nesterov: θ ← θ − η (d + μ b))
///
/// State: `momentum_buffer`, as large as the parameter; none without momentum. Nothing is allocated in a step.
public final class SGD: GroupedOptimizer {
  public struct Options: OptimizerOptions {
    /// μ
    public var momentum = 0.0
    /// τ
    public var dampening = 0.0
    public var nesterov = false
    /// λ, added to the gradient
    public var weightDecay = 0.0

    public init(momentum: Double = 0, dampening: Double = 0, nesterov: Bool = false, weightDecay: Double = 0) {
      self.momentum = momentum
      self.dampening = dampening
      self.nesterov = nesterov
      self.weightDecay = weightDecay
    }
  }

  public let options: Options

  public init(_ groups: [ParameterGroup], learningRate: Double, _ options: Options = Options()) {
    require(
      !options.nesterov || (options.momentum > 0 && options.dampening == 0),
      "SGD: Nesterov's form needs momentum > 0 and dampening 0, got \(options.momentum) and \(options.dampening)")
    self.options = options
    super.init(groups, learningRate: learningRate)
  }

  override public var optionNames: Set<String> { ["momentum", "dampening"] }

  override public func makeState(for parameter: Tensor, in group: ParameterGroup) -> [String: Tensor] {
    let momentum = group.options["momentum"] ?? options.momentum
    return momentum == 0 ? [:] : ["momentum_buffer": .zeros(like: parameter.detached())]
  }

  override public func update(_ bundle: Bundle) {
    let momentum = bundle.option("momentum", options.momentum)
    let decay = bundle.group.weightDecay ?? options.weightDecay
    let rate = bundle.learningRate
    // d = g + λθ is never formed: its two parts are added one after the other.
    if momentum == 0 {
      ForEach.scale(bundle.parameters, by: 1 - rate * decay)
      ForEach.add(bundle.parameters, bundle.gradients, scale: -rate)
      return
    }
    let buffers = bundle.state("momentum_buffer")
    let share = bundle.step == 1 ? 1 : 1 - bundle.option("dampening", options.dampening)
    ForEach.scale(buffers, by: momentum)
    ForEach.add(buffers, bundle.gradients, scale: share)
    if decay != 0 { ForEach.add(buffers, bundle.parameters, scale: share * decay) }
    if options.nesterov {
      ForEach.scale(bundle.parameters, by: 1 - rate * decay)
      ForEach.add(bundle.parameters, bundle.gradients, scale: -rate)
      ForEach.add(bundle.parameters, buffers, scale: -rate * momentum)
    } else {
      ForEach.add(bundle.parameters, buffers, scale: -rate)
    }
  }
}
