/// LMUFormer (Liu et al. 2024, arXiv 2402.04882): frames of a spectrogram are classified by a convolutional embedding, blocks of a
/// Legendre memory and a channel mixer, and a linear head whose logits are averaged over time:
///
///     e = conv embedding of x;    e ← e + BN(W LMU(e));    e ← e + mixer(e);    logits = mean_t(W_head e_t)
///
/// The spiking form puts batch norm and ``LIFNeuron`` before every weight layer; its residual stream stays real-valued (§3.3).
/// [batch, length, channels] → [batch, classes].
///
/// The convolutions (size 3) look one frame ahead each: output t sees inputs up to t + ``delay``. A ``Stream`` takes frames one by one
/// and gives the running mean of the logits that many frames later.
public final class LMUFormer: Module {
  public struct Configuration: Sendable, Equatable {
    /// Channels of a frame: mel bands.
    public var channels: Int
    public var width: Int
    public var layers: Int
    /// d of the memories.
    public var memory: Int
    /// θ of the memories, in frames.
    public var window: Double
    /// Convolutions of the embedding, besides the one of its residual branch.
    public var convolutions: Int
    /// Hidden channels of the mixer over the width.
    public var mixerRatio: Int
    public var classes: Int
    public var isSpiking: Bool

    /// The defaults are those of Speech Commands v2.
    /// - Parameter memory: `nil` for the width, or twice the width when spiking.
    public init(
      channels: Int = 128, width: Int = 256, layers: Int = 1, memory: Int? = nil, window: Double = 128, convolutions: Int = 4,
      mixerRatio: Int = 4, classes: Int = 35, isSpiking: Bool = false
    ) {
      self.channels = channels
      self.width = width
      self.layers = layers
      self.memory = memory ?? (isSpiking ? 2 * width : width)
      self.window = window
      self.convolutions = convolutions
      self.mixerRatio = mixerRatio
      self.classes = classes
      self.isSpiking = isSpiking
    }

    /// Throws `ConfigurationError` for numbers that make no model.
    public func validate() throws {
      for (name, value) in [
        ("channels", channels), ("width", width), ("layers", layers), ("memory", memory), ("convolutions", convolutions),
        ("mixer_ratio", mixerRatio), ("classes", classes),
      ] where !(1...65536).contains(value) {
        throw ConfigurationError("\(name) must be 1...65536, got \(value)")
      }
      guard window > 0, window.isFinite else { throw ConfigurationError("the window must be positive, got \(window)") }
    }
  }

  public let configuration: Configuration
  @Child(key: "patch_embed") public var embedding: ConvolutionalEmbedding
  @Child(key: "block") public var blocks: [LMUFormerBlock]
  @Child(key: "head_bn") public var headNorm: BatchNorm?
  @Child public var head: any LinearLayer
  private let neuron = LIFNeuron()

  /// Frames of look-ahead: output t depends on inputs up to t + delay.
  public var delay: Int { configuration.convolutions + 1 }

  /// Throws `ConfigurationError` for numbers that make no model.
  public init(_ configuration: Configuration, generator: RandomGenerator) throws {
    let c = configuration
    try c.validate()
    self.configuration = c
    super.init()
    embedding = ConvolutionalEmbedding(
      channels: c.channels, width: c.width, convolutions: c.convolutions, isSpiking: c.isSpiking, generator: generator)
    blocks = (0..<c.layers).map { _ in
      LMUFormerBlock(
        width: c.width, memory: c.memory, window: c.window, hidden: c.mixerRatio * c.width, isSpiking: c.isSpiking, generator: generator)
    }
    headNorm = c.isSpiking ? BatchNorm(c.width) : nil
    head = Linear(c.width, c.classes, initializer: .truncatedNormal(0.02), generator: generator)
  }

  /// Logits, the mean over real frames. x: [batch, length, channels]; mask: [batch, length] bool, true at real frames, padding at
  /// the end. Batch norms take their statistics from real frames only.
  public func callAsFunction(_ x: Tensor, mask: Tensor? = nil) -> Tensor {
    let logits = framewise(x, mask: mask)
    guard let mask else { return logits.mean(axis: 1) }
    let real = mask.to(logits.dtype).expandedDimension(-1)
    return (logits * real).sum(axis: 1) / real.sum(axis: 1).clamped(min: 1)
  }

