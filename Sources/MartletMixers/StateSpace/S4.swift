import Foundation
import MartletNN

/// The structured state space layer (S4, Gu et al. 2021; S4D, Gu et al. 2022): D single-input systems run as long
/// convolutions, then mixed over channels:
///
///     y = K * u + D⊙u,      out = GLU(W GELU(y))
///
/// The kernel is diagonal (``DiagonalKernel``, S4D) or diagonal plus rank one (``DPLRKernel``, S4). A bidirectional layer has a
/// second output matrix C whose kernel runs on the reversed sequence. The recurrent state is N/2 complex numbers a channel.
public final class S4: Module, RecurrentMixer {
  public enum Structure: String, Codable, Sendable, CaseIterable {
    case diagonal
    case dplr
  }

  public struct Configuration: Sendable {
    public var width: Int
    /// N, the state size of each channel.
    public var state: Int
    public var structure: Structure
    public var initialization: DiagonalKernel.Initialization
    public var discretization: Discretization
    public var stepRange: ClosedRange<Double>
    /// L at the start, for the DPLR kernel.
    public var length: Int
    public var isCausal: Bool
    public var dropout: Double

    public init(
      width: Int, state: Int = 64, structure: Structure = .diagonal, initialization: DiagonalKernel.Initialization = .lin,
      discretization: Discretization = .zoh, stepRange: ClosedRange<Double> = 1e-3...1e-1, length: Int = 1024,
      isCausal: Bool = true, dropout: Double = 0
    ) {
      self.width = width
      self.state = state
      self.structure = structure
      self.initialization = initialization
      self.discretization = discretization
      self.stepRange = stepRange
      self.length = length
      self.isCausal = isCausal
      self.dropout = dropout
    }
  }

  public let configuration: Configuration
  @Child(key: "kernel") public var kernel: Module
  /// The skip weight D, [width].
  @Parameter(key: "D") public var skip: Tensor
  @Child public var output: any LinearLayer
  private let dropout: Dropout

  public var isCausal: Bool { configuration.isCausal }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    let c = configuration
    self.configuration = c
    dropout = Dropout(c.dropout, generator: generator)
    super.init()
    let directions = c.isCausal ? 1 : 2
    switch c.structure {
    case .diagonal:
      kernel = DiagonalKernel(
        width: c.width, state: c.state, directions: directions, initialization: c.initialization,
        discretization: c.discretization, stepRange: c.stepRange, generator: generator)
    case .dplr:
      kernel = DPLRKernel(
        width: c.width, state: c.state, length: c.length, directions: directions, stepRange: c.stepRange, generator: generator)
    }
    skip = Tensor.randomNormal([c.width], generator: generator)
    output = Linear(c.width, 2 * c.width, generator: generator)
  }

  /// The convolution kernels, [directions, D, length].
  public func kernels(length: Int) -> Tensor {
    switch kernel {
    case let kernel as DiagonalKernel: kernel(length: length)
    case let kernel as DPLRKernel: kernel(length: length)
    default: fatalError("unknown state-space kernel \(type(of: kernel))")
    }
  }

  // MARK: Parallel form

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    var u = x
    if let mask = context.mask { u = u * mask.expandedDimension(-1).to(u.dtype) }
    let k = kernels(length: u.dim(1))
    let y = longConvolution(
      u.swappedAxes(1, 2), k[0], reversed: isCausal ? nil : k[1], skip: skip
    ).swappedAxes(1, 2)
    return mixChannels(y)
  }

  /// GLU(W GELU(y)).
  private func mixChannels(_ y: Tensor) -> Tensor {
    let halves = output(dropout(y.gelu())).chunked(2, axis: -1)
    return halves[0] * halves[1].sigmoid()
  }

  // MARK: Recurrent form

  public struct State: TensorState, @unchecked Sendable {
    /// x, [B, D, N/2] complex.
    public var x: Tensor
    fileprivate let terms: Terms
    public var tensors: [Tensor] {
      get { [x] }
      set { x = newValue[0] }
    }

    fileprivate enum Terms {
      case diagonal(transition: Tensor, b: Tensor, c: Tensor, log: Tensor)
      case dplr(DPLRKernel.StepTerms)
    }
  }

  /// The discretised system is worked out here, once: take a new state after changing parameters. It is recorded for
  /// differentiation like any other computation, so generate inside `withoutGradient`.
  public func initialState(batch: Int) -> State {
    require(isCausal, "a bidirectional state space can't run token by token")
    let terms: State.Terms
    switch kernel {
    case let kernel as DiagonalKernel:
      let (log, b) = kernel.discretized()
      terms = .diagonal(transition: log.exp(), b: b, c: kernel.output[0].viewAsComplex().contiguous(), log: log)
    case let kernel as DPLRKernel: terms = .dplr(kernel.stepTerms())
    default: fatalError("unknown state-space kernel \(type(of: kernel))")
    }
    return State(x: .zeros([batch, configuration.width, configuration.state / 2], dtype: skip.dtype.complex), terms: terms)
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor {
    switch state.terms {
    case .diagonal(let transition, let b, let c, _):
      let (y, next) = diagonalStep(x, c: c, b: b, transition: transition, skip: skip, state: state.x)
      state.x = next
      return mixChannels(y)
    case .dplr(let terms):
      let y = DPLRKernel.step(x, &state.x, terms) + skip * x
      return mixChannels(y)
    }
  }

  /// Diagonal systems advance by whole blocks: outputs by the convolution plus the decaying read-out of the old state.
  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    guard case .diagonal(_, let b, let c, let log) = state.terms else {
      return stacked((0..<x.dim(1)).map { step(x.selected(axis: 1, $0), &state) }, axis: 1)
    }
    let block = min(256, x.dim(1))
    let steps = Tensor.arange(0, Double(block + 1), dtype: log.dtype.real).to(log.dtype)
    let powers = (log.expandedDimension(-1) * steps).exp()  // [D, N, block + 1]: Ā^0 … Ā^block
    var outputs: [Tensor] = []
    let k = kernels(length: block)[0]
    for start in stride(from: 0, to: x.dim(1), by: block) {
      let size = min(block, x.dim(1) - start)
      let u = x.narrowed(axis: 1, start: start, length: size).swappedAxes(1, 2)  // [B, D, l]
      let fromState = einsum("bdn,dnl->bdl", state.x * c, powers.narrowed(axis: -1, start: 1, length: size)).realPart * 2.0
      outputs.append((longConvolution(u, k[.all, ..<size], skip: skip) + fromState).swappedAxes(1, 2))
      let weights = powers.narrowed(axis: -1, start: 0, length: size).flipped(axis: -1) * b.expandedDimension(-1)
      state.x =
        state.x * powers.selected(axis: -1, size) + einsum("bdl,dnl->bdn", u.to(log.dtype), weights)
    }
    return mixChannels(concatenated(outputs, axis: 1))
  }

  public func stateBytes(_ state: State) -> Int { state.x.byteCount }

  public func multiplyAdds(length: Int) -> Int {
    let d = configuration.width
    let transform = Int((Double(length) * log2(Double(max(2, length))) * 5).rounded())
    return length * output.multiplyAdds() + 2 * d * transform + d * configuration.state * length
  }
}
