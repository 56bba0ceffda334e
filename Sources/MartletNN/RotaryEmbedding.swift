import Foundation
import Synchronization

/// How rotary frequencies are changed for contexts longer than those trained on.
public enum RotaryScaling: Codable, Sendable, Equatable {
  /// Positions divided by the factor (Chen et al. 2023, position interpolation).
  case linear(factor: Double)
  /// The base raised so that the lowest frequency is interpolated by the factor and the highest is kept ("NTK-aware").
  case ntk(factor: Double)
  /// The same with a factor that grows with the sequence once it is longer than `original` ("dynamic NTK").
  case dynamic(factor: Double, original: Int)
  /// YaRN (Peng et al. 2023): wavelengths above `original`/betaSlow interpolated, below `original`/betaFast kept, a ramp between;
  /// cosines and sines times `attentionFactor`, by default 0.1 ln factor + 1. `truncate` rounds the ramp's ends to whole channels.
  case yarn(
    factor: Double, original: Int, betaFast: Double = 32, betaSlow: Double = 1, attentionFactor: Double? = nil, truncate: Bool = true)
  /// Llama 3's three bands by wavelength.
  case llama3(factor: Double, low: Double = 1, high: Double = 4, original: Int)
  /// LongRoPE (Ding et al. 2024): a divisor for each frequency, one list up to `original` positions and one beyond.
  case longRope(short: [Double], long: [Double], original: Int, attentionFactor: Double)
}

/// Rotary position embedding (Su et al. 2021): channel pairs of queries and keys turned by position × frequency, so that their
/// product depends on the distance only. Pairs are (i, i + d/2) of the first `dimensions` channels, as in the Hugging Face
/// checkpoints; the other channels stay as they are.
public struct RotaryEmbedding: Sendable {
  public let dimensions: Int
  public let base: Double
  public let scaling: RotaryScaling?
  /// Factor on cosines and sines (YaRN's temperature), else 1.
  public let magnitude: Double
  private let table: RotaryTable

  /// Throws (traps) for an odd number of channels.
  public init(dimensions: Int, base: Double = 10000, scaling: RotaryScaling? = nil) {
    require(dimensions % 2 == 0, "rotary embeddings need an even number of channels, got \(dimensions)")
    self.dimensions = dimensions
    self.base = base
    self.scaling = scaling
    switch scaling {
    case .yarn(let factor, _, _, _, let given, _): magnitude = given ?? (0.1 * log(max(factor, 1)) + 1)
    case .longRope(_, _, _, let given): magnitude = given
    default: magnitude = 1
    }
    table = RotaryTable.shared(Self.frequencies(dimensions, base, scaling, length: 0), magnitude)
  }

  /// Radians per position of each pair, for a sequence of a length, [dimensions/2] float64.
  public func frequencies(length: Int = 0) -> Tensor { Tensor(Self.frequencies(dimensions, base, scaling, length: length)) }

  private static func frequencies(_ dimensions: Int, _ base: Double, _ scaling: RotaryScaling?, length: Int) -> [Double] {
    let d = Double(dimensions)
    func plain(_ base: Double) -> [Double] { (0..<dimensions / 2).map { pow(base, -2 * Double($0) / d) } }
    let values = plain(base)
    switch scaling {
    case nil: return values
    case .linear(let factor): return values.map { $0 / factor }
    case .ntk(let factor): return plain(base * pow(factor, d / (d - 2)))
    case .dynamic(let factor, let original):
      let stretch = factor * Double(max(length, original)) / Double(original) - (factor - 1)
      return plain(base * pow(stretch, d / (d - 2)))
    case .yarn(let factor, let original, let fast, let slow, _, let truncate):
      func dimension(_ rotations: Double) -> Double { d * log(Double(original) / (rotations * 2 * .pi)) / (2 * log(base)) }
      let low = max(truncate ? dimension(fast).rounded(.down) : dimension(fast), 0)
      let high = min(truncate ? dimension(slow).rounded(.up) : dimension(slow), d - 1)
      return values.enumerated().map { i, value in
        let ramp = min(max((Double(i) - low) / max(high - low, 0.001), 0), 1)
        return value / factor * ramp + value * (1 - ramp)
      }
    case .llama3(let factor, let low, let high, let original):
      return values.map { value in
        let wavelength = 2 * Double.pi / value
        if wavelength < Double(original) / high { return value }
        if wavelength > Double(original) / low { return value / factor }
        let smooth = (Double(original) / wavelength - low) / (high - low)
        return (1 - smooth) * value / factor + smooth * value
      }
    case .longRope(let short, let long, let original, _):
      let divisors = length > original ? long : short
      require(divisors.count == values.count, "LongRoPE needs \(values.count) factors, got \(divisors.count)")
      return zip(values, divisors).map { $0 / $1 }
    }
  }

  private func table(length: Int) -> RotaryTable {
    switch scaling {
    case .dynamic(_, let original) where length > original, .longRope(_, _, let original, _) where length > original:
      RotaryTable(Self.frequencies(dimensions, base, scaling, length: length), magnitude)
    default: table
    }
  }