  /// Logits of every frame, [batch, length, classes]; the mean of the first t is the running prediction.
  public func framewise(_ x: Tensor, mask: Tensor? = nil) -> Tensor {
    var e = embedding(x, mask: mask)
    for block in blocks { e = block(e, mask: mask) }
    if let headNorm { e = neuron(headNorm(e, mask: mask)) }
    return head(e)
  }

  /// The means of the first 1, 2, … frames' logits: [batch, length, classes].
  public static func runningMeans(_ logits: Tensor) -> Tensor {
    let counts = Tensor.arange(1, Double(logits.dim(1) + 1), dtype: logits.dtype, device: logits.device).expandedDimension(-1)
    return logits.cumulativeSum(axis: 1) / counts
  }

  public func multiplyAdds(length: Int) -> Int {
    let c = configuration
    let convolutions = 3 * c.width * (c.channels + c.convolutions * c.width)
    return length * (convolutions + head.multiplyAdds()) + blocks.reduce(0) { $0 + $1.multiplyAdds(length: length) }
  }

  // MARK: Checkpoints

  /// Loads a checkpoint of the authors' code: the embedding's keys are renamed, convolutions of size 1 become matrices, and what
  /// follows from other tensors (impulse responses, batch counts) is left out. Throws `LoadingError` for what doesn't fit.
  public func loadOriginal(_ state: [String: Tensor]) throws {
    var renamed: [String: Tensor] = [:]
    for (key, tensor) in state {
      var parts = key.split(separator: ".").map(String.init)
      guard let last = parts.last, !["num_batches_tracked", "H", "fft_H"].contains(last) else { continue }
      if parts.count == 5, parts[1] == "conv_layers" {
        parts[1] = parts[3] == "0" ? "convolutions" : "norms"
        parts.remove(at: 3)
      } else if parts.count == 3, parts[0] == "patch_embed", parts[1] == "rpe_conv" {
        parts[1] = "residual"
      } else if parts.count == 3, parts[0] == "patch_embed" {
        for (old, new) in [("proj_conv", "convolutions"), ("proj_bn", "norms")] where parts[1].hasPrefix(old) {
          let number = parts[1].dropFirst(old.count)
          parts.replaceSubrange(1..<2, with: [new, number.isEmpty ? "0" : String(number)])
          break
        }
      }
      let isMatrix = parts[0] != "patch_embed" && tensor.dim(-1) == 1 && (tensor.rank == 3 || last == "B")
      renamed[parts.joined(separator: ".")] = isMatrix ? tensor.squeezed(-1) : tensor
    }
    try load(renamed)
  }

  // MARK: Streaming

  /// Takes frames as they come. The batch norms act by their running averages whatever the model's mode: evaluate the model before.
  public struct Stream {
    private let model: LMUFormer
    private var embedding: ConvolutionalEmbedding.Stream
    private var blocks: [LMUFormerBlock.State]
    private var membrane: Tensor?
    private var sum: Tensor?
    /// Frames whose logits are known.
    public private(set) var count = 0

    fileprivate init(_ model: LMUFormer, batch: Int) {
      self.model = model
      embedding = model.embedding.stream()
      blocks = model.blocks.map { $0.initialState(batch: batch) }
    }

    /// The mean of the known logits, [batch, classes]; `nil` until the first is known.
    public var prediction: Tensor? { sum.map { $0 / Double(count) } }

    /// One more frame, [batch, channels]. Returns the logits of the frame `delay` frames ago, once there is one.
    public mutating func step(_ frame: Tensor) -> Tensor? { embedding.push(frame).map { finish($0) } }

    /// After the last frame: the logits of those that were still waiting.
    public mutating func end() -> [Tensor] { embedding.end().map { finish($0) } }

