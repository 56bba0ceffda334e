import Testing

@testable import MartletInference

@Suite struct EncoderDecoderGenerationTests {
  /// A small encoder-decoder with relative positions, whose likely and unlikely tokens differ.
  private func model() throws -> EncoderDecoder {
    let attention = try MixerChoice(parsing: "softmax?rotary=false")
    var encoder = BackboneConfiguration(
      input: .tokens(vocabulary: 23), width: 16, layers: 1, heads: 2, mixers: [attention], norm: .rms, isCausal: false,
      embeddingDeviation: 1, length: 32)
    encoder.relativeBias = RelativeBiasConfiguration(buckets: 8, maximumDistance: 16)
    var decoder = encoder
    decoder.isCausal = true
    decoder.crossAttention = attention
    let model = try EncoderDecoder(
      .init(encoder: encoder, decoder: decoder, sharedEmbedding: true, tiedHead: false, decoderStart: 2),
      generator: RandomGenerator(seed: 4))
    withoutGradient {
      let head = model.head as! Linear
      head.weight.copyInPlace(head.weight * 6)
    }
    return model
  }

  private let inputs = [[3, 4, 5, 6, 7], [8, 9, 10]]

  /// The two inputs together, padded, with their mask.
  private func start(_ model: EncoderDecoder) throws -> SequenceBackbone.State {
    let tokens = Tensor(inputs[0] + inputs[1] + [0, 0], [2, 5])
    let mask = Tensor((inputs[0] + inputs[1]).map { _ in 1 } + [0, 0], [2, 5]) .== 1
    return try model.initialState(memory: model.encode(tokens, mask: mask))
  }

  @Test func aBatchOfUnequalInputsGivesWhatEachGivesAlone() throws {
    let model = try model()
    let options = GenerationOptions(maximumTokens: 20)
    let together = try generate(model, prompts: [model.decoderPrompt, model.decoderPrompt], options: options, start: start(model))
    for row in 0..<2 {
      let memory = withoutGradient { model.encode(Tensor(inputs[row], [1, inputs[row].count])) }
      let alone = try generate(model, prompts: [model.decoderPrompt], options: options, start: model.initialState(memory: memory))
      #expect(together[row].tokens == alone[0].tokens)
      var tokens = model.decoderPrompt
      for _ in 0..<20 {
        let logits = withoutGradient { model.logits(model.decoder(Tensor(tokens, [1, tokens.count]), memory: memory)) }
        tokens.append(logits[0, -1].argmax(axis: 0).itemInt())
      }
      #expect(alone[0].tokens == Array(tokens.dropFirst()))
    }
    #expect(together[0].tokens != together[1].tokens)
  }

  @Test func promptsOfUnequalLengthsAndSequencesThatEndKeepTheirInput() throws {
    let model = try model()
    var options = GenerationOptions(maximumTokens: 12)
    let first = try generate(model, prompts: [[2], [2]], options: options, start: start(model))
    // The second goes on from its own third token; the first ends at once.
    options.stopTokens = [first[0].tokens[0]]
    let prompts = [[2], [2] + first[1].tokens.prefix(3)]
    options.firstLogitBias = [:]
    let found = try generate(model, prompts: prompts, options: options, start: start(model))
    #expect(found[0].tokens == [first[0].tokens[0]] && found[0].finish == .stop)
    let expected = Array(first[1].tokens.dropFirst(3))
    let common = found[1].tokens.prefix(expected.count)
    #expect(!common.isEmpty && common.elementsEqual(expected.prefix(common.count)))
  }

  @Test func aBeamOfOneIsGreedyAndWiderBeamsAreNoWorse() throws {
    let model = try model()
    let options = GenerationOptions(maximumTokens: 8)
    let greedy = try generate(model, prompts: [[2], [2]], options: options, start: start(model))
    let one = try beamSearch(model, prompts: [[2], [2]], options: options, beams: BeamSearchOptions(beams: 1), start: start(model))
    let four = try beamSearch(model, prompts: [[2], [2]], options: options, beams: BeamSearchOptions(beams: 4), start: start(model))
    for row in 0..<2 {
      #expect(one[row][0].tokens == greedy[row].tokens)
      #expect(four[row][0].score >= one[row][0].score - 1e-5)
    }
  }

  @Test func withoutAnInputThereIsNothingToContinue() throws {
    let model = try model()
    #expect(throws: ConfigurationError.self) { try generate(model, prompts: [[2]]) }
  }
}
