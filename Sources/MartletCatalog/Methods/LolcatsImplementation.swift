import MartletTraining

/// One linearised attention layer with its softmax teacher, runnable by id: the first step of LoLCATs on given inputs.
///
/// - in: `x` [batch, length, width], what the attention reads; `weight.<key>` for any parameter (the others keep the values drawn from
///   `seed`);
/// - out: `y`, the linearised layer's output; `teacher`, that of the softmax attention over the same projections; `loss`, the transfer loss
///   of the heads' outputs (and, with `cross_entropy_factor`, of the weights); `grad.<key>` of what it trains: feature maps and window factors.
///
/// With `"mode": "recurrent"`, `y` is computed token by token.
struct LolcatsImplementation: MethodImplementation {
  let source = "Zhang et al. 2024, arXiv 2410.10254, §3.2–3.3, equations 4–7; HazyResearch/lolcats for the factors and the block layout"

  private static let ownKeys: [ConfigurationKey] = [
    ConfigurationKey("width", .integer, default: 64, "channels of the model; probe takes those of x when it isn't given"),
    ConfigurationKey("heads", .integer, default: 4, "query heads"),
    ConfigurationKey("output_factor", .number, default: 1000, "of the mean squared error of the heads' outputs"),
    ConfigurationKey("cross_entropy_factor", .number, default: 0, "of the cross-entropy between rows of weights"),
    ConfigurationKey("seed", .integer, default: 0, "of the parameters that aren't given"),
    ConfigurationKey(
      "mode", .string, default: "parallel", "fused kernels, token by token, or plain operators",
      choices: MixerImplementation.Mode.allCases.map(\.rawValue)),
    ConfigurationKey("dtype", .string, default: "float32", "of all arithmetic", choices: ["float32", "float64"]),
  ]

  var configurationKeys: [ConfigurationKey] {
    Self.ownKeys + MixerKind.lolcats.keys.filter { key in !Self.ownKeys.contains { $0.name == key.name } }
  }

  private func build(_ configuration: JSONValue) throws -> WindowedLinearAttention {
    guard let width = configuration["width"]?.intValue, width > 0, let heads = configuration["heads"]?.intValue, heads > 0,
      let seed = configuration["seed"]?.intValue, seed >= 0
    else { throw ConfigurationError("width and heads must be positive, and seed not negative") }
    var options = JSONObject()
    for key in MixerKind.lolcats.keys where key.name != "heads" { options[key.name] = configuration[key.name] }
    let mixer = try withTorchErrors {
      try MixerKind.lolcats(
        MixerSite(width: width, heads: heads, isCausal: true, length: 1024), options: .object(options),
        generator: RandomGenerator(seed: UInt64(seed)))
    }
    mixer.eval()
    if configuration["dtype"]?.stringValue == "float64" { mixer.to(.float64) }
    return mixer as! WindowedLinearAttention
  }

  private func transfer(_ configuration: JSONValue) throws -> AttentionTransfer {
    let (output, entropy) = (configuration["output_factor"]?.doubleValue ?? 1000, configuration["cross_entropy_factor"]?.doubleValue ?? 0)
    guard output >= 0, entropy >= 0, output + entropy > 0 else {
      throw ConfigurationError("output_factor and cross_entropy_factor must not be negative, and one of them positive")
    }
    return AttentionTransfer(.init(steps: 0, outputFactor: output, crossEntropyFactor: entropy))
  }

  func parameterShapes(configuration: JSONValue) throws -> [(key: String, shape: [Int])] {
    try build(completed(configuration)).parameters().map { ($0.name, $0.tensor.shape) }
  }

  func probe(configuration: JSONValue, tensors: [String: Tensor]) throws -> [String: Tensor] {
    var object = try completed(configuration).objectValue ?? JSONObject()
    guard let given = tensors["x"], given.rank == 3, given.count > 0, given.dtype.isFloatingPoint else {
      throw TensorError(
        "a floating-point tensor \"x\" [batch, length, width] is needed, got \(tensors["x"].map { "\($0.dtype) \($0.shape)" } ?? "none")")
    }
    if configuration["width"] == nil { object["width"] = .integer(given.dim(2)) }
    guard object["width"]?.intValue == given.dim(2) else {
      throw TensorError(
        "x has \(given.dim(2)) channels (its shape is \(given.shape)), the configuration's width is \(object["width"]?.intValue ?? 0)")
    }
    let full = JSONValue.object(object)
    let (mixer, transfer) = (try build(full), try transfer(full))
    let state = mixer.stateDictionary()
    let known = ["x"] + mixer.parameters().map { "weight." + $0.name }
    var weights: [String: Tensor] = [:]
    for (name, tensor) in tensors where name != "x" {
      let key = String(name.dropFirst("weight.".count))
      guard known.contains(name), let target = state[key] else {
        throw TensorError("\"lolcats\" has no tensor \"\(name)\" in this configuration.\(Suggestions.phrase(for: name, in: known))")
      }
      guard target.shape == tensor.shape else {
        throw TensorError("the tensor \"\(name)\" has the shape \(tensor.shape), expected \(target.shape)")
      }
      weights[key] = tensor
    }
    _ = try mixer.load(weights, strict: false)
    let mode = full["mode"]?.stringValue.flatMap(MixerImplementation.Mode.init) ?? .parallel
    return try withTorchErrors {
      KernelChoice.$referenceOnly.withValue(mode == .reference) {
        let x = given.to(full["dtype"]?.stringValue == "float64" ? .float64 : .float32).detached()
        let (y, teacher) = withoutGradient {
          let teacher = mixer.softmaxAttention()(x)
          guard mode == .recurrent else { return (mixer(x), teacher) }
          var state = mixer.initialState(batch: x.dim(0))
          return (stacked((0..<x.dim(1)).map { mixer.step(x.selected(axis: 1, $0), &state) }, axis: 1), teacher)
        }
        let loss = transfer.loss(mixer, x)
        let trained = mixer.parameters().filter { $0.name.contains("_map.") || $0.name == "window_factor" }
        var results = ["y": y.detached().contiguous(), "teacher": teacher.detached().contiguous(), "loss": loss.detached()]
        for ((name, tensor), gradient) in zip(trained, gradient(of: loss, with: trained.map(\.tensor))) {
          results["grad." + name] = (gradient ?? .zeros(like: tensor.detached())).detached().contiguous()
        }
        return results
      }
    }
  }

  func reproduce(progress: (String) -> Void) throws -> Reproduction { try reproduceLolcats(progress: progress) }
}
