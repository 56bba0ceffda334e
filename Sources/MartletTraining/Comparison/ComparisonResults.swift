import Foundation

/// What a comparison measured: the contents of `results.json`.
///
/// Numbers that are not finite (a diverged run) are written as `null`, which JSON has, and read back as NaN, which it has not.
public struct ComparisonResults: Codable, Sendable {
  /// The task as the command line names it.
  public var task: String
  /// The task in a sentence, for a reader who doesn't know its name.
  public var taskSummary: String
  /// What every arm was allowed, in words: "2000 steps", "10 minutes".
  public var budget: String
  /// The command that makes these results again.
  public var command: String
  public var machine: MachineDescription
  /// The version of Martlet.
  public var version: String
  /// When the comparison began.
  public var date: Date
  /// Sequence lengths at which time and memory were measured.
  public var lengths: [Int]
  public var arms: [ComparisonArm]
  /// The key of `ComparisonArm.metrics` that decides: "accuracy", "loss", "bitsPerByte".
  public var primaryMetric: String
  public var primaryMetricHigherIsBetter: Bool

  public init(
    task: String, taskSummary: String, budget: String, command: String, machine: MachineDescription, version: String, date: Date = Date(),
    lengths: [Int], arms: [ComparisonArm] = [], primaryMetric: String, primaryMetricHigherIsBetter: Bool
  ) {
    self.task = task
    self.taskSummary = taskSummary
    self.budget = budget
    self.command = command
    self.machine = machine
    self.version = version
    self.date = date
    self.lengths = lengths
    self.arms = arms
    self.primaryMetric = primaryMetric
    self.primaryMetricHigherIsBetter = primaryMetricHigherIsBetter
  }
}

/// One model of the comparison: a mixer, trained once.
public struct ComparisonArm: Codable, Sendable {
  public var mixer: String
  /// Whether it was pretrained on the task's own inputs before the training on its labels.
  public var pretrained: Bool
  public var seed: Int
  /// Trainable numbers in the model.
  public var parameters: Int
  /// The model's width, which is what parity of parameters was reached with.
  public var width: Int
  /// By key, see `MetricName`. NaN where the run diverged.
  public var metrics: [String: Double]
  public var curve: [CurvePoint]
  public var scaling: [ScalingPoint]

  public init(
    mixer: String, pretrained: Bool, seed: Int, parameters: Int, width: Int, metrics: [String: Double] = [:], curve: [CurvePoint] = [],
    scaling: [ScalingPoint] = []
  ) {
    self.mixer = mixer
    self.pretrained = pretrained
    self.seed = seed
    self.parameters = parameters
    self.width = width
    self.metrics = metrics
    self.curve = curve
    self.scaling = scaling
  }
}

/// The keys of `ComparisonArm.metrics` that the table and the report know; others are kept and shown in the details.
public enum MetricName {
  public static let accuracy = "accuracy"
  public static let loss = "loss"
  public static let bitsPerByte = "bitsPerByte"
  public static let trainTokensPerSecond = "trainTokensPerSecond"
  public static let inferenceTokensPerSecond = "inferenceTokensPerSecond"
  public static let peakTensorBytes = "peakTensorBytes"
  public static let peakResidentBytes = "peakResidentBytes"
  public static let trainSeconds = "trainSeconds"
  public static let steps = "steps"
}

/// A point of a training curve.
public struct CurvePoint: Codable, Sendable {
  public var step: Int
  /// Training time since the first step, without evaluation.
  public var seconds: Double
  public var trainLoss: Double
  /// The primary metric on the validation split, where it was evaluated.
  public var validationMetric: Double?

  public init(step: Int, seconds: Double, trainLoss: Double, validationMetric: Double? = nil) {
    self.step = step
    self.seconds = seconds
    self.trainLoss = trainLoss
    self.validationMetric = validationMetric
  }
}

/// Time and memory of the model at one sequence length.
public struct ScalingPoint: Codable, Sendable {
  public var length: Int
  /// One forward pass over one sequence of the length; nil where it did not fit, and `note` says why.
  public var seconds: Double?
  /// Peak tensor memory of that pass.
  public var bytes: Int?
  /// One training step (forward, backward) on one sequence of the length.
  public var trainSeconds: Double?
  /// Why nothing was measured: "needs 38 GB, the limit is 8 GB".
  public var note: String?

  public init(length: Int, seconds: Double? = nil, bytes: Int? = nil, trainSeconds: Double? = nil, note: String? = nil) {
    self.length = length
    self.seconds = seconds
    self.bytes = bytes
    self.trainSeconds = trainSeconds
    self.note = note
  }
}

// MARK: - JSON

extension ComparisonArm {
  private enum CodingKeys: String, CodingKey { case mixer, pretrained, seed, parameters, width, metrics, curve, scaling }

  public init(from decoder: any Decoder) throws {
    let container = try decoder.container(keyedBy: CodingKeys.self)
    mixer = try container.decode(String.self, forKey: .mixer)
    pretrained = try container.decode(Bool.self, forKey: .pretrained)
    seed = try container.decode(Int.self, forKey: .seed)
    parameters = try container.decode(Int.self, forKey: .parameters)
    width = try container.decode(Int.self, forKey: .width)
    metrics = try container.decode([String: Double?].self, forKey: .metrics).mapValues { $0 ?? .nan }
    curve = try container.decode([CurvePoint].self, forKey: .curve)
    scaling = try container.decode([ScalingPoint].self, forKey: .scaling)
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: CodingKeys.self)
    try container.encode(mixer, forKey: .mixer)
    try container.encode(pretrained, forKey: .pretrained)
    try container.encode(seed, forKey: .seed)
    try container.encode(parameters, forKey: .parameters)
    try container.encode(width, forKey: .width)
    try container.encode(metrics.mapValues(finiteOrNil), forKey: .metrics)
    try container.encode(curve, forKey: .curve)
    try container.encode(scaling, forKey: .scaling)
  }
}

