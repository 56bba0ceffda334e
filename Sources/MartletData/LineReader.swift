import Foundation

/// The lines of a text file (gzip or not) as bytes, without their ends (`\n` or `\r\n`), with their numbers from 1.
final class LineReader {
  let path: String
  /// Number of the line last returned.
  private(set) var number = 0
  private let reader: ByteReader
  private var buffer: [UInt8] = []
  private var start = 0
  private var isAtEnd = false
  /// A file without line ends must not fill the memory.
  static let longestLine = 1 << 28

  init(path: String) throws {
    self.path = path
    reader = try ByteReader(path: path)
  }

  /// The next line; `nil` at the end. A last line without an end counts, an empty rest does not.
  func next() throws -> [UInt8]? {
    var searched = start
    while true {
      if let end = lineEnd(from: searched) {
        number += 1
        let stop = end > start && buffer[end - 1] == UInt8(ascii: "\r") ? end - 1 : end
        let line = Array(buffer[start..<stop])
        start = end + 1
        return line
      }
      searched = buffer.count - start
      if isAtEnd {
        guard start < buffer.count else { return nil }
        number += 1
        let line = Array(buffer[start...])
        start = buffer.count
        return line
      }
      guard buffer.count - start <= Self.longestLine else {
        throw DataError(path, line: number + 1, "the line is longer than \(Self.longestLine) bytes")
      }
      buffer.removeSubrange(..<start)
      start = 0
      let chunk = try reader.read(upTo: 1 << 18)
      isAtEnd = chunk.isEmpty
      buffer += chunk
    }
  }

  private func lineEnd(from position: Int) -> Int? {
    buffer.withUnsafeBytes { bytes in
      guard position < bytes.count, let found = memchr(bytes.baseAddress! + position, 10, bytes.count - position) else { return nil }
      return UnsafeRawPointer(found) - bytes.baseAddress!
    }
  }
}
