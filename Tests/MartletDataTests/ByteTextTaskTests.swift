import Foundation
import Testing

@testable import MartletData

@Suite struct ByteTextTaskTests {
  let folder = TemporaryFolder()
  /// Every byte value, with zero bytes and what is no UTF-8.
  private var bytes: [UInt8] { (0..<4000).map { UInt8(truncatingIfNeeded: $0 &* 7 ^ ($0 >> 8)) } }

  @Test func targetsAreTheNextBytesOfTheFile() throws {
    let path = folder.write("binary", bytes)
    let task = try ByteTextTask(files: [path], length: 16)
    let batch = try task.trainingBatch(step: 3, size: 8, seed: 1)
    let (inputs, targets) = (batch.inputs.toArray(Int.self), batch.targets.toArray(Int.self))
    #expect(batch.inputs.shape == [8, 16] && batch.mask == nil)
    let training = bytes[..<3600].map(Int.init)
    for row in 0..<8 {
      let window = Array(inputs[row * 16..<(row + 1) * 16])
      #expect(Array(targets[row * 16..<(row + 1) * 16 - 1]) == Array(window.dropFirst()))
      let whole = window + [targets[row * 16 + 15]]
      #expect((0..<training.count - 16).contains { Array(training[$0..<$0 + 17]) == whole }, "row \(row) is no window of the first 90 %")
    }
  }

  @Test func trainingBatchesAreFunctionsOfSeedAndStep() throws {
    let path = folder.write("binary", bytes)
    let (a, b) = (try ByteTextTask(files: [path], length: 16), try ByteTextTask(files: [path], length: 16))
    let later = try a.trainingBatch(step: 7, size: 4, seed: 2)
    _ = try b.trainingBatch(step: 0, size: 4, seed: 9)
    #expect(later == (try b.trainingBatch(step: 7, size: 4, seed: 2)))
    #expect(later != (try b.trainingBatch(step: 8, size: 4, seed: 2)))
    #expect(later != (try b.trainingBatch(step: 7, size: 4, seed: 3)))
  }

  @Test func evaluationCoversItsPartsWithoutOverlap() throws {
    let first = folder.write("first", bytes)
    let second = folder.compress("second.gz", Array(bytes.reversed()))
    let task = try ByteTextTask(files: [first, second], length: 9)
    for (split, part) in [(DataSplit.validation, 3600..<3800), (.test, 3800..<4000)] {
      var inputs: [Int] = []
      var targets: [Int] = []
      var index = 0
      while let batch = try task.evaluationBatch(split, index: index, size: 5) {
        inputs += batch.inputs.toArray(Int.self)
        targets += batch.targets.toArray(Int.self)
        index += 1
      }
      // 199 bytes with a successor make 22 windows of 9 in each file.
      #expect(task.count(split) == 44 && inputs.count == 44 * 9)
      for (file, data) in [bytes, bytes.reversed()].enumerated() {
        #expect(Array(inputs[file * 198..<(file + 1) * 198]) == data[part].prefix(198).map(Int.init))
        #expect(Array(targets[file * 198..<(file + 1) * 198]) == data[part].dropFirst().prefix(198).map(Int.init))
      }
    }
    let limited = try ByteTextTask(files: [first], length: 9, evaluationLimit: 3)
    #expect(limited.count(.test) == 3 && limited.count(.train) == 399)
    #expect(try limited.evaluationBatch(.test, index: 0, size: 5)?.inputs.shape == [3, 9])
    #expect(try limited.evaluationBatch(.test, index: 1, size: 5) == nil)
  }

  @Test func shortFilesAreNamedWithTheBytesNeeded() throws {
    let long = folder.write("long", bytes)
    let cases = [
      (folder.write("empty", []), "empty"), (folder.write("short", [UInt8](repeating: 1, count: 339)), "only 339 bytes"),
      (folder.path + "/none", "no such file"),
    ]
    for (path, expected) in cases {
      let error = #expect(throws: DataError.self) { try ByteTextTask(files: [long, path], length: 16) }
      #expect(error?.message.contains(path) == true && error?.message.contains(expected) == true, "\(error?.message ?? "none")")
      if expected != "no such file" { #expect(error?.message.contains("340 bytes") == true) }
    }
    // Exactly enough: one window in each part.
    let exact = try ByteTextTask(files: [folder.write("exact", [UInt8](repeating: 1, count: 340))], length: 16)
    #expect(exact.count(.validation) == 1 && exact.count(.test) == 1)
  }
}
