import Foundation
import Testing

@testable import MartletTraining

@Suite struct SelfPretrainingTests {
  private func configuration(_ input: SequenceInput, causal: Bool = false, mixer: String = "softmax") -> BackboneConfiguration {
    BackboneConfiguration(input: input, width: 16, layers: 1, heads: 2, mixers: [MixerChoice(mixer)], isCausal: causal, length: 32)
  }

  private func tokens(_ seed: UInt64, mask: Tensor? = nil) -> Batch {
    let generator = RandomGenerator(seed: seed)
    // Targets out of any range: a phase that read the labels would trap.
    return Batch(
      inputs: Tensor.randomIntegers(below: 11, [4, 32], generator: generator), mask: mask, targets: Tensor.full([4], 1e9, dtype: .int64))
  }

  @Test func theLossIgnoresWhatIsVisible() throws {
    let model = try SelfPretraining(
      configuration(.tokens(vocabulary: 11)), objective: .masked(ratio: 0.3), generator: RandomGenerator(seed: 0))
    let batch = tokens(1)
    let hidden = model.drawMask(batch, ratio: 0.3, span: 1, generator: RandomGenerator(seed: 2))
    // d loss / d logits is zero at visible positions.
    let x = model.backbone(batch.inputs.maskedFill(hidden, 11)).detached().tracked()
    let loss = crossEntropy(model.head(x), batch.inputs.maskedFill(.!hidden, Double(ignoredTarget)))
    let g = gradient(of: loss, with: [x])[0]!.abs().sum(axis: -1)
    #expect(g.maskedFill(hidden, 0).max().item() == 0)
    #expect(g.maskedFill(.!hidden, 1).min().item() > 0)
    #expect(abs(model.maskedLoss(batch, hidden: hidden).item() - loss.item()) < 1e-6)
  }

  @Test(arguments: [0.1, 0.5]) func theMaskRateIsTheRatioAndChanges(ratio: Double) throws {
    let model = try SelfPretraining(
      configuration(.tokens(vocabulary: 11)), objective: .masked(ratio: ratio), generator: RandomGenerator(seed: 0))
    let batch = Batch(inputs: Tensor.zeros([100, 200], dtype: .int64), targets: Tensor([0]))
    let first = model.drawMask(batch, ratio: ratio, span: 1, generator: RandomGenerator(seed: 1))
    let second = model.drawMask(batch, ratio: ratio, span: 1, generator: RandomGenerator(seed: 2))
    let rate = first.to(.float64).mean().item()
    let sigma = (ratio * (1 - ratio) / 20000).squareRoot()
    #expect(abs(rate - ratio) < 3 * sigma, "rate \(rate), expected \(ratio) ± \(3 * sigma)")
    #expect(!first.isEqual(to: second))
  }

  @Test func spansDoNotOverlapAndKeepTheRate() throws {
    let model = try SelfPretraining(
      configuration(.tokens(vocabulary: 11)), objective: .masked(ratio: 0.25, span: 4), generator: RandomGenerator(seed: 0))
    let batch = Batch(inputs: Tensor.zeros([3, 64], dtype: .int64), targets: Tensor([0]))
    let hidden = model.drawMask(batch, ratio: 0.25, span: 4, generator: RandomGenerator(seed: 5)).to(.int64)
    #expect(hidden.sum(axis: 1).toArray(Int.self) == [16, 16, 16])
    let spans = hidden.reshaped(3, 16, 4).sum(axis: -1)
    #expect(((spans .== 0) .| (spans .== 4)).all().item() == 1)
  }

  @Test func paddingIsNeverAsked() throws {
    let mask = Tensor([20, 32, 5, 9], [4, 1]) .> Tensor.arange(32)
    let model = try SelfPretraining(
      configuration(.tokens(vocabulary: 11)), objective: .masked(ratio: 0.5), generator: RandomGenerator(seed: 0))
    let hidden = model.drawMask(tokens(1, mask: mask), ratio: 0.5, span: 1, generator: RandomGenerator(seed: 3))
    #expect((hidden .& .!mask).any().item() == 0)
  }

