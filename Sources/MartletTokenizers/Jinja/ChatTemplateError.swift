/// Why a chat template can't be read or rendered, and the line of the template where that shows.
public struct ChatTemplateError: Error, CustomStringConvertible, Sendable, Equatable {
  public enum Kind: String, Sendable {
    /// The text isn't a Jinja template.
    case syntax
    /// A part of Jinja that isn't implemented; the message names it.
    case unsupported
    /// A value of the wrong type, a missing variable, an unknown name …
    case evaluation
    /// The template itself called `raise_exception`; the message is the template's.
    case raised
    /// A bound of ``ChatTemplate/Limits`` was reached.
    case limit
  }

  public let kind: Kind
  public let message: String
  /// Counted from 1; nil when the line isn't known.
  public internal(set) var line: Int?

  init(_ kind: Kind, _ message: String, line: Int? = nil) {
    self.kind = kind
    self.message = message
    self.line = line
  }

  public var description: String {
    let place = line.map { "chat template, line \($0)" } ?? "chat template"
    return kind == .unsupported ? "\(place): \(message) isn't supported" : "\(place): \(message)"
  }
}
