import Foundation

/// How a parameter's first values are drawn.
public enum Initializer: Sendable {
  case zeros
  case ones
  case constant(Double)
  /// Uniform on ±bound.
  case uniform(Double)
  case normal(Double)
  /// Normal with the standard deviation, redrawn beyond two of them.
  case truncatedNormal(Double)
  /// Glorot & Bengio 2010: uniform on ±gain·√(6/(in+out)).
  case xavierUniform(gain: Double = 1)
  case xavierNormal(gain: Double = 1)
  /// He et al. 2015 for ReLU: uniform on ±√(6/in).
  case kaimingUniform
  case kaimingNormal
  /// Rows (or columns) orthonormal, times gain (Saxe et al. 2013).
  case orthogonal(gain: Double = 1)

  /// While true, parameters get their shape but neither values nor memory (they stand on the meta device): for models whose
  /// weights are about to be loaded.
  @TaskLocal public static var isSkipped = false

  /// Draws a float32 tensor. For a rank of 2 and more, axis 0 counts as outputs and the rest as inputs.
  public func callAsFunction(_ shape: [Int], _ generator: RandomGenerator) -> Tensor {
    if Self.isSkipped { return Tensor.empty(shape, device: .meta) }
    let fanIn = Double(max(1, shape.dropFirst().reduce(1, *)))
    let receptive = Double(max(1, shape.dropFirst(2).reduce(1, *)))
    let fanOut = Double(max(1, shape.first ?? 1)) * receptive
    func uniform(_ bound: Double) -> Tensor { Tensor.random(shape, generator: generator) * (2 * bound) - bound }
    func normal(_ deviation: Double) -> Tensor { Tensor.randomNormal(shape, generator: generator) * deviation }
    switch self {
    case .zeros: return Tensor.zeros(shape)
    case .ones: return Tensor.ones(shape)
    case .constant(let value): return Tensor.full(shape, value)
    case .uniform(let bound): return uniform(bound)
    case .normal(let deviation): return normal(deviation)
    case .truncatedNormal(let deviation):
      // By the inverse distribution function on the part of it within two deviations.
      let low = 0.5 * (1 + erf(-2 / 2.0.squareRoot()))
      let u = Tensor.random(shape, dtype: .float64, generator: generator) * (1 - 2 * low) + low
      return ((u * 2.0 - 1.0).erfinv() * (2.0.squareRoot() * deviation)).to(.float32)
    case .xavierUniform(let gain): return uniform(gain * (6 / (fanIn + fanOut)).squareRoot())
    case .xavierNormal(let gain): return normal(gain * (2 / (fanIn + fanOut)).squareRoot())
    case .kaimingUniform: return uniform((6 / fanIn).squareRoot())
    case .kaimingNormal: return normal((2 / fanIn).squareRoot())
    case .orthogonal(let gain):
      let rows = shape[0]
      let columns = shape.dropFirst().reduce(1, *)
      let gaussian = Tensor.randomNormal([max(rows, columns), min(rows, columns)], generator: generator)
      let (q, r) = gaussian.qr()
      let signed = q * r.diagonal().sign()  // makes the factorisation, and so the distribution, unique
      return ((rows < columns ? signed.T : signed).reshaped(shape) * gain).contiguous()
    }
  }
}
