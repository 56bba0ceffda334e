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
    (try PretrainedModel.load(PretrainedFixture.folder(name)), try PretrainedFixture.expected(name))
  }

  /// What loading says of a checkpoint whose configuration was changed: the error's text, or "loaded".
  static func loading(_ name: String, _ changes: JSONObject) -> String {
    do {
      try withChangedCheckpoint(name, configuration: { json in for (key, value) in changes.pairs { json[key] = value } }) {
        _ = try PretrainedModel.load($0)
      }
      return "loaded"
    } catch { return "\(error)" }
  }
}
