import Foundation
import MartletNN

/// Kernelised attention with a relative position bias (NPRF with RPE, Luo et al. 2021, arXiv 2106.12566):
///
///     o_i = φ(q̂_i) Σ_j c_{j−i} φ(k̂_j)ᵀ v_j / φ(q̂_i)·Σ_j c_{j−i} φ(k̂_j),      c_δ = e^{b_δ}
///
/// with positive random features φ(x) = e^{−‖x‖²/2} m^{−½} [e^{w_1·x}, …, e^{w_m·x}], E φ(x)·φ(y) = e^{x·y}, of *normalised* queries and keys,
/// q̂ = q/‖q‖: their variance is bounded, which makes training from scratch stable, and the bias b gives back the sharpness that normalising
/// takes. As the bias multiplies the kernel, all sums are products with Toeplitz matrices [c_{j−i}]: O(L log L) by Fourier
/// transforms (``toeplitzAttention(_:_:_:past:future:)``), or the plain quadratic form where the sequence is short.
///
/// x: [batch, length, width] → the same shape. Tokens may also be those of a grid in row-major order, with the bias b_{δy, δx}. Without a
/// bias (`rpe` off) this is plain kernel attention, linear in the length; without normalisation it is Performer's, whose queries and keys are divided by d^¼
/// and whose features' error grows exponentially with their norms.
///
/// The transform's rounding is some 10⁻⁷ of the largest sum: in float32 a query whose weights c are all below 10⁻⁶ of the head's largest,
/// for instance because the one large distance lies outside the sequence, is not resolved by it. The quadratic form has no such limit;
/// it also serves the first positions of a causal layer, whose sums are short.
///
/// The bias is arbitrary, so that no state of constant size is exact: the recurrent form keeps every token's key and value.
public final class NormalizedKernelAttention: Module, RecurrentMixer {
  /// How the sums are computed.
  public enum Form: String, Codable, Sendable, CaseIterable {
    /// The quadratic form up to ``NormalizedKernelAttention/quadraticLimit`` positions, transforms beyond.
    case automatic
    case quadratic
    case fourier
  }

  public struct Configuration: Sendable {
    public var width: Int
    public var heads: Int
    /// m, random features a head.
    public var features: Int
    public var isCausal: Bool
    /// Relative position bias.
    public var rpe: Bool
    /// Distances 0..<distance (rows of a grid) have a bias of their own.
    public var distance: Int
    /// Tokens a row of a grid; `nil` for a line.
    public var columns: Int?
    public var sharedBias: Bool
    /// Queries and keys of norm 1, instead of dividing them by d^¼.
    public var normalized: Bool
    /// Feature directions orthogonal in blocks of d.
    public var orthogonal: Bool
    public var form: Form
    public var bias: Bool

    public init(
      width: Int, heads: Int = 4, features: Int = 16, isCausal: Bool = true, rpe: Bool = true, distance: Int = 1024, columns: Int? = nil,
      sharedBias: Bool = false, normalized: Bool = true, orthogonal: Bool = true, form: Form = .automatic, bias: Bool = false
    ) {
      self.width = width
      self.heads = heads
      self.features = features
      self.isCausal = isCausal
      self.rpe = rpe
      self.distance = distance
      self.columns = columns
      self.sharedBias = sharedBias
      self.normalized = normalized
      self.orthogonal = orthogonal
      self.form = form
      self.bias = bias
    }
  }

  /// Positions up to which the quadratic form is faster (forward and backward, heads of 64 channels, 16 features).
  public static let quadraticLimit = 128

  public let configuration: Configuration
  @Child public var query: any LinearLayer
  @Child public var key: any LinearLayer
  @Child public var value: any LinearLayer
  @Child public var output: any LinearLayer
  /// w, [heads, m, d], fixed.
  @Buffer public var features: Tensor
  @Child public var rpe: RelativeBias?

  public var isCausal: Bool { configuration.isCausal }
  private var headWidth: Int { configuration.width / configuration.heads }

