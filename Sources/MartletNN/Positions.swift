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
    // In single precision, as the models were trained: at distances where the bucket changes the last bit decides.
    let scaled = log(Float(distance) / Float(exact)) / Float(log(Double(maximumDistance) / Double(exact))) * Float(count - exact)
    return result + min(exact + Int(scaled), count - 1)
  }

  /// [heads, queries, keys]; queries are the last of the keys.
  public func callAsFunction(queries: Int, keys: Int) -> Tensor {
    // One score for every distance; each query sees a window of them, which moves by one.
    let ids = (1 - keys..<queries).map(bucket)
    let scores = weight.take(Tensor(ids).to(weight.device)).T.contiguous()  // [heads, queries + keys − 1]
    return scores.windows(axis: 1, size: keys, step: 1).flipped(axis: 1)
  }
}
