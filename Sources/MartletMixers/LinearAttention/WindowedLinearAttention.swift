/// Softmax attention linearised (LoLCATs: Zhang et al. 2024, arXiv 2410.10254): softmax inside a window, linear attention with trained
/// feature maps to everything before it, one common normalisation. Per head, for the query at position i with its window W_i and the
/// rest R_i of the past (§3.3, equation 6):
///
///     o_i = [ g Σ_{j∈W_i} e^{s_ij − μ_i} v_j + Σ_{j∈R_i} φ_q(q_i)·φ_k(k_j) v_j ] / [ g Σ_{j∈W_i} e^{s_ij − μ_i} + Σ_{j∈R_i} φ_q(q_i)·φ_k(k_j) ]
///     s_ij = q_i·k_j/√d,   μ_i = max_{j∈W_i} s_ij,   g = σ(γ)
///
/// (the linear sums times 1 − g when `affine`). The projections, rotary positions, biases and norms are those of a
/// ``SoftmaxAttention``, whose place it takes (``init(from:_:generator:)``); new are the maps φ_q, φ_k (`query_map`, `key_map`, applied
/// to the turned queries and keys) and γ (`window_factor`, one a head). With fewer key/value heads than query heads, keys and values are
/// repeated first, so that every query head has a map of its own.
///
/// Time is linear in the length: on CPU in float32 by the kernel `martlet::windowed_linear_attention`, elsewhere by
/// ``windowedLinearAttentionChunked(_:_:_:queryFeatures:keyFeatures:windowFactor:window:layout:scale:state:position:)``. The recurrent
/// state does not grow: the window's keys and values and the sums Σ φ(k)ᵀ v, Σ φ(k) over everything that left it.
///
/// Causal only. Padding at the end needs no mask, since no real position sees it.
public final class WindowedLinearAttention: Module, RecurrentMixer, ProjectedAttention {
  /// Which positions a query's window holds.
  public enum Layout: String, Codable, Sendable, CaseIterable {
    /// The last w: its own and the w − 1 before.
    case sliding
    /// Its own block of w positions up to itself, and the whole block before (ThunderKittens' terraces).
    case blocks
  }

  /// What linearising adds to an attention.
  public struct Options: Sendable, Equatable {
    /// w ≥ 1.
    public var window: Int
    public var layout: Layout
    public var featureMap: FeatureMapKind
    /// Columns f of the maps' matrices; `nil` for the kind's own.
    public var features: Int?
    public var initialization: FeatureMapInitialization
    /// The linear sums weigh 1 − g instead of 1.
    public var affine: Bool
    /// γ of every head at the start; −2.197 makes g = 0.1.
    public var windowFactor: Double

    public init(
      window: Int = 64, layout: Layout = .sliding, featureMap: FeatureMapKind = .hedgehog, features: Int? = nil,
      initialization: FeatureMapInitialization = .kaiming, affine: Bool = false, windowFactor: Double = -2.197
    ) {
      self.window = window
      self.layout = layout
      self.featureMap = featureMap
      self.features = features
      self.initialization = initialization
      self.affine = affine
      self.windowFactor = windowFactor
    }
  }

  /// Of the attention that it is made from.
  public let configuration: SoftmaxAttention.Configuration
  public let options: Options
  @Child public var query: any LinearLayer
  @Child public var key: any LinearLayer
  @Child public var value: any LinearLayer
  @Child public var output: any LinearLayer
  @Child(key: "query_norm") public var queryNorm: RMSNorm?
  @Child(key: "key_norm") public var keyNorm: RMSNorm?
  @Child(key: "query_map") public var queryMap: any FeatureMap
  @Child(key: "key_map") public var keyMap: any FeatureMap
  /// γ, [heads].
  @Parameter(key: "window_factor") public var windowFactor: Tensor
  let rotary: RotaryEmbedding?

  public var isCausal: Bool { true }

