import Foundation

/// A log that cannot be read or written.
public struct LogError: Error, CustomStringConvertible, Sendable {
  public let description: String
}

/// A log with one JSON object a line, each with the `step` it belongs to.
///
/// ```swift
/// let log = try JSONLinesLog(run.appendingPathComponent("log.jsonl"), resumingAt: checkpoint?.step)
/// try log.write(["loss": 2.31], step: 100)
/// ```
///
/// A line is in the file when the call returns. Numbers that JSON has no form for are the strings `nan`, `inf` and `-inf`.
public final class JSONLinesLog {
  public let file: URL

  private let handle: FileHandle
  private let encoder = JSONEncoder()

  /// Opens the log for appending.
  ///
  /// - Parameter step: where training resumes. Lines beyond that step are removed, so that the log reads as if the run had
  ///   never been interrupted. `nil` keeps every line. An unfinished last line is removed in both cases.
  /// - Throws: `LogError` naming the line when a finished one is no JSON object (the file is then unchanged), or an error of the
  ///   file system.
  public init(_ file: URL, resumingAt step: Int? = nil) throws {
    self.file = file
    try FileManager.default.createDirectory(at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
    if FileManager.default.fileExists(atPath: file.path) {
      let old = try Data(contentsOf: file)
      let kept = try Self.lines(of: old, upTo: step, file)
      if kept.count != old.count { try kept.write(to: file, options: .atomic) }
    } else {
      try Data().write(to: file)
    }
    handle = try FileHandle(forWritingTo: file)
    try handle.seekToEnd()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    encoder.nonConformingFloatEncodingStrategy = .convertToString(positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
  }

  deinit { try? handle.close() }

  private struct Step: Decodable {
    var step: Int?
  }

  private static func lines(of data: Data, upTo last: Int?, _ file: URL) throws -> Data {
    guard let end = data.lastIndex(of: UInt8(ascii: "\n")) else { return Data() }
    let finished = data[...end]
    guard let last else { return finished }
    var kept = Data()
    let decoder = JSONDecoder()
    for (number, line) in finished.dropLast().split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false).enumerated() {
      if !line.isEmpty {
        guard let entry = try? decoder.decode(Step.self, from: Data(line)) else {
          throw LogError(description: "\(file.path), line \(number + 1): not a JSON object with an integer “step”; mend or remove the line")
        }
        if let step = entry.step, step > last { continue }
      }
      kept.append(line)
      kept.append(UInt8(ascii: "\n"))
    }
    return kept
  }

  /// An entry with the step as one more key.
  private struct Line<Entry: Encodable>: Encodable {
    let step: Int
    let entry: Entry

    enum CodingKeys: CodingKey { case step }

    func encode(to encoder: any Encoder) throws {
      try entry.encode(to: encoder)
      var container = encoder.container(keyedBy: CodingKeys.self)
      try container.encode(step, forKey: .step)
    }
  }

  /// Appends one line.
  ///
  /// - Parameter entry: something that encodes as an object, such as `[String: Double]`.
  /// - Throws: an error of the file system or of the entry's encoding.
  public func write(_ entry: some Encodable, step: Int) throws {
    var line = try encoder.encode(Line(step: step, entry: entry))
    line.append(UInt8(ascii: "\n"))
    try handle.write(contentsOf: line)
  }

  public func close() throws { try handle.close() }
}
