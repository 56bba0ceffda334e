import Foundation
import MartletNN

/// Structured global convolution (SGConv, Li et al. 2022, arXiv 2210.09298): one long kernel a channel, made of few parameters
/// (``MultiScaleKernel``), and a map over channels:
///
///     y = k * x + D⊙x,      out = W GELU(y)        (or GLU(W GELU(y)))
///
/// x: [batch, length, width]. The kernel doesn't depend on the length of x: a shorter sequence uses its first taps, and positions further
/// back than the kernel's d·2^{S−1} ≥ L taps have no influence. A bidirectional layer has a second kernel for the positions ahead, whose tap 0 belongs to
/// the next one.
///
/// There is no cheaper exact recurrence than the sum itself: the state holds the last d·2^{S−1} inputs, a step takes that many
/// multiplications a channel.
public final class SGConv: Module, RecurrentMixer {
  public struct Configuration: Sendable {
    public var kernel: MultiScaleKernel.Configuration
    public var isCausal: Bool
    /// A gated linear unit after the output map.
    public var glu: Bool
    public var dropout: Double

    public init(kernel: MultiScaleKernel.Configuration, isCausal: Bool = true, glu: Bool = false, dropout: Double = 0) {
      self.kernel = kernel
      self.kernel.directions = isCausal ? 1 : 2
      self.isCausal = isCausal
      self.glu = glu
      self.dropout = dropout
    }
  }

  public let configuration: Configuration
  public let kernel: MultiScaleKernel
  /// The skip weight D, [width].
  @Parameter(key: "D") public var skip: Tensor
  @Child public var output: any LinearLayer
  private let dropout: Dropout

  public var isCausal: Bool { configuration.isCausal }
  private var width: Int { configuration.kernel.width }

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    self.configuration = configuration
    kernel = MultiScaleKernel(configuration.kernel, generator: generator)
    dropout = Dropout(configuration.dropout, generator: generator)
    super.init()
    let width = configuration.kernel.width
    skip = Tensor.randomNormal([width], generator: generator)
    output = Linear(width, configuration.glu ? 2 * width : width, generator: generator)
  }

  // MARK: Parallel form

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    var u = x
    if let mask = context.mask { u = u * mask.expandedDimension(-1).to(u.dtype) }
    let k = kernel(length: u.dim(1))
    // `longConvolution` counts the current position as tap 0 of both directions.
    let ahead = isCausal ? nil : k[1].padded([1, 0])[0..., ..<k.dim(-1)]
    return mixChannels(longConvolution(u.swappedAxes(1, 2), k[0], reversed: ahead, skip: skip).swappedAxes(1, 2))
  }

  private func mixChannels(_ y: Tensor) -> Tensor {
    let mixed = output(dropout(y.gelu()))
    guard configuration.glu else { return mixed }
    let halves = mixed.chunked(2, axis: -1)
    return halves[0] * halves[1].sigmoid()
  }

  // MARK: Recurrent form

  /// The last inputs, in a ring.
  public struct State: MixerState, @unchecked Sendable {
    /// [B, D, M], M the kernel's taps; zeros stand for what was before the first token.
    public var ring: Tensor
    /// The place of the oldest input, which the next one takes.
    public var next = 0
    var isEmpty = true
    /// The kernel from its last tap to its first, twice, [D, 2M]: any rotation of it is a view.
    fileprivate let taps: Tensor

    fileprivate init(ring: Tensor, taps: Tensor) {
      self.ring = ring
      self.taps = taps
    }

    /// From the oldest to the newest.
    fileprivate var ordered: Tensor { next == 0 ? ring : ring.rolled(by: -next, axis: -1) }

    public func selecting(_ rows: [Int]) -> State {
      var result = self
      result.ring = ring.take(Tensor(rows).to(ring.device))
      return result
    }

    public static func joined(_ states: [State]) -> State {
      guard var result = states.first else { fatalError("no states to join") }
      result.ring = concatenated(states.map(\.ordered))
      result.next = 0
      result.isEmpty = states.allSatisfy(\.isEmpty)
      return result
    }
  }

  /// The kernel is worked out here, once: take a new state after changing parameters.
  public func initialState(batch: Int) -> State {
    require(isCausal, "a bidirectional convolution can't run token by token")
    let reversed = kernel(length: kernel.length)[0].flipped(axis: -1)
    let like = stateKind(output)
    return State(
      ring: .zeros([batch, width, kernel.length], dtype: like.dtype, device: like.device),
      taps: concatenated([reversed, reversed], axis: -1))
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor {
    let taps = kernel.length
    let u = x.to(state.ring.dtype)
    if isGradientEnabled {
      let isNext = Tensor.arange(taps, device: x.device) .== state.next
      state.ring = select(isNext, u.expandedDimension(-1), state.ring)
    } else {
      state.ring[.ellipsis, state.next] = u
    }
    // Place s holds x_{t−m}, m = (next − s) mod M, and taps[M − 1 − next + s] is k_m.
    let k = state.taps.narrowed(axis: -1, start: taps - 1 - state.next, length: taps)
    state.next = (state.next + 1) % taps
    state.isEmpty = false
    let y = einsum("bdm,dm->bd", state.ring, k) + skip * u
    return mixChannels(y.to(x.dtype))
  }

  /// One convolution of the remembered inputs followed by the new ones.
  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    let taps = kernel.length
    let u = x.to(state.ring.dtype).swappedAxes(1, 2)  // [B, D, n]
    let known = state.ordered
    let k = state.taps.narrowed(axis: -1, start: 0, length: taps).flipped(axis: -1)
    let all = state.isEmpty ? u : concatenated([known, u], axis: -1)
    let y = longConvolution(all, k, skip: skip).narrowed(axis: -1, start: all.dim(-1) - u.dim(-1), length: u.dim(-1))
    let kept = state.isEmpty ? concatenated([known, u], axis: -1) : all
    state.ring = kept.narrowed(axis: -1, start: kept.dim(-1) - taps, length: taps).copy()
    state.next = 0
    state.isEmpty = false
    return mixChannels(y.swappedAxes(1, 2).to(x.dtype))
  }

  public func stateBytes(_ state: State) -> Int { state.ring.byteCount }

  public func multiplyAdds(length: Int) -> Int {
    let transform = Int((Double(length) * log2(Double(max(2, length))) * 5).rounded())
    return length * output.multiplyAdds() + 2 * width * transform
  }
}

