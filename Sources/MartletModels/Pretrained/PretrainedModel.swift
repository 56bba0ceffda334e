import Foundation
import MartletFormats

/// How far loading has come.
public struct LoadProgress: Sendable {
  public let tensors: Int
  public let allTensors: Int
  public let bytes: Int
  public let allBytes: Int
}

/// A model read from a Hugging Face folder: `config.json` and `model.safetensors`, or shards with an index.
///
/// ```swift
/// let pretrained = try PretrainedModel.load("Llama-3.2-1B")
/// let logits = pretrained.languageModel!(tokens)
/// try pretrained.save(to: "copy")
/// ```
///
/// Loading maps the files: a parameter is the file's own pages, read when they are first used. Only what the file keeps in another
/// layout (GPT-2's transposed matrices, GPT-NeoX's interleaved heads) or dtype is copied.
public struct PretrainedModel {
  public let configuration: PretrainedConfiguration
  /// A `LanguageModel`, a `TextEncoder` or another shape of model, in evaluation mode.
  public let model: Module
  /// Tensors of the checkpoint that belong to other heads of the same base model and were not read, in order of their names.
  public let unusedTensors: [String]
  /// Which tensors of the checkpoint hold which parameters.
  private let layout: Layout

  public var languageModel: LanguageModel? { model as? LanguageModel }
  public var textEncoder: TextEncoder? { model as? TextEncoder }

  struct Layout {
    var rules: [TensorRule]
    var parts: [(folder: String, rules: [TensorRule])]
    /// What the base model's names begin with in this checkpoint.
    var prefix: String
  }

  private init(_ configuration: PretrainedConfiguration, _ model: Module, _ layout: Layout, unused: [String] = []) {
    self.configuration = configuration
    self.model = model
    self.layout = layout
    unusedTensors = unused
  }

  // MARK: Loading

  /// Reads a model.
  ///
  /// - Parameters:
  ///   - dtype: converts floating-point tensors; `nil` keeps theirs. Numbers of 16 bits stay so in the matrices of linear layers and
  ///     embeddings, which the kernels read as they are; everything else, and all activations, are float32.
  ///   - progress: called after every tensor.
  /// - Returns: the model in evaluation mode, its parameters not marked for differentiation (`unfreeze()` does that).
  /// - Throws: `FileError` or `SafetensorsError` that names the file, and the key or the tensors: an unknown architecture, options that
  ///   aren't supported, numbers that make no model, missing, unexpected and misshapen tensors, damaged shards.
  public static func load(
    _ directory: String, dtype: DType? = nil, progress: ((LoadProgress) -> Void)? = nil
  ) throws -> PretrainedModel {
    let directory = directory.count > 1 && directory.hasSuffix("/") ? String(directory.dropLast()) : directory
    // The configuration first: its errors say more than those of the tensors.
    _ = try PretrainedConfiguration(directory: directory)
    let tensors: [String: Tensor]
    do { tensors = try Safetensors.load(directory) } catch let error as SafetensorsError {
      let files = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
      guard !files.contains(where: { $0.contains(".safetensors") }), let pickled = files.sorted().first(where: { $0.hasSuffix(".bin") })
      else { throw error }
      throw FileError(
        directory, "there are no safetensors, only \(pickled), which may run code when it is read; save it as safetensors with transformers"
      )
    }
    let configuration = try PretrainedConfiguration(directory: directory, contents: CheckpointContents(names: Set(tensors.keys)))
    let blueprint = configuration.blueprint
    let allBytes = tensors.values.reduce(0) { $0 + $1.byteCount }
    guard blueprint.leastElements <= allBytes else {
      throw FileError(
        directory + "/config.json",
        "describes a model of at least \(blueprint.leastElements) parameters, the folder's tensors have \(allBytes) bytes together")
    }

    let model = try built(configuration, RandomGenerator(seed: 0), skipping: true)
    let shapes = Dictionary(uniqueKeysWithValues: (model.parameters() + model.buffers()).map { ($0.name, $0.tensor.shape) })
    let layout = try Layout(blueprint, shapes: shapes, tensors: Set(tensors.keys), file: directory)

    let matrices = Set(
      model.modules().filter { $0.module is Linear || $0.module is Embedding }.map { $0.path.isEmpty ? "weight" : $0.path + ".weight" })
    var state: [String: Tensor] = [:]
    var (count, bytes) = (0, 0)
    func adopt(_ rules: [TensorRule], _ tensors: [String: Tensor]) {
      for rule in rules {
        let tensor = tensors[rule.foreign]!
        let own = rule.split(dtype.map { tensor.to($0) } ?? tensor, rule.own.map { shapes[$0]! })
        for (name, value) in zip(rule.own, own) {
          let isHalf = value.dtype == .bfloat16 || value.dtype == .float16
          state[name] = isHalf && (value.dtype == .float16 || !matrices.contains(name)) ? value.to(.float32) : value
        }
        count += 1
        bytes += tensor.byteCount
        progress?(LoadProgress(tensors: count, allTensors: layout.rules.count, bytes: bytes, allBytes: allBytes))
      }
    }
    let unused = try check(tensors, layout.rules, shapes, ignored: blueprint.ignored, basePrefix: layout.prefix, directory)
    adopt(layout.rules, tensors)
    for part in layout.parts {
      let folder = directory + "/" + part.folder
      let own = try Safetensors.load(folder)
      _ = try check(own, part.rules, shapes, ignored: [], basePrefix: "", folder)
      adopt(part.rules, own)
    }
    try model.adopt(state)
    model.eval()
    return PretrainedModel(configuration, model, layout, unused: unused)
  }

