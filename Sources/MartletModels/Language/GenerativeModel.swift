/// A causal model over tokens that continues a sequence from a state.
public protocol GenerativeModel: Module {
  /// Throws `ConfigurationError` when the model can't run token by token.
  func initialState(batch: Int) throws -> SequenceBackbone.State
  /// Logits of the token after the given ones, [batch, vocabulary]. tokens: [batch, length].
  func advance(_ tokens: Tensor, _ state: inout SequenceBackbone.State) -> Tensor
}

extension LanguageModel: GenerativeModel {}
