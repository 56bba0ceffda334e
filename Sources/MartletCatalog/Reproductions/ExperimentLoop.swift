import Foundation
import MartletTraining

/// The plain training that the sheets' experiments share: AdamW at a constant learning rate for a fixed number of steps, without
/// clipping, averages or early stopping, so that an arm is told by its model, learning rate and number of steps alone.
struct ExperimentLoop {
  var steps: Int
  var learningRate: Double
  var weightDecay = 0.01
  /// Suffixes of parameters that learn at no more than `slowLearningRate` and don't decay (S4's state matrices).
  var slowParameters: [String] = []
  var slowLearningRate = 1e-3

  /// - Parameter loss: of the batch of a step, a scalar.
  /// - Throws: `TensorError` when the loss is not a finite number; what `loss` throws.
  func train(_ model: Module, loss: (_ step: Int) throws -> Tensor) throws {
    let groups = ParameterGroup.split(
      model.trainableParameters(), decay: weightDecay,
      overrides: slowParameters.map { .init($0, learningRate: min(learningRate, slowLearningRate), weightDecay: 0) })
    let optimizer = AdamW(groups, learningRate: learningRate)
    let listeners = model.optimizerStepListeners()
    model.train()
    for step in 0..<steps {
      let value = try loss(step)
      guard value.item().isFinite else {
        throw TensorError("the experiment's training diverged: the loss of step \(step) is \(value.item())")
      }
      value.backward()
      optimizer.step()
      optimizer.zeroGradients()
      for listener in listeners { listener.optimizerDidStep() }
    }
    model.eval()
  }

  /// The same on a task's training batches, in the order of a seed.
  func train(_ model: TaskModel, on task: any LearningTask, batchSize: Int, seed: Int) throws {
    try train(model) { try model.loss(task.trainingBatch(step: $0, size: batchSize, seed: UInt64(seed))) }
  }
}

/// Runs an experiment on one thread. Its products are so small that sharing them costs more than it saves (several times as much
/// processor time on a busy machine), and figures don't depend on the number of cores.
func onOneThread<Result>(_ body: () throws -> Result) rethrows -> Result {
  let before = Engine.threads
  Engine.threads = 1
  defer { Engine.threads = before }
  return try body()
}

/// The mean of an arm's figures over its seeds.
func mean(_ figures: [Double]) -> Double { figures.reduce(0, +) / Double(figures.count) }

/// `0.125` for lines of progress.
func decimals(_ figure: Double, _ places: Int = 3) -> String { String(format: "%.\(places)f", figure) }

extension [Double] {
  /// The figures of single seeds beside their mean, under names that end in the seed.
  func metrics(_ name: String, seeds: [Int]) -> [String: Double] {
    var metrics = [name: mean(self)]
    for (seed, figure) in zip(seeds, self) { metrics["\(name)_seed_\(seed)"] = figure }
    return metrics
  }
}

/// Wall-clock seconds since an instant.
func seconds(since start: ContinuousClock.Instant) -> Double {
  let elapsed = (ContinuousClock.now - start).components
  return Double(elapsed.seconds) + Double(elapsed.attoseconds) * 1e-18
}