  @Test func theCausalTargetIsTheNextInputAndBidirectionalModelsAreRefused() throws {
    #expect(throws: ConfigurationError.self) {
      try SelfPretraining(configuration(.tokens(vocabulary: 11)), objective: .causal, generator: RandomGenerator(seed: 0))
    }
    let model = try SelfPretraining(
      configuration(.tokens(vocabulary: 11), causal: true), objective: .causal, generator: RandomGenerator(seed: 0))
    let batch = tokens(4)
    let logits = model.head(model.backbone(batch.inputs))
    let expected = crossEntropy(logits[.all, ..<31].contiguous(), batch.inputs[.all, 1...].contiguous())
    #expect(abs(model.loss(batch, generator: RandomGenerator(seed: 0)).item() - expected.item()) < 1e-6)
    // The model's prediction at t does not see what it must predict.
    let changed = batch.inputs.copy()
    changed[.all, 20...] = Tensor.zeros([4, 12], dtype: .int64)
    let other = model.head(model.backbone(changed))
    #expect((logits[.all, ..<20] - other[.all, ..<20]).abs().max().item() == 0)
  }

  @Test func transferCopiesTheBodyAndNotTheHead() throws {
    for (input, objective) in [
      (SequenceInput.tokens(vocabulary: 11), DenoisingObjective.masked(ratio: 0.3)),
      (.continuous(channels: 2), .masked(ratio: 0.5)),
    ] {
      let body = configuration(input)
      let pretraining = try SelfPretraining(body, objective: objective, generator: RandomGenerator(seed: 0))
      let model = try TaskModel(body, objective: .classification(classes: 3), generator: RandomGenerator(seed: 9))
      let head = model.head.denseWeight().copy()
      try pretraining.transfer(to: model)
      #expect(model.head.denseWeight().isEqual(to: head))
      let source = pretraining.backbone.stateDictionary()
      for (key, tensor) in model.backbone.stateDictionary() where key != "embedding.weight" && key != "input.weight" {
        #expect(tensor.isEqual(to: source[key]!), "\(key)")
      }
      // An unmasked input gives what it gave with the mask's row or channel.
      switch input {
      case .tokens:
        let batch = tokens(6)
        #expect(model.backbone(batch.inputs).isEqual(to: pretraining.backbone(batch.inputs)))
      case .continuous:
        let x = Tensor.randomNormal([2, 32, 2], generator: RandomGenerator(seed: 7))
        let marked = concatenated([x, Tensor.zeros([2, 32, 1])], axis: -1)
        let difference = (model.backbone(x) - pretraining.backbone(marked)).abs().max().item()
        #expect(difference < 1e-5, "difference \(difference)")
      }
    }
  }

  @Test func continuousValuesAreRestoredByL1AtHiddenPositionsOnly() throws {
    let model = try SelfPretraining(
      configuration(.continuous(channels: 1)), objective: .masked(ratio: 0.5), generator: RandomGenerator(seed: 0))
    let x = Tensor.randomNormal([2, 8, 1], generator: RandomGenerator(seed: 1))
    let batch = Batch(inputs: x, targets: Tensor([0, 0]))
    let hidden = Tensor.zeros([2, 8], dtype: .bool)
    hidden[0, 3] = Tensor(1).to(.bool)
    let marks = hidden.expandedDimension(-1).to(.float32)
    let restored = model.head(model.backbone(concatenated([x * (1.0 - marks), marks], axis: -1)))
    let expected = abs(restored[0, 3, 0].item() - x[0, 3, 0].item())
    #expect(abs(model.maskedLoss(batch, hidden: hidden).item() - expected) < 1e-6)
  }

  @Test(arguments: [2, 5, 30, 150, 1401], [0.1, 0.4, 0.5, 0.6, 0.999]) func bothPhasesTakeTheBudgetOfOne(_ whole: Int, _ fraction: Double) {
    for budget in [TrainingBudget.steps(whole), .positions(whole)] {
      let (first, rest) = budget.divided(fraction)
      func number(_ budget: TrainingBudget) -> Int {
        switch budget {
        case .steps(let n), .positions(let n): n
        case .seconds: -1
        }
      }
      #expect(number(first) + number(rest) == whole, "\(first) and \(rest) of \(budget)")
      #expect(number(first) >= 1 && number(rest) >= 1)
      #expect(abs(Double(number(first)) - Double(whole) * fraction) <= 1)
    }
    guard case .seconds(let a) = TrainingBudget.seconds(10).divided(fraction).first,
      case .seconds(let b) = TrainingBudget.seconds(10).divided(fraction).rest
    else {
      Issue.record("seconds must stay seconds")
      return
    }
    #expect(abs(a + b - 10) <= 1e-12)
  }

  @Test func aTwoLayerHeadStandsOnTheSameBody() throws {
    let body = configuration(.continuous(channels: 2))
    let model = try TaskModel(body, objective: .classification(classes: 3), headWidth: 24, generator: RandomGenerator(seed: 9))
    let x = Tensor.randomNormal([2, 32, 2], generator: RandomGenerator(seed: 7))
    let pooled = model.backbone(x).mean(axis: 1)
    let expected = model.head(model.headHidden!(pooled).relu())
    #expect(model(x).isEqual(to: expected) && model(x).shape == [2, 3])
    let pretraining = try SelfPretraining(body, objective: .masked(ratio: 0.5), generator: RandomGenerator(seed: 0))
    try pretraining.transfer(to: model)
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    defer { try? FileManager.default.removeItem(at: folder) }
    try SavedModel(model, task: "frequency", metrics: [:]).write(model, to: folder)
    #expect(try SavedModel.load(folder).model(x).isEqual(to: model(x)))
    #expect(throws: ConfigurationError.self) {
      try TaskModel(body, objective: .classification(classes: 3), headWidth: 0, generator: RandomGenerator(seed: 9))
    }
  }
}