    private mutating func finish(_ embedded: Tensor) -> Tensor {
      var e = embedded.expandedDimension(1)
      for i in blocks.indices { e = model.blocks[i].advance(e, &blocks[i]) }
      if let norm = model.headNorm {
        var v = membrane ?? Tensor.zeros([e.dim(0), e.dim(2)], dtype: e.dtype, device: e.device)
        e = model.neuron.advance(norm(e), &v)
        membrane = v
      }
      let logits = model.head(e).squeezed(1)
      sum = sum.map { $0 + logits } ?? logits
      count += 1
      return logits
    }
  }

  /// A stream before its first frame. Generate inside `withoutGradient`, after `eval()`.
  public func stream(batch: Int) -> Stream { Stream(self, batch: batch) }
}

/// The embedding of LMUFormer: convolutions of size 3 with padding 1 and without biases, each with ReLU and batch norm, then a residual
/// convolution, e + conv(e). In the spiking form conv–BN–LIF for all but the last, then e + conv(LIF(BN(e))).
/// [batch, length, channels] → [batch, length, width].
public final class ConvolutionalEmbedding: Module {
  @Child public var convolutions: [Conv1d]
  @Child public var norms: [BatchNorm]
  @Child public var residual: Conv1d
  public let isSpiking: Bool
  private let neuron = LIFNeuron()

  public init(channels: Int, width: Int, convolutions count: Int, isSpiking: Bool = false, generator: RandomGenerator) {
    self.isSpiking = isSpiking
    super.init()
    func convolution(_ from: Int) -> Conv1d { Conv1d(from, width, kernel: 3, padding: 1, bias: false, generator: generator) }
    convolutions = (0..<count).map { convolution($0 == 0 ? channels : width) }
    norms = (0..<count).map { _ in BatchNorm(width) }
    residual = convolution(width)
  }

  public func callAsFunction(_ x: Tensor, mask: Tensor? = nil) -> Tensor {
    let keep = mask.map { $0.expandedDimension(-1).to(x.dtype) }
    // A padded frame is to its neighbours what lies beyond the end: zero.
    func convolved(_ e: Tensor, _ convolution: Conv1d) -> Tensor {
      convolution((keep.map { e * $0 } ?? e).swappedAxes(1, 2)).swappedAxes(1, 2)
    }
    var e = x
    for (i, convolution) in convolutions.enumerated() {
      e = convolved(e, convolution)
      if !isSpiking { e = norms[i](e.relu(), mask: mask) } else if i < convolutions.count - 1 { e = neuron(norms[i](e, mask: mask)) }
    }
    let branch = isSpiking ? neuron(norms[norms.count - 1](e, mask: mask)) : e
    return e + convolved(branch, residual)
  }

  /// Convolutions with look-ahead, frame by frame: each holds its last two inputs and gives the output of the frame before.
  struct Stream {
    private let embedding: ConvolutionalEmbedding
    /// The last inputs of each convolution, at most two; the last is the residual's.
    private var inputs: [[Tensor]]
    /// What the residual branch is added to, beside its inputs.
    private var trunk: [Tensor] = []
    private var membranes: [Tensor?]

    fileprivate init(_ embedding: ConvolutionalEmbedding) {
      self.embedding = embedding
      let stages = embedding.convolutions.count + 1
      inputs = Array(repeating: [], count: stages)
      membranes = Array(repeating: nil, count: stages)
    }

    /// One frame; the embedding of the frame `stages` ago, once there is one.
    mutating func push(_ frame: Tensor) -> Tensor? {
      var e = frame
      for stage in inputs.indices {
        guard let next = output(stage, taking: e) else { return nil }
        e = next
      }
      return e
    }

    /// What is still waiting: beyond the end every convolution reads zeros.
    mutating func end() -> [Tensor] {
      var finished: [Tensor] = []
      for first in inputs.indices where !inputs[first].isEmpty {
        guard var e = output(first, taking: nil) else { continue }
        var isWhole = true
        for stage in (first + 1)..<inputs.count {
          guard let next = output(stage, taking: e) else {
            isWhole = false
            break
          }
          e = next
        }
        if isWhole { finished.append(e) }
      }
      return finished
    }

