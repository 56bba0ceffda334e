/// A memory for the long term beside attention over a sliding window for the short (Behrouz et al. 2025, arXiv 2505.23735, figure 3,
/// after Titans):
///
///     MAG:  y = SWA(x) ⊙ σ(memory(x))          MAL:  y = SWA(memory(x))
///
/// The state is the memory's and the window's keys and values; neither grows beyond the window.
public final class MemoryHybrid: Module, RecurrentMixer {
  public enum Kind: String, Codable, Sendable, CaseIterable {
    /// The memory gates attention.
    case gate = "mag"
    /// The memory is a layer before attention.
    case layer = "mal"

    static let names = ["none"] + allCases.map(\.rawValue)
  }

  public let kind: Kind
  @Child public var memory: OmegaMemory
  @Child public var attention: SoftmaxAttention

  public var isCausal: Bool { true }

  public init(_ kind: Kind, memory: OmegaMemory, attention: SoftmaxAttention) {
    require(
      attention.isCausal && attention.configuration.window != nil && attention.configuration.width == memory.configuration.width,
      "a hybrid needs causal attention over a window, as wide as its memory")
    self.kind = kind
    super.init()
    self.memory = memory
    self.attention = attention
  }

  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    switch kind {
    case .gate: attention(x, context) * memory(x, context).sigmoid()
    case .layer: attention(memory(x, context), context)
    }
  }

  public struct State: MixerState, @unchecked Sendable {
    public var memory: OmegaMemory.State
    public var attention: KeyValueCache

    public func selecting(_ rows: [Int]) -> State { State(memory: memory.selecting(rows), attention: attention.selecting(rows)) }

    public static func joined(_ states: [State]) -> State {
      State(memory: .joined(states.map(\.memory)), attention: .joined(states.map(\.attention)))
    }
  }

  public func initialState(batch: Int) -> State { initialState(batch: batch, cache: CacheOptions()) }

  public func initialState(batch: Int, cache: CacheOptions) -> State {
    State(memory: memory.initialState(batch: batch), attention: attention.initialState(batch: batch, cache: cache))
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor {
    switch kind {
    case .gate: attention.step(x, &state.attention) * memory.step(x, &state.memory).sigmoid()
    case .layer: attention.step(memory.step(x, &state.memory), &state.attention)
    }
  }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    switch kind {
    case .gate: attention.advance(x, &state.attention) * memory.advance(x, &state.memory).sigmoid()
    case .layer: attention.advance(memory.advance(x, &state.memory), &state.attention)
    }
  }

  public func stateBytes(_ state: State) -> Int { memory.stateBytes(state.memory) + attention.stateBytes(state.attention) }

  public func multiplyAdds(length: Int) -> Int { memory.multiplyAdds(length: length) + attention.multiplyAdds(length: length) }
}