extension MixerKind {
  public static let sgconv = MixerKind(
    name: "sgconv", summary: "long convolution with a multi-scale kernel that decays (SGConv, Li et al. 2022)",
    keys: [
      ConfigurationKey("kernel_dim", .integer, default: 64, "d, taps of each scale's kernel before it is stretched"),
      ConfigurationKey(
        "interpolation", .string, default: "linear", "how a kernel is stretched",
        choices: MultiScaleKernel.Interpolation.allCases.map(\.rawValue)),
      ConfigurationKey(
        "scales", .string, default: "concatenated", "how the scales are put together",
        choices: MultiScaleKernel.Arrangement.allCases.map(\.rawValue)),
      ConfigurationKey(
        "decay", .string, default: "geometric", "by scale, or a learned power of the distance",
        choices: MultiScaleKernel.Decay.allCases.map(\.rawValue)),
      ConfigurationKey("decay_min", .number, default: 2, "the first channel's α⁻¹, or the smallest exponent"),
      ConfigurationKey("decay_max", .number, default: 2, "the last channel's α⁻¹, or the largest exponent"),
      ConfigurationKey(
        "initialization", .string, default: "normal", "of the kernels", choices: MultiScaleKernel.Initialization.allCases.map(\.rawValue)),
      ConfigurationKey("glu", .boolean, default: false, "a gated linear unit after the output map"),
    ], slowParameters: MultiScaleKernel.slowParameters
  ) { site, options, generator in
    let dimension = options["kernel_dim"]?.intValue ?? 64
    let (low, high) = (options["decay_min"]?.doubleValue ?? 2, options["decay_max"]?.doubleValue ?? 2)
    guard dimension > 0, dimension <= 1 << 24 else {
      throw ConfigurationError("kernel_dim must be positive and sensible, got \(dimension)")
    }
    guard low > 0, low <= high else { throw ConfigurationError("decays need 0 < decay_min ≤ decay_max, got \(low) and \(high)") }
    func choice<Option: RawRepresentable<String>>(_ key: String, _ fallback: Option) -> Option {
      options[key]?.stringValue.flatMap(Option.init(rawValue:)) ?? fallback
    }
    return SGConv(
      .init(
        kernel: .init(
          width: site.width, length: max(site.length, 1), dimension: dimension, interpolation: choice("interpolation", .linear),
          arrangement: choice("scales", .concatenated), decay: choice("decay", .geometric), decayRange: low...high,
          initialization: choice("initialization", .normal)),
        isCausal: site.isCausal, glu: options["glu"]?.boolValue ?? false, dropout: site.dropout), generator: generator)
  }
}
