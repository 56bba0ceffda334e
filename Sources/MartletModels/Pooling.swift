/// How a sequence becomes one vector.
public enum Pooling: String, Codable, Sendable, CaseIterable {
  case mean
  case max
  case last
  /// The first position's output (BERT's class token).
  case first

  /// x: [batch, length, width], mask [batch, length] → [batch, width], over real positions only. A sample that has none gives
  /// zeros (its first position, for `last`).
  public func callAsFunction(_ x: Tensor, mask: Tensor?) -> Tensor {
    guard let mask else {
      switch self {
      case .mean: return x.mean(axis: 1)
      case .max: return x.max(axis: 1)
      case .last: return x.selected(axis: 1, -1)
      case .first: return x.selected(axis: 1, 0)
      }
    }
    let keep = mask.expandedDimension(-1)
    switch self {
    case .mean:
      let weights = keep.to(x.dtype)
      return (x * weights).sum(axis: 1) / weights.sum(axis: 1).clamped(min: 1)
    case .max:
      return x.maskedFill(.!keep, -.infinity).max(axis: 1).maskedFill(.!mask.any(axis: 1, keepDims: true), 0)
    case .first: return x.selected(axis: 1, 0)
    case .last:
      let index = (mask.to(.int64).sum(axis: 1) - 1).clamped(min: 0).to(.int64)
      return x.gather(index.reshaped(-1, 1, 1).broadcast(to: [x.dim(0), 1, x.dim(2)]), axis: 1).squeezed(1)
    }
  }
  /// x: [1, total, width], sequences end to end → [sequences, width]. A sequence of no positions gives zeros.
  public func callAsFunction(_ x: Tensor, packing: SequencePacking) -> Tensor {
    let rows = x.squeezed(0)
    let lengths = zip(packing.offsets, packing.offsets.dropFirst()).map { $1 - $0 }
    switch self {
    case .mean:
      let sums = Tensor.zeros([packing.sequences, x.dim(2)], dtype: x.dtype).indexAdd(packing.sequenceIndices, rows, axis: 0)
      return sums / Tensor(lengths.map { Float(Swift.max($0, 1)) }, [packing.sequences, 1])
    case .max:
      return stacked(
        lengths.indices.map { i in
          lengths[i] == 0
            ? Tensor.zeros([x.dim(2)], dtype: x.dtype)
            : rows.narrowed(axis: 0, start: packing.offsets[i], length: lengths[i]).max(axis: 0)
        })
    case .first, .last:
      let places = lengths.indices.map { i in
        self == .first ? packing.offsets[i] : Swift.max(packing.offsets[i + 1] - 1, packing.offsets[i])
      }
      let picked = rows.take(Tensor(places.map { Swift.min($0, Swift.max(0, x.dim(1) - 1)) }))
      return lengths.contains(0) ? picked * Tensor(lengths.map { $0 > 0 ? Float(1) : 0 }, [packing.sequences, 1]) : picked
    }
  }
}
