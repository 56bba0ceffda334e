import Foundation
import MartletModels
import Testing

/// The checkpoints that Tests/Fixtures/checkpoints.py makes.
enum PretrainedFixture {
  static let root = Bundle.module.resourcePath! + "/Fixtures/checkpoints"
  static func folder(_ name: String) -> String { root + "/" + name }

  static let decoders = [
    "llama-2", "llama-3", "llama-linear", "llama-dynamic", "llama-yarn", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3",
    "phi3-longrope", "gpt2", "opt", "opt-post-norm", "gpt-neox", "gpt-neox-sequential", "gla", "gla-convolution", "delta-net",
    "delta-net-gate",
  ]
  static let encoders = [
    "bert", "roberta", "distilbert", "minilm", "bert-classifier", "bert-cross-encoder", "roberta-classifier", "distilbert-classifier",
  ]
  static let encoderDecoders = ["t5", "t5-v1.1", "whisper"]
  static let visionTransformers = ["vit", "vit-features", "deit"]
  static let all = decoders + encoders + encoderDecoders + visionTransformers

  static let others = ["t5", "t5-v1.1", "whisper", "vit", "vit-features", "deit"]
  static let all = decoders + encoders + others

  /// What the reference computed; integers as int64.
  static func expected(_ name: String) throws -> [String: Tensor] {
    try SafetensorsFile(folder(name) + "/expected.safetensors").tensors().mapValues { $0.dtype.isFloatingPoint ? $0 : $0.to(.int64) }
  }
}

/// A folder of its own for a body, removed afterwards.
func withTemporaryFolder<Result>(_ body: (String) throws -> Result) throws -> Result {
  let folder = FileManager.default.temporaryDirectory.appendingPathComponent("martlet-\(UUID().uuidString)").path
  try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
  defer { try? FileManager.default.removeItem(atPath: folder) }
  return try body(folder)
}

/// A copy of a checkpoint in a temporary folder, whose configuration and tensors a body may spoil.
func withChangedCheckpoint(
  _ name: String, configuration: (inout JSONObject) -> Void = { _ in }, tensors: ((inout [String: Tensor]) -> Void)? = nil,
  _ body: (String) throws -> Void
) throws {
  try withTemporaryFolder { folder in
    for file in try FileManager.default.contentsOfDirectory(atPath: PretrainedFixture.folder(name)) {
      try FileManager.default.copyItem(atPath: PretrainedFixture.folder(name) + "/" + file, toPath: folder + "/" + file)
    }
    try FileManager.default.removeItem(atPath: folder + "/expected.safetensors")
    var json = try JSONValue.parse(String(contentsOfFile: folder + "/config.json", encoding: .utf8)).objectValue!
    configuration(&json)
    try JSONValue.object(json).serialized(indentation: 2).write(toFile: folder + "/config.json", atomically: true, encoding: .utf8)
    if let tensors {
      var state = try Safetensors.load(folder).mapValues { $0.copy() }
      tensors(&state)
      try Safetensors.saveSharded(state, toFolder: folder)
    }
    try body(folder)
  }
}
