import Foundation
import MartletCatalog
import MartletTokenizers

/// What can be said of a model from its configuration and the headers of its files.
struct ModelInspection {
  struct Entry {
    let name: String
    let dtype: DType
    let shape: [Int]
    let bytes: Int
    var count: Int { shape.reduce(1, *) }
  }

  enum Part: String, CaseIterable {
    case embeddings, mixing = "attention and other mixing", feedForward = "feed-forward", norms, other = "heads and other"

    /// By the words in a tensor's name, which the families' own names and ours share.
    init(_ name: String) {
      let name = name.lowercased()
      func has(_ words: String...) -> Bool { words.contains { name.contains($0) } }
      if has("norm", "ln_", ".ln", "_ln") {
        self = .norms
      } else if has("embed", "wte", "wpe", "position", "token_types", "patch", "shared.weight") {
        self = .embeddings
      } else if has("pooler", "classifier", "lm_head", "cls.", "vocabulary_head") || name.hasPrefix("head.") {
        self = .other
      } else if has("attn", "attention", ".mixer", "query", "key", "value", "selfattention") {
        self = .mixing
      } else if has("mlp", "feed_forward", "ffn", "fc1", "fc2", "intermediate", "output.dense", "densereludense") {
        self = .feedForward
      } else {
        self = .other
      }
    }
  }

  /// Bytes of the weights when the model runs in a form of `martlet generate --weights`.
  struct WeightsForm {
    let name: String
    let bytes: Int
  }

  /// What a sequence keeps while it is continued.
  struct SequenceState {
    let length: Int
    let full: Int
    let bfloat16: Int
    let int8: Int
  }

  let path: String
  let configuration: PretrainedConfiguration?
  let tensors: [Entry]
  let bytesOnDisk: Int
  let files: Int
  /// By part: parameters of the model, each counted once (of a file without a configuration: the tensors' elements).
  let parts: [(part: Part, count: Int)]
  let forms: [WeightsForm]
  /// Empty for models that don't generate.
  let states: [SequenceState]
  let tokenizer: Tokenizer?
  /// Why there is none, where files are there.
  let tokenizerProblem: String?

  var parameters: Int { parts.reduce(0) { $0 + $1.count } }

  /// Elements by dtype, the most first.
  var dtypes: [(dtype: DType, count: Int)] {
    Dictionary(grouping: tensors) { "\($0.dtype)" }.values.map { entries in (entries[0].dtype, entries.reduce(0) { $0 + $1.count }) }
      .sorted { $0.1 > $1.1 }
  }

  var hasConstantState: Bool { states.count > 1 && states.allSatisfy { $0.full == states[0].full } }
  /// Bytes that a further position takes at the longest length: less where some layers keep a window only.
  var bytesPerPosition: Int {
    guard states.count > 1, let last = states.last else { return 0 }
    let before = states[states.count - 2]
    return (last.full - before.full) / (last.length - before.length)
  }

  static let lengths = [1, 2, 4, 8, 16, 32, 64, 128].map { $0 << 10 }

  /// Reads no weights. Throws `FileError`, `SafetensorsError`.
  init(_ path: String) throws {
    self.path = path
    let kind = try PretrainedArguments.kind(path)
    if kind == .checkpoint { try PretrainedArguments.checkFormat(path) }
    // The configuration first: its errors say more than those of the tensors.
    let described = kind == .checkpoint ? try PretrainedConfiguration(directory: path) : nil

    // Mapped, not read.
    let mapped = try Self.hasWeights(path, kind) ? Safetensors.load(path) : [:]
    tensors = mapped.map { Entry(name: $0.key, dtype: $0.value.dtype, shape: $0.value.shape, bytes: $0.value.byteCount) }
      .sorted { $0.name.localizedStandardCompare($1.name) == .orderedAscending }
    (files, bytesOnDisk) = Self.files(path, kind)

    var model: Module?
    if let described {
      let contents = CheckpointContents(names: mapped.isEmpty ? nil : Set(mapped.keys))
      let configuration = try PretrainedConfiguration(directory: path, json: described.json, contents: contents)
      self.configuration = configuration
      // On the meta device parameters have shapes and no memory.
      model = try withTorchErrors {
        try Initializer.$isSkipped.withValue(true) { try configuration.blueprint.make(RandomGenerator(seed: 0)) }
      }
    } else {
      configuration = nil
    }
    let counted = model.map { $0.parameters().map { ($0.name, $0.tensor.count) } } ?? tensors.map { ($0.name, $0.count) }
    parts = Part.allCases.compactMap { part in
      let count = counted.reduce(0) { $0 + (Part($1.0) == part ? $1.1 : 0) }
      return count > 0 ? (part, count) : nil
    }
    forms = Self.forms(counted.reduce(0) { $0 + $1.1 }, model)
    states = try model.map(Self.states) ?? []

    var (tokenizer, problem): (Tokenizer?, String?) = (nil, nil)
    if kind == .checkpoint {
      do { tokenizer = try Tokenizer.load(path) } catch { problem = "\(error)" }
      if (try? FileManager.default.contentsOfDirectory(atPath: path))?.contains(where: { $0.contains("token") || $0.hasPrefix("vocab") })
        != true
      {
        problem = nil
      }
    }
    self.tokenizer = tokenizer
    tokenizerProblem = problem
  }

