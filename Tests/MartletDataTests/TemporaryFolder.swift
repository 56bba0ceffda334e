import CZlib
import Foundation

/// A folder of its own for one test, removed with it.
final class TemporaryFolder {
  let path: String

  init() {
    path = FileManager.default.temporaryDirectory.appendingPathComponent("martlet-data-\(UUID().uuidString)").path
    try! FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }

  /// Writes a file, making its folders, and returns its path.
  @discardableResult func write(_ name: String, _ bytes: [UInt8]) -> String {
    let file = path + "/" + name
    let folder = URL(fileURLWithPath: file).deletingLastPathComponent().path
    try! FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    try! Data(bytes).write(to: URL(fileURLWithPath: file))
    return file
  }

  @discardableResult func write(_ name: String, _ text: String) -> String { write(name, Array(text.utf8)) }

  /// Writes a gzip file.
  @discardableResult func compress(_ name: String, _ bytes: [UInt8]) -> String {
    let file = write(name, [])
    let handle = gzopen(file, "wb")
    precondition(bytes.isEmpty || gzwrite(handle, bytes, UInt32(bytes.count)) == Int32(bytes.count))
    gzclose(handle)
    return file
  }

  func bytes(_ name: String) -> [UInt8] { [UInt8](FileManager.default.contents(atPath: path + "/" + name)!) }

  var names: [String] { try! FileManager.default.contentsOfDirectory(atPath: path).sorted() }
}