  /// Takes the place of a trained attention, whose layers it shares (not copies). A window that the attention has itself is given up:
  /// the linear sums reach the whole past.
  ///
  /// - Throws: `ConfigurationError` for attention that isn't causal or squashes its scores, and options that don't fit.
  public init(from attention: SoftmaxAttention, _ options: Options = Options(), generator: RandomGenerator) throws {
    let c = attention.configuration
    guard c.isCausal else { throw ConfigurationError("only causal attention can be linearised: a bidirectional one has no past alone") }
    guard c.softcap == nil else {
      throw ConfigurationError("attention whose scores are squashed (softcap \(c.softcap ?? 0)) can't be linearised")
    }
    try Self.check(options, headWidth: c.headWidth)
    configuration = c
    self.options = options
    rotary = attention.rotary
    super.init()
    query = attention.query
    key = attention.key
    value = attention.value
    output = attention.output
    queryNorm = attention.queryNorm
    keyNorm = attention.keyNorm
    func map() -> any FeatureMap {
      options.featureMap.make(
        heads: c.heads, width: c.headWidth, features: options.features, initialization: options.initialization, generator: generator)
    }
    queryMap = map()
    keyMap = map()
    windowFactor = Initializer.constant(options.windowFactor)([c.heads], generator)
  }

  /// With projections of its own, to train from scratch. Throws `ConfigurationError` as ``init(from:_:generator:)``.
  public convenience init(
    _ configuration: SoftmaxAttention.Configuration, _ options: Options = Options(), generator: RandomGenerator
  ) throws {
    try self.init(from: SoftmaxAttention(configuration, generator: generator), options, generator: generator)
  }

  private static func check(_ options: Options, headWidth: Int) throws {
    guard options.window > 0 else { throw ConfigurationError("the window must hold at least one position, got \(options.window)") }
    if let features = options.features, !(1...(1 << 16)).contains(features) {
      throw ConfigurationError("features must be in 1...65536, got \(features)")
    }
    if options.initialization == .identity {
      let columns = options.features ?? (options.featureMap == .hedgehog ? max(1, headWidth / 2) : headWidth)
      guard columns == headWidth else {
        throw ConfigurationError("maps that begin as the identity need features = \(headWidth), the channels of a head, not \(columns)")
      }
    }
  }

  /// The attention again, with the layers as they are now.
  public func softmaxAttention() -> SoftmaxAttention {
    let attention = Initializer.$isSkipped.withValue(true) { SoftmaxAttention(configuration, generator: RandomGenerator(seed: 0)) }
    attention.query = query
    attention.key = key
    attention.value = value
    attention.output = output
    attention.queryNorm = queryNorm
    attention.keyNorm = keyNorm
    attention.train(isTraining)
    return attention
  }

