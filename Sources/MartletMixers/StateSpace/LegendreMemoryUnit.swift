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
/// The memory of a whole sequence is made by Fourier transforms or, from a state, by matrix products (``legendreMemory(_:A:B:from:)``); the
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
    return length * (maps + c.memory * min(transform, c.memory + LegendreForms.chunk))
  }
}

// MARK: The memory of a sequence

private let product = Operator("martlet::linear")
private let filterBank = Operator("martlet::filter_bank")
private let filterSpectra = Operator("martlet::filter_spectra")

/// m_t = Ā m_{t−1} + B̄ u_t for every t. A and B receive no gradients.
///
/// From zeros it is the convolution of u with the d impulse responses Ā^l B̄, whose Fourier transforms are kept (Chilkuri & Eliasmith 2021,
/// eqs. 23–26): 5 log₂ L operations a position and coefficient, in the family's transforms, which work within the cache.
///
/// From a state, in float64 and on other devices it is matrix products in time and memory linear in the length.
/// A chunk of 16 positions is one product: its states are linear in the state before it and its 16 inputs,
///
///     [m_1 … m_16] = [m_0; u_1 … u_16] W,    W = (Ā^t for m_0; Ā^{t−s} B̄ for u_s, s ≤ t)
///
/// and all chunks together are one matrix product. The states before the chunks come from the same product with blocks of 256
/// positions, of which every sixteenth state is made; only one vector in 256 positions is carried in sequence.
///
/// - Parameters:
///   - u: [B, L]; A: [d, d]; B: [d].
///   - from: the state before the first position, [B, d]; `nil` for zeros.
/// - Returns: [B, L, d].
public func legendreMemory(_ u: Tensor, A: Tensor, B: Tensor, from start: Tensor? = nil) -> Tensor {
  LegendreMemory(A: A, B: B)(u, from: start)
}

/// ``legendreMemory(_:A:B:from:)`` of one Ā and B̄ for many signals: what is made of them is kept.
public struct LegendreMemory: Sendable {
  private let forms: LegendreForms

  /// - Parameters:
  ///   - A: [d, d]; B: [d].
  public init(A: Tensor, B: Tensor) { self.init(LegendreForms(), A, B) }

  fileprivate init(_ forms: LegendreForms, _ A: Tensor, _ B: Tensor) {
    forms.set(A, B)
    self.forms = forms
  }

  /// - Parameters:
  ///   - u: [B, L].
  ///   - from: the state before the first position, [B, d]; `nil` for zeros.
  /// - Returns: [B, L, d].
  public func callAsFunction(_ u: Tensor, from start: Tensor? = nil) -> Tensor {
    if start == nil, u.dim(1) > 0, fusedKernelsServe(u) {
      let (spectra, capacity) = forms.spectra(length: u.dim(1))
      return filterBank(.tensor(u), .tensor(spectra), .int(forms.width), .int(capacity))
    }
    return blockwise(u, forms.matrices(like: u), from: start ?? .zeros([u.dim(0), forms.width], dtype: u.dtype, device: u.device))
  }
}

private func blockwise(_ u: Tensor, _ matrices: LegendreForms.Matrices, from start: Tensor) -> Tensor {
  let (batch, length, d) = (u.dim(0), u.dim(1), start.dim(1))
  let (chunk, block) = (LegendreForms.chunk, LegendreForms.block)
  func cut(_ size: Int) -> Tensor {
    let count = (length + size - 1) / size
    let whole = count * size == length ? u : u.padded([0, count * size - length])
    return whole.reshaped(batch, count, size)
  }
  func multiply(_ x: Tensor, _ matrix: Tensor) -> Tensor { product(.tensor(x), .tensor(matrix), .none) }
  let pieces = cut(chunk)  // [B, n, 16]
  var starts = start.expandedDimension(1)  // [B, n, d]: the states before the chunks
  if pieces.dim(1) > 1 {
    let wide = cut(block)  // [B, k, 256]
    let last = matrices.block[(matrices.block.dim(0) - d)...]
    var states = [start]
    for i in 1..<max(1, wide.dim(1)) {
      states.append(multiply(concatenated([states[i - 1], wide.selected(axis: 1, i - 1)], axis: -1), last))
    }
    let before = stacked(states, axis: 1)
    let inner = multiply(concatenated([before, wide], axis: -1), matrices.block[..<(matrices.block.dim(0) - d)])  // [B, k, 15 d]
    starts = concatenated([before, inner], axis: -1).reshaped(batch, -1, d).narrowed(axis: 1, start: 0, length: pieces.dim(1))
  }
  let m = multiply(concatenated([starts, pieces], axis: -1), matrices.chunk)  // [B, n, 16 d]
  return m.reshaped(batch, -1, d).narrowed(axis: 1, start: 0, length: length)
}

/// The recurrence, position by position: the oracle. Arguments and result as ``legendreMemory(_:A:B:from:)``.
public func legendreMemoryReference(_ u: Tensor, A: Tensor, B: Tensor, from start: Tensor? = nil) -> Tensor {
  var m = start ?? .zeros([u.dim(0), A.dim(0)], dtype: u.dtype, device: u.device)
  let states = (0..<u.dim(1)).map { t in
    m = m.matmul(A.T) + u.narrowed(axis: 1, start: t, length: 1) * B
    return m
  }
  return stacked(states, axis: 1)
}

