import Martlet

/// The papers whose methods Martlet knows, and those it can run.
public enum Catalog {
  /// Every entry, in the order of the sheets.
  public static let all: [MethodEntry] = MethodEntry.Sheet.allCases.flatMap(\.entries)

  /// What can be run, by id. The one place where a method becomes "ready".
  public static let implementations: [String: any MethodImplementation] = registered

  private static let byID = Dictionary(uniqueKeysWithValues: all.map { ($0.id, $0) })

  /// The entry with this id. Throws ``UnknownMethod``, which suggests the nearest ids.
  public static func entry(_ id: String) throws -> MethodEntry {
    guard let entry = byID[id] else { throw UnknownMethod(id: id, suggestions: Suggestions.nearest(id, in: all.map(\.id))) }
    return entry
  }

  /// What runs a method. Throws ``UnknownMethod``, or ``MethodNotReady`` for a paper that has an entry only.
  public static func implementation(_ id: String) throws -> any MethodImplementation {
    let entry = try entry(id)
    guard let implementation = entry.implementation else { throw MethodNotReady(id: id) }
    return implementation
  }

  /// The array that `methods --json` prints.
  public static var json: JSONValue { .array(all.map(\.json)) }
}

/// An id that isn't in the catalog.
public struct UnknownMethod: Error, CustomStringConvertible, Sendable {
  public let id: String
  /// The nearest ids, the nearest first.
  public let suggestions: [String]

  public var description: String {
    let remedy =
      suggestions.isEmpty
      ? "`martlet methods` lists them." : "Did you mean " + suggestions.map { "\"\($0)\"" }.joined(separator: ", ") + "?"
    return "no method is called \"\(id)\". \(remedy)"
  }
}

/// A method that is described but can't be run yet.
public struct MethodNotReady: Error, CustomStringConvertible, Sendable {
  public let id: String
  public var description: String { "\"\(id)\" is planned and can't be run yet. `martlet methods` shows which are ready." }
}
