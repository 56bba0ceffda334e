/// A causal model over tokens that continues a sequence from a state.
public protocol GenerativeModel: Module {
  /// Throws `ConfigurationError` when the model can't run token by token.
  func initialState(batch: Int, cache: CacheOptions) throws -> SequenceBackbone.State
  /// The decoder's outputs for the given tokens [batch, length], continuing from a state: [batch, length, width].
  func outputs(_ tokens: Tensor, _ state: inout SequenceBackbone.State) -> Tensor
  /// The logits of outputs, [..., width] → [..., vocabulary].
  func logits(_ outputs: Tensor) -> Tensor
  var vocabulary: Int { get }
}

extension GenerativeModel {
  /// Throws `ConfigurationError` when the model can't run token by token.
  public func initialState(batch: Int) throws -> SequenceBackbone.State { try initialState(batch: batch, cache: CacheOptions()) }

  /// Logits of the token after the given ones, [batch, vocabulary]. tokens: [batch, length].
  public func advance(_ tokens: Tensor, _ state: inout SequenceBackbone.State) -> Tensor {
    // Only the last position's logits are needed: with a large vocabulary they cost as much as a layer.
    logits(outputs(tokens, &state).selected(axis: 1, -1))
  }

  /// Logits after every given token, [batch, length, vocabulary].
  public func advanceEvery(_ tokens: Tensor, _ state: inout SequenceBackbone.State) -> Tensor { logits(outputs(tokens, &state)) }
}
