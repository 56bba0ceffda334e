import Foundation

/// What a model is asked while it pretrains on its own task's inputs.
public enum DenoisingObjective: Sendable, Equatable, Codable {
  /// Each position is hidden with probability `ratio` (or in spans of `span` positions) and must be restored: every masked
  /// token becomes the `<mask>` id; masked values become 0 beside a channel that marks them. For bidirectional models, though
  /// causal ones can be asked as well.
  case masked(ratio: Double, span: Int = 1)
  /// The next position from those before. For causal models only.
  case causal
}

/// Self-pretraining (Amos et al. 2023, *Never Train from Scratch*, arXiv 2310.02980): a denoising objective on nothing but the
/// downstream training inputs, then fine-tuning of all weights with a fresh head. Labels are not read.
///
/// The objective is cross-entropy over tokens, or L1 on real values, at the asked positions only.
public final class SelfPretraining: Module {
  @Child public var backbone: SequenceBackbone
  @Child public var head: any LinearLayer
  public let objective: DenoisingObjective
  /// The task's own input, before the mask's id or channel is added.
  public let input: SequenceInput

  /// - Parameter configuration: of the downstream model; the mask's id or channel is added here.
  /// - Throws: `ConfigurationError` for a bidirectional model under the causal objective, or a ratio outside 0..<1.
  public init(_ configuration: BackboneConfiguration, objective: DenoisingObjective, generator: RandomGenerator) throws {
    self.objective = objective
    input = configuration.input
    super.init()
    var extended = configuration
    switch objective {
    case .causal:
      guard configuration.isCausal else {
        throw ConfigurationError("causal self-pretraining needs a causal model; a bidirectional one would see the answer")
      }
    case .masked(let ratio, let span):
      guard ratio > 0, ratio < 1, span > 0 else {
        throw ConfigurationError("masked self-pretraining needs a ratio in 0..<1 and a positive span, got \(ratio) and \(span)")
      }
      switch configuration.input {
      case .tokens(let vocabulary): extended.input = .tokens(vocabulary: vocabulary + 1)
      case .continuous(let channels): extended.input = .continuous(channels: channels + 1)
      }
    }
    backbone = try SequenceBackbone(extended, generator: generator)
    switch input {
    case .tokens(let vocabulary): head = Linear(configuration.width, vocabulary, generator: generator)
    case .continuous(let channels): head = Linear(configuration.width, channels, generator: generator)
    }
  }

  /// The mean denoising loss of a batch's inputs; its targets are never looked at.
  ///
  /// - Parameter generator: draws the mask.
  public func loss(_ batch: Batch, generator: RandomGenerator) -> Tensor {
    switch objective {
    case .causal: return causalLoss(batch)
    case .masked(let ratio, let span): return maskedLoss(batch, hidden: drawMask(batch, ratio: ratio, span: span, generator: generator))
    }
  }

  /// [batch, length] bool, true at hidden positions, real ones only; at least one a batch.
  public func drawMask(_ batch: Batch, ratio: Double, span: Int, generator: RandomGenerator) -> Tensor {
    let (b, l) = (batch.inputs.dim(0), batch.inputs.dim(1))
    var hidden: Tensor
    if span == 1 {
      hidden = Tensor.random([b, l], generator: generator) .< ratio
    } else {
      // ⌊ρL/s⌋ whole spans, chosen among the L/s aligned ones: they can't overlap.
      let places = max(1, l / span)
      let wanted = max(1, min(places, Int(ratio * Double(l) / Double(span))))
      let order = Tensor.random([b, places], generator: generator)
      let threshold = order.sorted(axis: -1).values.narrowed(axis: 1, start: wanted - 1, length: 1)
      hidden = (order .<= threshold).repeated(span, axis: 1)
      hidden = hidden.dim(1) >= l ? hidden[.all, ..<l] : hidden.padded([0, l - hidden.dim(1)])
    }
    if let mask = batch.mask { hidden = hidden .& mask }
    if hidden.any().item() == 0 { hidden[0, 0] = Tensor(1).to(.bool) }
    return hidden
  }

  /// Restores what `hidden` covers.
  public func maskedLoss(_ batch: Batch, hidden: Tensor) -> Tensor {
    switch input {
    case .tokens(let vocabulary):
      let corrupted = batch.inputs.maskedFill(hidden, Double(vocabulary))
      let logits = head(backbone(corrupted, mask: batch.mask))
      return crossEntropy(logits, batch.inputs.maskedFill(.!hidden, Double(ignoredTarget)))
    case .continuous:
      let marks = hidden.expandedDimension(-1).to(batch.inputs.dtype)
      let corrupted = concatenated([batch.inputs * (1.0 - marks), marks], axis: -1)
      let restored = head(backbone(corrupted, mask: batch.mask))
      let error = (restored - batch.inputs).abs() * marks
      return error.sum() / (marks.sum() * Double(batch.inputs.dim(-1)))
    }
  }

  private func causalLoss(_ batch: Batch) -> Tensor {
    let length = batch.inputs.dim(1)
    let prediction = head(backbone(batch.inputs, mask: batch.mask)).narrowed(axis: 1, start: 0, length: length - 1)
    let next = batch.inputs.narrowed(axis: 1, start: 1, length: length - 1)
    let real = batch.mask?.narrowed(axis: 1, start: 1, length: length - 1)
    switch input {
    case .tokens:
      return crossEntropy(prediction, real.map { next.maskedFill(.!$0, Double(ignoredTarget)) } ?? next)
    case .continuous:
      guard let real else { return meanAbsoluteError(prediction, next) }
      let weights = real.expandedDimension(-1).to(next.dtype)
      return ((prediction - next).abs() * weights).sum() / (weights.sum() * Double(next.dim(-1)))
    }
  }

  /// Copies the body into a downstream model: everything but the heads, without the mask's row or column.
  ///
  /// - Throws: `LoadingError` when the bodies differ in anything else.
  public func transfer(to model: TaskModel) throws {
    var state = backbone.stateDictionary()
    if case .masked = objective {
      switch input {
      case .tokens(let vocabulary): state["embedding.weight"] = state["embedding.weight"]!.narrowed(axis: 0, start: 0, length: vocabulary)
      case .continuous(let channels): state["input.weight"] = state["input.weight"]!.narrowed(axis: 1, start: 0, length: channels)
      }
    }
    try model.backbone.load(state)
  }

  /// The paper's masking ratio for a kind of input: a tenth of symbols, half of pixels.
  public static func defaultRatio(for input: SequenceInput) -> Double {
    switch input {
    case .tokens(let vocabulary) where vocabulary < 64: 0.10
    case .tokens: 0.15
    case .continuous: 0.5
    }
  }
}
