@_exported import Martlet

/// Part of a data set.
public enum DataSplit: String, Sendable, CaseIterable, Codable {
  case train
  case validation
  case test
}

/// What a model receives at each position.
public enum InputKind: Equatable, Sendable, Codable {
  /// Integer ids below `vocabulary`, [batch, length] int64. `padding` is the id of filling positions, if any.
  case tokens(vocabulary: Int, padding: Int?)
  /// Real vectors, [batch, length, channels] float32.
  case continuous(channels: Int)
}

/// What a model predicts.
public enum TaskObjective: Equatable, Sendable, Codable {
  /// One class for the whole sequence; targets [batch] int64. Metric: accuracy.
  case classification(classes: Int)
  /// The token at some positions (the next one in language modelling); targets [batch, length] int64, −100 where nothing is
  /// asked. The model must be causal. Metrics: accuracy at the asked positions, cross-entropy in nats and bits per token.
  case tokens(vocabulary: Int)
}

/// Some examples. Tensors are on the CPU.
public struct Batch: @unchecked Sendable {
  /// [batch, length] int64 or [batch, length, channels] float32, as the task's `InputKind` says.
  public var inputs: Tensor
  /// [batch, length] bool, true at real positions; `nil` when all are.
  public var mask: Tensor?
  /// [batch] or [batch, length] int64, as the task's `TaskObjective` says.
  public var targets: Tensor

  public init(inputs: Tensor, mask: Tensor? = nil, targets: Tensor) {
    self.inputs = inputs
    self.mask = mask
    self.targets = targets
  }
}

/// Data and objective of one problem.
///
/// Batches are pure functions of (seed, step), so that every arm of a comparison sees the same data in the same order and an
/// interrupted run goes on where it stopped without a record of the reader's state.
public protocol LearningTask: AnyObject, Sendable {
  /// Short name for tables, e.g. `listops`.
  var name: String { get }
  /// One sentence for the report: what is predicted from what, sizes, source.
  var summary: String { get }
  var inputKind: InputKind { get }
  var objective: TaskObjective { get }
  /// The longest input in positions.
  var length: Int { get }

  /// Number of examples of a split.
  func count(_ split: DataSplit) -> Int

  /// The batch of a training step: examples in an order shuffled anew each epoch, determined by `seed` alone. Every batch
  /// has `size` examples; epochs follow one another without a gap.
  func trainingBatch(step: Int, size: Int, seed: UInt64) throws -> Batch

  /// Examples `index * size ..< (index + 1) * size` of a split in their own order (fewer in the last); `nil` past the end.
  func evaluationBatch(_ split: DataSplit, index: Int, size: Int) throws -> Batch?
}