  // MARK: Parallel form

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    require(context.scoreBias == nil, "linearised attention takes no relative positions")
    let (q, k, v) = project(x, starts: [context.offset])
    return output(mergeHeads(attend(q, k, v)))
  }

  /// Queries [B, H, L, d], keys and values [B, Hk, L, d], turned to their positions.
  public func projections(_ x: Tensor, offset: Int = 0) -> (q: Tensor, k: Tensor, v: Tensor) { project(x, starts: [offset]) }

  /// Outputs of heads [B, H, L, d] through the output projection, [B, L, width].
  public func joined(_ heads: Tensor) -> Tensor { output(mergeHeads(heads)) }

  private func repeatedHeads(_ x: Tensor) -> Tensor {
    let group = configuration.heads / configuration.keyValueHeads
    return group > 1 ? x.repeated(group, axis: 1) : x
  }

  /// σ(γ), [heads].
  public var gate: Tensor { windowFactor.sigmoid() }

  /// φ_q(q), with the linear factor.
  private func queryFeatures(_ q: Tensor) -> Tensor {
    let features = queryMap(q)
    return options.affine ? features * (1.0 - gate).reshaped(-1, 1, 1).to(features.dtype) : features
  }

  /// Outputs of the heads [B, H, L, d], before the output projection, from ``projections(_:offset:)``.
  public func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
    let k = repeatedHeads(k)
    return windowedLinearAttention(
      q, k, repeatedHeads(v), queryFeatures: queryFeatures(q), keyFeatures: keyMap(k), windowFactor: gate, window: options.window,
      layout: options.layout, scale: configuration.scale)
  }

  /// The weights of every query over all keys, [B, H, L, L]: rows sum to 1. Quadratic.
  public func weights(_ q: Tensor, _ k: Tensor) -> Tensor {
    let k = repeatedHeads(k)
    return windowedLinearAttentionWeights(
      q, k, queryFeatures: queryFeatures(q), keyFeatures: keyMap(k), windowFactor: gate, window: options.window,
      layout: options.layout, scale: configuration.scale)
  }

  /// The teacher's outputs of the heads: what the softmax attention gives for the same queries, keys and values.
  public func softmaxOutputs(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
    MartletMixers.softmaxAttention(
      q, k, v, causal: true, window: configuration.window.map { ($0, $0) }, scale: configuration.scale)
  }

  /// The teacher's weights, [B, H, L, L]. Quadratic.
  public func softmaxWeights(_ q: Tensor, _ k: Tensor) -> Tensor {
    let identity = Tensor.ones([k.dim(2)], dtype: q.dtype, device: q.device).asDiagonal()
    return softmaxAttentionReference(
      q, k, identity.broadcast(to: [k.dim(0), k.dim(1), k.dim(2), k.dim(2)]), causal: true,
      window: configuration.window.map { ($0, $0) }, scale: configuration.scale)
  }

  // MARK: Recurrent form

  public struct State: MixerState, @unchecked Sendable {
    /// The window's keys and values, a ring in which position p has place p mod capacity: [B, Hk, capacity, d].
    public var keys: Tensor
    public var values: Tensor
    /// Σ φ(k)ᵀ v over what left the window, [B, H, F, d].
    public var memory: Tensor
    /// Σ φ(k), [B, H, F].
    public var normalizer: Tensor
    /// Positions seen by each sequence.
    public var positions: [Int]

    public var byteCount: Int { [keys, values, memory, normalizer].reduce(0) { $0 + $1.byteCount } }

    public func selecting(_ rows: [Int]) -> State {
      let index = Tensor(rows).to(keys.device)
      return State(
        keys: keys.take(index), values: values.take(index), memory: memory.take(index), normalizer: normalizer.take(index),
        positions: rows.map { positions[$0] })
    }

    public static func joined(_ states: [State]) -> State {
      State(
        keys: concatenated(states.map(\.keys)), values: concatenated(states.map(\.values)), memory: concatenated(states.map(\.memory)),
        normalizer: concatenated(states.map(\.normalizer)), positions: states.flatMap(\.positions))
    }
  }

  /// Places of the ring: a sliding window's, or two blocks.
  private var capacity: Int { options.window * (options.layout == .blocks ? 2 : 1) }

  public func initialState(batch: Int) -> State {
    let c = configuration
    let kind = stateKind(query)
    func zeros(_ shape: Int...) -> Tensor { .zeros(shape, dtype: kind.dtype, device: kind.device) }
    return State(
      keys: zeros(batch, c.keyValueHeads, capacity, c.headWidth), values: zeros(batch, c.keyValueHeads, capacity, c.headWidth),
      memory: zeros(batch, c.heads, keyMap.features, c.headWidth), normalizer: zeros(batch, c.heads, keyMap.features),
      positions: Array(repeating: 0, count: batch))
  }

  /// The oldest position that the ring holds after so many.
  private func oldest(after count: Int) -> Int {
    switch options.layout {
    case .sliding: max(0, count - options.window)
    case .blocks: count == 0 ? 0 : max(0, ((count - 1) / options.window - 1) * options.window)
    }
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor {
    guard fusedKernelsServe(x), !isGradientEnabled, state.memory.dtype == .float32 else {
      return advance(x.expandedDimension(1), &state).selected(axis: 1, 0)
    }
    // Each operator's call costs as much as its work here: the maps, the ring, the sums and the weights are one kernel.
    let c = configuration
    func heads(_ x: Tensor, _ count: Int) -> Tensor { x.reshaped(x.dim(0), count, 1, c.headWidth) }
    let projected = joinedLinear(x, [query, key, value])
    var q = heads(projected[0], c.heads)
    var k = heads(projected[1], c.keyValueHeads)
    if let queryNorm, let keyNorm { (q, k) = (queryNorm(q), keyNorm(k)) }
    if let rotary { (q, k) = rotary(q, k, starts: state.positions) }
    let (queryMatrix, queryBias) = parts(queryMap)
    let (keyMatrix, keyBias) = parts(keyMap)
    let gate = gate
    let y = stepKernel(
      .tensor(q.squeezed(2)), .tensor(k.squeezed(2)), .tensor(projected[2].reshaped(x.dim(0), c.keyValueHeads, c.headWidth)),
      .tensor(queryMatrix), .tensor(keyMatrix), .tensor(queryBias), .tensor(keyBias), .tensor(gate),
      .tensor(options.affine ? 1.0 - gate : nil), .tensor(state.keys), .tensor(state.values), .tensor(state.memory),
      .tensor(state.normalizer), .tensor(Tensor(state.positions)), .int(options.window), .bool(options.layout == .blocks),
      .double(c.scale ?? 1 / Double(c.headWidth).squareRoot()))
    state.positions = state.positions.map { $0 + 1 }
    return output(y.reshaped(x.dim(0), -1))
  }

  private func parts(_ map: any FeatureMap) -> (weight: Tensor, bias: Tensor?) {
    switch map {
    case let map as HedgehogFeatureMap: return (map.weight, nil)
    case let map as RectifiedFeatureMap: return (map.weight, map.bias)
    default: fatalError("no step is known for features by \(type(of: map))")
    }
  }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    let (seen, length) = (state.positions[0], x.dim(1))
    guard state.positions.allSatisfy({ $0 == seen }) else {
      // Rows of different lengths: each by itself.
      var rows = state.positions.indices.map { state.selecting([$0]) }
      let y = rows.indices.map { advance(x.narrowed(axis: 0, start: $0, length: 1), &rows[$0]) }
      state = .joined(rows)
      return concatenated(y)
    }
    let (q, newKeys, newValues) = project(x, starts: [seen])
    let first = oldest(after: seen)
    let keys = concatenated([ordered(state.keys, first, seen).to(newKeys.dtype), newKeys], axis: 2)
    let values = concatenated([ordered(state.values, first, seen).to(newValues.dtype), newValues], axis: 2)
    let (k, v) = (repeatedHeads(keys), repeatedHeads(values))
    let features = keyMap(k)
    let y = windowedLinearAttention(
      q, k, v, queryFeatures: queryFeatures(q), keyFeatures: features, windowFactor: gate, window: options.window,
      layout: options.layout, scale: configuration.scale, state: first > 0 ? (state.memory, state.normalizer) : nil, position: first)
    // What no later window holds goes into the sums, the rest into the ring.
    let kept = oldest(after: seen + length)
    let leaving = kept - first
    if leaving > 0 {
      let gone = features.narrowed(axis: 2, start: 0, length: leaving)
      state.memory = state.memory + gone.T.matmul(v.narrowed(axis: 2, start: 0, length: leaving))
      state.normalizer = state.normalizer + gone.sum(axis: 2)
    }
    state.keys = ring(keys, leaving, kept)
    state.values = ring(values, leaving, kept)
    state.positions = state.positions.map { $0 + length }
    return output(mergeHeads(y))
  }

  /// Positions first..<end of a ring, in order.
  private func ordered(_ ring: Tensor, _ first: Int, _ end: Int) -> Tensor {
    let (start, count) = (first % capacity, end - first)
    let early = min(count, capacity - start)
    let head = ring.narrowed(axis: 2, start: start, length: early)
    return early == count ? head : concatenated([head, ring.narrowed(axis: 2, start: 0, length: count - early)], axis: 2)
  }

  /// The ring whose first position is `first`, of entries from `start` on.
  private func ring(_ entries: Tensor, _ start: Int, _ first: Int) -> Tensor {
    let count = entries.dim(2) - start
    let padded = entries.narrowed(axis: 2, start: start, length: count).padded([0, 0, 0, capacity - count])
    return first % capacity == 0 ? padded.contiguous() : padded.rolled(by: first % capacity, axis: 2)
  }

  public func stateBytes(_ state: State) -> Int { state.byteCount }

  public func multiplyAdds(length: Int) -> Int {
    let c = configuration
    let seen = min(length, options.layout == .blocks ? 3 * options.window / 2 : options.window)
    let linear = length > options.window ? 2 * keyMap.features * c.headWidth : 0
    return length
      * (query.multiplyAdds() + key.multiplyAdds() + value.multiplyAdds() + output.multiplyAdds() + queryMap.multiplyAdds()
        + keyMap.multiplyAdds() + c.heads * (2 * seen * c.headWidth + linear))
  }
}

