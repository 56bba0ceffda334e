import Foundation
import MartletNN

/// The structured state space layer (S4, Gu et al. 2021; S4D, Gu et al. 2022): D single-input systems run as long
/// convolutions, then mixed over channels:
///
///     y = K * u + D⊙u,      out = GLU(W GELU(y))
///
/// The kernel is diagonal (``DiagonalKernel``, S4D), diagonal plus rank one (``DPLRKernel``, S4), or that of a diagonal linear RNN
/// (``DLRKernel``). A bidirectional layer has a second output matrix C whose kernel runs on the reversed sequence. The recurrent state
/// is N/2 complex numbers a channel (N for the linear RNN).
public final class S4: Module, RecurrentMixer {
  public enum Structure: String, Codable, Sendable, CaseIterable {
    case diagonal
    case dplr
    /// A diagonal linear RNN: no step size, `state` complex numbers that all channels share (``DLRKernel``).
    case dlr
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
    /// Different (A, B): a divisor of the width, whose channels share them in turn; `nil` for one a channel. Δ and C are always the
    /// channel's own.
    public var systems: Int?
    /// Bounds |Im B| of LegS at the start; `nil` for not.
    public var inputClip: Double?

    /// - Parameter initialization: of the diagonal structure; the low-rank one starts from LegS unless it is `random`.
    public init(
      width: Int, state: Int = 64, structure: Structure = .diagonal, initialization: DiagonalKernel.Initialization = .lin,
      discretization: Discretization = .zoh, stepRange: ClosedRange<Double> = 1e-3...1e-1, length: Int = 1024,
      isCausal: Bool = true, dropout: Double = 0, systems: Int? = nil, inputClip: Double? = nil
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
      self.systems = systems
      self.inputClip = inputClip
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
        width: c.width, state: c.state, directions: directions, systems: c.systems, initialization: c.initialization,
        discretization: c.discretization, stepRange: c.stepRange, inputClip: c.inputClip, generator: generator)
    case .dplr:
      kernel = DPLRKernel(
        width: c.width, state: c.state, length: c.length, directions: directions, systems: c.systems,
        initialization: c.initialization == .random ? .random : .legs, stepRange: c.stepRange, inputClip: c.inputClip,
        generator: generator)
    case .dlr: kernel = DLRKernel(width: c.width, state: c.state, directions: directions, generator: generator)
    }
    skip = Tensor.randomNormal([c.width], generator: generator)
    output = Linear(c.width, 2 * c.width, generator: generator)
  }

  /// The convolution kernels, [directions, D, length].
  public func kernels(length: Int) -> Tensor {
    switch kernel {
    case let kernel as DiagonalKernel: kernel(length: length)
    case let kernel as DPLRKernel: kernel(length: length)
    case let kernel as DLRKernel: kernel(length: length)
    default: fatalError("unknown state-space kernel \(type(of: kernel))")
    }
  }

  /// Makes room in the kernel for a sequence of this length, so that the parameters don't change when it comes (``DPLRKernel``).
  public func reserve(length: Int) { (kernel as? DPLRKernel)?.reserve(length: length) }

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
    glu(.tensor(output(dropout(y.gelu()))), .int(-1))
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
    let (width, complexType) = (configuration.width, skip.dtype.complex)
    var states = configuration.state / 2
    switch kernel {
    case let kernel as DiagonalKernel:
      let (log, b) = kernel.discretized()
      terms = .diagonal(transition: log.exp(), b: b, c: kernel.output[0].viewAsComplex().contiguous(), log: log)
    case let kernel as DPLRKernel: terms = .dplr(kernel.stepTerms())
    case let kernel as DLRKernel:
      states = configuration.state
      let log = kernel.logTransition
      terms = .diagonal(
        transition: log.exp().broadcast(to: [width, states]).contiguous(), b: Tensor.ones([width, states], dtype: complexType),
        c: kernel.output[0].viewAsComplex() * 0.5, log: log)
    default: fatalError("unknown state-space kernel \(type(of: kernel))")
    }
    return State(x: .zeros([batch, width, states], dtype: complexType), terms: terms)
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor {
    switch state.terms {
    case .diagonal(let transition, let b, let c, _):
      let (y, next) = diagonalStep(x, c: c, b: b, transition: transition, skip: skip, state: state.x)
      state.x = next
      return mixChannels(y)
    case .dplr(let terms): return mixChannels(lowRankScan(x.expandedDimension(1), terms, skip: skip, state: &state.x).selected(axis: 1, 0))
    }
  }

  /// Diagonal systems advance by whole blocks: outputs by the convolution plus the decaying read-out of the old state. Low-rank ones run
  /// through the block in one kernel, a channel's state staying in registers.
  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    guard case .diagonal(_, let b, let c, let log) = state.terms else {
      guard case .dplr(let terms) = state.terms else { fatalError("a state without terms") }
      return mixChannels(lowRankScan(x, terms, skip: skip, state: &state.x))
    }
    let block = min(256, x.dim(1))
    let steps = Tensor.arange(0, Double(block + 1), dtype: log.dtype.real).to(log.dtype)
    let powers = (log.expandedDimension(-1) * steps).exp()  // [D (or 1, for all), N, block + 1]: Ā^0 … Ā^block
    let isShared = log.dim(0) == 1 && configuration.width > 1
    var outputs: [Tensor] = []
    let k = kernels(length: block)[0]
    for start in stride(from: 0, to: x.dim(1), by: block) {
      let size = min(block, x.dim(1) - start)
      let u = x.narrowed(axis: 1, start: start, length: size).swappedAxes(1, 2)  // [B, D, l]
      let decaying = powers.narrowed(axis: -1, start: 1, length: size)
      let fromState = (isShared ? (state.x * c).matmul(decaying[0]) : einsum("bdn,dnl->bdl", state.x * c, decaying)).realPart * 2.0
      outputs.append((longConvolution(u, k[.all, ..<size], skip: skip) + fromState).swappedAxes(1, 2))
      let recent = powers.narrowed(axis: -1, start: 0, length: size).flipped(axis: -1)
      let written =
        isShared
        ? u.to(log.dtype).matmul(recent[0].T) : einsum("bdl,dnl->bdn", u.to(log.dtype), recent * b.expandedDimension(-1))
      state.x = state.x * powers.selected(axis: -1, size) + written
    }
    return mixChannels(concatenated(outputs, axis: 1))
  }

  public func stateBytes(_ state: State) -> Int { state.x.byteCount }

  public func multiplyAdds(length: Int) -> Int {
    let d = configuration.width
    let transform = Int((Double(length) * log2(Double(max(2, length))) * 5).rounded())
    return length * output.multiplyAdds() + 2 * d * transform + d * configuration.state * (configuration.structure == .dlr ? 2 : 1) * length
  }
}

/// The first half of the channels times the sigmoid of the second.
private let glu = Operator("aten::glu")
