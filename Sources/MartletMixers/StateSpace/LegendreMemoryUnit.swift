import Foundation
import MartletNN

/// The Legendre memory unit in its parallel form (Chilkuri & Eliasmith 2021, arXiv 2102.11417; Voelker et al. 2019): one number a
/// position is remembered over a window of θ positions by a fixed linear system, whatever reads it is position by position:
///
///     u_t = relu(w_u·x_t + b_u),    m_t = Ā m_{t−1} + B̄ u_t,    h_t = relu(W_h [m_t; x_t] + b_h),    y_t = W_o h_t + b_o
///
/// with u_t a scalar and m_t ∈ R^d. Ā and B̄ are the Legendre delay ``HiPPO/legT(_:window:)`` held over unit steps; they are never
/// trained. In the spiking form (LMUFormer, Liu et al. 2024, arXiv 2402.04882, §3.3) u, m and h pass through batch norm and
/// ``LIFNeuron`` in place of relu: what is fed back is m itself, not its spikes, so that the memory stays linear.
///
/// The memory of a whole sequence is made in chunks or by Fourier transforms, whichever costs less (``legendreMemory(_:A:B:from:)``); the
/// state is d numbers a sequence, and one membrane potential each for u, m and h of a spiking unit.
public final class LegendreMemoryUnit: Module, RecurrentMixer {
  public struct Configuration: Sendable {
    public var width: Int
    /// d, the number of Legendre coefficients.
    public var memory: Int
    /// θ, the window in positions.
    public var window: Double
    /// W_o on the output; without it the outputs are relu's or spikes.
    public var hasProjection: Bool
    public var isSpiking: Bool

    /// - Parameter memory: `nil` for the width.
    public init(width: Int, memory: Int? = nil, window: Double, hasProjection: Bool = true, isSpiking: Bool = false) {
      self.width = width
      self.memory = memory ?? width
      self.window = window
      self.hasProjection = hasProjection
      self.isSpiking = isSpiking
    }
  }

  public let configuration: Configuration
  /// w_u and b_u.
  @Child(key: "W_u") public var input: any LinearLayer
  /// W_h and b_h over [m; x].
  @Child(key: "W_h") public var hidden: any LinearLayer
  @Child public var output: (any LinearLayer)?
  /// Ā, [d, d].
  @Buffer(key: "A") public var transition: Tensor
  /// B̄, [d].
  @Buffer(key: "B") public var write: Tensor
  @Child(key: "bn_u") public var inputNorm: BatchNorm?
  @Child(key: "bn_m") public var memoryNorm: BatchNorm?
  @Child(key: "bn_h") public var hiddenNorm: BatchNorm?
  private let neuron = LIFNeuron()
  private let forms = LegendreForms()

  public var isCausal: Bool { true }

  /// - Parameter initializer: of W_u and W_h, whose biases are then zero; `nil` for a linear layer's own.
  public init(_ configuration: Configuration, initializer: Initializer? = nil, generator: RandomGenerator) {
    let c = configuration
    require(c.width > 0 && c.memory > 0, "width and memory must be positive, got \(c.width) and \(c.memory)")
    require(c.window > 0, "the window must be positive, got \(c.window)")
    self.configuration = c
    super.init()
    input = Linear(c.width, 1, initializer: initializer, generator: generator)
    hidden = Linear(c.memory + c.width, c.width, initializer: initializer, generator: generator)
    output = c.hasProjection ? Linear(c.width, c.width, generator: generator) : nil
    let (a, b) = HiPPO.legT(c.memory, window: c.window)
    let held = zeroOrderHold(a, b)
    transition = held.A.to(.float32)
    write = held.B.to(.float32)
    inputNorm = c.isSpiking ? BatchNorm(1) : nil
    memoryNorm = c.isSpiking ? BatchNorm(c.memory) : nil
    hiddenNorm = c.isSpiking ? BatchNorm(c.width) : nil
  }

  // MARK: Parallel form

