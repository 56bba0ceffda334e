import ArgumentParser
import Foundation
import MartletCatalog
import MartletTokenizers

struct EmbedCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "embed",
    abstract: "Turn texts into vectors with a sentence encoder.",
    discussion: """
      Every line of the input is a text (bytes that are no UTF-8 are read as U+FFFD). The output is a safetensors file with the tensor \
      “embeddings” [lines, width] in float32, written whole or not at all. Pooling, normalisation and the longest text are those of the \
      model's folder (modules.json of sentence-transformers; mean pooling where there is none) unless options say otherwise.

      Example: martlet embed models/minilm --input lines.txt --output vectors.safetensors
      """)

  @Argument(help: "A model's folder.", completion: .directory)
  var model: String

  @Option(help: "A file of lines; “-” or nothing for standard input.", completion: .file())
  var input: String?

  @Option(help: "The file to write.", completion: .file(extensions: ["safetensors"]))
  var output: String

  @Option(help: "Tokens that are read at once.")
  var batchTokens: Int = 2048

  @Option(help: "Tokens of a text that are read at most, special ones included.")
  var maxLength: Int?

  @Option(
    help: "Pooling instead of the model's: \(SentenceEmbedding.PoolingMode.allCases.map(\.rawValue).joined(separator: ", ")).",
    completion: .list(SentenceEmbedding.PoolingMode.allCases.map(\.rawValue)))
  var pooling: String?

  @Flag(inversion: .prefixedNo, help: "Scale vectors to length 1, or don't, whatever the model says.")
  var normalize: Bool?

  @Option(
    help: "Form of the weights: float32, bfloat16, int8 or int4; the file's unless given.",
    completion: .list(WeightsOption.allCases.map(\.rawValue)))
  var weights: String?

  @OptionGroup var compute: ComputeOptions

  @Flag(help: "Print a JSON object with the number of texts, the width and the rate.")
  var json = false

  /// Texts whose tokens are held at once.
  private static let portion = 16_384

  func validate() throws {
    guard batchTokens > 0 else { throw ValidationError("--batch-tokens must be positive, got \(batchTokens)") }
    if let pooling { let _: SentenceEmbedding.PoolingMode = try CatalogArguments.parse(pooling) }
    if let weights { let _: WeightsOption = try CatalogArguments.parse(weights) }
  }

  func run() throws {
    compute.apply()
    try OutputFile.check(output, option: "--output")
    var reader = try LineReader(input)
    let embedder = try embedder()
    Interruption.watch()
    let display = ProgressDisplay()
    defer { display.close() }
    let watch = Stopwatch()
    var parts: [Tensor] = []
    var done = 0
    var waiting: [String] = []

    func embed(_ texts: [String]) throws {
      let part = try withTorchErrors {
        try embedder.embed(texts, threads: Engine.threads) { count in
          if watch.seconds > 1 { display.update("embedding", nil, Self.figures(done + count, watch)) }
          return !Interruption.isAsked
        }
      }
      guard !Interruption.isAsked else {
        display.close()
        Output.note("interrupted: \(output) is not written")
        throw CommandLineErrors.interrupted
      }
      parts.append(part)
      done += texts.count
    }
    while let batch = try reader.next() {
      waiting += batch.lines.map(batch.text)
      while waiting.count >= Self.portion {
        try embed(Array(waiting.prefix(Self.portion)))
        waiting.removeFirst(Self.portion)
      }
    }
    if !waiting.isEmpty || parts.isEmpty { try embed(waiting) }
    let embeddings = parts.count == 1 ? parts[0] : concatenated(parts)
    let seconds = watch.seconds
    display.close()
    try Safetensors.save(["embeddings": embeddings], to: output)
    let (texts, width) = (embeddings.dim(0), embeddings.dim(1))
    let rate = Double(texts) / max(1e-9, seconds)
    if json {
      Output.json([
        "output": .string(output), "texts": .integer(texts), "width": .integer(width), "seconds": .number(seconds),
        "textsPerSecond": .number(rate),
      ])
    } else {
      print("\(output): embeddings \(Output.shape(embeddings.shape)), \(Figure.number(rate)) texts a second")
    }
  }

  private static func figures(_ done: Int, _ watch: Stopwatch) -> String {
    "\(Figure.grouped(done)) texts  \(ProgressDisplay.rate(Double(done) / max(1e-9, watch.seconds))) texts/s"
  }

  private func embedder() throws -> TextEmbedder {
    let pretrained = try WeightsOption.load(model, try weights.map { try CatalogArguments.parse($0) })
    guard let encoder = pretrained.textEncoder else {
      throw FileError(
        model,
        "a model of the type \"\(pretrained.configuration.modelType)\" is no text encoder; embeddings come from BERT, RoBERTa, "
          + "DistilBERT and MiniLM models")
    }
    try changePooling(encoder)
    var embedder = try TextEmbedder(encoder: encoder, tokenizer: try Tokenizer.load(model), maximumLength: maxLength)
    embedder.batchTokens = batchTokens
    return embedder
  }

  private func changePooling(_ encoder: TextEncoder) throws {
    guard pooling != nil || normalize != nil else { return }
    let old = encoder.sentence
    var configuration = old.configuration
    if let normalize { configuration.normalizes = normalize }
    if let pooling {
      let modes: [SentenceEmbedding.PoolingMode] = [try CatalogArguments.parse(pooling)]
      guard configuration.dense.isEmpty || modes.count == configuration.modes.count else {
        throw ValidationError("--pooling: the model's dense layers expect \(configuration.modes.count) poolings side by side")
      }
      configuration.modes = modes
    }
    let new = SentenceEmbedding(configuration, width: encoder.backbone.configuration.width, generator: RandomGenerator(seed: 0))
    new.dense = old.dense
    new.eval()
    encoder.sentence = new
  }
}

/// A file to be written: what is wrong with its path is said before the work, not after it.
enum OutputFile {
  static func check(_ path: String, option: String) throws {
    var isFolder: ObjCBool = false
    if FileManager.default.fileExists(atPath: path, isDirectory: &isFolder), isFolder.boolValue {
      throw ValidationError("\(option) \(path) is a folder; name a file in it")
    }
    let folder = URL(fileURLWithPath: path).deletingLastPathComponent().path
    guard FileManager.default.fileExists(atPath: folder, isDirectory: &isFolder), isFolder.boolValue else {
      throw ValidationError("\(option) \(path): there is no folder \(folder)")
    }
  }
}
