import CZlib
import Foundation

/// Reads a file from front to back, inflating it on the way when it is gzip-compressed (told by its first bytes, not by its
/// name). Memory does not depend on the file's size.
///
/// Throws `DataError` for a file that can't be read, a damaged or truncated compressed stream, and rubbish behind it.
final class ByteReader {
  let path: String
  private let file: FileHandle
  private let input: UnsafeMutablePointer<UInt8>
  private static let capacity = 1 << 18
  private var position = 0
  private var end = 0
  /// zlib keeps the address, so the stream must not move.
  private var stream: UnsafeMutablePointer<z_stream>?
  private var isInsideMember = false
  private var isFinished = false

  /// True for a gzip file.
  var isCompressed: Bool { stream != nil }

  init(path: String) throws {
    var isDirectory: ObjCBool = false
    guard FileManager.default.fileExists(atPath: path, isDirectory: &isDirectory) else { throw DataError(path, "there is no such file") }
    guard !isDirectory.boolValue else { throw DataError(path, "a file was expected, this is a folder") }
    guard let file = FileHandle(forReadingAtPath: path) else { throw DataError(path, "the file can't be opened for reading") }
    self.path = path
    self.file = file
    input = .allocate(capacity: Self.capacity)
    try refill()
    if end >= 2 && input[0] == 0x1f && input[1] == 0x8b {
      let stream = UnsafeMutablePointer<z_stream>.allocate(capacity: 1)
      stream.initialize(to: z_stream())
      // 15 bits of window, + 16: a gzip header and trailer with its checksum.
      guard inflateInit2_(stream, 15 + 16, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size)) == Z_OK else {
        stream.deallocate()
        throw DataError(path, "zlib could not be started")
      }
      self.stream = stream
      isInsideMember = true
    }
  }

  deinit {
    if let stream {
      inflateEnd(stream)
      stream.deallocate()
    }
    input.deallocate()
    try? file.close()
  }

  private func refill() throws {
    position = 0
    end = 0
    let chunk: Data?
    do { chunk = try file.read(upToCount: Self.capacity) } catch { throw DataError(path, "reading failed: \(error.localizedDescription)") }
    guard let chunk, !chunk.isEmpty else { return }
    chunk.copyBytes(to: input, count: chunk.count)
    end = chunk.count
  }

  /// Fills `target` as far as the file goes; fewer bytes only at its end.
  func read(into target: UnsafeMutableRawBufferPointer) throws -> Int {
    var filled = 0
    while filled < target.count && !isFinished {
      if position == end {
        try refill()
        if end == 0 {
          if isInsideMember { throw DataError(path, "the compressed file is truncated: its stream does not end") }
          isFinished = true
          break
        }
      }
      let rest = UnsafeMutableRawBufferPointer(rebasing: target[filled...])
      filled += try stream.map { try inflateSome($0, into: rest) } ?? copySome(into: rest)
    }
    return filled
  }

  private func copySome(into target: UnsafeMutableRawBufferPointer) -> Int {
    let count = min(target.count, end - position)
    target.baseAddress!.copyMemory(from: input + position, byteCount: count)
    position += count
    return count
  }

  private func inflateSome(_ stream: UnsafeMutablePointer<z_stream>, into target: UnsafeMutableRawBufferPointer) throws -> Int {
    if !isInsideMember {
      // Behind a member: another one, or the zero bytes that tape blocks are filled with.
      while position < end && input[position] == 0 { position += 1 }
      if position == end { return 0 }
      guard input[position] == 0x1f else { throw DataError(path, "something that is not gzip follows the compressed data") }
      inflateReset(stream)
      isInsideMember = true
    }
    let room = min(target.count, 1 << 30)
    stream.pointee.next_in = input + position
    stream.pointee.avail_in = UInt32(end - position)
    stream.pointee.next_out = target.baseAddress!.assumingMemoryBound(to: UInt8.self)
    stream.pointee.avail_out = UInt32(room)
    let status = inflate(stream, Z_NO_FLUSH)
    position = end - Int(stream.pointee.avail_in)
    switch status {
    case Z_OK, Z_BUF_ERROR: break
    case Z_STREAM_END: isInsideMember = false
    default:
      let reason = stream.pointee.msg.map { String(cString: $0) } ?? "zlib error \(status)"
      throw DataError(path, "the compressed data is damaged: \(reason)")
    }
    return room - Int(stream.pointee.avail_out)
  }

  /// The next `count` bytes, fewer only at the end of the file. Memory grows with what is there, not with what is asked for:
  /// a wrong length in a header can't exhaust it.
  func read(upTo count: Int) throws -> [UInt8] {
    var bytes: [UInt8] = []
    while bytes.count < count {
      let step = min(count - bytes.count, max(1 << 20, bytes.count))
      var got = 0
      let chunk = try [UInt8](unsafeUninitializedCapacity: step) { buffer, initialized in
        got = try read(into: UnsafeMutableRawBufferPointer(buffer))
        initialized = got
      }
      if bytes.isEmpty { bytes = chunk } else { bytes += chunk }
      if got < step { break }
    }
    return bytes
  }

  /// Everything that is left; throws when it is more than `limit` bytes.
  func readAll(limit: Int) throws -> [UInt8] {
    let bytes = try read(upTo: limit + 1)
    guard bytes.count <= limit else { throw DataError(path, "more than \(limit) bytes, which is the most that is read into memory") }
    return bytes
  }
}
