import Foundation
import Testing

@testable import MartletTraining

@Suite struct ComparisonTests {
  private func options(_ mixers: [String] = ["softmax", "s4d?state=8"]) throws -> ComparisonOptions {
    ComparisonOptions(
      task: "listops?small&examples=64&heldout=32", mixers: try mixers.map { try MixerPattern(parsing: $0) }, pretraining: .masked,
      budget: .steps(4), parameters: 12_000, lengths: [16, 32], seeds: 1, batchSize: 8, layers: 2, heads: 2, evaluationExamples: 16,
      testExamples: 32)
  }

  @Test(arguments: MixerKind.all.map(\.name)) func parametersAreMatchedWithinTwoPercent(mixer: String) throws {
    let causal = try MixerKind.named(mixer).directions.contains(.causal)
    // The usual 1024 complex states of a channel alone are more than the smaller target.
    let choice = mixer == "dlr" ? MixerChoice(mixer, options: ["state": 64]) : MixerChoice(mixer)
    for target in [30_000, 300_000] {
      let (configuration, count) = try ParameterMatching.match(
        BackboneConfiguration(
          input: .tokens(vocabulary: 17), width: 8, layers: 2, heads: 4, mixers: [choice], isCausal: causal, length: 64),
        objective: .classification(classes: 10), target: target)
      let built = try TaskModel(
        configuration, objective: .classification(classes: 10), generator: RandomGenerator(seed: 0)
      ).parameterCount
      #expect(built == count)
      let error = abs(Double(count - target)) / Double(target)
      #expect(error <= 0.02, "\(mixer): \(count) parameters for \(target), \(error * 100) % off")
    }
  }

  /// A hybrid is one arm under its text, matched in size, and goes on where it stopped.
  @Test func aPatternIsAnArm() throws {
    try withFolder { folder in
      var options = try options(["deltanet*2+softmax", "gla"])
      options.pretraining = .none
      options.lengths = []
      // Too few layers for the pattern.
      let error = #expect(throws: ConfigurationError.self) { try options.validate() }
      #expect(error?.message.contains("deltanet*2+softmax") == true)
      options.layers = 4
      let comparison = try Comparison(options, directory: folder, command: "martlet compare …")
      let results = try comparison.run()
      #expect(results.arms.map(\.mixer) == ["deltanet*2+softmax", "gla"])
      for arm in results.arms { #expect(abs(Double(arm.parameters) / 12_000 - 1) <= 0.02, "\(arm.mixer): \(arm.parameters)") }
      // The second start reads what is finished.
      let again = try Comparison(options, directory: folder, command: "martlet compare …").run()
      #expect(again.arms.map { $0.metrics[MetricName.trainSeconds] } == results.arms.map { $0.metrics[MetricName.trainSeconds] })
      let report = try String(contentsOf: folder.appendingPathComponent("report.html"), encoding: .utf8)
      #expect(report.contains("deltanet*2+softmax"))
    }
  }

  @Test func allArmsAreTrainedAndWritten() throws {
    try withFolder { folder in
      let comparison = try Comparison(try options(), directory: folder, command: "martlet compare …")
      let results = try comparison.run()
      #expect(
        results.arms.map { "\($0.mixer) \($0.pretrained)" } == [
          "softmax false", "s4d?state=8 false", "softmax true", "s4d?state=8 true",
        ])
      for arm in results.arms {
        #expect(arm.metrics[MetricName.steps] == 4, "both phases of a pretrained arm share the budget")
        #expect(arm.metrics[MetricName.accuracy].map { (0...1).contains($0) } == true)
        #expect(arm.curve.last?.step == 4)
      }
      #expect(results.arms[0].scaling.map(\.length) == [16, 32])
      let read = try ComparisonResults.read(folder.path)
      #expect(read.arms.count == 4)
      let report = try String(contentsOf: folder.appendingPathComponent("report.html"), encoding: .utf8)
      #expect(report.contains("softmax") && report.contains("<svg"))
    }
  }

  @Test func anInterruptedComparisonGoesOn() throws {
    try withFolder { folder in
      let whole = try Comparison(try options(), directory: folder.appendingPathComponent("whole"), command: "c").run()
      let place = folder.appendingPathComponent("parts")
      let first = try Comparison(try options(), directory: place, command: "c")
      var steps = 0
      first.onEvent = { if case .progress = $0 { steps += 1 } }
      first.shouldInterrupt = { steps >= 6 }  // in the second arm
      #expect(throws: InterruptedError.self) { try first.run() }
      let second = try Comparison(try options(), directory: place, command: "c")
      var repeated = 0
      second.onEvent = { if case .progress = $0 { repeated += 1 } }
      let results = try second.run()
      #expect(repeated == 16 - 6, "no step is trained twice")
      for (a, b) in zip(whole.arms, results.arms) {
        #expect(a.metrics[MetricName.loss] == b.metrics[MetricName.loss], "\(a.mixer) \(a.pretrained)")
      }
    }
  }

  @Test func aFolderOfOtherOptionsIsRefused() throws {
    try withFolder { folder in
      _ = try Comparison(try options(), directory: folder, command: "c")
      var other = try options()
      other.seeds = 2
      let error = #expect(throws: FileError.self) { try Comparison(other, directory: folder, command: "c") }
      #expect(error?.description.contains("seeds") == true)
    }
  }

  @Test func armsSeeTheSameDataInTheSameOrder() throws {
    let a = try TaskSpecification("listops?small&examples=64&heldout=32").make()
    let b = try TaskSpecification("listops?small&examples=64&heldout=32").make()
    for step in [0, 7, 100] {
      let (x, y) = (try a.trainingBatch(step: step, size: 8, seed: 0), try b.trainingBatch(step: step, size: 8, seed: 0))
      #expect(x.inputs.isEqual(to: y.inputs) && x.targets.isEqual(to: y.targets))
    }
  }
}
