import Foundation

/// Where the long and the short clip of a video come from: frames of `places` tokens each, one after the other.
public struct LongShortClips: Sendable, Codable, Equatable {
  /// Frames of a video, and tokens of a frame.
  public var frames: Int
  public var places: Int
  /// Frames of the long clip, spread over the whole video.
  public var longFrames: Int
  /// Frames of the short clip, neighbours from a random place on.
  public var shortFrames: Int

  /// Throws `ConfigurationError` for clips that a video can't give.
  public init(frames: Int, places: Int, longFrames: Int? = nil, shortFrames: Int? = nil) throws {
    self.frames = frames
    self.places = places
    self.longFrames = longFrames ?? frames
    self.shortFrames = shortFrames ?? max(1, frames / 2)
    guard frames > 0, places > 0, (1...frames).contains(self.longFrames), (1...frames).contains(self.shortFrames) else {
      throw ConfigurationError(
        "clips of \(self.longFrames) and \(self.shortFrames) frames can't be taken from \(frames) frames of \(places) tokens")
    }
  }

  /// videos: [batch, frames · places, channels] → tokens of both clips of each.
  public func callAsFunction(_ videos: Tensor, generator: RandomGenerator) -> (long: Tensor, short: Tensor) {
    require(videos.dim(1) == frames * places, "videos have \(videos.dim(1)) tokens, expected \(frames) frames of \(places)")
    let (batch, channels) = (videos.dim(0), videos.dim(2))
    let grid = videos.reshaped(batch, frames, places, channels)
    // One frame of each of `longFrames` equal parts.
    let spread = Tensor((0..<longFrames).map { $0 * frames / longFrames })
    let long = grid.take(spread.to(videos.device), axis: 1).reshaped(batch, longFrames * places, channels)
    let starts = Tensor.randomIntegers(below: frames - shortFrames + 1, [batch], generator: generator).toArray(Int.self)
    let short = stacked(starts.enumerated().map { b, start in grid[b, start..<(start + shortFrames)] })
    return (long, short.reshaped(batch, shortFrames * places, channels))
  }
}

/// Long-short masked contrastive learning (LSMCL; Wang et al. 2023, arXiv 2303.14526, §3.3): a long clip x_L and a short clip x_S of one
/// video are to have like embeddings, whichever of their tokens were dropped. With a momentum encoder as in MoCo (He et al. 2020):
///
///     L = NCE(f_q(x_L), f_k(x_S)) + NCE(f_q(x_S), f_k(x_L)),      θ_k ← λ θ_k + (1 − λ) θ_q
///
/// NCE is ``contrastiveLoss(queries:keys:negatives:temperature:)``; negatives are the other videos of the batch, or the keys of earlier
/// batches in a queue. Tokens of all four encodings are dropped at random. Labels are not read.
///
/// Key encoder and queue change when the optimizer has stepped (``OptimizerStepListener``), not in the forward pass.
public final class LongShortMaskedContrastive<Encoder: ClipEncoder>: Module, OptimizerStepListener {
  @Child public var query: ContrastiveEncoder<Encoder>
  public let key: EMACopy<ContrastiveEncoder<Encoder>>
  /// Keys of earlier batches, [size, embedding] of length one; `nil` to take the batch's own.
  @Buffer public var queue: Tensor?
  /// How many of the queue's rows hold a key, and which is written next: [2] int64.
  @Buffer(key: "queue_state") public var queueState: Tensor
  public let temperature: Double
  private var pending: [Tensor] = []

  /// - Parameters:
  ///   - make: builds an encoder; called twice, the second one's values are replaced by the first's.
  ///   - queueSize: keys to remember; 0 for the batch's own.
  /// - Throws: what `make` throws, and `ConfigurationError` for numbers out of range.
  public init(
    embedding: Int = 128, temperature: Double = 0.07, momentum: Double = 0.99, queueSize: Int = 0, generator: RandomGenerator,
    make: (RandomGenerator) throws -> Encoder
  ) throws {
    guard embedding > 0, temperature > 0, (0...1).contains(momentum), queueSize >= 0 else {
      throw ConfigurationError(
        "contrastive learning needs a positive embedding and temperature, a momentum in 0...1 and a queue of 0 or more")
    }
    let query = ContrastiveEncoder(try make(generator), embedding: embedding, generator: generator)
    let twin = RandomGenerator(seed: 0)
    key = EMACopy(ContrastiveEncoder(try make(twin), embedding: embedding, generator: twin), of: query, decay: momentum)
    self.temperature = temperature
    super.init()
    self.query = query
    queue = queueSize > 0 ? Tensor.zeros([queueSize, embedding]) : nil
    queueState = Tensor([0, 0])
  }

  /// The symmetric loss of clips [batch, tokens, channels] of the same videos. `masking` draws the tokens that are dropped.
  public func loss(long: Tensor, short: Tensor, masking: RandomGenerator) -> Tensor {
    let queries = [long, short].map { query($0, masking: masking) }
    let keys = withoutGradient { [short, long].map { key.module($0, masking: masking).detached() } }
    if queue != nil { pending += keys }
    return zip(queries, keys).map { nce($0, $1) }.reduce(nil) { sum, term in sum.map { $0 + term } ?? term }!
  }