private let kernel = Operator("martlet::windowed_linear_attention")
private let stepKernel = Operator("martlet::windowed_linear_attention_step")

/// Softmax inside a window and linear attention before it, with one normalisation: queries [B, H, L, d] over keys [B, H, S, d] and values
/// [B, H, S, dv], S ≥ L → [B, H, L, dv]. The queries are those of the last L keys.
///
/// - Parameters:
///   - queryFeatures: [B, H, L, F]; keyFeatures: [B, H, S, F]; not negative.
///   - windowFactor: g > 0, [H].
///   - scale: default d^−½.
///   - state: Σ φ(k)ᵀ v [B, H, F, dv] and Σ φ(k) [B, H, F] over what stands before the first key.
///   - position: of the first key, from which blocks are counted.
public func windowedLinearAttention(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, queryFeatures: Tensor, keyFeatures: Tensor, windowFactor: Tensor, window: Int,
  layout: WindowedLinearAttention.Layout = .sliding, scale: Double? = nil, state: (memory: Tensor, normalizer: Tensor)? = nil,
  position: Int = 0
) -> Tensor {
  let recordsState = isGradientEnabled && state.map { $0.memory.requiresGradient || $0.normalizer.requiresGradient } ?? false
  guard fusedKernelsServe(query), queryFeatures.dtype == .float32, windowFactor.dtype == .float32, !recordsState else {
    return windowedLinearAttentionChunked(
      query, key, value, queryFeatures: queryFeatures, keyFeatures: keyFeatures, windowFactor: windowFactor, window: window,
      layout: layout, scale: scale, state: state, position: position)
  }
  return kernel(
    .tensor(query), .tensor(key), .tensor(value), .tensor(queryFeatures), .tensor(keyFeatures), .tensor(windowFactor), .int(window),
    .bool(layout == .blocks), scale.map { .double($0) } ?? .none, .tensor(state?.memory), .tensor(state?.normalizer), .int(position))
}