  /// The same architecture with random parameters, to train from scratch or to measure. Throws `FileError`.
  public static func untrained(_ configuration: PretrainedConfiguration, generator: RandomGenerator) throws -> PretrainedModel {
    let model = try built(configuration, generator, skipping: false)
    let shapes = Dictionary(uniqueKeysWithValues: (model.parameters() + model.buffers()).map { ($0.name, $0.tensor.shape) })
    let layout = try Layout(configuration.blueprint, shapes: shapes, tensors: nil, file: configuration.directory)
    model.eval()
    return PretrainedModel(configuration, model, layout)
  }

  /// The same model, whose modules were changed as another `config.json` describes: what ``save(to:dtype:maximumShardBytes:)`` writes
  /// then. Throws `FileError` where the configuration doesn't describe the model as it is.
  public func described(by json: JSONObject) throws -> PretrainedModel {
    let changed = try PretrainedConfiguration(
      directory: configuration.directory, json: json, contents: CheckpointContents(names: Set(layout.rules.map(\.foreign))))
    let shapes = Dictionary(uniqueKeysWithValues: (model.parameters() + model.buffers()).map { ($0.name, $0.tensor.shape) })
    let layout = try Layout(
      changed.blueprint, shapes: shapes, tensors: Set(layout.rules.map(\.foreign)), file: configuration.directory)
    return PretrainedModel(changed, model, layout, unused: unusedTensors)
  }

  private static func built(
    _ configuration: PretrainedConfiguration, _ generator: RandomGenerator, skipping: Bool
  ) throws -> Module {
    do {
      return try Initializer.$isSkipped.withValue(skipping) { try configuration.blueprint.make(generator) }
    } catch let error as ConfigurationError {
      throw FileError(configuration.directory + "/config.json", error.message)
    }
  }

