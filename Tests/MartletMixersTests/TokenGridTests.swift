import Foundation
import MartletMixers
import Testing

@Suite struct TokenGridTests {
  @Test func columnsAreTheDivisorNextToTheRoot() {
    let expected = [1: 1, 2: 2, 6: 3, 16: 4, 32: 8, 40: 8, 64: 8, 75: 15, 128: 16, 196: 14, 4096: 64]
    for (length, columns) in expected { #expect(TokenGrid.columns(forLength: length) == columns, "\(length)") }
    // Primes have no divisor near the root.
    #expect(TokenGrid.columns(forLength: 31) == 6)
    #expect(TokenGrid.columns(forLength: 97) == 10)
    for length in 1...500 {
      let columns = TokenGrid.columns(forLength: length)
      #expect(columns * columns >= length && (columns - 1) * (columns - 1) <= 4 * length, "\(length) → \(columns)")
    }
  }

  @Test func optionsChooseTheGrid() throws {
    let site = MixerSite(width: 16, heads: 2, isCausal: false, length: 48)
    func columns(_ options: JSONValue) throws -> Int? {
      (try MixerKind.rala(site, options: options, generator: RandomGenerator(seed: 0)) as? RankAugmentedLinearAttention)?.configuration
        .columns
    }
    #expect(try columns(.null) == 8)
    #expect(try columns(["columns": 6]) == 6)
    #expect(try columns(["rows": 4]) == 12)
    #expect(throws: ConfigurationError.self) { try columns(["rows": 4, "columns": 11]) }
    #expect(throws: ConfigurationError.self) { try columns(["columns": -1]) }
    #expect(throws: ConfigurationError.self) { try MixerKind.rala(site, options: ["heads": 8], generator: RandomGenerator(seed: 0)) }
  }

  /// The sum of the equation, cell by cell.
  private func convolved(_ x: Tensor, _ weight: Tensor, _ bias: Tensor, grid: TokenGrid) -> Tensor {
    let (length, width, reach) = (x.dim(1), x.dim(2), weight.dim(2) / 2)
    var rows: [Tensor] = []
    for t in 0..<length {
      guard t >= grid.prefix else {
        rows.append(Tensor.zeros([x.dim(0), width], dtype: x.dtype))
        continue
      }
      let (r, c) = ((t - grid.prefix) / grid.columns, (t - grid.prefix) % grid.columns)
      var sum = bias.tiled([width / bias.dim(0)]).expandedDimension(0)
      for i in -reach...reach {
        for j in -reach...reach where r + i >= 0 && (0..<grid.columns).contains(c + j) {
          let other = grid.prefix + (r + i) * grid.columns + c + j
          guard other < length else { continue }
          let w = weight.selected(axis: 1, 0).selected(axis: 1, i + reach).selected(axis: 1, j + reach).tiled([width / bias.dim(0)])
          sum = sum + x.selected(axis: 1, other) * w
        }
      }
      rows.append(sum.broadcast(to: [x.dim(0), width]))
    }
    return stacked(rows, axis: 1)
  }

  @Test(arguments: [(12, 5, 0), (4, 3, 0), (12, 5, 2), (6, 7, 1)])
  func convolutionsAreTheirSums(_ channels: Int, _ size: Int, _ prefix: Int) {
    let layer = DepthwiseGridConvolution(channels, kernel: size, generator: RandomGenerator(seed: 1))
    let x = normal([2, 29 + prefix, 12])
    let grid = TokenGrid(rows: 5, columns: 6, prefix: prefix)
    func results(_ dtype: DType, _ apply: (Tensor) -> Tensor) -> [Tensor] {
      layer.to(dtype)
      let input = x.to(dtype).copy().tracked()
      let y = apply(input)
      return [y] + gradient(of: y, with: [input, layer.weight, layer.bias!], seed: normal(y.shape, seed: 2, dtype)).map { $0! }
    }
    let expected = results(.float64) { convolved($0, layer.weight, layer.bias!, grid: grid) }
    let reference = results(.float64) { layer($0, grid: grid) }
    let fused = results(.float32) { layer($0, grid: grid) }
    for (i, name) in ["y", "x", "weight", "bias"].enumerated() {
      let (a, b) = (relativeError(reference[i], expected[i]), relativeError(fused[i], expected[i]))
      #expect(a <= 1e-12, "reference \(name): \(a), allowed 1e-12")
      #expect(b <= 2e-6, "kernel \(name): \(b), allowed 2e-6")
    }
  }

  @Test func scoresDependOnDifferencesOfRowsAndColumnsOnly() {
    let rotation = RoPE2D(headWidth: 16)
    let grid = TokenGrid(rows: 6, columns: 7)
    // The same query and key at every cell.
    let q = rotation(normal([1, 1, 1, 16], .float64).broadcast(to: [1, 1, 42, 16]), grid: grid)
    let k = rotation(normal([1, 1, 1, 16], seed: 2, .float64).broadcast(to: [1, 1, 42, 16]), grid: grid)
    let scores = q.matmul(k.T)[0, 0]
    var seen: [[Int]: Double] = [:]
    for i in 0..<42 {
      for j in 0..<42 {
        let difference = [j / 7 - i / 7, j % 7 - i % 7]
        let score = scores[i, j].item()
        if let first = seen[difference] {
          #expect(abs(score - first) <= 1e-12, "\(difference): \(score) and \(first)")
        } else {
          seen[difference] = score
        }
      }
    }
    // 11 × 13 differences, of which no two need be equal.
    #expect(seen.count == 143 && Set(seen.values.map { ($0 * 1e9).rounded() }).count > 130)
    for (angle, exponent) in zip(rotation.angles, [0, 1 / 3.0, 2 / 3.0, 1]) { #expect(abs(angle - pow(10000, -exponent)) < 1e-15) }
  }

  @Test func tokensBeforeTheGridAreNotTurned() {
    let rotation = RoPE2D(headWidth: 8)
    let x = normal([1, 2, 8, 8], .float64)
    let turned = rotation(x, grid: TokenGrid(rows: 2, columns: 3, prefix: 2))
    #expect(turned[.all, .all, ..<2].isEqual(to: x[.all, .all, ..<2]))
    let cells = rotation(x[.all, .all, 2...], grid: TokenGrid(rows: 2, columns: 3))
    #expect(relativeError(turned[.all, .all, 2...], cells) == 0)
  }

  @Test func aGridThatIsTooSmallIsRefused() throws {
    let mixer = try MixerCase(name: "rala", isCausal: false).make(length: 12)
    let error = #expect(throws: TensorError.self) {
      try withTorchErrors { mixer(normal([1, 13, 16]), MixingContext(grid: TokenGrid(rows: 3, columns: 4))) }
    }
    #expect(error?.message.contains("13 tokens don't fit on a grid of 3×4") == true)
  }
}
