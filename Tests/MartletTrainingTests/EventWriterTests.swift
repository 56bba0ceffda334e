import Foundation
import Testing

@testable import MartletTraining

/// An empty directory that is removed afterwards.
private func withTemporaryDirectory(_ body: (URL) throws -> Void) throws {
  let directory = FileManager.default.temporaryDirectory.appendingPathComponent("martlet-\(UUID().uuidString)")
  defer { try? FileManager.default.removeItem(at: directory) }
  try body(directory)
}

/// The payloads of a TFRecord file; checks both checksums with a bitwise CRC.
private func records(_ data: Data) throws -> [Data] {
  func masked(_ bytes: Data) -> UInt32 {
    var crc = ~UInt32(0)
    for byte in bytes {
      for bit in 0..<8 {
        let feedback = (crc ^ UInt32(byte) >> UInt32(bit)) & 1
        crc = crc >> 1 ^ (feedback == 1 ? 0x82F6_3B78 : 0)
      }
    }
    crc = ~crc
    return (crc >> 15 | crc << 17) &+ 0xA282_EAD8
  }
  func number(_ bytes: Data) -> UInt64 { bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) } }
  var rest = data
  var result: [Data] = []
  while !rest.isEmpty {
    try #require(rest.count >= 16)
    let length = rest.prefix(8)
    let count = Int(number(length))
    try #require(rest.count >= 16 + count)
    #expect(number(rest.dropFirst(8).prefix(4)) == UInt64(masked(length)))
    let payload = rest.dropFirst(12).prefix(count)
    #expect(number(rest.dropFirst(12 + count).prefix(4)) == UInt64(masked(payload)))
    result.append(Data(payload))
    rest = rest.dropFirst(16 + count)
  }
  return result
}

@Suite struct EventWriterTests {
  @Test func checksumsHaveThePublishedValues() {
    #expect(crc32c(Data("123456789".utf8)) == 0xE306_9283)
    // RFC 3720, B.4
    #expect(crc32c(Data(repeating: 0, count: 32)) == 0x8A91_36AA)
    #expect(crc32c(Data(repeating: 0xFF, count: 32)) == 0x62A8_AB43)
    #expect(crc32c(Data(0..<32)) == 0x46DD_794E)
    #expect(crc32c(Data()) == 0)
  }

  @Test func eventsAreReadBackAsWritten() throws {
    try withTemporaryDirectory { directory in
      let writer = try EventWriter(directory: directory.appendingPathComponent("a/b"), now: { Date(timeIntervalSince1970: 1234.5) })
      try writer.write(scalars: ["loss": 0.5, "accuracy": 0.25], step: 7)
      // Before anything is closed: a killed run loses nothing.
      #expect(try records(Data(contentsOf: writer.file)).count == 2)
      try writer.write(text: "a **note** é", tag: "notes", step: 8)
      try writer.write(scalars: [:], step: 9)
      try writer.close()

      let name = writer.file.lastPathComponent
      #expect(name.hasPrefix("events.out.tfevents.1234."), "\(name)")
      #expect(name.hasSuffix(".\(ProcessInfo.processInfo.processIdentifier)"), "\(name)")
      let events = try records(Data(contentsOf: writer.file)).map { try TensorBoardEvent(serializedBytes: $0) }
      try #require(events.count == 3)
      #expect(events[0].fileVersion == "brain.Event:2" && events[0].sourceMetadata.writer == "martlet")
      #expect(events.allSatisfy { $0.wallTime == 1234.5 })
      #expect(events[1].step == 7)
      #expect(events[1].summary.value.map(\.tag) == ["accuracy", "loss"])
      #expect(events[1].summary.value.map(\.simpleValue) == [0.25, 0.5])
      let text = events[2].summary.value[0]
      #expect(text.metadata.pluginData.pluginName == "text" && text.tensor.dtype == .dtString)
      #expect(text.tensor.stringVal == [Data("a **note** é".utf8)])
    }
  }

  @Test func bytesAreThoseOfTheFormat() throws {
    // Field numbers and wire types as TensorBoard's event.proto has them, written out by hand.
    try withTemporaryDirectory { directory in
      let writer = try EventWriter(directory: directory, now: { Date(timeIntervalSince1970: 0.5) })
      try writer.write(scalar: 1, tag: "x", step: 3)
      let payload = try records(Data(contentsOf: writer.file))[1]
      let value: [UInt8] = [0x0A, 1, UInt8(ascii: "x"), 0x15, 0, 0, 0x80, 0x3F]  // 1: tag, 2: simple_value
      let summary = [0x0A, UInt8(value.count)] + value  // 1: value
      let event: [UInt8] = [0x09, 0, 0, 0, 0, 0, 0, 0xE0, 0x3F, 0x10, 3, 0x2A, UInt8(summary.count)] + summary
      #expect([UInt8](payload) == event)
    }
  }

