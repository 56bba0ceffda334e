import Foundation
import MartletFormats

/// How sentence-transformers makes one vector of a text's outputs: pooling, linear maps, normalisation, as `modules.json` lists them.
public final class SentenceEmbedding: Module {
  /// Ways of pooling; several are put side by side.
  public enum PoolingMode: String, Sendable, CaseIterable {
    case first = "cls"
    case max
    case mean
    /// The sum over √length.
    case meanSquareRoot = "mean_sqrt_len_tokens"
    /// Weighted by position: 1, 2, 3, …
    case weightedMean = "weightedmean"
    case last = "lasttoken"
  }

  public struct DenseLayer: Sendable, Equatable {
    public var inputs: Int
    public var outputs: Int
    public var bias: Bool
    public var activation: Activation
    /// The folder that holds its tensors.
    public var folder: String
  }

  public struct Configuration: Sendable, Equatable {
    public var modes: [PoolingMode] = [.mean]
    public var dense: [DenseLayer] = []
    public var normalizes = false
    /// The most tokens of a text that the model reads, where the files say so.
    public var longest: Int?

    public init() {}
  }

  public let configuration: Configuration
  @Child public var dense: [Linear]

  /// - Parameter width: of the outputs that are pooled.
  public init(_ configuration: Configuration, width: Int, generator: RandomGenerator) {
    self.configuration = configuration
    super.init()
    dense = configuration.dense.map { Linear($0.inputs, $0.outputs, bias: $0.bias, generator: generator) }
  }

  /// outputs: [batch, length, width], mask [batch, length] → [batch, width of the embedding].
  public func callAsFunction(_ outputs: Tensor, mask: Tensor?) -> Tensor {
    finished(pooling(outputs, mask: mask, modes: configuration.modes))
  }

  private func pooling(_ x: Tensor, mask: Tensor?, modes: [PoolingMode]) -> Tensor {
    let parts = modes.map { mode -> Tensor in
      switch mode {
      case .first: return x.selected(axis: 1, 0)
      case .max: return Pooling.max(x, mask: mask)
      case .mean: return Pooling.mean(x, mask: mask)
      case .last: return Pooling.last(x, mask: mask)
      case .meanSquareRoot, .weightedMean:
        let keep = mask?.to(x.dtype) ?? Tensor.ones([x.dim(0), x.dim(1)], dtype: x.dtype, device: x.device)
        let weights = mode == .weightedMean ? keep * Tensor.arange(1, Double(x.dim(1) + 1), dtype: x.dtype, device: x.device) : keep
        let total = weights.sum(axis: 1, keepDims: true).clamped(min: 1e-9)
        return (x * weights.expandedDimension(-1)).sum(axis: 1) / (mode == .weightedMean ? total : total.sqrt())
      }
    }
    return parts.count == 1 ? parts[0] : concatenated(parts, axis: -1)
  }

  /// outputs: [1, total, width], texts end to end → [texts, width of the embedding].
  public func callAsFunction(_ outputs: Tensor, packing: SequencePacking) -> Tensor {
    let own: [PoolingMode: Pooling] = [.first: .first, .max: .max, .mean: .mean, .last: .last]
    let parts = configuration.modes.map { mode in
      if let pooling = own[mode] { return pooling(outputs, packing: packing) }
      return concatenated(
        zip(packing.offsets, packing.offsets.dropFirst()).map {
          pooling(outputs.narrowed(axis: 1, start: $0, length: $1 - $0), mask: nil, modes: [mode])
        })
    }
    return finished(parts.count == 1 ? parts[0] : concatenated(parts, axis: -1))
  }

  private func finished(_ pooled: Tensor) -> Tensor {
    var x = pooled
    for (layer, choice) in zip(dense, configuration.dense) { x = choice.activation(layer(x)) }
    guard configuration.normalizes else { return x }
    return x / x.square().sum(axis: -1, keepDims: true).sqrt().clamped(min: 1e-12)
  }
}

