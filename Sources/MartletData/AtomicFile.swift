import Foundation

/// Writes a file under a temporary name in the same folder and gives it its name when all bytes are there: readers and
/// crashes never see half a file.
///
/// `body` receives a function that appends bytes. Throws `DataError` naming the file when writing fails, and what `body` throws;
/// the temporary file is removed then.
func writeAtomically(_ path: String, _ body: ((String) throws -> Void) throws -> Void) throws {
  let url = URL(fileURLWithPath: path)
  let temporary = url.deletingLastPathComponent().appendingPathComponent(".\(url.lastPathComponent).\(UUID().uuidString)")
  guard FileManager.default.createFile(atPath: temporary.path, contents: nil), let file = FileHandle(forWritingAtPath: temporary.path)
  else {
    throw DataError(path, "a file can't be created in this folder")
  }
  do {
    var buffer = Data()
    func flush() throws {
      do { try file.write(contentsOf: buffer) } catch { throw DataError(path, "writing failed: \(error.localizedDescription)") }
      buffer.removeAll(keepingCapacity: true)
    }
    try body { text in
      buffer.append(contentsOf: text.utf8)
      if buffer.count > 1 << 20 { try flush() }
    }
    try flush()
    try file.synchronize()
    try file.close()
  } catch {
    try? file.close()
    try? FileManager.default.removeItem(at: temporary)
    throw error
  }
  // rename(2) replaces an older file in one step.
  guard rename(temporary.path, path) == 0 else {
    let reason = String(cString: strerror(errno))
    try? FileManager.default.removeItem(at: temporary)
    throw DataError(path, "the finished file can't be given its name: \(reason)")
  }
}
