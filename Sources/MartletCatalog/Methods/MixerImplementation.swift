import MartletMixers

/// Makes one kind of mixer runnable by id. The configuration is the place of the mixer in a model (width, heads, length, causal or
/// not) together with the kind's own options; the tensors are those of the mixers' contract:
///
/// - in: `x` [batch, length, width]; optional `mask` [batch, length] bool, true at real positions; `weight.<key>` for any parameter or
///   buffer (the others keep the values drawn from `seed`); optional `grad_y`, of the shape of `x`;
/// - out: `y`, and with `grad_y` also `grad_x` and `grad.<key>` of every parameter.
///
/// Complex parameters are pairs (re, im) in a last axis of 2.
public struct MixerImplementation: MethodImplementation {
  /// How the mixer is run.
  public enum Mode: String, Sendable, CaseIterable {
    /// All positions at once, on the fused kernels where they serve.
    case parallel
    /// Token by token from the initial state.
    case recurrent
    /// All positions at once, by the reference forms in plain operators.
    case reference
  }

  /// The scaled-down experiment of a paper.
  public typealias Experiment = @Sendable (_ progress: (String) -> Void) throws -> Reproduction

  public let id: String
  public let kind: MixerKind
  public let source: String
  private let experiment: Experiment?

  public var isReproducible: Bool { experiment != nil }

  public init(id: String, kind: MixerKind, source: String, experiment: Experiment? = nil) {
    self.id = id
    self.kind = kind
    self.source = source
    self.experiment = experiment
  }

  /// The keys of the place. A kind's own `heads` would say the same twice.
  private static let siteKeys: [ConfigurationKey] = [
    ConfigurationKey("width", .integer, default: 64, "channels of the model; probe takes those of x when it isn't given"),
    ConfigurationKey("heads", .integer, default: 4, "heads, for mixers that have them"),
    ConfigurationKey("causal", .boolean, default: true, "whether a position sees itself and the past only"),
    ConfigurationKey("length", .integer, default: 1024, "longest sequence expected; probe takes that of x when it isn't given"),
    ConfigurationKey("seed", .integer, default: 0, "of the parameters that aren't given"),
    ConfigurationKey(
      "mode", .string, default: "parallel", "fused kernels, token by token, or plain operators", choices: Mode.allCases.map(\.rawValue)),
    ConfigurationKey("dtype", .string, default: "float32", "of all arithmetic", choices: ["float32", "float64"]),
  ]

  private var ownKeys: [ConfigurationKey] { kind.keys.filter { own in !Self.siteKeys.contains { $0.name == own.name } } }

  /// A mixer without a causal form is bidirectional unless told otherwise.
  public var configurationKeys: [ConfigurationKey] {
    let isCausal = kind.directions.contains(.causal)
    return Self.siteKeys.map { key in
      key.name == "causal" ? ConfigurationKey(key.name, key.type, default: .bool(isCausal), key.meaning) : key
    } + ownKeys
  }

  // MARK: The module

  /// The mixer of a completed configuration, in its dtype. Throws ``ConfigurationError``.
  private func build(_ configuration: JSONValue) throws -> any SequenceMixer {
    func positive(_ key: String) throws -> Int {
      guard let value = configuration[key]?.intValue, value > 0 else {
        throw ConfigurationError("the configuration key \"\(key)\" must be positive, not \(configuration[key]?.serialized() ?? "missing")")
      }
      return value
    }
    guard let seed = configuration["seed"]?.intValue, seed >= 0 else {
      throw ConfigurationError("the configuration key \"seed\" must not be negative")
    }
    let site = MixerSite(
      width: try positive("width"), heads: try positive("heads"),
      isCausal: configuration["causal"]?.boolValue ?? kind.directions.contains(.causal),
      length: try positive("length"))
    var options = JSONObject()
    for key in ownKeys { options[key.name] = configuration[key.name] }
    let mixer = try withTorchErrors {
      try kind(site, options: .object(options), generator: RandomGenerator(seed: UInt64(seed)))
    }
    mixer.eval()
    if configuration["dtype"]?.stringValue == "float64" { mixer.to(.float64) }
    return mixer
  }

  public func parameterShapes(configuration: JSONValue) throws -> [(key: String, shape: [Int])] {
    try build(completed(configuration)).parameters().map { ($0.name, $0.tensor.shape) }
  }

  // MARK: Probe

