import Foundation
import MartletCatalog
import MartletTraining
import Testing

@Suite struct RunsTests {
  /// A store with two finished comparisons, and a function that runs `martlet runs` on it.
  private func withStore(_ body: (_ ids: [Int64], _ runs: (String...) throws -> CommandRun) throws -> Void) throws {
    try withTemporaryFolder { folder in
      let path = folder + "/store.sqlite"
      let store = try ExperimentStore(path: path)
      let machine = MachineDescription(
        processor: "a processor", cores: 2, memoryBytes: 8_000_000_000, system: "a system", swift: "6.3", libtorch: "2.13.0")
      var ids: [Int64] = []
      for (task, accuracy) in [("recall", 0.5), ("listops", 0.75)] {
        let id = try store.begin(
          command: "compare", task: task, directory: "runs/\(task)", machine: machine, version: "0.1.0", budget: "60s",
          configuration: #"{"layers": 4}"#, date: Date(timeIntervalSince1970: 1_000_000 * Double(ids.count + 1)))
        try store.addArm(
          ComparisonArm(
            mixer: "gla", pretrained: false, seed: 0, parameters: 300_000, width: 64, metrics: ["accuracy": accuracy, "loss": .nan],
            curve: [], scaling: []), to: id)
        try store.finish(id)
        ids.append(id)
      }
      try body(ids) { try CommandRun(["runs"] + $0, environment: ["MARTLET_STORE": path]) }
    }
  }

  @Test func listShowsTheLatestFirstAndFilters() throws {
    try withStore { ids, runs in
      let all = try #require(runs("list", "--json").json.arrayValue)
      #expect(all.compactMap { $0["id"]?.intValue } == ids.reversed().map(Int.init))
      #expect(all[0]["configuration"]?["layers"] == 4)
      #expect(all[0]["machine"]?["cores"] == 2)
      #expect(try runs("list", "--task", "recall", "--json").json.arrayValue?.count == 1)
      #expect(try runs("list", "--mixer", "s4", "--json").json == [])
      #expect(try runs("list", "--status", "finished", "--limit", "1", "--json").json.arrayValue?.count == 1)
      // The runs began on 1970-01-12 and 1970-01-24.
      #expect(try runs("list", "--since", "1970-01-20", "--json").json.arrayValue?.count == 1)
      let table = try runs()
      #expect(table.status == 0)
      #expect(table.output.contains("1970-01-24 03:33:20") && table.output.contains("runs/recall"))
    }
  }

  @Test func showHasTheArms() throws {
    try withStore { ids, runs in
      let json = try runs("show", "\(ids[0])", "--json").json
      let arm = try #require(json["arms"]?.arrayValue?.first)
      #expect(arm["mixer"] == "gla" && arm["metrics"]?["accuracy"] == 0.5)
      #expect(arm["metrics"]?["loss"] == .null, "NaN has no place in JSON")
      let text = try runs("show", "\(ids[0])")
      #expect(text.output.contains("a processor") && text.output.contains("300,000") && text.output.contains("diverged"))
    }
  }

  @Test func diffSubtractsTheFirstFromTheSecond() throws {
    try withStore { ids, runs in
      let json = try runs("diff", "\(ids[0])", "\(ids[1])", "--json").json
      let accuracy = try #require(json["differences"]?.arrayValue?.first { $0["metric"] == "accuracy" })
      #expect(accuracy["difference"] == 0.25)
      #expect(try runs("diff", "\(ids[0])", "\(ids[1])").output.contains("+25.0 points"))
    }
  }

  @Test func deleteForgetsAllOrNone() throws {
    try withStore { ids, runs in
      try runs("delete", "\(ids[0])", "99").expectRefusal("no run 99")
      #expect(try runs("list", "--json").json.arrayValue?.count == 2)
      #expect(try runs("delete", "\(ids[0])", "\(ids[0])", "--json").json == ["deleted": [.integer(Int(ids[0]))]])
      #expect(try runs("list", "--json").json.arrayValue?.count == 1)
      try runs("show", "\(ids[0])").expectRefusal("no run \(ids[0])")
    }
  }

  @Test func badArgumentsAndStoresAreRefused() throws {
    try withStore { _, runs in
      try runs("show", "first").expectRefusal("first")
      try runs("list", "--since", "2026-02-30").expectRefusal("2026-02-30")
      try runs("list", "--status", "finishd").expectRefusal("\"finished\"")
      try runs("list", "--limit", "0").expectRefusal("--limit")
    }
    try withTemporaryFolder { folder in
      let path = folder + "/store.sqlite"
      try "this is no database, though it is long enough to look at".write(toFile: path, atomically: true, encoding: .utf8)
      try CommandRun(["runs", "list"], environment: ["MARTLET_STORE": path]).expectRefusal(path, "not an SQLite database")
    }
  }
}
