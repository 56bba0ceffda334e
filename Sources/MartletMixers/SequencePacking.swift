/// Where sequences begin and end in a batch that holds them end to end.
public struct SequencePacking: @unchecked Sendable {
  /// 0, the end of the first sequence, …, the total.
  public let offsets: [Int]
  /// The same, [sequences + 1] int64.
  public let offsetTensor: Tensor
  /// The position of each element in its sequence, [total] int64.
  public let positions: Tensor

  public init(lengths: [Int]) {
    offsets = lengths.reduce(into: [0]) { $0.append($0.last! + $1) }
    offsetTensor = Tensor(offsets)
    positions = Tensor(lengths.flatMap { 0..<$0 })
  }

  public var sequences: Int { offsets.count - 1 }

  /// Where the sequences lie when the whole is turned round.
  public var reversed: SequencePacking { SequencePacking(lengths: zip(offsets, offsets.dropFirst()).map { $1 - $0 }.reversed()) }

  /// The sequence of each element, [total] int64.
  public var sequenceIndices: Tensor {
    Tensor((0..<sequences).flatMap { i in repeatElement(i, count: offsets[i + 1] - offsets[i]) })
  }

  /// Divides sequences of given lengths into batches of about `total` elements (one sequence at least), each of neighbours in length:
  /// the indices of each batch's sequences. Batches of like sequences make even work for the cores.
  public static func batches(of lengths: [Int], total: Int) -> [[Int]] {
    var result: [[Int]] = []
    var sum = 0
    for index in lengths.indices.sorted(by: { (lengths[$0], $0) > (lengths[$1], $1) }) {
      if result.isEmpty || sum + lengths[index] > total {
        result.append([])
        sum = 0
      }
      result[result.count - 1].append(index)
      sum += lengths[index]
    }
    return result
  }

  /// Runs a scan on each sequence of tensors whose axis 2 is the position, [1, H, total, …], and joins outputs and last states.
  func scanEach(
    _ initialState: Tensor?, _ body: (_ part: (Tensor) -> Tensor, _ state: Tensor?) -> (output: Tensor, state: Tensor)
  ) -> (output: Tensor, state: Tensor) {
    let results = (0..<sequences).map { i in
      body(
        { $0.narrowed(axis: 2, start: offsets[i], length: offsets[i + 1] - offsets[i]) },
        initialState?.narrowed(axis: 0, start: i, length: 1))
    }
    return (concatenated(results.map(\.output), axis: 2), concatenated(results.map(\.state)))
  }

  /// Runs a function on each sequence, [1, length, …], and joins what it returns.
  public func forEachSequence(_ x: Tensor, _ body: (Tensor) -> Tensor) -> Tensor {
    concatenated(
      (0..<sequences).map { body(x.narrowed(axis: 1, start: offsets[$0], length: offsets[$0 + 1] - offsets[$0])) }, axis: 1)
  }
}
