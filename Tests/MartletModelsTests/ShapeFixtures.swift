import Foundation
import MartletFormats
import MartletModels
import Testing

/// Small checkpoints by transformers (Fixtures/checkpoints.py) and what its front ends compute (Fixtures/front_ends.py).
enum ShapeFixtures {
  static let folder = Bundle.module.resourceURL!.appendingPathComponent("Fixtures").path

  static let frontEnds: [String: Tensor] = {
    do { return try Safetensors.load(folder + "/front_ends.safetensors") } catch { fatalError("\(error)") }
  }()

  static func frontEnd(_ name: String) throws -> Tensor { try #require(frontEnds[name], "the fixture has no \(name)") }

  static func json(_ name: String) throws -> JSONValue {
    try JSONValue.parse(String(decoding: FileManager.default.contents(atPath: folder + "/" + name) ?? Data(), as: UTF8.self))
  }

  /// A loaded checkpoint and what the reference computed from it.
  static func checkpoint(_ name: String) throws -> (pretrained: PretrainedModel, expected: [String: Tensor]) {
    let path = folder + "/checkpoints/" + name
    return (try PretrainedModel.load(path), try Safetensors.load(path + "/expected.safetensors"))
  }

  /// Runs a function with the path of a new folder, which is removed afterwards.
  static func withTemporaryFolder<Result>(_ body: (String) throws -> Result) throws -> Result {
    let path = NSTemporaryDirectory() + "martlet-shapes-" + UUID().uuidString
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: path) }
    return try body(path)
  }

  /// A folder with a checkpoint's configuration changed, and its tensors.
  static func changed(_ name: String, in folder: String, _ changes: JSONObject) throws -> String {
    let source = Self.folder + "/checkpoints/" + name
    var json = try #require(try Self.json("checkpoints/\(name)/config.json").objectValue)
    for (key, value) in changes.pairs { json[key] = value }
    let target = folder + "/" + UUID().uuidString
    try FileManager.default.createDirectory(atPath: target, withIntermediateDirectories: true)
    try Data(JSONValue.object(json).serialized().utf8).write(to: URL(fileURLWithPath: target + "/config.json"))
    try FileManager.default.createSymbolicLink(
      atPath: target + "/model.safetensors", withDestinationPath: source + "/model.safetensors")
    return target
  }
}
