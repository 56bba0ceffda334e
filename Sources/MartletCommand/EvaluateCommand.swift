import ArgumentParser
import Foundation
import MartletCatalog
import MartletTokenizers

struct EvaluateCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "evaluate",
    abstract: "Measure a model: perplexity on a text, accuracy on labelled texts, scores of pairs.",
    discussion: """
      --perplexity reads a whole file as one text and predicts every token after the first, from windows that slide by --stride. \
      --classify takes a sequence classifier and a file of texts with labels: tab-separated (text, optional second text, label; a first \
      line may name the columns) or JSON lines; without labels it only predicts. --score takes a cross-encoder and pairs with a tab \
      between the texts. A model made by `martlet train` is evaluated on its own task's test split.

      Example: martlet evaluate models/llama --perplexity book.txt --window 2048 --stride 512
      Accuracy: martlet evaluate models/sst2 --classify dev.tsv --json
      """)

  @Argument(help: "A model's folder.", completion: .directory)
  var model: String

  @Option(help: "A text file for a language model.", completion: .file())
  var perplexity: String?

  @Option(help: "Tokens the model sees at once; its context (at most 2048) unless given.")
  var window: String?

  @Option(help: "Tokens by which the window moves; half the window unless given.")
  var stride: String?

  @Option(help: "Labelled texts for a classifier.", completion: .file(extensions: ["tsv", "jsonl"]))
  var classify: String?

  @Option(help: "Pairs of texts for a cross-encoder.", completion: .file(extensions: ["tsv"]))
  var score: String?

  @Option(
    help: "Form of the weights: float32, bfloat16, int8 or int4; the file's unless given.",
    completion: .list(WeightsOption.allCases.map(\.rawValue)))
  var weights: String?

  @Option(help: "Tokens of a text that a classifier reads at most.")
  var maxLength: Int?

  @OptionGroup var compute: ComputeOptions

  @Flag(help: "Print a JSON object.")
  var json = false

  func validate() throws {
    let given = [perplexity, classify, score].compactMap { $0 }.count
    guard given <= 1 else { throw ValidationError("give one of --perplexity, --classify and --score") }
    guard perplexity != nil || window == nil && stride == nil else { throw ValidationError("--window and --stride belong to --perplexity") }
    if let weights { let _: WeightsOption = try CatalogArguments.parse(weights) }
  }

  func run() throws {
    compute.apply()
    Interruption.watch()
    switch try PretrainedArguments.kind(model) {
    case .tensors: throw FileError(model, "is one file of tensors; name the folder that holds it with its config.json")
    case .trained:
      guard perplexity == nil, classify == nil, score == nil else {
        throw ValidationError("this model was made by `martlet train`; leave the options out to evaluate it on its own task")
      }
      try evaluateTask()
    case .checkpoint:
      guard perplexity != nil || classify != nil || score != nil else {
        throw ValidationError("say what to evaluate: --perplexity FILE, --classify FILE or --score FILE")
      }
      let pretrained = try WeightsOption.load(model, try weights.map { try CatalogArguments.parse($0) })
      if let perplexity { try evaluatePerplexity(pretrained, perplexity) }
      if let classify { try evaluateClasses(pretrained, classify) }
      if let score { try evaluatePairs(pretrained, score) }
    }
  }

  private func checkInterruption() throws { if Interruption.isAsked { throw CommandLineErrors.interrupted } }

  // MARK: Perplexity

  private func evaluatePerplexity(_ pretrained: PretrainedModel, _ file: String) throws {
    guard let model = pretrained.languageModel else {
      throw FileError(
        self.model, "a model of the type \"\(pretrained.configuration.modelType)\" is no language model, so it has no perplexity")
    }
    let tokenizer = try Tokenizer.load(self.model)
    _ = try TextGenerator(model: model, tokenizer: tokenizer)
    let data: Data
    do { data = try Data(contentsOf: URL(fileURLWithPath: file), options: .mappedIfSafe) } catch {
      throw FileError(file, "can't be read: \(error.localizedDescription)")
    }
    var unlimited = tokenizer
    unlimited.truncation = nil
    unlimited.padding = nil
    let tokens = try data.withUnsafeBytes { try unlimited.encode(bytes: $0.bindMemory(to: UInt8.self)).ids.map(Int.init) }
    guard tokens.count > 1 else { throw FileError(file, "has \(tokens.count) tokens; perplexity needs at least two") }
    let window = try self.window.map { try Quantity.length($0) } ?? min(pretrained.configuration.contextLength, 2048)
    if case .learned = pretrained.configuration.backbone.positions, window > pretrained.configuration.contextLength {
      throw ValidationError("--window \(window) is more than the \(pretrained.configuration.contextLength) positions that the model has")
    }
    let stride = try self.stride.map { try Quantity.length($0) } ?? max(1, window / 2)
    let display = ProgressDisplay()
    defer { display.close() }
    let watch = Stopwatch()
    let result = try withTorchErrors {
      try MartletInference.perplexity(model, tokens: tokens, window: window, stride: stride) { fraction, soFar in
        if watch.seconds > 1 {
          display.update(
            "perplexity", fraction,
            "\(Figure.number(soFar.perplexity))  \(ProgressDisplay.rate(Double(soFar.tokens) / watch.seconds)) tokens/s")
        }
        return !Interruption.isAsked
      }
    }
    try checkInterruption()
    display.close()
    let bits = result.negativeLogLikelihood / log(2) / Double(max(1, data.count))
    let seconds = watch.seconds
    if json {
      Output.json([
        "perplexity": .number(result.perplexity), "negativeLogLikelihood": .number(result.negativeLogLikelihood),
        "tokens": .integer(result.tokens), "bytes": .integer(data.count), "bitsPerByte": .number(bits), "window": .integer(window),
        "stride": .integer(stride), "seconds": .number(seconds), "tokensPerSecond": .number(Double(result.tokens) / max(1e-9, seconds)),
      ])
    } else {
      print("perplexity: \(String(format: "%.6g", result.perplexity))")
      print("bits per byte: \(String(format: "%.4f", bits))")
      print("\(Figure.grouped(result.tokens)) tokens predicted, window \(window), stride \(stride), \(Figure.seconds(seconds))")
    }
  }

  // MARK: Classes and scores

  private func embedder(_ pretrained: PretrainedModel) throws -> (TextEmbedder, TextEncoder) {
    guard let encoder = pretrained.textEncoder, encoder.classifier != nil else {
      throw FileError(
        model,
        "a model of the type \"\(pretrained.configuration.modelType)\" without a classifier; a checkpoint ForSequenceClassification "
          + "was expected")
    }
    return (try TextEmbedder(encoder: encoder, tokenizer: try Tokenizer.load(model), maximumLength: maxLength), encoder)
  }

  private func logits(_ embedder: TextEmbedder, _ records: [LabelledLines.Record], _ title: String) throws -> Tensor {
    let display = ProgressDisplay()
    defer { display.close() }
    let watch = Stopwatch()
    func progress(_ done: Int) -> Bool {
      if watch.seconds > 1 { display.update(title, Double(done) / Double(records.count), "\(Figure.grouped(done)) texts") }
      return !Interruption.isAsked
    }
    let result = try withTorchErrors {
      if records.contains(where: { $0.pair != nil }) {
        return try embedder.classLogits(pairs: records.map { ($0.text, $0.pair ?? "") }, progress: progress)
      }
      return try embedder.classLogits(records.map(\.text), threads: Engine.threads, progress: progress)
    }
    try checkInterruption()
    return result
  }

  private func evaluateClasses(_ pretrained: PretrainedModel, _ file: String) throws {
    let (embedder, encoder) = try embedder(pretrained)
    let lines = try LabelledLines(file)
    let count = encoder.classifier!.outFeatures
    let names = pretrained.configuration.labels.count == count ? pretrained.configuration.labels : (0..<count).map(String.init)
    let wanted = try lines.classes(names, count: count, file: file)
    guard count > 1 else { throw FileError(model, "has one class: a score; use --score") }
    let logits = try logits(embedder, lines.records, "classifying")
    let best = logits.argmax(axis: -1).toArray(Int.self)
    let chances = logits.softmax().max(axis: -1).toArray(Float.self)
    let judged = zip(best, wanted).compactMap { found, wanted in wanted.map { (found: found, wanted: $0) } }
    let accuracy = judged.isEmpty ? nil : Double(judged.count { $0.found == $0.wanted }) / Double(judged.count)
    if json {
      Output.json([
        "texts": .integer(best.count), "labelled": .integer(judged.count), "accuracy": accuracy.map(JSONValue.number) ?? .null,
        "classes": .array(
          names.enumerated().map { index, name in
            [
              "name": .string(name), "labelled": .integer(judged.count { $0.wanted == index }),
              "predicted": .integer(best.count { $0 == index }),
              "correct": .integer(judged.count { $0.wanted == index && $0.found == index }),
            ]
          }),
        "predictions": .array(zip(best, chances).map { ["label": .string(names[$0]), "probability": .number(Double($1))] }),
      ])
      return
    }
    guard let accuracy else {
      for (found, chance) in zip(best, chances) { print("\(names[found])\t\(String(format: "%.4f", chance))") }
      return
    }
    var table = TerminalTable([.init("class"), .init("texts", .right), .init("predicted", .right), .init("found", .right)])
    for (index, name) in names.enumerated() {
      let own = judged.count { $0.wanted == index }
      let right = judged.count { $0.wanted == index && $0.found == index }
      table.add([
        .init(name), .init("\(own)"), .init("\(best.count { $0 == index })"),
        .init(own > 0 ? Figure.fixed(100 * Double(right) / Double(own), 1) + " %" : ""),
      ])
    }
    print("accuracy: \(Figure.fixed(100 * accuracy, 2)) % of \(Figure.grouped(judged.count)) texts\n\n\(table.rendered())")
  }

  private func evaluatePairs(_ pretrained: PretrainedModel, _ file: String) throws {
    let (embedder, encoder) = try embedder(pretrained)
    guard encoder.classifier!.outFeatures == 1 else {
      throw FileError(model, "has \(encoder.classifier!.outFeatures) classes, no score; use --classify")
    }
    let pairs = try LineReader.all(file).enumerated().map { i, line -> LabelledLines.Record in
      let sides = line.split(separator: "\t", omittingEmptySubsequences: false).map(String.init)
      guard sides.count == 2 else {
        throw FileError(file, "line \(i + 1) has \(sides.count) columns; two texts with a tab between them were expected")
      }
      return LabelledLines.Record(text: sides[0], pair: sides[1])
    }
    guard !pairs.isEmpty else { throw FileError(file, "has no pairs") }
    let scores = try logits(embedder, pairs, "scoring").reshaped(-1).toArray(Float.self)
    if json {
      Output.json(["pairs": .integer(scores.count), "scores": .array(scores.map { .number(Double($0)) })])
    } else {
      for score in scores { print(String(format: "%.6f", score)) }
    }
  }

  // MARK: Models of `martlet train`

  private func evaluateTask() throws {
    let (model, saved) = try SavedModel.load(URL(fileURLWithPath: self.model, isDirectory: true))
    let task = try TaskSpecification(saved.task).make()
    let problem = TaskProblem(task, model, batchSize: 32, seed: 0)
    let metrics = try withTorchErrors { problem.metrics(try model.evaluate(task, .test, batchSize: 32)) }.sorted { $0.key < $1.key }
    if json {
      var object: JSONObject = ["task": .string(saved.task)]
      for (key, value) in metrics { object[key] = .number(value) }
      Output.json(.object(object))
    } else {
      print("task: \(saved.task)")
      for (key, value) in metrics { print("\(key): \(String(format: "%.6g", value))") }
    }
  }
}
