import Foundation
import MartletFormats

/// Reads a checkpoint's `config.json` key by key. Every refusal is a `FileError` that names the file and the key, says what was
/// expected and what stands there.
///
/// A key whose value is null counts as absent, as the ecosystem's writers spell out options that are off.
public struct ConfigurationReader: Sendable {
  public let file: String
  /// The folder that the checkpoint is in.
  public let folder: String
  public let json: JSONObject

  /// - Parameter folder: the file's, unless it is given.
  public init(file: String, folder: String? = nil, json: JSONObject) {
    self.file = file
    self.folder = folder ?? (file as NSString).deletingLastPathComponent
    self.json = json
  }

  public func refused(_ reason: String) -> FileError { FileError(file, reason) }

  /// The first of the keys that is given.
  private func value(_ keys: [String]) -> (key: String, value: JSONValue)? {
    for key in keys {
      if let value = json[key], value != .null { return (key, value) }
    }
    return nil
  }

  public func isGiven(_ key: String) -> Bool { value([key]) != nil }

  private func required<Value>(_ keys: [String], _ value: Value?) throws -> Value {
    guard let value else {
      throw refused("the key \"\(keys[0])\" is missing.\(Suggestions.phrase(for: keys[0], in: json.keys))")
    }
    return value
  }

  // MARK: Numbers

  /// A whole number in a range; `nil` when no key is given. Several keys are spellings of the same.
  public func optionalInteger(_ keys: String..., in range: ClosedRange<Int>) throws -> Int? {
    try optionalInteger(keys, in: range)
  }

  private func optionalInteger(_ keys: [String], in range: ClosedRange<Int>) throws -> Int? {
    guard let (key, value) = value(keys) else { return nil }
    guard let number = value.intValue, range.contains(number) else {
      throw refused(
        "\"\(key)\" must be a whole number in \(range.lowerBound)...\(range.upperBound), it is \(value.kindDescription)")
    }
    return number
  }

  public func integer(_ keys: String..., in range: ClosedRange<Int>, default fallback: Int? = nil) throws -> Int {
    try required(keys, try optionalInteger(keys, in: range) ?? fallback)
  }

  /// A finite number in a range.
  public func optionalNumber(_ keys: String..., in range: ClosedRange<Double>) throws -> Double? {
    try optionalNumber(keys, in: range)
  }

  private func optionalNumber(_ keys: [String], in range: ClosedRange<Double>) throws -> Double? {
    guard let (key, value) = value(keys) else { return nil }
    guard let number = value.doubleValue, range.contains(number) else {
      throw refused("\"\(key)\" must be a number in \(range.lowerBound)...\(range.upperBound), it is \(value.kindDescription)")
    }
    return number
  }

  public func number(_ keys: String..., in range: ClosedRange<Double>, default fallback: Double? = nil) throws -> Double {
    try required(keys, try optionalNumber(keys, in: range) ?? fallback)
  }

  // MARK: Other values

  public func optionalFlag(_ key: String) throws -> Bool? {
    guard let (_, value) = value([key]) else { return nil }
    guard let flag = value.boolValue else { throw refused("\"\(key)\" must be true or false, it is \(value.kindDescription)") }
    return flag
  }

  public func flag(_ key: String, default fallback: Bool) throws -> Bool { try optionalFlag(key) ?? fallback }

  public func optionalString(_ key: String) throws -> String? {
    guard let (_, value) = value([key]) else { return nil }
    guard let text = value.stringValue else { throw refused("\"\(key)\" must be a string, it is \(value.kindDescription)") }
    return text
  }

  public func optionalObject(_ key: String) throws -> ConfigurationReader? {
    guard let (_, value) = value([key]) else { return nil }
    guard let object = value.objectValue else { throw refused("\"\(key)\" must be an object, it is \(value.kindDescription)") }
    return ConfigurationReader(file: "\(file), \"\(key)\"", folder: folder, json: object)
  }

