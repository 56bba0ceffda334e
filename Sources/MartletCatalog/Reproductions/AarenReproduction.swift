import MartletTraining

/// The experiment of `aaren`, in two parts.
///
/// *Forecasting*: the next eight values of sums of two sinusoids (``SinusoidSeries``), by two causal Transformers that differ in their
/// attention only: a learned query for all tokens, or a query of each token's own. *Memory*: the bytes of the state after a short and a
/// long stream.
struct AarenExperiment {
  var seeds = [0, 1, 2]
  var steps = 400
  var batchSize = 32
  var learningRate = 2e-3
  var length = 64
  var horizon = 8
  /// Series in the test.
  var testSeries = 500
  /// Tokens of the streams.
  var streams = [256, 4096]

  static let inequality = """
    mse(aaren) <= 1.3 * mse(transformer) and mse(aaren) <= 0.5 * mse(last value); \
    state_bytes after 4096 tokens = after 256 for aaren, and not for transformer
    """

  /// Whether the claim holds for mean squared errors and the bytes after the streams, the shortest first.
  static func holds(aaren: Double, transformer: Double, lastValue: Double, aarenBytes: [Int], transformerBytes: [Int]) -> Bool {
    aaren <= 1.3 * transformer && aaren <= 0.5 * lastValue && Set(aarenBytes).count == 1
      && zip(transformerBytes, transformerBytes.dropFirst()).allSatisfy(<)
  }

  /// The arms that are trained.
  static let arms: [(name: String, mixer: MixerChoice)] = [
    ("aaren", MixerChoice("aaren")), ("transformer", MixerChoice("softmax", options: ["rotary": false])),
  ]

  /// Three layers of width 48 with four heads, a feed-forward of four times the width and sinusoidal positions.
  func model(_ mixer: MixerChoice, seed: Int) throws -> SeriesForecaster {
    try SeriesForecaster(
      BackboneConfiguration(
        input: .continuous(channels: 1), width: 48, layers: 3, heads: 4, mixers: [mixer], isCausal: true, positions: .sinusoidal,
        length: length),
      horizon: horizon, generator: RandomGenerator(seed: UInt64(seed)))
  }

  func run(progress: (String) -> Void) throws -> Reproduction {
    let start = ContinuousClock.now
    var errors: [String: [Double]] = [:]
    var parameters: [String: Int] = [:]
    var bytes: [String: [Int]] = [:]
    let runs = pairs(seeds, Self.arms)
    let results = try concurrently(runs, progress: progress) { run, progress in
      let (seed, (name, mixer)) = run
      let data = try SinusoidSeries(length: length, horizon: horizon, seed: UInt64(seed))
      let test = data.batch(.test, Array(0..<testSeries))
      let model = try model(mixer, seed: seed)
      try ExperimentLoop(steps: steps, learningRate: learningRate).train(model) { step in
        let batch = data.batch(.train, Array(step * batchSize..<(step + 1) * batchSize))
        return (model(batch.inputs) - batch.targets).square().mean()
      }
      let error = withoutGradient { (model(test.inputs) - test.targets).square().mean().item() }
      progress(
        "seed \(seed), \(name): mean squared error \(decimals(error)) after \(steps) steps, \(decimals(seconds(since: start), 0)) s")
      return (
        error: error, parameters: model.parameterCount, lastValue: (test.inputs - test.targets).square().mean().item(),
        bytes: seed == seeds[0] ? try withoutGradient { try stateBytes(model, data) } : []
      )
    }
    for (run, result) in zip(runs, results) {
      errors[run.arm.name, default: []].append(result.error)
      parameters[run.arm.name] = result.parameters
      if run.seed == seeds[0] { bytes[run.arm.name] = result.bytes }
      if run.arm.name == Self.arms[0].name { errors["last value", default: []].append(result.lastValue) }
    }
    func error(_ name: String) -> Double { mean(errors[name] ?? []) }
    return Reproduction(
      id: "aaren", claim: try Catalog.entry("aaren").claim, inequality: Self.inequality,
      holds: Self.holds(
        aaren: error("aaren"), transformer: error("transformer"), lastValue: error("last value"), aarenBytes: bytes["aaren"] ?? [],
        transformerBytes: bytes["transformer"] ?? []), seconds: seconds(since: start), seeds: seeds,
      arms: ["aaren", "transformer", "last value"].map { name in
        var metrics = (errors[name] ?? []).metrics("mse", seeds: seeds)
        if let count = parameters[name] { metrics["parameters"] = Double(count) }
        for (tokens, size) in zip(streams, bytes[name] ?? []) { metrics["state_bytes_\(tokens)"] = Double(size) }
        return Reproduction.Arm(name: name, metrics: metrics)
      },
      note: """
        Scaled down: sums of two sinusoids in noise, \(length) values; mse is the mean over \(testSeries) new series, all their positions \
        and the \(horizon) values that follow each. state_bytes_t is the size of the recurrent state after t values.
        """)
  }

  /// The bytes of the model's state after each of the streams, read in pieces.
  private func stateBytes(_ model: SeriesForecaster, _ data: SinusoidSeries) throws -> [Int] {
    try streams.map { tokens in
      var state = try model.backbone.initialState(batch: 1)
      var seen = 0
      while seen < tokens {
        let count = min(length, tokens - seen)
        _ = model.backbone.advance(data.batch(.validation, [seen]).inputs[.all, ..<count], &state)
        seen += count
      }
      return model.backbone.stateBytes(state)
    }
  }
}

/// A backbone and a linear head that gives the next `horizon` values at every position. [batch, length, 1] → [batch, length, horizon].
final class SeriesForecaster: Module {
  @Child var backbone: SequenceBackbone
  @Child var head: any LinearLayer

  init(_ configuration: BackboneConfiguration, horizon: Int, generator: RandomGenerator) throws {
    super.init()
    backbone = try SequenceBackbone(configuration, generator: generator)
    head = Linear(configuration.width, horizon, generator: generator)
  }

  func callAsFunction(_ x: Tensor) -> Tensor { head(backbone(x)) }
}

/// Runs the experiment of `aaren` as its sheet states it.
public func reproduceAaren(progress: (String) -> Void) throws -> Reproduction {
  try onOneThread { try AarenExperiment().run(progress: progress) }
}