/// The first key in the window of the query at key `i`.
private func windowStart(_ i: Int, _ window: Int, _ layout: WindowedLinearAttention.Layout, _ position: Int) -> Int {
  switch layout {
  case .sliding: max(0, i - window + 1)
  case .blocks: max(0, ((i + position) / window - 1) * window - position)
  }
}

/// The weights before normalisation of queries at keys `rows` over keys `columns`: e^{s − μ} times g inside the window, features' products
/// before it, 0 after the query.
private func hybridWeights(
  _ query: Tensor, _ key: Tensor, _ queryFeatures: Tensor, _ keyFeatures: Tensor, _ windowFactor: Tensor, rows: Range<Int>,
  columns: Range<Int>, window: Int, layout: WindowedLinearAttention.Layout, scale: Double, position: Int
) -> Tensor {
  let i = (Tensor.arange(rows.count, device: query.device) + rows.lowerBound).expandedDimension(1)
  let j = Tensor.arange(columns.count, device: query.device) + columns.lowerBound
  let starts = Tensor(rows.map { windowStart($0, window, layout, position) }).to(query.device).expandedDimension(1)
  let before = j .< starts
  let scores = (query.matmul(key.T) * scale).maskedFill(before .| (j .> i), -.infinity)
  let softmax = (scores - scores.max(axis: -1, keepDims: true)).exp() * windowFactor.reshaped(-1, 1, 1).to(query.dtype)
  return softmax + queryFeatures.matmul(keyFeatures.T).maskedFill(.!before, 0)
}

/// The normalised weights of all queries, [B, H, L, L]: rows sum to 1. Quadratic.
public func windowedLinearAttentionWeights(
  _ query: Tensor, _ key: Tensor, queryFeatures: Tensor, keyFeatures: Tensor, windowFactor: Tensor, window: Int,
  layout: WindowedLinearAttention.Layout = .sliding, scale: Double? = nil
) -> Tensor {
  let length = query.dim(2)
  let weights = hybridWeights(
    query, key, queryFeatures, keyFeatures, windowFactor, rows: 0..<length, columns: 0..<length, window: window, layout: layout,
    scale: scale ?? 1 / Double(query.dim(-1)).squareRoot(), position: 0)
  return weights / weights.sum(axis: -1, keepDims: true)
}

/// The equation with the whole matrix of weights: the oracle. Shapes as
/// ``windowedLinearAttention(_:_:_:queryFeatures:keyFeatures:windowFactor:window:layout:scale:state:position:)`` without a state.
public func windowedLinearAttentionReference(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, queryFeatures: Tensor, keyFeatures: Tensor, windowFactor: Tensor, window: Int,
  layout: WindowedLinearAttention.Layout = .sliding, scale: Double? = nil
) -> Tensor {
  windowedLinearAttentionWeights(
    query, key, queryFeatures: queryFeatures, keyFeatures: keyFeatures, windowFactor: windowFactor, window: window, layout: layout,
    scale: scale
  ).matmul(value)
}

