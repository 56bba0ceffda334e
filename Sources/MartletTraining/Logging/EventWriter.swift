import Foundation
import SwiftProtobuf

/// Writes a TensorBoard event file: scalars and texts by tag and step.
///
/// ```swift
/// let events = try EventWriter(directory: run)
/// try events.write(scalars: ["loss/train": 2.31, "learning_rate": 3e-4], step: 100)
/// ```
///
/// Every event is in the file when the call returns, so a run that is killed loses nothing.
public final class EventWriter {
  /// `events.out.tfevents.<seconds>.<host>.<pid>`, and `.<n>` where a file of that name was there.
  public let file: URL

  private let handle: FileHandle
  private let now: () -> Date

  /// Makes the directory if need be and begins a new file in it.
  ///
  /// - Parameter now: the clock of the events.
  /// - Throws: an error of the file system.
  public init(directory: URL, now: @escaping () -> Date = { Date() }) throws {
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    let name = "events.out.tfevents.\(Int(now().timeIntervalSince1970)).\(Self.hostName).\(ProcessInfo.processInfo.processIdentifier)"
    var number = 0
    while true {
      let candidate = directory.appendingPathComponent(number == 0 ? name : "\(name).\(number)")
      do {
        // Created only if new: another writer of this second keeps its file.
        try Data().write(to: candidate, options: .withoutOverwriting)
        file = candidate
        break
      } catch  where FileManager.default.fileExists(atPath: candidate.path) {
        number += 1
      }
    }
    handle = try FileHandle(forWritingTo: file)
    self.now = now
    try append {
      $0.fileVersion = "brain.Event:2"
      $0.sourceMetadata.writer = "martlet"
    }
  }

  deinit { try? handle.close() }

  /// - Throws: an error of the file system.
  public func write(scalar value: Double, tag: String, step: Int) throws { try write(scalars: [tag: value], step: step) }

  /// Writes scalars as one event, in the order of their tags. They are float32 in the file.
  ///
  /// - Throws: an error of the file system.
  public func write(scalars: [String: Double], step: Int) throws {
    if scalars.isEmpty { return }
    try append { event in
      event.step = Int64(step)
      event.summary.value = scalars.sorted { $0.key < $1.key }.map { tag, number in
        var value = TensorBoardSummary.Value()
        value.tag = tag
        value.simpleValue = Float(number)
        return value
      }
    }
  }

  /// Writes a text, which TensorBoard shows as Markdown.
  ///
  /// - Throws: an error of the file system.
  public func write(text: String, tag: String, step: Int) throws {
    try append { event in
      event.step = Int64(step)
      var value = TensorBoardSummary.Value()
      value.tag = tag
      value.metadata.pluginData.pluginName = "text"
      value.tensor.dtype = .dtString
      value.tensor.tensorShape.dim = [.with { $0.size = 1 }]
      value.tensor.stringVal = [Data(text.utf8)]
      event.summary.value = [value]
    }
  }

  public func close() throws { try handle.close() }

  private func append(_ fill: (inout TensorBoardEvent) -> Void) throws {
    var event = TensorBoardEvent()
    event.wallTime = now().timeIntervalSince1970
    fill(&event)
    try handle.write(contentsOf: tfRecord(event.serializedData()))
  }

  private static var hostName: String {
    var buffer = [CChar](repeating: 0, count: 256)
    guard gethostname(&buffer, buffer.count - 1) == 0 else { return "localhost" }
    let name = String(decoding: buffer.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
    return name.isEmpty ? "localhost" : name
  }
}
