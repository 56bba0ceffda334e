/// Embedding, blocks and the final norm: [batch, length] ids, [batch, length, channels] or [batch, length, width] →
/// [batch, length, width].
public final class SequenceBackbone: Module {
  public let configuration: BackboneConfiguration
  @Child(key: "embedding") public var embedding: Embedding?
  /// From an embedding of another width.
  @Child(key: "embedding_projection") public var embeddingProjection: (any LinearLayer)?
  @Child(key: "input") public var inputProjection: (any LinearLayer)?
  @Parameter(key: "positions") public var learnedPositions: Tensor?
  @Child(key: "token_types") public var tokenTypes: Embedding?
  @Child(key: "embedding_norm") public var embeddingNorm: (any NormalizationLayer)?
  @Child(key: "relative_bias") public var relativeBias: RelativePositionBias?
  @Child public var blocks: [Block]
  @Child(key: "final_norm") public var finalNorm: (any NormalizationLayer)?
  private let dropout: Dropout

  /// Throws `ConfigurationError` for a configuration that makes no model.
  public init(_ configuration: BackboneConfiguration, generator: RandomGenerator) throws {
    try configuration.validate()
    let c = configuration
    self.configuration = c
    dropout = Dropout(c.dropout, generator: generator)
    super.init()
    embedding = nil
    embeddingProjection = nil
    inputProjection = nil
    switch c.input {
    case .tokens(let vocabulary):
      let width = c.embeddingWidth ?? c.width
      embedding = Embedding(vocabulary, width, initializer: .normal(c.embeddingDeviation), generator: generator)
      if width != c.width { embeddingProjection = Linear(width, c.width, bias: false, generator: generator) }
    case .continuous(let channels):
      if c.projectsInput { inputProjection = Linear(channels, c.width, generator: generator) }
    }
    learnedPositions = c.positions == .learned ? Initializer.normal(0.02)([c.length + c.positionOffset, c.width], generator) : nil
    tokenTypes = c.tokenTypes > 0 ? Embedding(c.tokenTypes, c.width, initializer: .normal(0.02), generator: generator) : nil
    embeddingNorm = c.embeddingNorm ? c.norm.make(c.width, epsilon: c.normEpsilon, schedule: c.normSchedule) : nil
    relativeBias = c.relativeBias.map {
      RelativePositionBias(
        heads: c.heads, buckets: $0.buckets, maximumDistance: $0.maximumDistance, bidirectional: !c.isCausal, generator: generator)
    }
    blocks = try (0..<c.layers).map { try Block(c, layer: $0, generator: generator) }
    finalNorm = c.finalNorm ?? c.preNorm ? c.norm.make(c.width, epsilon: c.normEpsilon, schedule: c.normSchedule) : nil
  }

  // MARK: Parallel form

  /// - Parameters:
  ///   - mask: [batch, length] bool, true at real positions, which stand first; `nil` when all are.
  ///   - tokenTypes: [batch, length] segments, for models that tell them apart; zeros unless given.
  ///   - packing: when the input is [1, total], several sequences end to end.
  ///   - memory: what blocks with attention to another sequence attend to.
  ///   - grid: where the tokens of an image stand.
  public func callAsFunction(
    _ input: Tensor, mask: Tensor? = nil, tokenTypes: Tensor? = nil, packing: SequencePacking? = nil, memory: Memory? = nil,
    grid: TokenGrid? = nil
  ) -> Tensor {
    var x = dropout(embed(input, starts: [0], mask: mask, tokenTypes: tokenTypes, packing: packing))
    let length = x.dim(1)
    let bias = packing == nil ? relativeBias?(queries: length, keys: length) : nil
    let context = MixingContext(mask: mask, scoreBias: bias, packing: packing, grid: grid)
    for (i, block) in blocks.enumerated() {
      x = block(x, mask: mask, cross: { memory?.attend($0, block, layer: i) }) { x in
        guard let packing, relativeBias != nil || !block.mixer.mixesPackedSequences else { return block.mixer(x, context) }
        return packing.forEachSequence(x) {
          block.mixer($0, MixingContext(scoreBias: relativeBias?(queries: $0.dim(1), keys: $0.dim(1))))
        }
      }
    }
    return finalNorm?(x, mask: mask) ?? x
  }

