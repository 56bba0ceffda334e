import Foundation

extension TaskModel: GenerativeModel {
  public func initialState(batch: Int, cache: CacheOptions) throws -> SequenceBackbone.State {
    guard case .tokens = objective, case .tokens = backbone.configuration.input else {
      throw ConfigurationError("the model does not predict tokens from tokens, so it can't generate")
    }
    return try backbone.initialState(batch: batch, cache: cache)
  }

  public func outputs(_ tokens: Tensor, _ state: inout SequenceBackbone.State) -> Tensor { backbone.advance(tokens, &state) }
  public func logits(_ outputs: Tensor) -> Tensor { self.outputs(of: outputs) }
  public var vocabulary: Int { head.outFeatures }
}

/// A trained task model in a folder: `martlet.json` says what to build, `model.safetensors` holds its weights.
public struct SavedModel: Codable, Sendable {
  public var backbone: BackboneConfiguration
  public var objective: TaskObjective
  public var pooling: Pooling
  /// Inner width of a two-layer head.
  public var headWidth: Int?
  /// The task it was trained on, as `TaskSpecification` reads it.
  public var task: String
  /// Metrics at the end of training.
  public var metrics: [String: Double]

  public init(_ model: TaskModel, task: String, metrics: [String: Double]) {
    backbone = model.backbone.configuration
    objective = model.objective
    pooling = model.pooling
    headWidth = model.headHidden?.outFeatures
    self.task = task
    self.metrics = metrics
  }

  private static let description = "martlet.json"
  private static let weights = "model.safetensors"

  /// Writes the folder; each file appears whole or not at all, the description last.
  public func write(_ model: TaskModel, to folder: URL) throws {
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    try Safetensors.save(model.stateDictionary(), to: folder.appendingPathComponent(Self.weights).path)
    let encoder = JSONEncoder.withNonFinite
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    try writeDurably(try encoder.encode(self), to: folder.appendingPathComponent(Self.description).path)
  }

  /// Reads a folder. Throws `FileError` or `LoadingError` naming the file or key that is wrong.
  public static func load(_ folder: URL) throws -> (model: TaskModel, saved: SavedModel) {
    let file = folder.appendingPathComponent(description)
    guard let data = try? Data(contentsOf: file) else {
      throw FileError(folder.path, "is not a model folder: it has no readable \(description). `martlet train --out FOLDER` makes one")
    }
    let saved: SavedModel
    do {
      saved = try JSONDecoder.withNonFinite.decode(SavedModel.self, from: data)
    } catch {
      throw FileError(file.path, "does not describe a model: \(error)")
    }
    let model = try TaskModel(
      saved.backbone, objective: saved.objective, pooling: saved.pooling, headWidth: saved.headWidth, generator: RandomGenerator(seed: 0))
    try model.load(try Safetensors.load(folder.appendingPathComponent(weights).path))
    model.eval()
    return (model, saved)
  }
}
