import Foundation

/// Language modelling of the bytes of any files: the next byte at every position.
///
/// Inputs [batch, length] and targets [batch, length] are bytes (vocabulary 256, no padding). Each file is cut in
/// consecutive parts, 90 % training, 5 % validation, 5 % test; no window crosses a part or a file. Training windows start
/// anywhere, drawn from (seed, step); evaluation windows follow one another without overlap.
///
/// Plain files are mapped, not read, so they may be larger than the memory; gzip files are inflated into it.
public final class ByteTextTask: LearningTask {
  public let name: String
  public let summary: String
  public let inputKind = InputKind.tokens(vocabulary: 256, padding: nil)
  public let objective = TaskObjective.tokens(vocabulary: 256)
  public let length: Int

  private struct Part: Sendable {
    let file: Int
    let start: Int
    let count: Int
  }
  private let files: [Data]
  private let parts: [DataSplit: [Part]]
  private let evaluationLimit: Int

  /// - Parameters:
  ///   - files: paths. Every file must hold at least 20 · (length + 1) bytes, so that each part has a whole window.
  ///   - length: bytes of a window.
  ///   - evaluationLimit: at most so many windows of the validation and of the test part are used.
  /// - Throws: `DataError` naming a file that is missing or too short.
  public convenience init(files paths: [String], length: Int = 256, evaluationLimit: Int = .max, name: String = "bytes") throws {
    try self.init(
      texts: paths.map { (name: $0, bytes: try Self.contents($0)) }, length: length, evaluationLimit: evaluationLimit, name: name)
  }

  /// Over given bytes instead of files, under names for the summary and errors.
  public init(texts: [(name: String, bytes: Data)], length: Int = 256, evaluationLimit: Int = .max, name: String = "bytes") throws {
    guard !texts.isEmpty else { throw DataError("byte-level language modelling needs at least one file") }
    guard length > 0, evaluationLimit >= 0 else { throw DataError("the length of a window must be positive, not \(length)") }
    let paths = texts.map(\.name)
    files = texts.map(\.bytes)
    var parts: [DataSplit: [Part]] = [:]
    for (index, data) in files.enumerated() {
      let needed = 20 * (length + 1)
      guard data.count >= needed else {
        throw DataError(
          paths[index],
          "\(data.count == 0 ? "the file is empty" : "only \(data.count) bytes"); windows of \(length) need at least \(needed) bytes")
      }
      let validation = data.count - data.count / 20 * 2
      let test = data.count - data.count / 20
      parts[.train, default: []].append(Part(file: index, start: 0, count: validation))
      parts[.validation, default: []].append(Part(file: index, start: validation, count: test - validation))
      parts[.test, default: []].append(Part(file: index, start: test, count: data.count - test))
    }
    self.parts = parts
    self.length = length
    self.evaluationLimit = evaluationLimit
    self.name = name
    let total = files.reduce(0) { $0 + $1.count }
    let names = paths.map { URL(fileURLWithPath: $0).lastPathComponent }.joined(separator: ", ")
    summary = "Bytes: the next byte in windows of \(length) from \(total) bytes (\(names)), parts of 90/5/5 %"
  }

  private static func contents(_ path: String) throws -> Data {
    let reader = try ByteReader(path: path)
    if reader.isCompressed { return Data(try reader.readAll(limit: 1 << 33)) }
    do {
      return try Data(contentsOf: URL(fileURLWithPath: path), options: .mappedIfSafe)
    } catch {
      throw DataError(path, "reading failed: \(error.localizedDescription)")
    }
  }

  /// Windows without overlap. Training windows may start anywhere, so an epoch is a matter of counting bytes only.
  public func count(_ split: DataSplit) -> Int {
    let windows = parts[split]!.reduce(0) { $0 + ($1.count - 1) / length }
    return split == .train ? windows : min(windows, evaluationLimit)
  }

  public func trainingBatch(step: Int, size: Int, seed: UInt64) throws -> Batch {
    precondition(step >= 0 && size > 0, "step \(step) or batch size \(size) is out of range")
    let parts = parts[.train]!
    let starts = parts.map { $0.count - length }  // places where a window and its last target fit
    let total = starts.reduce(0, +)
    return batch(
      (0..<size).map { row in
        var random = SeededRandom(seed: seed, stream: UInt64(step * size + row))
        var place = random.integer(below: total)
        var part = 0
        while place >= starts[part] {
          place -= starts[part]
          part += 1
        }
        return (parts[part].file, parts[part].start + place)
      })
  }

  public func evaluationBatch(_ split: DataSplit, index: Int, size: Int) throws -> Batch? {
    precondition(index >= 0 && size > 0, "batch \(index) of size \(size) is out of range")
    let total = count(split)
    guard index * size < total else { return nil }
    return batch(
      (index * size..<min(total, (index + 1) * size)).map { number in
        var window = number
        for part in parts[split]! {
          let windows = (part.count - 1) / length
          if window < windows { return (part.file, part.start + window * length) }
          window -= windows
        }
        fatalError("window \(number) of \(total) lies in no part")
      })
  }

  private func batch(_ windows: [(file: Int, start: Int)]) -> Batch {
    var inputs = [Int64](repeating: 0, count: windows.count * length)
    var targets = inputs
    for (row, window) in windows.enumerated() {
      files[window.file].withUnsafeBytes { bytes in
        for column in 0..<length {
          inputs[row * length + column] = Int64(bytes[window.start + column])
          targets[row * length + column] = Int64(bytes[window.start + column + 1])
        }
      }
    }
    return Batch(inputs: Tensor(inputs, [windows.count, length]), targets: Tensor(targets, [windows.count, length]))
  }
}
