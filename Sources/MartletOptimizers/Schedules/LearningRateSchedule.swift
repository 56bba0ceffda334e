/// The learning rate over time, as a factor of the peak learning rate: a value that can be written in a recipe.
public protocol LearningRateSchedule: Codable, Sendable, Equatable {
  /// The name in recipes.
  static var name: String { get }

  /// The values that a recipe need not state; those of `required` are placeholders.
  static var defaults: Self { get }

  /// The options without a default.
  static var required: Set<String> { get }

  /// The factor of the update that follows `step` updates: `factor(at: 0)` is the first update's. Past the end of a schedule
  /// its last value holds.
  func factor(at step: Int) -> Double
}

extension LearningRateSchedule {
  public static var required: Set<String> { [] }
}

/// A schedule read from a recipe by name, e.g. `{"name": "cosine", "warmup": 100, "total": 1000}`; keys may also be written in
/// snake case.
///
/// Names: `constant`, `linear`, `cosine`, `inverse_square_root` (each with `warmup`), `one_cycle`, `wsd`, `rsqrt`.
public struct ScheduleConfiguration: Codable, Sendable {
  public var schedule: any LearningRateSchedule

  public init(_ schedule: any LearningRateSchedule) { self.schedule = schedule }

  static let kinds: [any LearningRateSchedule.Type] = [
    ConstantSchedule.self, LinearSchedule.self, CosineSchedule.self, InverseSquareRootSchedule.self, OneCycleSchedule.self,
    WarmupStableDecaySchedule.self, ReciprocalRootSchedule.self,
  ]

  public static var names: [String] { kinds.map { $0.name } }

  /// - Throws: `TensorError` for unknown names and keys and for missing ones, naming those that exist.
  public init(from decoder: any Decoder) throws {
    let options = try NamedOptions(from: decoder, what: "schedule")
    guard let kind = Self.kinds.first(where: { $0.name == options.name }) else {
      throw TensorError("unknown schedule “\(options.name)”; there are \(Self.names.joined(separator: ", "))")
    }
    func read<Schedule: LearningRateSchedule>(_ kind: Schedule.Type) throws -> any LearningRateSchedule {
      try options.overlaid(on: Schedule.defaults, required: Schedule.required)
    }
    schedule = try read(kind)
  }

  public func encode(to encoder: any Encoder) throws {
    func write<Schedule: LearningRateSchedule>(_ schedule: Schedule) throws {
      try NamedOptions(name: Schedule.name, schedule).encode(to: encoder)
    }
    try write(schedule)
  }
}

/// The linear rise of a warm-up: `start` before the first update, 1 after `warmup` of them.
func warmupFactor(_ step: Int, warmup: Int, start: Double) -> Double { start + (1 - start) * Double(step) / Double(warmup) }

/// How far `step` is between two steps, from 0 to 1.
func progress(_ step: Int, from start: Int, to end: Int) -> Double {
  end <= start ? (step < end ? 0 : 1) : min(1, max(0, Double(step - start) / Double(end - start)))
}
