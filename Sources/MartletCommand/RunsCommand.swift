import ArgumentParser
import Foundation
import MartletCatalog
import MartletTraining

struct RunsCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "runs",
    abstract: "Look at the runs kept in the experiment store.",
    discussion: """
      The store is one SQLite file: $MARTLET_STORE, else ~/.local/share/martlet/experiments.sqlite.

      Example: martlet runs diff 3 5
      """,
    subcommands: [List.self, Show.self, Diff.self, Delete.self], defaultSubcommand: List.self)

  struct List: ParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "list", abstract: "List runs, the latest first.",
      discussion: "Example: martlet runs list --mixer gla --status finished --since 2026-01-31")

    @Option(help: "Only this command's runs, e.g. compare.")
    var command: String?

    @Option(help: "Only runs on this task, written as it was then.")
    var task: String?

    @Option(help: "Only runs with an arm of this mixer.", completion: .list(MixerKind.all.map(\.name)))
    var mixer: String?

    @Option(
      help: "Only runs that are running, finished or interrupted.", completion: .list(StoredRun.Status.allCases.map(\.rawValue)),
      transform: CatalogArguments.parse)
    var status: StoredRun.Status?

    @Option(help: "Only runs begun on this day (UTC) or later: 2026-01-31.", transform: RunsCommand.date)
    var since: Date?

    @Option(help: "At most so many runs.")
    var limit: Int?

    @Flag(help: "Print a JSON array.")
    var json = false

    func validate() throws {
      if let limit, limit < 1 { throw ValidationError("--limit must be at least 1, got \(limit)") }
    }

    func run() throws {
      let runs = try ExperimentStore().list(
        .init(command: command, task: task, mixer: mixer, status: status, since: since, limit: limit))
      if json {
        Output.json(JSONValue.array(runs.map { .object(object(of: $0)) }))
        return
      }
      guard !runs.isEmpty else {
        print("no runs")
        return
      }
      var table = TerminalTable([
        .init("run", .right), .init("date"), .init("command"), .init("task"), .init("budget"), .init("status"), .init("folder"),
      ])
      for run in runs {
        table.add([
          "\(run.id)", .init(shortDate(run.date)), .init(run.command), .init(run.task), .init(run.budget),
          .init(run.status.rawValue, run.status == .interrupted ? .warning : .none), .init(run.directory, .faint),
        ])
      }
      print(table.rendered())
    }
  }

  struct Show: ParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "show", abstract: "Show a run with its arms and metrics.", discussion: "Example: martlet runs show 3 --json")

    @Argument(help: "The run's number.")
    var number: Int64

    @Flag(help: "Print a JSON object.")
    var json = false

    func run() throws {
      let (run, arms) = try ExperimentStore().show(number)
      if json {
        var object = object(of: run)
        object["arms"] = .array(
          arms.map { arm in
            var metrics = JSONObject()
            for (name, value) in arm.metrics.sorted(by: { $0.key < $1.key }) { metrics[name] = .number(value) }
            return [
              "mixer": .string(arm.mixer), "pretrained": .bool(arm.pretrained), "seed": .integer(arm.seed),
              "parameters": .integer(arm.parameters), "metrics": .object(metrics),
            ]
          })
        Output.json(JSONValue.object(object))
        return
      }
      print(
        """
        \(Output.heading("run \(run.id)"))  \(run.command) on \(Terminal.sanitised(run.task)), \(run.status.rawValue)
          begun    \(shortDate(run.date)) UTC
          budget   \(Terminal.sanitised(run.budget))
          folder   \(Terminal.sanitised(run.directory))
          machine  \(Terminal.sanitised(run.machine.summary))
          version  \(Terminal.sanitised(run.version))
        """)
      guard !arms.isEmpty else { return print("\nno arm is finished") }
      let metrics = Set(arms.flatMap(\.metrics.keys)).sorted()
      var table = TerminalTable(
        [.init("mixer"), .init("pretrained"), .init("seed", .right), .init("parameters", .right)] + metrics.map { .init($0, .right) })
      for arm in arms {
        table.add(
          [.init(arm.mixer), .init(arm.pretrained ? "yes" : "no"), "\(arm.seed)", .init(Figure.grouped(arm.parameters))]
            + metrics.map { name in .init(arm.metrics[name].map { $0.isFinite ? Figure.number($0) : "diverged" } ?? "") })
      }
      print("\n" + table.rendered())
    }
  }

  struct Diff: ParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "diff", abstract: "Compare the metrics of two runs, each mixer's mean over its seeds.",
      discussion: "Example: martlet runs diff 3 5")

    @Argument(help: "The first run's number.")
    var first: Int64

    @Argument(help: "The second run's number.")
    var second: Int64

    @Flag(help: "Print a JSON object.")
    var json = false

    func run() throws {
      let differences = try ExperimentStore().diff(first, second)
      if json {
        func value(_ spread: Spread?) -> JSONValue {
          guard let spread else { return .null }
          return [
            "mean": .number(spread.mean), "standardDeviation": spread.standardDeviation.map(JSONValue.number) ?? .null,
            "count": .integer(spread.count),
          ]
        }
        let rows = differences.map { row -> JSONValue in
          [
            "mixer": .string(row.mixer), "pretrained": .bool(row.pretrained), "metric": .string(row.metric), "first": value(row.first),
            "second": value(row.second), "difference": row.difference.map(JSONValue.number) ?? .null,
          ]
        }
        Output.json(["first": .integer(Int(first)), "second": .integer(Int(second)), "differences": .array(rows)])
        return
      }
      guard !differences.isEmpty else { return print("neither run has finished arms") }
      var table = TerminalTable([
        .init("mixer"), .init("pretrained"), .init("metric"), .init("run \(first)", .right), .init("run \(second)", .right),
        .init("difference", .right),
      ])
      for row in differences {
        table.add([
          .init(row.mixer), .init(row.pretrained ? "yes" : "no"), .init(row.metric),
          .init(row.first.map { Figure.metric(row.metric, $0) } ?? ""), .init(row.second.map { Figure.metric(row.metric, $0) } ?? ""),
          .init(row.difference.map { Figure.difference(row.metric, $0) } ?? ""),
        ])
      }
      print(table.rendered())
    }
  }

  struct Delete: ParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "delete", abstract: "Forget runs; their files stay where they are.", discussion: "Example: martlet runs delete 3 4")

    @Argument(help: "The runs' numbers.")
    var runs: [Int64]

    @Flag(help: "Print a JSON object.")
    var json = false

    func run() throws {
      let store = try ExperimentStore()
      var seen: Set<Int64> = []
      let chosen = runs.filter { seen.insert($0).inserted }
      // All or none: a wrong number is found before anything is forgotten.
      let folders = try chosen.map { try store.show($0).run.directory }
      for run in chosen { try store.delete(run) }
      if json {
        Output.json(["deleted": .array(chosen.map { .integer(Int($0)) })])
      } else {
        for (run, folder) in zip(chosen, folders) { print("run \(run) is forgotten; its files stay in \(Terminal.sanitised(folder))") }
      }
    }
  }

  /// The beginning of a day in UTC.
  static func date(_ text: String) throws -> Date {
    // Read strictly: a day that doesn't exist must not become another.
    guard let date = try? Date(text, strategy: day), date.formatted(day) == text else {
      throw ValidationError("“\(text)” is no day such as 2026-01-31")
    }
    return date
  }

  private static let day = Date.ISO8601FormatStyle().year().month().day()
}

private func shortDate(_ date: Date) -> String {
  date.formatted(.iso8601.year().month().day().dateTimeSeparator(.space).time(includingFractionalSeconds: false))
}

/// A stored run as JSON, without its arms.
private func object(of run: StoredRun) -> JSONObject {
  let machine = run.machine
  return [
    "id": .integer(Int(run.id)), "command": .string(run.command), "task": .string(run.task), "date": .string(run.date.formatted(.iso8601)),
    "directory": .string(run.directory),
    "machine": [
      "processor": .string(machine.processor), "cores": .integer(machine.cores), "memoryBytes": .integer(machine.memoryBytes),
      "system": .string(machine.system), "swift": .string(machine.swift), "libtorch": .string(machine.libtorch),
    ],
    "version": .string(run.version), "budget": .string(run.budget), "status": .string(run.status.rawValue),
    "configuration": (try? JSONValue.parse(run.configuration)) ?? .string(run.configuration),
  ]
}