extension SentenceEmbedding.Configuration {
  /// Reads `modules.json` and what it names; the default where a folder has no such file. Throws `FileError`.
  static func read(directory: String, width: Int) throws -> SentenceEmbedding.Configuration {
    var result = SentenceEmbedding.Configuration()
    let modulesFile = directory + "/modules.json"
    guard FileManager.default.fileExists(atPath: modulesFile) else { return result }
    guard let list = try readJSON(modulesFile).arrayValue, list.count <= 64 else {
      throw FileError(modulesFile, "a list of at most 64 modules was expected")
    }
    var pools = false
    for entry in list {
      guard let type = entry["type"]?.stringValue, let path = entry["path"]?.stringValue else {
        throw FileError(modulesFile, "every module needs the strings \"type\" and \"path\"")
      }
      guard !path.hasPrefix("/"), !path.split(separator: "/").contains("..") else {
        throw FileError(modulesFile, "the path \"\(path)\" leads out of the folder")
      }
      let folder = path.isEmpty ? directory : directory + "/" + path
      // sentence-transformers writes the class with its module, which has moved between its versions.
      switch type.split(separator: ".").last.map(String.init) ?? type {
      case "Transformer":
        for name in ["sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json"] {
          let file = folder + "/" + name
          guard FileManager.default.fileExists(atPath: file), let object = try readJSON(file).objectValue else { continue }
          result.longest = try ConfigurationReader(file: file, json: object).optionalInteger("max_seq_length", in: 1...(1 << 32))
        }
      case "Pooling":
        result.modes = try poolingModes(folder + "/config.json")
        pools = true
      case "Dense": result.dense.append(try denseLayer(folder + "/config.json", folder: path))
      case "Normalize": result.normalizes = true
      case let other:
        throw FileError(modulesFile, "the module \"\(other)\" is not supported; supported are Transformer, Pooling, Dense and Normalize")
      }
    }
    guard pools else { throw FileError(modulesFile, "there is no module Pooling") }
    var inputs = width * result.modes.count
    for layer in result.dense {
      guard layer.inputs == inputs else {
        throw FileError(modulesFile, "the dense module \"\(layer.folder)\" takes \(layer.inputs) channels, it gets \(inputs)")
      }
      inputs = layer.outputs
    }
    return result
  }

  private static func poolingModes(_ file: String) throws -> [SentenceEmbedding.PoolingMode] {
    guard let object = try readJSON(file).objectValue else { throw FileError(file, "an object was expected") }
    let c = ConfigurationReader(file: file, json: object)
    if let name = try c.optionalString("pooling_mode") {
      guard let mode = SentenceEmbedding.PoolingMode(rawValue: name) else {
        let names = SentenceEmbedding.PoolingMode.allCases.map(\.rawValue)
        throw FileError(file, "unknown pooling \"\(name)\".\(Suggestions.phrase(for: name, in: names))")
      }
      return [mode]
    }
    // In the order in which sentence-transformers puts them side by side.
    let flags: [(String, SentenceEmbedding.PoolingMode)] = [
      ("cls_token", .first), ("max_tokens", .max), ("mean_tokens", .mean), ("mean_sqrt_len_tokens", .meanSquareRoot),
      ("weightedmean_tokens", .weightedMean), ("lasttoken", .last),
    ]
    let modes = try flags.filter { try c.flag("pooling_mode_" + $0.0, default: false) }.map(\.1)
    guard !modes.isEmpty else { throw FileError(file, "no pooling mode is on") }
    return modes
  }

  private static func denseLayer(_ file: String, folder: String) throws -> SentenceEmbedding.DenseLayer {
    guard let object = try readJSON(file).objectValue else { throw FileError(file, "an object was expected") }
    let c = ConfigurationReader(file: file, json: object)
    let name = try c.optionalString("activation_function") ?? "torch.nn.modules.linear.Identity"
    let known: [String: Activation] = [
      "Identity": .identity, "Tanh": .tanh, "ReLU": .relu, "GELU": .gelu, "SiLU": .silu, "Sigmoid": .sigmoid,
    ]
    guard let activation = known[name.split(separator: ".").last.map(String.init) ?? name] else {
      throw FileError(file, "the activation \"\(name)\" is not supported; supported are \(known.keys.sorted().joined(separator: ", "))")
    }
    return SentenceEmbedding.DenseLayer(
      inputs: try c.integer("in_features", in: ConfigurationReader.widths),
      outputs: try c.integer("out_features", in: ConfigurationReader.widths), bias: try c.flag("bias", default: true),
      activation: activation, folder: folder)
  }
}
