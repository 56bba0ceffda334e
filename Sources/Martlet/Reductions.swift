extension Tensor {
  public func sum() -> Tensor { Operators.sumAll(.tensor(self)) }
  public func sum(axis: Int, keepDims: Bool = false) -> Tensor { sum(axes: [axis], keepDims: keepDims) }
  public func sum(axes: [Int], keepDims: Bool = false) -> Tensor { Operators.sum(.tensor(self), .ints(axes), .bool(keepDims)) }
  public func mean() -> Tensor { Operators.meanAll(.tensor(self)) }
  public func mean(axis: Int, keepDims: Bool = false) -> Tensor { mean(axes: [axis], keepDims: keepDims) }
  public func mean(axes: [Int], keepDims: Bool = false) -> Tensor { Operators.mean(.tensor(self), .ints(axes), .bool(keepDims)) }
  public func product(axis: Int, keepDims: Bool = false) -> Tensor { Operators.prod(.tensor(self), .int(axis), .bool(keepDims)) }
  public func max() -> Tensor { Operators.amax(.tensor(self)) }
  public func max(axis: Int, keepDims: Bool = false) -> Tensor { Operators.amax(.tensor(self), .ints([axis]), .bool(keepDims)) }
  public func min() -> Tensor { Operators.amin(.tensor(self)) }
  public func min(axis: Int, keepDims: Bool = false) -> Tensor { Operators.amin(.tensor(self), .ints([axis]), .bool(keepDims)) }
  public func argmax(axis: Int, keepDims: Bool = false) -> Tensor { Operators.argmax(.tensor(self), .int(axis), .bool(keepDims)) }
  public func argmin(axis: Int, keepDims: Bool = false) -> Tensor { Operators.argmin(.tensor(self), .int(axis), .bool(keepDims)) }

  /// The variance with `count − correction` in the denominator.
  public func variance(axis: Int, correction: Int = 1, keepDims: Bool = false) -> Tensor {
    Operators.variance(.tensor(self), .ints([axis]), .int(correction), .bool(keepDims))
  }
  public func standardDeviation(axis: Int, correction: Int = 1, keepDims: Bool = false) -> Tensor {
    Operators.std(.tensor(self), .ints([axis]), .int(correction), .bool(keepDims))
  }
  public func logSumExp(axis: Int, keepDims: Bool = false) -> Tensor {
    Operators.logsumexp(.tensor(self), .ints([axis]), .bool(keepDims))
  }

  public func cumulativeSum(axis: Int) -> Tensor { Operators.cumsum(.tensor(self), .int(axis)) }
  public func cumulativeProduct(axis: Int) -> Tensor { Operators.cumprod(.tensor(self), .int(axis)) }
  public func cumulativeLogSumExp(axis: Int) -> Tensor { Operators.logcumsumexp(.tensor(self), .int(axis)) }

  public func any() -> Tensor { Operators.any(.tensor(self)) }
  public func any(axis: Int, keepDims: Bool = false) -> Tensor { Operators.anyDim(.tensor(self), .int(axis), .bool(keepDims)) }
  public func all() -> Tensor { Operators.all(.tensor(self)) }
  public func all(axis: Int, keepDims: Bool = false) -> Tensor { Operators.allDim(.tensor(self), .int(axis), .bool(keepDims)) }

  /// The p-norm of the elements, over all axes or one.
  public func norm(_ p: Double = 2, axis: Int? = nil, keepDims: Bool = false) -> Tensor {
    Operators.norm(.tensor(self), .double(p), axis.map { .ints([$0]) } ?? .none, .bool(keepDims))
  }

  /// Values in order along an axis, with their positions. Stable.
  public func sorted(axis: Int = -1, descending: Bool = false) -> (values: Tensor, indices: Tensor) {
    let results = Operators.sort.many(.tensor(self), .bool(true), .int(axis), .bool(descending))
    return (results[0] ?? .skipped, results[1] ?? .skipped)
  }

  /// The `k` largest (or smallest) values along an axis, in order, with their positions.
  public func topK(_ k: Int, axis: Int = -1, largest: Bool = true) -> (values: Tensor, indices: Tensor) {
    let results = Operators.topk.many(.tensor(self), .int(k), .int(axis), .bool(largest))
    return (results[0] ?? .skipped, results[1] ?? .skipped)
  }

  /// The distinct values, sorted, with how often each occurs.
  public func unique() -> (values: Tensor, counts: Tensor) {
    let results = Operators.unique.many(.tensor(self), .bool(true), .bool(false), .bool(true))
    return (results[0] ?? .skipped, results[2] ?? .skipped)
  }

  /// How often each non-negative integer occurs.
  public func binCount(minLength: Int = 0) -> Tensor { Operators.bincount(.tensor(self), .none, .int(minLength)) }
}