/// The same by blocks of queries in plain operators, in linear time on every device and dtype: the keys from a block's first window on are
/// one matrix of weights, all older ones are in the sums.
public func windowedLinearAttentionChunked(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, queryFeatures: Tensor, keyFeatures: Tensor, windowFactor: Tensor, window: Int,
  layout: WindowedLinearAttention.Layout = .sliding, scale: Double? = nil, state: (memory: Tensor, normalizer: Tensor)? = nil,
  position: Int = 0, chunk: Int = 64
) -> Tensor {
  let factor = scale ?? 1 / Double(query.dim(-1)).squareRoot()
  let (length, offset) = (query.dim(2), key.dim(2) - query.dim(2))
  var memory = state?.memory
  var normalizer = state?.normalizer
  var summed = 0
  var outputs: [Tensor] = []
  for start in stride(from: 0, to: length, by: chunk) {
    let size = min(chunk, length - start)
    let rows = (start + offset)..<(start + offset + size)
    let first = windowStart(rows.lowerBound, window, layout, position)
    func part(_ x: Tensor, _ begin: Int, _ end: Int) -> Tensor { x.narrowed(axis: 2, start: begin, length: end - begin) }
    if first > summed {
      let features = part(keyFeatures, summed, first)
      let more = features.T.matmul(part(value, summed, first))
      memory = memory.map { $0 + more } ?? more
      normalizer = normalizer.map { $0 + features.sum(axis: 2) } ?? features.sum(axis: 2)
      summed = first
    }
    let (q, features) = (part(query, start, start + size), part(queryFeatures, start, start + size))
    let columns = first..<rows.upperBound
    let weights = hybridWeights(
      q, part(key, first, rows.upperBound), features, part(keyFeatures, first, rows.upperBound), windowFactor, rows: rows,
      columns: columns, window: window, layout: layout, scale: factor, position: position)
    var top = weights.matmul(part(value, first, rows.upperBound))
    var bottom = weights.sum(axis: -1, keepDims: true)
    if let memory, let normalizer {
      top = top + features.matmul(memory)
      bottom = bottom + features.matmul(normalizer.expandedDimension(-1))
    }
    outputs.append(top / bottom)
  }
  return concatenated(outputs, axis: 2)
}

// MARK: The kind

extension MixerKind {
  /// The keys that linearising adds to those of softmax attention.
  static let linearizedKeys: [ConfigurationKey] = [
    ConfigurationKey("window", .integer, default: 64, "positions that softmax sees, the own one among them"),
    ConfigurationKey(
      "layout", .string, default: "sliding", "the last positions, or the own block and the one before",
      choices: WindowedLinearAttention.Layout.allCases.map(\.rawValue)),
    ConfigurationKey(
      "feature_map", .string, default: "hedgehog", "features of the linear part: softmax of xA and of −xA, or relu(xA + b)",
      choices: FeatureMapKind.allCases.map(\.rawValue)),
    ConfigurationKey(
      "features", .integer, default: .null, "columns of a head's feature matrix; null for half its channels (hedgehog) or all (rectified)"),
    ConfigurationKey(
      "initialization", .string, default: "kaiming", "of the feature matrices",
      choices: FeatureMapInitialization.allCases.map(\.rawValue)),
    ConfigurationKey("affine", .boolean, default: false, "the linear part weighs 1 − g beside the window's g"),
    ConfigurationKey("window_factor", .number, default: -2.197, "γ at the start: the window weighs g = σ(γ)"),
  ]

  static func linearizedOptions(_ options: JSONValue) -> WindowedLinearAttention.Options {
    WindowedLinearAttention.Options(
      window: options["window"]?.intValue ?? 64, layout: options["layout"]?.stringValue.flatMap { .init(rawValue: $0) } ?? .sliding,
      featureMap: options["feature_map"]?.stringValue.flatMap { .init(rawValue: $0) } ?? .hedgehog,
      features: options["features"]?.intValue,
      initialization: options["initialization"]?.stringValue.flatMap { .init(rawValue: $0) } ?? .kaiming,
      affine: options["affine"]?.boolValue ?? false, windowFactor: options["window_factor"]?.doubleValue ?? -2.197)
  }

  public static let lolcats = MixerKind(
    name: "lolcats", summary: "softmax in a window, linear attention before it (LoLCATs, Zhang et al. 2024)",
    keys: softmaxKeys + linearizedKeys, directions: [.causal]
  ) { site, options, generator in
    try WindowedLinearAttention(
      try softmaxConfiguration(site, options, window: nil), linearizedOptions(options), generator: generator)
  }
}
