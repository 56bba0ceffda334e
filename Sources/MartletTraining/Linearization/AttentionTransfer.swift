import Foundation

/// The first step of linearising (LoLCATs, Zhang et al. 2024, arXiv 2410.10254, §3.2): only the feature maps and window factors of
/// ``WindowedLinearAttention`` layers learn, so that each layer's outputs are those of its softmax teacher,
///
///     L = 1000 · mean over layers of MSE(o, o_softmax)  (+ a factor of the cross-entropy between rows of weights)
///
/// head by head, before the output projection. Every layer passes its *teacher's* output on (teacher forcing): the inputs of all layers
/// are those of the unchanged model, and the layers' losses don't touch one another. So each is differentiated as soon as it is
/// known, and memory is that of one layer.
public struct AttentionTransfer: Sendable {
  public struct Options: Sendable, Equatable, Codable {
    public var steps: Int
    /// Sequences of a step.
    public var batchSize: Int
    /// AdamW's, without decay of weights.
    public var learningRate: Double
    public var outputFactor: Double
    /// 0 for none; otherwise every step costs quadratic time and memory.
    public var crossEntropyFactor: Double
    /// On the held-out loss.
    public var plateau: PlateauSchedule
    /// Steps between two measurements of the held-out loss.
    public var measureEvery: Int
    /// Held-out sequences that are measured.
    public var heldOutLimit: Int
    /// Layers that learn at a time, on inputs saved from the layers below; `nil` for all at once. For models that are too large for all
    /// layers' maps with their optimizer state; the saved inputs take 4 · steps · batch · length · width bytes.
    public var layersAtATime: Int?
    public var seed: UInt64

    public init(
      steps: Int, batchSize: Int = 1, learningRate: Double = 1e-2, outputFactor: Double = 1000, crossEntropyFactor: Double = 0,
      plateau: PlateauSchedule = PlateauSchedule(), measureEvery: Int = 25, heldOutLimit: Int = 16, layersAtATime: Int? = nil,
      seed: UInt64 = 0
    ) {
      self.steps = steps
      self.batchSize = batchSize
      self.learningRate = learningRate
      self.outputFactor = outputFactor
      self.crossEntropyFactor = crossEntropyFactor
      self.plateau = plateau
      self.measureEvery = measureEvery
      self.heldOutLimit = heldOutLimit
      self.layersAtATime = layersAtATime
      self.seed = seed
    }

    func validate() throws {
      guard steps >= 0, batchSize > 0, measureEvery > 0, heldOutLimit > 0, layersAtATime ?? 1 > 0 else {
        throw ConfigurationError("steps must not be negative, and batch size, measurements and groups of layers must be positive")
      }
      guard learningRate > 0, outputFactor >= 0, crossEntropyFactor >= 0, outputFactor + crossEntropyFactor > 0 else {
        throw ConfigurationError("the learning rate must be positive, and one of the losses' factors")
      }
    }
  }

  public let options: Options

  public init(_ options: Options) { self.options = options }

  // MARK: The loss

  /// A layer's loss, differentiable by its maps and factors alone. x: what the attention reads, [batch, length, width].
  public func loss(_ layer: WindowedLinearAttention, _ x: Tensor) -> Tensor { teacherForced(layer, x).loss }

  /// A layer's loss and its teacher's output.
  fileprivate func teacherForced(_ layer: WindowedLinearAttention, _ x: Tensor) -> (loss: Tensor, output: Tensor) {
    let (q, k, v, teacher, output) = withoutGradient {
      let (q, k, v) = layer.projections(x)
      let teacher = layer.softmaxOutputs(q, k, v)
      return (q, k, v, teacher, layer.joined(teacher))
    }
    var losses: [Tensor] = []
    if options.outputFactor > 0 { losses.append(meanSquaredError(layer.attend(q, k, v), teacher) * options.outputFactor) }
    if options.crossEntropyFactor > 0 {
      let wanted = withoutGradient { layer.softmaxWeights(q, k) }
      let rows = -(wanted * layer.weights(q, k).clamped(min: 1e-12).log()).sum(axis: -1)
      losses.append(rows.mean() * options.crossEntropyFactor)
    }
    return (losses.dropFirst().reduce(losses[0], +), output)
  }

