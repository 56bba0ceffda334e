/// Keys and values of the positions that attention has seen: its recurrent state.
///
/// The sequences of a batch may have different lengths. With a window the buffers are a ring that keeps only the positions that can
/// still be seen; otherwise they double when they are full. Storage in bfloat16 or int8 halves or quarters what each step reads.
public struct KeyValueCache: MixerState, @unchecked Sendable {
  /// [batch, heads, capacity, d], in the dtype of the storage.
  public private(set) var keys: Tensor
  public private(set) var values: Tensor
  /// For int8: number = stored · scale, [batch, heads, capacity] float32.
  public private(set) var keyScales: Tensor?
  public private(set) var valueScales: Tensor?
  /// Positions seen by each sequence.
  public private(set) var lengths: [Int]
  public let storage: CacheOptions.Storage
  /// Positions besides the newest that a ring keeps; `nil` keeps all.
  public let window: Int?

  public init(
    batch: Int, heads: Int, keyWidth: Int, valueWidth: Int, window: Int?, options: CacheOptions, dtype: DType, device: Device
  ) {
    storage = options.storage
    self.window = window
    let capacity = window.map { min($0 + 1, max(1, options.capacity)) } ?? max(1, options.capacity)
    let stored: DType =
      switch storage {
      case .full: dtype
      case .bfloat16: .bfloat16
      case .int8: .int8
      }
    keys = .zeros([batch, heads, capacity, keyWidth], dtype: stored, device: device)
    values = .zeros([batch, heads, capacity, valueWidth], dtype: stored, device: device)
    keyScales = storage == .int8 ? .zeros([batch, heads, capacity], device: device) : nil
    valueScales = storage == .int8 ? .zeros([batch, heads, capacity], device: device) : nil
    lengths = Array(repeating: 0, count: batch)
  }

  /// Over given tensors [batch, heads, capacity, d], of which each row holds so many positions.
  public init(keys: Tensor, values: Tensor, lengths: [Int]) {
    self.keys = keys
    self.values = values
    self.lengths = lengths
    storage = .full
    window = nil
    keyScales = nil
    valueScales = nil
  }

  public var capacity: Int { keys.dim(2) }
  public var byteCount: Int {
    keys.byteCount + values.byteCount + (keyScales?.byteCount ?? 0) + (valueScales?.byteCount ?? 0)
  }

  /// How many entries of each row hold something: all seen positions, or a full ring.
  public var filled: [Int] { lengths.map { min($0, capacity) } }

  /// Whether entries stand in the order of their positions in every row.
  public var isOrdered: Bool { lengths.allSatisfy { $0 <= capacity } }

  // MARK: Writing

  /// Makes room for `count` positions more in every row.
  private mutating func makeRoom(for count: Int) {
    let needed = (lengths.max() ?? 0) + count
    let limit = window.map { $0 + 1 } ?? .max
    if capacity > limit { shrink(to: limit) }
    guard needed > capacity && capacity < limit else { return }
    let grown = min(limit, max(needed, 2 * capacity))
    let extra = grown - capacity
    keys = keys.padded([0, 0, 0, extra])
    values = values.padded([0, 0, 0, extra])
    keyScales = keyScales?.padded([0, extra])
    valueScales = valueScales?.padded([0, extra])
  }

  /// Turns what was recorded for differentiation into a ring.
  private mutating func shrink(to limit: Int) {
    let (k, v) = ordered(keys.dtype)
    let first = max(0, k.dim(2) - limit)
    func ring(_ x: Tensor) -> Tensor {
      let kept = x.narrowed(axis: 2, start: first, length: x.dim(2) - first)
      return kept.dim(2) < limit
        ? kept.padded([0, 0, 0, limit - kept.dim(2)]) : kept.rolled(by: (lengths[0] - limit) % limit, axis: 2)
    }
    (keys, values) = (ring(k), ring(v))
  }

  private mutating func advance(by count: Int) { lengths = lengths.map { $0 + count } }

  /// Adds the keys and values of the next positions, [batch, heads, count, d], to every row.
  public mutating func append(_ k: Tensor, _ v: Tensor) {
    let count = k.dim(2)
    if isGradientEnabled && [k, v, keys, values].contains(where: \.requiresGradient) {
      // Writing in place would spoil what earlier steps keep for the backward pass.
      require(storage == .full && isUniform, "only full caches of equal lengths can be differentiated")
      let (oldKeys, oldValues) = ordered(k.dtype)
      keys = concatenated([oldKeys, k], axis: 2)
      values = concatenated([oldValues, v], axis: 2)
      advance(by: count)
      if !isOrdered {
        let turn = (lengths[0] - capacity) % capacity
        (keys, values) = (keys.rolled(by: turn, axis: 2), values.rolled(by: turn, axis: 2))
      }
      return
    }
    withoutGradient {
      makeRoom(for: count)
      // A ring keeps the last ones only.
      let skipped = max(0, count - capacity)
      let (newKeys, newKeyScales) = stored(k.narrowed(axis: 2, start: skipped, length: count - skipped))
      let (newValues, newValueScales) = stored(v.narrowed(axis: 2, start: skipped, length: count - skipped))
      func write(_ source: Tensor?, _ target: Tensor?) {
        guard let source, let target else { return }
        if isUniform {
          copy(source, 0, target, (lengths[0] + skipped) % capacity)
        } else {
          for row in lengths.indices {
            copy(
              source.narrowed(axis: 0, start: row, length: 1), 0, target.narrowed(axis: 0, start: row, length: 1),
              (lengths[row] + skipped) % capacity)
          }
        }
      }
      write(newKeys, keys)
      write(newValues, values)
      write(newKeyScales, keyScales)
      write(newValueScales, valueScales)
      advance(by: count)
    }
  }

