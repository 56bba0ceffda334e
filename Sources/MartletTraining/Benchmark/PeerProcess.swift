import Foundation
import Martlet

#if canImport(Glibc)
  import Glibc
#elseif canImport(Darwin)
  import Darwin
#endif

/// What went wrong with the benchmarks' peer.
public struct PeerError: Error, CustomStringConvertible, Sendable {
  public let description: String
}

/// The Python process that runs the peers' cases, `Benchmarks/peer.py`: one JSON object a line each way.
public final class PeerProcess {
  /// Names of all cases it offers.
  public let cases: Set<String>
  /// Versions by name: "python", "torch".
  public let versions: [(name: String, version: String)]

  private let process: Process
  private let requests: FileHandle
  private let answers: FileHandle
  private var received = Data()

  /// Starts the worker of `$MARTLET_PEER_PYTHON`, else of python3 on the PATH.
  ///
  /// Throws `PeerError` where there is no Python, or none with torch; the message says what to install.
  public init(script: String, threads: Int, environment: [String: String] = ProcessInfo.processInfo.environment) throws {
    let python = environment["MARTLET_PEER_PYTHON"] ?? "python3"
    let remedy =
      "The peers run in Python with PyTorch: `\(python) -m pip install torch numpy`, or let MARTLET_PEER_PYTHON name a Python that has it."
    guard FileManager.default.fileExists(atPath: script) else {
      throw PeerError(description: "the peers' worker \(script) is missing; run in a checkout of Martlet")
    }
    // A peer that dies must end in an error, not in the signal that writing to its pipe raises.
    signal(SIGPIPE, SIG_IGN)
    process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [python, script, String(threads)]
    var own = environment
    own["OMP_NUM_THREADS"] = String(threads)
    process.environment = own
    let (input, output) = (Pipe(), Pipe())
    process.standardInput = input
    process.standardOutput = output
    process.standardError = FileHandle.nullDevice
    requests = input.fileHandleForWriting
    answers = output.fileHandleForReading
    do { try process.run() } catch { throw PeerError(description: "\(python) could not be started: \(error). \(remedy)") }

    var buffer = Data()
    let greeting: JSONValue
    do {
      greeting = try Self.exchange(["list": true], requests, answers, &buffer)
    } catch let error as PeerError {
      try? requests.close()
      process.waitUntilExit()
      throw PeerError(description: "\(error.description). \(remedy)")
    }
    received = buffer
    cases = Set((greeting["cases"]?.arrayValue ?? []).compactMap(\.stringValue))
    versions = (greeting["versions"]?.objectValue?.pairs ?? []).map { ($0.key, $0.value.stringValue ?? "?") }
  }

  /// The worker of this checkout: `Benchmarks/peer.py` in the working folder or the nearest folder above it that has one.
  public static func script(from folder: String = FileManager.default.currentDirectoryPath) -> String {
    var url = URL(fileURLWithPath: folder)
    while url.path != "/" {
      let candidate = url.appendingPathComponent("Benchmarks/peer.py").path
      if FileManager.default.fileExists(atPath: candidate) { return candidate }
      url.deleteLastPathComponent()
    }
    return folder + "/Benchmarks/peer.py"
  }

  /// Sets a case up and calls it once. Returns the seconds of that first call.
  @discardableResult
  public func select(_ name: String) throws -> Double { try number("seconds", ["case": .string(name)]) }

  /// Seconds of `count` calls of the selected case together.
  public func run(_ count: Int) throws -> Double { try number("seconds", ["run": .init(integerLiteral: count)]) }

  /// Most bytes of tensors alive at once during a call, beyond those before it.
  public func peakBytes() throws -> Int { Int(try number("bytes", ["memory": true])) }

  /// Lets the selected case's memory go.
  public func release() throws { _ = try ask(["release": true]) }

  /// Ends the worker.
  public func stop() {
    try? requests.close()
    process.waitUntilExit()
  }

  deinit { if process.isRunning { stop() } }

  private func number(_ key: String, _ request: JSONValue) throws -> Double {
    guard let value = try ask(request)[key]?.doubleValue else {
      throw PeerError(description: "the peer's answer to \(request.serialized()) lacks \"\(key)\"")
    }
    return value
  }

  private func ask(_ request: JSONValue) throws -> JSONValue {
    try Self.exchange(request, requests, answers, &received)
  }

  private static func exchange(
    _ request: JSONValue, _ requests: FileHandle, _ answers: FileHandle, _ received: inout Data
  ) throws -> JSONValue {
    // A peer that has ended may have said why before it did: look for its answer even when it takes no request.
    try? requests.write(contentsOf: Data((request.serialized() + "\n").utf8))
    while true {
      if let end = received.firstIndex(of: UInt8(ascii: "\n")) {
        let line = String(decoding: received[received.startIndex..<end], as: UTF8.self)
        received = Data(received[received.index(after: end)...])
        let answer = try JSONValue.parse(line)
        if let message = answer["error"]?.stringValue { throw PeerError(description: message) }
        return answer
      }
      let more = answers.availableData
      if more.isEmpty { throw PeerError(description: "the peer ended without an answer to \(request.serialized())") }
      received.append(more)
    }
  }
}
