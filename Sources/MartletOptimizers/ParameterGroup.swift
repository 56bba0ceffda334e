/// Named parameters that are updated with the same options.
///
/// A group can be added to an optimizer at any time (`add`), for instance for the adapters of a new task.
public struct ParameterGroup {
  /// Names the group in messages and in the optimizer's state; unique in an optimizer.
  public var name: String

  /// The parameters with their checkpoint names, which are also the keys of their state.
  public let parameters: [(name: String, tensor: Tensor)]

  /// Multiplies the optimizer's learning rate.
  public var learningRateFactor: Double

  /// Takes the place of the optimizer's learning rate (times `learningRateFactor`) where given; schedules still apply.
  public var learningRate: Double?

  /// The weight decay where it differs from the optimizer's own.
  public var weightDecay: Double?

  /// A schedule of the group's own, counted from the group's first step, in place of the optimizer's `scheduleFactor`.
  public var schedule: (any LearningRateSchedule)?

  /// Values that differ from the optimizer's own options, by the option's name, e.g. `["beta2": 0.95]`.
  public var options: [String: Double]

  public init(
    _ name: String, _ parameters: [(name: String, tensor: Tensor)], learningRateFactor: Double = 1, learningRate: Double? = nil,
    weightDecay: Double? = nil, schedule: (any LearningRateSchedule)? = nil, options: [String: Double] = [:]
  ) {
    self.name = name
    self.parameters = parameters
    self.learningRateFactor = learningRateFactor
    self.learningRate = learningRate
    self.weightDecay = weightDecay
    self.schedule = schedule
    self.options = options
  }
}

extension ParameterGroup {
  /// Options of the parameters whose name is `suffix` or ends in `.suffix`, e.g. `log_dt` for every layer's step size.
  public struct Override: Codable, Sendable {
    public var suffix: String
    public var learningRateFactor: Double
    public var learningRate: Double?
    public var weightDecay: Double?

    public init(_ suffix: String, learningRateFactor: Double = 1, learningRate: Double? = nil, weightDecay: Double? = nil) {
      self.suffix = suffix
      self.learningRateFactor = learningRateFactor
      self.learningRate = learningRate
      self.weightDecay = weightDecay
    }

    func matches(_ name: String) -> Bool { name == suffix || name.hasSuffix("." + suffix) }
  }

  /// Sorts parameters into a group that decays, one that does not, and one for each override that matches.
  ///
  /// - Parameters:
  ///   - decay: the weight decay of the first group.
  ///   - undecayed: names without decay, besides those that `noDecay` accepts.
  ///   - noDecay: biases, norms' scales and everything else of rank below 2, unless another rule is given.
  ///   - overrides: the first that matches a name decides; its decay is that of the group the tensor would be in, unless the
  ///     override states one.
  /// - Returns: groups named `decay`, `no_decay`, and by suffix (`log_dt`, and `log_dt.decay` for tensors that decay);
  ///   none of them is empty.
  public static func split(
    _ parameters: [(name: String, tensor: Tensor)], decay: Double, undecayed: Set<String> = [],
    noDecay: (_ name: String, _ tensor: Tensor) -> Bool = { $1.rank < 2 }, overrides: [Override] = []
  ) -> [ParameterGroup] {
    var decayed: [(name: String, tensor: Tensor)] = []
    var plain: [(name: String, tensor: Tensor)] = []
    var special = overrides.map { _ in (decayed: [(name: String, tensor: Tensor)](), plain: [(name: String, tensor: Tensor)]()) }
    for (name, tensor) in parameters {
      let decays = !undecayed.contains(name) && !noDecay(name, tensor)
      if let i = overrides.firstIndex(where: { $0.matches(name) }) {
        if decays && overrides[i].weightDecay == nil {
          special[i].decayed.append((name, tensor))
        } else {
          special[i].plain.append((name, tensor))
        }
      } else if decays {
        decayed.append((name, tensor))
      } else {
        plain.append((name, tensor))
      }
    }
    var groups = [
      ParameterGroup("decay", decayed, weightDecay: decay), ParameterGroup("no_decay", plain, weightDecay: 0),
    ]
    for (override, members) in zip(overrides, special) {
      groups.append(
        ParameterGroup(
          override.suffix, members.plain, learningRateFactor: override.learningRateFactor, learningRate: override.learningRate,
          weightDecay: override.weightDecay ?? 0))
      groups.append(
        ParameterGroup(
          override.suffix + ".decay", members.decayed, learningRateFactor: override.learningRateFactor,
          learningRate: override.learningRate, weightDecay: decay))
    }
    return groups.filter { !$0.parameters.isEmpty }
  }
}
