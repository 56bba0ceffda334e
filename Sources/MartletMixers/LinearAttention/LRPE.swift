/// Linearized relative positional encoding (Qin et al. 2022, arXiv 2210.10340): the same orthogonal map of each position on queries and
/// on keys, so that their product depends on the distance only and linear attention keeps its sums,
///
///     y_t = R(t θ) (I − 2 u uᵀ) φ(x_t)
///
/// with a fixed random unit vector u [d], the Householder reflection, and pairs of neighbouring channels (2i, 2i + 1) turned by t θ_i,
/// where θ [d/2] is learned from 10000^{−2i/d}. All heads of a layer share u and θ.
///
/// The feature map φ of the queries and keys is taken in the same pass. On CPU in float32 it runs on the kernel
/// `martlet::linearized_positions`, elsewhere on ``reference(_:feature:starts:)``.
public final class LRPE: Module {
  /// φ.
  public enum Feature: String, Sendable, CaseIterable {
    case identity
    case elu
    case onePlusElu = "one_plus_elu"

    public func callAsFunction(_ x: Tensor) -> Tensor {
      switch self {
      case .identity: x
      case .elu: x.elu()
      case .onePlusElu: x.elu() + 1
      }
    }
  }

  @Parameter public var theta: Tensor
  @Buffer public var direction: Tensor

  /// Throws (traps) for an odd number of channels.
  public init(dimensions: Int, base: Double = 10000, generator: RandomGenerator) {
    require(dimensions % 2 == 0 && dimensions > 0, "linearized positions need an even number of channels, got \(dimensions)")
    super.init()
    theta = RotaryEmbedding(dimensions: dimensions, base: base).frequencies().to(.float32)
    let u = Initializer.normal(1)([dimensions], generator)
    direction = u / u.norm()
  }

  /// x [B, H, L, d], whose rows start at these positions (one for all, or one each) → the same shape.
  public func callAsFunction(_ x: Tensor, feature: Feature = .identity, starts: [Int] = [0]) -> Tensor {
    let starts = starts.allSatisfy { $0 == starts[0] } ? [starts[0]] : starts
    guard fusedKernelsServe(x), theta.dtype == .float32 else { return reference(x, feature: feature, starts: starts) }
    return kernel(.tensor(x), .string(feature.rawValue), .tensor(direction), .tensor(theta), .ints(starts))
  }

  /// The same in plain operators.
  public func reference(_ x: Tensor, feature: Feature = .identity, starts: [Int] = [0]) -> Tensor {
    let z = feature(x)
    let reflected = z - (z * direction).sum(axis: -1, keepDims: true) * 2.0 * direction
    // In double, so that far positions keep their phase.
    let rows = starts.map { Tensor.arange(Double($0), Double($0 + x.dim(2)), dtype: .float64, device: x.device) }
    let positions = rows.count == 1 ? rows[0].expandedDimension(-1) : stacked(rows)[.all, .newAxis, .all, .newAxis]
    let angles = positions * theta.to(.float64)  // [L, d/2] or [B, 1, L, d/2]
    // Where x has 16 bits (autocast), the turn itself has not.
    let precision: DType = x.dtype == .float64 ? .float64 : .float32
    let (cosine, sine) = (angles.cos().to(precision), angles.sin().to(precision))
    let pairs = reflected.reshaped(x.shape.dropLast() + [x.dim(-1) / 2, 2])
    let (a, b) = (pairs.selected(axis: -1, 0), pairs.selected(axis: -1, 1))
    return stacked([a * cosine - b * sine, b * cosine + a * sine], axis: -1).reshaped(x.shape).to(x.dtype)
  }
}

private let kernel = Operator("martlet::linearized_positions")
