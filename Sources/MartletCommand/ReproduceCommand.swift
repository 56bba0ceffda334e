import ArgumentParser
import Foundation
import MartletCatalog
import MartletTraining
import Synchronization

struct ReproduceCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "reproduce",
    abstract: "Re-run a paper's claim at small scale and judge it from the figures.",
    discussion: """
      Each experiment takes about a minute on two cores. Progress goes to standard error. The exit status is 1 when a verdict fails.

      Example: martlet reproduce gla s4 --json > verdicts.json
      """)

  @Argument(help: "Methods' ids.", completion: .list(CatalogArguments.readyIDs))
  var ids: [String] = []

  @Flag(help: "Every method that has an experiment.")
  var all = false

  @OptionGroup var compute: ComputeOptions

  @Flag(help: "Print a JSON object; for several methods, or --all, an array.")
  var json = false

  func validate() throws {
    guard all || !ids.isEmpty else { throw ValidationError("name a method, or give --all; `martlet methods --status ready` lists them") }
    guard !all || ids.isEmpty else { throw ValidationError("give ids or --all, not both") }
  }

  func run() throws {
    compute.apply()
    var seen: Set<String> = []
    let chosen = (all ? CatalogArguments.readyIDs : ids).filter { seen.insert($0).inserted }
    guard !chosen.isEmpty else { throw ValidationError("no method is ready to be reproduced") }
    // A wrong id is said before the minutes of the others, not after them.
    let implementations = try chosen.map { try Catalog.implementation($0) }

    let finished = FinishedReproductions()
    let isArray = chosen.count > 1 || all
    let notice = InterruptNotice { [json] in
      let done = finished.all
      if json && isArray { Output.json(JSONValue.array(done.map(\.json))) }
      let kept = done.isEmpty ? "no verdict was reached" : "judged: \(done.map(\.id).joined(separator: ", "))"
      Output.note("interrupted; \(kept)")
    }
    for (number, (id, implementation)) in zip(chosen, implementations).enumerated() {
      Output.note("[\(number + 1)/\(chosen.count)] \(id)")
      let result: Reproduction
      do { result = try implementation.reproduce(progress: { Output.note("  \($0)") }) } catch let error as NoExperiment where all {
        Output.note("  skipped: \(error)")
        continue
      } catch {
        if json && isArray { Output.json(JSONValue.array(finished.all.map(\.json))) }
        Output.note("\(id) could not be judged")
        throw error
      }
      notice.whole {
        finished.add(result)
        if !json { print((finished.all.count > 1 ? "\n" : "") + text(of: result)) }
        fflush(nil)
      }
    }
    let results = finished.all
    guard !results.isEmpty else { throw ValidationError("none of the methods that are ready has an experiment yet") }
    notice.whole {
      if json { Output.json(isArray ? JSONValue.array(results.map(\.json)) : results[0].json) }
      fflush(nil)
    }
    if !json && results.count > 1 {
      let fails = results.filter { $0.verdict == .fails }.map(\.id)
      print(
        "\n\(results.count - fails.count) of \(results.count) hold" + (fails.isEmpty ? "" : "; fails: \(fails.joined(separator: ", "))"))
    }
    if results.contains(where: { $0.verdict == .fails }) { throw CommandLineErrors.verdictFails }
  }

  private func text(of result: Reproduction) -> String {
    let metrics = Set(result.arms.flatMap(\.metrics.keys)).sorted()
    var table = TerminalTable([.init("arm")] + metrics.map { .init($0, .right) })
    for arm in result.arms {
      table.add([.init(arm.name)] + metrics.map { name in .init(arm.metrics[name].map(Figure.number) ?? "") })
    }
    var lines = [
      Output.heading(result.id), Output.wrapped("claim: \(result.claim)"), "", table.rendered(), "",
      Output.wrapped("judged: \(result.inequality)"), "  verdict: \(Output.heading(result.verdict.rawValue))",
    ]
    if let note = result.note { lines.append(Output.wrapped("note: \(note)")) }
    let seeds = result.seeds.map(String.init).joined(separator: ", ")
    lines.append("  \(Figure.seconds(result.seconds)), \(result.seeds.count == 1 ? "seed" : "seeds") \(seeds)")
    return lines.joined(separator: "\n")
  }
}

/// What has been judged so far, for the thread that works and the one that is told of an interruption.
private final class FinishedReproductions: Sendable {
  private let results = Mutex<[Reproduction]>([])

  var all: [Reproduction] { results.withLock { $0 } }
  func add(_ result: Reproduction) { results.withLock { $0.append(result) } }
}
