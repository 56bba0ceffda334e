import MartletModels

/// A small backbone configuration over tokens.
func configuration(
  _ mixers: [String] = ["softmax"], causal: Bool = true, input: SequenceInput = .tokens(vocabulary: 13), layers: Int = 2,
  feedForward: FeedForwardKind = .mlp, norm: NormalizationKind = .layer, preNorm: Bool = true, positions: PositionKind = .none,
  dropout: Double = 0, dropPath: Double = 0, length: Int = 24
) throws -> BackboneConfiguration {
  BackboneConfiguration(
    input: input, width: 16, layers: layers, heads: 2, mixers: try mixers.map { try MixerChoice(parsing: $0) }, feedForward: feedForward,
    norm: norm, preNorm: preNorm, isCausal: causal, positions: positions, dropout: dropout, dropPath: dropPath, length: length)
}

/// Token ids below 13, [batch, length].
func tokens(_ batch: Int, _ length: Int, seed: UInt64 = 1) -> Tensor {
  Tensor.randomIntegers(below: 13, [batch, length], generator: RandomGenerator(seed: seed))
}

/// The largest absolute difference over the largest element of the second; infinite when the shapes differ.
func relativeDifference(_ a: Tensor, _ b: Tensor) -> Double {
  guard a.shape == b.shape else { return .infinity }
  return (a - b).abs().max().item() / max(b.abs().max().item(), 1e-30)
}

func generator(_ seed: UInt64 = 7) -> RandomGenerator { RandomGenerator(seed: seed) }

/// A mixer in one of its directions. A window is narrower than the tests' sequences, so that what stands outside it acts.
struct MixerForm: Sendable, CustomStringConvertible {
  let mixer: String
  let causal: Bool

  static let all = MixerKind.all.flatMap { kind in
    MixerDirection.allCases.filter(kind.directions.contains).map {
      MixerForm(mixer: kind.name == "lolcats" ? "lolcats?window=4" : kind.name, causal: $0 == .causal)
    }
  }

  /// With every output depending on every input: a mixer that drops tokens is told to keep all.
  var seeingEverything: String { mixer == "selective_s4" ? "selective_s4?ratio=0" : mixer }

  var description: String { "\(mixer)\(causal ? "" : " (bidirectional)")" }
}

let causalMixers = MixerForm.all.filter(\.causal).map(\.mixer)
let bidirectionalMixers = MixerForm.all.filter { !$0.causal }.map(\.mixer)
/// Those that also run token by token.
let recurrentMixers = causalMixers.filter {
  (try? SequenceBackbone(configuration([$0], layers: 1), generator: generator()))?.isRecurrent == true
}
