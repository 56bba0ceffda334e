import Foundation
import Testing

@testable import MartletData

@Suite struct FileReadingTests {
  let folder = TemporaryFolder()

  private func noise(_ count: Int) -> [UInt8] {
    var random = SeededRandom(seed: 1)
    return (0..<count).map { _ in UInt8(truncatingIfNeeded: random.next()) & 0x3f }
  }

  @Test func plainAndCompressedFilesReadAlike() throws {
    let bytes = noise(700_001)
    for path in [folder.write("plain", bytes), folder.compress("compressed", bytes)] {
      #expect(try ByteReader(path: path).readAll(limit: 1 << 20) == bytes)
      let reader = try ByteReader(path: path)
      #expect(try reader.read(upTo: 5) == Array(bytes[..<5]))
      #expect(try reader.read(upTo: 400_000) == Array(bytes[5..<400_005]))
      #expect(try reader.read(upTo: 1 << 30) == Array(bytes[400_005...]))
      #expect(try reader.read(upTo: 1).isEmpty)
    }
  }

  @Test func membersOfACompressedFileFollowOneAnother() throws {
    folder.compress("a", Array("first ".utf8))
    folder.compress("b", Array("second".utf8))
    let both = folder.write("both", folder.bytes("a") + folder.bytes("b") + [0, 0, 0])
    #expect(try ByteReader(path: both).readAll(limit: 100) == Array("first second".utf8))
  }

  @Test func damagedFilesAreNamed() throws {
    let bytes = noise(50_000)
    folder.compress("whole.gz", bytes)
    let whole = folder.bytes("whole.gz")
    var damaged = whole
    damaged[whole.count - 6] ^= 1  // the checksum
    let cases = [
      (folder.write("truncated.gz", Array(whole.dropLast(20))), "truncated"), (folder.write("flipped.gz", damaged), "damaged"),
      (folder.write("tail.gz", whole + [1, 2, 3]), "follows the compressed data"), (folder.path + "/missing", "no such file"),
      (folder.path, "folder"),
    ]
    for (path, expected) in cases {
      let error = #expect(throws: DataError.self) { try ByteReader(path: path).readAll(limit: 1 << 20) }
      #expect(error?.message.contains(path) == true && error?.message.contains(expected) == true, "\(error?.message ?? "none")")
    }
    let error = #expect(throws: DataError.self) { try ByteReader(path: folder.path + "/whole.gz").readAll(limit: 49_999) }
    #expect(error?.message.contains("49999") == true)
  }

  @Test func linesHaveNumbersAndAnyEnd() throws {
    func lines(_ text: [UInt8]) throws -> [[UInt8]] {
      let reader = try LineReader(path: folder.write("lines", text))
      var lines: [[UInt8]] = []
      while let line = try reader.next() {
        lines.append(line)
        #expect(reader.number == lines.count)
      }
      return lines
    }
    #expect(try lines([]) == [])
    #expect(try lines(Array("a\nbc\r\n\nd".utf8)) == ["a", "bc", "", "d"].map { Array($0.utf8) })
    #expect(try lines([0, 255, 10, 13, 10]) == [[0, 255], []])
    let long = [UInt8](repeating: 65, count: 600_000)
    #expect(try lines(long + [10] + long) == [long, long])
    let many = try lines(Array((0..<100_000).map { "\($0)\n" }.joined().utf8))
    #expect(many.count == 100_000 && many[99_999] == Array("99999".utf8))
  }

  @Test func aFailedWriteLeavesNothingAndAGoodOneReplaces() throws {
    struct Stop: Error {}
    folder.write("file", "old")
    #expect(throws: Stop.self) {
      try writeAtomically(folder.path + "/file") { append in
        try append("half")
        throw Stop()
      }
    }
    #expect(folder.names == ["file"] && folder.bytes("file") == Array("old".utf8))
    try writeAtomically(folder.path + "/file") { try $0("new") }
    #expect(folder.names == ["file"] && folder.bytes("file") == Array("new".utf8))
    let error = #expect(throws: DataError.self) { try writeAtomically(folder.path + "/none/file") { try $0("x") } }
    #expect(error?.message.contains("none/file") == true)
  }
}