  /// Cosines and sines of positions start ..< start + length, [length, dimensions/2]; of several starts, [starts, 1, length, …].
  public func angles(starts: [Int], length: Int, dtype: DType = .float32, device: Device = .cpu) -> RotaryAngles {
    let last = (starts.max() ?? 0) + length
    let table = table(length: last)
    if let first = starts.first, starts.allSatisfy({ $0 == first }) {
      return table.angles(start: first, length: length, dtype, device)
    }
    let rows = starts.map { table.angles(start: $0, length: length, dtype, device) }
    return RotaryAngles(
      cosine: stacked(rows.map(\.cosine)).expandedDimension(1), sine: stacked(rows.map(\.sine)).expandedDimension(1))
  }

  /// Cosines and sines of given positions [length] → [length, dimensions/2].
  public func angles(positions: Tensor, dtype: DType = .float32, device: Device = .cpu) -> RotaryAngles {
    let last = positions.count == 0 ? 0 : Int(positions.max().item()) + 1
    return table(length: last).angles(at: positions.to(.float64), dtype, device)
  }

  /// Turns x [batch, heads, length, d] whose first position is `offset`, or whose positions are given ([length]).
  public func callAsFunction(_ x: Tensor, offset: Int = 0, positions: Tensor? = nil) -> Tensor {
    if let positions { return angles(positions: positions, dtype: x.dtype, device: x.device).turn(x) }
    return angles(starts: [offset], length: x.dim(-2), dtype: x.dtype, device: x.device).turn(x)
  }

  /// Turns queries and keys [batch, heads, length, d] whose sequences start at these positions (one for all, or one each).
  public func callAsFunction(_ query: Tensor, _ key: Tensor, starts: [Int]) -> (Tensor, Tensor) {
    let angles = angles(starts: starts, length: query.dim(-2), dtype: query.dtype, device: query.device)
    return (angles.turn(query), angles.turn(key))
  }
}

private let fused = Operator("martlet::rotary")

/// Cosines and sines, [..., length, pairs].
public struct RotaryAngles: @unchecked Sendable {
  public let cosine: Tensor
  public let sine: Tensor

  /// x [batch, heads, length, d ≥ 2·pairs] with its first channels turned.
  public func turn(_ x: Tensor) -> Tensor {
    let pairs = cosine.dim(-1)
    // One pass over memory in place of six.
    if x.device == .cpu, x.dtype == .float32, cosine.dtype == .float32, x.rank == 4, !cosine.requiresGradient {
      return fused(.tensor(x), .tensor(cosine), .tensor(sine))
    }
    let first = x.narrowed(axis: -1, start: 0, length: pairs)
    let second = x.narrowed(axis: -1, start: pairs, length: pairs)
    var parts = [first * cosine - second * sine, second * cosine + first * sine]
    if x.dim(-1) > 2 * pairs { parts.append(x.narrowed(axis: -1, start: 2 * pairs, length: x.dim(-1) - 2 * pairs)) }
    return concatenated(parts, axis: -1)
  }
}

/// The cosines and sines of one set of frequencies, worked out once for all layers that share it.
private final class RotaryTable: Sendable {
  let frequencies: [Double]
  let magnitude: Double
  /// float32, for positions from 0; grown by doubling.
  private let rows = Mutex<RotaryAngles?>(nil)
  /// Beyond this the table would take more memory than it saves time.
  private static let longest = 1 << 18

  init(_ frequencies: [Double], _ magnitude: Double) {
    self.frequencies = frequencies
    self.magnitude = magnitude
  }

  private struct Key: Hashable {
    let frequencies: [Double]
    let magnitude: Double
  }

  private struct Weak: Sendable {
    weak let table: RotaryTable?
  }

  private static let all = Mutex<[Key: Weak]>([:])

  static func shared(_ frequencies: [Double], _ magnitude: Double) -> RotaryTable {
    all.withLock { tables in
      let key = Key(frequencies: frequencies, magnitude: magnitude)
      if let table = tables[key]?.table { return table }
      let table = RotaryTable(frequencies, magnitude)
      tables = tables.filter { $0.value.table != nil }
      tables[key] = Weak(table: table)
      return table
    }
  }

  /// At positions [length] float64, computed in double so that far positions keep their phase.
  func angles(at positions: Tensor, _ dtype: DType, _ device: Device) -> RotaryAngles {
    let angles = positions.expandedDimension(1) * Tensor(frequencies).to(positions.device)  // [L, d/2]
    return RotaryAngles(
      cosine: (angles.cos() * magnitude).to(dtype).to(device), sine: (angles.sin() * magnitude).to(dtype).to(device))
  }

  func angles(start: Int, length: Int, _ dtype: DType, _ device: Device) -> RotaryAngles {
    guard dtype == .float32, device == .cpu, start >= 0, start + length <= Self.longest else {
      return angles(at: .arange(Double(start), Double(start + length), dtype: .float64), dtype, device)
    }
    let table = rows.withLock { rows in
      if let rows, rows.cosine.dim(0) >= start + length { return rows }
      var size = 256
      while size < start + length { size *= 2 }
      let made = withoutGradient { angles(at: .arange(0, Double(size), dtype: .float64), .float32, .cpu) }
      rows = made
      return made
    }
    return RotaryAngles(
      cosine: table.cosine.narrowed(axis: 0, start: start, length: length),
      sine: table.sine.narrowed(axis: 0, start: start, length: length))
  }
}
