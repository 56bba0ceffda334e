import Foundation
import MartletTraining
import Testing

@Suite struct LinearizationTests {
  private func base(seed: UInt64 = 0, layers: Int = 2) throws -> LanguageModel {
    let model = try LanguageModel(
      BackboneConfiguration(
        input: .tokens(vocabulary: 40), width: 16, layers: layers, heads: 2, mixers: [MixerChoice("softmax", options: ["kv_heads": 1])],
        feedForward: .swiglu, norm: .rms, isCausal: true, length: 64),
      generator: RandomGenerator(seed: seed))
    // Logits and attention that differ clearly between positions.
    withoutGradient {
      for (name, tensor) in model.parameters() where name.hasSuffix("weight") && tensor.rank == 2 { tensor.multiplyInPlace(3.0) }
    }
    model.eval()
    return model
  }

  private func linearized(_ model: LanguageModel, window: Int = 4) throws -> LanguageModel {
    try model.linearize(
      layers: Array(model.backbone.blocks.indices), .init(window: window, features: 6), generator: RandomGenerator(seed: 1))
    return model
  }

  private func sequences(_ rows: Int, length: Int = 24, seed: UInt64 = 3) throws -> TokenSequences {
    var random = SeededRandom(seed: seed)
    return try TokenSequences((0..<(rows * length)).map { _ in random.integer(below: 40) }, length: length)
  }

  // MARK: Check 4

  @Test func inTeacherModeOutputsAreTheBaseModelsToTheBit() throws {
    let base = try base()
    let tokens = try sequences(2).batch(0..<2)
    let expected = withoutGradient { base.backbone(tokens) }
    let student = try linearized(try self.base())
    let plain = withoutGradient { student.backbone(tokens) }
    #expect((plain - expected).abs().max().item() > 1e-4, "the swap itself must change the outputs")
    let (outputs, loss) = AttentionTransfer(.init(steps: 0)).teacherOutputs(student, tokens)
    #expect((outputs - expected).abs().max().item() == 0)
    #expect(loss.item() > 0)
    #expect(student.backbone.blocks.allSatisfy { $0.mixer is WindowedLinearAttention }, "the layers are put back")
  }

  @Test func onlyMapsAndFactorsReceiveGradients() throws {
    let student = try linearized(try base())
    student.unfreeze()
    let tokens = try sequences(1).batch(0..<1)
    AttentionTransfer(.init(steps: 0, crossEntropyFactor: 0.5)).teacherOutputs(student, tokens).loss.backward()
    for (name, tensor) in student.parameters() {
      let learns = name.contains("_map.") || name.hasSuffix("window_factor")
      #expect((tensor.gradient != nil) == learns, "\(name)")
      if learns { #expect(tensor.gradient!.abs().max().item() > 0, "\(name)") }
    }
  }

  @Test func theLossIsOfHeadsBeforeTheOutputProjection() throws {
    let student = try linearized(try base())
    let layer = try #require(student.backbone.blocks[0].mixer as? WindowedLinearAttention)
    let x = Tensor.randomNormal([2, 20, 16], generator: RandomGenerator(seed: 4))
    withoutGradient {
      let (q, k, v) = layer.projections(x)
      let error = (layer.attend(q, k, v) - layer.softmaxOutputs(q, k, v)).square().mean().item() * 1000
      let found = AttentionTransfer(.init(steps: 0)).loss(layer, x).item()
      #expect(abs(found - error) <= 1e-6 * error, "\(found), expected \(error)")
      // The projection doesn't take part.
      layer.output = Linear(16, 16, bias: false, generator: RandomGenerator(seed: 9))
      #expect(AttentionTransfer(.init(steps: 0)).loss(layer, x).item() == found)
    }
  }

  @Test func theTransferLowersEveryLayersLoss() throws {
    for layersAtATime in [nil, 1] as [Int?] {
      let student = try linearized(try base())
      student.freeze()
      let before = student.stateDictionary().mapValues { $0.copy() }
      let outcome = try #require(
        try AttentionTransfer(.init(steps: 30, batchSize: 2, measureEvery: 10, layersAtATime: layersAtATime)).run(
          student, train: try sequences(20), heldOut: try sequences(4, seed: 8)))
      #expect(outcome.before.keys.sorted() == [0, 1])
      for layer in 0..<2 {
        let (old, new) = (outcome.before[layer]!, outcome.after[layer]!)
        #expect(new < 0.9 * old, "layer \(layer), \(layersAtATime ?? 0) at a time: \(old) became \(new)")
      }
      for (name, tensor) in student.stateDictionary() {
        let learns = name.contains("_map.") || name.hasSuffix("window_factor")
        #expect(((tensor - before[name]!).abs().max().item() > 0) == learns, "\(name)")
      }
    }
  }

  @Test func layersAtATimeLearnAsAllAtOnce() throws {
    // Teacher forcing makes the layers independent: only rounding of the group's mean gradient, which AdamW divides out, differs.
    func maps(_ layersAtATime: Int?) throws -> [Tensor] {
      let student = try linearized(try base())
      _ = try AttentionTransfer(.init(steps: 5, batchSize: 2, layersAtATime: layersAtATime)).run(
        student, train: try sequences(20), heldOut: try sequences(4, seed: 8))
      return student.parameters().filter { $0.name.contains("_map.") }.map(\.tensor)
    }
    for (a, b) in zip(try maps(nil), try maps(1)) {
      let error = (a - b).abs().max().item()
      #expect(error <= 1e-3, "\(error), allowed 1e-3")
    }
  }

  // MARK: Check 5