  private static func hasWeights(_ path: String, _ kind: PretrainedArguments.Kind) throws -> Bool {
    if kind != .checkpoint { return true }
    let files = try FileManager.default.contentsOfDirectory(atPath: path)
    return files.contains { $0.hasSuffix(".safetensors") || $0.hasSuffix(".safetensors.index.json") }
  }

  private static func files(_ path: String, _ kind: PretrainedArguments.Kind) -> (Int, Int) {
    let files = kind == .tensors ? [path] : ((try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []).map { path + "/" + $0 }
    let sizes = files.filter { $0.hasSuffix(".safetensors") }.compactMap { file in
      let real = URL(fileURLWithPath: file).resolvingSymlinksInPath().path
      return (try? FileManager.default.attributesOfItem(atPath: real))?[.size] as? Int
    }
    return (sizes.count, sizes.reduce(0, +))
  }

  private static func forms(_ parameters: Int, _ model: Module?) -> [WeightsForm] {
    var forms = [WeightsForm(name: "float32", bytes: parameters * 4), WeightsForm(name: "bfloat16", bytes: parameters * 2)]
    guard let model else { return forms }
    // Linear layers are stored in 8 bits with a scale for each output, or in 4 bits with one for each 64 inputs; the rest stays.
    var (dense, eight, four) = (parameters * 4, 0, 0)
    for case let (_, linear as Linear) in model.modules() {
      let (inputs, outputs) = (linear.inFeatures, linear.outFeatures)
      dense -= inputs * outputs * 4
      eight += outputs * (inputs + 2)
      four += outputs * ((inputs + 127) / 128 * 64 + (inputs + 63) / 64 * 2)
    }
    forms += [WeightsForm(name: "int8", bytes: dense + eight), WeightsForm(name: "int4", bytes: dense + four)]
    return forms
  }

  private static func states(_ model: Module) throws -> [SequenceState] {
    guard model is any GenerativeModel,
      let backbone = model.modules().compactMap({ $0.module as? SequenceBackbone }).first(where: { $0.configuration.isCausal })
    else { return [] }
    func bytes(_ length: Int, _ storage: CacheOptions.Storage) throws -> Int {
      backbone.stateBytes(try backbone.initialState(batch: 1, cache: CacheOptions(capacity: length, storage: storage)))
    }
    return try withTorchErrors {
      try lengths.map {
        SequenceState(length: $0, full: try bytes($0, .full), bfloat16: try bytes($0, .bfloat16), int8: try bytes($0, .int8))
      }
    }
  }

  /// The longest sequence whose state fits beside the weights; `nil` where not even the weights do, or where length costs nothing.
  func longestContext(_ form: WeightsForm, memory: Int) -> Int? {
    guard let first = states.first, !hasConstantState else { return nil }
    // Weights and state leave a tenth to what a pass computes.
    let left = Int(Double(memory) * 0.9) - form.bytes
    guard left > 0 else { return nil }
    var (length, bytes) = (0, 0)
    for state in states {
      if state.full > left { return length + (left - bytes) * (state.length - length) / max(1, state.full - bytes) }
      (length, bytes) = (state.length, state.full)
    }
    _ = first
    return bytesPerPosition > 0 ? length + (left - bytes) / bytesPerPosition : nil
  }

  func fits(_ form: WeightsForm, memory: Int) -> Bool { Double(form.bytes + (states.first?.full ?? 0)) <= Double(memory) * 0.9 }
}