  /// starts: the first position of every sequence, one for all or one each.
  private func embed(
    _ input: Tensor, starts: [Int], mask: Tensor? = nil, tokenTypes types: Tensor? = nil, packing: SequencePacking? = nil
  ) -> Tensor {
    let c = configuration
    var x = embedding?(input) ?? inputProjection?(input) ?? input
    // Matrices may be stored in 16 bits; what flows between them is not.
    if x.device == .cpu, x.dtype == .bfloat16 { x = x.to(.float32) }
    if c.embeddingScale != 1 { x = x * c.embeddingScale }
    if let embeddingProjection { x = embeddingProjection(x) }
    let length = x.dim(1)
    let last = packing.map { zip($0.offsets, $0.offsets.dropFirst()).map { $1 - $0 }.max() ?? 0 } ?? (starts.max() ?? 0) + length
    switch c.positions {
    case .none: break
    case .sinusoidal:
      let table = sinusoidalPositions(length: last, width: c.width).to(x.dtype).to(x.device)
      x = x + rows(of: table, starts: starts, length: length, packing: packing)
    case .learned:
      require(last <= c.length, "learned positions end at \(c.length), the input at \(last)")
      let table = learnedPositions!.narrowed(axis: 0, start: c.positionOffset, length: c.length)
      x = x + rows(of: table, starts: starts, length: length, packing: packing)
    }
    if let tokenTypes {
      x = x + (types.map { tokenTypes($0) } ?? tokenTypes.weight.narrowed(axis: 0, start: 0, length: 1)).to(x.dtype)
    }
    return embeddingNorm?(x, mask: mask) ?? x
  }

  /// The rows of a table of positions: [length, width] from one start, [sequences, length, width] from several.
  private func rows(of table: Tensor, starts: [Int], length: Int, packing: SequencePacking?) -> Tensor {
    if let packing { return table.take(packing.positions) }
    if starts.allSatisfy({ $0 == starts[0] }) { return table.narrowed(axis: 0, start: starts[0], length: length) }
    return stacked(starts.map { table.narrowed(axis: 0, start: $0, length: length) })
  }

  // MARK: Another sequence

  /// The keys and values of a sequence that every block attends to, made once.
  public struct Memory: @unchecked Sendable {
    /// For each layer, [batch, heads, length, d].
    public let layers: [(keys: Tensor, values: Tensor)]
    /// [batch, length] bool, true at real positions.
    public let mask: Tensor?

    /// Inputs; one serves any number of sequences.
    public var batch: Int { layers.first?.keys.dim(0) ?? 0 }

    func attend(_ x: Tensor, _ block: Block, layer: Int) -> Tensor? {
      guard let attention = block.crossAttention else { return nil }
      let (keys, values) = layers[layer]
      if keys.dim(0) == 1 && x.dim(0) > 1 {
        // All queries see the same keys, so those of several sequences are as good as those of one.
        return attention.attend(x.reshaped(1, -1, x.dim(2)), to: keys, values, keyMask: mask).reshaped(x.shape)
      }
      return attention.attend(x, to: keys, values, keyMask: mask)
    }

    /// The sequences at these rows.
    public func selecting(_ rows: [Int]) -> Memory {
      if batch == 1 || rows == Array(0..<batch) { return self }
      let index = Tensor(rows)
      return Memory(
        layers: layers.map { ($0.keys.take(index.to($0.keys.device)), $0.values.take(index.to($0.values.device))) },
        mask: mask.map { $0.take(index.to($0.device)) })
    }

    /// The inputs of several memories of one model, each repeated for so many sequences, padded to the longest.
    static func joined(_ parts: [(memory: Memory, batch: Int)]) -> Memory? {
      guard let first = parts.first?.memory else { return nil }
      if first.batch == 1 && parts.allSatisfy({ $0.memory.batch == 1 && $0.memory.layers[0].keys === first.layers[0].keys }) {
        return first
      }
      let longest = parts.map { $0.memory.layers[0].keys.dim(2) }.max()!
      func join(_ tensors: [Tensor]) -> Tensor {
        concatenated(
          zip(tensors, parts).map { x, part in
            let padded = x.dim(2) == longest ? x : x.padded([0, 0, 0, longest - x.dim(2)])
            return x.dim(0) == part.batch ? padded : padded.repeated(part.batch, axis: 0)
          })
      }
      let masks = parts.map { part -> Tensor in
        let length = part.memory.layers[0].keys.dim(2)
        let mask = part.memory.mask ?? Tensor.ones([part.memory.batch, length], dtype: .bool, device: first.layers[0].keys.device)
        let padded = concatenated([mask, Tensor.zeros([mask.dim(0), longest - length], dtype: .bool, device: mask.device)], axis: 1)
        return mask.dim(0) == part.batch ? padded : padded.repeated(part.batch, axis: 0)
      }
      let isFull = parts.allSatisfy { $0.memory.mask == nil && $0.memory.layers[0].keys.dim(2) == longest }
      return Memory(
        layers: first.layers.indices.map { i in
          (join(parts.map { $0.memory.layers[i].keys }), join(parts.map { $0.memory.layers[i].values }))
        }, mask: isFull ? nil : concatenated(masks))
    }
  }

