import Foundation

/// Where the tokens of an image stand: after `prefix` tokens without a place, cell by cell and row by row. The last row may be short:
/// its missing cells hold zeros.
public struct TokenGrid: Sendable, Equatable {
  /// Tokens before the first cell (class and distillation tokens).
  public var prefix: Int
  public var rows: Int
  public var columns: Int

  public init(rows: Int, columns: Int, prefix: Int = 0) {
    self.rows = rows
    self.columns = columns
    self.prefix = prefix
  }

  /// The grid of so many tokens in rows of `columns`.
  public init(length: Int, columns: Int) {
    self.init(rows: (length + columns - 1) / columns, columns: columns)
  }

  /// The columns of a grid for sequences of a length, where nothing else says: the smallest divisor of the length that isn't below
  /// its root; when that is over twice the root (or there is none but the length), the root rounded up.
  ///
  /// Sequences of other lengths keep these columns and have more or fewer rows, so that padding at the end changes no token's place.
  public static func columns(forLength length: Int) -> Int {
    var root = Int(Double(max(length, 1)).squareRoot())
    while root * root < length { root += 1 }
    root = max(root, 1)
    return (root...(2 * root)).first { length % $0 == 0 } ?? root
  }
}

extension MixingContext {
  /// The grid that is given, or the one that a mixer with so many columns puts `length` tokens on.
  func grid(length: Int, columns: Int) -> TokenGrid {
    guard let grid else { return TokenGrid(length: length, columns: columns) }
    require(
      grid.columns > 0 && grid.prefix >= 0 && grid.prefix + grid.rows * grid.columns >= length,
      "\(length) tokens don't fit on a grid of \(grid.rows)×\(grid.columns) after \(grid.prefix) others")
    return grid
  }
}

extension MixerKind {
  static let gridKeys: [ConfigurationKey] = [
    ConfigurationKey(
      "columns", .integer, default: 0, "columns of the tokens' grid where the model knows none; 0 for nearly as many as rows"),
    ConfigurationKey("rows", .integer, default: 0, "rows of that grid at the longest length; 0 for what columns say"),
  ]

  /// The columns that the options ask for. Throws `ConfigurationError` for a grid that doesn't hold the longest sequence.
  static func columns(_ options: JSONValue, _ site: MixerSite) throws -> Int {
    let (rows, columns) = (options["rows"]?.intValue ?? 0, options["columns"]?.intValue ?? 0)
    guard rows >= 0, columns >= 0, rows <= 1 << 24, columns <= 1 << 24 else {
      throw ConfigurationError("rows and columns must be in 0...2^24, got \(rows) and \(columns)")
    }
    guard rows == 0 || columns == 0 || rows * columns >= site.length else {
      throw ConfigurationError("\(rows) rows of \(columns) tokens don't hold a sequence of \(site.length)")
    }
    if columns > 0 { return columns }
    return rows > 0 ? max(1, (site.length + rows - 1) / rows) : TokenGrid.columns(forLength: site.length)
  }
}

private let kernel = Operator("martlet::depthwise_grid_convolution")
private let conv2d = Operator("aten::conv2d")

/// Depthwise cross-correlation of tokens on a grid (weights [C, 1, k, k] and bias [C], zero outside the grid), C the width or a
/// divisor of it: heads then share the weights. x: [batch, length, width] → the same shape; tokens before the grid get zeros.
///
/// On CPU in float32 it runs on `martlet::depthwise_grid_convolution`, elsewhere as a two-dimensional convolution.
public final class DepthwiseGridConvolution: Module {
  @Parameter public var weight: Tensor
  @Parameter public var bias: Tensor?

  public var kernelSize: Int { weight.dim(2) }

  public init(_ channels: Int, kernel: Int, bias: Bool = true, generator: RandomGenerator) {
    require(kernel > 0 && kernel % 2 == 1, "a kernel around a cell must be odd, got \(kernel)")
    super.init()
    let bound = 1 / Double(kernel)
    weight = Initializer.uniform(bound)([channels, 1, kernel, kernel], generator)
    self.bias = bias ? Initializer.uniform(bound)([channels], generator) : nil
  }

