import ArgumentParser
import Foundation
import MartletCatalog

struct BenchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bench",
    abstract: "Measure kernels and models beside PyTorch on the same sizes, run in alternation.",
    discussion: """
      The peers run in a Python process with torch: MARTLET_PEER_PYTHON names one, else python3. Without it only ours is measured \
      (--alone). A ratio above 1 means that ours is better.

      Example: martlet bench attention gpt --rounds 7 --markdown Benchmarks/RESULTS.md
      """)

  @Argument(help: "Only cases whose names contain one of these texts.")
  var cases: [String] = []

  @Option(help: "Pairs of runs, at least 5.")
  var rounds: Int = 7

  @Flag(help: "Include the heavy cases (long sequences, minutes each).")
  var heavy = false

  @Flag(help: "Measure ours alone, without peers.")
  var alone = false

  @Flag(help: "List the cases and stop.")
  var list = false

  @Option(help: "Also write a report in Markdown.", completion: .file(extensions: ["md"]))
  var markdown: String?

  @Option(help: "Threads on either side; 0 takes the machine's.")
  var threads: Int = 0

  @Flag(help: "Print rows as JSON.")
  var json = false

  mutating func run() throws {
    if threads > 0 { Engine.threads = threads }
    let selected = BenchmarkCase.selected(cases, heavy: heavy || list)
    guard !selected.isEmpty else {
      let asked = cases.map { "“\($0)”" }.joined(separator: " or ")
      throw ValidationError(
        BenchmarkCase.selected(cases, heavy: true).isEmpty
          ? "no case's name contains \(asked); `martlet bench --list` lists them"
          : "all cases whose names contain \(asked) are heavy; add --heavy to measure them")
    }
    if list {
      for benchmark in selected { print(benchmark.name + (benchmark.isHeavy ? "  (heavy)" : "")) }
      return
    }
    let peer = alone ? nil : try PeerProcess(script: PeerProcess.script(), threads: Engine.threads)
    defer { peer?.stop() }
    let limits = MachineLimits.measure()
    let started = Date()
    let arguments = CommandLine.arguments.dropFirst().map { $0.contains(" ") ? "'\($0)'" : $0 }
    let command = (["martlet"] + arguments).joined(separator: " ")
    func report(_ rows: [BenchmarkRow]) -> BenchmarkReport {
      BenchmarkReport(
        machine: .current(libtorch: Engine.torchVersion), limits: limits, threads: Engine.threads,
        peerVersions: peer?.versions.map { "\($0.name) \($0.version)" }.joined(separator: ", ") ?? "",
        command: command, date: started, rounds: max(5, rounds), rows: rows
      )
    }
    var measured: [BenchmarkRow] = []
    let rows = try BenchmarkRunner(rounds: rounds).run(selected, peer: peer, limits: limits) { row in
      Output.note(BenchmarkReport.terminalLine(row))
      // What is measured so far survives an interruption.
      measured.append(row)
      if let markdown { try? Data(report(measured).markdown().utf8).write(to: URL(fileURLWithPath: markdown), options: .atomic) }
    }
    if let markdown { try Data(report(rows).markdown().utf8).write(to: URL(fileURLWithPath: markdown), options: .atomic) }
    if json { print(try report(rows).rowsJSON()) } else { print(report(rows).markdown()) }
  }
}