  /// Throws a `FileError` that lists what is missing, unexpected or of another shape, by the names in the file.
  ///
  /// Unexpected is what would change the base model or a head that is read; tensors of other heads are returned.
  private static func check(
    _ tensors: [String: Tensor], _ rules: [TensorRule], _ shapes: [String: [Int]], ignored: [String], basePrefix: String, _ folder: String
  ) throws -> [String] {
    var missing: [String] = []
    var misshapen: [String] = []
    var strange: [String] = []
    for rule in rules {
      let expected = rule.foreignShape(rule.own.map { shapes[$0]! })
      guard let tensor = tensors[rule.foreign] else {
        missing.append("\"\(rule.foreign)\" \(expected) (for \(rule.own.joined(separator: ", ")))")
        continue
      }
      if tensor.shape != expected {
        misshapen.append("\"\(rule.foreign)\": \(expected) was expected (for \(rule.own.joined(separator: ", "))), it is \(tensor.shape)")
      } else if !tensor.dtype.isFloatingPoint {
        strange.append("\"\(rule.foreign)\" holds \(tensor.dtype), not floating-point numbers")
      }
    }
    let known = Set(rules.map(\.foreign))
    func module(_ name: String) -> Substring { name.lastIndex(of: ".").map { name[..<$0] } ?? name[...] }
    let modules = Set(known.map(module))
    let others = tensors.keys.filter { name in
      !known.contains(name) && !ignored.contains { name == $0 || name.hasSuffix("." + $0) }
    }.sorted()
    let isOurs = { (name: String) in name.hasPrefix(basePrefix) || modules.contains(module(name)) }
    let unexpected = others.filter(isOurs).map { "\"\($0)\" \(tensors[$0]!.shape)" }
    let lists = [("missing", missing), ("of another shape", misshapen), ("unexpected", unexpected), ("of another kind", strange)]
    let lines = lists.filter { !$0.1.isEmpty }.map { title, names in
      "  \(title) (\(names.count)):\n    " + names.prefix(10).joined(separator: "\n    ")
        + (names.count > 10 ? "\n    … and \(names.count - 10) more" : "")
    }
    guard lines.isEmpty else {
      throw FileError(folder, "the tensors don't fit the model that config.json describes:\n" + lines.joined(separator: "\n"))
    }
    return others.filter { !isOurs($0) }
  }

  // MARK: Saving

  /// Writes a folder that `transformers` reads: the tensors under the names and in the layout they were read from, `config.json`, and the other
  /// small files of the folder that the model came from (generation, tokenizer, sentence-transformers).
  ///
  /// A folder that doesn't exist is written under another name and renamed when it is whole; in one that exists, each file is replaced as
  /// a whole. Throws `FileError` or `SafetensorsError`.
  ///
  /// - Parameter dtype: of floating-point tensors in the files; `nil` for the model's.
  public func save(to directory: String, dtype: DType? = nil, maximumShardBytes: Int = 5_000_000_000) throws {
    let directory = directory.count > 1 && directory.hasSuffix("/") ? String(directory.dropLast()) : directory
    let manager = FileManager.default
    let isNew = !manager.fileExists(atPath: directory)
    let target = isNew ? "\(directory).\(UUID().uuidString).partial" : directory
    defer { if isNew { try? manager.removeItem(atPath: target) } }

    // A model whose matrices have 16 bits is written in 16 bits: what was widened on loading goes back unchanged.
    let written = dtype ?? model.parameters().first { $0.tensor.dtype == .bfloat16 }?.tensor.dtype
    let parameters = Dictionary(
      uniqueKeysWithValues: (model.parameters() + model.buffers()).map { name, tensor in
        (name, written.map { tensor.dtype.isFloatingPoint ? tensor.detached().to($0) : tensor.detached() } ?? tensor.detached())
      })
    func joined(_ rules: [TensorRule]) throws -> [String: Tensor] {
      var result: [String: Tensor] = [:]
      for rule in rules {
        let own = try rule.own.map { name in
          guard let tensor = parameters[name] else {
            throw FileError(directory, "the model has no parameter \"\(name)\" any more, which \"\(rule.foreign)\" is written from")
          }
          return tensor
        }
        result[rule.foreign] = rule.join(own)
      }
      return result
    }
    let tensors = try joined(layout.rules)
    var json = configuration.json
    if let dtype = tensors.values.first?.dtype {
      // Older files say torch_dtype; transformers reads both.
      json[json["torch_dtype"] == nil ? "dtype" : "torch_dtype"] = .string("\(dtype)")
    }
    try writeDurably(Data((JSONValue.object(json).serialized(indentation: 2) + "\n").utf8), to: target + "/config.json")
    if configuration.directory != directory { try copyCompanions(to: target) }
    for part in layout.parts {
      try Safetensors.saveSharded(
        try joined(part.rules), toFolder: target + "/" + part.folder, maximumShardBytes: maximumShardBytes)
    }
    try Safetensors.saveSharded(tensors, toFolder: target, maximumShardBytes: maximumShardBytes)
    if isNew {
      do { try manager.moveItem(atPath: target, toPath: directory) } catch {
        throw FileError(directory, "can't be put in place: \(error.localizedDescription)")
      }
    }
  }

