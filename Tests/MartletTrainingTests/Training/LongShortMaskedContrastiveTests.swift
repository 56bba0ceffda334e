import Foundation
import Testing

@testable import MartletTraining

@Suite struct LongShortMaskedContrastiveTests {
  private func procedure(ratio: Double = 0.5, momentum: Double = 0.9, queue: Int = 0) throws
    -> LongShortMaskedContrastive<SelectiveVideoTrunk>
  {
    try LongShortMaskedContrastive(
      embedding: 8, temperature: 0.2, momentum: momentum, queueSize: queue, generator: RandomGenerator(seed: 1)
    ) {
      try SelectiveVideoTrunk(.init(channels: 6, width: 16, stages: 1, ratio: ratio, state: 8, length: 16), generator: $0)
    }
  }

  private func clip(_ seed: UInt64, tokens: Int = 16) -> Tensor {
    Tensor.randomNormal([4, tokens, 6], generator: RandomGenerator(seed: seed))
  }

  @Test func clipsComeFromTheirVideoInOrder() throws {
    // Token t of frame f holds f and t.
    let video = stacked((0..<6).flatMap { f in (0..<2).map { t in Tensor([Float(f), Float(t)]) } }).expandedDimension(0)
    let clips = try LongShortClips(frames: 6, places: 2, longFrames: 3, shortFrames: 2)
    let (long, short) = clips(concatenated([video, video]), generator: RandomGenerator(seed: 2))
    #expect(long[0].toArray(Int.self) == [0, 0, 0, 1, 2, 0, 2, 1, 4, 0, 4, 1])
    for row in 0..<2 {
      let values = short[row].toArray(Int.self)
      let start = values[0]
      #expect(values == [start, 0, start, 1, start + 1, 0, start + 1, 1])
    }
    let starts = (0..<40).map { clips(video, generator: RandomGenerator(seed: UInt64($0))).short[0, 0, 0].itemInt() }
    #expect(Set(starts) == [0, 1, 2, 3, 4])
    #expect(throws: ConfigurationError.self) { try LongShortClips(frames: 4, places: 2, longFrames: 5) }
  }

  @Test func theLossIsTheSumOfBothDirections() throws {
    let procedure = try procedure(ratio: 0)
    let (long, short) = (clip(3), clip(4, tokens: 8))
    func masking() -> RandomGenerator { RandomGenerator(seed: 5) }
    let found = procedure.loss(long: long, short: short, masking: masking()).item()
    func nce(_ a: Tensor, _ b: Tensor) -> Double {
      contrastiveLoss(
        queries: procedure.query(a, masking: masking()), keys: procedure.key.module(b, masking: masking()), temperature: 0.2
      ).item()
    }
    let expected = nce(long, short) + nce(short, long)
    #expect(abs(found - expected) <= 1e-5, "\(found), expected \(expected)")
    // Nothing is dropped here, so exchanging the clips changes nothing.
    #expect(abs(procedure.loss(long: short, short: long, masking: masking()).item() - found) <= 1e-5)
    #expect(abs(procedure.query(long, masking: masking()).square().sum(axis: -1).max().item() - 1) <= 1e-5)
  }

