import ArgumentParser
import Foundation
import MartletCatalog
import Yams

struct TrainCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "train",
    abstract: "Train one model on a task and save it.",
    discussion: """
      Settings come from a YAML recipe, from --set, or from the options; later ones win. The folder --out receives the model \
      (martlet.json, model.safetensors), checkpoints, log.jsonl and TensorBoard events. Run the same command again to go on \
      after an interruption: the result is the same to the bit when the budget is in steps or tokens.

      Example: martlet train --task bytes:book.txt --mixer gla --set width=256 --set layers=6 --budget 10m --out models/book
      A hybrid: --mixer 'gla+window?window=128', or --mixer 'deltanet*2+softmax' for two layers of the first to one of the second.

      Recipe keys: \(Self.recipeKeys)
      """)

  private static var recipeKeys: String {
    let text = (try? JSONEncoder().encode(TrainingRecipe())).map { String(decoding: $0, as: UTF8.self) } ?? "{}"
    let keys = (try? JSONValue.parse(text))?.objectValue?.keys ?? []
    return (keys + ["hidden", "averageDecay", "patience", "pretrainingBudget"]).sorted().joined(separator: ", ")
  }

  @Option(help: "A YAML file of settings.", completion: .file(extensions: ["yaml", "yml"]))
  var recipe: String?

  @Option(help: "What to learn, as for compare.")
  var task: String?

  @Option(
    help: "Mixer of the layers, or a repeating pattern as deltanet*2+softmax; given several times, one after the other.",
    completion: .list(MixerKind.all.map(\.name)))
  var mixer: [String] = []

  @Option(name: .customLong("set"), help: "A recipe key, e.g. --set learningRate=0.001.")
  var settings: [String] = []

  @Option(help: "Length of the training: 120s, 5m, 2000steps, 10Mtokens.")
  var budget: String?

  @Option(help: "Seed of weights, data order and dropout.")
  var seed: Int?

  @Option(help: "Folder for model, checkpoints and logs.", completion: .directory)
  var out: String

  @Option(help: "Threads inside operators; 0 takes the machine's.")
  var threads: Int = 0

  @Flag(help: "Print the metrics as JSON.")
  var json = false

  mutating func run() throws {
    if threads > 0 { Engine.threads = threads }
    Interruption.watch()
    let recipe = try readRecipe()
    guard !recipe.task.isEmpty else { throw ValidationError("name a task: --task listops, or “task:” in the recipe") }
    let folder = URL(fileURLWithPath: out, isDirectory: true)
    try claim(folder, recipe)
    let task = try TaskSpecification(recipe.task).make()
    let configuration = recipe.backbone(for: task)
    let seed = UInt64(bitPattern: Int64(recipe.seed))
    let model = try TaskModel(
      configuration, objective: task.objective, pooling: recipe.pooling, generator: RandomGenerator(seed: seed))
    let display = ProgressDisplay()
    display.note("\(model.parameterCount) parameters, \(MixerPattern(recipe.mixers).text), \(task.summary)")

    func train(_ problem: any TrainingProblem, _ budget: TrainingBudget, _ phase: String) throws -> TrainingOutcome {
      let trainer = Trainer(
        problem,
        try recipe.trainerConfiguration(
          budget: budget, directory: folder.appendingPathComponent(phase), metric: MetricName.loss, higherIsBetter: false))
      trainer.shouldInterrupt = { Interruption.isAsked }
      trainer.onProgress = { display.update(phase, $0) }
      let outcome = try trainer.run()
      display.close()
      if outcome.stoppedEarly {
        display.note("stopped early after \(outcome.steps) steps; the best weights are kept")
        try trainer.loadBest()
      }
      return outcome
    }

    let budget = try TrainingBudget(parsing: recipe.budget)
    if recipe.pretraining != .none {
      let pretraining = try SelfPretraining(
        configuration,
        objective: recipe.pretraining == .causal
          ? .causal : .masked(ratio: SelfPretraining.defaultRatio(for: configuration.input)),
        generator: RandomGenerator(seed: seed))
      _ = try train(
        PretrainingProblem(task, pretraining, batchSize: recipe.batchSize, seed: seed),
        try recipe.pretrainingBudget.map { try TrainingBudget(parsing: $0) } ?? budget, "pretraining")
      try pretraining.transfer(to: model)
    }
    let problem = TaskProblem(task, model, batchSize: recipe.batchSize, seed: seed)
    let outcome = try train(problem, budget, "training")
    var metrics = problem.metrics(try model.evaluate(task, .test, batchSize: recipe.batchSize))
    metrics[MetricName.steps] = Double(outcome.steps)
    metrics[MetricName.trainSeconds] = outcome.seconds
    try SavedModel(model, task: recipe.task, metrics: metrics).write(model, to: folder)
    if json {
      var object = JSONObject()
      for (key, value) in metrics.sorted(by: { $0.key < $1.key }) { object[key] = .number(value) }
      print(JSONValue.object(object).serialized(indentation: 2))
    } else {
      for (key, value) in metrics.sorted(by: { $0.key < $1.key }) { print("\(key): \(String(format: "%.6g", value))") }
      print("model: \(out)")
    }
  }

  /// The recipe of this folder's run: a second start must ask for the same.
  private func claim(_ folder: URL, _ recipe: TrainingRecipe) throws {
    let file = folder.appendingPathComponent("recipe.json")
    if let data = try? Data(contentsOf: file) {
      guard let earlier = try? JSONDecoder().decode(TrainingRecipe.self, from: data) else {
        throw FileError(file.path, "is not a readable recipe; choose another folder with --out")
      }
      guard earlier == recipe else {
        throw FileError(
          folder.path, "holds a training with other settings. Give the same ones to go on with it, or another --out")
      }
      return
    }
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    try encoder.encode(recipe).write(to: file, options: .atomic)
  }

  private func readRecipe() throws -> TrainingRecipe {
    var object = JSONObject()
    if let recipe {
      guard let text = try? String(contentsOfFile: recipe, encoding: .utf8) else {
        throw FileError(recipe, "can't be read as UTF-8 text")
      }
      do {
        guard let node = try Yams.compose(yaml: text) else { throw FileError(recipe, "is empty: a recipe is a mapping of keys to values") }
        guard case .object(let parsed) = try Self.value(node) else { throw FileError(recipe, "must be a mapping of keys to values") }
        object = parsed
      } catch let error as YamlError {
        throw FileError(recipe, "is not YAML: \(error)")
      }
    }
    for setting in settings {
      let sides = setting.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
      guard sides.count == 2, !sides[0].isEmpty else { throw ValidationError("--set takes key=value, got “\(setting)”") }
      object[sides[0]] = (try? JSONValue.parse(sides[1])) ?? .string(sides[1])
    }
    if let task { object["task"] = .string(task) }
    if !mixer.isEmpty { object["mixers"] = .array(mixer.map(JSONValue.string)) }
    if let budget { object["budget"] = .string(budget) }
    if let seed { object["seed"] = .integer(seed) }
    return try TrainingRecipe(object)
  }

  /// A YAML node as JSON.
  private static func value(_ node: Node) throws -> JSONValue {
    switch node {
    case .mapping(let mapping):
      var object = JSONObject()
      for (key, value) in mapping { object[key.string ?? ""] = try self.value(value) }
      return .object(object)
    case .sequence(let sequence): return .array(try sequence.map { try value($0) })
    case .scalar:
      if let int = node.int { return .integer(int) }
      if let number = node.float { return .number(number) }
      if let flag = node.bool { return .bool(flag) }
      return node.null != nil ? .null : .string(node.string ?? "")
    case .alias: throw ConfigurationError("YAML aliases are not understood in recipes")
    }
  }
}
