/// DiagAttention (Qin et al. 2022, "The Devil in Linear Transformer", arXiv 2210.10340): attention inside blocks of w tokens that
/// don't overlap, TransNormer's early layers:
///
///     O_b = softmax(Q_b K_bᵀ / √d) V_b                            (``TransNormerForm/t2``)
///     O_b = relu(Q_b K_bᵀ / √d) V_b,  then SRMSNorm over all heads (``TransNormerForm/t1``)
///     Y = O W_o
///
/// with ``LRPE`` on queries and keys; causal inside a block when causal. Time O(L w D). The blocks are laid into the batch, so that T2
/// runs on the fused kernel of softmax attention. The state is the keys and values of the current block, [B, H, w, d]: it does not grow.
public final class DiagonalBlockAttention: Module, RecurrentMixer {
  public struct Configuration: Sendable {
    public var width: Int
    public var heads: Int
    /// w, tokens of a block.
    public var block: Int
    public var form: TransNormerForm
    /// Linearized relative positions on queries and keys.
    public var positions: Bool
    public var isCausal: Bool
    public var epsilon: Double

    public init(
      width: Int, heads: Int = 4, block: Int = 64, form: TransNormerForm = .t2, positions: Bool = true, isCausal: Bool = true,
      epsilon: Double = 1e-8
    ) {
      self.width = width
      self.heads = heads
      self.block = block
      self.form = form
      self.positions = positions
      self.isCausal = isCausal
      self.epsilon = epsilon
    }
  }

  public let configuration: Configuration
  @Child public var query: any LinearLayer
  @Child public var key: any LinearLayer
  @Child public var value: any LinearLayer
  @Child public var output: any LinearLayer
  @Child public var positions: LRPE?
  private let norm: SRMSNorm?

