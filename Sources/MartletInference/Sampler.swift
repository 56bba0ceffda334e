@_exported import MartletModels

/// How the next token is chosen from the logits.
public struct Sampler: Sendable, Equatable {
  /// Logits are divided by it; 0 takes the likeliest token.
  public var temperature: Double
  /// Only the k likeliest tokens; `nil` for all.
  public var topK: Int?
  /// The smallest set of likeliest tokens whose probability reaches p (Holtzman et al. 2019); 1 for all.
  public var topP: Double
  /// Only tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024); 0 for all.
  public var minP: Double

  public init(temperature: Double = 1, topK: Int? = nil, topP: Double = 1, minP: Double = 0) {
    self.temperature = temperature
    self.topK = topK
    self.topP = topP
    self.minP = minP
  }

  /// Throws `ConfigurationError` for values out of range.
  public func validate() throws {
    func check(_ condition: Bool, _ message: String) throws { if !condition { throw ConfigurationError(message) } }
    try check(temperature >= 0 && temperature.isFinite, "the temperature must not be negative, got \(temperature)")
    try check(topK.map { $0 > 0 } ?? true, "top-k must be positive, got \(topK ?? 0)")
    try check(topP > 0 && topP <= 1, "top-p must be in (0, 1], got \(topP)")
    try check(minP >= 0 && minP < 1, "min-p must be in [0, 1), got \(minP)")
  }

  /// The distribution that is sampled, [batch, vocabulary], from logits of that shape.
  public func probabilities(_ logits: Tensor) -> Tensor {
    var x = logits.to(.float32)
    guard temperature > 0 else {
      let best = x.argmax(axis: -1, keepDims: true)
      return Tensor.zeros(like: x).scatter(best, 1, axis: -1)
    }
    x = x / temperature
    if let topK, topK < x.dim(-1) {
      let least = x.topK(topK).values[.ellipsis, (topK - 1)...]
      x = x.maskedFill(x .< least, -.infinity)
    }
    var p = x.softmax()
    if minP > 0 { p = p.maskedFill(p .< p.max(axis: -1, keepDims: true) * minP, 0) }
    if topP < 1 {
      let (values, order) = p.sorted(descending: true)
      // A token stays while the probability before it is below p: the first always does.
      let before = values.cumulativeSum(axis: -1) - values
      p = Tensor.zeros(like: p).scatter(order, values.maskedFill(before .>= topP * 1.0, 0), axis: -1)
    }
    return p / p.sum(axis: -1, keepDims: true)
  }

  /// One token a row, [batch] int64.
  public func callAsFunction(_ logits: Tensor, generator: RandomGenerator) -> Tensor {
    guard temperature > 0 else { return logits.argmax(axis: -1) }
    return probabilities(logits).multinomial(1, replacement: true, generator: generator).squeezed(-1)
  }
}