/// The convolution of u with the d impulse responses Ā^l B̄ by Fourier transforms: one of u, d of the responses and d back
/// (Chilkuri & Eliasmith 2021, eqs. 23–26). From a memory of zeros; arguments and result as ``legendreMemory(_:A:B:from:)``.
public func legendreMemoryConvolution(_ u: Tensor, A: Tensor, B: Tensor) -> Tensor {
  let length = u.dim(1)
  let responses = legendreResponses(A.to(.float64), B.to(.float64), length: length).to(u.dtype)
  let transformed = u.rfft(length: 2 * length).expandedDimension(1) * responses.rfft(length: 2 * length)
  return transformed.irfft(length: 2 * length)[.ellipsis, ..<length].swappedAxes(1, 2)
}

/// Ā^l B̄ for l = 0..<length, [d, length], doubling the known ones.
func legendreResponses(_ A: Tensor, _ B: Tensor, length: Int) -> Tensor {
  var (responses, power) = (B.expandedDimension(1), A)
  while responses.dim(1) < length {
    responses = concatenated([responses, power.matmul(responses)], axis: 1)
    if responses.dim(1) < length { power = power.matmul(power) }
  }
  return responses.narrowed(axis: 1, start: 0, length: length)
}

/// What is made of Ā and B̄, in float64, when it is first asked for, and kept as long as they are the same.
private final class LegendreForms: @unchecked Sendable {
  /// Positions whose states one product makes. At d = 256 the product is 17/16 of the d² a position that any carry costs; longer
  /// chunks would only make the matrix larger, shorter ones the carry more frequent.
  static let chunk = 16
  /// Positions between two states carried in sequence.
  static let block = 256
  /// Spectra of so many lengths are kept, 8 d bytes a position.
  private static let keptSpectra = 4

  struct Matrices {
    /// [16 d, d + 16]: the states of a chunk.
    let chunk: Tensor
    /// [16 d, d + 256]: the states at the chunks' ends of a block.
    let block: Tensor
  }

  private let lock = NSLock()
  private var system: (A: Tensor, B: Tensor)?
  private var matrices: Matrices?
  private var spectra: [(capacity: Int, spectra: Tensor)] = []  // last used last

  var width: Int { lock.withLock { system?.B.dim(0) ?? 0 } }

  func set(_ A: Tensor, _ B: Tensor) {
    lock.withLock {
      if let system, system.A.dtype == A.dtype, system.A.device == A.device, system.A.isEqual(to: A), system.B.isEqual(to: B) { return }
      withoutGradient { system = (A.detached().copy(), B.detached().copy()) }
      (matrices, spectra) = (nil, [])
    }
  }

  private var exact: (A: Tensor, B: Tensor) {
    guard let system else { preconditionFailure("Ā and B̄ have not been set") }
    return (system.A.to(.cpu).to(.float64), system.B.to(.cpu).to(.float64))
  }

  func matrices(like x: Tensor) -> Matrices {
    lock.withLock {
      if let matrices, matrices.chunk.dtype == x.dtype, matrices.chunk.device == x.device { return matrices }
      let made = withoutGradient { make(like: x) }
      matrices = made
      return made
    }
  }

  private func make(like x: Tensor) -> Matrices {
    let (a, b) = exact
    let responses = legendreResponses(a, b, length: Self.block)
    func states(of length: Int, every stride: Int) -> Tensor {
      let jump = a.matrixPower(stride)
      var power = jump
      var rows: [Tensor] = []
      for end in Swift.stride(from: stride, through: length, by: stride) {
        // [d, d + length]: Ā^end for the state before, Ā^{end − s} B̄ for the input s = 1 … end, nothing for later ones.
        let ofInputs = responses.narrowed(axis: 1, start: 0, length: end).flipped(axis: 1)
        rows.append(concatenated([power, ofInputs.padded([0, length - end])], axis: 1))
        if end < length { power = power.matmul(jump) }
      }
      return concatenated(rows).to(x.dtype).to(x.device)
    }
    return Matrices(chunk: states(of: Self.chunk, every: 1), block: states(of: Self.block, every: Self.chunk))
  }

  /// The transforms of the impulse responses for signals of at least so many positions.
  func spectra(length: Int) -> (spectra: Tensor, capacity: Int) {
    // The transforms' sizes: a power of two times 1, 3 or 5.
    let capacity = [1, 3, 5].map { odd in sequence(first: odd) { $0 * 2 }.first { $0 >= length } ?? length }.min() ?? length
    return lock.withLock {
      if let i = spectra.firstIndex(where: { $0.capacity == capacity }) {
        let known = spectra.remove(at: i)
        spectra.append(known)
      } else {
        let made = withoutGradient {
          let (a, b) = exact
          return filterSpectra(.tensor(legendreResponses(a, b, length: capacity).to(.float32)), .int(capacity))
        }
        spectra.append((capacity, made))
        if spectra.count > Self.keptSpectra { spectra.removeFirst() }
      }
      return (spectra[spectra.count - 1].spectra, capacity)
    }
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
