import ArgumentParser
import Foundation
import MartletCatalog

/// How models on disk are named on the command line, and what they are.
enum PretrainedArguments {
  enum Kind {
    /// A folder with config.json: a Hugging Face checkpoint.
    case checkpoint
    /// A folder with martlet.json, made by `martlet train`.
    case trained
    /// One file of tensors.
    case tensors
  }

  /// What stands at a path. Throws `FileError` for what is no model, with the reason.
  static func kind(_ path: String) throws -> Kind {
    var isFolder: ObjCBool = false
    guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) else {
      throw FileError(path, "there is no such model: the path of a folder with config.json was expected (models are not downloaded)")
    }
    guard isFolder.boolValue else {
      guard path.hasSuffix(".safetensors") else { throw FileError(path, "is no model's folder and no .safetensors file") }
      return .tensors
    }
    let files = (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []
    if files.contains("config.json") { return .checkpoint }
    if files.contains("martlet.json") { return .trained }
    throw FileError(path, "is no model's folder: it has neither config.json (Hugging Face) nor martlet.json (`martlet train`)")
  }

  /// Reads a checkpoint with a bar on standard error where that takes long.
  ///
  /// - Parameter dtype: the type of its parameters; `nil` for the file's.
  /// - Throws: as ``PretrainedModel/load(_:dtype:progress:)``, and `FileError` for what is no checkpoint.
  static func load(_ path: String, dtype: DType? = nil) throws -> PretrainedModel {
    switch try kind(path) {
    case .checkpoint: break
    case .trained: throw FileError(path, "was made by `martlet train`; a Hugging Face checkpoint was expected here")
    case .tensors: throw FileError(path, "is one file of tensors; name the folder that holds it with its config.json")
    }
    try checkFormat(path)
    let display = ProgressDisplay()
    let begin = ContinuousClock.now
    defer { display.close() }
    return try withTorchErrors {
      try PretrainedModel.load(path, dtype: dtype) { progress in
        guard ContinuousClock.now - begin > .seconds(1) else { return }
        let fraction = progress.allBytes > 0 ? Double(progress.bytes) / Double(progress.allBytes) : 1
        display.update(
          "loading \(URL(fileURLWithPath: path).lastPathComponent)", min(1, fraction),
          "\(Figure.bytes(Double(progress.bytes))) of \(Figure.bytes(Double(progress.allBytes)))")
      }
    }
  }

  /// Says what to do about weights in PyTorch's pickle format, which runs code when it is read and so isn't.
  static func checkFormat(_ path: String) throws {
    let files = (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []
    guard !files.contains(where: { $0.hasSuffix(".safetensors") }),
      let pickled = files.first(where: { $0.hasSuffix(".bin") || $0.hasSuffix(".pt") })
    else { return }
    throw FileError(
      path,
      "has its weights in \(pickled) only, which is not read; save them as safetensors first (transformers: "
        + "`AutoModel.from_pretrained(folder).save_pretrained(folder)`)")
  }
}
