import Foundation
import MartletNN

/// SGConv's long kernel (Li et al. 2022, §4): S small free kernels of d taps, each stretched to twice the length of the one before and
/// scaled down by α, one after the other:
///
///     k = [k_0, …, k_{S−1}] / Z,    k_i = α^i Upsample(w_i, 2^{max(i−1, 0)}),    S = 1 + ⌈log₂(L/d)⌉
///
/// The first two pieces have d taps, the i-th 2^{i−1} d, together d·2^{S−1} ≥ L: the parameters grow with log L only, and
/// the magnitude falls with the distance. Z is the norm of each channel's whole kernel at the start; it is a constant, because a norm
/// that followed the weights would be weight normalisation. Tap 0 belongs to the current position.
public final class MultiScaleKernel: Module {
  /// How a piece is stretched.
  public enum Interpolation: String, Codable, Sendable, CaseIterable {
    /// Between the centres of the taps (PyTorch's `align_corners=false`).
    case linear
    case nearest
  }

  /// How the pieces are put together.
  public enum Arrangement: String, Codable, Sendable, CaseIterable {
    case concatenated
    /// All begin at tap 0, the i-th stretched by 2^i, and are added.
    case summed
  }

  /// What makes the kernel fall with the distance.
  public enum Decay: String, Codable, Sendable, CaseIterable {
    /// α^i for piece i, α⁻¹ spread evenly over the channels in the decay range.
    case geometric
    /// (l + 1)^{−ρ} for tap l, ρ learned for each channel, uniform in the decay range at the start.
    case power
  }

  public enum Initialization: String, Codable, Sendable, CaseIterable {
    /// N(0, 1).
    case normal
    /// Cosines of 0, 1, …, D − 1 periods, dealt to the channels at random at each scale.
    case cosine
  }

  public struct Configuration: Sendable {
    public var width: Int
    /// The longest sequence.
    public var length: Int
    /// d, the taps of each piece before it is stretched.
    public var dimension: Int
    public var directions: Int
    public var interpolation: Interpolation
    public var arrangement: Arrangement
    public var decay: Decay
    public var decayRange: ClosedRange<Double>
    public var initialization: Initialization

    public init(
      width: Int, length: Int, dimension: Int = 64, directions: Int = 1, interpolation: Interpolation = .linear,
      arrangement: Arrangement = .concatenated, decay: Decay = .geometric, decayRange: ClosedRange<Double> = 2...2,
      initialization: Initialization = .normal
    ) {
      self.width = width
      self.length = length
      self.dimension = dimension
      self.directions = directions
      self.interpolation = interpolation
      self.arrangement = arrangement
      self.decay = decay
      self.decayRange = decayRange
      self.initialization = initialization
    }

    /// S.
    public var scales: Int {
      var scales = 1
      while dimension << (scales - 1) < length { scales += 1 }
      return scales
    }
  }

  public let configuration: Configuration
  /// w, [directions, S, D, d].
  @Parameter public var weight: Tensor
  /// ρ, [D]; `nil` for a geometric decay.
  @Parameter(key: "decay") public var exponent: Tensor?
  /// α⁻¹, [D]; `nil` for a power law.
  @Buffer public var multiplier: Tensor?
  /// Z, [directions, D].
  @Buffer(key: "norm") public var norm: Tensor

  /// Parameters that learn slowly, at 1e-3, in the paper's recipe. The decay is one only where it is learned.
  public static let slowParameters = ["kernel.weight", "kernel.decay"]

  /// d·2^{S−1}: the taps of the whole kernel.
  public let length: Int

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    require(
      c.dimension > 0 && c.length > 0, "a multi-scale kernel needs a positive dimension and length, got \(c.dimension) and \(c.length)")
    self.configuration = c
    length = c.dimension << (c.scales - 1)
    super.init()
    switch c.initialization {
    case .normal: weight = Tensor.randomNormal([c.directions, c.scales, c.width, c.dimension], generator: generator)
    case .cosine:
      let phase = Tensor.linspace(0, 2 * Double.pi, count: c.dimension, dtype: .float64)
      let periods = Tensor.arange(0, Double(c.width), dtype: .float64).expandedDimension(-1)
      let cosines = (periods * phase).cos().to(.float32)  // [D, d]
      let dealt = (0..<c.scales).map { _ in cosines.take(Tensor.randomPermutation(c.width, generator: generator)) }
      weight = stacked(dealt).expandedDimension(0).broadcast(to: [c.directions, c.scales, c.width, c.dimension]).contiguous()
    }
    switch c.decay {
    case .geometric:
      exponent = nil
      multiplier = Tensor.linspace(c.decayRange.lowerBound, c.decayRange.upperBound, count: c.width)
    case .power:
      let (low, high) = (c.decayRange.lowerBound, c.decayRange.upperBound)
      exponent = Tensor.random([c.width], generator: generator) * (high - low) + low
      multiplier = nil
    }
    norm = Tensor.ones([c.directions, c.width])
    // A kernel of zeros (the cosine of no period is never one) stays what it is.
    norm = withoutGradient { self(length: length).norm(axis: -1).clamped(min: 1e-12) }
  }

  private static let linear = Operator("aten::upsample_linear1d")
  private static let nearest = Operator("aten::upsample_nearest1d")

  /// w_i stretched by a factor: [directions, D, d] → [directions, D, factor·d].
  private func stretched(_ piece: Tensor, by factor: Int) -> Tensor {
    guard factor > 1 else { return piece }
    let size = OperatorArgument.ints([factor * configuration.dimension])
    switch configuration.interpolation {
    case .linear: return Self.linear(.tensor(piece), size, .bool(false), .none)
    case .nearest: return Self.nearest(.tensor(piece), size, .none)
    }
  }

  /// The first `length` taps of the kernels, or all where there are fewer: [directions, D, length].
  public func callAsFunction(length: Int) -> Tensor {
    let c = configuration
    let taps = min(length, self.length)
    var pieces: [Tensor] = []
    var start = 0
    for i in 0..<c.scales where start < taps {
      // Scaled while it is small.
      var piece = weight.selected(axis: 1, i) / norm.expandedDimension(-1)
      if let multiplier, i > 0 { piece = piece * multiplier.pow(-Double(i)).expandedDimension(-1) }
      switch c.arrangement {
      case .concatenated:
        piece = stretched(piece, by: 1 << max(0, i - 1))
        pieces.append(piece[.ellipsis, ..<min(taps - start, piece.dim(-1))])
        start += piece.dim(-1)
      case .summed:
        piece = stretched(piece, by: 1 << i)[.ellipsis, ..<min(taps, c.dimension << i)]
        pieces.append(piece.padded([0, taps - piece.dim(-1)]))
      }
    }
    var k = c.arrangement == .summed ? pieces.dropFirst().reduce(pieces[0], +) : concatenated(pieces, axis: -1)
    if let exponent {
      let distance = Tensor.arange(1, Double(taps + 1), dtype: k.dtype, device: k.device).log()
      k = k * (-(exponent.expandedDimension(-1) * distance)).exp()
    }
    return k
  }
}