extension CurvePoint {
  private enum CodingKeys: String, CodingKey { case step, seconds, trainLoss, validationMetric }

  public init(from decoder: any Decoder) throws {
    let container = try decoder.container(keyedBy: CodingKeys.self)
    step = try container.decode(Int.self, forKey: .step)
    seconds = try container.decode(Double.self, forKey: .seconds)
    trainLoss = try container.decode(Double?.self, forKey: .trainLoss) ?? .nan
    // A missing key means "not evaluated here", null "evaluated, and not a number".
    validationMetric =
      container.contains(.validationMetric) ? try container.decode(Double?.self, forKey: .validationMetric) ?? .nan : nil
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: CodingKeys.self)
    try container.encode(step, forKey: .step)
    try container.encode(seconds, forKey: .seconds)
    try container.encode(finiteOrNil(trainLoss), forKey: .trainLoss)
    if let validationMetric { try container.encode(finiteOrNil(validationMetric), forKey: .validationMetric) }
  }
}

private func finiteOrNil(_ value: Double) -> Double? { value.isFinite ? value : nil }

extension ComparisonResults {
  /// The results as `results.json` holds them: sorted keys, so that two files can be compared line by line.
  public func json() throws -> Data {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    encoder.dateEncodingStrategy = .iso8601
    return try encoder.encode(self) + Data("\n".utf8)
  }

  /// Reads results from JSON. `file` names their origin in the `FileError` thrown where they are damaged.
  public init(json: Data, file: String) throws {
    let decoder = JSONDecoder()
    decoder.dateDecodingStrategy = .iso8601
    do {
      self = try decoder.decode(ComparisonResults.self, from: json)
    } catch let error as DecodingError {
      throw FileError(file, "is not a comparison's results: \(reason(error))")
    }
    if let problem = firstInconsistency { throw FileError(file, problem) }
  }

  /// Reads a `results.json`; throws `FileError` with the file and the reason where it is missing, damaged or something else.
  public static func read(_ path: String) throws -> ComparisonResults {
    var isDirectory: ObjCBool = false
    guard FileManager.default.fileExists(atPath: path, isDirectory: &isDirectory) else {
      throw FileError(path, "there is no such file; `martlet compare` writes it as results.json in its output folder")
    }
    let file = isDirectory.boolValue ? path + (path.hasSuffix("/") ? "" : "/") + "results.json" : path
    let data: Data
    do {
      data = try Data(contentsOf: URL(fileURLWithPath: file))
    } catch {
      throw FileError(file, "can't be read (\(error.localizedDescription))")
    }
    guard !data.isEmpty else { throw FileError(file, "is empty") }
    return try ComparisonResults(json: data, file: file)
  }

  /// Writes the results so that a crash leaves the old file or the new one, never half of it.
  public func write(to path: String) throws { try writeDurably(try json(), to: path) }

  /// What no comparison would have written, though it is well-formed JSON.
  private var firstInconsistency: String? {
    if let length = lengths.first(where: { $0 <= 0 }) { return "\"lengths\" holds \(length); a sequence length is positive" }
    var seen: Set<String> = []
    for (index, arm) in arms.enumerated() {
      let place = "arms[\(index)] (\(arm.mixer), seed \(arm.seed))"
      if arm.mixer.isEmpty { return "arms[\(index)] has an empty \"mixer\"" }
      if arm.parameters < 0 || arm.width < 0 { return "\(place) has negative \"parameters\" or \"width\"" }
      if !seen.insert("\(arm.pretrained) \(arm.seed) \(arm.mixer)").inserted {
        return "\(place) stands there twice with \"pretrained\" \(arm.pretrained)"
      }
      if let point = arm.scaling.first(where: { $0.length <= 0 || ($0.seconds ?? 0) < 0 || ($0.bytes ?? 0) < 0 }) {
        return "\(place) has a \"scaling\" entry with a length, time or memory below zero (length \(point.length))"
      }
    }
    return nil
  }
}

private func reason(_ error: DecodingError) -> String {
  func place(_ path: [any CodingKey]) -> String {
    let text = path.reduce(into: "") { text, key in
      if let index = key.intValue { text += "[\(index)]" } else { text += (text.isEmpty ? "" : ".") + key.stringValue }
    }
    return text.isEmpty ? "the top" : text
  }
  switch error {
  case .keyNotFound(let key, let context): return "\"\(key.stringValue)\" is missing at \(place(context.codingPath))"
  case .typeMismatch(let type, let context): return "expected \(type) at \(place(context.codingPath)) (\(context.debugDescription))"
  case .valueNotFound(let type, let context): return "expected \(type) at \(place(context.codingPath)), found null"
  case .dataCorrupted(let context):
    let cause = (context.underlyingError as NSError?)?.userInfo[NSDebugDescriptionErrorKey] as? String
    return cause.map { "it isn't valid JSON (\($0))" } ?? "at \(place(context.codingPath)): \(context.debugDescription)"
  @unknown default: return "\(error)"
  }
}
