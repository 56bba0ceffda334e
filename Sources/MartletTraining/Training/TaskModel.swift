import Foundation

/// A backbone with the head that a task asks for: pooled classes, or a token at every position.
public final class TaskModel: Module {
  @Child public var backbone: SequenceBackbone
  /// Before the head, with ReLU: the two-layer head of image tasks (Amos et al. 2023).
  @Child(key: "head_hidden") public var headHidden: (any LinearLayer)?
  @Child public var head: any LinearLayer
  public let objective: TaskObjective
  public let pooling: Pooling

  /// - Parameters:
  ///   - headWidth: inner width of a two-layer head; `nil` for a linear one.
  ///   - looksAhead: whether a model that predicts tokens may see all of them: for tasks that don't ask for what comes next.
  /// - Throws: `ConfigurationError` for a configuration that makes no model or does not fit the objective.
  public init(
    _ configuration: BackboneConfiguration, objective: TaskObjective, pooling: Pooling = .mean, headWidth: Int? = nil,
    looksAhead: Bool = false, generator: RandomGenerator
  ) throws {
    guard headWidth ?? 1 > 0 else { throw ConfigurationError("the head's inner width must be positive, got \(headWidth ?? 0)") }
    if case .tokens = objective, !configuration.isCausal, !looksAhead {
      throw ConfigurationError("the task predicts tokens from what precedes them: its model must be causal")
    }
    self.objective = objective
    self.pooling = pooling
    super.init()
    backbone = try SequenceBackbone(configuration, generator: generator)
    headHidden = headWidth.map { Linear(configuration.width, $0, generator: generator) }
    let width = headWidth ?? configuration.width
    switch objective {
    case .classification(let classes): head = Linear(width, classes, generator: generator)
    case .tokens(let vocabulary): head = Linear(width, vocabulary, generator: generator)
    }
  }

  /// The head of features [..., width].
  public func outputs(of features: Tensor) -> Tensor { head(headHidden.map { $0(features).relu() } ?? features) }

  /// [batch, classes] for a classification, [batch, length, vocabulary] for tokens.
  public func callAsFunction(_ inputs: Tensor, mask: Tensor? = nil) -> Tensor {
    let x = backbone(inputs, mask: mask)
    if case .classification = objective { return outputs(of: pooling(x, mask: mask)) }
    return outputs(of: x)
  }

  /// Mean cross-entropy at the asked positions, in nats.
  public func loss(_ batch: Batch) -> Tensor { crossEntropy(self(batch.inputs, mask: batch.mask), batch.targets) }

  /// The model input that a task's data need.
  public static func input(of task: any LearningTask) -> SequenceInput {
    switch task.inputKind {
    case .tokens(let vocabulary, _): .tokens(vocabulary: vocabulary)
    case .continuous(let channels): .continuous(channels: channels)
    }
  }
}

/// Sums over evaluated examples.
public struct EvaluationResult: Sendable {
  public var loss = 0.0
  public var correct = 0
  /// Targets that counted.
  public var count = 0
  /// Input positions seen, padding excluded.
  public var positions = 0
  public var seconds = 0.0

  public init() {}

  public var meanLoss: Double { count > 0 ? loss / Double(count) : .nan }
  public var accuracy: Double { count > 0 ? Double(correct) / Double(count) : .nan }
}

extension TaskModel {
  /// Evaluates the first `limit` examples of a split (all, when `nil`), in evaluation mode without gradients.
  public func evaluate(
    _ task: any LearningTask, _ split: DataSplit, batchSize: Int, limit: Int? = nil
  ) throws -> EvaluationResult {
    let wasTraining = isTraining
    eval()
    defer { train(wasTraining) }
    return try withoutGradient {
      var result = EvaluationResult()
      var index = 0
      while index * batchSize < limit ?? Int.max, let batch = try task.evaluationBatch(split, index: index, size: batchSize) {
        let start = ContinuousClock.now
        let logits = self(batch.inputs, mask: batch.mask)
        let wanted = batch.targets.count
        let asked = batch.targets .!= ignoredTarget
        let count = asked.to(.int64).sum().itemInt()
        result.loss += crossEntropy(logits, batch.targets).item() * Double(count)
        result.seconds += (ContinuousClock.now - start).seconds
        result.correct += ((logits.argmax(axis: -1) .== batch.targets) .& asked).to(.int64).sum().itemInt()
        result.count += count
        result.positions += batch.mask?.to(.int64).sum().itemInt() ?? batch.inputs.dim(0) * batch.inputs.dim(1)
        index += 1
        if wanted == 0 { break }
      }
      guard result.count > 0 else { throw TensorError("the \(split.rawValue) split of \(task.name) has no examples to evaluate") }
      return result
    }
  }
}

extension Duration {
  var seconds: Double { Double(components.seconds) + Double(components.attoseconds) * 1e-18 }
}

/// Folds every norm of a trained model into the linear layers beside it; see ``foldNormalization(_:heads:)``. A classifier must pool by a
/// mean or one position.
@discardableResult
public func foldNormalization(_ model: TaskModel) throws -> Int {
  if case .classification = model.objective, model.pooling == .max {
    throw TensorError("final_norm can't be folded through a pooling by maxima")
  }
  return try foldNormalization(model.backbone, heads: [model.head])
}
