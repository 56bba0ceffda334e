import Foundation

/// Fixed sines and cosines (Vaswani et al. 2017, §3.5): even channels sin(t/10000^{2i/D}), odd ones the cosine.
/// Returns [length, width].
public func sinusoidalPositions(length: Int, width: Int, base: Double = 10000, offset: Int = 0) -> Tensor {
  let half = (width + 1) / 2
  let positions = Tensor.arange(Double(offset), Double(offset + length), dtype: .float64).expandedDimension(1)
  let rates = (Tensor.arange(0, Double(half), dtype: .float64) * (-2 * log(base) / Double(width))).exp()
  let angles = positions * rates  // [L, D/2]
  return stacked([angles.sin(), angles.cos()], axis: -1).reshaped(length, 2 * half)[.all, ..<width].to(.float32).contiguous()
}

/// How rotary frequencies are changed for contexts longer than those trained on.
public enum RotaryScaling: Codable, Sendable, Equatable {
  /// Positions divided by the factor (Chen et al. 2023, position interpolation).
  case linear(factor: Double)
  /// The base raised so that the lowest frequency is interpolated by the factor and the highest is kept ("NTK-aware").
  case ntk(factor: Double)
  /// YaRN (Peng et al. 2023): wavelengths above `original`/betaSlow interpolated, below `original`/betaFast kept, a ramp between;
  /// attention logits tempered by (0.1 ln factor + 1)².
  case yarn(factor: Double, original: Int, betaFast: Double = 32, betaSlow: Double = 1)
  /// Llama 3's three bands by wavelength.
  case llama3(factor: Double, low: Double = 1, high: Double = 4, original: Int)
}

/// Rotary position embedding (Su et al. 2021): channel pairs of queries and keys turned by position × frequency, so that their
/// product depends on the distance only. Pairs are (i, i + d/2), as in the Hugging Face checkpoints.
public struct RotaryEmbedding: @unchecked Sendable {
  public let dimensions: Int
  /// Radians per position of each pair, [dimensions/2] float64.
  public let frequencies: Tensor
  /// Factor on cosines and sines (YaRN's temperature), else 1.
  public let magnitude: Double

  public init(dimensions: Int, base: Double = 10000, scaling: RotaryScaling? = nil) {
    require(dimensions % 2 == 0, "rotary embeddings need an even number of channels, got \(dimensions)")
    self.dimensions = dimensions
    let d = Double(dimensions)
    func plain(_ base: Double) -> [Double] { (0..<dimensions / 2).map { pow(base, -2 * Double($0) / d) } }
    var values = plain(base)
    var magnitude = 1.0
    switch scaling {
    case nil: break
    case .linear(let factor): values = values.map { $0 / factor }
    case .ntk(let factor): values = plain(base * pow(factor, d / (d - 2)))
    case .yarn(let factor, let original, let fast, let slow):
      func dimension(_ rotations: Double) -> Double { d * log(Double(original) / (rotations * 2 * .pi)) / (2 * log(base)) }
      let low = max(dimension(fast).rounded(.down), 0)
      let high = min(dimension(slow).rounded(.up), d - 1)
      values = values.enumerated().map { i, value in
        let ramp = min(max((Double(i) - low) / max(high - low, 0.001), 0), 1)
        return value / factor * ramp + value * (1 - ramp)
      }
      magnitude = 0.1 * log(max(factor, 1)) + 1
    case .llama3(let factor, let low, let high, let original):
      values = values.map { value in
        let wavelength = 2 * Double.pi / value
        if wavelength < Double(original) / high { return value }
        if wavelength > Double(original) / low { return value / factor }
        let smooth = (Double(original) / wavelength - low) / (high - low)
        return (1 - smooth) * value / factor + smooth * value
      }
    }
    frequencies = Tensor(values)
    self.magnitude = magnitude
  }

  /// Turns x [batch, heads, length, dimensions] whose first position is `offset`, or whose positions are given ([length]).
  public func callAsFunction(_ x: Tensor, offset: Int = 0, positions: Tensor? = nil) -> Tensor {
    let length = x.dim(-2)
    let at = positions?.to(.float64) ?? Tensor.arange(Double(offset), Double(offset + length), dtype: .float64)
    let angles = at.expandedDimension(1) * frequencies  // [L, d/2], in double so that far positions keep their phase
    let cosine = (angles.cos() * magnitude).to(x.dtype).to(x.device)
    let sine = (angles.sin() * magnitude).to(x.dtype).to(x.device)
    let halves = x.chunked(2, axis: -1)
    return concatenated([halves[0] * cosine - halves[1] * sine, halves[1] * cosine + halves[0] * sine], axis: -1)
  }
}

/// Attention with linear biases (Press et al. 2021): −slope_h · distance added to the scores.
public enum ALiBi {
  /// One slope per head: 2^{−8h/H} for a power of two, interleaved with those of the next power otherwise.
  public static func slopes(heads: Int) -> [Double] {
    func powerOfTwo(_ n: Int) -> [Double] { (1...n).map { pow(2, -8 * Double($0) / Double(n)) } }
    let lower = 1 << Int(log2(Double(heads)))
    if lower == heads { return powerOfTwo(heads) }
    let extra = powerOfTwo(2 * lower)
    return powerOfTwo(lower) + stride(from: 0, to: extra.count, by: 2).map { extra[$0] }.prefix(heads - lower)
  }

  /// [heads, queries, keys]; queries are the last of the keys.
  public static func bias(heads: Int, queries: Int, keys: Int) -> Tensor {
    let i = Tensor.arange(Double(keys - queries), Double(keys)).expandedDimension(1)
    let j = Tensor.arange(0, Double(keys))
    return -(i - j).abs() * Tensor(slopes(heads: heads).map(Float.init), [heads, 1, 1])
  }
}

/// A learned score per head and bucketed distance (Raffel et al. 2019, T5): half of the buckets exact, the rest logarithmic.
public final class RelativePositionBias: Module {
  /// [buckets, heads]
  @Parameter public var weight: Tensor
  public let buckets: Int
  public let maximumDistance: Int
  public let bidirectional: Bool

  public init(heads: Int, buckets: Int = 32, maximumDistance: Int = 128, bidirectional: Bool, generator: RandomGenerator) {
    self.buckets = buckets
    self.maximumDistance = maximumDistance
    self.bidirectional = bidirectional
    super.init()
    weight = Initializer.normal(0.02)([buckets, heads], generator)
  }

  /// The bucket of key position − query position.
  public func bucket(_ relative: Int) -> Int {
    var count = buckets
    var result = 0
    var distance = -relative
    if bidirectional {
      count /= 2
      if relative > 0 { result = count }
      distance = abs(distance)
    } else {
      distance = max(distance, 0)
    }
    let exact = count / 2
    if distance < exact { return result + distance }
    let scaled = log(Double(distance) / Double(exact)) / log(Double(maximumDistance) / Double(exact))
    return result + min(exact + Int(scaled * Double(count - exact)), count - 1)
  }

  /// [heads, queries, keys]; queries are the last of the keys.
  public func callAsFunction(queries: Int, keys: Int) -> Tensor {
    let ids = (0..<queries).flatMap { i in (0..<keys).map { j in bucket(j - (i + keys - queries)) } }
    return weight.take(Tensor(ids)).reshaped(queries, keys, -1).transposed(2, 0, 1)
  }
}
