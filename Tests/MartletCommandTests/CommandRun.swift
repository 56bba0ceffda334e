import Foundation
import Testing

@testable import MartletCatalog

/// One run of the built `martlet`, as a user or a script starts it.
struct CommandRun {
  let status: Int32
  let output: String
  let errors: String

  /// The executable that the build put beside the test bundle.
  static let executable: URL = {
    var candidates = [URL(fileURLWithPath: CommandLine.arguments[0]), Bundle.main.bundleURL, Bundle.main.executableURL].compactMap { $0 }
    candidates += Bundle.allBundles.map(\.bundleURL)
    for candidate in candidates {
      var folder = candidate.resolvingSymlinksInPath()
      // A bundle may lie some folders below the build folder, as on macOS.
      for _ in 0..<5 {
        folder.deleteLastPathComponent()
        let file = folder.appendingPathComponent("martlet")
        if FileManager.default.isExecutableFile(atPath: file.path) { return file }
      }
    }
    fatalError("no martlet beside \(candidates.map(\.path)): build the package first")
  }()

  /// - Parameter environment: variables set besides those of this process.
  init(_ arguments: [String], environment: [String: String] = [:]) throws {
    try self.init(Self.executable, arguments, environment)
  }

  /// The same in a shell; the path of the executable is `$MARTLET`.
  init(shell script: String) throws {
    try self.init(URL(fileURLWithPath: "/bin/bash"), ["-c", script], ["MARTLET": Self.executable.path])
  }

  private init(_ executable: URL, _ arguments: [String], _ environment: [String: String]) throws {
    // Files take any amount of output, where a pipe that nobody reads would stop the command.
    try self = withTemporaryFolder { folder in
      let (out, err) = (folder + "/out", folder + "/err")
      for path in [out, err] { _ = FileManager.default.createFile(atPath: path, contents: nil) }
      let process = Process()
      process.executableURL = executable
      process.arguments = arguments
      process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
      process.standardInput = FileHandle.nullDevice
      let handles = try (FileHandle(forWritingTo: URL(fileURLWithPath: out)), FileHandle(forWritingTo: URL(fileURLWithPath: err)))
      process.standardOutput = handles.0
      process.standardError = handles.1
      try process.run()
      process.waitUntilExit()
      // Shells write a signal as 128 + its number.
      let status = process.terminationReason == .uncaughtSignal ? 128 + process.terminationStatus : process.terminationStatus
      return CommandRun(
        status: status, output: try String(contentsOfFile: out, encoding: .utf8), errors: try String(contentsOfFile: err, encoding: .utf8))
    }
  }

  private init(status: Int32, output: String, errors: String) {
    self.status = status
    self.output = output
    self.errors = errors
  }

  /// Standard output as one JSON value and nothing else.
  var json: JSONValue { get throws { try JSONValue.parse(output) } }

  /// Expects status 2, nothing on standard output, and one message with all the parts.
  func expectRefusal(_ parts: String..., sourceLocation: SourceLocation = #_sourceLocation) {
    #expect(status == 2, "\(errors)", sourceLocation: sourceLocation)
    #expect(output.isEmpty, sourceLocation: sourceLocation)
    #expect(errors.hasPrefix("error: "), "\(errors)", sourceLocation: sourceLocation)
    for part in parts { #expect(errors.contains(part), "“\(part)” is missing in: \(errors)", sourceLocation: sourceLocation) }
  }
}

/// Runs `body` with a new folder that is removed afterwards.
func withTemporaryFolder<Result>(_ body: (String) throws -> Result) throws -> Result {
  let folder = FileManager.default.temporaryDirectory.appendingPathComponent("martlet-command-\(UUID().uuidString)")
  try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
  defer { try? FileManager.default.removeItem(at: folder) }
  return try body(folder.path)
}