  @Test func newAdaptersChangeNothingAndMergedOnesAreThemselves() throws {
    let student = try linearized(try base())
    let tokens = try sequences(2).batch(0..<2)
    let before = withoutGradient { student(tokens) }
    let paths = student.linearPaths { $0.contains("mixer.") }
    #expect(paths.count == 8)
    try student.attachAdapters(to: paths) { try LoRA(.init(rank: 2), for: $0, generator: RandomGenerator(seed: 5)) }
    student.eval()
    let same = (withoutGradient { student(tokens) } - before).abs().max().item()
    #expect(same == 0, "with B = 0 the logits change by \(same)")
    withoutGradient {
      for (_, layer) in student.adaptedLayers {
        let up = (layer.adapter as! LoRA).up
        up.copyInPlace(Tensor.randomNormal(up.shape, generator: RandomGenerator(seed: 6)) * 0.05)
      }
    }
    let adapted = withoutGradient { student(tokens) }
    try student.mergeAdapters()
    let merged = withoutGradient { student(tokens) }
    let error = (merged - adapted).abs().max().item() / adapted.abs().max().item()
    #expect(error <= 1e-5, "merging changes the logits by \(error), allowed 1e-5")
    #expect((adapted - before).abs().max().item() > 1e-3)
  }

  // MARK: The whole

  private func procedure(transfer: Int = 12, adaptation: Int = 12) -> LinearizeWithLoRA {
    LinearizeWithLoRA(
      .init(
        attention: .init(window: 4, features: 6), transfer: .init(steps: transfer, batchSize: 2, measureEvery: 4),
        adaptation: .init(steps: adaptation, batchSize: 2, learningRate: 5e-3, lora: .init(rank: 2), measureEvery: 4), heldOutLimit: 4))
  }

  @Test func theProcedureReportsEveryStage() throws {
    let model = try base()
    let train = try sequences(20)
    // Measured on the very rows that the procedure sets aside, the kept values are at least as good as those they began from.
    let heldOut = try train.settingAside(1.0 / 16).aside
    let teacher = LinearizeWithLoRA.loss(model, heldOut.batches(size: 2, limit: 4))
    var stages: [String] = []
    let report = try #require(
      try procedure().run(model, train: train, heldOut: heldOut) {
        if stages.last != $0.stage.rawValue { stages.append($0.stage.rawValue) }
        return true
      })
    #expect(stages == ["measuring", "transfer", "adaptation"])
    #expect(report.layers == [0, 1])
    #expect(report.teacherLoss == teacher)
    #expect(report.adaptedLoss <= report.transferLoss + 1e-6, "the lowest loss on what was set aside is kept")
    #expect(report.adaptedLoss == LinearizeWithLoRA.loss(model, heldOut.batches(size: 2, limit: 4)))
    #expect(report.transferParameters == 2 * (2 * 2 * 8 * 6 + 2))
    #expect(model.adaptedLayers.isEmpty)
    #expect(report.tokensTrained == 24 * 2 * 24)
  }

  @Test func anInterruptedRunGoesOnToTheSameEnd() throws {
    func run(stoppingAt stops: [Int]) throws -> (LinearizeWithLoRA.Report?, [String: Tensor]) {
      let folder = FileManager.default.temporaryDirectory.appendingPathComponent("martlet-\(UUID().uuidString)").path
      try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
      defer { try? FileManager.default.removeItem(atPath: folder) }
      for stop in stops + [.max] {
        // A new process: the model begins as it was.
        let model = try base()
        var steps = 0
        let report = try procedure().run(model, train: try sequences(20), heldOut: try sequences(4, seed: 8), folder: folder) { progress in
          if progress.stage != .measuring { steps += 1 }
          return steps < stop
        }
        if stop == .max { return (report, model.stateDictionary()) }
        #expect(report == nil)
      }
      fatalError("the last run is not stopped")
    }
    let (whole, expected) = try run(stoppingAt: [])
    let (resumed, found) = try run(stoppingAt: [5, 3, 12])
    #expect(resumed?.adaptedLoss == whole?.adaptedLoss && resumed?.transferLoss == whole?.transferLoss)
    #expect(Set(found.keys) == Set(expected.keys))
    for (name, tensor) in found { #expect((tensor - expected[name]!).abs().max().item() == 0, "\(name)") }
  }

  @Test func whatCannotBeLinearisedIsRefused() throws {
    let gla = try LanguageModel(
      BackboneConfiguration(
        input: .tokens(vocabulary: 40), width: 16, layers: 1, heads: 2, mixers: [MixerChoice("gla")], isCausal: true, length: 64),
      generator: RandomGenerator(seed: 0))
    let (train, heldOut) = (try sequences(4), try sequences(2))
    let error = #expect(throws: ConfigurationError.self) { _ = try procedure().run(gla, train: train, heldOut: heldOut) }
    #expect(error?.message.contains("nothing to linearise") == true)
    #expect(throws: ConfigurationError.self) { try gla.linearize(layers: [0], .init(), generator: RandomGenerator(seed: 0)) }
    #expect(throws: ConfigurationError.self) { try base().linearize(layers: [2], .init(), generator: RandomGenerator(seed: 0)) }
    #expect(throws: DataError.self) { _ = try TokenSequences.split(Array(0..<30), length: 24) }
    #expect(throws: DataError.self) { _ = try TokenSequences(Array(0..<10), length: 24) }
    let (first, second) = try TokenSequences.split(Array(0..<100), length: 10, heldOut: 0.3)
    #expect(first.count == 7 && second.tokens.first == 70)
    let (rest, aside) = try first.settingAside(0.1)
    #expect(rest.count == first.count - 1 && aside.tokens == Array(first.tokens.suffix(10)))
  }
}
