import MartletTraining

/// The experiment of `selective-s4`: does choosing a quarter of a video's tokens by learned scores lose nothing, where a random quarter
/// loses what matters?
///
/// Two short events among 256 noisy tokens decide the class (``SyntheticVideoTask``). Two residual S4D layers see all tokens, 64 of them at
/// random, or 64 chosen by a ``TokenSelector`` under the guidance of the first layer's slow copy.
struct SelectiveS4Experiment {
  var seeds = [0, 1, 2]
  var steps = 300
  var batchSize = 16
  var learningRate = 4e-3
  var frames = 16
  var places = 16
  /// Videos in the test.
  var testVideos = 500

  static let inequality = """
    accuracy(selected) >= accuracy(random) + 0.15 and accuracy(selected) >= accuracy(all) - 0.03; \
    event_tokens_kept(selected) >= 0.9; tokens(selected) = 0.25 * tokens(all)
    """

  /// Whether the claim holds for mean figures: accuracies, the share of event tokens that is chosen, and of all tokens.
  static func holds(all: Double, random: Double, selected: Double, kept: Double, tokens: Double) -> Bool {
    selected >= random + 0.15 && selected >= all - 0.03 && kept >= 0.9 && tokens == 0.25
  }

  static let arms = SelectiveVideoArm.allCases

  func run(progress: (String) -> Void) throws -> Reproduction {
    let start = ContinuousClock.now
    var figures: [SelectiveVideoArm: [String: [Double]]] = [:]
    for seed in seeds {
      let task = try SyntheticVideoTask(
        frames: frames, places: places, counts: SplitCounts(train: steps * batchSize, validation: 0, test: testVideos), seed: UInt64(seed))
      for arm in Self.arms {
        let model = SelectiveVideoArmModel(
          arm, channels: task.channels, length: task.length, generator: RandomGenerator(seed: UInt64(seed)))
        let began = ContinuousClock.now
        try ExperimentLoop(steps: steps, learningRate: learningRate, slowParameters: DiagonalKernel.slowParameters).train(model) {
          let batch = try task.trainingBatch(step: $0, size: batchSize, seed: UInt64(seed))
          return crossEntropy(model(batch.inputs).logits, batch.targets)
        }
        let trained = seconds(since: began)
        let (accuracy, kept) = evaluate(model, task)
        figures[arm, default: [:]]["accuracy", default: []].append(accuracy)
        figures[arm]!["event_tokens_kept", default: []].append(kept)
        figures[arm]!["training_seconds", default: []].append(trained)
        figures[arm]!["parameters", default: []].append(Double(model.parameterCount))
        figures[arm]!["tokens", default: []].append(Double(model.tokens(of: task.length)))
        progress(
          "seed \(seed), \(arm.rawValue): accuracy \(decimals(accuracy)), \(decimals(100 * kept, 1))% of event tokens kept, "
            + "\(decimals(trained, 1)) s for \(steps) steps")
      }
    }
    func figure(_ arm: SelectiveVideoArm, _ name: String) -> Double { mean(figures[arm]?[name] ?? []) }
    return Reproduction(
      id: "selective-s4", claim: try Catalog.entry("selective-s4").claim, inequality: Self.inequality,
      holds: Self.holds(
        all: figure(.all, "accuracy"), random: figure(.random, "accuracy"), selected: figure(.selected, "accuracy"),
        kept: figure(.selected, "event_tokens_kept"), tokens: figure(.selected, "tokens") / figure(.all, "tokens")),
      seconds: seconds(since: start), seeds: seeds,
      arms: Self.arms.map { arm in
        var metrics = (figures[arm]?["accuracy"] ?? []).metrics("accuracy", seeds: seeds)
        for name in ["event_tokens_kept", "training_seconds", "parameters", "tokens"] { metrics[name] = figure(arm, name) }
        return Reproduction.Arm(name: arm.rawValue, metrics: metrics)
      },
      note: """
        Scaled down: \(frames) frames of \(places) tokens; two events of a few tokens each decide among four classes. tokens is what passes \
        through the two S4D layers of width 32 (the guide of the selected arm runs over all tokens, forward only).
        """)
  }

  /// Accuracy, and the share of event tokens among those that pass through the layers.
  private func evaluate(_ model: SelectiveVideoArmModel, _ task: SyntheticVideoTask) -> (accuracy: Double, kept: Double) {
    model.eval()
    return withoutGradient {
      var (correct, kept, events) = (0, 0, 0)
      for first in stride(from: 0, to: testVideos, by: 100) {
        let indices = Array(first..<min(first + 100, testVideos))
        let batch = task.batch(.test, indices)
        let (logits, selection) = model(batch.inputs)
        correct += (logits.argmax(axis: -1) .== batch.targets).to(.int64).sum().itemInt()
        let chosen = selection?.indices.toArray(Int.self)
        for (row, index) in indices.enumerated() {
          let tokens = task.example(.test, index).events
          events += tokens.count
          guard let chosen, let count = selection?.count else {
            kept += tokens.count
            continue
          }
          kept += Set(chosen[row * count..<(row + 1) * count]).intersection(tokens).count
        }
      }
      return (Double(correct) / Double(testVideos), Double(kept) / Double(max(1, events)))
    }
  }
}

/// Which tokens pass through the layers.
enum SelectiveVideoArm: String, CaseIterable {
  case all
  case random
  case selected
}

/// An input map, two residual S4D layers on the tokens of an arm, their mean and a linear head.
final class SelectiveVideoArmModel: Module {
  let arm: SelectiveVideoArm
  @Child var input: any LinearLayer
  @Child(key: "first_norm") var firstNorm: LayerNorm
  /// With the selector, which only one arm uses.
  @Child var first: SelectiveS4
  @Child(key: "second_norm") var secondNorm: LayerNorm
  @Child var second: S4
  @Child(key: "final_norm") var finalNorm: LayerNorm
  @Child var head: any LinearLayer
  private let masks: RandomGenerator

  init(_ arm: SelectiveVideoArm, channels: Int, length: Int, generator: RandomGenerator) {
    self.arm = arm
    masks = RandomGenerator(seed: 7)
    super.init()
    let s4 = S4.Configuration(width: 32, state: 32, length: length)
    input = Linear(channels, 32, generator: generator)
    firstNorm = LayerNorm(32)
    first = SelectiveS4(.init(s4: s4, ratio: 0.75, residualGuide: true), generator: generator)
    secondNorm = LayerNorm(32)
    second = S4(s4, generator: generator)
    finalNorm = LayerNorm(32)
    head = Linear(32, 4, generator: generator)
    if arm != .selected { first.selector.freeze() }
  }

  /// Tokens that pass through the layers.
  func tokens(of length: Int) -> Int { arm == .all ? length : first.selector.kept(of: length) }

  /// x: [batch, length, channels] → logits [batch, 4], and which tokens were taken when not all.
  func callAsFunction(_ x: Tensor) -> (logits: Tensor, selection: TokenSelection?) {
    var x = input(x)
    var selection: TokenSelection?
    let normed = firstNorm(x)
    if arm == .all {
      x = x + first.s4(normed)
    } else {
      let (y, chosen) = first.compact(normed, choice: arm == .random ? .random(masks) : .learned)
      x = chosen.gather(x) + y
      selection = chosen
    }
    x = x + second(secondNorm(x))
    return (head(finalNorm(x).mean(axis: 1)), selection)
  }
}

/// Runs the experiment of `selective-s4` as its sheet states it.
public func reproduceSelectiveS4(progress: (String) -> Void) throws -> Reproduction {
  try onOneThread { try SelectiveS4Experiment().run(progress: progress) }
}