  @Test func twoWritersOfOneSecondHaveTwoFiles() throws {
    try withTemporaryDirectory { directory in
      let a = try EventWriter(directory: directory, now: { Date(timeIntervalSince1970: 5) })
      let b = try EventWriter(directory: directory, now: { Date(timeIntervalSince1970: 5) })
      #expect(a.file != b.file)
      try a.write(scalar: 1, tag: "x", step: 0)
      #expect(try records(Data(contentsOf: a.file)).count == 2)
      #expect(try records(Data(contentsOf: b.file)).count == 1)
    }
  }

  @Test func aDirectoryThatCannotBeMadeThrows() throws {
    try withTemporaryDirectory { directory in
      try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
      let file = directory.appendingPathComponent("file")
      try Data().write(to: file)
      #expect(throws: (any Error).self) { try EventWriter(directory: file.appendingPathComponent("below")) }
    }
  }
}

@Suite struct JSONLinesLogTests {
  private struct Entry: Codable, Equatable {
    var step: Int
    var loss: Double
  }

  private func entries(_ file: URL) throws -> [Entry] {
    try String(contentsOf: file, encoding: .utf8).split(separator: "\n").map { try JSONDecoder().decode(Entry.self, from: Data($0.utf8)) }
  }

  @Test func linesAreWrittenAtOnceAndInOrder() throws {
    try withTemporaryDirectory { directory in
      let log = try JSONLinesLog(directory.appendingPathComponent("run/log.jsonl"))
      try log.write(["loss": 0.5], step: 1)
      #expect(try String(contentsOf: log.file, encoding: .utf8) == #"{"loss":0.5,"step":1}"# + "\n")
      try log.write(["loss": Double.nan], step: 2)
      try log.write(["note": "two\nlines / quoted \""], step: 3)
      let lines = try String(contentsOf: log.file, encoding: .utf8).split(separator: "\n")
      #expect(lines.count == 3)
      #expect(lines[1] == #"{"loss":"nan","step":2}"#)
      let note = try JSONDecoder().decode([String: String?].self, from: Data(lines[2].replacing(",\"step\":3", with: "").utf8))
      #expect(note == ["note": "two\nlines / quoted \""])
    }
  }

  @Test func resumingRemovesWhatCameAfterTheCheckpoint() throws {
    try withTemporaryDirectory { directory in
      let file = directory.appendingPathComponent("log.jsonl")
      let log = try JSONLinesLog(file)
      for step in 1...6 { try log.write(["loss": Double(step) / 4], step: step) }
      try log.close()
      // Killed in the middle of a line.
      let handle = try FileHandle(forWritingTo: file)
      try handle.seekToEnd()
      try handle.write(contentsOf: Data(#"{"loss":7,"st"#.utf8))
      try handle.close()

      let resumed = try JSONLinesLog(file, resumingAt: 4)
      #expect(try entries(file) == (1...4).map { Entry(step: $0, loss: Double($0) / 4) })
      try resumed.write(["loss": 9.0], step: 5)
      #expect(try entries(file).map(\.step) == [1, 2, 3, 4, 5])
      #expect(try entries(file).last?.loss == 9)
    }
  }

  @Test func aTornLineIsRemovedWithoutAStep() throws {
    try withTemporaryDirectory { directory in
      let file = directory.appendingPathComponent("log.jsonl")
      try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
      try Data("{\"loss\":1,\"step\":1}\n{\"lo".utf8).write(to: file)
      let log = try JSONLinesLog(file)
      try log.write(["loss": 2.0], step: 2)
      #expect(try entries(file) == [Entry(step: 1, loss: 1), Entry(step: 2, loss: 2)])
      // A file of nothing but a torn line, and one of the resumed run's own future.
      try Data("{\"lo".utf8).write(to: file)
      _ = try JSONLinesLog(file, resumingAt: 3)
      #expect(try Data(contentsOf: file).isEmpty)
    }
  }

  @Test func aDamagedLineIsNamedAndNothingIsLost() throws {
    try withTemporaryDirectory { directory in
      let file = directory.appendingPathComponent("log.jsonl")
      try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
      let text = "{\"step\":1}\nbroken\n{\"step\":9}\n"
      try Data(text.utf8).write(to: file)
      let error = #expect(throws: LogError.self) { try JSONLinesLog(file, resumingAt: 3) }
      #expect(error?.description.contains("log.jsonl, line 2") == true)
      #expect(try String(contentsOf: file, encoding: .utf8) == text)
    }
  }
}
