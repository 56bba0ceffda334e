/// One layer of long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000), as wide
/// outside as inside: the classical recurrent baseline.
///
///     i, f, o = σ(W x_t + U h_{t−1} + b),   g = tanh(W x_t + U h_{t−1} + b)
///     c_t = f ⊙ c_{t−1} + i ⊙ g,            h_t = o ⊙ tanh(c_t)
///
/// The four gates stand one after the other in the order i, f, g, o, and there are two biases, as in PyTorch's `LSTM`, whose
/// parameters of layer 0 these are. The steps can't be computed in parallel: training takes time linear in the length, one
/// position after the other.
public final class LSTM: Module, RecurrentMixer {
  /// W, [4·width, width].
  @Parameter(key: "weight_ih_l0") public var inputWeight: Tensor
  /// U, [4·width, width].
  @Parameter(key: "weight_hh_l0") public var hiddenWeight: Tensor
  /// [4·width] each; only their sum matters.
  @Parameter(key: "bias_ih_l0") public var inputBias: Tensor
  @Parameter(key: "bias_hh_l0") public var hiddenBias: Tensor
  public let width: Int

  public var isCausal: Bool { true }

  /// All parameters uniform on ±1/√width.
  public init(_ width: Int, generator: RandomGenerator) {
    require(width > 0, "an LSTM needs a positive width, got \(width)")
    self.width = width
    super.init()
    let initializer = Initializer.uniform(1 / Double(width).squareRoot())
    inputWeight = initializer([4 * width, width], generator)
    hiddenWeight = initializer([4 * width, width], generator)
    inputBias = initializer([4 * width], generator)
    hiddenBias = initializer([4 * width], generator)
  }

  /// Padding stands at the end, where it can't reach a real position: the context's mask is not needed.
  public func callAsFunction(_ x: Tensor, _ context: MixingContext) -> Tensor {
    var state = initialState(batch: x.dim(0))
    return advance(x, &state)
  }

  // MARK: Recurrent form

  public struct State: TensorState, @unchecked Sendable {
    /// h, [batch, width]: the last output.
    public var hidden: Tensor
    /// c, [batch, width].
    public var cell: Tensor
    public var tensors: [Tensor] {
      get { [hidden, cell] }
      set { (hidden, cell) = (newValue[0], newValue[1]) }
    }
  }

  public func initialState(batch: Int) -> State {
    let zeros = Tensor.zeros([batch, width], dtype: inputWeight.dtype, device: inputWeight.device)
    return State(hidden: zeros, cell: zeros)
  }

  public func step(_ x: Tensor, _ state: inout State) -> Tensor {
    let results = cellOperator.many(
      .tensor(x), .tensors([state.hidden, state.cell]), .tensor(inputWeight), .tensor(hiddenWeight), .tensor(inputBias),
      .tensor(hiddenBias))
    guard let hidden = results[0], let cell = results[1] else { return x }
    state = State(hidden: hidden, cell: cell)
    return hidden
  }

  public func advance(_ x: Tensor, _ state: inout State) -> Tensor {
    // ATen's states have a leading axis for the layers; the results are all outputs, the last h and the last c.
    let results = layerOperator.many(
      .tensor(x), .tensors([state.hidden.expandedDimension(0), state.cell.expandedDimension(0)]),
      .tensors([inputWeight, hiddenWeight, inputBias, hiddenBias]), .bool(true), .int(1), .double(0), .bool(isTraining),
      .bool(false), .bool(true))
    guard let y = results[0], let hidden = results[1], let cell = results[2] else { return x }
    state = State(hidden: hidden.selected(axis: 0, 0), cell: cell.selected(axis: 0, 0))
    return y
  }

  public func stateBytes(_ state: State) -> Int { state.hidden.byteCount + state.cell.byteCount }

  public func multiplyAdds(length: Int) -> Int { length * (inputWeight.count + hiddenWeight.count) }
}

private let layerOperator = Operator("aten::lstm", "input")
private let cellOperator = Operator("aten::lstm_cell")