  /// Adds one position to every row, its key turned by the angles; returns the query turned as well. Queries, keys and values are
  /// float32 [batch, heads, d] on the CPU; nothing is recorded for differentiation.
  mutating func append(one key: Tensor, _ value: Tensor, turning query: Tensor, _ angles: RotaryAngles?) -> Tensor {
    makeRoom(for: 1)
    defer { advance(by: 1) }
    return appendOne(
      .tensor(query), .tensor(key), .tensor(value), .tensor(angles?.cosine), .tensor(angles?.sine), .tensor(keys), .tensor(values),
      .tensor(Tensor(lengths.map { $0 % capacity })), .tensor(keyScales), .tensor(valueScales))
  }

  /// Copies a run of positions to an entry on, around the ring's end.
  private func copy(_ source: Tensor, _ from: Int, _ target: Tensor, _ entry: Int) {
    let count = source.dim(2) - from
    let first = min(count, capacity - entry)
    target.narrowed(axis: 2, start: entry, length: first).copyInPlace(source.narrowed(axis: 2, start: from, length: first))
    if first < count { copy(source, from + first, target, 0) }
  }

  /// As it is stored, with the scales of int8: the largest number of a row is 127 steps.
  private func stored(_ x: Tensor) -> (Tensor, Tensor?) {
    switch storage {
    case .full: return (x.to(keys.dtype), nil)
    case .bfloat16: return (x.to(.bfloat16), nil)
    case .int8:
      let scale = (x.abs().max(axis: -1) / 127.0).clamped(min: 1e-30)
      return ((x / scale.expandedDimension(-1)).round().to(.int8), scale)
    }
  }

  // MARK: Reading

  /// Whether all rows have seen as many positions.
  public var isUniform: Bool { lengths.allSatisfy { $0 == lengths[0] } }

  /// The keys and values that are kept, in the order of their positions, [batch, heads, kept, d]; all rows must have one length.
  public func ordered(_ dtype: DType) -> (keys: Tensor, values: Tensor) {
    require(isUniform, "sequences of different lengths have no common order")
    let kept = filled[0]
    let start = isOrdered ? 0 : lengths[0] % capacity
    func read(_ x: Tensor, _ scales: Tensor?) -> Tensor {
      func part(_ x: Tensor) -> Tensor {
        if start == 0 { return x.narrowed(axis: 2, start: 0, length: kept) }
        return concatenated(
          [x.narrowed(axis: 2, start: start, length: capacity - start), x.narrowed(axis: 2, start: 0, length: start)], axis: 2)
      }
      let plain = part(x).to(dtype)
      return scales.map { plain * part($0).expandedDimension(-1).to(dtype) } ?? plain
    }
    return (read(keys, keyScales), read(values, valueScales))
  }

  // MARK: Rows

  public func selecting(_ rows: [Int]) -> KeyValueCache {
    var result = self
    let index = Tensor(rows).to(keys.device)
    result.keys = keys.take(index)
    result.values = values.take(index)
    result.keyScales = keyScales?.take(index)
    result.valueScales = valueScales?.take(index)
    result.lengths = rows.map { lengths[$0] }
    return result
  }

  public static func joined(_ states: [KeyValueCache]) -> KeyValueCache {
    guard var result = states.first else { fatalError("no caches to join") }
    if states.count == 1 { return result }
    // A ring that has turned keeps its entries' places only at its full size, which it then has.
    let capacity = states.map(\.capacity).max()!
    func join(_ parts: [Tensor?], rank: Int) -> Tensor? {
      let parts = parts.compactMap { $0 }
      guard !parts.isEmpty else { return nil }
      return concatenated(parts.map { $0.padded(Array(repeating: 0, count: 2 * (rank - 3)) + [0, capacity - $0.dim(2)]) })
    }
    result.keys = join(states.map(\.keys), rank: 4)!
    result.values = join(states.map(\.values), rank: 4)!
    result.keyScales = join(states.map(\.keyScales), rank: 3)
    result.valueScales = join(states.map(\.valueScales), rank: 3)
    result.lengths = states.flatMap(\.lengths)
    return result
  }

  public mutating func truncate(to length: Int) -> Bool {
    // A ring that has turned has overwritten what would be needed again.
    guard lengths.allSatisfy({ $0 <= capacity }) else { return false }
    lengths = lengths.map { min($0, length) }
    return true
  }
}

private let appendOne = Operator("martlet::cache_append_rotary")
