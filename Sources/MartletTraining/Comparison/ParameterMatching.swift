import Foundation

/// Finds the model of a family whose parameter count is nearest to a target: width in steps of 2 × heads (more where a mixer asks for it), then the
/// feed-forward's inner width to fill the rest.
public enum ParameterMatching {
  /// The largest deviation that is still called equal.
  public static let tolerance = 0.02

  /// - Parameters:
  ///   - configuration: everything but `width` and `hidden`, which are chosen here.
  ///   - target: parameters of backbone and head.
  ///   - objective: decides the head.
  /// - Returns: the configuration and its exact count.
  /// - Throws: `ConfigurationError` when no width comes within the tolerance.
  public static func match(
    _ configuration: BackboneConfiguration, objective: TaskObjective, target: Int
  ) throws -> (configuration: BackboneConfiguration, count: Int) {
    let unit = try configuration.mixers.map { try $0.kind.headMultiple }.reduce(2, max) * configuration.heads
    func sized(_ width: Int, hidden: Int?) -> BackboneConfiguration {
      var c = configuration
      c.width = width
      c.hidden = hidden
      c.length = min(c.length, 64)  // kernel lengths don't change the count, and small ones build quickly
      return c
    }
    func count(_ c: BackboneConfiguration) throws -> Int {
      try TaskModel(c, objective: objective, generator: RandomGenerator(seed: 0)).parameterCount
    }
    // The widest model below the target with the default inner width.
    var low = 1
    var high = 2
    while try count(sized(high * unit, hidden: nil)) <= target {
      low = high
      high *= 2
      guard high * unit <= 1 << 16 else { throw ConfigurationError("a model of \(target) parameters is too wide to build") }
    }
    while high - low > 1 {
      let middle = (low + high) / 2
      if try count(sized(middle * unit, hidden: nil)) <= target { low = middle } else { high = middle }
    }
    var best: (configuration: BackboneConfiguration, count: Int)?
    func consider(_ c: BackboneConfiguration) throws {
      let n = try count(c)
      if best == nil || abs(n - target) < abs(best!.count - target) { best = (c, n) }
    }
    for units in [low, high, low - 1] where units >= 1 {
      let width = units * unit
      try consider(sized(width, hidden: nil))
      guard configuration.feedForward != .none else { continue }
      // The count is linear in the inner width.
      let (a, b) = (width, 5 * width)
      let (na, nb) = (try count(sized(width, hidden: a)), try count(sized(width, hidden: b)))
      let slope = Double(nb - na) / Double(b - a)
      let hidden = Int((Double(a) + Double(target - na) / slope).rounded())
      // Keep the inner width between one and eight times the width: beyond, it would be another kind of model.
      if hidden >= width && hidden <= 8 * width { try consider(sized(width, hidden: hidden)) }
    }
    guard var found = best, abs(Double(found.count - target)) <= tolerance * Double(target) else {
      throw ConfigurationError(
        "no width of a \(MixerPattern(configuration.mixers).text) model with \(configuration.layers) layers and \(configuration.heads) heads comes within 2 % of \(target) parameters (nearest: \(best?.count ?? 0)); ask for more parameters or fewer layers"
      )
    }
    found.configuration.length = configuration.length
    return found
  }
}