  /// The small files beside the tensors: generation, tokenizer, sentence-transformers and its folders.
  private func copyCompanions(to target: String) throws {
    let source = configuration.directory
    let manager = FileManager.default
    var folders = [""]
    if let modules = try? readJSON(source + "/modules.json").arrayValue {
      folders += modules.compactMap { $0["path"]?.stringValue }.filter { !$0.isEmpty && !$0.contains("..") && !$0.hasPrefix("/") }
    }
    for folder in folders {
      let from = folder.isEmpty ? source : source + "/" + folder
      for file in (try? manager.contentsOfDirectory(atPath: from)) ?? [] {
        let path = from + "/" + file
        let isSmall = [".json", ".txt", ".model", ".jinja"].contains { file.hasSuffix($0) }
        guard isSmall, !file.hasSuffix(".index.json"), folder.isEmpty ? file != "config.json" : true else { continue }
        guard let data = manager.contents(atPath: path), data.count <= 256 << 20 else { continue }
        try writeDurably(data, to: (folder.isEmpty ? target : target + "/" + folder) + "/" + file)
      }
    }
  }
}

extension PretrainedModel.Layout {
  /// The rules of single tensors, with the names that the checkpoint really uses.
  ///
  /// - Parameters:
  ///   - shapes: of our parameters.
  ///   - tensors: names in the checkpoint; `nil` for the usual ones.
  init(_ blueprint: Blueprint, shapes: [String: [Int]], tensors: Set<String>?, file: String) throws {
    var rules = blueprint.rules.flatMap { $0.expanded(layers: blueprint.layers) { shapes[$0] != nil } }
    let parts = blueprint.parts.map { part in
      (folder: part.folder, rules: part.rules.flatMap { $0.expanded(layers: 1) { shapes[$0] != nil } })
    }
    let named = Set((rules + parts.flatMap(\.rules)).flatMap(\.own))
    let nameless = shapes.keys.filter { !named.contains($0) }.sorted()
    guard nameless.isEmpty else {
      throw FileError(
        file, "no tensor of this architecture's checkpoints holds the parameters \(nameless.prefix(5).joined(separator: ", "))")
    }
    let prefix = blueprint.prefix
    self.prefix = prefix
    if let tensors {
      if !prefix.isEmpty, let first = rules.first(where: { $0.foreign.hasPrefix(prefix) })?.foreign, !tensors.contains(first) {
        let stem = first.dropFirst(prefix.count)
        // What stands before the same name in this file; the shortest, where several models are in one file.
        let found = tensors.filter { $0 == stem || $0.hasSuffix("." + stem) }.min { ($0.count, $0) < ($1.count, $1) }
        if let found {
          let actual = found.dropLast(stem.count)
          self.prefix = String(actual)
          for i in rules.indices where rules[i].foreign.hasPrefix(prefix) {
            rules[i].foreign = String(actual) + rules[i].foreign.dropFirst(prefix.count)
          }
        }
      }
      // TensorFlow's names of a norm's parameters, which early conversions kept.
      for i in rules.indices where !tensors.contains(rules[i].foreign) {
        for (ending, older) in [(".weight", ".gamma"), (".bias", ".beta")] where rules[i].foreign.hasSuffix(ending) {
          let name = rules[i].foreign.dropLast(ending.count) + older
          if tensors.contains(String(name)) { rules[i].foreign = String(name) }
        }
      }
    }
    self.rules = rules
    self.parts = parts
  }
}
