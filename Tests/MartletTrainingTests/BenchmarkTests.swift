import Foundation
import Martlet
import MartletTraining
import Testing

@Suite struct BenchmarkTests {
  /// A peer in shell that answers as Benchmarks/peer.py does: every call takes 2 s by its own account and holds 1 MB.
  private static let answering = """
    while read -r line; do
      case $line in
        *list*) echo '{"cases": ["add", "broken"], "versions": {"torch": "2.13.0"}}' ;;
        *broken*) echo '{"error": "RuntimeError: no | compiler"}' ;;
        *case*) echo '{"ready": "add", "seconds": 2.0}' ;;
        *run*) echo '{"seconds": 2.0}' ;;
        *memory*) echo '{"bytes": 1000000}' ;;
        *release*) echo '{"released": true}' ;;
      esac
    done
    """

  private func withPeer<Result>(_ script: String, _ body: (PeerProcess) throws -> Result) throws -> Result {
    let file = FileManager.default.temporaryDirectory.appendingPathComponent("peer-\(UUID().uuidString).sh")
    try Data(script.utf8).write(to: file)
    defer { try? FileManager.default.removeItem(at: file) }
    var environment = ProcessInfo.processInfo.environment
    environment["MARTLET_PEER_PYTHON"] = "sh"
    let peer = try PeerProcess(script: file.path, threads: 1, environment: environment)
    defer { peer.stop() }
    return try body(peer)
  }

  private func message(_ script: String, _ body: (PeerProcess) throws -> Void = { _ in }) -> String {
    do {
      try withPeer(script, body)
      return ""
    } catch { return "\(error)" }
  }

  private let limits = MachineLimits(operationsPerSecond: 1e9, bytesPerSecond: 1e9)

  /// Of 200 MB: the account of memory is the process's, in which other tests give theirs back meanwhile.
  private func addition(_ peers: [BenchmarkCase.Peer]) -> BenchmarkCase {
    BenchmarkCase("addition", group: "Arithmetic", peers: peers, work: .operations(1000)) {
      let x = Tensor.ones([50_000_000])
      return { _ = x + x }
    }
  }

  @Test func rowsHoldBothFiguresTheirRatioAndTheRateBesideTheLimit() throws {
    let rows = try withPeer(Self.answering) { peer in
      #expect(peer.cases == ["add", "broken"])
      #expect(peer.versions.map(\.version) == ["2.13.0"])
      return try BenchmarkRunner(rounds: 5, secondsPerRun: 0.001).run(
        [addition([.init("add", "Shell")])], peer: peer, limits: limits)
    }
    try #require(rows.map(\.unit) == ["s", "bytes"])
    let time = try #require(rows.first)
    let ratio = try #require(time.ratio)
    #expect(time.peer == 2 && time.peerName == "Shell")
    #expect(ratio.min <= ratio.median && ratio.median <= ratio.max)
    #expect(abs(ratio.median - 2 / time.ours) < 1e-6 * ratio.median, "the ratio \(ratio.median) for \(time.ours) s against 2 s")
    let rate = try #require(time.rate)
    #expect(rate.unit == "GFLOP/s" && abs(rate.value * time.ours - 1e-6) < 1e-12 && abs(rate.share - rate.value) < 1e-9 * rate.value)
    // Ours counts the whole process's tensors, which other tests change at the same time.
    #expect(rows[1].peer == 1_000_000)
  }

  @Test func rowsInJSONHaveTheDocumentedKeys() throws {
    let rows = try withPeer(Self.answering) {
      try BenchmarkRunner(secondsPerRun: 0.001).run([addition([.init("add", "Shell")])], peer: $0, limits: limits)
    }
    let report = BenchmarkReport(
      machine: .current(libtorch: "2.13.0"), limits: limits, threads: 1, peerVersions: "", command: "martlet bench", date: Date(),
      rounds: 5, rows: rows)
    let json = try JSONValue.parse(try report.rowsJSON())
    let first = try #require(json.arrayValue?.first?.objectValue)
    for key in ["name", "ours", "peer", "peer_name", "unit", "ratio"] { #expect(first[key] != nil, "\(key) is missing") }
    #expect(Set(first["ratio"]?.objectValue?.keys ?? []) == ["min", "median", "max"])
  }

  @Test func failuresOfAPeerAreToldInTheirRowAndTheOthersGoOn() throws {
    let rows = try withPeer(Self.answering) {
      try BenchmarkRunner(secondsPerRun: 0.001, measuresMemory: false).run(
        [addition([.init("broken", "Compiled"), .init("add", "Shell")])], peer: $0, limits: limits)
    }
    #expect(rows.map(\.note) == ["RuntimeError: no | compiler", nil])
    #expect(rows.map { $0.ratio == nil } == [true, false])
    let report = BenchmarkReport(
      machine: .current(libtorch: "2.13.0"), limits: limits, threads: 1, peerVersions: "", command: "martlet bench", date: Date(),
      rounds: 5, rows: rows)
    #expect(report.markdown().contains("Compiled failed: RuntimeError: no \\| compiler"))
  }

  @Test func whatAPeerCannotRecordLeavesItsTimeAndOurMemory() throws {
    let script = Self.answering.replacingOccurrences(of: "{\"bytes\": 1000000}", with: "{\"error\": \"MemoryError: too long\"}")
    let rows = try withPeer(script) {
      try BenchmarkRunner(secondsPerRun: 0.001).run([addition([.init("add", "Shell")])], peer: $0, limits: limits)
    }
    try #require(rows.map(\.unit) == ["s", "bytes"])
    #expect(rows[0].ratio != nil && rows[0].note == nil)
    #expect(rows[1].peer == nil && rows[1].ratio == nil && rows[1].note == "MemoryError: too long")
    // Nor does one that ends there.
    let ended = try withPeer(script.replacingOccurrences(of: "echo '{\"error\": \"MemoryError: too long\"}'", with: "exit 0")) {
      try BenchmarkRunner(secondsPerRun: 0.001).run([addition([.init("add", "Shell")])], peer: $0, limits: limits)
    }
    try #require(ended.map(\.unit) == ["s", "bytes"])
    #expect(ended[1].note?.contains("ended") == true)
  }

  @Test func peersThatCannotWorkSayWhatToDo() {
    let without = message("echo '{\"error\": \"sh has no torch\"}'")
    #expect(without.contains("sh has no torch") && without.contains("pip install torch"), "\(without)")
    #expect(message("exit 1").contains("MARTLET_PEER_PYTHON"))
    // It ends in the middle of the conversation.
    let ending = message("read line; echo '{\"cases\": []}'; exit 0") { peer in try peer.select("add") }
    #expect(ending.contains("peer"), "\(ending)")
    #expect(throws: PeerError.self) { try PeerProcess(script: "/nowhere/peer.py", threads: 1) }
  }

  @Test func casesHaveUniqueNamesAndQuickRunsLeaveHeavyOnesOut() {
    let names = BenchmarkCase.all.map(\.name)
    #expect(Set(names).count == names.count)
    #expect(BenchmarkCase.selected(heavy: false).count < names.count && BenchmarkCase.selected(heavy: true).count == names.count)
    #expect(BenchmarkCase.selected(["GPT-tiny"], heavy: false).map(\.name) == ["gpt-tiny training step"])
  }

  @Test func lightCasesRun() throws {
    for benchmark in BenchmarkCase.selected(["gpt-tiny", "perceptron", "additions", "L64 d16", "after 256"], heavy: false) {
      let prepared = try benchmark.prepare()
      try prepared.call()
      try prepared.call()
    }
  }
}
