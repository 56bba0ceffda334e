import Foundation
import MartletCatalog

/// Lines of a file or of standard input, some at a time: memory is bounded by the longest line, not by the file.
///
/// A line ends with a line feed; its bytes are given as they are, valid UTF-8 or not, a carriage return included.
struct LineReader {
  /// Whole lines: where each lies in `bytes`, without its line feed.
  struct Batch {
    let bytes: [UInt8]
    let lines: [Range<Int>]

    /// A line as text; bytes that are no UTF-8 become U+FFFD.
    func text(_ line: Range<Int>) -> String { String(decoding: bytes[line], as: UTF8.self) }
  }

  /// What messages call the input.
  let name: String
  private let handle: FileHandle
  private var rest: [UInt8] = []
  private var isAtEnd = false
  private static let pieceBytes = 1 << 20
  /// A line beyond this is no text that anything here could read.
  private static let longestLine = 1 << 30

  /// - Parameter path: a file; `nil` or “-” for standard input. Throws `FileError`.
  init(_ path: String?) throws {
    guard let path, path != "-" else {
      name = "standard input"
      handle = .standardInput
      return
    }
    name = path
    var isFolder: ObjCBool = false
    guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) else { throw FileError(path, "there is no such file") }
    guard !isFolder.boolValue else { throw FileError(path, "is a folder; a file of lines was expected") }
    guard let handle = FileHandle(forReadingAtPath: path) else {
      throw FileError(path, "can't be opened: \(String(cString: strerror(errno)))")
    }
    self.handle = handle
  }

  /// The lines that are there, at least one; `nil` at the end. Throws `FileError` when reading fails.
  mutating func next() throws -> Batch? {
    while !isAtEnd {
      let begin = rest.count
      let descriptor = handle.fileDescriptor
      var failure: Int32 = 0
      rest.reserveCapacity(begin + Self.pieceBytes)
      let piece = [UInt8](unsafeUninitializedCapacity: Self.pieceBytes) { buffer, count in
        var got = read(descriptor, buffer.baseAddress!, Self.pieceBytes)
        while got < 0 && errno == EINTR && !Interruption.isAsked { got = read(descriptor, buffer.baseAddress!, Self.pieceBytes) }
        failure = got < 0 ? errno : 0
        count = max(0, got)
      }
      guard failure == 0 || failure == EINTR else { throw FileError(name, "can't be read: \(String(cString: strerror(failure)))") }
      if piece.isEmpty { isAtEnd = true }
      rest += piece
      guard rest.count <= Self.longestLine else { throw FileError(name, "has a line of more than \(Self.longestLine) bytes") }
      let lines = Self.lines(rest, from: begin, takesLast: isAtEnd)
      guard let last = lines.last else { continue }
      let batch = Batch(bytes: rest, lines: lines)
      rest = last.upperBound < rest.count ? Array(rest[(last.upperBound + 1)...]) : []
      return batch
    }
    return nil
  }

  /// Whole lines of `bytes`, in which no line ends before `from`.
  private static func lines(_ bytes: [UInt8], from: Int, takesLast: Bool) -> [Range<Int>] {
    var result: [Range<Int>] = []
    bytes.withUnsafeBytes { buffer in
      var start = 0
      var search = from
      while search < buffer.count, let found = memchr(buffer.baseAddress! + search, 0x0A, buffer.count - search) {
        let end = UnsafeRawPointer(found) - buffer.baseAddress!
        result.append(start..<end)
        start = end + 1
        search = start
      }
      if takesLast && start < buffer.count { result.append(start..<buffer.count) }
    }
    return result
  }

  /// All texts of a file that fits in memory. Throws `FileError`.
  static func all(_ path: String?) throws -> [String] {
    var reader = try LineReader(path)
    var texts: [String] = []
    while let batch = try reader.next() { texts += batch.lines.map(batch.text) }
    return texts
  }
}
