/// One key of a method's configuration.
public struct ConfigurationKey: Sendable {
  public enum ValueType: String, Sendable { case boolean, integer, number, string, array, object }

  public let name: String
  public let type: ValueType
  /// The value when the key is absent; nil when the key must be given.
  public let defaultValue: JSONValue?
  public let meaning: String
  /// The allowed strings; empty when any value of the type is allowed.
  public let choices: [String]

  public init(_ name: String, _ type: ValueType, default defaultValue: JSONValue?, _ meaning: String, choices: [String] = []) {
    self.name = name
    self.type = type
    self.defaultValue = defaultValue
    self.meaning = meaning
    self.choices = choices
  }

  func accepts(_ value: JSONValue) -> Bool {
    switch type {
    case .boolean: value.boolValue != nil
    case .integer: value.intValue != nil
    case .number: value.doubleValue != nil
    case .string: value.stringValue.map { choices.isEmpty || choices.contains($0) } ?? false
    case .array: value.arrayValue != nil
    case .object: value.objectValue != nil
    }
  }
}

/// A configuration that a method doesn't understand. The message names the key, and the nearest one that exists.
public struct ConfigurationError: Error, CustomStringConvertible, Sendable {
  public let message: String
  public init(_ message: String) { self.message = message }
  public var description: String { message }
}

extension [ConfigurationKey] {
  /// The configuration with every default filled in, keys in the order of the keys.
  ///
  /// Throws ``ConfigurationError`` for an unknown key (suggesting the nearest), a value of the wrong type or outside its choices, and
  /// a required key that is missing. `null` counts as an empty configuration.
  public func completed(_ configuration: JSONValue) throws -> JSONValue {
    let given: JSONObject
    switch configuration {
    case .object(let object): given = object
    case .null: given = JSONObject()
    default: throw ConfigurationError("a configuration must be an object, this is \(configuration.kindDescription)")
    }
    let names = map(\.name)
    for key in given.keys where !names.contains(key) {
      throw ConfigurationError("unknown configuration key \"\(key)\".\(Suggestions.phrase(for: key, in: names))")
    }
    var result = JSONObject()
    for key in self {
      guard let value = given[key.name] ?? key.defaultValue else {
        throw ConfigurationError("the configuration key \"\(key.name)\" (\(key.type.rawValue): \(key.meaning)) must be given")
      }
      // A default may be null ("off"), and giving it explicitly is allowed.
      guard key.accepts(value) || value == key.defaultValue else {
        let allowed = key.choices.isEmpty ? "of type \(key.type.rawValue)" : "one of " + key.choices.joined(separator: ", ")
        throw ConfigurationError("the configuration key \"\(key.name)\" must be \(allowed), not \(value.serialized())")
      }
      result[key.name] = value
    }
    return .object(result)
  }
}
