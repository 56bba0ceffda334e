private let kernel = Operator("martlet::lif")

/// Leaky integrate-and-fire neurons that run along the sequence, one a channel, with a hard reset to zero:
///
///     h_t = V_{t−1} + (x_t − V_{t−1})/τ,    s_t = [h_t ≥ θ],    V_t = h_t (1 − s_t)
///
/// The step's derivative is replaced by the surrogate a σ(a z)(1 − σ(a z)) with z = h_t − θ, and no gradient passes through the
/// reset (the neurons of spiking LMUFormer, Liu et al. 2024, §3; Neftci et al. 2019 for the surrogate).
/// x: [batch, length, width] → spikes 0 or 1 of the same shape.
public final class LIFNeuron: Module {
  /// τ ≥ 1, in positions.
  public let timeConstant: Double
  /// θ, where the neuron fires.
  public let threshold: Double
  /// a, of the surrogate.
  public let steepness: Double

  public init(timeConstant: Double = 2, threshold: Double = 1, steepness: Double = 4) {
    require(timeConstant >= 1, "the time constant must be at least one position, got \(timeConstant)")
    self.timeConstant = timeConstant
    self.threshold = threshold
    self.steepness = steepness
    super.init()
  }

  public func callAsFunction(_ x: Tensor) -> Tensor { fire(x, nil).spikes }

  /// Membranes at rest, [batch, width].
  public func initialState(batch: Int, width: Int, dtype: DType = .float32, device: Device = .cpu) -> Tensor {
    .zeros([batch, width], dtype: dtype, device: device)
  }

  /// One position. x: [batch, width].
  public func step(_ x: Tensor, _ membrane: inout Tensor) -> Tensor {
    advance(x.expandedDimension(1), &membrane).squeezed(1)
  }

  /// Several positions from a membrane potential. x: [batch, length, width].
  public func advance(_ x: Tensor, _ membrane: inout Tensor) -> Tensor {
    let (spikes, last) = fire(x, membrane)
    membrane = last
    return spikes
  }

  private func fire(_ x: Tensor, _ membrane: Tensor?) -> (spikes: Tensor, membrane: Tensor) {
    guard x.device == .cpu, x.dtype == .float32 || x.dtype == .float64 else {
      return leakyIntegrateAndFireReference(
        x, membrane: membrane, timeConstant: timeConstant, threshold: threshold, steepness: steepness)
    }
    let results = kernel.many(
      .tensor(x), .tensor(membrane), .double(timeConstant), .double(threshold), .double(steepness))
    return (results[0] ?? .zeros([1]), results[1] ?? .zeros([1]))
  }
}

/// The same position by position in plain operators: the oracle, and the path of other devices and dtypes.
///
/// - Parameter membrane: [batch, width]; `nil` for zeros.
/// - Returns: the spikes and the membrane potential after the last reset.
public func leakyIntegrateAndFireReference(
  _ x: Tensor, membrane: Tensor? = nil, timeConstant: Double = 2, threshold: Double = 1, steepness: Double = 4
) -> (spikes: Tensor, membrane: Tensor) {
  var v = membrane ?? .zeros([x.dim(0), x.dim(2)], dtype: x.dtype, device: x.device)
  var spikes: [Tensor] = []
  for t in 0..<x.dim(1) {
    let h = v + (x.selected(axis: 1, t) - v) * (1 / timeConstant)
    let z = h - threshold
    let s = customFunction(
      [z], name: "Spike", forward: { [(z .>= 0).to(z.dtype)] },
      backward: { gradients in
        let sigma = (z.detached() * steepness).sigmoid()
        return [gradients[0].map { $0 * (sigma * (1 - sigma)) * steepness }]
      })[0]
    v = h * (1 - s.detached())
    spikes.append(s)
  }
  return (stacked(spikes, axis: 1), v)
}
