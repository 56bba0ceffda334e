import Foundation
import Testing

@testable import MartletTraining

/// A folder of its own, removed afterwards.
func withFolder<Result>(_ body: (URL) throws -> Result) throws -> Result {
  let folder = FileManager.default.temporaryDirectory.appendingPathComponent("martlet-\(UUID().uuidString)")
  try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
  defer { try? FileManager.default.removeItem(at: folder) }
  return try body(folder)
}

@Suite struct TrainerTests {
  private static func task() throws -> any LearningTask { try TaskSpecification("listops?small&examples=64&heldout=32").make() }

  private static func problem(_ task: any LearningTask, dropout: Double = 0.1, batchSize: Int = 8, mixer: String = "gla") throws
    -> TaskProblem
  {
    let configuration = BackboneConfiguration(
      input: TaskModel.input(of: task), width: 16, layers: 2, heads: 2, mixers: [MixerChoice(mixer)], isCausal: false,
      positions: .sinusoidal, dropout: dropout, length: task.length)
    let model = try TaskModel(configuration, objective: task.objective, generator: RandomGenerator(seed: 3))
    return TaskProblem(task, model, batchSize: batchSize, seed: 1, evaluationExamples: 16)
  }

  private static func configuration(_ folder: URL?, steps: Int = 12) -> TrainerConfiguration {
    TrainerConfiguration(
      optimizer: .init(.adamw(.init()), learningRate: 3e-3), budget: .steps(steps), accumulation: 2, averageDecay: 0.9, evaluations: 3,
      checkpointInterval: 0, directory: folder)
  }

  @Test func anInterruptedTrainingContinuesToTheBit() throws {
    let task = try Self.task()
    try withFolder { folder in
      let whole = try Self.problem(task)
      let straight = try Trainer(whole, Self.configuration(folder.appendingPathComponent("whole"))).run()

      let place = folder.appendingPathComponent("parts")
      for stop in [2, 5, 9] {
        let trainer = Trainer(try Self.problem(task), Self.configuration(place))
        var steps = 0
        trainer.onProgress = { steps = $0.step }
        trainer.shouldInterrupt = { steps >= stop }
        #expect(throws: InterruptedError.self) { try trainer.run() }
      }
      let last = try Self.problem(task)
      let resumed = try Trainer(last, Self.configuration(place)).run()

      #expect(resumed.steps == straight.steps)
      #expect(resumed.records.map(\.trainLoss) == straight.records.map(\.trainLoss))
      #expect(resumed.final == straight.final)
      for ((name, a), (_, b)) in zip(whole.model.parameters(), last.model.parameters()) {
        #expect(a.isEqual(to: b), "\(name) differs by \((a - b).abs().max().item())")
      }
      let log = try String(contentsOf: place.appendingPathComponent("log.jsonl"), encoding: .utf8)
      let wholeLog = try String(contentsOf: folder.appendingPathComponent("whole/log.jsonl"), encoding: .utf8)
      func steps(_ log: String) throws -> [Int] {
        try log.split(separator: "\n").map { try JSONValue.parse(String($0))["step"]?.intValue ?? -1 }
      }
      #expect(try steps(log) == steps(wholeLog), "the log reads as if the run had never been interrupted")
    }
  }

  @Test func aFinishedTrainingIsNotRepeated() throws {
    let task = try Self.task()
    try withFolder { folder in
      let first = try Trainer(try Self.problem(task), Self.configuration(folder)).run()
      let again = Trainer(try Self.problem(task), Self.configuration(folder))
      var steps = 0
      again.onProgress = { _ in steps += 1 }
      #expect(try again.run().final == first.final)
      #expect(steps == 0)
    }
  }

