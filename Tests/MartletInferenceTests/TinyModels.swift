@testable import MartletInference

/// A small causal model of a mixer with logits of some size, so that likely and unlikely tokens differ.
func tinyModel(_ mixer: String = "softmax", vocabulary: Int = 19, seed: UInt64 = 1, sharpness: Double = 3) throws -> LanguageModel {
  let configuration = BackboneConfiguration(
    input: .tokens(vocabulary: vocabulary), width: 16, layers: 2, heads: 2, mixers: [try MixerChoice(parsing: mixer)], isCausal: true,
    embeddingDeviation: 1, length: 256)
  let model = try LanguageModel(configuration, tiedEmbedding: false, generator: RandomGenerator(seed: seed))
  withoutGradient {
    let head = model.head as! Linear
    head.weight.copyInPlace(head.weight * sharpness)
  }
  return model
}

extension GenerationOptions {
  func with(_ change: (inout GenerationOptions) -> Void) -> GenerationOptions {
    var copy = self
    change(&copy)
    return copy
  }
}
