/// Selective S4 (S5; Wang et al. 2023, *Selective Structured State-Spaces for Long-Form Video Understanding*, arXiv 2303.14526): only
/// the informative tokens of a sequence pass through a state-space layer.
///
///     g = S4_mom(x) without gradient,     kept = the K tokens of greatest score by ``TokenSelector``, in temporal order
///     y[kept] = S4(x[kept])
///
/// S4_mom is a copy of the layer itself that follows it slowly (θ̄ ← λθ̄ + (1 − λ)θ after each step of the optimizer), so that the
/// choice sees the whole sequence without attention and its features don't jump. The layer's time, and all that is kept for the
/// backward pass, grow with K; the guide runs forward only.
///
/// As a ``SequenceMixer`` it returns [batch, length, width] with 0 at tokens that were not kept: the residual block around a mixer
/// passes these through unchanged. `Unselected.identity` puts the input there instead, for use without a residual.
/// ``compact(_:_:choice:)`` returns the kept tokens alone, which is what makes the next layers cheaper.
///
/// The choice sees all tokens: there is no causal form. Not to be confused with the S5 of Smith et al. 2022.
public final class SelectiveS4: Module, SequenceMixer, OptimizerStepListener {
  /// What stands at tokens that were not kept.
  public enum Unselected: String, Codable, Sendable, CaseIterable {
    case zero
    case identity
  }

  public struct Configuration: Sendable {
    /// Of the layer that the kept tokens pass through; `isCausal` says whether it scans forwards only.
    public var s4: S4.Configuration
    /// Share of tokens that is dropped.
    public var ratio: Double
    /// λ of the guide.
    public var momentum: Double
    /// Of the straight-through softmax.
    public var temperature: Double
    /// Scores are made of g + x rather than g.
    public var residualGuide: Bool
    public var unselected: Unselected

    public init(
      s4: S4.Configuration, ratio: Double = 0.5, momentum: Double = 0.99, temperature: Double = 1, residualGuide: Bool = false,
      unselected: Unselected = .zero
    ) {
      self.s4 = s4
      self.ratio = ratio
      self.momentum = momentum
      self.temperature = temperature
      self.residualGuide = residualGuide
      self.unselected = unselected
    }
  }

  /// How tokens are chosen.
  public enum Choice {
    /// By the scores of the selector.
    case learned
    /// Uniformly: while pretraining with random masks.
    case random(RandomGenerator)
  }

  public let configuration: Configuration
  @Child public var s4: S4
  @Child public var selector: TokenSelector
  public let guide: EMACopy<S4>

  public var isCausal: Bool { false }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    self.configuration = configuration
    let s4 = S4(configuration.s4, generator: generator)
    var undisturbed = configuration.s4
    undisturbed.dropout = 0
    guide = EMACopy(S4(undisturbed, generator: RandomGenerator(seed: 0)), of: s4, decay: configuration.momentum)
    super.init()
    self.s4 = s4
    selector = TokenSelector(
      width: configuration.s4.width, ratio: configuration.ratio, temperature: configuration.temperature, generator: generator)
  }

  /// The guide takes a step towards the layer.
  public func optimizerDidStep() { guide.update(from: s4) }

  /// Makes the guide equal to the layer again, as at the start.
  public func resetGuide() { guide.reset(to: s4) }

  // MARK: Selection

  /// Guide features of all tokens, [batch, length, width], without gradient.
  public func guideFeatures(_ x: Tensor, mask: Tensor? = nil) -> Tensor {
    withoutGradient {
      let g = guide.module(x.detached(), MixingContext(mask: mask))
      return configuration.residualGuide ? g + x.detached() : g
    }
  }

  /// Which tokens of x [batch, length, width] pass through the layer; never padding.
  public func selection(_ x: Tensor, mask: Tensor? = nil, choice: Choice = .learned) -> TokenSelection {
    // Both see kernels of one length, so that their C̃ (of the low-rank form) belong together.
    for layer in [s4, guide.module] { layer.reserve(length: x.dim(1)) }
    switch choice {
    case .learned: return selector.keep(selector.scores(guideFeatures(x, mask: mask), mask: mask), mask: mask)
    case .random(let generator):
      return selector.keepRandom(batch: x.dim(0), length: x.dim(1), mask: mask, dtype: x.dtype, generator: generator)
    }
  }

  // MARK: Forms

  /// The kept tokens alone: S4(x[kept]), [batch, K, width], and which they are.
  public func compact(_ x: Tensor, _ context: MixingContext = MixingContext(), choice: Choice = .learned) -> (
    output: Tensor, selection: TokenSelection
  ) {
    let selection = selection(x, mask: context.mask, choice: choice)
    return (mix(x, selection), selection)
  }

  /// S4 of the tokens of a selection.
  public func mix(_ x: Tensor, _ selection: TokenSelection) -> Tensor {
    var kept = selection.gather(x)
    if let factor = selection.factor { kept = kept * factor.expandedDimension(-1) }
    return s4(kept, MixingContext(mask: selection.mask))
  }

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    let (y, selection) = compact(x, context)
    return selection.scatter(y, others: configuration.unselected == .identity ? x : nil)
  }

  public func multiplyAdds(length: Int) -> Int {
    let scores = [selector.local, selector.hidden, selector.score].reduce(0) { $0 + $1.multiplyAdds() }
    return s4.multiplyAdds(length: selector.kept(of: length)) + guide.module.multiplyAdds(length: length) + length * scores
  }
}

extension MixerKind {
  public static let selectiveS4 = MixerKind(
    name: "selective_s4", summary: "state space over the informative tokens only (Wang et al. 2023)",
    keys: stateKeys + [
      ConfigurationKey("ratio", .number, default: 0.5, "share of tokens that is dropped"),
      ConfigurationKey("momentum", .number, default: 0.99, "λ: how slowly the guide follows the layer"),
      ConfigurationKey("temperature", .number, default: 1, "of the softmax that stands for the choice in the backward pass"),
      ConfigurationKey("residual_guide", .boolean, default: false, "choose by the guide's features plus the input"),
      ConfigurationKey(
        "unselected", .string, default: "zero", "what stands at dropped tokens", choices: SelectiveS4.Unselected.allCases.map(\.rawValue)),
      ConfigurationKey("bidirectional", .boolean, default: true, "scan the kept tokens backwards as well"),
    ] + diagonalKeys, slowParameters: DiagonalKernel.slowParameters, directions: [.bidirectional]
  ) { site, options, generator in
    var state = try stateConfiguration(site, options, .diagonal)
    state.isCausal = !(options["bidirectional"]?.boolValue ?? true)
    let configuration = SelectiveS4.Configuration(
      s4: state, ratio: options["ratio"]?.doubleValue ?? 0.5, momentum: options["momentum"]?.doubleValue ?? 0.99,
      temperature: options["temperature"]?.doubleValue ?? 1, residualGuide: options["residual_guide"]?.boolValue ?? false,
      unselected: options["unselected"]?.stringValue.flatMap(SelectiveS4.Unselected.init) ?? .zero)
    guard (0..<1).contains(configuration.ratio), (0...1).contains(configuration.momentum), configuration.temperature > 0 else {
      throw ConfigurationError("selective_s4 needs a ratio in 0..<1, a momentum in 0...1 and a positive temperature")
    }
    return SelectiveS4(configuration, generator: generator)
  }
}