  public var isCausal: Bool { configuration.isCausal }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    require(c.width % c.heads == 0, "width \(c.width) is not a multiple of \(c.heads) heads")
    require(c.block > 0, "a block has at least one token, got \(c.block)")
    self.configuration = c
    norm = c.form == .t1 ? SRMSNorm(epsilon: c.epsilon) : nil
    super.init()
    func projection() -> any LinearLayer { Linear(c.width, c.width, initializer: .xavierUniform(), generator: generator) }
    query = projection()
    key = projection()
    value = projection()
    output = projection()
    positions = c.positions ? LRPE(dimensions: c.width / c.heads, generator: generator) : nil
  }

  /// Placed queries and keys, and values, each [B, H, L, d].
  private func project(_ x: Tensor, starts: [Int]) -> (q: Tensor, k: Tensor, v: Tensor) {
    let heads = configuration.heads
    let (q, k) = (splitHeads(query(x), heads), splitHeads(key(x), heads))
    return (positions?(q, starts: starts) ?? q, positions?(k, starts: starts) ?? k, splitHeads(value(x), heads))
  }

  private func finished(_ o: Tensor) -> Tensor { output(norm?(o) ?? o) }

  // MARK: Parallel form

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    let c = configuration
    var (q, k, v) = project(x, starts: [context.offset])
    var mask = context.mask
    let lead = context.offset % c.block
    if lead > 0 {
      // The first block began before the sequence: places that hold nothing.
      (q, k, v) = (q.padded([0, 0, lead, 0]), k.padded([0, 0, lead, 0]), v.padded([0, 0, lead, 0]))
      let real = mask ?? .ones([x.dim(0), x.dim(1)], dtype: .bool, device: x.device)
      mask = concatenated([.zeros([x.dim(0), lead], dtype: .bool, device: x.device), real], axis: 1)
    }
    let o = diagonalBlockAttention(q, k, v, block: c.block, form: c.form, causal: isCausal, keyMask: mask)
    return finished(mergeHeads(lead > 0 ? o[.all, .all, lead...] : o))
  }

  // MARK: Recurrent form

  public struct State: MixerState, @unchecked Sendable {
    /// Of the current block, [B, H, w, d]; places after a sequence's own hold nothing of worth.
    public var keys: Tensor
    public var values: Tensor
    /// Tokens seen by each sequence.
    public var positions: [Int]

    public func selecting(_ rows: [Int]) -> State {
      let index = Tensor(rows).to(keys.device)
      return State(keys: keys.take(index), values: values.take(index), positions: rows.map { positions[$0] })
    }

    public static func joined(_ states: [State]) -> State {
      State(
        keys: concatenated(states.map(\.keys)), values: concatenated(states.map(\.values)), positions: states.flatMap(\.positions))
    }
  }

  public func initialState(batch: Int) -> State {
    require(isCausal, "bidirectional attention can't run token by token")
    let c = configuration
    let like = stateKind(query)
    func empty() -> Tensor { .zeros([batch, c.heads, c.block, c.width / c.heads], dtype: like.dtype, device: like.device) }
    return State(keys: empty(), values: empty(), positions: Array(repeating: 0, count: batch))
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor {
    let c = configuration
    let (q, k, v) = project(x.expandedDimension(1), starts: state.positions)
    let places = state.positions.map { $0 % c.block }
    let isFused = fusedKernelsServe(x) && !isGradientEnabled
    if isFused, places.allSatisfy({ $0 == places[0] }) {
      state.keys.narrowed(axis: 2, start: places[0], length: 1).copyInPlace(k)
      state.values.narrowed(axis: 2, start: places[0], length: 1).copyInPlace(v)
    } else {
      let here = Tensor.arange(c.block, device: x.device) .== Tensor(places).to(x.device).expandedDimension(1)  // [B, w]
      let place = here[.all, .newAxis, .all, .newAxis]
      (state.keys, state.values) = (select(place, k, state.keys), select(place, v, state.values))
    }
    state.positions = state.positions.map { $0 + 1 }
    let o: Tensor
    if isFused, c.form == .t2 {
      o = attentionStep(
        .tensor(q.selected(axis: 2, 0)), .tensor(state.keys), .tensor(state.values), .tensor(Tensor(places.map { $0 + 1 })), .int(-1),
        .none,
        .none, .none, .none, .none)
    } else {
      let seen = Tensor.arange(c.block, device: x.device) .<= Tensor(places).to(x.device).expandedDimension(1)
      o =
        c.form == .t2
        ? softmaxAttentionReference(q, state.keys, state.values, keyMask: seen, causal: false)
        : reluAttention(q, state.keys, state.values, allowed: seen[.all, .newAxis, .newAxis])
    }
    return finished(o.reshaped(x.dim(0), -1))
  }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    let c = configuration
    guard state.positions.allSatisfy({ $0 == state.positions[0] }) else {
      // Rows that stand at different places of their blocks: each by itself.
      var rows = state.positions.indices.map { state.selecting([$0]) }
      let y = rows.indices.map { advance(x.narrowed(axis: 0, start: $0, length: 1), &rows[$0]) }
      state = .joined(rows)
      return concatenated(y)
    }
    var (q, k, v) = project(x, starts: state.positions)
    let lead = state.positions[0] % c.block
    if lead > 0 {
      // The block goes on: what it holds stands before the new keys, and no query that is wanted before the new ones.
      q = q.padded([0, 0, lead, 0])
      k = concatenated([state.keys.narrowed(axis: 2, start: 0, length: lead), k], axis: 2)
      v = concatenated([state.values.narrowed(axis: 2, start: 0, length: lead), v], axis: 2)
    }
    let o = diagonalBlockAttention(q, k, v, block: c.block, form: c.form, causal: true)
    let left = k.dim(2) % c.block
    if left > 0 {
      func last(_ x: Tensor) -> Tensor { x.narrowed(axis: 2, start: x.dim(2) - left, length: left).padded([0, 0, 0, c.block - left]) }
      (state.keys, state.values) = (last(k).contiguous(), last(v).contiguous())
    }
    state.positions = state.positions.map { $0 + x.dim(1) }
    return finished(mergeHeads(lead > 0 ? o[.all, .all, lead...] : o))
  }

  public func stateBytes(_ state: State) -> Int { state.keys.byteCount + state.values.byteCount }

  public func multiplyAdds(length: Int) -> Int {
    let c = configuration
    let maps = query.multiplyAdds() + key.multiplyAdds() + value.multiplyAdds() + output.multiplyAdds()
    let seen = min(length, c.block)
    return length * maps + 2 * length * (isCausal ? (seen + 1) / 2 : seen) * c.width
  }
}

