import Foundation
import MartletAdapters

/// Linearising a pretrained decoder (LoLCATs, Zhang et al. 2024, arXiv 2410.10254): its attention becomes ``WindowedLinearAttention``,
/// whose feature maps learn to give the softmax's outputs (``AttentionTransfer``), and then low-rank adapters on the attention's
/// projections repair the rest on the next-token loss. The adapters are merged: the result is a model of the same shape whose
/// state doesn't grow with the context.
///
/// ```swift
/// let linearization = LinearizeWithLoRA(.init(attention: .init(window: 64), transfer: .init(steps: 400), adaptation: .init(steps: 400)))
/// let report = try linearization.run(model, train: train, heldOut: heldOut)
/// ```
public struct LinearizeWithLoRA: Sendable {
  /// The second step: LoRA on the next-token loss.
  public struct Adaptation: Sendable, Equatable {
    public var steps: Int
    public var batchSize: Int
    /// AdamW's, without decay of weights.
    public var learningRate: Double
    public var lora: LoRA.Configuration
    /// Names of the attention's layers that are adapted.
    public var targets: [String]
    /// Whether maps and window factors go on learning; the authors freeze them.
    public var trainsMaps: Bool
    public var plateau: PlateauSchedule
    public var measureEvery: Int
    public var seed: UInt64

    public init(
      steps: Int, batchSize: Int = 1, learningRate: Double = 1e-4, lora: LoRA.Configuration = LoRA.Configuration(),
      targets: [String] = ["query", "key", "value", "output"], trainsMaps: Bool = false, plateau: PlateauSchedule = PlateauSchedule(),
      measureEvery: Int = 25, seed: UInt64 = 0
    ) {
      self.steps = steps
      self.batchSize = batchSize
      self.learningRate = learningRate
      self.lora = lora
      self.targets = targets
      self.trainsMaps = trainsMaps
      self.plateau = plateau
      self.measureEvery = measureEvery
      self.seed = seed
    }
  }

  public struct Options: Sendable, Equatable {
    public var attention: WindowedLinearAttention.Options
    /// Layers to linearise; `nil` for all that see more than the window.
    public var layers: [Int]?
    public var transfer: AttentionTransfer.Options
    public var adaptation: Adaptation
    /// Held-out sequences on which losses are reported.
    public var heldOutLimit: Int
    /// Draws the first maps and adapters.
    public var seed: UInt64

    public init(
      attention: WindowedLinearAttention.Options = .init(), layers: [Int]? = nil, transfer: AttentionTransfer.Options,
      adaptation: Adaptation, heldOutLimit: Int = 64, seed: UInt64 = 0
    ) {
      self.attention = attention
      self.layers = layers
      self.transfer = transfer
      self.adaptation = adaptation
      self.heldOutLimit = heldOutLimit
      self.seed = seed
    }
  }

  /// The parts of the work.
  public enum Stage: String, Sendable, Codable { case measuring, transfer, adaptation }

  public struct Progress: Sendable {
    public let stage: Stage
    public let step: Int
    public let steps: Int
    /// Of the step: the transfer's, or the mean next-token loss.
    public let loss: Double
    public let heldOutLoss: Double?
  }

  /// Mean next-token losses on held-out sequences, in nats; what was trained; how long it took.
  public struct Report: Sendable, Codable, Equatable {
    public var layers: [Int]
    /// The model as it came.
    public var teacherLoss: Double
    /// With maps that have learnt nothing.
    public var swapLoss: Double
    public var transferLoss: Double
    /// With adapters, merged.
    public var adaptedLoss: Double
    /// Held-out losses of the layers' outputs before and after the transfer.
    public var outputLosses: AttentionTransfer.Outcome
    public var parameters: Int
    public var transferParameters: Int
    public var adaptationParameters: Int
    public var tokensTrained: Int
    public var seconds: Double

    /// The share of what the swap lost that was won back: 1 for the teacher's loss.
    public var recovered: Double { (swapLoss - adaptedLoss) / (swapLoss - teacherLoss) }
  }

  public let options: Options

  public init(_ options: Options) { self.options = options }

  /// The mean next-token loss over batches [rows, length], each position of which but the last predicts the next.
  public static func loss(_ model: LanguageModel, _ batches: [Tensor]) -> Double {
    withoutGradient {
      var (sum, rows) = (0.0, 0)
      for batch in batches {
        sum += nextTokenLoss(model, batch).item() * Double(batch.dim(0))
        rows += batch.dim(0)
      }
      return sum / Double(max(1, rows))
    }
  }

  static func nextTokenLoss(_ model: LanguageModel, _ tokens: Tensor) -> Tensor {
    let length = tokens.dim(1)
    let logits = model(tokens.narrowed(axis: 1, start: 0, length: length - 1))
    return crossEntropy(logits.to(.float32), tokens.narrowed(axis: 1, start: 1, length: length - 1))
  }

