/// Data that can't be read or a task that can't be built: names the file (and line), what was expected and what was found.
public struct DataError: Error, CustomStringConvertible, Equatable, Sendable {
  public let message: String

  public init(_ message: String) { self.message = message }

  init(_ path: String, line: Int? = nil, _ message: String) {
    self.message = line.map { "\(path):\($0): \(message)" } ?? "\(path): \(message)"
  }

  public var description: String { message }
}