  /// The linearised layers of a model, by number.
  public static func layers(of model: LanguageModel) -> [(number: Int, mixer: WindowedLinearAttention)] {
    model.backbone.blocks.enumerated().compactMap { i, block in (block.mixer as? WindowedLinearAttention).map { (i, $0) } }
  }

  /// Names and tensors that learn: maps and factors.
  static func parameters(of layers: [(number: Int, mixer: WindowedLinearAttention)]) -> [(name: String, tensor: Tensor)] {
    layers.flatMap { number, mixer in
      mixer.parameters().filter { name, _ in name.hasPrefix("query_map.") || name.hasPrefix("key_map.") || name == "window_factor" }.map {
        ("\(number).\($0.name)", $0.tensor)
      }
    }
  }

  /// Runs `body` while the layers pass their teachers' outputs on; `observe` receives every layer's number and loss, differentiable where
  /// it is `recorded`.
  static func teacherForcing<Result>(
    _ model: LanguageModel, _ transfer: AttentionTransfer, layers: [(number: Int, mixer: WindowedLinearAttention)], recorded: Bool,
    observe: @escaping (Int, Tensor) -> Void, _ body: () throws -> Result
  ) rethrows -> Result {
    for (number, mixer) in layers {
      model.backbone.blocks[number].mixer = TeacherForcedAttention(mixer) { x in
        // The student's loss alone is differentiated, also where the rest of the model records nothing.
        let x = x.detached()
        let (loss, output) = withGradient(enabled: recorded) { transfer.teacherForced(mixer, x) }
        withGradient(enabled: recorded) { observe(number, loss) }
        return output
      }
    }
    defer { for (number, mixer) in layers { model.backbone.blocks[number].mixer = mixer } }
    return try body()
  }

  /// The model's backbone in teacher mode, with the mean loss of its linearised layers: the outputs are those of the model before it was
  /// linearised, bit for bit.
  public func teacherOutputs(_ model: LanguageModel, _ tokens: Tensor) -> (outputs: Tensor, loss: Tensor) {
    var losses: [Tensor] = []
    let outputs = Self.teacherForcing(model, self, layers: Self.layers(of: model), recorded: true, observe: { losses.append($1) }) {
      model.backbone(tokens)
    }
    return (outputs, losses.dropFirst().reduce(losses[0], +) / Double(losses.count))
  }

  // MARK: Training

  /// How far the transfer has come.
  public struct Progress: Sendable {
    public let step: Int
    public let steps: Int
    /// The layers that are learning.
    public let layers: Range<Int>
    /// Mean over these layers on the step's sequences.
    public let loss: Double
    /// The last measurement on held-out sequences.
    public let heldOutLoss: Double?
    public let learningRate: Double
  }

  /// What came out: the held-out loss of every linearised layer before and after, by the layer's number.
  public struct Outcome: Sendable, Codable, Equatable {
    public var before: [Int: Double]
    public var after: [Int: Double]
    public var steps: Int
  }

