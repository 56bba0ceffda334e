import Foundation
import GRDB

/// All runs made on this machine, in one SQLite file: what was run, how, where its files lie and what came out.
///
/// Several processes may read and write the file at once (SQLite's write-ahead log; a writer waits up to ten seconds for another).
/// Every method throws `FileError` with the database's path and the reason where the file is damaged, locked or can't be reached.
public final class ExperimentStore: Sendable {
  public let path: String
  private let pool: DatabasePool

  /// `$MARTLET_STORE`, else `~/.local/share/martlet/experiments.sqlite`.
  public static var defaultPath: String {
    let environment = ProcessInfo.processInfo.environment
    if let path = environment["MARTLET_STORE"], !path.isEmpty { return path }
    return FileManager.default.homeDirectoryForCurrentUser.path + "/.local/share/martlet/experiments.sqlite"
  }

  /// Opens the file, and creates it with its folder where there is none. An operation waits up to `patience` seconds for other
  /// writers.
  public init(path: String = ExperimentStore.defaultPath, patience: Double = 10) throws {
    self.path = path
    do {
      try FileManager.default.createDirectory(
        at: URL(fileURLWithPath: path).deletingLastPathComponent(), withIntermediateDirectories: true)
    } catch {
      throw FileError(path, "the experiment store's folder can't be made (\(error.localizedDescription))")
    }
    var configuration = Configuration()
    configuration.busyMode = .timeout(patience)
    configuration.foreignKeysEnabled = true
    do {
      pool = try Self.opened(path, configuration)
    } catch {
      throw Self.explained(error, path)
    }
  }

  /// Two processes that open a new file at once can collide while they switch to the log or make the tables; the one that
  /// loses finds them made when it looks again.
  private static func opened(_ path: String, _ configuration: Configuration) throws -> DatabasePool {
    var attempt = 0
    while true {
      do {
        let pool = try DatabasePool(path: path, configuration: configuration)
        try migrator.migrate(pool)
        // A file of a newer Martlet may hold what this one would not understand.
        if try pool.read({ try migrator.hasBeenSuperseded($0) }) {
          throw FileError(path, "was written by a newer version of Martlet; update this one, or name another file in MARTLET_STORE")
        }
        return pool
      } catch let error as DatabaseError where attempt < 5 && [.SQLITE_BUSY, .SQLITE_ERROR, .SQLITE_CONSTRAINT].contains(error.resultCode) {
        attempt += 1
        usleep(20_000 << UInt32(attempt))
      }
    }
  }

  private static let migrator: DatabaseMigrator = {
    var migrator = DatabaseMigrator()
    migrator.registerMigration("runs and arms") { database in
      try database.create(table: "run") { table in
        table.autoIncrementedPrimaryKey("id")
        table.column("command", .text).notNull()
        table.column("task", .text).notNull().indexed()
        table.column("date", .double).notNull().indexed()
        table.column("directory", .text).notNull()
        table.column("machine", .text).notNull()
        table.column("version", .text).notNull()
        table.column("budget", .text).notNull()
        table.column("status", .text).notNull()
        table.column("configuration", .text).notNull()
        table.column("process", .integer).notNull()
        table.column("host", .text).notNull()
      }
      try database.create(table: "arm") { table in
        table.autoIncrementedPrimaryKey("id")
        table.belongsTo("run", onDelete: .cascade).notNull()
        table.column("mixer", .text).notNull()
        table.column("pretrained", .boolean).notNull()
        table.column("seed", .integer).notNull()
        table.column("parameters", .integer).notNull()
        table.column("metrics", .text).notNull()
        table.uniqueKey(["runId", "mixer", "pretrained", "seed"])
      }
    }
    return migrator
  }()

  // MARK: - Writing

  /// Records the start of a run and returns its number. `configuration` is JSON, kept as it is.
  public func begin(
    command: String, task: String, directory: String, machine: MachineDescription, version: String, budget: String,
    configuration: String = "{}", date: Date = Date()
  ) throws -> Int64 {
    let machineText = String(decoding: try JSONEncoder().encode(machine), as: UTF8.self)
    return try write { database in
      try database.execute(
        sql: """
          INSERT INTO run (command, task, date, directory, machine, version, budget, status, configuration, process, host)
          VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
          """,
        arguments: [
          command, task, date.timeIntervalSince1970, directory, machineText, version, budget, StoredRun.Status.running.rawValue,
          configuration,
          Int64(getpid()), ProcessInfo.processInfo.hostName,
        ])
      return database.lastInsertedRowID
    }
  }

