import Foundation
import MartletTraining

/// The experiment of `sgconv`, *long-filter identification*: how well is a long filter that decays learned from a few noisy sequences?
///
/// The true filter is h_l ∝ Σ_{i=1..4} cos(2π f_i log₂(1 + l/8) + φ_i)/(8 + l) with f_i uniform on 0.3…1.1 and norm 1; its output for white
/// noise is seen with noise of deviation ½. Three kernels are fitted, without a skip term: SGConv's, the same without decay over the
/// scales (α = 1), and one free number for each tap, judged at its best step.
struct SGConvExperiment {
  var seeds = [0, 1, 2]
  var steps = 400
  /// The step at which the two decays are compared.
  var earlyStep = 200
  var length = 1024
  var dimension = 16
  var learningRate = 3e-2
  var freeLearningRate = 3e-3
  var trainingSequences = 4
  var testSequences = 16
  var noise = 0.5

  static let inequality = "error(sgconv) <= 0.25 * best_error(free) and early_error(sgconv) <= 0.7 * early_error(no decay)"

  /// Whether the claim holds for mean errors.
  static func holds(sgconv: Double, freeBest: Double, early: Double, earlyWithoutDecay: Double) -> Bool {
    sgconv <= 0.25 * freeBest && early <= 0.7 * earlyWithoutDecay
  }

  /// One number for each tap, 0 at the start.
  final class FreeKernel: Module {
    @Parameter var weight: Tensor

    init(length: Int) {
      super.init()
      weight = Tensor.zeros([1, length])
    }
  }

  /// White noise, what the filter makes of it, and what is seen of that.
  struct Data {
    let filter: Tensor
    let inputs, observed, testInputs, testOutputs: Tensor
  }

  func data(seed: UInt64) -> Data {
    let generator = RandomGenerator(seed: seed)
    let frequencies = Tensor.random([4, 1], dtype: .float64, generator: generator) * 0.8 + 0.3
    let phases = Tensor.random([4, 1], dtype: .float64, generator: generator) * (2 * Double.pi)
    let l = Tensor.arange(0, Double(length), dtype: .float64)
    let octaves = (l * 0.125 + 1.0).log2()
    let waves = (frequencies * octaves * (2 * Double.pi) + phases).cos() / (l + 8.0)
    let h = waves.sum(axis: 0, keepDims: true)
    let filter = (h / h.norm()).to(.float32)  // [1, length]
    let inputs = Tensor.randomNormal([trainingSequences, 1, length], generator: generator)
    let testInputs = Tensor.randomNormal([testSequences, 1, length], generator: generator)
    let seen = Tensor.randomNormal([trainingSequences, 1, length], generator: generator) * noise
    return withoutGradient {
      Data(
        filter: filter, inputs: inputs, observed: longConvolution(inputs, filter) + seen, testInputs: testInputs,
        testOutputs: longConvolution(testInputs, filter))
    }
  }

  /// Mean squared error of the noiseless test outputs after each step, from before the first on.
  func errors(_ model: Module, _ data: Data, learningRate: Double, kernel: () -> Tensor) throws -> [Double] {
    var errors: [Double] = []
    func measure() {
      errors.append(withoutGradient { (longConvolution(data.testInputs, kernel()) - data.testOutputs).square().mean().item() })
    }
    try ExperimentLoop(steps: steps, learningRate: learningRate, weightDecay: 0).train(model) { _ in
      measure()
      return (longConvolution(data.inputs, kernel()) - data.observed).square().mean()
    }
    measure()
    return errors
  }

  func run(progress: (String) -> Void) throws -> Reproduction {
    let start = ContinuousClock.now
    var final: [String: [Double]] = [:]
    var early: [String: [Double]] = [:]
    var best: [String: [Double]] = [:]
    var parameters: [String: Int] = [:]
    for seed in seeds {
      let data = data(seed: UInt64(seed))
      func record(_ name: String, _ model: Module, _ rate: Double, _ kernel: () -> Tensor) throws {
        let errors = try errors(model, data, learningRate: rate, kernel: kernel)
        final[name, default: []].append(errors[steps])
        early[name, default: []].append(errors[min(earlyStep, steps)])
        best[name, default: []].append(errors.min() ?? .nan)
        parameters[name] = model.parameterCount
        progress(
          "seed \(seed), \(name): error \(decimals(errors[steps], 4)) after \(steps) steps, best \(decimals(errors.min() ?? .nan, 4)), "
            + "\(decimals(seconds(since: start), 0)) s")
      }
      for (name, multiplier) in [("sgconv", 2.0), ("no decay", 1.0)] {
        let kernel = MultiScaleKernel(
          .init(width: 1, length: length, dimension: dimension, decayRange: multiplier...multiplier),
          generator: RandomGenerator(seed: UInt64(seed)))
        try record(name, kernel, learningRate) { kernel(length: length)[0] }
      }
      let free = FreeKernel(length: length)
      try record("free", free, freeLearningRate) { free.weight }
    }
    func average(_ figures: [String: [Double]], _ name: String) -> Double { mean(figures[name] ?? []) }
    return Reproduction(
      id: "sgconv", claim: try Catalog.entry("sgconv").claim, inequality: Self.inequality,
      holds: Self.holds(
        sgconv: average(final, "sgconv"), freeBest: average(best, "free"), early: average(early, "sgconv"),
        earlyWithoutDecay: average(early, "no decay")), seconds: seconds(since: start), seeds: seeds,
      arms: ["sgconv", "no decay", "free"].map { name in
        var metrics = (final[name] ?? []).metrics("error", seeds: seeds)
        for (other, value) in (early[name] ?? []).metrics("early_error", seeds: seeds) { metrics[other] = value }
        for (other, value) in (best[name] ?? []).metrics("best_error", seeds: seeds) { metrics[other] = value }
        metrics["parameters"] = Double(parameters[name] ?? 0)
        return Reproduction.Arm(name: name, metrics: metrics)
      },
      note: """
        Scaled down to one filter of \(length) taps: error is the mean squared error of its noiseless output (whose variance is near 1) on \
        \(testSequences) new sequences after \(steps) steps on \(trainingSequences), early_error that at step \(earlyStep), best_error the least at any step.
        """)
  }
}

/// Runs the experiment of `sgconv` as its sheet states it.
public func reproduceSGConv(progress: (String) -> Void) throws -> Reproduction {
  try onOneThread { try SGConvExperiment().run(progress: progress) }
}
