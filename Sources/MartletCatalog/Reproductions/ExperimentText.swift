import Foundation

/// The text of experiments on language: a program writes it (``SyntheticText``), unless the environment names a file.
enum ExperimentText {
  struct Given: Sendable {
    /// Of the file, without its folder.
    var name: String
    var bytes: Data
  }

  static let variable = "MARTLET_TEXT"
  static let hint = "\(variable) names a file to read instead."

  /// What the file of the environment's variable holds; `nil` when it isn't set.
  ///
  /// - Throws: `TensorError` when the file can't be read.
  static func given(_ environment: [String: String] = ProcessInfo.processInfo.environment) throws -> Given? {
    guard let path = environment[variable], !path.isEmpty else { return nil }
    guard let data = FileManager.default.contents(atPath: path) else {
      throw TensorError("\(variable) names \(path), which can't be read; give a text file, or unset it")
    }
    return Given(name: URL(fileURLWithPath: path).lastPathComponent, bytes: data)
  }
}
