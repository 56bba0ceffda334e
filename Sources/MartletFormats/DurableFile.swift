import Foundation

/// Writes `data` under a temporary name in the target's folder, flushes it to the disk and renames it: a reader sees the old file or
/// the whole new one, also after a crash or a power cut. Creates missing folders.
///
/// Throws `FileError` naming the file and the system's reason.
public func writeDurably(_ data: Data, to path: String) throws {
  let target = URL(fileURLWithPath: path)
  let folder = target.deletingLastPathComponent().path
  do {
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
  } catch {
    throw FileError(path, "its folder can't be made (\(error.localizedDescription))")
  }
  let temporary = folder + "/." + target.lastPathComponent + "." + UUID().uuidString + ".partial"
  let descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL, 0o644)
  guard descriptor >= 0 else { throw FileError(path, "can't be written (\(systemReason()))") }
  var isOpen = true
  var isRenamed = false
  defer {
    if isOpen { close(descriptor) }
    if !isRenamed { unlink(temporary) }
  }
  try data.withUnsafeBytes { bytes in
    var written = 0
    while written < bytes.count {
      let count = write(descriptor, bytes.baseAddress! + written, bytes.count - written)
      if count < 0 && errno == EINTR { continue }
      guard count > 0 else { throw FileError(path, "writing stopped after \(written) of \(bytes.count) bytes (\(systemReason()))") }
      written += count
    }
  }
  guard fsync(descriptor) == 0 else { throw FileError(path, "can't be flushed to the disk (\(systemReason()))") }
  isOpen = false
  guard close(descriptor) == 0 else { throw FileError(path, "can't be closed (\(systemReason()))") }
  guard rename(temporary, path) == 0 else { throw FileError(path, "can't be replaced (\(systemReason()))") }
  isRenamed = true
  // The new name itself lives in the folder; without this it may be lost though the contents are safe.
  let folderDescriptor = open(folder, O_RDONLY)
  if folderDescriptor >= 0 {
    fsync(folderDescriptor)
    close(folderDescriptor)
  }
}

private func systemReason() -> String { String(cString: strerror(errno)) }

/// A file that can't be read, written or understood. The description names the file, then the reason.
public struct FileError: Error, CustomStringConvertible, LocalizedError, Sendable, Equatable {
  public let file: String
  public let reason: String

  public init(_ file: String, _ reason: String) {
    self.file = file
    self.reason = reason
  }

  public var description: String { "\(file): \(reason)" }
  public var errorDescription: String? { description }
}
