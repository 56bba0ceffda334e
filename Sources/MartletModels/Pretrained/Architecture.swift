import MartletFormats

/// A family of checkpoints that can be read: how its `config.json` describes a model, and how its tensors are called.
///
/// One entry a family; what they have in common is the models they are read into.
public struct Architecture: Sendable {
  /// The values of `model_type`.
  public let modelTypes: [String]
  /// What the names in `architectures` begin with, for files without `model_type`.
  public let classPrefixes: [String]
  /// One line for lists.
  public let summary: String
  let describe: @Sendable (ConfigurationReader, CheckpointContents) throws -> Blueprint

  init(
    _ modelTypes: [String], classPrefixes: [String] = [], _ summary: String,
    describe: @escaping @Sendable (ConfigurationReader, CheckpointContents) throws -> Blueprint
  ) {
    self.modelTypes = modelTypes
    self.classPrefixes = classPrefixes
    self.summary = summary
    self.describe = describe
  }

  /// Every family, by shape of model.
  public static let all: [Architecture] = decoders + linearDecoders + encoders + [t5, whisper] + visionTransformers

  /// The family of a configuration. Throws `FileError` for one that isn't known, with the nearest and the list.
  static func of(_ reader: ConfigurationReader) throws -> (architecture: Architecture, modelType: String) {
    let known = all.flatMap(\.modelTypes)
    if let type = try reader.optionalString("model_type") {
      if let architecture = all.first(where: { $0.modelTypes.contains(type) }) { return (architecture, type) }
      throw reader.refused(
        "the architecture \"\(type)\" is not supported.\(Suggestions.phrase(for: type, in: known)) Supported are: "
          + known.joined(separator: ", "))
    }
    for name in try reader.strings("architectures") {
      if let architecture = all.first(where: { $0.classPrefixes.contains { name.hasPrefix($0) } }) {
        return (architecture, architecture.modelTypes[0])
      }
    }
    throw reader.refused("there is no key \"model_type\" that names the architecture. Supported are: \(known.joined(separator: ", "))")
  }
}

/// The tensors that a checkpoint holds, which decide about parts that its configuration doesn't mention. `nil` names when only the
/// configuration is known: parts then follow `architectures`.
public struct CheckpointContents: Sendable {
  public let names: Set<String>?
  public init(names: Set<String>?) { self.names = names }

  /// Whether a tensor whose name ends so is there; `fallback` when only the configuration is known.
  public func has(suffix: String, otherwise fallback: Bool) -> Bool {
    names.map { $0.contains { $0 == suffix || $0.hasSuffix("." + suffix) } } ?? fallback
  }
}

/// A model that a configuration describes, before it takes any memory.
public struct Blueprint: Sendable {
  /// The backbone (of an encoder-decoder: the decoder's).
  public var backbone: BackboneConfiguration
  /// Builds the model; called where initial values are skipped, or with a generator for a model to train from scratch.
  public var make: @Sendable (RandomGenerator) throws -> Module
  public var rules: [NameRule]
  /// Layers that a `*` in the rules counts.
  public var layers: Int
  /// What the names of the base model's tensors begin with in a whole checkpoint ("model.", "bert."). Files of the base model alone
  /// lack it, files of larger models have another; the first rule with the prefix must name a tensor that every such file holds.
  public var prefix: String
  /// Tensors that may be there and aren't needed: a name that ends with one of these (after a dot or as a whole).
  public var ignored: [String]
  /// Tensors in checkpoints of their own, in folders below.
  public var parts: [Part]

  public struct Part: Sendable {
    public var folder: String
    public var rules: [NameRule]
  }

  /// Elements that parts besides the backbone have at least (an encoder's layers, an image's positions).
  public var otherElements = 0

  public init(
    backbone: BackboneConfiguration, layers: Int? = nil, prefix: String = "", ignored: [String] = [], rules: [NameRule],
    parts: [Part] = [], make: @escaping @Sendable (RandomGenerator) throws -> Module
  ) {
    self.backbone = backbone
    self.make = make
    self.rules = rules
    self.layers = layers ?? backbone.layers
    self.prefix = prefix
    self.parts = parts
    self.ignored = ignored
  }

  /// Elements that the smallest model of this kind has at least: what a checkpoint must hold.
  var leastElements: Int {
    let vocabulary = if case .tokens(let vocabulary) = backbone.input { vocabulary } else { 0 }
    return backbone.layers * (backbone.width + (backbone.hidden ?? 0)) + vocabulary + otherElements
  }
}
