import Foundation
import GRDB
import Synchronization
import Testing

@testable import MartletTraining

@Suite struct ExperimentStoreTests {
  private let machine = MachineDescription(processor: "Test", cores: 2, memoryBytes: 8, system: "OS", swift: "6", libtorch: "2.13")

  private func begin(_ store: ExperimentStore, task: String = "recall", date: Date = Date()) throws -> Int64 {
    try store.begin(
      command: "compare", task: task, directory: "runs/1", machine: machine, version: "0.1.0", budget: "10 steps",
      configuration: #"{"mixers":["gla"]}"#, date: date)
  }

  private func arm(_ mixer: String, seed: Int = 0, _ metrics: [String: Double]) -> ComparisonArm {
    ComparisonArm(mixer: mixer, pretrained: false, seed: seed, parameters: 10, width: 4, metrics: metrics)
  }

  @Test func aRunComesBackAsItWasStored() throws {
    try withTemporaryFolder { folder in
      let path = folder + "/new/experiments.sqlite"
      let id = try {
        let store = try ExperimentStore(path: path)
        let id = try begin(store, date: Date(timeIntervalSince1970: 1000))
        #expect(try store.show(id).run.status == .running)
        try store.addArm(arm("gla", ["accuracy": 0.5, "loss": .nan]), to: id)
        try store.addArm(arm("gla", ["accuracy": 0.75, "loss": .nan]), to: id)
        try store.finish(id)
        return id
      }()
      let (run, arms) = try ExperimentStore(path: path).show(id)
      #expect(run.task == "recall" && run.command == "compare" && run.directory == "runs/1" && run.budget == "10 steps")
      #expect(run.status == .finished && run.machine == machine && run.configuration == #"{"mixers":["gla"]}"#)
      #expect(run.date == Date(timeIntervalSince1970: 1000))
      #expect(arms.count == 1, "the same arm again replaces the first")
      #expect(arms[0].metrics["accuracy"] == 0.75)
      #expect(try #require(arms[0].metrics["loss"]).isNaN)
    }
  }

  @Test func listsAreFilteredAndLatestFirst() throws {
    try withTemporaryFolder { folder in
      let store = try ExperimentStore(path: folder + "/e.sqlite")
      let ids = try (0..<4).map { try begin(store, task: $0 % 2 == 0 ? "even" : "odd", date: Date(timeIntervalSince1970: Double($0))) }
      try store.addArm(arm("s4", [:]), to: ids[1])
      try store.finish(ids[3], status: .interrupted)
      #expect(try store.list().map(\.id) == ids.reversed())
      #expect(try store.list(.init(task: "even")).map(\.id) == [ids[2], ids[0]])
      #expect(try store.list(.init(mixer: "s4")).map(\.id) == [ids[1]])
      #expect(try store.list(.init(status: .interrupted)).map(\.id) == [ids[3]])
      #expect(try store.list(.init(since: Date(timeIntervalSince1970: 2), limit: 1)).map(\.id) == [ids[3]])
      #expect(try store.list(.init(task: "' OR 1=1 --")).isEmpty)
      try store.delete(ids[1])
      #expect(try store.list().count == 3)
      #expect(throws: FileError.self) { try store.show(ids[1]) }
      #expect(throws: FileError.self) { try store.addArm(arm("s4", [:]), to: ids[1]) }
      #expect(throws: FileError.self) { try store.delete(ids[1]) }
    }
  }

  @Test func aDiffPutsMeansSideBySide() throws {
    try withTemporaryFolder { folder in
      let store = try ExperimentStore(path: folder + "/e.sqlite")
      let (a, b) = (try begin(store), try begin(store))
      for (seed, value) in [0.5, 0.7].enumerated() { try store.addArm(arm("gla", seed: seed, ["accuracy": value]), to: a) }
      try store.addArm(arm("gla", ["accuracy": 0.8, "loss": 1]), to: b)
      try store.addArm(arm("s4", ["accuracy": .nan]), to: b)
      let rows = try store.diff(a, b)
      #expect(rows.map { "\($0.mixer) \($0.metric)" } == ["gla accuracy", "gla loss", "s4 accuracy"])
      #expect(abs(try #require(rows[0].difference) - 0.2) < 1e-12)
      #expect(rows[0].first?.count == 2)
      #expect(rows[1].first == nil && rows[1].difference == nil)
      #expect(rows[2].second?.count == 0 && rows[2].difference == nil)
    }
  }

  @Test func twoConnectionsWriteAtOnce() throws {
    try withTemporaryFolder { folder in
      let path = folder + "/e.sqlite"
      let failures = Mutex<[String]>([])
      // Each opens the file itself, also the first time, so that making the tables is raced for too.
      DispatchQueue.concurrentPerform(iterations: 4) { writer in
        do {
          let store = try ExperimentStore(path: path)
          for index in 0..<10 {
            let id = try begin(store, task: "writer \(writer)")
            try store.addArm(arm("gla", seed: index, ["accuracy": Double(index)]), to: id)
            try store.finish(id)
          }
        } catch {
          failures.withLock { $0.append("\(error)") }
        }
      }
      #expect(failures.withLock { $0 } == [])
      let store = try ExperimentStore(path: path)
      let runs = try store.list()
      #expect(runs.count == 40)
      #expect(Set(runs.map(\.id)).count == 40)
      for run in runs { #expect(try store.show(run.id).arms.count == 1) }
    }
  }

  @Test func aRunWhoseProcessIsGoneCountsAsInterrupted() throws {
    try withTemporaryFolder { folder in
      let path = folder + "/e.sqlite"
      let ended = Process()
      ended.executableURL = URL(fileURLWithPath: "/bin/sh")
      ended.arguments = ["-c", "exit 0"]
      try ended.run()
      ended.waitUntilExit()
      let store = try ExperimentStore(path: path)
      let id = try begin(store)
      try store.replaceProcess(of: id, with: Int64(ended.processIdentifier))
      #expect(try store.show(id).run.status == .interrupted)
      #expect(try store.list(.init(status: .running)).isEmpty)
    }
  }

  @Test func aDamagedOrForeignFileIsNamed() throws {
    try withTemporaryFolder { folder in
      let foreign = folder + "/notes.sqlite"
      try Data(
        "These are notes and not a database; they are long enough to hold a header of one hundred bytes, which SQLite reads first.".utf8
      )
      .write(to: URL(fileURLWithPath: foreign))
      let error = #expect(throws: FileError.self) { try ExperimentStore(path: foreign) }
      #expect(error?.file == foreign)
      #expect(error?.reason.contains("not an SQLite database") == true, "\(String(describing: error))")
      #expect(throws: FileError.self) { try ExperimentStore(path: foreign + "/below/e.sqlite") }
    }
  }

  @Test func aLockedFileIsNamedAndWritingGoesOnAfterwards() throws {
    try withTemporaryFolder { folder in
      let path = folder + "/e.sqlite"
      let store = try ExperimentStore(path: path, patience: 0.05)
      var configuration = Configuration()
      configuration.allowsUnsafeTransactions = true
      let other = try DatabaseQueue(path: path, configuration: configuration)
      try other.writeWithoutTransaction { try $0.execute(sql: "BEGIN IMMEDIATE") }
      let error = #expect(throws: FileError.self) { try begin(store) }
      #expect(error?.file == path && error?.reason.contains("locked") == true, "\(String(describing: error))")
      #expect(try store.list().isEmpty, "a reader need not wait for a writer")
      try other.writeWithoutTransaction { try $0.execute(sql: "COMMIT") }
      #expect(try begin(store) > 0)
    }
  }

  @Test func aGarbledFileIsNamed() throws {
    try withTemporaryFolder { folder in
      let path = folder + "/e.sqlite"
      try {
        let store = try ExperimentStore(path: path)
        for _ in 0..<50 { _ = try begin(store) }
        try store.compact()
      }()
      var bytes = try Data(contentsOf: URL(fileURLWithPath: path))
      #expect(bytes.count > 8192)
      for index in 4096..<bytes.count { bytes[index] = 0x5A }
      for file in try FileManager.default.contentsOfDirectory(atPath: folder) {
        try FileManager.default.removeItem(atPath: folder + "/" + file)
      }
      try bytes.write(to: URL(fileURLWithPath: path))
      let error = #expect(throws: FileError.self) { try ExperimentStore(path: path).list() }
      #expect(error?.file == path && error?.reason.contains("damaged") == true, "\(String(describing: error))")
    }
  }

  @Test func thisMachineHasAName() {
    let machine = MachineDescription.current(libtorch: "2.13.0")
    #expect(machine.cores >= 1 && machine.memoryBytes > 100_000_000 && !machine.processor.isEmpty)
    #expect(machine.summary.contains("libtorch 2.13.0") && machine.summary.contains("Swift 6"))
  }
}
