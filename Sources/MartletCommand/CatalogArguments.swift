import ArgumentParser
import Foundation
import MartletCatalog

/// How methods and their configurations are named on the command line.
enum CatalogArguments {
  /// Every method's id.
  static var ids: [String] { Catalog.all.map(\.id) }

  /// The ids that can be run.
  static var readyIDs: [String] { Catalog.all.filter { $0.status == .ready }.map(\.id) }

  /// Reads a value of a named set; the message of a wrong one suggests the nearest and lists all.
  static func parse<Value: RawRepresentable & CaseIterable>(_ text: String) throws -> Value where Value.RawValue == String {
    try parse(text, among: Array(Value.allCases))
  }

  static func parse<Value: RawRepresentable>(_ text: String, among values: [Value]) throws -> Value where Value.RawValue == String {
    if let value = Value(rawValue: text) { return value }
    let names = values.map(\.rawValue)
    throw ValidationError("“\(text)” is none of: \(names.joined(separator: ", ")).\(Suggestions.phrase(for: text, in: names))")
  }

  /// A configuration: JSON itself where the text begins with a brace, else the path of a file. An absent one is empty.
  static func configuration(_ text: String?) throws -> JSONValue {
    guard let text else { return .object(JSONObject()) }
    let isInline = text.drop { $0.isWhitespace }.first == "{"
    let name = isInline ? "--config" : text
    let json: String
    if isInline {
      json = text
    } else {
      let data: Data
      do { data = try Data(contentsOf: URL(fileURLWithPath: text)) } catch {
        throw ValidationError("\(text): the configuration can't be read: \(error.localizedDescription)")
      }
      guard let content = String(data: data, encoding: .utf8) else { throw ValidationError("\(text): the configuration is not UTF-8 text") }
      json = content
    }
    let value: JSONValue
    do { value = try JSONValue.parse(json) } catch { throw ValidationError("\(name): not valid JSON: \(error)") }
    guard value.objectValue != nil else {
      throw ValidationError("\(name): a configuration must be a JSON object such as {\"heads\": 2}, this is \(value.kindDescription)")
    }
    return value
  }
}

/// Options of commands that compute.
struct ComputeOptions: ParsableArguments {
  @Option(help: "Threads inside operators; 0 takes the machine's.")
  var threads: Int = 0

  func validate() throws {
    guard (0...1024).contains(threads) else { throw ValidationError("--threads must lie between 0 and 1024, got \(threads)") }
  }

  func apply() {
    if threads > 0 { Engine.threads = threads }
  }
}
