import Foundation

/// A task and a model as a training problem.
public final class TaskProblem: TrainingProblem {
  public let task: any LearningTask
  public let taskModel: TaskModel
  public let batchSize: Int
  public let seed: UInt64
  /// Examples of the validation split in one evaluation.
  public let evaluationExamples: Int
  /// Batches before the first step, when another phase has used the data's beginning.
  public let firstBatch: Int

  public var model: Module { taskModel }

  public init(
    _ task: any LearningTask, _ model: TaskModel, batchSize: Int, seed: UInt64, evaluationExamples: Int = 512, firstBatch: Int = 0
  ) {
    self.task = task
    taskModel = model
    self.batchSize = batchSize
    self.seed = seed
    self.evaluationExamples = evaluationExamples
    self.firstBatch = firstBatch
  }

  public func loss(batch index: Int) throws -> (loss: Tensor, positions: Int) {
    let batch = try task.trainingBatch(step: firstBatch + index, size: batchSize, seed: seed)
    return (taskModel.loss(batch), batch.inputs.dim(0) * batch.inputs.dim(1))
  }

  public func evaluate() throws -> [String: Double] {
    try metrics(taskModel.evaluate(task, .validation, batchSize: batchSize, limit: evaluationExamples))
  }

  /// The metrics of an evaluation, under the names of `MetricName`.
  public func metrics(_ result: EvaluationResult) -> [String: Double] {
    var metrics = [MetricName.loss: result.meanLoss, MetricName.accuracy: result.accuracy]
    if isByteModel { metrics[MetricName.bitsPerByte] = result.meanLoss / log(2) }
    return metrics
  }

  /// True for next-byte prediction, which is measured in bits per byte.
  public var isByteModel: Bool { task is ByteTextTask }
}

/// Self-pretraining on a task's inputs as a training problem.
public final class PretrainingProblem: TrainingProblem {
  public let task: any LearningTask
  public let pretraining: SelfPretraining
  public let batchSize: Int
  public let seed: UInt64
  public let evaluationExamples: Int

  public var model: Module { pretraining }

  public init(
    _ task: any LearningTask, _ pretraining: SelfPretraining, batchSize: Int, seed: UInt64, evaluationExamples: Int = 256
  ) {
    self.task = task
    self.pretraining = pretraining
    self.batchSize = batchSize
    self.seed = seed
    self.evaluationExamples = evaluationExamples
  }

  public func loss(batch index: Int) throws -> (loss: Tensor, positions: Int) {
    let batch = try task.trainingBatch(step: index, size: batchSize, seed: seed)
    // A mask of its own each time a batch is read, and the same again after an interruption.
    let generator = RandomGenerator(seed: seed &* 0x9E37_79B9_7F4A_7C15 &+ UInt64(index))
    return (pretraining.loss(batch, generator: generator), batch.inputs.dim(0) * batch.inputs.dim(1))
  }

  public func evaluate() throws -> [String: Double] {
    pretraining.eval()
    defer { pretraining.train() }
    return try withoutGradient {
      var sum = 0.0
      var batches = 0
      while batches * batchSize < evaluationExamples,
        let batch = try task.evaluationBatch(.validation, index: batches, size: batchSize)
      {
        sum += pretraining.loss(batch, generator: RandomGenerator(seed: UInt64(batches))).item()
        batches += 1
      }
      return batches > 0 ? [MetricName.loss: sum / Double(batches)] : [:]
    }
  }
}