  /// Linearises a model in place. Its other parameters are frozen, and the adapters merged at the end.
  ///
  /// - Parameters:
  ///   - train: a sixteenth of it chooses the learning rates' plateaus and the values that are kept.
  ///   - heldOut: only measured: what is reported was not chosen by it.
  ///   - folder: keeps what is needed to go on after an interruption, with the same options and sequences; `nil` for nothing.
  ///   - progress: returning false stops; the model is then of no use, but the folder is.
  /// - Returns: `nil` when it was stopped.
  /// - Throws: `ConfigurationError` for options or layers that don't fit; `TensorError` when a loss is not a finite number; errors of
  ///   the folder's files.
  public func run(
    _ model: LanguageModel, train: TokenSequences, heldOut: TokenSequences, folder: String? = nil,
    progress: (Progress) throws -> Bool = { _ in true }
  ) throws -> Report? {
    try options.transfer.validate()
    try options.adaptation.lora.validate()
    let adaptation = options.adaptation
    guard adaptation.steps >= 0, adaptation.batchSize > 0, adaptation.measureEvery > 0, adaptation.learningRate > 0 else {
      throw ConfigurationError("LoRA's steps must not be negative, and batch size, learning rate and measurements must be positive")
    }
    let layers = options.layers ?? model.linearizableLayers(window: options.attention.window)
    guard !layers.isEmpty else {
      throw ConfigurationError(
        "no layer has softmax attention that sees more than \(options.attention.window) positions: nothing to linearise")
    }
    try model.checkLinearizable(layers: layers, options.attention)
    let start = ContinuousClock.now
    let generator = RandomGenerator(seed: options.seed)
    model.eval()
    model.freeze()
    let (learnt, choosing) = try train.settingAside(1.0 / 16)
    let batches = heldOut.batches(size: adaptation.batchSize, limit: options.heldOutLimit)
    guard try progress(Progress(stage: .measuring, step: 0, steps: 2, loss: .nan, heldOutLoss: nil)) else { return nil }
    let parameters = model.parameterCount
    let teacher = Self.loss(model, batches)
    try model.linearize(layers: layers, options.attention, generator: generator)
    model.eval()
    guard try progress(Progress(stage: .measuring, step: 1, steps: 2, loss: teacher, heldOutLoss: teacher)) else { return nil }
    let swap = Self.loss(model, batches)

    let file = folder.map { TransferFile($0 + "/transfer.safetensors") }
    let outcome = try AttentionTransfer(options.transfer).run(model, train: learnt, heldOut: choosing, saved: file) {
      try progress(Progress(stage: .transfer, step: $0.step, steps: $0.steps, loss: $0.loss, heldOutLoss: $0.heldOutLoss))
    }
    guard let outcome else { return nil }
    let transferCount = AttentionTransfer.parameters(of: AttentionTransfer.layers(of: model)).reduce(0) { $0 + $1.tensor.count }
    let transferred = Self.loss(model, batches)

    let paths = layers.flatMap { layer in adaptation.targets.map { "backbone.blocks.\(layer).mixer.\($0)" } }
    try model.attachAdapters(to: paths) { try LoRA(adaptation.lora, for: $0, generator: generator) }
    if adaptation.trainsMaps {
      for (_, tensor) in AttentionTransfer.parameters(of: AttentionTransfer.layers(of: model)) { tensor.requiresGradient = true }
    }
    let adaptationCount = model.trainableParameters().reduce(0) { $0 + $1.tensor.count }
    let chosen = choosing.batches(size: adaptation.batchSize, limit: options.heldOutLimit)
    guard try adapt(model, learnt, chosen, folder, progress) else { return nil }
    try model.mergeAdapters()
    model.eval()
    let adapted = Self.loss(model, batches)
    let transferTokens = options.transfer.steps * options.transfer.batchSize * train.length
    return Report(
      layers: layers, teacherLoss: teacher, swapLoss: swap, transferLoss: transferred, adaptedLoss: adapted, outputLosses: outcome,
      parameters: parameters, transferParameters: transferCount, adaptationParameters: adaptationCount,
      tokensTrained: transferTokens + adaptation.steps * adaptation.batchSize * train.length,
      seconds: Double((ContinuousClock.now - start) / .milliseconds(1)) / 1000)
  }

  /// Trains what is trainable on the next-token loss; the values of the lowest loss on what was set aside are kept. False when stopped.
  private func adapt(
    _ model: LanguageModel, _ train: TokenSequences, _ heldOut: [Tensor], _ folder: String?, _ progress: (Progress) throws -> Bool
  ) throws -> Bool {
    let c = options.adaptation
    guard c.steps > 0 else { return true }
    let parameters = model.trainableParameters()
    let optimizer = AdamW([ParameterGroup("adapters", parameters)], learningRate: c.learningRate, .init(weightDecay: 0))
    let file = folder.map { TransferFile($0 + "/adaptation.safetensors") }
    let order = BatchOrder(count: train.count)
    var state = TransferFile.State(step: 0, plateau: c.plateau, heldOutLoss: nil, best: nil, before: [:])
    if let saved = try file?.load(group: 0, parameters, optimizer) { state = saved }
    func measure() {
      let loss = Self.loss(model, heldOut)
      state.heldOutLoss = loss
      if loss < state.best?.loss ?? .infinity {
        state.best = (loss, withoutGradient { parameters.map { $0.tensor.detached().copy() } })
      }
    }
    if state.step == 0 { measure() }
    while state.step < c.steps {
      model.train()
      optimizer.scheduleFactor = state.plateau.factor
      let loss = Self.nextTokenLoss(
        model, train.batch(order.indices(step: state.step, size: c.batchSize, seed: c.seed &+ 1)))
      let value = loss.item()
      guard value.isFinite else { throw TensorError("LoRA diverged: the loss of step \(state.step) is \(value)") }
      loss.backward()
      optimizer.step()
      optimizer.zeroGradients()
      model.eval()
      state.step += 1
      let isMeasured = state.step % c.measureEvery == 0 || state.step == c.steps
      if isMeasured {
        measure()
        state.plateau.update(state.heldOutLoss ?? .infinity)
      }
      let goesOn = try progress(
        Progress(stage: .adaptation, step: state.step, steps: c.steps, loss: value, heldOutLoss: state.heldOutLoss))
      if isMeasured || !goesOn { try file?.save(group: 0, state, parameters, optimizer, finished: []) }
      guard goesOn else { return false }
    }
    if let best = state.best {
      withoutGradient { for (parameter, value) in zip(parameters, best.values) { parameter.tensor.copyInPlace(value) } }
    }
    return true
  }
}