  /// - Parameter bias: a relative bias to be shared with another layer; `nil` makes one where the configuration asks for it.
  public init(_ configuration: Configuration, bias: RelativeBias? = nil, generator: RandomGenerator) {
    let c = configuration
    require(c.width % c.heads == 0, "width \(c.width) is not a multiple of \(c.heads) heads")
    require(c.features > 0, "kernel attention needs a positive number of features, got \(c.features)")
    self.configuration = c
    super.init()
    query = Linear(c.width, c.width, bias: c.bias, generator: generator)
    key = Linear(c.width, c.width, bias: c.bias, generator: generator)
    value = Linear(c.width, c.width, bias: c.bias, generator: generator)
    output = Linear(c.width, c.width, bias: c.bias, generator: generator)
    features = Self.directions(c, generator)
    rpe =
      c.rpe
      ? bias
        ?? RelativeBias(
          .init(heads: c.heads, distance: c.distance, columns: c.columns, isCausal: c.isCausal, isShared: c.sharedBias)) : nil
    if let rpe {
      require(
        rpe.configuration.heads == c.heads && rpe.configuration.isCausal == c.isCausal && rpe.configuration.columns == c.columns,
        "the relative bias is one of other heads, another direction or another grid")
    }
  }

  /// w ~ N(0, I) for each head and feature; orthogonal ones keep the norms of independent draws, so that each alone is still N(0, I).
  private static func directions(_ c: Configuration, _ generator: RandomGenerator) -> Tensor {
    let d = c.width / c.heads
    guard c.orthogonal else { return Tensor.randomNormal([c.heads, c.features, d], generator: generator) }
    let blocks = (c.features + d - 1) / d
    let rows = (0..<(c.heads * blocks)).map { _ in
      Initializer.orthogonal()([d, d], generator)
        * Tensor.randomNormal([d, d], generator: generator).norm(axis: 1, keepDims: true)
    }
    return stacked(rows).reshaped(c.heads, blocks * d, d)[0..., ..<c.features].contiguous()
  }

  /// Draws new feature directions.
  public func redrawFeatures(generator: RandomGenerator) {
    withoutGradient { features.copyInPlace(Self.directions(configuration, generator)) }
  }

  // MARK: Features

  /// w·x − ‖x‖²/2 of normalised (or scaled) x [B, H, L, d] → [B, H, L, m]: φ(x) = e^{that} / √m.
  private func exponents(_ x: Tensor) -> Tensor {
    guard configuration.normalized else {
      let scaled = x * pow(Double(headWidth), -0.25)
      return scaled.matmul(features.to(x.dtype).T) - scaled.square().sum(axis: -1, keepDims: true) * 0.5
    }
    let unit = x / x.norm(axis: -1, keepDims: true).clamped(min: 1e-12)
    return unit.matmul(features.to(x.dtype).T) - 0.5
  }

  /// φ from exponents. Unnormalised ones are first reduced by their largest along `axes`, a factor that cancels in the quotient.
  private func positive(_ exponents: Tensor, axes: [Int]) -> Tensor {
    var e = exponents
    if !configuration.normalized {
      var largest = e.detached()
      for axis in axes { largest = largest.max(axis: axis, keepDims: true) }
      e = e - largest
    }
    return e.exp() * (1 / Double(configuration.features).squareRoot())
  }

  /// q, k exponents [B, H, L, m] and v [B, H, L, d].
  private func project(_ x: Tensor) -> (q: Tensor, k: Tensor, v: Tensor) {
    let heads = configuration.heads
    return (exponents(splitHeads(query(x), heads)), exponents(splitHeads(key(x), heads)), splitHeads(value(x), heads))
  }