  /// Padding stands at the end, where a causal mixer's real outputs don't see it; the mask only keeps it out of batch statistics.
  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    var state = initialState(batch: x.dim(0), like: x)
    return run(x, &state, isFresh: true, mask: context.mask)
  }

  /// - Parameter isFresh: whether the memory of `state` is zero.
  private func run(_ x: Tensor, _ state: inout State, isFresh: Bool = false, mask: Tensor? = nil) -> Tensor {
    let u = activated(input(x), inputNorm, &state.membranes, 0, mask)
    let signal = u.squeezed(-1)
    // State arithmetic is in float32 at least.
    let wide = signal.dtype == .float64 ? signal : signal.to(.float32)
    let start = isFresh ? nil : state.memory.to(wide.dtype)
    let m: Tensor
    if KernelChoice.referenceOnly {
      m = legendreMemoryReference(wide, A: transition.to(wide.dtype), B: write.to(wide.dtype), from: start)
    } else {
      m = LegendreMemory(forms, transition, write)(wide, from: start)
    }
    state.memory = m.selected(axis: 1, x.dim(1) - 1)
    return read(x, m.to(x.dtype), &state.membranes, mask)
  }

  /// h and y from the memory and x, [B, L, …].
  private func read(_ x: Tensor, _ m: Tensor, _ membranes: inout [Tensor], _ mask: Tensor?) -> Tensor {
    // The memory is read as it is unless it spikes.
    let memory = memoryNorm == nil ? m : activated(m, memoryNorm, &membranes, 1, mask)
    let h = activated(hidden(concatenated([memory, x], axis: -1)), hiddenNorm, &membranes, 2, mask)
    return output.map { $0(h) } ?? h
  }

  /// relu, or spikes of the normalised values.
  private func activated(_ x: Tensor, _ norm: BatchNorm?, _ membranes: inout [Tensor], _ place: Int, _ mask: Tensor?) -> Tensor {
    guard let norm else { return x.relu() }
    return neuron.advance(norm(x, mask: mask), &membranes[place])
  }

  // MARK: Recurrent form

  public struct State: TensorState, @unchecked Sendable {
    /// m, [B, d].
    public var memory: Tensor
    /// Potentials of u, m and h where they spike: [B, 1], [B, d], [B, D].
    public var membranes: [Tensor]
    public var tensors: [Tensor] {
      get { [memory] + membranes }
      set {
        memory = newValue[0]
        membranes = Array(newValue.dropFirst())
      }
    }
  }

  public func initialState(batch: Int) -> State { initialState(batch: batch, like: transition) }

  private func initialState(batch: Int, like x: Tensor) -> State {
    let dtype: DType = x.dtype == .float64 ? .float64 : .float32
    func zeros(_ width: Int, _ dtype: DType) -> Tensor { .zeros([batch, width], dtype: dtype, device: x.device) }
    let c = configuration
    return State(memory: zeros(c.memory, dtype), membranes: c.isSpiking ? [1, c.memory, c.width].map { zeros($0, x.dtype) } : [])
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor {
    let row = x.expandedDimension(1)
    let u = activated(input(row), inputNorm, &state.membranes, 0, nil).squeezed(1)  // [B, 1]
    state.memory = linearMap(state.memory, transition.to(state.memory.dtype)) + u.to(state.memory.dtype) * write.to(state.memory.dtype)
    return read(row, state.memory.expandedDimension(1).to(x.dtype), &state.membranes, nil).squeezed(1)
  }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor { run(x, &state) }

  public func stateBytes(_ state: State) -> Int { state.tensors.reduce(0) { $0 + $1.byteCount } }

  public func multiplyAdds(length: Int) -> Int {
    let c = configuration
    let maps = [input, hidden, output].compactMap { $0?.multiplyAdds() }.reduce(0, +)
    let transform = Int((2.5 * log2(Double(max(length, 2)))).rounded(.up))
    return length * (maps + c.memory * min(transform, c.memory + LegendreForms.shortChunk))
  }
}

// MARK: By name

extension MixerKind {
  public static let lmu = MixerKind(
    name: "lmu", summary: "Legendre memory unit: a fixed window of one signal (Chilkuri & Eliasmith 2021)",
    keys: [
      ConfigurationKey("memory", .integer, default: .null, "d, Legendre coefficients of the window; null for the width"),
      ConfigurationKey("window", .number, default: .null, "θ, positions remembered; null for the longest sequence expected"),
      ConfigurationKey("projection", .boolean, default: true, "a linear map on the output"),
    ], directions: [.causal]
  ) { site, options, generator in
    let memory = options["memory"]?.intValue ?? site.width
    let window = options["window"]?.doubleValue ?? Double(max(site.length, 1))
    guard (1...4096).contains(memory) else { throw ConfigurationError("memory must be 1...4096, got \(memory)") }
    guard window > 0, window.isFinite else { throw ConfigurationError("the window must be positive, got \(window)") }
    return LegendreMemoryUnit(
      .init(width: site.width, memory: memory, window: window, hasProjection: options["projection"]?.boolValue ?? true),
      generator: generator)
  }
}
