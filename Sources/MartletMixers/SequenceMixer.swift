@_exported import MartletNN

/// What a mixer must know of a batch besides its values.
public struct MixingContext: @unchecked Sendable {
  /// [batch, length] bool, true at real positions; `nil` when all are. Padding stands at the end of a sequence.
  public var mask: Tensor?
  /// Position of the first element, for rotary embeddings of a continued sequence.
  public var offset: Int
  /// Added to attention's scores, [heads or 1, queries, keys]: T5's relative positions.
  public var scoreBias: Tensor?
  /// Set when x is [1, total, width]: several sequences end to end, without padding.
  public var packing: SequencePacking?
  /// Where the tokens stand when they are those of an image; mixers that need a grid otherwise lay the sequence out in rows.
  public var grid: TokenGrid?

  public init(
    mask: Tensor? = nil, offset: Int = 0, scoreBias: Tensor? = nil, packing: SequencePacking? = nil, grid: TokenGrid? = nil
  ) {
    self.mask = mask
    self.offset = offset
    self.scoreBias = scoreBias
    self.packing = packing
    self.grid = grid
  }
}

/// Mixes information along the sequence. x: [batch, length, width] → the same shape.
///
/// Whether a mixer is causal is decided when it is built, because bidirectional forms may have parameters of their own.
public protocol SequenceMixer: Module {
  /// True when output t depends on inputs 0...t only.
  var isCausal: Bool { get }
  /// The parallel form.
  func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor
  /// Whether the parallel form itself heeds `MixingContext.packing`; otherwise models run it sequence by sequence.
  var mixesPackedSequences: Bool { get }
  /// Multiplications with addition for one sequence of a length, for cost models.
  func multiplyAdds(length: Int) -> Int
}

extension SequenceMixer {
  public var mixesPackedSequences: Bool { false }
  public func callAsFunction(_ x: Tensor) -> Tensor { self(x, MixingContext()) }
}

/// A mixer that also runs token by token, in constant memory or, for caches, in memory that grows.
///
/// A state's tensors may be overwritten by the next step: an old value of the state is spent once it has been advanced. Steps are
/// recorded for differentiation like other computations, so generate inside `withoutGradient`.
public protocol RecurrentMixer: SequenceMixer {
  associatedtype State: MixerState
  /// The state before the first token.
  func initialState(batch: Int) -> State
  /// The same, where a growing state is stored as asked.
  func initialState(batch: Int, cache: CacheOptions) -> State
  /// One token. x: [batch, width] → [batch, width].
  func step(_ x: Tensor, _ state: inout State) -> Tensor
  /// Many tokens from a state: the parallel form where the method has one that takes a state. x: [batch, length, width].
  func advance(_ x: Tensor, _ state: inout State) -> Tensor
  /// Bytes of a state.
  func stateBytes(_ state: State) -> Int
}

extension RecurrentMixer {
  public func initialState(batch: Int, cache: CacheOptions) -> State { initialState(batch: batch) }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    stacked((0..<x.dim(1)).map { step(x.selected(axis: 1, $0), &state) }, axis: 1)
  }

  /// A state whose type the caller need not know.
  public func initialAnyState(batch: Int, cache: CacheOptions = CacheOptions()) -> any MixerState {
    initialState(batch: batch, cache: cache)
  }
  public func stepAny(_ x: Tensor, _ state: inout any MixerState) -> Tensor {
    guard var own = state as? State else { fatalError("a state of \(type(of: state)) was given to \(Self.self)") }
    defer { state = own }
    return step(x, &own)
  }
  public func advanceAny(_ x: Tensor, _ state: inout any MixerState) -> Tensor {
    guard var own = state as? State else { fatalError("a state of \(type(of: state)) was given to \(Self.self)") }
    defer { state = own }
    return advance(x, &own)
  }
  public func anyStateBytes(_ state: any MixerState) -> Int { (state as? State).map(stateBytes) ?? 0 }
}

/// Whether the fused CPU kernels can serve a tensor; otherwise the reference form in plain operators does.
func fusedKernelsServe(_ x: Tensor) -> Bool {
  !KernelChoice.referenceOnly && x.device == .cpu && x.dtype == .float32
}

/// Lets tests and benchmarks compare the fused kernels with their reference forms.
public enum KernelChoice {
  @TaskLocal public static var referenceOnly = false
}

/// The dtype and device of the states beside a projection: those of its weight, or float32 where that is stored in fewer bits.
func stateKind(_ layer: any LinearLayer) -> (dtype: DType, device: Device) {
  guard let weight = (layer as? Linear)?.weight else { return (.float32, .cpu) }
  return (weight.dtype == .float64 || weight.device != .cpu ? weight.dtype : .float32, weight.device)
}

/// [batch, length, heads·d] → [batch, heads, length, d], a view.
func splitHeads(_ x: Tensor, _ heads: Int) -> Tensor {
  x.reshaped(x.dim(0), x.dim(1), heads, -1).swappedAxes(1, 2)
}

/// [batch, heads, length, d] → [batch, length, heads·d].
func mergeHeads(_ x: Tensor) -> Tensor { x.swappedAxes(1, 2).reshaped(x.dim(0), x.dim(2), -1) }
