// Which mixers read their input by linear layers alone, so that a norm before them can be folded away. (State spaces and recurrences
// read it themselves.)

extension SoftmaxAttention: LinearlyReading {
  public var inputLayers: [any LinearLayer] { [query, key, value] }
}

extension LinearAttention: LinearlyReading {
  public var inputLayers: [any LinearLayer] { [query, key, value] }
}

extension GatedLinearAttention: LinearlyReading {
  /// The gate's second map reads the first one's output, or the input where there is no first one.
  public var inputLayers: [any LinearLayer] { [query, key, value, gateIn ?? gateOut, outputGate].compactMap { $0 } }
}

extension DeltaNet: LinearlyReading {
  public var inputLayers: [any LinearLayer] { [query, key, value, rate, decay, outputGate].compactMap { $0 } }
}

extension RankAugmentedLinearAttention: LinearlyReading {
  public var inputLayers: [any LinearLayer] { [projection] }
}

extension SimplifiedLinearAttention: LinearlyReading {
  public var inputLayers: [any LinearLayer] { [projection] }
}
