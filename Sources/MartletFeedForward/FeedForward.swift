@_exported import MartletNN

/// Mixes channels, position by position. [batch, length, width] → the same shape.
public protocol FeedForward: Module {
  func callAsFunction(_ x: Tensor) -> Tensor
  /// Multiplications with addition for one position.
  func multiplyAdds() -> Int
}

/// Which feed-forward a backbone uses.
public enum FeedForwardKind: String, Codable, Sendable, CaseIterable {
  case mlp
  case swiglu
  case geglu
  case none

  /// - Parameters:
  ///   - hidden: the inner width; `nil` for 4 × width (MLP) or 8/3 × width to a multiple of 8 (gated), so that all have about as
  ///     many parameters.
  ///   - activation: `nil` for the kind's own.
  ///   - bias: `nil` for the kind's own: with in an MLP, without in a gated one.
  public func make(
    width: Int, hidden: Int? = nil, activation: Activation? = nil, bias: Bool? = nil, generator: RandomGenerator
  ) -> (any FeedForward)? {
    let inner = hidden ?? (8 * width / 3 + 7) / 8 * 8
    func gated(_ own: Activation) -> GatedMLP {
      GatedMLP(width: width, hidden: inner, activation: activation ?? own, bias: bias ?? false, generator: generator)
    }
    switch self {
    case .mlp:
      return MLP(width: width, hidden: hidden ?? 4 * width, activation: activation ?? .gelu, bias: bias ?? true, generator: generator)
    case .swiglu: return gated(.silu)
    case .geglu: return gated(.gelu)
    case .none: return nil
    }
  }
}
