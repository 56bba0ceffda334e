import ArgumentParser
import Foundation
import MartletCatalog
import MartletTokenizers
import MartletTraining

struct LinearizeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "linearize",
    abstract: "Turn a pretrained decoder's attention into linear attention (LoLCATs), so that its memory stays constant.",
    discussion: """
      The attention of every layer becomes softmax inside a window and linear attention before it. Its feature maps learn to give the \
      outputs of the softmax attention on the text of --data, then low-rank adapters on the projections learn the text and are merged. \
      The last tenth of the text is held out: the perplexity on it is reported for the model as it came, with maps that have learnt \
      nothing (swap), after the transfer and after the adapters.

      OUT appears whole or not at all. It holds the tensors under the model's own names besides those of the maps, and a section \
      "linearized_attention" in config.json; generate, evaluate, inspect and convert read it. After an interruption the same command \
      goes on where it was (OUT.partial keeps what that needs).

      Example: martlet linearize models/llama --data book.txt --out models/llama-linear --window 64 --features 64
      """)

  @Argument(help: "A model's folder (Llama, Qwen, Mistral, Phi, GPT-2, GPT-NeoX, OPT …).", completion: .directory)
  var model: String

  @Option(help: "A text file to learn from, like what the model is for.", completion: .file())
  var data: String

  @Option(help: "The folder to write.", completion: .directory)
  var out: String

  @Option(help: "Positions that softmax sees.")
  var window: String = "64"

  @Option(help: "Columns of a head's feature matrix; half its channels for hedgehog and all for rectified unless given.")
  var features: Int?

  @Option(
    help: "The window's layout: sliding (the last positions) or blocks (the own block and the one before).",
    completion: .list(WindowedLinearAttention.Layout.allCases.map(\.rawValue)))
  var layout: String = "sliding"

  @Option(help: "The features: hedgehog or rectified.", completion: .list(FeatureMapKind.allCases.map(\.rawValue)))
  var featureMap: String = "hedgehog"

  @Flag(help: "Weigh the linear part by 1 − g beside the window's g.")
  var affine = false

  @Option(help: "Tokens of a sequence.")
  var sequence: String = "1024"

  @Option(help: "Sequences of a step.")
  var batchSize: Int = 1

  @Option(help: "Steps of the transfer; 0 for none.")
  var transferSteps: Int = 400

  @Option(help: "Learning rate of the maps.")
  var transferRate: Double = 1e-2

  @Option(help: "Factor of the cross-entropy between rows of weights, beside the outputs' errors (quadratic in the sequence).")
  var crossEntropy: Double = 0

  @Option(help: "Layers that learn at a time in the transfer, on saved inputs; all unless given.")
  var layersAtATime: Int?

  @Option(help: "Steps of the adapters; 0 for none.")
  var loraSteps: Int = 400

  @Option(help: "Learning rate of the adapters.")
  var loraRate: Double = 1e-4

  @Option(help: "Rank of the adapters.")
  var loraRank: Int = 8

  @Option(help: "The adapters' change is multiplied by this over the rank; twice the rank unless given.")
  var loraAlpha: Double?

  @Flag(help: "Let the maps go on learning beside the adapters.")
  var trainMaps = false

  @Option(help: "Seed of maps, adapters and the order of the sequences.")
  var seed: Int = 0

  @Flag(help: "Replace the files of an OUT that exists.")
  var force = false

  @OptionGroup var compute: ComputeOptions

  @Flag(help: "Print a JSON object.")
  var json = false

  func validate() throws {
    guard transferSteps >= 0, loraSteps >= 0 else { throw ValidationError("--transfer-steps and --lora-steps must not be negative") }
    guard batchSize > 0 else { throw ValidationError("--batch-size must be positive, got \(batchSize)") }
    guard features ?? 1 > 0 else { throw ValidationError("--features must be positive, got \(features ?? 0)") }
    guard layersAtATime ?? 1 > 0 else { throw ValidationError("--layers-at-a-time must be positive, got \(layersAtATime ?? 0)") }
    guard loraRank > 0, loraAlpha ?? 1 > 0 else { throw ValidationError("--lora-rank and --lora-alpha must be positive") }
    guard transferRate > 0, loraRate > 0, crossEntropy >= 0 else {
      throw ValidationError("--transfer-rate and --lora-rate must be positive, and --cross-entropy not negative")
    }
    guard seed >= 0 else { throw ValidationError("--seed must not be negative, got \(seed)") }
    let _: WindowedLinearAttention.Layout = try CatalogArguments.parse(layout)
    let _: FeatureMapKind = try CatalogArguments.parse(featureMap)
  }

  func run() throws {
    compute.apply()
    Interruption.watch()
    let sequence = try Quantity.length(self.sequence)
    let options = try options()
    try checkTarget()
    let pretrained = try PretrainedArguments.load(model, dtype: .float32)
    guard let language = pretrained.languageModel else {
      throw FileError(model, "a model of the type \"\(pretrained.configuration.modelType)\" is no decoder, so it can't be linearised")
    }
    guard pretrained.configuration.json[LinearizedAttention.key] == nil else { throw FileError(model, "is linearised already") }
    if case .learned = pretrained.configuration.backbone.positions, sequence > pretrained.configuration.contextLength {
      throw ValidationError(
        "--sequence \(sequence) is more than the \(pretrained.configuration.contextLength) positions that the model has")
    }
    do {
      try language.checkLinearizable(layers: language.linearizableLayers(window: options.attention.window), options.attention)
    } catch let error as ConfigurationError { throw FileError(model, error.message) }
    let tokens = try tokens(language)
    let (train, heldOut): (TokenSequences, TokenSequences)
    do { (train, heldOut) = try TokenSequences.split(tokens, length: sequence) } catch let error as DataError {
      throw FileError(data, "\(error)")
    }
    let scratch = out + ".partial"
    try claim(scratch, tokens: tokens.count)

    let display = ProgressDisplay(patient: true)
    defer { display.close() }
    let report = try withTorchErrors {
      try LinearizeWithLoRA(options).run(language, train: train, heldOut: heldOut, folder: scratch) { progress in
        let figures =
          progress.loss.isFinite
          ? "step \(progress.step)  loss \(Figure.number(progress.loss))"
            + (progress.heldOutLoss.map { "  held out \(Figure.number($0))" } ?? "")
          : ""
        display.update(progress.stage.rawValue, Double(progress.step) / Double(max(1, progress.steps)), figures)
        return !Interruption.isAsked
      }
    }
    display.close()
    guard let report else {
      Output.note("interrupted: \(out) is not written; the same command goes on with what \(scratch) keeps")
      throw CommandLineErrors.interrupted
    }
    var description = pretrained.configuration.json
    description[LinearizedAttention.key] = LinearizedAttention(layers: report.layers, options: options.attention).json
    try withTorchErrors { try pretrained.described(by: description).save(to: out) }
    try? FileManager.default.removeItem(atPath: scratch)
    show(report, heldOut: heldOut, sequence: sequence)
  }

  private func options() throws -> LinearizeWithLoRA.Options {
    let seed = UInt64(self.seed)
    return LinearizeWithLoRA.Options(
      attention: .init(
        window: try Quantity.length(window), layout: try CatalogArguments.parse(layout), featureMap: try CatalogArguments.parse(featureMap),
        features: features, affine: affine),
      transfer: .init(
        steps: transferSteps, batchSize: batchSize, learningRate: transferRate, crossEntropyFactor: crossEntropy,
        layersAtATime: layersAtATime, seed: seed),
      adaptation: .init(
        steps: loraSteps, batchSize: batchSize, learningRate: loraRate,
        lora: .init(rank: loraRank, alpha: loraAlpha ?? 2 * Double(loraRank)), trainsMaps: trainMaps, seed: seed),
      heldOutLimit: 32, seed: seed)
  }

  private func checkTarget() throws {
    func real(_ path: String) -> String { URL(fileURLWithPath: path).resolvingSymlinksInPath().standardizedFileURL.path }
    guard real(model) != real(out) else { throw ValidationError("OUT is MODEL itself; name another place") }
    var isFolder: ObjCBool = false
    guard FileManager.default.fileExists(atPath: out, isDirectory: &isFolder) else { return }
    guard isFolder.boolValue else { throw ValidationError("\(out) is a file; name a folder") }
    let isEmpty = (try? FileManager.default.contentsOfDirectory(atPath: out))?.isEmpty ?? false
    guard isEmpty || force else { throw ValidationError("\(out) exists already; name another place, or --force to replace its files") }
  }

  private func tokens(_ language: LanguageModel) throws -> [Int] {
    var tokenizer = try Tokenizer.load(model)
    _ = try TextGenerator(model: language, tokenizer: tokenizer)
    tokenizer.truncation = nil
    tokenizer.padding = nil
    let contents: Data
    do { contents = try Data(contentsOf: URL(fileURLWithPath: data), options: .mappedIfSafe) } catch {
      throw FileError(data, "can't be read: \(error.localizedDescription)")
    }
    return try contents.withUnsafeBytes { try tokenizer.encode(bytes: $0.bindMemory(to: UInt8.self)).ids.map(Int.init) }
  }

  /// The folder of what an interrupted run has learnt: a second start must ask for the same.
  private func claim(_ folder: String, tokens: Int) throws {
    let settings: JSONObject = [
      "model": .string(URL(fileURLWithPath: model).standardizedFileURL.path), "tokens": .integer(tokens), "window": .string(window),
      "features": features.map(JSONValue.integer) ?? .null, "layout": .string(layout), "featureMap": .string(featureMap),
      "affine": .bool(affine), "sequence": .string(sequence), "batchSize": .integer(batchSize), "transferSteps": .integer(transferSteps),
      "transferRate": .number(transferRate), "crossEntropy": .number(crossEntropy),
      "layersAtATime": layersAtATime.map(JSONValue.integer) ?? .null, "loraSteps": .integer(loraSteps), "loraRate": .number(loraRate),
      "loraRank": .integer(loraRank), "loraAlpha": loraAlpha.map(JSONValue.number) ?? .null, "trainMaps": .bool(trainMaps),
      "seed": .integer(seed),
    ]
    let file = folder + "/settings.json"
    let text = JSONValue.object(settings).serialized(indentation: 2) + "\n"
    if let earlier = FileManager.default.contents(atPath: file) {
      guard earlier == Data(text.utf8) else {
        throw FileError(folder, "keeps an interrupted run with other settings. Give the same ones to go on with it, or delete it")
      }
      return
    }
    try writeDurably(Data(text.utf8), to: file)
  }

  private func show(_ report: LinearizeWithLoRA.Report, heldOut: TokenSequences, sequence: Int) {
    let rows = [
      ("teacher", report.teacherLoss), ("swap", report.swapLoss), ("transfer", report.transferLoss),
      ("transfer + LoRA", report.adaptedLoss),
    ]
    if json {
      var (perplexities, losses) = (JSONObject(), JSONObject())
      for (name, loss) in rows { (perplexities[name], losses[name]) = (.number(exp(loss)), .number(loss)) }
      Output.json([
        "out": .string(out), "layers": .array(report.layers.map(JSONValue.integer)), "window": .string(window),
        "perplexity": .object(perplexities), "loss": .object(losses), "recovered": .number(report.recovered),
        "heldOutTokens": .integer(min(heldOut.count, 32) * sequence), "parameters": .integer(report.parameters),
        "transferParameters": .integer(report.transferParameters), "loraParameters": .integer(report.adaptationParameters),
        "tokensTrained": .integer(report.tokensTrained), "seconds": .number(report.seconds),
      ])
      return
    }
    var table = TerminalTable([.init("held-out text"), .init("perplexity", .right), .init("loss", .right)])
    for (name, loss) in rows { table.add([.init(name), .init(Figure.number(exp(loss))), .init(Figure.fixed(loss, 4))]) }
    print(table.rendered())
    print(
      "\(out): \(report.layers.count) layers linearised, \(Figure.fixed(100 * report.recovered, 1)) % of what the swap lost is won back\n"
        + "trained: \(Figure.grouped(report.transferParameters)) parameters of maps, \(Figure.grouped(report.adaptationParameters)) of adapters "
        + "(model: \(Figure.grouped(report.parameters))), on \(Figure.grouped(report.tokensTrained)) tokens in \(Figure.seconds(report.seconds))"
    )
  }
}
