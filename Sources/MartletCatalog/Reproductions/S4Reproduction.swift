import MartletTraining

/// The experiment of `s4`, in two parts.
///
/// *Memory*: eight frequencies in noise (``NoisyFrequencyTask``), which only a memory over many periods tells apart; two residual
/// S4D-Lin layers against an LSTM of the same width and twice the parameters. *Generation*: the time of one more token after a
/// context of t tokens, which is the same for every t in S4's recurrent form and grows for softmax attention with its cache.
struct S4Experiment {
  var seeds = [0, 1, 2]
  var steps = 120
  var batchSize = 16
  var length = 512
  var learningRate = 5e-3
  /// Sequences in the test.
  var testSequences = 500
  /// Tokens before the measured one.
  var contexts = [256, 1024, 4096, 8192]
  /// Steps timed at each context.
  var timings = 101
  /// Width of the timed layers: wide enough that reading a cache of the longest context outweighs the fixed cost of a call.
  var timedWidth = 256

  static let inequality = """
    accuracy(s4d) >= 0.9 and accuracy(lstm) <= accuracy(s4d) - 0.4; \
    step_growth(s4d step) <= 1.5 and step_growth(softmax step) >= 2
    """

  /// Whether the claim holds: mean accuracies, and the time of a step at the longest context over that at the shortest.
  static func holds(s4d: Double, lstm: Double, s4dGrowth: Double, softmaxGrowth: Double) -> Bool {
    s4d >= 0.9 && lstm <= s4d - 0.4 && s4dGrowth <= 1.5 && softmaxGrowth >= 2
  }

  /// Two residual pre-LayerNorm layers of S4D-Lin, width 32, N = 32, mean pooling.
  func s4d(_ task: NoisyFrequencyTask, generator: RandomGenerator) throws -> TaskModel {
    let configuration = BackboneConfiguration(
      input: TaskModel.input(of: task), width: 32, layers: 2, heads: 1,
      mixers: [MixerChoice("s4d", options: ["state": 32, "initialization": "lin"])], feedForward: .none, isCausal: true,
      length: task.length)
    return try TaskModel(configuration, objective: task.objective, pooling: .mean, generator: generator)
  }

  func run(progress: (String) -> Void) throws -> Reproduction {
    let start = ContinuousClock.now
    var accuracies: [String: [Double]] = [:]
    var parameters: [String: Int] = [:]
    for seed in seeds {
      let task = try NoisyFrequencyTask(
        length: length, counts: SplitCounts(train: steps * batchSize, validation: 0, test: testSequences), seed: UInt64(seed))
      let s4d = try s4d(task, generator: RandomGenerator(seed: UInt64(seed)))
      let lstm = LSTMClassifier(width: 32, classes: task.classes, generator: RandomGenerator(seed: UInt64(seed)))
      let arms: [(name: String, model: Module, logits: (Tensor) -> Tensor)] = [
        ("s4d", s4d, { s4d($0) }), ("lstm", lstm, { lstm($0) }),
      ]
      for (name, model, logits) in arms {
        try ExperimentLoop(steps: steps, learningRate: learningRate, slowParameters: DiagonalKernel.slowParameters).train(model) {
          let batch = try task.trainingBatch(step: $0, size: batchSize, seed: UInt64(seed))
          return crossEntropy(logits(batch.inputs), batch.targets)
        }
        let accuracy = try Self.accuracy(task, logits)
        accuracies[name, default: []].append(accuracy)
        parameters[name] = model.parameters().reduce(0) { $0 + $1.tensor.count }
        progress("seed \(seed), \(name): accuracy \(decimals(accuracy)) after \(steps) steps, \(decimals(seconds(since: start), 0)) s")
      }
    }
    let generation = generation(progress: progress)
    func growth(_ name: String) -> Double {
      let times = generation[name] ?? []
      return times.isEmpty ? .nan : times[times.count - 1] / times[0]
    }
    var arms = ["s4d", "lstm"].map { name in
      var metrics = (accuracies[name] ?? []).metrics("accuracy", seeds: seeds)
      metrics["parameters"] = Double(parameters[name] ?? 0)
      return Reproduction.Arm(name: name, metrics: metrics)
    }
    for name in ["s4d step", "softmax step"] {
      var metrics = ["step_growth": growth(name)]
      for (context, time) in zip(contexts, generation[name] ?? []) { metrics["step_seconds_\(context)"] = time }
      arms.append(Reproduction.Arm(name: name, metrics: metrics))
    }
    return Reproduction(
      id: "s4", claim: try Catalog.entry("s4").claim, inequality: Self.inequality,
      holds: Self.holds(
        s4d: mean(accuracies["s4d"] ?? []), lstm: mean(accuracies["lstm"] ?? []), s4dGrowth: growth("s4d step"),
        softmaxGrowth: growth("softmax step")), seconds: seconds(since: start), seeds: seeds, arms: arms,
      note: """
        Scaled down: which of eight frequencies a sine in noise of deviation 1 has, length \(length), mean-pooled. step_seconds_t is \
        the median time of one token after t others, one layer of width \(timedWidth) and one sequence; step_growth is the last over the first.
        """)
  }