  // MARK: Parallel form

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    var (q, k, v) = project(x)
    if let mask = context.mask {
      // Padding has no part in the largest exponent either.
      k = k.maskedFill(.!mask[0..., .newAxis, 0..., .newAxis], configuration.normalized ? -100 : -1e30)
      v = v * mask[0..., .newAxis, 0..., .newAxis].to(v.dtype)
    }
    (q, k) = (positive(q, axes: [-1]), positive(k, axes: [-1, -2]))
    if let mask = context.mask { k = k * mask[0..., .newAxis, 0..., .newAxis].to(k.dtype) }
    return output(mergeHeads(mix(q, k, v)))
  }

  /// The equation over features.
  private func mix(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
    guard let rpe else { return linearAttention(q, k, v, causal: isCausal, epsilon: Self.least) }
    let length = q.dim(2)
    func quadratic(_ count: Int) -> Tensor {
      let places = Tensor.arange(count)
      func first(_ t: Tensor) -> Tensor { t.narrowed(axis: 2, start: 0, length: count) }
      return weighted(first(q), first(k), first(v), query: places, key: places, rpe)
    }
    switch configuration.form {
    case .quadratic: return quadratic(length)
    case .fourier: return transformed(q, k, v, rpe)
    case .automatic:
      guard length > Self.quadraticLimit else { return quadratic(length) }
      let o = transformed(q, k, v, rpe)
      guard isCausal else { return o }
      // The transform's rounding is one of sums over the whole length, the first positions' sums are of few terms: at 64k positions two
      // digits would be left of them.
      let first = Self.quadraticLimit
      return concatenated([quadratic(first), o.narrowed(axis: 2, start: first, length: length - first)], axis: 2)
    }
  }

  /// The Fourier form.
  private func transformed(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ rpe: RelativeBias) -> Tensor {
    let length = q.dim(2)
    guard let columns = configuration.columns else {
      let distance = Tensor.arange(length)
      let origin = Tensor([0])
      let past = rpe.values(rpe.places(query: distance, key: origin))
      let future = isCausal ? nil : rpe.values(rpe.places(query: origin, key: distance))
      return quotient(q, k, v, past: past, future: future)
    }
    // A row of C tokens becomes one of 2C − 1, the rest zeros: then l = y(2C − 1) + x and δ_l = δy(2C − 1) + δx, which tells δy and δx, so that
    // the Toeplitz matrix of the grid is one of a line.
    let rows = (length + columns - 1) / columns
    let row = 2 * columns - 1
    let total = (rows - 1) * row + columns
    func spread(_ t: Tensor) -> Tensor {
      let grid = t.padded([0, 0, 0, rows * columns - length]).reshaped(t.dim(0), t.dim(1), rows, columns, t.dim(-1))
      return grid.padded([0, 0, 0, columns - 1]).reshaped(t.dim(0), t.dim(1), rows * row, t.dim(-1)).narrowed(
        axis: 2, start: 0, length: total)
    }
    let shifted = Tensor.arange(total) + (columns - 1)
    let rowsApart = shifted.floorDivided(by: Tensor([row]))
    let columnsApart = shifted % row - (columns - 1)
    let past = rpe.values(rpe.places(rows: -rowsApart, columns: -columnsApart))
    let future = isCausal ? nil : rpe.values(rpe.places(rows: rowsApart, columns: columnsApart))
    let o = quotient(spread(q), spread(k), spread(v), past: past, future: future)
    return o.padded([0, 0, 0, rows * row - total]).reshaped(o.dim(0), o.dim(1), rows, row, o.dim(-1))[.ellipsis, ..<columns, 0...]
      .reshaped(o.dim(0), o.dim(1), rows * columns, o.dim(-1)).narrowed(axis: 2, start: 0, length: length)
  }

  /// What a denominator of no keys at all is raised to.
  private static let least = 1e-20

  /// N/D by Toeplitz products, from biases [H, L].
  private func quotient(_ q: Tensor, _ k: Tensor, _ v: Tensor, past: Tensor, future: Tensor?) -> Tensor {
    // A constant added to b cancels; with the largest at 0 nothing overflows.
    var largest = past.detached().max(axis: -1, keepDims: true)
    if let future { largest = maximum(largest, future.detached().max(axis: -1, keepDims: true)) }
    let (numerator, denominator) = toeplitzAttention(
      q, k, v, past: (past - largest).exp().to(q.dtype), future: future.map { ($0 - largest).exp().to(q.dtype) })
    return numerator / (denominator + Self.least).expandedDimension(-1)
  }

  /// The quadratic form for queries and keys at given positions.
  private func weighted(_ q: Tensor, _ k: Tensor, _ v: Tensor, query: Tensor, key: Tensor, _ rpe: RelativeBias) -> Tensor {
    let (i, j) = (query.expandedDimension(-1), key.expandedDimension(0))
    var b = rpe.values(rpe.places(query: i, key: j))  // [H, queries, keys]
    if isCausal { b = b.maskedFill(j .> i, -Double.infinity) }
    let largest = b.detached().max(axis: -1, keepDims: true)
    let weights = (b - largest).exp().to(q.dtype) * q.matmul(k.T)
    return weights.matmul(v) / (weights.sum(axis: -1, keepDims: true) + Self.least)
  }

  // MARK: Recurrent form

  /// Keys and values of every token, in memory that doubles when it is full.
  public struct State: TensorState, @unchecked Sendable {
    private var storage: (keys: Tensor, values: Tensor)
    /// Tokens of the longest sequence.
    public private(set) var count: Int
    /// Whether shorter sequences were put beside longer ones, all ending at the same place: what stands before them has no weight.
    fileprivate private(set) var isAligned = false

    /// - Parameters:
    ///   - keys: w·k − ‖k‖²/2, [B, H, t, m].
    ///   - values: [B, H, t, d].
    public init(keys: Tensor, values: Tensor) {
      storage = (keys, values)
      count = keys.dim(2)
    }

    public var keys: Tensor { storage.keys.narrowed(axis: 2, start: 0, length: count) }
    public var values: Tensor { storage.values.narrowed(axis: 2, start: 0, length: count) }
    public var tensors: [Tensor] {
      get { [keys, values] }
      set {
        storage = (newValue[0], newValue[1])
        count = newValue[0].dim(2)
      }
    }

    /// Bytes of the tokens; the room for further ones doesn't count.
    fileprivate var byteCount: Int { keys.byteCount + values.byteCount }

    fileprivate mutating func append(_ keys: Tensor, _ values: Tensor) {
      let total = count + keys.dim(2)
      if isGradientEnabled {
        tensors = [concatenated([self.keys, keys], axis: 2), concatenated([self.values, values], axis: 2)]
        return
      }
      if storage.keys.dim(2) < total {
        let room = max(64, 2 * total) - count
        func enlarged(_ t: Tensor) -> Tensor {
          concatenated([t, .empty([t.dim(0), t.dim(1), room, t.dim(3)], dtype: t.dtype, device: t.device)], axis: 2)
        }
        storage = (enlarged(self.keys), enlarged(self.values))
      }
      storage.keys.narrowed(axis: 2, start: count, length: keys.dim(2)).copyInPlace(keys)
      storage.values.narrowed(axis: 2, start: count, length: values.dim(2)).copyInPlace(values)
      count = total
    }

    /// Sequences of different lengths end at the same place, as only differences of positions count.
    public static func joined(_ states: [State]) -> State {
      let longest = states.map(\.count).max() ?? 0
      func joined(_ tensors: [Tensor], _ filling: Double) -> Tensor {
        concatenated(tensors.map { $0.padded([0, 0, longest - $0.dim(2), 0], value: filling) })
      }
      var result = State(keys: joined(states.map(\.keys), -.infinity), values: joined(states.map(\.values), 0))
      result.isAligned = states.contains { $0.isAligned || $0.count < longest }
      return result
    }

    public mutating func truncate(to length: Int) -> Bool {
      guard length <= count, !isAligned else { return false }
      count = length
      return true
    }
  }

  public func initialState(batch: Int) -> State {
    require(isCausal, "bidirectional attention can't run token by token")
    let like = stateKind(query)
    return State(
      keys: .zeros([batch, configuration.heads, 0, configuration.features], dtype: like.dtype, device: like.device),
      values: .zeros([batch, configuration.heads, 0, headWidth], dtype: like.dtype, device: like.device))
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor { advance(x.expandedDimension(1), &state).squeezed(1) }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    require(!(state.isAligned && configuration.columns != nil), "sequences at different places of a grid can't go on together")
    let before = state.count
    let (q, k, v) = project(x)
    state.append(k.to(stateKind(query).dtype), v.to(stateKind(query).dtype))
    if before == 0 { return output(mergeHeads(mix(positive(q, axes: [-1]), positive(k, axes: [-1, -2]), v))) }
    // Queries in blocks, so that the matrix of weights stays small.
    let block = max(1, (1 << 20) / state.count)
    let keys = positive(state.keys, axes: [-1, -2])
    let values = state.values
    var outputs: [Tensor] = []
    for start in stride(from: 0, to: x.dim(1), by: block) {
      let count = min(block, x.dim(1) - start)
      let queries = positive(q.narrowed(axis: 2, start: start, length: count).to(keys.dtype), axes: [-1])
      let seen = before + start + count
      let (seenKeys, seenValues) = (keys.narrowed(axis: 2, start: 0, length: seen), values.narrowed(axis: 2, start: 0, length: seen))
      let (i, j) = (Tensor.arange(count) + (before + start), Tensor.arange(seen))
      if let rpe {
        outputs.append(weighted(queries, seenKeys, seenValues, query: i, key: j, rpe))
      } else {
        let weights = queries.matmul(seenKeys.T).lowerTriangle(before + start)
        outputs.append(weights.matmul(seenValues) / (weights.sum(axis: -1, keepDims: true) + Self.least))
      }
    }
    return output(mergeHeads(concatenated(outputs, axis: 2).to(x.dtype)))
  }

  public func stateBytes(_ state: State) -> Int { state.byteCount }

  public func multiplyAdds(length: Int) -> Int {
    let (d, m) = (headWidth, configuration.features)
    let projections = query.multiplyAdds() + key.multiplyAdds() + value.multiplyAdds() + output.multiplyAdds()
    let pairs: Int
    if rpe == nil {
      pairs = 2 * m * d
    } else if length <= Self.quadraticLimit {
      pairs = length * (m + d)
    } else {
      pairs = Int(Double(m * (d + 1)) * 5 * log2(Double(length)))  // two transforms of 5 L log₂ L operations, two to a multiply-add
    }
    return length * (projections + 2 * configuration.width * m + configuration.heads * pairs)
  }
}

