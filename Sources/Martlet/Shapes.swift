extension Tensor {
  /// The same elements in another shape; one length may be −1. A view where the strides allow, else a copy.
  public func reshaped(_ shape: Int...) -> Tensor { reshaped(shape) }
  public func reshaped(_ shape: [Int]) -> Tensor { Operators.view(.tensor(self), .ints(shape)) }

  /// The axes in another order; without arguments, reversed.
  public func transposed(_ axes: Int...) -> Tensor {
    Operators.permute(.tensor(self), .ints(axes.isEmpty ? Array((0..<rank).reversed()) : axes))
  }

  public func swappedAxes(_ a: Int, _ b: Int) -> Tensor { Operators.transpose(.tensor(self), .int(a), .int(b)) }

  /// The transpose of the last two axes.
  public var T: Tensor { swappedAxes(-2, -1) }

  /// A view with axes of length 1 repeated; −1 keeps a length.
  public func broadcast(to shape: [Int]) -> Tensor { Operators.expand(.tensor(self), .ints(shape)) }
  public func expandedDimension(_ axis: Int) -> Tensor { Operators.unsqueeze(.tensor(self), .int(axis)) }
  public func squeezed(_ axis: Int) -> Tensor { Operators.squeeze(.tensor(self), .int(axis)) }
  public func flattened(_ start: Int = 0, _ end: Int = -1) -> Tensor { Operators.flatten(.tensor(self), .int(start), .int(end)) }

  /// Pieces of `size` along an axis; the last may be shorter.
  public func split(size: Int, axis: Int = 0) -> [Tensor] {
    Operators.split.many(.tensor(self), .int(size), .int(axis)).map { $0 ?? .skipped }
  }
  /// Pieces of the given sizes along an axis.
  public func split(sizes: [Int], axis: Int = 0) -> [Tensor] {
    let pieces = Operators.splitSizes.many(.tensor(self), .ints(sizes), .int(axis))
    return sizes.indices.map { $0 < pieces.count ? pieces[$0] ?? .skipped : .skipped }
  }
  /// `count` pieces of equal size along an axis.
  public func chunked(_ count: Int, axis: Int = 0) -> [Tensor] {
    let pieces = Operators.chunk.many(.tensor(self), .int(count), .int(axis))
    return (0..<count).map { $0 < pieces.count ? pieces[$0] ?? .skipped : .skipped }
  }

  public func flipped(axis: Int) -> Tensor { Operators.flip(.tensor(self), .ints([axis])) }
  public func rolled(by shift: Int, axis: Int) -> Tensor { Operators.roll(.tensor(self), .ints([shift]), .ints([axis])) }
  public func tiled(_ repetitions: [Int]) -> Tensor { Operators.repeatTiles(.tensor(self), .ints(repetitions)) }
  public func repeated(_ count: Int, axis: Int) -> Tensor { Operators.repeatInterleave(.tensor(self), .int(count), .int(axis)) }

  /// Constant padding; pairs (before, after) from the last axis backwards, as in ATen.
  public func padded(_ amounts: [Int], value: Double = 0) -> Tensor {
    Operators.pad(.tensor(self), .ints(amounts), .string("constant"), .double(value))
  }

  public func lowerTriangle(_ diagonal: Int = 0) -> Tensor { Operators.tril(.tensor(self), .int(diagonal)) }
  public func upperTriangle(_ diagonal: Int = 0) -> Tensor { Operators.triu(.tensor(self), .int(diagonal)) }
  public func diagonal(offset: Int = 0, _ axis1: Int = -2, _ axis2: Int = -1) -> Tensor {
    Operators.diagonal(.tensor(self), .int(offset), .int(axis1), .int(axis2))
  }
  /// Matrices with the last axis on their diagonal.
  public func asDiagonal() -> Tensor { Operators.diagEmbed(.tensor(self)) }

  /// Overlapping windows of `size` every `step` along an axis, as a new last axis (a view).
  public func windows(axis: Int, size: Int, step: Int) -> Tensor {
    Operators.unfold(.tensor(self), .int(axis), .int(size), .int(step))
  }
}

public func concatenated(_ tensors: [Tensor], axis: Int = 0) -> Tensor { Operators.cat(.tensors(tensors), .int(axis)) }
public func stacked(_ tensors: [Tensor], axis: Int = 0) -> Tensor { Operators.stack(.tensors(tensors), .int(axis)) }
