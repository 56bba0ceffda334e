import Foundation

/// Many sequences of small ids in one block of memory, one byte an id.
struct ByteSequences: Sendable {
  private(set) var bytes: [UInt8] = []
  private(set) var ends: [Int] = []

  var count: Int { ends.count }
  var longest: Int { indices.reduce(0) { max($0, range($1).count) } }
  var indices: Range<Int> { 0..<ends.count }

  func range(_ index: Int) -> Range<Int> { (index == 0 ? 0 : ends[index - 1])..<ends[index] }

  subscript(index: Int) -> ArraySlice<UInt8> { bytes[range(index)] }

  mutating func append(_ sequence: some Collection<UInt8>) {
    bytes.append(contentsOf: sequence)
    ends.append(bytes.count)
  }

  /// A batch of the given sequences: ids plus `offset`, cut to `limit`, filled with 0 on the right up to the longest of the
  /// batch, or to `limit` when `isFull`. The mask is `nil` when nothing was filled.
  func tokens(_ indices: [Int], offset: Int, limit: Int, isFull: Bool) -> (inputs: Tensor, mask: Tensor?) {
    let lengths = indices.map { min(limit, range($0).count) }
    let width = isFull ? limit : max(1, lengths.max() ?? 1)
    var ids = [Int64](repeating: 0, count: indices.count * width)
    bytes.withUnsafeBufferPointer { bytes in
      for (row, index) in indices.enumerated() {
        let start = range(index).lowerBound
        for column in 0..<lengths[row] { ids[row * width + column] = Int64(Int(bytes[start + column]) + offset) }
      }
    }
    let inputs = Tensor(ids, [indices.count, width])
    guard lengths.contains(where: { $0 < width }) else { return (inputs, nil) }
    var real = [Bool](repeating: false, count: ids.count)
    for (row, length) in lengths.enumerated() {
      for column in 0..<length { real[row * width + column] = true }
    }
    return (inputs, Tensor(real, [indices.count, width]))
  }
}