  /// The same without a trace: its keys don't enter the queue.
  public func evaluationLoss(long: Tensor, short: Tensor, masking: RandomGenerator) -> Tensor {
    let before = pending
    defer { pending = before }
    return loss(long: long, short: short, masking: masking)
  }

  private func nce(_ queries: Tensor, _ keys: Tensor) -> Tensor {
    let filled = queueState[0].itemInt()
    // Until the queue holds a key there are only the batch's.
    let negatives = filled > 0 ? queue?.narrowed(axis: 0, start: 0, length: filled) : nil
    return contrastiveLoss(queries: queries, keys: keys, negatives: negatives, temperature: temperature)
  }

  /// The key encoder takes a step towards the query encoder, and the step's keys enter the queue in the place of the oldest.
  public func optimizerDidStep() {
    key.update(from: query)
    guard let queue else { return }
    withoutGradient {
      let size = queue.dim(0)
      var state = queueState.toArray(Int.self)
      for keys in pending {
        for row in 0..<keys.dim(0) {
          queue[state[1]] = keys[row]
          state = [min(size, state[0] + 1), (state[1] + 1) % size]
        }
      }
      queueState.copyInPlace(Tensor(state))
    }
    pending = []
  }
}

/// A clip encoder and the two-layer projection to the space in which clips are compared (Chen et al. 2020).
public final class ContrastiveEncoder<Encoder: ClipEncoder>: Module {
  @Child public var encoder: Encoder
  @Child public var hidden: any LinearLayer
  @Child public var projection: any LinearLayer

  init(_ encoder: Encoder, embedding: Int, generator: RandomGenerator) {
    super.init()
    self.encoder = encoder
    hidden = Linear(encoder.outputWidth, encoder.outputWidth, generator: generator)
    projection = Linear(encoder.outputWidth, embedding, generator: generator)
  }

  /// clip: [batch, tokens, channels] → [batch, embedding] of length one.
  public func callAsFunction(_ clip: Tensor, masking: RandomGenerator) -> Tensor {
    let x = projection(hidden(encoder.encode(clip, masking: masking)).relu())
    return x * (x.square().sum(axis: -1, keepDims: true) + 1e-12).rsqrt()
  }
}

extension LongShortMaskedContrastive where Encoder == SelectiveVideoTrunk {
  /// Copies the pretrained trunk into a classifier: everything but the head. Its guides start from the pretrained layers.
  ///
  /// - Throws: `LoadingError` when the trunks differ.
  public func transfer(to classifier: SelectiveVideoClassifier) throws {
    try classifier.trunk.load(query.encoder.stateDictionary())
    for stage in classifier.trunk.stages { stage.mixer.resetGuide() }
  }
}

/// Long-short masked contrastive learning on a task's videos as a training problem.
public final class ContrastiveProblem<Encoder: ClipEncoder>: TrainingProblem {
  public let task: any LearningTask
  public let procedure: LongShortMaskedContrastive<Encoder>
  public let clips: LongShortClips
  public let batchSize: Int
  public let seed: UInt64
  public let evaluationExamples: Int

  public var model: Module { procedure }

  public init(
    _ task: any LearningTask, _ procedure: LongShortMaskedContrastive<Encoder>, clips: LongShortClips, batchSize: Int, seed: UInt64,
    evaluationExamples: Int = 256
  ) {
    self.task = task
    self.procedure = procedure
    self.clips = clips
    self.batchSize = batchSize
    self.seed = seed
    self.evaluationExamples = evaluationExamples
  }

  public func loss(batch index: Int) throws -> (loss: Tensor, positions: Int) {
    let videos = try task.trainingBatch(step: index, size: batchSize, seed: seed).inputs
    // Clips and masks of their own each time a batch is read, and the same again after an interruption.
    let generator = RandomGenerator(seed: seed &* 0x9E37_79B9_7F4A_7C15 &+ UInt64(index))
    let (long, short) = clips(videos, generator: generator)
    return (procedure.loss(long: long, short: short, masking: generator), videos.dim(0) * videos.dim(1))
  }

  public func evaluate() throws -> [String: Double] {
    procedure.eval()
    defer { procedure.train() }
    return try withoutGradient {
      var (sum, batches) = (0.0, 0)
      while batches * batchSize < evaluationExamples,
        let batch = try task.evaluationBatch(.validation, index: batches, size: batchSize)
      {
        let generator = RandomGenerator(seed: UInt64(batches))
        let (long, short) = clips(batch.inputs, generator: generator)
        sum += procedure.evaluationLoss(long: long, short: short, masking: generator).item()
        batches += 1
      }
      return batches > 0 ? [MetricName.loss: sum / Double(batches)] : [:]
    }
  }
}
