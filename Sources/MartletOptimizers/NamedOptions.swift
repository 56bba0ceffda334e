import Foundation

/// A name and options beside it in one object of a recipe, laid over the defaults of the type that the name stands for.
struct NamedOptions {
  /// What a recipe's value can be.
  enum Value: Codable {
    case flag(Bool)
    case number(Double)
    case text(String)
    case absent

    init(from decoder: any Decoder) throws {
      let container = try decoder.singleValueContainer()
      if container.decodeNil() {
        self = .absent
      } else if let flag = try? container.decode(Bool.self) {
        self = .flag(flag)
      } else if let number = try? container.decode(Double.self) {
        self = .number(number)
      } else {
        self = .text(try container.decode(String.self))
      }
    }

    func encode(to encoder: any Encoder) throws {
      var container = encoder.singleValueContainer()
      switch self {
      case .flag(let flag): try container.encode(flag)
      case .number(let number): try container.encode(number)
      case .text(let text): try container.encode(text)
      case .absent: try container.encodeNil()
      }
    }
  }

  let what: String
  var name: String
  var values: [String: Value]

  init(from decoder: any Decoder, what: String) throws {
    var given = try decoder.singleValueContainer().decode([String: Value].self)
    guard case .text(let name)? = given.removeValue(forKey: "name") else {
      throw TensorError("a \(what) needs a “name”; found the keys \(given.keys.sorted().joined(separator: ", "))")
    }
    self.what = what
    self.name = name
    values = [:]
    for (key, value) in given { values[Self.camelCase(key)] = value }
  }

  init(name: String, _ options: some Encodable) throws {
    what = ""
    self.name = name
    values = try Self.values(of: options)
  }

  func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(values.merging(["name": .text(name)]) { $1 })
  }

  /// The options with these values in place of the defaults.
  ///
  /// - Throws: `TensorError` for keys that the options don't have, for required ones that are missing, and for values of another
  ///   type.
  func overlaid<Options: Codable>(on defaults: Options, required: Set<String> = []) throws -> Options {
    let known = Mirror(reflecting: defaults).children.compactMap(\.label)
    for key in values.keys.sorted() where !known.contains(key) {
      throw TensorError("\(what) “\(name)” has no option “\(key)”; it has \(known.sorted().joined(separator: ", "))")
    }
    for key in required.sorted() where values[key] == nil {
      throw TensorError("\(what) “\(name)” needs the option “\(key)”")
    }
    let merged = try Self.values(of: defaults).merging(values) { $1 }
    do {
      return try JSONDecoder().decode(Options.self, from: JSONEncoder().encode(merged))
    } catch DecodingError.typeMismatch(let type, let context) {
      throw TensorError("\(what) “\(name)”: “\(context.codingPath.last?.stringValue ?? "?")” must be of type \(type)")
    } catch DecodingError.valueNotFound(let type, let context) {
      throw TensorError("\(what) “\(name)”: “\(context.codingPath.last?.stringValue ?? "?")” must be of type \(type), not null")
    } catch DecodingError.dataCorrupted(let context) {
      throw TensorError(
        "\(what) “\(name)”: “\(context.codingPath.last?.stringValue ?? "?")” has an unusable value: \(context.debugDescription)")
    }
  }

  private static func values(of options: some Encodable) throws -> [String: Value] {
    try JSONDecoder().decode([String: Value].self, from: JSONEncoder().encode(options))
  }

  static func camelCase(_ key: String) -> String {
    let parts = key.split(separator: "_", omittingEmptySubsequences: true)
    return parts.prefix(1).joined() + parts.dropFirst().map { $0.prefix(1).uppercased() + $0.dropFirst() }.joined()
  }
}
