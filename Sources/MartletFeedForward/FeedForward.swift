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

  /// - Parameter hidden: the inner width; `nil` for 4 × width (MLP) or 8/3 × width to a multiple of 8 (gated), so that all
  ///   have about as many parameters.
  public func make(width: Int, hidden: Int? = nil, generator: RandomGenerator) -> (any FeedForward)? {
    let gated = hidden ?? (8 * width / 3 + 7) / 8 * 8
    switch self {
    case .mlp: return MLP(width: width, hidden: hidden ?? 4 * width, generator: generator)
    case .swiglu: return GatedMLP(width: width, hidden: gated, activation: .silu, generator: generator)
    case .geglu: return GatedMLP(width: width, hidden: gated, activation: .gelu, generator: generator)
    case .none: return nil
    }
  }
}