  public func callAsFunction(_ x: Tensor, grid: TokenGrid) -> Tensor {
    guard grid.prefix > 0 else { return onGrid(x, columns: grid.columns) }
    let cells = x.narrowed(axis: 1, start: grid.prefix, length: x.dim(1) - grid.prefix)
    return onGrid(cells, columns: grid.columns).padded([0, 0, grid.prefix, 0])
  }

  private func onGrid(_ x: Tensor, columns: Int) -> Tensor {
    if fusedKernelsServe(x), weight.dtype == .float32 {
      return kernel(.tensor(x), .tensor(weight), .tensor(bias), .int(columns))
    }
    let (batch, length, width) = (x.dim(0), x.dim(1), x.dim(2))
    let columns = min(columns, max(length, 1))
    let rows = (length + columns - 1) / columns
    let padded = rows * columns == length ? x : x.padded([0, 0, 0, rows * columns - length])
    let image = padded.reshaped(batch, rows, columns, width).transposed(0, 3, 1, 2)  // [B, D, rows, columns]
    let heads = width / weight.dim(0)
    let (w, b) = heads == 1 ? (weight, bias) : (weight.tiled([heads, 1, 1, 1]), bias?.tiled([heads]))
    let y = conv2d(
      .tensor(image), .tensor(w.to(x.dtype)), .tensor(b?.to(x.dtype)), .ints([1, 1]), .ints([kernelSize / 2, kernelSize / 2]),
      .ints([1, 1]), .int(width))
    return y.transposed(0, 2, 3, 1).reshaped(batch, rows * columns, width).narrowed(axis: 1, start: 0, length: length)
  }

  /// Multiplications with addition for one token of a width.
  public func multiplyAdds(width: Int) -> Int { width * kernelSize * kernelSize }
}

/// Locally enhanced positional encoding (Dong et al. 2021): a depthwise convolution of the values, added to attention's output.
public typealias LocallyEnhancedPE = DepthwiseGridConvolution

/// Rotary positions on a grid, as RAVLT has them: the pairs (2i, 2i + 1) of a head's d channels are turned, the first d/4 of them by
/// row · θ_i, the others by column · θ_i, with θ_i = base^{−i / (d/4 − 1)}. Scores then depend on differences of rows and columns only.
public struct RoPE2D: Sendable {
  /// θ, d/4 of them.
  public let angles: [Double]

  public init(headWidth: Int, base: Double = 10000) {
    require(headWidth > 0 && headWidth % 4 == 0, "rotary positions on a grid need a head width that is a multiple of 4, got \(headWidth)")
    let count = headWidth / 4
    angles = (0..<count).map { pow(base, count > 1 ? -Double($0) / Double(count - 1) : 0) }
  }

  /// x: [batch, heads, length, d] → the same shape. Tokens before the grid stay as they are.
  public func callAsFunction(_ x: Tensor, grid: TokenGrid) -> Tensor {
    let (cosine, sine) = tables(length: x.dim(2), grid: grid, like: x)
    let pairs = x.reshaped(x.dim(0), x.dim(1), x.dim(2), x.dim(3) / 2, 2)
    let (a, b) = (pairs.selected(axis: -1, 0), pairs.selected(axis: -1, 1))
    return stacked([a * cosine - b * sine, b * cosine + a * sine], axis: -1).reshaped(x.shape)
  }

  /// Cosines and sines for each token and pair, [length, d/2].
  private func tables(length: Int, grid: TokenGrid, like x: Tensor) -> (Tensor, Tensor) {
    let cells = (0..<length).map { max(0, $0 - grid.prefix) }
    let theta = Tensor(angles).to(.float64).reshaped(1, -1)
    func turned(_ index: [Int]) -> Tensor { Tensor(index).to(.float64).reshaped(-1, 1) * theta }
    let angle = concatenated([turned(cells.map { $0 / grid.columns }), turned(cells.map { $0 % grid.columns })], axis: 1)
    return (angle.cos().to(x.dtype).to(x.device), angle.sin().to(x.dtype).to(x.device))
  }
}