private let attentionStep = Operator("martlet::attention_step")

/// relu(q kᵀ / √d) v for [..., L, d] where `allowed` [..., L or 1, S] is true.
private func reluAttention(_ q: Tensor, _ k: Tensor, _ v: Tensor, allowed: Tensor?) -> Tensor {
  let scores = (q * (1 / Double(q.dim(-1)).squareRoot())).matmul(k.T)
  return (allowed.map { scores.maskedFill(.!$0, 0) } ?? scores).relu().matmul(v)
}

/// Attention inside blocks of `block` positions, [B, H, L, d] each → [B, H, L, d]; the last block may be shorter.
///
/// - Parameter keyMask: [B, L] bool, true where there is a key. A query that sees none gets 0.
public func diagonalBlockAttention(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, block: Int, form: TransNormerForm = .t2, causal: Bool, keyMask: Tensor? = nil
) -> Tensor {
  let (batch, heads, length, d) = (query.dim(0), query.dim(1), query.dim(2), query.dim(3))
  let size = min(block, length)
  let blocks = (length + size - 1) / size
  let missing = blocks * size - length
  /// [B, H, L, d] → [B · blocks, H, size, d]; a view where a layer's channels stand as [B, L, H, d] and no position is missing.
  func folded(_ x: Tensor) -> Tensor {
    var rows = x.swappedAxes(1, 2)  // [B, L, H, d]
    if missing > 0 { rows = rows.padded([0, 0, 0, 0, 0, missing]) }
    return rows.reshaped(batch * blocks, size, heads, d).swappedAxes(1, 2)
  }
  var mask = keyMask
  if missing > 0, mask != nil || !causal {
    // Causal queries don't see what stands after the last of them.
    mask = (mask ?? .ones([batch, length], dtype: .bool, device: query.device)).padded([0, missing])
  }
  mask = mask?.reshaped(batch * blocks, size)
  let (q, k, v) = (folded(query), folded(key), folded(value))
  let o: Tensor
  switch form {
  case .t2: o = softmaxAttention(q, k, v, keyMask: mask, causal: causal)
  case .t1:
    var allowed = mask?[.all, .newAxis, .newAxis]
    if causal {
      let past = Tensor.ones([size, size], dtype: .bool, device: query.device).lowerTriangle()
      allowed = allowed.map { $0 .& past } ?? past
    }
    o = reluAttention(q, k, v, allowed: allowed)
  }
  let rows = o.swappedAxes(1, 2).reshaped(batch, blocks * size, heads, d)
  return (missing > 0 ? rows[.all, ..<length] : rows).swappedAxes(1, 2)
}

extension MixerKind {
  public static let diagonalAttention = MixerKind(
    name: "diagonal_attention", summary: "attention inside blocks that don't overlap (TransNormer, Qin et al. 2022)",
    keys: transNormerKeys + [ConfigurationKey("block", .integer, default: 64, "tokens of a block")]
  ) { site, options, generator in
    let (heads, form, positions) = try transNormer(options, site)
    let block = options["block"]?.intValue ?? 64
    guard block > 0 else { throw ConfigurationError("block must be positive, got \(block)") }
    return DiagonalBlockAttention(
      .init(width: site.width, heads: heads, block: block, form: form, positions: positions, isCausal: site.isCausal), generator: generator)
  }
}

extension MixerKind {
  /// Either of TransNormer's layers, under one name: for those who know the model and not its parts. It isn't in the list of all mixers,
  /// which has the two by themselves.
  public static let transNormerLayer = MixerKind(
    name: "transnormer", summary: "an attention layer of TransNormer (Qin et al. 2022)",
    keys: [ConfigurationKey("layer", .string, default: "norm", "NormAttention or DiagAttention", choices: ["norm", "diagonal"])]
      + diagonalAttention.keys
  ) { site, options, generator in
    var own = options.objectValue ?? JSONObject()
    own["layer"] = nil
    guard options["layer"]?.stringValue == "diagonal" else {
      own["block"] = nil
      return try normAttention(site, options: .object(own), generator: generator)
    }
    return try diagonalAttention(site, options: .object(own), generator: generator)
  }
}