  /// Trains the maps of a model that was linearised. Everything else keeps its values, and whether it is trained.
  ///
  /// - Parameters:
  ///   - saved: where a run that was interrupted goes on; it is written as training proceeds. `nil` keeps nothing.
  ///   - progress: called after every step; returning false stops, with what there is saved.
  /// - Returns: `nil` when it was stopped.
  /// - Throws: `ConfigurationError`; `TensorError` when the loss is not a finite number; `FileError` or `SafetensorsError` of `saved`.
  public func run(
    _ model: LanguageModel, train: TokenSequences, heldOut: TokenSequences, saved: TransferFile? = nil,
    progress: (Progress) throws -> Bool = { _ in true }
  ) throws -> Outcome? {
    try options.validate()
    let all = Self.layers(of: model)
    guard !all.isEmpty else { throw ConfigurationError("the model has no linearised layers to train") }
    let wasTraining = model.isTraining
    model.eval()
    defer { model.train(wasTraining) }
    let measured = heldOut.batches(size: options.batchSize, limit: options.heldOutLimit)
    let groups = stride(from: 0, to: all.count, by: options.layersAtATime ?? all.count).map {
      Array(all[$0..<min(all.count, $0 + (options.layersAtATime ?? all.count))])
    }
    // Where groups follow one another, each reads what the groups below give for the same sequences.
    let isGrouped = groups.count > 1
    let order = BatchOrder(count: train.count)
    func tokens(_ step: Int) -> Tensor { train.batch(order.indices(step: step, size: options.batchSize, seed: options.seed)) }
    var inputs = isGrouped ? withoutGradient { (0..<options.steps).map { model.backbone.embedded(tokens($0)) } } : []
    var heldOutInputs = isGrouped ? withoutGradient { measured.map { model.backbone.embedded($0) } } : []

    var outcome = Outcome(before: [:], after: [:], steps: options.steps)
    for (index, group) in groups.enumerated() {
      let range =
        (index == 0 ? 0 : group[0].number)..<(index + 1 < groups.count ? groups[index + 1][0].number : model.backbone.blocks.count)
      /// Mean losses by layer; with `learning`, their gradients are added up.
      func losses(_ input: Tensor, learning: Bool) -> (losses: [(Int, Double)], output: Tensor) {
        var found: [(Int, Double)] = []
        let output = withoutGradient {
          Self.teacherForcing(
            model, self, layers: group, recorded: learning,
            observe: { number, loss in
              found.append((number, loss.item()))
              if learning { (loss / Double(group.count)).backward() }
            }
          ) { isGrouped ? model.backbone.outputs(ofBlocks: range, input) : model.backbone(input) }
        }
        return (found, output)
      }
      func measure() -> [Int: Double] {
        var sums: [Int: Double] = [:]
        let batches = isGrouped ? heldOutInputs : measured
        for batch in batches { for (number, loss) in losses(batch, learning: false).losses { sums[number, default: 0] += loss } }
        return sums.mapValues { $0 / Double(batches.count) }
      }

      let parameters = Self.parameters(of: group)
      for (_, tensor) in parameters { tensor.requiresGradient = true }
      let optimizer = AdamW([ParameterGroup("maps", parameters)], learningRate: options.learningRate, .init(weightDecay: 0))
      var plateau = options.plateau
      var heldOutLoss: Double?
      // Of the lowest held-out loss, what the maps end as.
      var best: (loss: Double, values: [Tensor])?
      var first = 0
      var isDone = false
      if let file = saved, let state = try file.load(group: index, parameters, optimizer) {
        isDone = state.isDone
        (first, plateau, heldOutLoss, best) = (state.step, state.plateau, state.heldOutLoss, state.best)
        outcome.before.merge(state.before) { $1 }
      } else {
        outcome.before.merge(measure()) { $1 }
      }
      func mean(_ losses: [Int: Double]) -> Double { losses.values.reduce(0, +) / Double(losses.count) }
      func keep(_ loss: Double) {
        heldOutLoss = loss
        if loss < best?.loss ?? .infinity { best = (loss, withoutGradient { parameters.map { $0.tensor.detached().copy() } }) }
      }
      if first == 0 && !isDone { keep(mean(outcome.before.filter { pair in group.contains { $0.number == pair.key } })) }
      for step in isDone ? 0..<0 : first..<max(first, options.steps) {
        optimizer.scheduleFactor = plateau.factor
        let found = losses(isGrouped ? inputs[step] : tokens(step), learning: true).losses
        let loss = found.reduce(0) { $0 + $1.1 } / Double(found.count)
        guard loss.isFinite else { throw TensorError("attention transfer diverged: the loss of step \(step) is \(loss)") }
        optimizer.step()
        optimizer.zeroGradients()
        let isMeasured = (step + 1) % options.measureEvery == 0 || step + 1 == options.steps
        if isMeasured {
          let loss = mean(measure())
          keep(loss)
          plateau.update(loss)
        }
        let goesOn = try progress(
          Progress(
            step: index * options.steps + step + 1, steps: groups.count * options.steps, layers: group[0].number..<(group.last!.number + 1),
            loss: loss, heldOutLoss: heldOutLoss, learningRate: optimizer.learningRate * plateau.factor))
        if isMeasured || !goesOn {
          try saved?.save(
            group: index,
            .init(step: step + 1, plateau: plateau, heldOutLoss: heldOutLoss, best: best, before: outcome.before), parameters, optimizer,
            finished: groups[..<index].flatMap { Self.parameters(of: $0) })
        }
        guard goesOn else { return nil }
      }
      if let best { withoutGradient { for (parameter, value) in zip(parameters, best.values) { parameter.tensor.copyInPlace(value) } } }
      for (_, tensor) in parameters { tensor.requiresGradient = false }
      outcome.after.merge(measure()) { $1 }
      if isGrouped {
        inputs = inputs.map { losses($0, learning: false).output }
        heldOutInputs = heldOutInputs.map { losses($0, learning: false).output }
      }
    }
    for (_, tensor) in Self.parameters(of: all) { tensor.requiresGradient = true }
    return outcome
  }
}

