import Foundation
import MartletFormats

/// What a checkpoint's folder says of its model: `config.json` and `generation_config.json`, understood.
public struct PretrainedConfiguration: Sendable {
  /// The folder.
  public let directory: String
  /// `config.json` as it stands.
  public let json: JSONObject
  public let modelType: String
  public let architecture: Architecture
  public let blueprint: Blueprint
  /// `generation_config.json`; empty where there is none.
  public let generation: JSONObject
  /// Names of the classes, where the file has them.
  public let labels: [String]

  public var backbone: BackboneConfiguration { blueprint.backbone }
  /// The longest sequence that the model was made for.
  public var contextLength: Int { backbone.length }

  /// Tokens that end a text, by `generation_config.json`, else by `config.json`.
  public var endTokens: [Int] {
    for object in [generation, json] {
      if let one = object["eos_token_id"]?.intValue { return [one] }
      if let several = object["eos_token_id"]?.arrayValue { return several.compactMap(\.intValue) }
    }
    return []
  }

  private func token(_ key: String) -> Int? { generation[key]?.intValue ?? json[key]?.intValue }
  public var beginToken: Int? { token("bos_token_id") }
  public var padToken: Int? { token("pad_token_id") }
  /// What a decoder that attends to an encoder begins with.
  public var decoderStartToken: Int? { token("decoder_start_token_id") ?? beginToken }

  /// Reads a folder's configuration without its tensors. Throws `FileError` that names the file and the key.
  public init(directory: String) throws { try self.init(directory: directory, contents: CheckpointContents(names: nil)) }

  init(directory: String, contents: CheckpointContents) throws {
    let file = directory + "/config.json"
    guard let json = try readJSON(file).objectValue else { throw FileError(file, "an object was expected") }
    try self.init(directory: directory, json: json, contents: contents)
  }

  /// From the contents of a `config.json`; `directory` is what messages call it.
  public init(directory: String, json: JSONObject, contents: CheckpointContents = CheckpointContents(names: nil)) throws {
    let file = directory + "/config.json"
    let reader = ConfigurationReader(file: file, json: json)
    try reader.unsupported("quantization_config", unless: !reader.isGiven("quantization_config"), "a quantised checkpoint")
    self.directory = directory
    self.json = json
    (architecture, modelType) = try Architecture.of(reader)
    do {
      let described = try architecture.describe(reader, contents)
      blueprint = try LinearizedAttention(reader, layers: described.backbone.layers)?.applied(to: described) ?? described
      try blueprint.backbone.validate()
      for mixer in blueprint.backbone.mixers { _ = try mixer.kind.keys.completed(mixer.options) }
    } catch let error as ConfigurationError { throw FileError(file, error.message) }
    if let labels = try reader.optionalObject("id2label") {
      self.labels = labels.json.pairs.compactMap { pair in
        guard let number = Int(pair.key), let name = pair.value.stringValue else { return nil as (Int, String)? }
        return (number, name)
      }.sorted { $0.0 < $1.0 }.map(\.1)
    } else {
      labels = []
    }
    let generationFile = directory + "/generation_config.json"
    generation = FileManager.default.fileExists(atPath: generationFile) ? try readJSON(generationFile).objectValue ?? [:] : [:]
  }
}
