import Foundation
import Martlet

/// The rows of a benchmark with everything needed to judge and repeat them.
public struct BenchmarkReport: Codable, Sendable {
  public var machine: MachineDescription
  public var limits: MachineLimits
  public var threads: Int
  /// The peers' versions, e.g. "python 3.11.7, torch 2.13.0".
  public var peerVersions: String
  public var command: String
  public var date: Date
  public var rounds: Int
  public var rows: [BenchmarkRow]

  public init(
    machine: MachineDescription, limits: MachineLimits, threads: Int, peerVersions: String, command: String, date: Date, rounds: Int,
    rows: [BenchmarkRow]
  ) {
    self.machine = machine
    self.limits = limits
    self.threads = threads
    self.peerVersions = peerVersions
    self.command = command
    self.date = date
    self.rounds = rounds
    self.rows = rows
  }

  /// The rows alone as a JSON array, what `bench --json` prints.
  public func rowsJSON() throws -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    return String(decoding: try encoder.encode(rows), as: UTF8.self)
  }

  /// A Markdown document: machine, versions, command, then a table for each group.
  public func markdown() -> String {
    let day = date.formatted(.iso8601.year().month().day())
    var text = """
      # Benchmarks

      Ours and the peer's in alternation, \(rounds) pairs of runs; the ratio is the peer's figure over ours, so above 1 ours is better.
      A pair of neighbouring runs gives one ratio; given are median and, in brackets, least and greatest.
      Memory is the most bytes of tensors alive at once in a call, beyond those before it.

      - Machine: \(machine.summary); \(threads) \(threads == 1 ? "thread" : "threads") on either side
      - Peers: \(peerVersions.isEmpty ? "none" : peerVersions)
      - Limits measured at the start: \(Figure.fixed(limits.operationsPerSecond / 1e9, 0)) GFLOP/s (float32 product, 1024³), \
      \(Figure.fixed(limits.bytesPerSecond / 1e9, 1)) GB/s (copy of 256 MB, read and written)
      - Command: `\(command)`
      - Date: \(day)

      """
    let summary = MixerSummary(rows).markdown()
    if !summary.isEmpty { text += "\n" + summary }
    var groups: [String] = []
    for row in rows where !groups.contains(row.group) { groups.append(row.group) }
    for group in groups {
      text += "\n## \(group)\n\n| case | ours | peer | | ratio | rate (share of the limit) |\n| --- | ---: | ---: | --- | ---: | ---: |\n"
      for row in rows where row.group == group { text += Self.line(row) + "\n" }
    }
    return text
  }

  /// A row of a Markdown table.
  static func line(_ row: BenchmarkRow) -> String {
    func figure(_ value: Double) -> String { row.unit == "bytes" ? Figure.bytes(value) : Figure.seconds(value) }
    let cells = [
      row.name, figure(row.ours), row.peer.map(figure) ?? "–", row.note.map { "\(row.peerName ?? "") failed: \($0)" } ?? row.peerName ?? "",
      row.ratio.map(text) ?? "–",
      row.rate.map { "\(Figure.fixed($0.value, $0.value < 10 ? 1 : 0)) \($0.unit) (\(Figure.fixed($0.share * 100, 0)) %)" } ?? "",
    ]
    // A message of the peer's may hold the character that divides cells.
    return "| " + cells.map { $0.replacingOccurrences(of: "|", with: "\\|") }.joined(separator: " | ") + " |"
  }

  /// The row for a terminal while the benchmark runs.
  public static func terminalLine(_ row: BenchmarkRow) -> String {
    func figure(_ value: Double) -> String { row.unit == "bytes" ? Figure.bytes(value) : Figure.seconds(value) }
    var text = "\(row.name): \(figure(row.ours))"
    if let peer = row.peer, let name = row.peerName { text += ", \(name) \(figure(peer))" }
    if let ratio = row.ratio { text += ", ratio \(Self.text(ratio))" }
    if let rate = row.rate { text += ", \(Figure.fixed(rate.value, 1)) \(rate.unit), \(Figure.fixed(rate.share * 100, 0)) % of the limit" }
    if let note = row.note { text += " (\(row.peerName ?? "the peer") failed: \(note))" }
    return text
  }

  private static func text(_ ratio: BenchmarkRow.Ratio) -> String {
    func short(_ value: Double) -> String { Figure.fixed(value, value < 10 ? 2 : value < 100 ? 1 : 0) }
    if ratio.min == ratio.max { return "\(short(ratio.median))×" }
    return "\(short(ratio.median))× (\(short(ratio.min))–\(short(ratio.max)))"
  }
}
