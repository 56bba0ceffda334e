@_exported import Martlet

/// Updates parameters in place from their gradients; knows the bytes of its state.
///
/// ```swift
/// let optimizer = AdamW(ParameterGroup.split(model.trainableParameters(), decay: 0.1), learningRate: 3e-4)
/// for step in 0..<steps {
///   optimizer.scheduleFactor = schedule.factor(at: step)
///   loss(batch).backward()
///   clipGradients(optimizer.gradients, norm: 1)
///   optimizer.step()
///   optimizer.zeroGradients()
/// }
/// ```
///
/// Parameters that are frozen (`requiresGradient` is false) or have no gradient are left alone, with their state. Gradients
/// that are not finite are applied as they are: whether to skip such a step is the caller's decision.
public protocol Optimizer: AnyObject {
  var groups: [ParameterGroup] { get }

  /// The learning rate of groups that state none of their own, before the schedule.
  var learningRate: Double { get set }

  /// What the schedule gives for the next step; multiplies every group's learning rate.
  var scheduleFactor: Double { get set }

  /// Multiplies the gradients in the next step only, without a pass over them where the update is fused: clipping by the
  /// norm, or undoing a loss scale.
  var gradientScale: Double { get set }

  /// Adds parameters while training; their state starts afresh.
  func add(_ group: ParameterGroup)

  func step()

  /// Drops the gradients of all parameters.
  func zeroGradients()

  /// Bytes of the state tensors held now. State is made in a parameter's first step.
  var stateBytes: Int { get }

  /// The state by parameter name and kind (`<name>.exp_avg`, …), and `<name>.step`, the updates the parameter has had, as
  /// an int64 scalar. The tensors are the live ones, not copies: write them out before the next step.
  func stateDictionary() -> [String: Tensor]

  /// Takes over a state written by `stateDictionary()`; training continues bit for bit.
  ///
  /// - Throws: `TensorError` naming the entry, for parameters missing or unknown and for other shapes or dtypes. The state
  ///   is then unchanged.
  func load(_ state: [String: Tensor]) throws
}

extension Optimizer {
  /// The gradients of the next step.
  public var gradients: [Tensor] {
    groups.flatMap { $0.parameters.compactMap { $0.tensor.requiresGradient ? $0.tensor.gradient : nil } }
  }
}

/// What all optimizers here share: groups, state by parameter, steps counted by parameter. A subclass gives the state's form
/// (`makeState`) and the rule (`update`).
open class GroupedOptimizer: Optimizer {
  public private(set) var groups: [ParameterGroup] = []
  public var learningRate: Double
  public var scheduleFactor = 1.0
  public var gradientScale = 1.0

  /// One parameter with what the optimizer remembers of it.
  final class Slot {
    let name: String
    let parameter: Tensor
    var steps = 0
    var state: [String: Tensor] = [:]

    init(_ name: String, _ parameter: Tensor) {
      self.name = name
      self.parameter = parameter
    }
  }

  private var slots: [[Slot]] = []
  private var groupSteps: [Int] = []
  private var names: Set<String> = []

  public init(_ groups: [ParameterGroup], learningRate: Double) {
    self.learningRate = learningRate
    for group in groups { add(group) }
  }

  // MARK: What a subclass defines

  /// Parameters of one group, dtype and device that have had the same number of updates, at most about
  /// `bundleElements` elements, so that what a rule computes on the way stays small.
  public struct Bundle {
    public let names: [String]
    public let parameters: [Tensor]
    public let gradients: [Tensor]
    fileprivate let states: [[String: Tensor]]

    /// The number of this update, from 1.
    public let step: Int

    /// The learning rate with the schedule.
    public let learningRate: Double

    /// Multiplies the gradients; 1 unless the rule `scalesGradients` itself.
    public let gradientScale: Double

    public let group: ParameterGroup

    /// The state tensors of one kind, in the parameters' order.
    public func state(_ kind: String) -> [Tensor] { states.map { $0[kind]! } }

    /// All state tensors of the parameter at a position, by kind.
    public func state(of index: Int) -> [String: Tensor] { states[index] }

    /// The group's value of an option, or else the optimizer's.
    public func option(_ name: String, _ value: Double) -> Double { group.options[name] ?? value }
  }

  /// The kinds of option that a group may set.
  open var optionNames: Set<String> { [] }

  /// True when `update` applies the bundle's `gradientScale`.
  open var scalesGradients: Bool { false }

  /// The state of a parameter before its first step, by kind.
  open func makeState(for parameter: Tensor, in group: ParameterGroup) -> [String: Tensor] { [:] }

  /// Updates the bundle's parameters and state in place. Called without recording.
  open func update(_ bundle: Bundle) { fatalError("\(type(of: self)) must override update(_:)") }

  // MARK: Steps

  public static var bundleElements: Int { 1 << 22 }

  public func add(_ group: ParameterGroup) {
    require(!groups.contains { $0.name == group.name }, "the optimizer already has a parameter group named “\(group.name)”")
    for (name, _) in group.parameters {
      require(names.insert(name).inserted, "parameter “\(name)” is given twice (the second time in group “\(group.name)”)")
    }
    for name in group.options.keys.sorted() {
      require(
        optionNames.contains(name),
        "group “\(group.name)”: \(type(of: self)) has no option “\(name)”; it has \(optionNames.sorted().joined(separator: ", "))")
    }
    groups.append(group)
    slots.append(group.parameters.map { Slot($0.name, $0.tensor) })
    groupSteps.append(0)
  }

  public func step() { step { _ in true } }

