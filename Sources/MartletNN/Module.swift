@_exported import Martlet

/// A part of a model: parameters, buffers and child modules, found by reflection over its stored properties.
///
/// ```swift
/// final class Affine: Module {
///   @Parameter var weight: Tensor
///   @Child(key: "out_proj") var output: any LinearLayer
///   …
/// }
/// ```
///
/// A property's name is its key in checkpoints unless the wrapper names another. Child modules may also be plain `let`
/// properties or arrays (keys `blocks.0`, `blocks.1`, …); only `@Child` ones can be replaced by path.
open class Module {
  /// True while training: dropout acts, batch norm uses the batch.
  public private(set) var isTraining = true

  public init() {}

  // MARK: Reflection

  /// A stored property that takes part in the tree.
  enum Node {
    case parameter(any ParameterSlot)
    case buffer(any ParameterSlot)
    case module(Module, slot: (any ChildSlot)?, index: Int?)
  }

  /// The direct parameters, buffers and children with their keys, in the order of declaration (superclass first).
  func nodes() -> [(key: String, node: Node)] {
    var result: [(String, Node)] = []
    var mirrors: [Mirror] = []
    var current: Mirror? = Mirror(reflecting: self)
    while let mirror = current {
      mirrors.append(mirror)
      current = mirror.superclassMirror
    }
    for mirror in mirrors.reversed() {
      for property in mirror.children {
        guard var label = property.label else { continue }
        if label.hasPrefix("_") { label.removeFirst() }
        switch property.value {
        case let slot as any ParameterSlot:
          result.append((slot.key ?? label, slot.isBuffer ? .buffer(slot) : .parameter(slot)))
        case let slot as any ChildSlot:
          append(slot.content, key: slot.key ?? label, slot: slot, to: &result)
        default:
          append(property.value, key: label, slot: nil, to: &result)
        }
      }
    }
    return result
  }

  private func append(_ value: Any, key: String, slot: (any ChildSlot)?, to result: inout [(String, Node)]) {
    if let module = value as? Module {
      result.append((key, .module(module, slot: slot, index: nil)))
    } else if let modules = value as? [Module] {
      for (i, module) in modules.enumerated() { result.append(("\(key).\(i)", .module(module, slot: slot, index: i))) }
    } else if let values = value as? [Any], !values.isEmpty, values.allSatisfy({ $0 is Module }) {
      for (i, module) in values.enumerated() { result.append(("\(key).\(i)", .module(module as! Module, slot: slot, index: i))) }
    } else {
      let mirror = Mirror(reflecting: value)
      if mirror.displayStyle == .optional, let wrapped = mirror.children.first?.value as? Module {
        result.append((key, .module(wrapped, slot: slot, index: nil)))
      }
    }
  }

  // MARK: The tree

  /// This module and all below it, with their paths (the root's is empty).
  public func modules(prefix: String = "") -> [(path: String, module: Module)] {
    var result: [(path: String, module: Module)] = [(prefix, self)]
    for (key, node) in nodes() {
      if case .module(let child, _, _) = node { result += child.modules(prefix: prefix.isEmpty ? key : "\(prefix).\(key)") }
    }
    return result
  }

  func slots(_ wanted: (Node) -> (any ParameterSlot)?, prefix: String) -> [(key: String, slot: any ParameterSlot)] {
    var result: [(key: String, slot: any ParameterSlot)] = []
    for (key, node) in nodes() {
      let path = prefix.isEmpty ? key : "\(prefix).\(key)"
      if let slot = wanted(node) { result.append((path, slot)) }
      if case .module(let child, _, _) = node { result += child.slots(wanted, prefix: path) }
    }
    return result
  }

  private func parameterSlots() -> [(key: String, slot: any ParameterSlot)] {
    slots({ if case .parameter(let slot) = $0 { slot } else { nil } }, prefix: "")
  }

  private func bufferSlots() -> [(key: String, slot: any ParameterSlot)] {
    slots({ if case .buffer(let slot) = $0 { slot } else { nil } }, prefix: "")
  }

  /// All parameters with their paths. A tensor that two places share is listed at the first.
  public func parameters() -> [(name: String, tensor: Tensor)] {
    var seen = Set<ObjectIdentifier>()
    return parameterSlots().compactMap { key, slot in
      guard let tensor = slot.tensor, seen.insert(ObjectIdentifier(tensor)).inserted else { return nil }
      return (key, tensor)
    }
  }

  /// The parameters that are being trained.
  public func trainableParameters() -> [(name: String, tensor: Tensor)] { parameters().filter { $0.tensor.requiresGradient } }

  public func buffers() -> [(name: String, tensor: Tensor)] {
    bufferSlots().compactMap { key, slot in slot.tensor.map { (key, $0) } }
  }

  /// The number of parameter elements.
  public var parameterCount: Int { parameters().reduce(0) { $0 + $1.tensor.count } }

  /// The modules that change by rules of their own after every update of the parameters: this one and those below it.
  public func optimizerStepListeners() -> [any OptimizerStepListener] {
    var result = (self as? any OptimizerStepListener).map { [$0] } ?? []
    for (_, node) in nodes() {
      if case .module(let child, _, _) = node { result += child.optimizerStepListeners() }
    }
    return result
  }

