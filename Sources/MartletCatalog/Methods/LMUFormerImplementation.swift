import MartletModels
import MartletTraining

/// LMUFormer, spiking or not, runnable by id.
///
/// - in: `x` [batch, length, channels]; optional `mask` [batch, length] bool, true at real frames, padding at the end; `weight.<key>` for
///   any parameter or buffer (the others keep the values drawn from `seed`); optional `grad_y` [batch, classes];
/// - out: `y` [batch, classes], the logits' mean over real frames, and with `grad_y` also `grad_x` and `grad.<key>` of every parameter.
struct LMUFormerImplementation: MethodImplementation {
  enum Mode: String, CaseIterable {
    /// Batch norms by their running averages.
    case parallel
    /// The same with the memory's recurrence in plain operators.
    case reference
    /// Batch norms by the batch.
    case training
    /// Frame by frame, with the convolutions' delay.
    case stream
  }

  let source = "Liu et al. 2024, arXiv 2402.04882, §3; the memory: Chilkuri & Eliasmith 2021, equations 18–26"

  let configurationKeys: [ConfigurationKey] = [
    ConfigurationKey("channels", .integer, default: 128, "of a frame; probe takes those of x when it isn't given"),
    ConfigurationKey("width", .integer, default: 256, "channels of the model"),
    ConfigurationKey("layers", .integer, default: 1, "blocks of a memory and a channel mixer"),
    ConfigurationKey("memory", .integer, default: .null, "coefficients of the memory; null for the width, twice the width when spiking"),
    ConfigurationKey("window", .number, default: 128, "frames that the memory spans"),
    ConfigurationKey("convolutions", .integer, default: 4, "of the embedding, besides its residual one"),
    ConfigurationKey("mixer_ratio", .integer, default: 4, "hidden channels of the mixer over the width"),
    ConfigurationKey("classes", .integer, default: 35, "of the head"),
    ConfigurationKey("spiking", .boolean, default: false, "integrate-and-fire neurons before every weight layer"),
    ConfigurationKey("seed", .integer, default: 0, "of the parameters that aren't given"),
    ConfigurationKey(
      "mode", .string, default: "parallel", "whole sequences, plain operators, batch statistics, or frame by frame",
      choices: Mode.allCases.map(\.rawValue)),
    ConfigurationKey("dtype", .string, default: "float32", "of all arithmetic", choices: ["float32", "float64"]),
  ]

  private func build(_ configuration: JSONValue) throws -> LMUFormer {
    func integer(_ key: String) throws -> Int {
      guard let value = configuration[key]?.intValue, value >= (key == "seed" ? 0 : 1) else {
        throw ConfigurationError("the configuration key \"\(key)\" is too small: \(configuration[key]?.serialized() ?? "missing")")
      }
      return value
    }
    let model = try LMUFormer(
      LMUFormer.Configuration(
        channels: try integer("channels"), width: try integer("width"), layers: try integer("layers"),
        memory: configuration["memory"]?.intValue, window: configuration["window"]?.doubleValue ?? 128,
        convolutions: try integer("convolutions"), mixerRatio: try integer("mixer_ratio"), classes: try integer("classes"),
        isSpiking: configuration["spiking"]?.boolValue ?? false), generator: RandomGenerator(seed: UInt64(try integer("seed"))))
    model.eval()
    if configuration["dtype"]?.stringValue == "float64" { model.to(.float64) }
    return model
  }

  func parameterShapes(configuration: JSONValue) throws -> [(key: String, shape: [Int])] {
    try build(completed(configuration)).parameters().map { ($0.name, $0.tensor.shape) }
  }