  /// Adds an arm's metrics to a run; an arm that is there already (same mixer, pretraining and seed) is replaced, as after a resume.
  public func addArm(_ arm: ComparisonArm, to run: Int64) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = .sortedKeys
    let finite = arm.metrics.mapValues { $0.isFinite ? $0 : nil }
    let metrics = String(decoding: try encoder.encode(finite), as: UTF8.self)
    try write { database in
      try Self.require(run, in: database, path)
      try database.execute(
        sql: """
          INSERT INTO arm (runId, mixer, pretrained, seed, parameters, metrics) VALUES (?, ?, ?, ?, ?, ?)
          ON CONFLICT (runId, mixer, pretrained, seed) DO UPDATE SET parameters = excluded.parameters, metrics = excluded.metrics
          """,
        arguments: [run, arm.mixer, arm.pretrained, arm.seed, arm.parameters, metrics])
    }
  }

  /// Marks the end of a run, whole or interrupted.
  public func finish(_ run: Int64, status: StoredRun.Status = .finished) throws {
    try write { database in
      try Self.require(run, in: database, path)
      try database.execute(sql: "UPDATE run SET status = ? WHERE id = ?", arguments: [status.rawValue, run])
    }
  }

  /// Makes a run another process's, for tests of runs whose process has died.
  func replaceProcess(of run: Int64, with process: Int64) throws {
    try write { try $0.execute(sql: "UPDATE run SET process = ? WHERE id = ?", arguments: [process, run]) }
  }

  /// Forgets a run and its arms. Its files stay where they are.
  public func delete(_ run: Int64) throws {
    try write { database in
      try Self.require(run, in: database, path)
      try database.execute(sql: "DELETE FROM run WHERE id = ?", arguments: [run])
    }
  }

  /// Moves the write-ahead log into the file, so that the file alone can be copied.
  public func compact() throws {
    do { try pool.writeWithoutTransaction { _ = try $0.checkpoint(.truncate) } } catch { throw Self.explained(error, path) }
  }

  // MARK: - Reading

  /// Which runs to list; nil admits all.
  public struct Filter: Sendable {
    public var command: String?
    public var task: String?
    /// Runs with at least one arm of this mixer.
    public var mixer: String?
    public var status: StoredRun.Status?
    public var since: Date?
    public var limit: Int?

    public init(
      command: String? = nil, task: String? = nil, mixer: String? = nil, status: StoredRun.Status? = nil, since: Date? = nil,
      limit: Int? = nil
    ) {
      self.command = command
      self.task = task
      self.mixer = mixer
      self.status = status
      self.since = since
      self.limit = limit
    }
  }

  /// Runs, the latest first.
  public func list(_ filter: Filter = Filter()) throws -> [StoredRun] {
    try read { database in
      var conditions: [String] = []
      var arguments: StatementArguments = []
      if let command = filter.command {
        conditions.append("command = ?")
        arguments += [command]
      }
      if let task = filter.task {
        conditions.append("task = ?")
        arguments += [task]
      }
      if let mixer = filter.mixer {
        conditions.append("EXISTS (SELECT 1 FROM arm WHERE arm.runId = run.id AND arm.mixer = ?)")
        arguments += [mixer]
      }
      if let since = filter.since {
        conditions.append("date >= ?")
        arguments += [since.timeIntervalSince1970]
      }
      let condition = conditions.isEmpty ? "" : "WHERE " + conditions.joined(separator: " AND ")
      let rows = try Row.fetchAll(database, sql: "SELECT * FROM run \(condition) ORDER BY date DESC, id DESC", arguments: arguments)
      // Whether a run was interrupted is not in the file alone, so that status and limit are applied here.
      var runs = try rows.map { try self.run($0) }
      if let status = filter.status { runs.removeAll { $0.status != status } }
      return filter.limit.map { Array(runs.prefix($0)) } ?? runs
    }
  }

  /// One run with its arms.
  public func show(_ id: Int64) throws -> (run: StoredRun, arms: [StoredArm]) {
    try read { database in
      guard let row = try Row.fetchOne(database, sql: "SELECT * FROM run WHERE id = ?", arguments: [id]) else {
        throw Self.missing(id, path)
      }
      let arms = try Row.fetchAll(database, sql: "SELECT * FROM arm WHERE runId = ? ORDER BY id", arguments: [id]).map { row in
        let text: String = row["metrics"]
        guard let metrics = try? JSONDecoder().decode([String: Double?].self, from: Data(text.utf8)) else {
          throw FileError(path, "the metrics of run \(id), arm \(row["id"] as Int64) are damaged")
        }
        return StoredArm(
          mixer: row["mixer"], pretrained: row["pretrained"], seed: row["seed"], parameters: row["parameters"],
          metrics: metrics.mapValues { $0 ?? .nan })
      }
      return (try self.run(row), arms)
    }
  }

  /// The metrics of two runs side by side: each mixer's mean over seeds, for the metrics that at least one of the runs has.
  public func diff(_ first: Int64, _ second: Int64) throws -> [RunDifference] {
    let arms = (try show(first).arms, try show(second).arms)
    var places: [(mixer: String, pretrained: Bool)] = []
    for arm in arms.0 + arms.1 where !places.contains(where: { $0 == (arm.mixer, arm.pretrained) }) {
      places.append((arm.mixer, arm.pretrained))
    }
    return places.flatMap { mixer, pretrained in
      let groups = [arms.0, arms.1].map { $0.filter { $0.mixer == mixer && $0.pretrained == pretrained } }
      let metrics = Set(groups.joined().flatMap(\.metrics.keys)).sorted()
      return metrics.map { metric in
        let spreads = groups.map { group in
          group.contains { $0.metrics[metric] != nil } ? Spread(group.map { $0.metrics[metric] ?? .nan }) : nil
        }
        return RunDifference(mixer: mixer, pretrained: pretrained, metric: metric, first: spreads[0], second: spreads[1])
      }
    }
  }

  // MARK: - Inside

  private func run(_ row: Row) throws -> StoredRun {
    let id: Int64 = row["id"]
    let machineText: String = row["machine"]
    guard let machine = try? JSONDecoder().decode(MachineDescription.self, from: Data(machineText.utf8)),
      var status = StoredRun.Status(rawValue: row["status"])
    else { throw FileError(path, "the entry of run \(id) is damaged") }
    // A run whose process was killed could not say so. On another host its process can't be looked up, and "running" stays.
    let process: Int64 = row["process"]
    if status == .running && row["host"] == ProcessInfo.processInfo.hostName && process > 0 && kill(pid_t(process), 0) != 0
      && errno == ESRCH
    {
      status = .interrupted
    }
    return StoredRun(
      id: id, command: row["command"], task: row["task"], date: Date(timeIntervalSince1970: row["date"]), directory: row["directory"],
      machine: machine, version: row["version"], budget: row["budget"], status: status, configuration: row["configuration"])
  }

  private static func require(_ run: Int64, in database: Database, _ path: String) throws {
    guard try Bool.fetchOne(database, sql: "SELECT EXISTS (SELECT 1 FROM run WHERE id = ?)", arguments: [run]) == true else {
      throw missing(run, path)
    }
  }

  private static func missing(_ run: Int64, _ path: String) -> FileError {
    FileError(path, "there is no run \(run) in this experiment store")
  }

  private func read<Result>(_ body: (Database) throws -> Result) throws -> Result {
    do { return try pool.read(body) } catch { throw Self.explained(error, path) }
  }

  private func write<Result>(_ body: (Database) throws -> Result) throws -> Result {
    do { return try pool.write(body) } catch { throw Self.explained(error, path) }
  }

  private static func explained(_ error: any Error, _ path: String) -> any Error {
    guard let error = error as? DatabaseError else { return error }
    let reason =
      switch error.resultCode {
      case .SQLITE_NOTADB: "is not an experiment store (not an SQLite database); move it away, or name another file in MARTLET_STORE"
      case .SQLITE_CORRUPT: "is damaged (\(error.message ?? "SQLite says corrupt")); move it away, or restore it from a copy"
      case .SQLITE_BUSY, .SQLITE_LOCKED: "is locked by another process that does not let go; try again when that one is done"
      case .SQLITE_CANTOPEN: "can't be opened; check that the folder exists and may be written to"
      case .SQLITE_READONLY: "may not be written to"
      case .SQLITE_FULL: "can't grow: the disk is full"
      default: "the experiment store refused an operation: \(error.message ?? "\(error.resultCode)")"
      }
    return FileError(path, reason)
  }
}

/// A run as the store holds it.
public struct StoredRun: Codable, Sendable, Equatable {
  public enum Status: String, Codable, Sendable, CaseIterable { case running, finished, interrupted }

  public let id: Int64
  /// The kind of command: "compare", "train".
  public let command: String
  public let task: String
  public let date: Date
  /// Where the run's files lie.
  public let directory: String
  public let machine: MachineDescription
  public let version: String
  public let budget: String
  public let status: Status
  /// The whole configuration as JSON.
  public let configuration: String
}

/// An arm of a stored run.
public struct StoredArm: Sendable {
  public let mixer: String
  public let pretrained: Bool
  public let seed: Int
  public let parameters: Int
  /// NaN where the arm diverged.
  public let metrics: [String: Double]
}

/// One metric of one mixer in two runs.
public struct RunDifference: Sendable {
  public let mixer: String
  public let pretrained: Bool
  public let metric: String
  /// Over the seeds of the first run; nil where it has no such arm or metric.
  public let first: Spread?
  public let second: Spread?
  /// Second minus first; nil where one is missing or diverged.
  public var difference: Double? {
    guard let first, let second, first.count > 0, second.count > 0 else { return nil }
    return second.mean - first.mean
  }
}
