import Foundation
import Martlet

/// One line of the benchmark's result: a quantity of ours and of a peer's. A ratio above 1 says that ours is better.
public struct BenchmarkRow: Codable, Sendable {
  public struct Ratio: Codable, Sendable, Equatable {
    public var min: Double
    public var median: Double
    public var max: Double

    public init(_ values: [Double]) {
      min = values.min() ?? .nan
      median = middle(of: values)
      max = values.max() ?? .nan
    }
  }

  /// How fast ours is, beside what the machine can do.
  public struct Rate: Codable, Sendable {
    public var value: Double
    /// "GFLOP/s" or "GB/s".
    public var unit: String
    /// Share of the machine's measured limit.
    public var share: Double
  }

  public var name: String
  public var group: String
  public var point: BenchmarkCase.Point?
  /// Median of a call, in `unit`.
  public var ours: Double
  public var peer: Double?
  public var peerName: String?
  /// "s" or "bytes".
  public var unit: String
  /// The bytes are those of a recurrent mixer's state, not of a call.
  public var isState = false
  public var ratio: Ratio?
  public var rate: Rate?
  /// Why there is no peer's figure, where one was expected.
  public var note: String?

  enum CodingKeys: String, CodingKey {
    case name, group, point, ours, peer, unit, ratio, rate, note
    case isState = "is_state"
    case peerName = "peer_name"
  }
}

/// The middle of the values, or the mean of the two in the middle.
private func middle(of values: [Double]) -> Double {
  guard !values.isEmpty else { return .nan }
  let sorted = values.sorted()
  let middle = sorted.count / 2
  return sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

/// Runs our cases and the peers' in alternation on one machine: ours, theirs, ours, theirs, so that whatever else happens on
/// the machine meets both; each pair of neighbours gives one ratio.
public struct BenchmarkRunner {
  /// Pairs of runs for each peer; at least 5, but for peers that take many seconds a call.
  public var rounds: Int
  /// Seconds that the calls of one run should take together at least.
  public var secondsPerRun: Double
  /// Also measure the most bytes of tensors alive in a call.
  public var measuresMemory: Bool

  public init(rounds: Int = 7, secondsPerRun: Double = 0.05, measuresMemory: Bool = true) {
    self.rounds = max(5, rounds)
    self.secondsPerRun = secondsPerRun
    self.measuresMemory = measuresMemory
  }

  /// The rows of the cases, in order. `peer` may be absent: then only ours is measured.
  public func run(
    _ cases: [BenchmarkCase], peer: PeerProcess?, limits: MachineLimits, progress: (BenchmarkRow) -> Void = { _ in }
  ) throws -> [BenchmarkRow] {
    var rows: [BenchmarkRow] = []
    for benchmark in cases {
      for row in try measure(benchmark, peer: peer, limits: limits) {
        progress(row)
        rows.append(row)
      }
    }
    return rows
  }

  private func measure(_ benchmark: BenchmarkCase, peer: PeerProcess?, limits: MachineLimits) throws -> [BenchmarkRow] {
    let prepared = try benchmark.prepare()
    let call = prepared.call
    func ours(_ count: Int) throws -> Double { try elapsed { for _ in 0..<count { try call() } } / Double(count) }
    _ = try ours(1)
    let count = calls(try ours(1))
    let work = benchmark.work()
    // Work without tensors has nothing to compare.
    let memory = try measuresMemory ? peakBytes(call) : nil

    func row(_ seconds: [Double]) -> BenchmarkRow {
      let median = middle(of: seconds)
      return BenchmarkRow(
        name: benchmark.name, group: benchmark.group, point: benchmark.point, ours: median, unit: "s",
        rate: rate(work, median, limits))
    }
    func memoryRow() -> BenchmarkRow? {
      memory.flatMap { $0 > 0 ? $0 : nil }.map {
        BenchmarkRow(
          name: benchmark.name + ", peak memory", group: benchmark.group, point: benchmark.point, ours: Double($0), unit: "bytes")
      }
    }

    let stateRow = prepared.stateBytes.map {
      BenchmarkRow(
        name: benchmark.name + ", state", group: benchmark.group, point: benchmark.point, ours: Double($0), unit: "bytes", isState: true)
    }
    guard let peer, !benchmark.peers.isEmpty else {
      let alone = row(try (0..<rounds).map { _ in try ours(count) })
      return [alone] + [memoryRow(), stateRow].compactMap { $0 }
    }
    var rows: [BenchmarkRow] = []
    for other in benchmark.peers {
      do {
        guard peer.cases.contains(other.name) else { throw PeerError(description: "no peer at this size") }
        try peer.select(other.name)
        let once = try peer.run(1)
        let otherCount = calls(once)
        var (mine, theirs) = ([Double](), [Double]())
        for _ in 0..<pairs(once) {
          mine.append(try ours(count))
          theirs.append(try peer.run(otherCount) / Double(otherCount))
        }
        var line = row(mine)
        line.peer = middle(of: theirs)
        line.peerName = other.label
        line.ratio = .init(zip(theirs, mine).map { $0 / $1 })
        rows.append(line)
        if var line = memoryRow(), let bytes = memory {
          line.peerName = other.label
          do {
            let otherBytes = try peer.peakBytes()
            line.peer = Double(otherBytes)
            // A call that allocates nothing has no ratio.
            line.ratio = bytes > 0 && otherBytes > 0 ? .init([Double(otherBytes) / Double(bytes)]) : nil
          } catch let error as PeerError {
            line.note = error.description
          }
          rows.append(line)
        }
        // One that ended says so when the next case is selected.
        try? peer.release()
      } catch let error as PeerError {
        var line = row(try (0..<rounds).map { _ in try ours(count) })
        line.peerName = other.label
        line.note = error.description
        rows += [line, memoryRow()].compactMap { $0 }
      }
    }
    return rows + [stateRow].compactMap { $0 }
  }

  /// Fewer pairs where the peer's call takes so long that they would take more than half a minute together; at least one.
  private func pairs(_ seconds: Double) -> Int { min(rounds, max(1, Int(30 / max(seconds, 1e-7)))) }

  private func calls(_ seconds: Double) -> Int { min(100_000, max(1, Int((secondsPerRun / max(seconds, 1e-7)).rounded(.up)))) }

  private func peakBytes(_ call: () throws -> Void) throws -> Int {
    let before = MemoryUsage.tensorBytes
    MemoryUsage.resetPeak()
    try call()
    return max(0, MemoryUsage.peakTensorBytes - before)
  }

  private func rate(_ work: BenchmarkCase.Work?, _ seconds: Double, _ limits: MachineLimits) -> BenchmarkRow.Rate? {
    switch work {
    case .operations(let count): .init(value: count / seconds / 1e9, unit: "GFLOP/s", share: count / seconds / limits.operationsPerSecond)
    case .traffic(let bytes): .init(value: bytes / seconds / 1e9, unit: "GB/s", share: bytes / seconds / limits.bytesPerSecond)
    case nil: nil
    }
  }
}