    /// The stage's output of the frame before `input`; `nil` stands for zeros beyond the end.
    private mutating func output(_ stage: Int, taking input: Tensor?) -> Tensor? {
      let isLast = stage == embedding.convolutions.count
      var own = input
      if isLast, let e = input {
        trunk.append(e)
        own = embedding.isSpiking ? spikes(e, stage) : e
      }
      defer {
        if let own { inputs[stage] = Array((inputs[stage] + [own]).suffix(2)) } else { inputs[stage] = Array(inputs[stage].suffix(1)) }
      }
      guard let middle = inputs[stage].last else { return nil }
      let zero = Tensor.zeros(like: middle)
      let window = stacked([inputs[stage].count > 1 ? inputs[stage][0] : zero, middle, own ?? zero], axis: -1)  // [B, C, 3]
      let convolution = isLast ? embedding.residual : embedding.convolutions[stage]
      let y = linearMap(window.flattened(1), convolution.weight.flattened(1))
      if isLast { return trunk.removeFirst() + y }
      if !embedding.isSpiking { return embedding.norms[stage](y.relu()) }
      return stage < embedding.convolutions.count - 1 ? spikes(y, stage) : y
    }

    /// Spikes of the normalised values. The residual branch has the last norm.
    private mutating func spikes(_ x: Tensor, _ stage: Int) -> Tensor {
      let norm = embedding.norms[min(stage, embedding.norms.count - 1)]
      var v = membranes[stage] ?? Tensor.zeros(like: x)
      let s = embedding.neuron.step(norm(x), &v)
      membranes[stage] = v
      return s
    }
  }

  func stream() -> Stream { Stream(self) }
}

/// One block of LMUFormer: e + BN(W LMU(e)), then e + mixer(e). The spiking memory reads LIF(BN(e)) with a threshold of ½.
public final class LMUFormerBlock: Module {
  @Child(key: "attn.lmu") public var memory: LegendreMemoryUnit
  @Child(key: "attn.prev_bn") public var entryNorm: BatchNorm?
  @Child(key: "attn.proj_conv") public var projection: any LinearLayer
  @Child(key: "attn.proj_bn") public var projectionNorm: BatchNorm
  @Child(key: "mlp") public var mixer: ConvChannelMixer
  private let entry = LIFNeuron(threshold: 0.5)

  public init(width: Int, memory: Int, window: Double, hidden: Int, isSpiking: Bool = false, generator: RandomGenerator) {
    super.init()
    self.memory = LegendreMemoryUnit(
      .init(width: width, memory: memory, window: window, hasProjection: false, isSpiking: isSpiking), initializer: .truncatedNormal(0.02),
      generator: generator)
    entryNorm = isSpiking ? BatchNorm(width) : nil
    projection = Linear(width, width, generator: generator)
    projectionNorm = BatchNorm(width)
    mixer = ConvChannelMixer(width: width, hidden: hidden, isSpiking: isSpiking, generator: generator)
  }

  public func callAsFunction(_ x: Tensor, mask: Tensor? = nil) -> Tensor {
    let read = entryNorm.map { entry($0(x, mask: mask)) } ?? x
    let e = x + projectionNorm(projection(memory(read, MixingContext(mask: mask))), mask: mask)
    return e + mixer(e, mask: mask)
  }

  /// What the block remembers of the frames before.
  public struct State {
    var entry: Tensor?
    var memory: LegendreMemoryUnit.State
    var mixer: [Tensor]
  }

  public func initialState(batch: Int) -> State {
    let dtype = projectionNorm.runningMean.dtype
    return State(memory: memory.initialState(batch: batch), mixer: mixer.initialState(batch: batch, dtype: dtype))
  }

  /// Several frames from a state. x: [batch, length, width].
  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    var read = x
    if let entryNorm {
      var v = state.entry ?? Tensor.zeros([x.dim(0), x.dim(2)], dtype: x.dtype, device: x.device)
      read = entry.advance(entryNorm(x), &v)
      state.entry = v
    }
    let e = x + projectionNorm(projection(memory.advance(read, &state.memory)))
    return e + mixer.advance(e, &state.mixer)
  }

  public func multiplyAdds(length: Int) -> Int {
    memory.multiplyAdds(length: length) + length * (projection.multiplyAdds() + mixer.multiplyAdds())
  }
}