  public func probe(configuration: JSONValue, tensors: [String: Tensor]) throws -> [String: Tensor] {
    var full = try completed(configuration)
    guard let given = tensors["x"] else {
      throw TensorError("the tensor \"x\" [batch, length, width] is missing.\(Suggestions.phrase(for: "x", in: tensors.keys.sorted()))")
    }
    guard given.rank == 3, given.count > 0, given.dtype.isFloatingPoint else {
      throw TensorError("x must be a non-empty floating-point tensor [batch, length, width], not \(given.dtype) \(given.shape)")
    }
    if configuration["width"] == nil { full = full.setting("width", .integer(given.dim(2))) }
    if configuration["length"] == nil { full = full.setting("length", .integer(given.dim(1))) }
    let mixer = try build(full)
    let width = full["width"]?.intValue ?? 0
    guard given.dim(2) == width else {
      throw TensorError("x has \(given.dim(2)) channels (its shape is \(given.shape)), the configuration's width is \(width)")
    }
    let dtype: DType = full["dtype"]?.stringValue == "float64" ? .float64 : .float32
    let mode = full["mode"]?.stringValue.flatMap(Mode.init) ?? .parallel
    let seed = try outputGradient(tensors, like: given)
    let mask = try paddingMask(tensors, like: given)
    try loadWeights(tensors, into: mixer)
    if kind.name == MixerKind.s4.name, seed != nil, let length = full["length"]?.intValue, length < given.dim(1) {
      // Doubling L changes C̃ before it is used: its gradient would belong to other values than those given.
      throw ConfigurationError("gradients need a length of at least that of x: \(length) is below \(given.dim(1))")
    }
    return try withTorchErrors {
      let x = given.to(dtype).detached().copy()
      if seed != nil { x.requiresGradient = true }
      let y = try withGradient(enabled: seed != nil) { try run(mixer, x, mask: mask, mode: mode) }
      var results = ["y": y.detached().contiguous()]
      guard let seed else { return results }
      let parameters = mixer.parameters()
      let gradients = gradient(of: y, with: [x] + parameters.map(\.tensor), seed: seed.to(dtype))
      results["grad_x"] = (gradients[0] ?? .zeros(like: x)).detached().contiguous()
      for ((name, tensor), gradient) in zip(parameters, gradients.dropFirst()) {
        results["grad." + name] = (gradient ?? .zeros(like: tensor.detached())).detached().contiguous()
      }
      return results
    }
  }

  private func run(_ mixer: any SequenceMixer, _ x: Tensor, mask: Tensor?, mode: Mode) throws -> Tensor {
    switch mode {
    case .parallel: return mixer(x, MixingContext(mask: mask))
    case .reference: return KernelChoice.$referenceOnly.withValue(true) { mixer(x, MixingContext(mask: mask)) }
    case .recurrent:
      guard let recurrent = mixer as? any RecurrentMixer else { throw ConfigurationError("\"\(id)\" can't run token by token") }
      guard mixer.isCausal else { throw ConfigurationError("mode recurrent needs a causal mixer: set \"causal\" to true") }
      guard mask == nil else { throw TensorError("mode recurrent takes no \"mask\": give it sequences without padding") }
      var state = recurrent.initialAnyState(batch: x.dim(0))
      return stacked((0..<x.dim(1)).map { recurrent.stepAny(x.selected(axis: 1, $0), &state) }, axis: 1)
    }
  }

  private func outputGradient(_ tensors: [String: Tensor], like x: Tensor) throws -> Tensor? {
    guard let seed = tensors["grad_y"] else { return nil }
    guard seed.shape == x.shape else { throw TensorError("grad_y has the shape \(seed.shape), x has \(x.shape): they must be equal") }
    return seed
  }

  private func paddingMask(_ tensors: [String: Tensor], like x: Tensor) throws -> Tensor? {
    guard let mask = tensors["mask"] else { return nil }
    let expected = [x.dim(0), x.dim(1)]
    guard mask.dtype == .bool, mask.shape == expected else {
      throw TensorError("mask must be bool \(expected), not \(mask.dtype) \(mask.shape)")
    }
    return mask
  }

  /// Copies `weight.<key>` into the module. Throws `TensorError` for a name that the contract doesn't know or a shape that doesn't fit.
  private func loadWeights(_ tensors: [String: Tensor], into mixer: any SequenceMixer) throws {
    let state = mixer.stateDictionary()
    let known = ["x", "mask", "grad_y"] + (mixer.parameters() + mixer.buffers()).map { "weight." + $0.name }
    var weights: [String: Tensor] = [:]
    for (name, tensor) in tensors.sorted(by: { $0.key < $1.key }) {
      guard known.contains(name) else {
        throw TensorError(
          "\"\(id)\" has no tensor \"\(name)\" in this configuration.\(Suggestions.phrase(for: name, in: known)) "
            + "It has: \(known.joined(separator: ", "))")
      }
      guard name.hasPrefix("weight.") else { continue }
      let key = String(name.dropFirst("weight.".count))
      if let target = state[key], target.shape != tensor.shape {
        throw TensorError("the tensor \"\(name)\" has the shape \(tensor.shape), expected \(target.shape)")
      }
      weights[key] = tensor
    }
    _ = try mixer.load(weights, strict: false)
  }

  // MARK: Reproduce

  /// Throws ``NoExperiment`` where none is registered.
  public func reproduce(progress: (String) -> Void) throws -> Reproduction {
    guard let experiment else { throw NoExperiment(id: id) }
    return try experiment(progress)
  }
}

/// A method that can be probed but has no experiment to reproduce.
public struct NoExperiment: Error, CustomStringConvertible, Sendable {
  public let id: String
  public var description: String { "\"\(id)\" has no experiment to reproduce; it can be run on tensors with `martlet probe \(id)`." }
}

extension JSONValue {
  /// The object with one member replaced.
  fileprivate func setting(_ key: String, _ value: JSONValue) -> JSONValue {
    var object = objectValue ?? JSONObject()
    object[key] = value
    return .object(object)
  }
}