  /// The random generators that modules hold (dropout and the like), each once.
  public func generators() -> [RandomGenerator] {
    var seen = Set<ObjectIdentifier>()
    return modules().compactMap { ($0.module as? any GeneratorHolder)?.generator }.filter {
      seen.insert(ObjectIdentifier($0)).inserted
    }
  }

  // MARK: Modes

  /// Switches this module and all below it between training and evaluation.
  public func train(_ flag: Bool = true) {
    for (_, module) in modules() { module.isTraining = flag }
  }

  public func eval() { train(false) }

  /// Excludes parameters from training: all, or those whose path the predicate accepts.
  public func freeze(where predicate: (String) -> Bool = { _ in true }) {
    for (name, tensor) in parameters() where predicate(name) { tensor.requiresGradient = false }
  }

  public func unfreeze(where predicate: (String) -> Bool = { _ in true }) {
    for (name, tensor) in parameters() where predicate(name) && (tensor.dtype.isFloatingPoint || tensor.dtype.isComplex) {
      tensor.requiresGradient = true
    }
  }

  public func zeroGradients() {
    for (_, tensor) in parameters() { tensor.gradient = nil }
  }

  /// Moves or converts every parameter and buffer in place of the old tensors; shared ones stay shared. A dtype changes
  /// floating-point tensors, and complex ones to the complex type of the same precision.
  public func to(_ dtype: DType? = nil, device: Device? = nil) {
    // The old tensors are kept until the end, so that their identities aren't given to new ones.
    var replaced: [ObjectIdentifier: (old: Tensor, new: Tensor)] = [:]
    for (_, slot) in parameterSlots() + bufferSlots() {
      guard let old = slot.tensor else { continue }
      if let shared = replaced[ObjectIdentifier(old)] {
        slot.tensor = shared.new
        continue
      }
      var tensor = old.detached()
      if let dtype, tensor.dtype.isFloatingPoint { tensor = tensor.to(dtype) }
      if let dtype, tensor.dtype.isComplex { tensor = tensor.to(dtype.complex) }
      if let device { tensor = tensor.to(device) }
      if old.requiresGradient { tensor.requiresGradient = true }
      replaced[ObjectIdentifier(old)] = (old, tensor)
      slot.tensor = tensor
    }
  }

  // MARK: State

  /// Parameters and buffers by path, sharing memory with the module.
  public func stateDictionary() -> [String: Tensor] {
    var result: [String: Tensor] = [:]
    for (key, tensor) in parameters() + buffers() { result[key] = tensor.detached() }
    return result
  }

  /// Copies tensors into the parameters and buffers of the same path.
  ///
  /// - Parameter strict: whether missing or unexpected keys are an error; a shape that does not fit always is.
  /// - Throws: `LoadingError`, which lists every missing, unexpected and misshapen key; nothing is changed then.
  @discardableResult
  public func load(_ state: [String: Tensor], strict: Bool = true) throws -> LoadReport {
    let (pairs, report) = try match(state, strict: strict)
    withoutGradient { for (slot, source) in pairs { slot.tensor?.copyInPlace(source) } }
    return report
  }

  /// Puts tensors themselves, without a copy, in the place of the parameters and buffers of the same path: mapped weights of a
  /// checkpoint, in their own dtype. They are not marked for differentiation.
  ///
  /// Parameters and throws as ``load(_:strict:)``.
  @discardableResult
  public func adopt(_ state: [String: Tensor], strict: Bool = true) throws -> LoadReport {
    let (pairs, report) = try match(state, strict: strict)
    for (slot, source) in pairs { slot.tensor = source }
    return report
  }

  private func match(_ state: [String: Tensor], strict: Bool) throws -> (pairs: [(any ParameterSlot, Tensor)], report: LoadReport) {
    var report = LoadReport()
    var pairs: [(any ParameterSlot, Tensor)] = []
    var known = Set<String>()
    // The source of a tensor that stands in several places serves all of them.
    var sources: [ObjectIdentifier: Tensor] = [:]
    for (key, slot) in parameterSlots() + bufferSlots() {
      guard let target = slot.tensor else { continue }
      known.insert(key)
      guard let source = state[key] ?? sources[ObjectIdentifier(target)] else {
        report.missing.append(key)
        continue
      }
      sources[ObjectIdentifier(target)] = source
      if source.shape == target.shape {
        pairs.append((slot, source))
      } else {
        report.misshapen.append((key, target.shape, source.shape))
      }
    }
    report.unexpected = state.keys.filter { !known.contains($0) }.sorted()
    if !report.misshapen.isEmpty || (strict && !(report.missing.isEmpty && report.unexpected.isEmpty)) {
      throw LoadingError(report: report)
    }
    return (pairs, report)
  }

