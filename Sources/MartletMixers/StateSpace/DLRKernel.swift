import Foundation
import MartletNN

/// The kernel of a diagonal linear RNN (DLR; Gupta et al. 2022, arXiv 2212.00768), a state space without a continuous system behind it:
///
///     h_t = Λ h_{t−1} + 1·u_t,   y_t = Re(C h_t),      K_l = Re Σ_n C_n Λ_n^l
///
/// with N complex Λ that all channels share and |Λ| < 1 by construction, log Λ = −e^a + iθ. At the start θ_n = 2πn/N, and decays are
/// spread between 10⁻³ and 10⁻¹ a step. What *Never Train from Scratch* (Amos et al. 2023) asks whether S4's structure is needed against.
public final class DLRKernel: Module {
  /// log(−log |Λ|), [N].
  @Parameter(key: "log_A_real") public var logDecay: Tensor
  /// The angles of Λ, [N].
  @Parameter(key: "A_imag") public var frequency: Tensor
  /// C as pairs (re, im), [directions, D, N, 2].
  @Parameter(key: "C") public var output: Tensor

  public init(width: Int, state: Int = 1024, directions: Int = 1, generator: RandomGenerator) {
    require(state > 0, "the state size must be positive, got \(state)")
    super.init()
    let (low, high) = (log(1e-3), log(1e-1))
    logDecay = Tensor.random([state], generator: generator) * (high - low) + low
    frequency = Tensor.arange(0, Double(state)) * (2 * Double.pi / Double(state))
    // Independent C of this size give outputs of the size of the inputs' first effect.
    output = Tensor.randomNormal([directions, width, state, 2], generator: generator) * (0.5 / Double(state)).squareRoot()
  }

  public static let slowParameters = ["log_A_real", "A_imag"]

  /// log Λ, [1, N] complex.
  public var logTransition: Tensor { Tensor.complex(-logDecay.exp(), frequency).expandedDimension(0) }

  /// The kernels of all directions, [directions, D, length].
  public func callAsFunction(length: Int) -> Tensor {
    let c = output.viewAsComplex() * 0.5  // 2 Re of half of it
    let (directions, width, state) = (c.dim(0), c.dim(1), c.dim(2))
    // One set of transitions for all channels: their powers are made once.
    return vandermondeKernel(coefficient: c.reshaped(directions * width, 1, state), logTransition: logTransition, length: length)
      .reshaped(directions, width, length)
  }
}