  @Test func accumulationEqualsALargerBatch() throws {
    let task = try Self.task()
    // Classification of whole batches: the mean over two halves is the mean over all.
    let parts = try Self.problem(task, dropout: 0, batchSize: 8)
    let loss = try (0..<2).map { try parts.loss(batch: $0).loss }
    let mean = ((loss[0] + loss[1]) / 2.0).item()
    var configuration = Self.configuration(nil, steps: 1)
    configuration.averageDecay = nil
    var seen = 0.0
    let trainer = Trainer(parts, configuration)
    trainer.onProgress = { seen = $0.loss }
    _ = try trainer.run()
    #expect(abs(seen - mean) < 1e-6, "mean loss \(seen), expected \(mean)")
  }

  @Test func divergenceStopsWithStepAndCause() throws {
    let problem = try Self.problem(try Self.task())
    withoutGradient { problem.model.parameters()[0].tensor.fillInPlace(.nan) }
    let error = #expect(throws: DivergenceError.self) { try Trainer(problem, Self.configuration(nil)).run() }
    #expect(error?.step == 0)
    #expect(error?.description.contains("step 0") == true && error?.description.contains("learning rate") == true)
  }

  @Test func aDamagedCheckpointIsNamed() throws {
    let task = try Self.task()
    try withFolder { folder in
      _ = try Trainer(try Self.problem(task), Self.configuration(folder)).run()
      let file = folder.appendingPathComponent("last.safetensors")
      let data = try Data(contentsOf: file)
      try data.prefix(data.count / 2).write(to: file)
      let error = #expect(throws: (any Error).self) { try Trainer(try Self.problem(task), Self.configuration(folder)).run() }
      #expect("\(error.map { "\($0)" } ?? "")".contains("last.safetensors"))
    }
  }

  @Test func patienceEndsATrainingThatDoesNotImprove() throws {
    let task = try Self.task()
    try withFolder { folder in
      var configuration = Self.configuration(folder, steps: 40)
      configuration.optimizer = .init(.sgd(.init()), learningRate: 1e-30)
      configuration.averageDecay = nil
      configuration.evaluations = 40
      configuration.patience = 3
      let outcome = try Trainer(try Self.problem(task), configuration).run()
      #expect(outcome.stoppedEarly)
      #expect(outcome.steps == 4, "the first evaluation is the best, three follow")
    }
  }

  @Test func budgetsAreRead() throws {
    #expect(try TrainingBudget(parsing: "120s") == .seconds(120))
    #expect(try TrainingBudget(parsing: "1.5m") == .seconds(90))
    #expect(try TrainingBudget(parsing: "500") == .steps(500))
    #expect(try TrainingBudget(parsing: "2Mtokens") == .positions(2_000_000))
    #expect(throws: ConfigurationError.self) { try TrainingBudget(parsing: "soon") }
    #expect(throws: ConfigurationError.self) { try TrainingBudget(parsing: "3 fortnights") }
    #expect(TrainingBudget.steps(100).scaled(0.4) == .steps(40))
  }

  @Test func recipesRefuseUnknownKeys() throws {
    let recipe = try TrainingRecipe(["task": "listops", "mixers": ["gla", "window?window=32"], "width": 64, "budget": 200])
    #expect(recipe.mixers == [MixerChoice("gla"), try MixerChoice(parsing: "window?window=32")])
    #expect(recipe.budget == "200steps")
    let hybrid = try TrainingRecipe(["mixers": "deltanet*2+window?window=32"])
    #expect(hybrid.mixers.map(\.text) == ["deltanet", "deltanet", "window?window=32"])
    let bad = #expect(throws: ConfigurationError.self) { try TrainingRecipe(["mixers": ["gla+windou"]]) }
    #expect(bad?.message.contains("windou") == true)
    let unknown = #expect(throws: ConfigurationError.self) { try TrainingRecipe(["widht": 64]) }
    #expect(unknown?.message.contains("width") == true)
    let type = #expect(throws: ConfigurationError.self) { try TrainingRecipe(["width": "wide"]) }
    #expect(type?.message.contains("width") == true)
  }
}