  func probe(configuration: JSONValue, tensors: [String: Tensor]) throws -> [String: Tensor] {
    guard let given = tensors["x"], given.rank == 3, given.count > 0, given.dtype.isFloatingPoint else {
      throw TensorError("a non-empty floating-point tensor \"x\" [batch, length, channels] is needed, got \(describe(tensors["x"]))")
    }
    var object = try completed(configuration).objectValue ?? JSONObject()
    if configuration["channels"] == nil { object["channels"] = .integer(given.dim(2)) }
    let model = try build(.object(object))
    let channels = model.configuration.channels
    guard given.dim(2) == channels else {
      throw TensorError("x has \(given.dim(2)) channels (its shape is \(given.shape)), the configuration has \(channels)")
    }
    let mode = object["mode"]?.stringValue.flatMap(Mode.init) ?? .parallel
    let mask = tensors["mask"]
    if let mask {
      guard mode != .stream else { throw TensorError("the mode \"stream\" takes no \"mask\"") }
      guard mask.dtype == .bool, mask.shape == [given.dim(0), given.dim(1)] else {
        throw TensorError("mask must be bool \([given.dim(0), given.dim(1)]), not \(describe(mask))")
      }
    }
    let seed = tensors["grad_y"]
    if let seed {
      let expected = [given.dim(0), model.configuration.classes]
      guard seed.shape == expected else { throw TensorError("grad_y has the shape \(seed.shape), expected \(expected)") }
    }
    try loadWeights(tensors, into: model)
    if mode == .training { model.train() }
    return try withTorchErrors {
      let x = given.to(object["dtype"]?.stringValue == "float64" ? .float64 : .float32).detached().copy()
      if seed != nil { x.requiresGradient = true }
      let y = withGradient(enabled: seed != nil) { run(model, x, mask, mode) }
      var results = ["y": y.detached().contiguous()]
      guard let seed else { return results }
      let parameters = model.parameters()
      let gradients = gradient(of: y, with: [x] + parameters.map(\.tensor), seed: seed.to(x.dtype))
      results["grad_x"] = (gradients[0] ?? .zeros(like: x)).detached().contiguous()
      for ((name, tensor), gradient) in zip(parameters, gradients.dropFirst()) {
        results["grad." + name] = (gradient ?? .zeros(like: tensor.detached())).detached().contiguous()
      }
      return results
    }
  }

  private func run(_ model: LMUFormer, _ x: Tensor, _ mask: Tensor?, _ mode: Mode) -> Tensor {
    switch mode {
    case .parallel, .training: return model(x, mask: mask)
    case .reference: return KernelChoice.$referenceOnly.withValue(true) { model(x, mask: mask) }
    case .stream:
      var stream = model.stream(batch: x.dim(0))
      for t in 0..<x.dim(1) { _ = stream.step(x.selected(axis: 1, t)) }
      _ = stream.end()
      return stream.prediction ?? .zeros([x.dim(0), model.configuration.classes], dtype: x.dtype)
    }
  }

  private func loadWeights(_ tensors: [String: Tensor], into model: LMUFormer) throws {
    let state = model.stateDictionary()
    let known = ["x", "mask", "grad_y"] + state.keys.sorted().map { "weight." + $0 }
    var weights: [String: Tensor] = [:]
    for (name, tensor) in tensors.sorted(by: { $0.key < $1.key }) where !["x", "mask", "grad_y"].contains(name) {
      let key = String(name.dropFirst("weight.".count))
      guard known.contains(name), let target = state[key] else {
        throw TensorError("\"lmuformer\" has no tensor \"\(name)\" in this configuration.\(Suggestions.phrase(for: name, in: known))")
      }
      guard target.shape == tensor.shape else {
        throw TensorError("the tensor \"\(name)\" has the shape \(tensor.shape), expected \(target.shape)")
      }
      weights[key] = tensor
    }
    _ = try model.load(weights, strict: false)
  }

  private func describe(_ tensor: Tensor?) -> String { tensor.map { "\($0.dtype) \($0.shape)" } ?? "none" }

  func reproduce(progress: (String) -> Void) throws -> Reproduction { try reproduceLMUFormer(progress: progress) }
}
