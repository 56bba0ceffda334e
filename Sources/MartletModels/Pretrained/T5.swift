import MartletFormats

extension Architecture {
  /// T5 1.0 and 1.1 (arXiv 1910.10683).
  static let t5 = Architecture(["t5"], classPrefixes: ["T5ForConditionalGeneration"], "T5, versions 1.0 and 1.1") { c, contents in
    try describeT5(c, contents)
  }

  private static func describeT5(_ c: ConfigurationReader, _ contents: CheckpointContents) throws -> Blueprint {
    for name in try c.strings("architectures") where name != "T5ForConditionalGeneration" && name != "T5WithLMHeadModel" {
      throw c.refused("\"architectures\" names \(name): of this family only whole encoder-decoders can be loaded")
    }
    let width = try c.integer("d_model", "hidden_size", in: ConfigurationReader.widths)
    let heads = try c.integer("num_heads", in: 1...(1 << 16))
    let headWidth = try c.integer("d_kv", in: 1...(1 << 16))
    let layers = try c.integer("num_layers", in: 1...10_000)
    let vocabulary = try c.integer("vocab_size", in: 1...(1 << 28))
    let (kind, activation) = try feedForward(c)
    let attention = MixerChoice(
      "softmax",
      options: [
        "heads": .integer(heads), "head_width": .integer(headWidth), "rotary": false,
        // The scale is part of the initial weights.
        "scale": 1,
      ])
    var encoder = BackboneConfiguration(
      input: .tokens(vocabulary: vocabulary), width: width, layers: layers, heads: heads, mixers: [attention], feedForward: kind,
      hidden: try c.integer("d_ff", in: 1...(1 << 24)), norm: .rms, isCausal: false,
      dropout: try c.number("dropout_rate", in: 0...0.999, default: 0.1), embeddingDeviation: 1, length: 512)
    encoder.normEpsilon = try c.number("layer_norm_epsilon", in: 1e-30...1, default: 1e-6)
    encoder.activation = activation
    encoder.feedForwardBias = false
    let buckets = try c.integer("relative_attention_num_buckets", in: 4...(1 << 16), default: 32)
    encoder.relativeBias = RelativeBiasConfiguration(
      buckets: buckets, maximumDistance: try c.integer("relative_attention_max_distance", in: 1...(1 << 32), default: 128))
    var decoder = encoder
    decoder.isCausal = true
    decoder.crossAttention = attention
    decoder.layers = try c.integer("num_decoder_layers", in: 1...10_000, default: layers)

    let isTied = try c.flag("tie_word_embeddings", default: true)
    // The library's newer versions tie always, unless the file has a head of its own, and remember the scale apart.
    let isScaled = try c.flag("scale_decoder_outputs", default: isTied)
    let hasHead = contents.has(suffix: "lm_head.weight", otherwise: !isTied)
    let configuration = EncoderDecoderConfiguration(
      encoder: encoder, decoder: decoder, sharedEmbedding: true, tiedHead: !hasHead,
      outputScale: isScaled ? 1 / Double(width).squareRoot() : 1,
      decoderStart: try c.optionalInteger("decoder_start_token_id", "pad_token_id", in: 0...(vocabulary - 1)) ?? 0)
    try c.describing { try configuration.validate() }
    func block(_ side: String, feedForward: Int) -> [NameRule] {
      let dense = "layer.\(feedForward).DenseReluDense"
      let projections: [NameRule] =
        kind == .mlp
        ? [.module("\(dense).wi", "feed_forward.up")]
        : [.module("\(dense).wi_0", "feed_forward.gate"), .module("\(dense).wi_1", "feed_forward.up")]
      return .part(
        "\(side).block.*", "\(side).blocks.*",
        projections + [
          .module("layer.0.SelfAttention.q", "mixer.query"), .module("layer.0.SelfAttention.k", "mixer.key"),
          .module("layer.0.SelfAttention.v", "mixer.value"), .module("layer.0.SelfAttention.o", "mixer.output"),
          .module("layer.0.layer_norm", "mixer_norm"), .module("layer.\(feedForward).layer_norm", "feed_forward_norm"),
          .module("\(dense).wo", "feed_forward.down"),
        ]) + [
          .module("\(side).block.0.layer.0.SelfAttention.relative_attention_bias", "\(side).relative_bias"),
          .module("\(side).final_layer_norm", "\(side).final_norm"),
        ]
    }
    var blueprint = Blueprint(
      backbone: decoder, layers: max(encoder.layers, decoder.layers),
      ignored: [
        "encoder.embed_tokens.weight", "decoder.embed_tokens.weight",
        // In the oldest files, of no effect.
        "EncDecAttention.relative_attention_bias.weight",
      ],
      rules: [.module("shared", "encoder.embedding"), .module("lm_head", "head")] + block("encoder", feedForward: 1)
        + block("decoder", feedForward: 2)
        + .part(
          "decoder.block.*.layer.1", "decoder.blocks.*",
          [
            .module("EncDecAttention.q", "cross_attention.query"), .module("EncDecAttention.k", "cross_attention.key"),
            .module("EncDecAttention.v", "cross_attention.value"), .module("EncDecAttention.o", "cross_attention.output"),
            .module("layer_norm", "cross_attention_norm"),
          ])
    ) { try EncoderDecoder(configuration, generator: $0) }
    blueprint.otherElements = encoder.layers * (width + encoder.hidden!)
    return blueprint
  }

  /// "relu" or "gated-gelu": a plain or a gated feed-forward and its activation.
  private static func feedForward(_ c: ConfigurationReader) throws -> (FeedForwardKind, Activation) {
    let text = try c.optionalString("feed_forward_proj") ?? "relu"
    // The gated form has always meant the approximation by tanh.
    if text == "gated-gelu" { return (.geglu, .geluTanh) }
    let parts = text.split(separator: "-", omittingEmptySubsequences: false).map(String.init)
    guard parts.count == 1 || parts.count == 2 && parts[0] == "gated" else {
      throw c.refused("\"feed_forward_proj\" must be an activation or \"gated-\" and an activation, it is \"\(text)\"")
    }
    let named = ConfigurationReader(file: c.file, json: ["feed_forward_proj": .string(parts[parts.count - 1])])
    return (parts.count == 2 ? .geglu : .mlp, try named.activation("feed_forward_proj"))
  }
}

extension ConfigurationReader {
  /// Turns a refusal of the numbers' combination into one that names the file.
  func describing<Result>(_ body: () throws -> Result) throws -> Result {
    do { return try body() } catch let error as ConfigurationError { throw refused(error.message) }
  }
}
