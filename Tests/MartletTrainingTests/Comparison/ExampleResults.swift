import Foundation

@testable import MartletTraining

/// Results made of round numbers, so that the tests' expectations can be worked out by hand.
func exampleResults(seeds: [Int] = [0, 1, 2], divergedSeed: Int? = nil) -> ComparisonResults {
  // Accuracy from scratch and after self-pretraining, training seconds, and the exponent of time against length.
  let mixers: [(name: String, scratch: Double, pretrained: Double, seconds: Double, exponent: Double)] = [
    ("softmax", 0.60, 0.70, 200, 2), ("gla", 0.62, 0.62, 100, 1), ("s4", 0.50, 0.71, 150, 1),
  ]
  var arms: [ComparisonArm] = []
  for (index, mixer) in mixers.enumerated() {
    for pretrained in [false, true] {
      for seed in seeds {
        let accuracy = (pretrained ? mixer.pretrained : mixer.scratch) + [-0.01, 0, 0.01][seed % 3]
        let isDiverged = mixer.name == "s4" && !pretrained && seed == divergedSeed
        let lengths = [512, 1024, 2048, 4096]
        arms.append(
          ComparisonArm(
            mixer: mixer.name, pretrained: pretrained, seed: seed, parameters: 100_000 + 500 * index, width: 64,
            metrics: [
              MetricName.accuracy: isDiverged ? .nan : accuracy, MetricName.loss: isDiverged ? .nan : 2 - accuracy,
              MetricName.trainSeconds: mixer.seconds, MetricName.steps: 100, MetricName.trainTokensPerSecond: 1e6 / mixer.seconds,
              MetricName.inferenceTokensPerSecond: 4e6 / mixer.seconds, MetricName.peakTensorBytes: Double(index + 1) * 1e8,
            ],
            curve: (1...10).map { step in
              let isPast = isDiverged && step > 5
              return CurvePoint(
                step: step * 10, seconds: mixer.seconds * Double(step) / 10, trainLoss: isPast ? .nan : 2 - Double(step) / 10,
                validationMetric: step % 5 == 0 ? (isPast ? .nan : accuracy) : nil)
            },
            scaling: lengths.map { length in
              if mixer.exponent == 2 && length == 4096 { return ScalingPoint(length: length, note: "needs 9 GB, the limit is 8 GB") }
              let relative = Double(length) / 1024
              return ScalingPoint(
                length: length, seconds: 0.010 * pow(relative, mixer.exponent) * (mixer.exponent == 1 ? 1.5 : 1),
                bytes: Int(1e6 * pow(relative, mixer.exponent)))
            }))
      }
    }
  }
  return ComparisonResults(
    task: "recall", taskSummary: "Look up values by their keys.", budget: "100 steps", command: "martlet compare --task recall",
    machine: MachineDescription(processor: "Test", cores: 2, memoryBytes: 8_000_000_000, system: "Test OS", swift: "6", libtorch: "2.13.0"),
    version: "0.1.0", date: Date(timeIntervalSince1970: 1_700_000_000), lengths: [512, 1024, 2048, 4096], arms: arms,
    primaryMetric: MetricName.accuracy, primaryMetricHigherIsBetter: true)
}

/// A folder for one test, removed at its end.
func withTemporaryFolder<Result>(_ body: (String) throws -> Result) throws -> Result {
  let folder = FileManager.default.temporaryDirectory.appendingPathComponent("martlet-\(UUID().uuidString)").path
  try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
  defer { try? FileManager.default.removeItem(atPath: folder) }
  return try body(folder)
}
