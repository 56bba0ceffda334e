import MartletTraining

/// Self-pretraining by masked denoising, runnable by id: a bidirectional Transformer restores hidden positions of real-valued
/// sequences.
///
/// - in: `x` [batch, length, channels] float32; `hidden` [batch, length] bool, true at the positions to restore (at least one);
///   `weight.<key>` for any parameter (the others keep the values drawn from `seed`);
/// - out: `loss`, the mean absolute error over hidden positions, a scalar; and `grad.<key>` of every parameter.
struct SelfPretrainingImplementation: MethodImplementation {
  let source = "Amos et al. 2023, arXiv 2310.02980: masked denoising of the task's own inputs, L1 on real values"

  let configurationKeys: [ConfigurationKey] = [
    ConfigurationKey("channels", .integer, default: 1, "values at each position; probe takes those of x when it isn't given"),
    ConfigurationKey("width", .integer, default: 48, "channels of the model"),
    ConfigurationKey("layers", .integer, default: 2, "blocks of attention and MLP"),
    ConfigurationKey("heads", .integer, default: 4, "of the attention"),
    ConfigurationKey("length", .integer, default: 64, "learned positions; probe takes the length of x when it isn't given"),
    ConfigurationKey("seed", .integer, default: 0, "of the parameters that aren't given"),
  ]

  private func build(_ configuration: JSONValue) throws -> SelfPretraining {
    func integer(_ key: String) throws -> Int {
      guard let value = configuration[key]?.intValue, value >= (key == "seed" ? 0 : 1) else {
        throw ConfigurationError("the configuration key \"\(key)\" is too small: \(configuration[key]?.serialized() ?? "missing")")
      }
      return value
    }
    let model = BackboneConfiguration(
      input: .continuous(channels: try integer("channels")), width: try integer("width"), layers: try integer("layers"),
      heads: try integer("heads"), mixers: [MixerChoice("softmax", options: ["rotary": false])], isCausal: false, positions: .learned,
      length: try integer("length"))
    // The ratio is not used: the hidden positions are given.
    return try SelfPretraining(model, objective: .masked(ratio: 0.5), generator: RandomGenerator(seed: UInt64(try integer("seed"))))
  }

  func parameterShapes(configuration: JSONValue) throws -> [(key: String, shape: [Int])] {
    try build(completed(configuration)).parameters().map { ($0.name, $0.tensor.shape) }
  }

  func probe(configuration: JSONValue, tensors: [String: Tensor]) throws -> [String: Tensor] {
    guard let x = tensors["x"], x.rank == 3, x.count > 0, x.dtype.isFloatingPoint else {
      throw TensorError("a floating-point tensor \"x\" [batch, length, channels] is needed, got \(describe(tensors["x"]))")
    }
    guard let hidden = tensors["hidden"], hidden.dtype == .bool, hidden.shape == [x.dim(0), x.dim(1)], hidden.any().item() != 0 else {
      throw TensorError(
        "a bool tensor \"hidden\" \([x.dim(0), x.dim(1)]) with a true element is needed, got \(describe(tensors["hidden"]))")
    }
    var object = try completed(configuration).objectValue ?? JSONObject()
    if configuration["channels"] == nil { object["channels"] = .integer(x.dim(2)) }
    if configuration["length"] == nil { object["length"] = .integer(x.dim(1)) }
    let pretraining = try build(.object(object))
    guard object["channels"]?.intValue == x.dim(2), x.dim(1) <= object["length"]?.intValue ?? 0 else {
      throw TensorError("x \(x.shape) doesn't fit the configuration's channels and length")
    }
    let state = pretraining.stateDictionary()
    let known = ["x", "hidden"] + state.keys.sorted().map { "weight." + $0 }
    var weights: [String: Tensor] = [:]
    for (name, tensor) in tensors where name != "x" && name != "hidden" {
      let key = String(name.dropFirst("weight.".count))
      guard known.contains(name), let target = state[key] else {
        throw TensorError("self-pretraining has no tensor \"\(name)\".\(Suggestions.phrase(for: name, in: known))")
      }
      guard target.shape == tensor.shape else {
        throw TensorError("the tensor \"\(name)\" has the shape \(tensor.shape), expected \(target.shape)")
      }
      weights[key] = tensor
    }
    _ = try pretraining.load(weights, strict: false)
    return try withTorchErrors {
      let batch = Batch(inputs: x.to(.float32), targets: Tensor.zeros([x.dim(0)], dtype: .int64))
      let loss = pretraining.maskedLoss(batch, hidden: hidden)
      let parameters = pretraining.parameters()
      var results = ["loss": loss.detached()]
      for ((name, tensor), gradient) in zip(parameters, gradient(of: loss, with: parameters.map(\.tensor))) {
        results["grad." + name] = (gradient ?? .zeros(like: tensor.detached())).detached().contiguous()
      }
      return results
    }
  }

  private func describe(_ tensor: Tensor?) -> String { tensor.map { "\($0.dtype) \($0.shape)" } ?? "none" }

  func reproduce(progress: (String) -> Void) throws -> Reproduction { try reproduceSPT(progress: progress) }
}