  /// Puts another module at a path, e.g. an adapter or a compressed layer in a linear layer's place.
  ///
  /// - Throws: `TensorError` when the path names no replaceable child or the types don't fit.
  public func replace(_ path: String, with replacement: Module) throws {
    for (key, node) in nodes() {
      guard case .module(let child, let slot, let index) = node else { continue }
      if key == path {
        guard let slot else { throw TensorError("\(path) of \(type(of: self)) is not marked @Child, so it can't be replaced") }
        guard slot.assign(replacement, at: index) else {
          throw TensorError("\(path) of \(type(of: self)) can't hold a \(type(of: replacement))")
        }
        return
      }
      if path.hasPrefix(key + ".") { return try child.replace(String(path.dropFirst(key.count + 1)), with: replacement) }
    }
    let names = nodes().compactMap { if case .module = $0.node { $0.key } else { nil } }
    throw TensorError("\(type(of: self)) has no child “\(path)”; it has: \(names.joined(separator: ", "))")
  }

  /// The module at a path.
  public func module(at path: String) -> Module? { modules().first { $0.path == path }?.module }
}

/// What loading a state found.
public struct LoadReport: Sendable {
  public var missing: [String] = []
  public var unexpected: [String] = []
  public var misshapen: [(key: String, expected: [Int], found: [Int])] = []
}

/// A state that does not fit a module.
public struct LoadingError: Error, CustomStringConvertible {
  public let report: LoadReport

  public var description: String {
    var lines = ["the state does not fit the model:"]
    func list(_ title: String, _ items: [String]) {
      guard !items.isEmpty else { return }
      let shown = items.prefix(20).joined(separator: "\n    ")
      lines.append("  \(title) (\(items.count)):\n    \(shown)" + (items.count > 20 ? "\n    … and \(items.count - 20) more" : ""))
    }
    list("missing", report.missing)
    list("unexpected", report.unexpected)
    list("wrong shape", report.misshapen.map { "\($0.key): expected \($0.expected), found \($0.found)" })
    return lines.joined(separator: "\n")
  }
}

/// A module that draws random numbers.
public protocol GeneratorHolder: Module {
  var generator: RandomGenerator { get }
}

/// A module that changes by a rule of its own once an optimizer has changed the parameters: copies that follow them, queues.
///
/// Whoever steps the optimizer calls it after each step, as `Trainer` does; forward passes never do.
public protocol OptimizerStepListener: Module {
  func optimizerDidStep()
}

// MARK: Property wrappers

/// Where a parameter or buffer is stored, seen through reflection.
protocol ParameterSlot: AnyObject {
  var key: String? { get }
  var isBuffer: Bool { get }
  var tensor: Tensor? { get set }
}

/// A trained tensor (or an optional one). Assigning a tensor marks it for differentiation.
@propertyWrapper
public final class Parameter<Value>: ParameterSlot {
  let key: String?
  let isBuffer = false
  private var stored: Value?

  /// - Parameter key: the name in checkpoints, when it isn't the property's.
  public init(key: String? = nil) { self.key = key }
  public init(wrappedValue: Value, key: String? = nil) {
    self.key = key
    self.wrappedValue = wrappedValue
  }

  public var wrappedValue: Value {
    get {
      guard let stored else { fatalError("parameter \(key ?? "") was read before it was set") }
      return stored
    }
    set {
      stored = newValue
      if let tensor, tensor.isLeaf, tensor.dtype.isFloatingPoint || tensor.dtype.isComplex { tensor.requiresGradient = true }
    }
  }

  var tensor: Tensor? {
    get { stored.flatMap { $0 as? Tensor } }
    set { if let value = newValue as? Value { stored = value } }
  }
}

/// A tensor that belongs to the state but is not trained.
@propertyWrapper
public final class Buffer<Value>: ParameterSlot {
  let key: String?
  let isBuffer = true
  private var stored: Value?

  public init(key: String? = nil) { self.key = key }
  public init(wrappedValue: Value, key: String? = nil) {
    self.key = key
    stored = wrappedValue
  }

  public var wrappedValue: Value {
    get {
      guard let stored else { fatalError("buffer \(key ?? "") was read before it was set") }
      return stored
    }
    set { stored = newValue }
  }

  var tensor: Tensor? {
    get { stored.flatMap { $0 as? Tensor } }
    set { if let value = newValue as? Value { stored = value } }
  }
}

protocol ChildSlot: AnyObject {
  var key: String? { get }
  var content: Any { get }
  func assign(_ module: Module, at index: Int?) -> Bool
}

/// A child module, an array of them, or an existential such as `any LinearLayer`, that can be replaced by path.
@propertyWrapper
public final class Child<Value>: ChildSlot {
  let key: String?
  private var stored: Value?

  public init(key: String? = nil) { self.key = key }
  public init(wrappedValue: Value, key: String? = nil) {
    self.key = key
    stored = wrappedValue
  }

  public var wrappedValue: Value {
    get {
      guard let stored else { fatalError("child \(key ?? "") was read before it was set") }
      return stored
    }
    set { stored = newValue }
  }

  var content: Any { stored as Any }

  func assign(_ module: Module, at index: Int?) -> Bool {
    if let index {
      guard var list = stored as? [Any], list.indices.contains(index) else { return false }
      list[index] = module
      guard let value = list as? Value else { return false }
      stored = value
      return true
    }
    guard let value = module as? Value else { return false }
    stored = value
    return true
  }
}