  @Test func theKeyEncoderFollowsAfterTheStepOnly() throws {
    let procedure = try procedure()
    func key() -> [String: Tensor] { procedure.stateDictionary().filter { $0.key.hasPrefix("key.") }.mapValues { $0.copy() } }
    let start = key()
    procedure.loss(long: clip(3), short: clip(4), masking: RandomGenerator(seed: 5)).backward()
    for (name, tensor) in key() { #expect(tensor.isEqual(to: start[name]!), "\(name) changed in the forward pass") }
    #expect(!procedure.parameters().contains { $0.name.hasPrefix("key.") })
    for (name, parameter) in procedure.parameters() where !name.contains("selector") {
      #expect((parameter.gradient?.abs().max().item() ?? 0) > 0, "\(name) has no gradient")
      withoutGradient { parameter.addInPlace(parameter.gradient!, scale: -0.1) }
    }
    for listener in procedure.optimizerStepListeners() { listener.optimizerDidStep() }
    for (name, tensor) in procedure.query.stateDictionary() where !name.contains("guide") && tensor.dtype == .float32 {
      let expected = start["key." + name]! * 0.9 + tensor * 0.1
      let error = (key()["key." + name]! - expected).abs().max().item()
      #expect(error <= 1e-6, "\(name): off by \(error)")
    }
  }

  @Test func theQueueHoldsTheKeysOfTheLastSteps() throws {
    let procedure = try procedure(queue: 10)
    func step(_ seed: UInt64) {
      _ = procedure.loss(long: clip(seed), short: clip(seed + 100), masking: RandomGenerator(seed: seed))
      for listener in procedure.optimizerStepListeners() { listener.optimizerDidStep() }
    }
    let before = procedure.loss(long: clip(1), short: clip(2), masking: RandomGenerator(seed: 1)).item()
    #expect(before.isFinite && procedure.queueState.toArray(Int.self) == [0, 0], "the loss alone fills nothing")
    // The keys of that loss and of the next: sixteen in a queue of ten.
    step(3)
    #expect(procedure.queueState.toArray(Int.self) == [10, 6])
    let lengths = procedure.queue!.square().sum(axis: -1)
    #expect((lengths - 1.0).abs().max().item() <= 1e-5)
    let held = procedure.queue!.copy()
    _ = procedure.evaluationLoss(long: clip(8), short: clip(9), masking: RandomGenerator(seed: 2))
    for listener in procedure.optimizerStepListeners() { listener.optimizerDidStep() }
    #expect(procedure.queue!.isEqual(to: held), "an evaluation leaves no keys")
  }

  @Test func itTrainsResumesAndBecomesAClassifier() throws {
    let task = try SyntheticVideoTask(
      frames: 4, places: 4, channels: 6, counts: SplitCounts(train: 64, validation: 16, test: 16), seed: 1)
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    defer { try? FileManager.default.removeItem(at: folder) }
    func trainer(_ steps: Int, directory: URL?) throws -> (Trainer, LongShortMaskedContrastive<SelectiveVideoTrunk>) {
      let procedure = try procedure(queue: 16)
      let problem = try ContrastiveProblem(
        task, procedure, clips: LongShortClips(frames: 4, places: 4), batchSize: 4, seed: 3, evaluationExamples: 8)
      return (
        Trainer(
          problem,
          TrainerConfiguration(
            slowParameters: DiagonalKernel.slowParameters, budget: .steps(steps), evaluations: 2, checkpointInterval: 0,
            directory: directory)
        ), procedure
      )
    }
    let (whole, straight) = try trainer(8, directory: nil)
    let outcome = try whole.run()
    #expect(outcome.final[MetricName.loss]?.isFinite == true)
    // Stopped in the middle and gone on with: encoder, copy, queue and all.
    let (first, _) = try trainer(8, directory: folder)
    var steps = 0
    first.onProgress = { _ in steps += 1 }
    first.shouldInterrupt = { steps == 5 }
    #expect(throws: InterruptedError.self) { try first.run() }
    let (second, resumed) = try trainer(8, directory: folder)
    _ = try second.run()
    for (name, tensor) in straight.stateDictionary() {
      #expect(tensor.isEqual(to: resumed.stateDictionary()[name]!), "\(name) differs after the interruption")
    }
    let classifier = try SelectiveVideoClassifier(
      .init(channels: 6, width: 16, stages: 1, state: 8, length: 16), classes: 4, generator: RandomGenerator(seed: 9))
    let head = classifier.head.denseWeight().copy()
    try straight.transfer(to: classifier)
    #expect(classifier.head.denseWeight().isEqual(to: head))
    let mixer = classifier.trunk.stages[0].mixer
    #expect(mixer.s4.output.denseWeight().isEqual(to: straight.query.encoder.stages[0].mixer.s4.output.denseWeight()))
    #expect(mixer.guide.module.output.denseWeight().isEqual(to: mixer.s4.output.denseWeight()), "guides start from the pretrained layers")
  }
}