  /// What blocks attend to, from another model's outputs [batch, length, width].
  public func memory(of outputs: Tensor, mask: Tensor? = nil) -> Memory {
    Memory(layers: blocks.compactMap { $0.crossAttention?.keysAndValues(outputs) }, mask: mask)
  }

  // MARK: Token by token

  /// The states of all layers and how many positions each sequence has seen.
  public struct State: Sendable {
    public var layers: [any MixerState]
    public var positions: [Int]
    public var memory: Memory?

    public var batch: Int { positions.count }

    /// The sequences at these rows, in this order; a row may be repeated.
    public func selecting(_ rows: [Int]) -> State {
      State(layers: layers.map { $0.selecting(rows) }, positions: rows.map { positions[$0] }, memory: memory?.selecting(rows))
    }

    /// A copy that later steps of this one don't change.
    public func copied() -> State { selecting(Array(0..<batch)) }

    /// The sequences of states of one model; all or none attend to another sequence.
    public static func joined(_ states: [State]) -> State {
      if states.count == 1 { return states[0] }
      return State(
        layers: states[0].layers.indices.map { i in
          type(of: states[0].layers[i]).joinedAny(states.map { $0.layers[i] })
        }, positions: states.flatMap(\.positions),
        memory: .joined(states.compactMap { state in state.memory.map { ($0, state.batch) } }))
    }

    /// Forgets all but the first `length` positions. Returns false, changing nothing, where a layer can't go back.
    public mutating func truncate(to length: Int) -> Bool {
      var changed = layers
      for i in changed.indices where !changed[i].truncate(to: length) { return false }
      layers = changed
      positions = positions.map { min($0, length) }
      return true
    }
  }

  /// Whether every layer has a recurrent form.
  public var isRecurrent: Bool { configuration.isCausal && blocks.allSatisfy { $0.mixer is any RecurrentMixer } }

  /// Throws `ConfigurationError` when a layer has no recurrent form.
  public func initialState(batch: Int, cache: CacheOptions = CacheOptions(), memory: Memory? = nil) throws -> State {
    guard configuration.isCausal else { throw ConfigurationError("a bidirectional model can't run token by token") }
    return State(
      layers: try blocks.enumerated().map { i, block in
        guard let mixer = block.mixer as? any RecurrentMixer else {
          throw ConfigurationError("layer \(i) (\(type(of: block.mixer))) has no recurrent form")
        }
        return mixer.initialAnyState(batch: batch, cache: cache)
      }, positions: Array(repeating: 0, count: batch), memory: memory)
  }

  /// Continues from a state with one or more positions: the same shapes as the parallel form.
  public func advance(_ input: Tensor, _ state: inout State) -> Tensor {
    var x = embed(input, starts: state.positions)
    let length = x.dim(1)
    let bias: Tensor? = relativeBias.map {
      // Queries are the last of the keys; rows of different lengths would need a bias each.
      require(state.positions.allSatisfy { $0 == state.positions[0] }, "relative positions need sequences of one length")
      return $0(queries: length, keys: state.positions[0] + length)
    }
    let memory = state.memory
    for (i, block) in blocks.enumerated() {
      let mixer = block.mixer as! any RecurrentMixer
      x = block(x, cross: { memory?.attend($0, block, layer: i) }) { x in
        if let bias, let attention = mixer as? SoftmaxAttention, var own = state.layers[i] as? KeyValueCache {
          defer { state.layers[i] = own }
          return attention.advance(x, &own, scoreBias: bias)
        }
        return length == 1
          ? mixer.stepAny(x.selected(axis: 1, 0), &state.layers[i]).expandedDimension(1)
          : mixer.advanceAny(x, &state.layers[i])
      }
    }
    state.positions = state.positions.map { $0 + length }
    return finalNorm?(x) ?? x
  }

  public func stateBytes(_ state: State) -> Int {
    zip(blocks, state.layers).reduce(0) { $0 + (($1.0.mixer as? any RecurrentMixer)?.anyStateBytes($1.1) ?? 0) }
  }

  /// Multiplications with addition for one sequence of a length.
  public func multiplyAdds(length: Int) -> Int {
    blocks.reduce(0) { $0 + $1.mixer.multiplyAdds(length: length) + length * ($1.feedForward?.multiplyAdds() ?? 0) }
  }
}