  public func optionalList(_ key: String) throws -> [JSONValue]? {
    guard let (_, value) = value([key]) else { return nil }
    guard let list = value.arrayValue else { throw refused("\"\(key)\" must be an array, it is \(value.kindDescription)") }
    return list
  }

  public func strings(_ key: String) throws -> [String] {
    try (optionalList(key) ?? []).map {
      guard let text = $0.stringValue else { throw refused("\"\(key)\" must hold strings only, there is \($0.kindDescription)") }
      return text
    }
  }

  /// Refuses an option that changes what the model computes and that isn't implemented.
  public func unsupported(_ key: String, unless isFine: Bool, _ meaning: String) throws {
    guard !isFine else { return }
    throw refused("\"\(key)\" is \(json[key]?.serialized() ?? "absent"): \(meaning) is not supported")
  }

  // MARK: What many families spell alike

  public static let widths = 1...(1 << 20)

  /// An activation by the ecosystem's name.
  public func activation(_ keys: String..., default fallback: String? = nil) throws -> Activation {
    guard let name = try keys.compactMap({ try optionalString($0) }).first ?? fallback else {
      throw refused("the key \"\(keys[0])\" (the feed-forward's activation) is missing")
    }
    let known: [String: Activation] = [
      "gelu": .gelu, "gelu_python": .gelu, "gelu_new": .geluTanh, "gelu_pytorch_tanh": .geluTanh, "gelu_fast": .geluTanh,
      "gelu_accurate": .geluTanh, "relu": .relu, "silu": .silu, "swish": .silu, "tanh": .tanh, "sigmoid": .sigmoid,
      "relu2": .reluSquared, "relu_squared": .reluSquared, "linear": .identity,
    ]
    guard let activation = known[name] else {
      let names = known.keys.sorted()
      throw refused(
        "the activation \"\(name)\" is unknown.\(Suggestions.phrase(for: name, in: names)) There are: \(names.joined(separator: ", "))")
    }
    return activation
  }

  /// Heads that share the width evenly, or have a width of their own.
  public func headWidth(width: Int, heads: Int, _ key: String = "head_dim") throws -> Int {
    if let own = try optionalInteger(key, in: 1...(1 << 16)) { return own }
    guard width % heads == 0 else {
      throw refused("the model's width (\(width)) is not a multiple of its attention heads (\(heads))")
    }
    return width / heads
  }

  /// Key/value heads, a divisor of the heads.
  public func keyValueHeads(heads: Int, _ key: String = "num_key_value_heads") throws -> Int {
    let shared = try optionalInteger(key, in: 1...(1 << 16)) ?? heads
    guard heads % shared == 0 else { throw refused("the attention heads (\(heads)) are not a multiple of \"\(key)\" (\(shared))") }
    return shared
  }
}

/// Reads a JSON file of a checkpoint. Throws `FileError` for a file that is missing, no regular file, larger than 64 MB or no JSON.
func readJSON(_ path: String) throws -> JSONValue {
  var isFolder: ObjCBool = false
  guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder), !isFolder.boolValue else {
    throw FileError(path, "there is no such file")
  }
  let real = URL(fileURLWithPath: path).resolvingSymlinksInPath().path
  let attributes = try? FileManager.default.attributesOfItem(atPath: real)
  guard attributes?[.type] as? FileAttributeType == .typeRegular, let size = attributes?[.size] as? Int else {
    throw FileError(path, "is not a regular file")
  }
  guard size <= 64 << 20 else { throw FileError(path, "has \(size) bytes, more than the 64 MB that such a file may have") }
  guard let data = FileManager.default.contents(atPath: path) else { throw FileError(path, "can't be read") }
  do {
    return try data.withUnsafeBytes { try JSONValue.parse($0.bindMemory(to: UInt8.self)) }
  } catch { throw FileError(path, "isn't valid JSON: \(error)") }
}
