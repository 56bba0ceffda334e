import MartletNN

/// A learned bias b for each relative position of a key to a query, a row for each head or one for all:
///
/// - on a line, b_δ with δ = j − i, key minus query;
/// - on a grid of tokens in row-major order, b_{δy, δx}.
///
/// Positions further apart than the configured distance share the last value on their side, so that longer sequences work. Hand one
/// instance to several layers to share it. Starts at 0.
public final class RelativeBias: Module {
  public struct Configuration: Sendable {
    public var heads: Int
    /// On a line: distances 0..<distance have values of their own. On a grid: rows of the grid.
    public var distance: Int
    /// Columns of the grid; `nil` on a line.
    public var columns: Int?
    /// Whether keys behind the query are all that is seen.
    public var isCausal: Bool
    /// One row for all heads.
    public var isShared: Bool

    public init(heads: Int, distance: Int, columns: Int? = nil, isCausal: Bool = true, isShared: Bool = false) {
      self.heads = heads
      self.distance = distance
      self.columns = columns
      self.isCausal = isCausal
      self.isShared = isShared
    }

    /// Values a head.
    var values: Int {
      if let columns { return (2 * distance - 1) * (2 * columns - 1) }
      return isCausal ? distance : 2 * distance - 1
    }
  }

  public let configuration: Configuration
  /// [heads or 1, n]. On a line b_0, b_{−1}, … when causal, else b_{1−M}, …, b_{M−1}; on a grid of R × C tokens b_{δy, δx} with δy outermost,
  /// each from its smallest on, whether causal or not.
  @Parameter public var weight: Tensor

  public init(_ configuration: Configuration) {
    let c = configuration
    require(c.distance > 0 && c.columns.map { $0 > 0 } ?? true, "a relative bias needs a positive distance")
    self.configuration = c
    super.init()
    weight = Tensor.zeros([c.isShared ? 1 : c.heads, c.values])
  }

  /// The places in a row of `weight` of the values between queries and keys given by their positions (int64, broadcast).
  func places(query: Tensor, key: Tensor) -> Tensor {
    let c = configuration
    func clipped(_ difference: Tensor, _ limit: Int) -> Tensor {
      difference.clamped(min: Double(1 - limit), max: Double(limit - 1)).to(.int64)
    }
    guard let columns = c.columns else {
      let difference = key - query
      return c.isCausal ? -clipped(difference.clamped(max: 0), c.distance) : clipped(difference, c.distance) + (c.distance - 1)
    }
    let width = Tensor([columns])
    let rows = key.floorDivided(by: width) - query.floorDivided(by: width)
    return places(rows: rows, columns: key % columns - query % columns)
  }

  /// The same of differences on the grid.
  func places(rows: Tensor, columns: Tensor) -> Tensor {
    let c = configuration
    let count = c.columns ?? 1
    let y = rows.clamped(min: Double(1 - c.distance), max: Double(c.distance - 1)).to(.int64) + (c.distance - 1)
    let x = columns.clamped(min: Double(1 - count), max: Double(count - 1)).to(.int64) + (count - 1)
    return y * (2 * count - 1) + x
  }

  /// b at those places for every head: int64 of any shape → [heads, that shape].
  func values(_ places: Tensor) -> Tensor {
    let c = configuration
    // One flat gather: its gradient is a plain loop over the places.
    let rows = c.isShared ? 1 : c.heads
    let flat = (Tensor.arange(rows).expandedDimension(-1) * c.values + places.reshaped(1, -1)).reshaped(-1)
    return weight.reshaped(-1).take(flat.to(weight.device)).reshaped([rows] + places.shape).broadcast(to: [c.heads] + places.shape)
  }
}