private let kernel = Operator("martlet::toeplitz_attention")

/// Features weighted by a Toeplitz matrix: N_i = Σ_j c_{j−i} (q_i·k_j) v_j and D_i, the same of ones, where c_{−m} = past_m and, for
/// m ≥ 1, c_m = future_m (`nil` for none: causal).
///
/// - Parameters:
///   - query: [B, H, L, m]; key the same; value: [B, H, L, dv].
///   - past: [H, L]; future the same, whose place 0 is not read.
/// - Returns: N [B, H, L, dv] and D [B, H, L]. Time O(m·dv·L log L); memory O(L (m + dv)) on the kernel `martlet::toeplitz_attention`.
public func toeplitzAttention(_ query: Tensor, _ key: Tensor, _ value: Tensor, past: Tensor, future: Tensor? = nil) -> (
  numerator: Tensor, denominator: Tensor
) {
  guard fusedKernelsServe(query) else { return toeplitzAttentionReference(query, key, value, past: past, future: future) }
  let results = kernel.many(.tensor(query), .tensor(key), .tensor(value), .tensor(past), .tensor(future))
  return (results[0] ?? .zeros([1]), results[1] ?? .zeros([1]))
}

/// The same by real Fourier transforms of all products of features and values, in blocks of features: the oracle, and the path of
/// other devices and types.
public func toeplitzAttentionReference(
  _ query: Tensor, _ key: Tensor, _ value: Tensor, past: Tensor, future: Tensor? = nil, block: Int = 16
) -> (numerator: Tensor, denominator: Tensor) {
  let length = query.dim(2)
  // First column of the circulant matrix of size 2L: c_0, c_{−1}, …, c_{1−L}, 0, c_{L−1}, …, c_1.
  let zero = Tensor.zeros([past.dim(0), 1], dtype: past.dtype, device: past.device)
  let behind = future?[0..., 1...].flipped(axis: -1) ?? Tensor.zeros([past.dim(0), length - 1], dtype: past.dtype, device: past.device)
  let weights = concatenated([past, zero, behind], axis: -1).rfft()[0..., .newAxis, .newAxis]  // [H, 1, 1, L + 1]
  let ones = Tensor.ones([value.dim(0), value.dim(1), 1, length], dtype: value.dtype, device: value.device)
  let columns = concatenated([value.T, ones], axis: 2)  // [B, H, dv + 1, L]
  var sum: Tensor?
  for start in stride(from: 0, to: query.dim(-1), by: block) {
    let count = min(block, query.dim(-1) - start)
    let k = key.narrowed(axis: -1, start: start, length: count).T  // [B, H, m, L]
    let q = query.narrowed(axis: -1, start: start, length: count).T
    let x = k.expandedDimension(3) * columns.expandedDimension(2)  // [B, H, m, dv + 1, L]
    let y = (x.rfft(length: 2 * length) * weights).irfft(length: 2 * length)[.ellipsis, ..<length]
    let part = (y * q.expandedDimension(3)).sum(axis: 2)
    sum = sum.map { $0 + part } ?? part
  }
  let result = (sum ?? Tensor.zeros(like: columns)).T  // [B, H, L, dv + 1]
  return (result[.ellipsis, ..<value.dim(-1)], result[.ellipsis, value.dim(-1)])
}

