/// One position of a subscript: an integer, a range, `.ellipsis`, `.newAxis`, a tensor of indices or a boolean mask.
public enum TensorIndex {
  case at(Int)
  case range(start: Int?, end: Int?, step: Int)
  case remaining
  case added
  case tensor(Tensor)
}

/// What may stand in a tensor's subscript.
public protocol TensorIndexing {
  var tensorIndex: TensorIndex { get }
}

extension Int: TensorIndexing { public var tensorIndex: TensorIndex { .at(self) } }
extension Range<Int>: TensorIndexing { public var tensorIndex: TensorIndex { .range(start: lowerBound, end: upperBound, step: 1) } }
extension ClosedRange<Int>: TensorIndexing {
  public var tensorIndex: TensorIndex { .range(start: lowerBound, end: pastEnd(upperBound), step: 1) }
}
extension PartialRangeFrom<Int>: TensorIndexing { public var tensorIndex: TensorIndex { .range(start: lowerBound, end: nil, step: 1) } }
extension PartialRangeUpTo<Int>: TensorIndexing { public var tensorIndex: TensorIndex { .range(start: nil, end: upperBound, step: 1) } }
extension PartialRangeThrough<Int>: TensorIndexing {
  public var tensorIndex: TensorIndex { .range(start: nil, end: pastEnd(upperBound), step: 1) }
}

/// The excluded end of a range that includes `last`, which is −1 for the end of the axis.
private func pastEnd(_ last: Int) -> Int? { last == -1 ? nil : last + 1 }
extension StrideTo<Int>: TensorIndexing {
  public var tensorIndex: TensorIndex {
    let values = Array(self)
    let step = values.count > 1 ? values[1] - values[0] : 1
    precondition(step > 0, "a tensor can't be indexed backwards; use flipped(axis:)")
    return .range(start: values.first ?? 0, end: (values.last ?? -1) + 1, step: step)
  }
}
extension Tensor: TensorIndexing { public var tensorIndex: TensorIndex { .tensor(self) } }
extension TensorIndex: TensorIndexing { public var tensorIndex: TensorIndex { self } }
/// `x[...]` style full range: use `x[0..., .ellipsis]`, or `.all` for one whole axis.
extension TensorIndexing where Self == TensorIndex {
  public static var ellipsis: TensorIndex { .remaining }
  public static var newAxis: TensorIndex { .added }
  public static var all: TensorIndex { .range(start: nil, end: nil, step: 1) }
}

extension Tensor {
  /// NumPy's indexing: integers drop an axis, ranges keep it (negative ends count from the end), `.ellipsis` stands for the
  /// axes in between, `.newAxis` adds one, integer tensors gather and boolean tensors select.
  ///
  /// Assignment writes into this tensor's memory, broadcasting the new value.
  public subscript(_ indices: any TensorIndexing...) -> Tensor {
    get {
      let (view, tensors) = resolve(indices.map(\.tensorIndex))
      guard tensors.contains(where: { $0 != nil }) else { return view }
      return Operators.index(.tensor(view), .optionalTensors(tensors))
    }
    set {
      let (view, tensors) = resolve(indices.map(\.tensorIndex))
      if tensors.contains(where: { $0 != nil }) {
        Operators.indexPut.run(.tensor(view), .optionalTensors(tensors), .tensor(newValue))
      } else {
        view.copyInPlace(newValue)
      }
    }
  }

  /// Applies the parts that are views; returns the view and the index tensors per axis of it.
  private func resolve(_ indices: [TensorIndex]) -> (view: Tensor, tensors: [Tensor?]) {
    var consumed = 0  // axes of `self` that the explicit indices use
    for index in indices {
      switch index {
      case .at, .range: consumed += 1
      case .tensor(let tensor): consumed += tensor.dtype == .bool ? tensor.rank : 1
      case .remaining, .added: break
      }
    }
    require(consumed <= rank, "\(consumed) indices for a tensor of shape \(shape)")
    var view = self
    var axis = 0
    var tensors: [Tensor?] = []
    for index in indices {
      switch index {
      case .at(let position):
        view = Operators.select(.tensor(view), .int(axis), .int(position))
      case .range(let start, let end, let step):
        if start != nil || end != nil || step != 1 {
          view = Operators.slice(
            .tensor(view), .int(axis), start.map { .int($0) } ?? .none, end.map { .int($0) } ?? .none, .int(step))
        }
        tensors.append(nil)
        axis += 1
      case .remaining:
        let free = rank - consumed
        tensors += [Tensor?](repeating: nil, count: Swift.max(0, free))
        axis += Swift.max(0, free)
      case .added:
        view = view.expandedDimension(axis)
        tensors.append(nil)
        axis += 1
      case .tensor(let tensor):
        tensors.append(tensor)
        axis += tensor.dtype == .bool ? tensor.rank : 1
      }
    }
    return (view, tensors)
  }

  /// A view of `length` positions from `start` along an axis.
  public func narrowed(axis: Int, start: Int, length: Int) -> Tensor {
    Operators.slice(.tensor(self), .int(axis), .int(start), .int(start + length))
  }

  /// A view without the axis, at one position of it.
  public func selected(axis: Int, _ position: Int) -> Tensor { Operators.select(.tensor(self), .int(axis), .int(position)) }

  /// The rows (slices along an axis) named by a 1-d integer tensor.
  public func take(_ indices: Tensor, axis: Int = 0) -> Tensor {
    Operators.indexSelect(.tensor(self), .int(axis), .tensor(indices))
  }

  /// Elements at `indices` along an axis, `indices` having this tensor's rank.
  public func gather(_ indices: Tensor, axis: Int) -> Tensor { Operators.gather(.tensor(self), .int(axis), .tensor(indices)) }

  /// A copy with `values` written at `indices` along an axis.
  public func scatter(_ indices: Tensor, _ values: Tensor, axis: Int) -> Tensor {
    Operators.scatter(.tensor(self), .int(axis), .tensor(indices), .tensor(values))
  }
  public func scatter(_ indices: Tensor, _ value: Double, axis: Int) -> Tensor {
    Operators.scatterValue(.tensor(self), .int(axis), .tensor(indices), .double(value))
  }

  /// A copy with `values` added at `indices` along an axis; repeated indices accumulate.
  public func scatterAdd(_ indices: Tensor, _ values: Tensor, axis: Int) -> Tensor {
    Operators.scatterAdd(.tensor(self), .int(axis), .tensor(indices), .tensor(values))
  }
  /// A copy with slices of `values` added at the 1-d `indices` along an axis.
  public func indexAdd(_ indices: Tensor, _ values: Tensor, axis: Int) -> Tensor {
    Operators.indexAdd(.tensor(self), .int(axis), .tensor(indices), .tensor(values))
  }

  /// The elements where `mask` is true, as a 1-d tensor.
  public func maskedSelect(_ mask: Tensor) -> Tensor { Operators.maskedSelect(.tensor(self), .tensor(mask)) }

  /// Positions of the non-zero elements, [count, rank].
  public func nonzero() -> Tensor { Operators.nonzero(.tensor(self)) }
}