/// A linearised attention that passes its teacher's output on.
private final class TeacherForcedAttention: Module, SequenceMixer {
  let student: WindowedLinearAttention
  private let mix: (Tensor) -> Tensor

  init(_ student: WindowedLinearAttention, _ mix: @escaping (Tensor) -> Tensor) {
    self.student = student
    self.mix = mix
    super.init()
  }

  var isCausal: Bool { true }
  func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor { mix(x) }
  func multiplyAdds(length: Int) -> Int { student.multiplyAdds(length: length) }
}

/// Where an attention transfer keeps what it needs to go on after an interruption: one file, replaced as a whole.
public struct TransferFile: Sendable {
  public let path: String
  public init(_ path: String) { self.path = path }

  struct State {
    var step: Int
    var plateau: PlateauSchedule
    var heldOutLoss: Double?
    var best: (loss: Double, values: [Tensor])?
    var before: [Int: Double]
    /// The layers had learnt before the file was written: their values are those of its end.
    var isDone = false
  }

  private struct Description: Codable {
    var group: Int
    var step: Int
    var plateau: PlateauSchedule
    var heldOutLoss: Double?
    var bestLoss: Double?
    var before: [Int: Double]
  }

  /// - Parameter finished: of groups that have learnt already.
  func save(
    group: Int, _ state: State, _ parameters: [(name: String, tensor: Tensor)], _ optimizer: GroupedOptimizer,
    finished: [(name: String, tensor: Tensor)]
  ) throws {
    var tensors: [String: Tensor] = [:]
    for (name, tensor) in finished { tensors["parameter." + name] = tensor.detached() }
    for (i, (name, tensor)) in parameters.enumerated() {
      tensors["parameter." + name] = tensor.detached()
      if let best = state.best { tensors["best." + name] = best.values[i] }
    }
    for (name, tensor) in optimizer.stateDictionary() { tensors["optimizer." + name] = tensor }
    let description = Description(
      group: group, step: state.step, plateau: state.plateau, heldOutLoss: state.heldOutLoss, bestLoss: state.best?.loss,
      before: state.before)
    let text = String(decoding: try JSONEncoder.withNonFinite.encode(description), as: UTF8.self)
    try Safetensors.save(tensors, to: path, metadata: ["transfer": text])
  }

  /// `nil` where there is no file, or one of layers that learn before these. Throws where it doesn't belong to these parameters.
  func load(group: Int, _ parameters: [(name: String, tensor: Tensor)], _ optimizer: GroupedOptimizer) throws -> State? {
    guard FileManager.default.fileExists(atPath: path) else { return nil }
    let file = try SafetensorsFile(path)
    guard let text = file.metadata["transfer"],
      let description = try? JSONDecoder.withNonFinite.decode(Description.self, from: Data(text.utf8))
    else { throw FileError(path, "holds no interrupted attention transfer") }
    guard description.group >= group else { return nil }
    let tensors = try file.tensors()
    var best: [Tensor] = []
    for (name, parameter) in parameters {
      guard let value = tensors["parameter." + name], value.shape == parameter.shape else {
        throw FileError(path, "belongs to another model or to other options: \"\(name)\" doesn't fit; delete it to begin again")
      }
      withoutGradient { parameter.copyInPlace(value) }
      if let value = tensors["best." + name] { best.append(value.copy()) }
    }
    if description.group > group {
      return State(step: 0, plateau: description.plateau, heldOutLoss: nil, best: nil, before: description.before, isDone: true)
    }
    let own = tensors.filter { $0.key.hasPrefix("optimizer.") }
    try optimizer.load(Dictionary(uniqueKeysWithValues: own.map { (String($0.key.dropFirst("optimizer.".count)), $0.value) }))
    return State(
      step: description.step, plateau: description.plateau, heldOutLoss: description.heldOutLoss,
      best: description.bestLoss.flatMap { best.count == parameters.count ? ($0, best) : nil }, before: description.before)
  }
}
