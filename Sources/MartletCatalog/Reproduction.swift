import Martlet

/// What came out of a scaled-down experiment: the figures, and whether the claim's inequality holds for them.
public struct Reproduction: Sendable, Codable {
  public enum Verdict: String, Sendable, Codable { case holds, fails }

  /// One of the things compared.
  public struct Arm: Sendable, Codable {
    public let name: String
    /// Figures by name (accuracy in [0, 1], times in seconds, sizes in bytes unless the name says otherwise).
    public let metrics: [String: Double]

    public init(name: String, metrics: [String: Double]) {
      self.name = name
      self.metrics = metrics
    }
  }

  public let id: String
  public let claim: String
  /// The inequality that was judged, with its figures' names.
  public let inequality: String
  public let verdict: Verdict
  /// Wall-clock time of the whole experiment.
  public let seconds: Double
  public let seeds: [Int]
  public let arms: [Arm]
  /// What a reader must know to judge the figures; why the verdict fails, when it does.
  public let note: String?

  /// `holds` is the value of the inequality, computed from the figures by the caller.
  public init(
    id: String, claim: String, inequality: String, holds: Bool, seconds: Double, seeds: [Int], arms: [Arm], note: String? = nil
  ) {
    self.id = id
    self.claim = claim
    self.inequality = inequality
    self.verdict = holds ? .holds : .fails
    self.seconds = seconds
    self.seeds = seeds
    self.arms = arms
    self.note = note
  }

  /// The object that `reproduce --json` prints. Metrics are sorted by name; `note` is left out when there is none.
  public var json: JSONValue {
    var object: JSONObject = [
      "id": .string(id), "claim": .string(claim), "inequality": .string(inequality), "verdict": .string(verdict.rawValue),
      "seconds": .number(seconds), "seeds": .array(seeds.map(JSONValue.integer)),
      "arms": .array(
        arms.map { arm in
          var metrics = JSONObject()
          for (name, value) in arm.metrics.sorted(by: { $0.key < $1.key }) { metrics[name] = .number(value) }
          return ["name": .string(arm.name), "metrics": .object(metrics)]
        }),
    ]
    if let note { object["note"] = .string(note) }
    return .object(object)
  }
}
