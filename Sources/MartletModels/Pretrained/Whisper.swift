import MartletFormats

extension Architecture {
  /// Whisper (arXiv 2212.04356).
  static let whisper = Architecture(["whisper"], classPrefixes: ["Whisper"], "Whisper, speech to text") { c, _ in try describeWhisper(c) }

  private static func describeWhisper(_ c: ConfigurationReader) throws -> Blueprint {
    for name in try c.strings("architectures") where name != "WhisperForConditionalGeneration" {
      throw c.refused(
        "\"architectures\" names \(name): of this family only whole encoder-decoders (WhisperForConditionalGeneration) can be loaded")
    }
    let width = try c.integer("d_model", "hidden_size", in: 1...(1 << 16))
    let vocabulary = try c.integer("vocab_size", in: 1...(1 << 28))
    let activation = try c.activation("activation_function", default: "gelu")
    let dropout = try c.number("dropout", in: 0...0.999, default: 0)
    func attention(_ heads: Int) throws -> MixerChoice {
      guard width % heads == 0 else { throw c.refused("the model's width (\(width)) is not a multiple of its attention heads (\(heads))") }
      return MixerChoice("softmax", options: ["heads": .integer(heads), "rotary": false, "bias": true, "key_bias": false])
    }
    func backbone(_ side: String, _ input: SequenceInput, length: Int) throws -> BackboneConfiguration {
      let heads = try c.integer("\(side)_attention_heads", in: 1...(1 << 16))
      var result = BackboneConfiguration(
        input: input, width: width, layers: try c.integer("\(side)_layers", in: 1...10_000), heads: heads,
        mixers: [try attention(heads)], hidden: try c.integer("\(side)_ffn_dim", in: 1...(1 << 24)), isCausal: false,
        positions: .learned, dropout: dropout, length: length)
      result.activation = activation
      return result
    }
    var encoder = try backbone(
      "encoder", .continuous(channels: width), length: try c.integer("max_source_positions", in: 1...(1 << 24), default: 1500))
    encoder.projectsInput = false
    var decoder = try backbone(
      "decoder", .tokens(vocabulary: vocabulary), length: try c.integer("max_target_positions", in: 1...(1 << 24), default: 448))
    decoder.isCausal = true
    decoder.crossAttention = decoder.mixers[0]
    let isTied = try c.flag("tie_word_embeddings", default: true)
    let configuration = EncoderDecoderConfiguration(
      encoder: encoder, decoder: decoder, stem: .init(channels: try c.integer("num_mel_bins", in: 1...4096, default: 80), width: width),
      tiedHead: isTied,
      decoderStart: try c.optionalInteger("decoder_start_token_id", "bos_token_id", in: 0...(vocabulary - 1)) ?? 0)
    try c.describing { try configuration.validate() }
    func layer(_ side: String, _ more: [NameRule] = []) -> [NameRule] {
      .part(
        "model.\(side).layers.*", "\(side).blocks.*",
        attentionRules("self_attn", "mixer") + more + [
          .module("self_attn_layer_norm", "mixer_norm"), .module("final_layer_norm", "feed_forward_norm"),
          .module("fc1", "feed_forward.up"), .module("fc2", "feed_forward.down"),
        ]) + [
          .tensor("model.\(side).embed_positions.weight", "\(side).positions"), .module("model.\(side).layer_norm", "\(side).final_norm"),
        ]
    }
    var blueprint = Blueprint(
      backbone: decoder, layers: max(encoder.layers, decoder.layers), prefix: "model.", ignored: isTied ? ["proj_out.weight"] : [],
      rules: [
        .module("model.encoder.conv1", "stem.first"), .module("model.encoder.conv2", "stem.second"),
        .module("model.decoder.embed_tokens", "decoder.embedding"), .module("proj_out", "head"),
      ] + layer("encoder")
        + layer(
          "decoder",
          attentionRules("encoder_attn", "cross_attention") + [.module("encoder_attn_layer_norm", "cross_attention_norm")])
    ) { try EncoderDecoder(configuration, generator: $0) }
    blueprint.otherElements = encoder.layers * (width + encoder.hidden!) + (encoder.length + decoder.length) * width
    return blueprint
  }

  private static func attentionRules(_ foreign: String, _ own: String) -> [NameRule] {
    .part(
      foreign, own,
      [.module("q_proj", "query"), .module("k_proj", "key"), .module("v_proj", "value"), .module("out_proj", "output")])
  }
}