  /// The share of right classes in the test split.
  private static func accuracy(_ task: NoisyFrequencyTask, _ logits: (Tensor) -> Tensor) throws -> Double {
    try withoutGradient {
      var correct = 0
      var index = 0
      while let batch = try task.evaluationBatch(.test, index: index, size: 100) {
        correct += (logits(batch.inputs).argmax(axis: -1) .== batch.targets).to(.int64).sum().itemInt()
        index += 1
      }
      return Double(correct) / Double(task.count(.test))
    }
  }

  // MARK: Time per generated token

  /// Median seconds of one token at each of the contexts, by arm.
  private func generation(progress: (String) -> Void) -> [String: [Double]] {
    let generator = RandomGenerator(seed: 0)
    let s4d = S4(.init(width: timedWidth, state: 64), generator: generator)
    let softmax = SoftmaxAttention(.init(width: timedWidth, heads: 4), generator: generator)
    return withoutGradient {
      ["s4d step": stepTimes(s4d, generator), "softmax step": stepTimes(softmax, generator)]
    }
  }

  /// Contexts take turns, so that a slow moment of the machine strikes all of them.
  private func stepTimes<Mixer: RecurrentMixer>(_ mixer: Mixer, _ generator: RandomGenerator) -> [Double] {
    mixer.eval()
    var states = contexts.map { context in
      var state = mixer.initialState(batch: 1)
      _ = mixer.advance(Tensor.randomNormal([1, context - 1, timedWidth], generator: generator), &state)
      // The first step of a cache that is full enlarges it.
      for _ in 0..<2 { _ = mixer.step(Tensor.randomNormal([1, timedWidth], generator: generator), &state) }
      return state
    }
    var times = [[Double]](repeating: [], count: contexts.count)
    for _ in 0..<timings {
      for place in contexts.indices {
        let x = Tensor.randomNormal([1, timedWidth], generator: generator)
        let start = ContinuousClock.now
        _ = mixer.step(x, &states[place])
        times[place].append(seconds(since: start))
      }
    }
    return times.map { $0.sorted()[$0.count / 2] }
  }
}

/// Two LSTM layers on projected inputs, mean pooling and a linear head: the baseline that has to remember by its gates.
final class LSTMClassifier: Module {
  @Child var input: any LinearLayer
  @Child(key: "layers") var layers: [LSTM]
  @Child var head: any LinearLayer

  init(width: Int, classes: Int, generator: RandomGenerator) {
    super.init()
    input = Linear(1, width, generator: generator)
    layers = (0..<2).map { _ in LSTM(width, generator: generator) }
    head = Linear(width, classes, generator: generator)
  }

  /// x: [batch, length, 1] → [batch, classes].
  func callAsFunction(_ x: Tensor) -> Tensor {
    var y = input(x)
    for layer in layers { y = layer(y) }
    return head(y.mean(axis: 1))
  }
}

/// Runs the experiment of `s4` as its sheet states it.
public func reproduceS4(progress: (String) -> Void) throws -> Reproduction { try S4Experiment().run(progress: progress) }
