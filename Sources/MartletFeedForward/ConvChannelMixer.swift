/// The channel mixer of LMUFormer (Liu et al. 2024, arXiv 2402.04882, §3.2): two convolutions of size 1 with batch norms,
///
///     ReLU(BN(W₂ GELU(BN(W₁ x + b₁)) + b₂)),
///
/// and its spiking form, in which every weight layer reads spikes: W₂ LIF(BN(W₁ LIF(BN(x)) + b₁)) + b₂. Spiking neurons run along the
/// sequence, so that a spiking mixer is causal but not position by position: ``advance(_:_:)`` continues from membrane potentials.
public final class ConvChannelMixer: Module, FeedForward {
  @Child(key: "fc1_conv") public var up: any LinearLayer
  @Child(key: "fc1_bn") public var firstNorm: BatchNorm
  @Child(key: "fc2_conv") public var down: any LinearLayer
  @Child(key: "fc2_bn") public var secondNorm: BatchNorm
  public let isSpiking: Bool
  private let neuron = LIFNeuron()

  public init(width: Int, hidden: Int, isSpiking: Bool = false, generator: RandomGenerator) {
    self.isSpiking = isSpiking
    super.init()
    up = Linear(width, hidden, generator: generator)
    firstNorm = BatchNorm(isSpiking ? width : hidden)
    down = Linear(hidden, width, generator: generator)
    secondNorm = BatchNorm(isSpiking ? hidden : width)
  }

  public func callAsFunction(_ x: Tensor) -> Tensor { self(x, mask: nil) }

  /// - Parameter mask: [batch, length] bool, true at real positions: only these count in the batch norms' statistics.
  public func callAsFunction(_ x: Tensor, mask: Tensor?) -> Tensor {
    var state = isSpiking ? initialState(batch: x.dim(0), dtype: x.dtype, device: x.device) : []
    return run(x, &state, mask)
  }

  /// Potentials of the two layers of neurons, at rest; none when the mixer doesn't spike.
  public func initialState(batch: Int, dtype: DType = .float32, device: Device = .cpu) -> [Tensor] {
    isSpiking ? [up.inFeatures, up.outFeatures].map { .zeros([batch, $0], dtype: dtype, device: device) } : []
  }

  /// Several positions from potentials. x: [batch, length, width].
  public func advance(_ x: Tensor, _ state: inout [Tensor]) -> Tensor { run(x, &state, nil) }

  private func run(_ x: Tensor, _ state: inout [Tensor], _ mask: Tensor?) -> Tensor {
    guard isSpiking else {
      return secondNorm(down(firstNorm(up(x), mask: mask).gelu()), mask: mask).relu()
    }
    let hidden = up(neuron.advance(firstNorm(x, mask: mask), &state[0]))
    return down(neuron.advance(secondNorm(hidden, mask: mask), &state[1]))
  }

  public func multiplyAdds() -> Int { up.multiplyAdds() + down.multiplyAdds() }
}