extension MixerKind {
  public static let nprf = MixerKind(
    name: "nprf", summary: "normalised kernel attention with a relative position bias by FFT (Luo et al. 2021)",
    keys: [
      headsKey, ConfigurationKey("features", .integer, default: 16, "m, random features a head"),
      ConfigurationKey("rpe", .boolean, default: true, "relative position bias"),
      ConfigurationKey("normalized", .boolean, default: true, "queries and keys of norm 1 (off: Performer's scaling)"),
      ConfigurationKey("orthogonal", .boolean, default: true, "orthogonal feature directions"),
      ConfigurationKey("max_distance", .integer, default: 0, "distances with a bias of their own; 0 takes the model's length (or rows)"),
      ConfigurationKey("shared_bias", .boolean, default: false, "one bias for all heads"),
      ConfigurationKey("grid_columns", .integer, default: 0, "tokens a row of a grid; 0 for a line"),
      ConfigurationKey(
        "form", .string, default: "automatic", "how the sums are computed",
        choices: NormalizedKernelAttention.Form.allCases.map(\.rawValue)),
    ]
  ) { site, options, generator in
    let heads = try heads(options, site)
    let (features, distance) = (options["features"]?.intValue ?? 16, options["max_distance"]?.intValue ?? 0)
    let columns = options["grid_columns"]?.intValue ?? 0
    guard features > 0, distance >= 0, columns >= 0 else {
      throw ConfigurationError("features must be positive, max_distance and grid_columns not negative")
    }
    let length = max(site.length, 1)
    let reach = columns == 0 ? length : (length + columns - 1) / columns
    return NormalizedKernelAttention(
      .init(
        width: site.width, heads: heads, features: features, isCausal: site.isCausal, rpe: options["rpe"]?.boolValue ?? true,
        distance: distance == 0 ? reach : distance, columns: columns == 0 ? nil : columns,
        sharedBias: options["shared_bias"]?.boolValue ?? false, normalized: options["normalized"]?.boolValue ?? true,
        orthogonal: options["orthogonal"]?.boolValue ?? true,
        form: options["form"]?.stringValue.flatMap(NormalizedKernelAttention.Form.init) ?? .automatic), generator: generator)
  }
}