  /// Updates only the parameters whose names the predicate accepts, for updates inside the backward pass.
  public func step(where accepts: (String) -> Bool) {
    withoutGradient {
      for index in groups.indices {
        var ready: [(slot: Slot, gradient: Tensor)] = []
        for slot in slots[index] where slot.parameter.requiresGradient && accepts(slot.name) {
          if let gradient = slot.parameter.gradient { ready.append((slot, gradient)) }
        }
        if ready.isEmpty { continue }
        let rate = learningRate(ofGroup: index)
        groupSteps[index] += 1
        for (slot, _) in ready {
          if slot.state.isEmpty { slot.state = makeState(for: slot.parameter, in: groups[index]) }
          slot.steps += 1
        }
        for bundle in bundles(ready) { update(bundle: bundle, of: groups[index], rate: rate) }
      }
    }
    gradientScale = 1
  }

  /// The learning rate of a group's next step, with its schedule.
  public func learningRate(ofGroup index: Int) -> Double {
    let group = groups[index]
    let factor = group.schedule.map { $0.factor(at: groupSteps[index]) } ?? scheduleFactor
    return (group.learningRate ?? learningRate * group.learningRateFactor) * factor
  }

  private func bundles(_ ready: [(slot: Slot, gradient: Tensor)]) -> [[(slot: Slot, gradient: Tensor)]] {
    struct Kind: Hashable {
      let steps: Int
      let dtype: DType
      let device: Device
    }
    var open: [Kind: Int] = [:]  // the bundle being filled
    var sizes: [Int] = []
    var result: [[(slot: Slot, gradient: Tensor)]] = []
    for entry in ready {
      let parameter = entry.slot.parameter
      let kind = Kind(steps: entry.slot.steps, dtype: parameter.dtype, device: parameter.device)
      if let i = open[kind], sizes[i] + parameter.count <= Self.bundleElements {
        result[i].append(entry)
        sizes[i] += parameter.count
      } else {
        open[kind] = result.count
        result.append([entry])
        sizes.append(parameter.count)
      }
    }
    return result
  }

  private func update(bundle: [(slot: Slot, gradient: Tensor)], of group: ParameterGroup, rate: Double) {
    var gradients = bundle.map(\.gradient)
    if gradientScale != 1 && !scalesGradients { gradients = ForEach.scaled(gradients, gradientScale) }
    update(
      Bundle(
        names: bundle.map(\.slot.name), parameters: bundle.map(\.slot.parameter), gradients: gradients, states: bundle.map(\.slot.state),
        step: bundle[0].slot.steps, learningRate: rate, gradientScale: scalesGradients ? gradientScale : 1, group: group))
  }

  public func zeroGradients() {
    for slot in slots.joined() { slot.parameter.gradient = nil }
  }

  // MARK: State

  public var stateBytes: Int { slots.joined().reduce(0) { $1.state.values.reduce($0) { $0 + $1.byteCount } } }

  public func stateDictionary() -> [String: Tensor] {
    var result: [String: Tensor] = [:]
    for slot in slots.joined() {
      result[slot.name + ".step"] = Tensor([Int64(slot.steps)], [])
      for (kind, tensor) in slot.state { result["\(slot.name).\(kind)"] = tensor }
    }
    for (group, steps) in zip(groups, groupSteps) { result[Self.key(group)] = Tensor([Int64(steps)], []) }
    return result
  }

  private static func key(_ group: ParameterGroup) -> String { "group.\(group.name).steps" }

  public func load(_ state: [String: Tensor]) throws {
    var unused = Set(state.keys)
    func entry(_ key: String, _ what: String) throws -> Tensor {
      guard let tensor = state[key] else {
        throw TensorError("optimizer state: “\(key)” is missing (\(what)); the state belongs to another model, group or optimizer")
      }
      unused.remove(key)
      return tensor
    }
    func count(_ key: String, _ what: String) throws -> Int {
      let tensor = try entry(key, what)
      guard tensor.dtype == .int64, tensor.count == 1, tensor.itemInt() >= 0 else {
        throw TensorError("optimizer state: “\(key)” must be one int64 number ≥ 0, not \(tensor.dtype) of shape \(tensor.shape)")
      }
      return tensor.itemInt()
    }
    let loadedGroupSteps = try groups.map { try count(Self.key($0), "the steps of parameter group “\($0.name)”") }
    var loaded: [(slot: Slot, steps: Int, state: [String: Tensor])] = []
    for (group, slot) in zip(groups, slots).flatMap({ group, slots in slots.map { (group, $0) } }) {
      let steps = try count(slot.name + ".step", "the updates of parameter “\(slot.name)”, shape \(slot.parameter.shape)")
      var own: [String: Tensor] = [:]
      if steps > 0 {
        own = withoutGradient { makeState(for: slot.parameter, in: group) }
        for (kind, tensor) in own {
          let key = "\(slot.name).\(kind)"
          let given = try entry(key, "parameter “\(slot.name)” has had \(steps) updates")
          guard given.shape == tensor.shape, given.dtype == tensor.dtype else {
            throw TensorError(
              "optimizer state: “\(key)” is \(given.dtype) of shape \(given.shape), expected \(tensor.dtype) of shape \(tensor.shape)")
          }
          tensor.copyInPlace(given.detached())
        }
      }
      loaded.append((slot, steps, own))
    }
    guard unused.isEmpty else {
      let some = unused.sorted().prefix(5).map { "“\($0)”" }.joined(separator: ", ")
      throw TensorError(
        "optimizer state: \(unused.count) entries belong to no parameter or kind of state of this \(type(of: self)): \(some)"
          + (unused.count > 5 ? ", …" : ""))
    }
    groupSteps = loadedGroupSteps
    for (slot, steps, own) in loaded {
      slot.steps = steps
      slot.state = own
    }
  }
}
