import MartletFormats

/// Bidirectional encoders of text.
extension Architecture {
  static let encoders: [Architecture] = [
    Architecture(["bert"], classPrefixes: ["Bert"], "BERT and MiniLM") { try bert($0, $1, isRoberta: false) },
    Architecture(["roberta", "xlm-roberta", "camembert"], classPrefixes: ["Roberta", "XLMRoberta", "Camembert"], "RoBERTa") {
      try bert($0, $1, isRoberta: true)
    },
    Architecture(["distilbert"], classPrefixes: ["DistilBert"], "DistilBERT") { try distilBert($0, $1) },
  ]

  /// An encoder with the parts that the checkpoint holds.
  private static func textEncoder(
    _ c: ConfigurationReader, _ backbone: BackboneConfiguration, _ parts: TextEncoderConfiguration, prefix: String,
    ignored: [String] = [], rules: [NameRule]
  ) throws -> Blueprint {
    let sentence = try SentenceEmbedding.Configuration.read(directory: c.folder, width: backbone.width)
    return Blueprint(
      backbone: backbone, prefix: prefix, ignored: ignored + ["embeddings.position_ids"], rules: rules,
      parts: sentence.dense.enumerated().map {
        Blueprint.Part(folder: $1.folder, rules: [.module("linear", "sentence.dense.\($0)")])
      }
    ) {
      try TextEncoder(backbone, parts, sentence: sentence, generator: $0)
    }
  }

  /// The classes of a head, by the configuration.
  private static func classes(_ c: ConfigurationReader) throws -> Int {
    if let labels = try c.optionalObject("id2label"), !labels.json.isEmpty { return labels.json.count }
    return try c.integer("num_labels", in: 1...(1 << 20), default: 2)
  }

  /// Refuses heads that aren't for a whole sequence or a masked token.
  private static func classifies(_ c: ConfigurationReader) throws -> Bool {
    let names = try c.strings("architectures")
    for name in names {
      for head in ["TokenClassification", "QuestionAnswering", "MultipleChoice", "NextSentence"] where name.contains(head) {
        throw c.refused(
          "\"architectures\" names \(name), a head that is not supported; supported are encoders with or without a pooler, masked language models and sequence classification"
        )
      }
    }
    return names.contains { $0.hasSuffix("ForSequenceClassification") }
  }

  private static func bert(_ c: ConfigurationReader, _ contents: CheckpointContents, isRoberta: Bool) throws -> Blueprint {
    let isDecoder = try c.flag("is_decoder", default: false)
    try c.unsupported("is_decoder", unless: !isDecoder, "a decoder")
    let positions = try c.optionalString("position_embedding_type") ?? "absolute"
    try c.unsupported("position_embedding_type", unless: positions == "absolute", "this kind of positions")
    let width = try c.integer("hidden_size", in: ConfigurationReader.widths)
    let heads = try c.integer("num_attention_heads", in: 1...(1 << 16))
    guard width % heads == 0 else {
      throw c.refused("\"hidden_size\" (\(width)) is not a multiple of \"num_attention_heads\" (\(heads))")
    }
    // RoBERTa numbers positions from the row after the padding token's.
    let offset = isRoberta ? try c.integer("pad_token_id", in: 0...(1 << 20), default: 1) + 1 : 0
    let rows = try c.integer("max_position_embeddings", in: 1...(1 << 32), default: 512)
    guard rows > offset else {
      throw c.refused("\"max_position_embeddings\" (\(rows)) leaves no positions after the padding token's row (\(offset - 1))")
    }
    var backbone = BackboneConfiguration(
      input: .tokens(vocabulary: try c.integer("vocab_size", in: 1...(1 << 28))), width: width,
      layers: try c.integer("num_hidden_layers", in: 1...10_000), heads: heads,
      mixers: [MixerChoice("softmax", options: ["rotary": false, "bias": true])],
      hidden: try c.integer("intermediate_size", in: 1...(1 << 24)), preNorm: false, isCausal: false, positions: .learned,
      length: rows - offset)
    backbone.positionOffset = offset
    backbone.tokenTypes = try c.integer("type_vocab_size", in: 0...(1 << 16), default: 2)
    backbone.embeddingNorm = true
    backbone.normEpsilon = try c.number("layer_norm_eps", in: 1e-30...1, default: 1e-12)
    backbone.activation = try c.activation("hidden_act", default: "gelu")

    let classifies = try classifies(c)
    var parts = TextEncoderConfiguration()
    parts.isTied = try c.flag("tie_word_embeddings", default: true)
    let tied = parts.isTied
    var unneeded: [String] = []
    let headKind = try c.strings("architectures").contains { $0.hasSuffix("ForMaskedLM") || $0.hasSuffix("ForPreTraining") }
    let prefix = isRoberta ? "roberta." : "bert."
    var rules: [NameRule] = [
      .module(prefix + "embeddings.word_embeddings", "backbone.embedding"),
      .tensor(prefix + "embeddings.position_embeddings.weight", "backbone.positions"),
      .module(prefix + "embeddings.token_type_embeddings", "backbone.token_types"),
      .module(prefix + "embeddings.LayerNorm", "backbone.embedding_norm"),
    ]
    if isRoberta {
      if classifies {
        parts.pooler = .tanh
        // The base model's own pooler, where a file has it, has no use here.
        unneeded = ["pooler.dense.weight", "pooler.dense.bias"]
        rules += [.module("classifier.dense", "pooler"), .module("classifier.out_proj", "classifier")]
      } else if contents.has(suffix: "pooler.dense.weight", otherwise: !headKind) {
        parts.pooler = .tanh
        rules += [.module("roberta.pooler.dense", "pooler")]
      }
      if contents.has(suffix: "lm_head.dense.weight", otherwise: headKind) { parts.vocabularyHead = .gelu }
      rules += [
        .module("lm_head.dense", "vocabulary_head.dense"), .module("lm_head.layer_norm", "vocabulary_head.norm"),
        .tensor("lm_head.bias", "vocabulary_head.bias"), .tensor("lm_head.decoder.weight", "vocabulary_head.decoder"),
      ]
    } else {
      if classifies || contents.has(suffix: "pooler.dense.weight", otherwise: !headKind) { parts.pooler = .tanh }
      if contents.has(suffix: "cls.predictions.transform.dense.weight", otherwise: headKind) {
        parts.vocabularyHead = backbone.activation
      }
      rules += [
        .module("bert.pooler.dense", "pooler"), .module("classifier", "classifier"),
        .module("cls.predictions.transform.dense", "vocabulary_head.dense"),
        .module("cls.predictions.transform.LayerNorm", "vocabulary_head.norm"),
        .tensor("cls.predictions.bias", "vocabulary_head.bias"), .tensor("cls.predictions.decoder.weight", "vocabulary_head.decoder"),
      ]
    }
    if classifies { parts.classes = try classes(c) }
    rules += .part(
      prefix + "encoder.layer.*", "backbone.blocks.*",
      [
        .module("attention.self.query", "mixer.query"), .module("attention.self.key", "mixer.key"),
        .module("attention.self.value", "mixer.value"), .module("attention.output.dense", "mixer.output"),
        .module("attention.output.LayerNorm", "mixer_norm"), .module("intermediate.dense", "feed_forward.up"),
        .module("output.dense", "feed_forward.down"), .module("output.LayerNorm", "feed_forward_norm"),
      ])
    return try textEncoder(
      c, backbone, parts, prefix: prefix,
      // Copies of the embedding and of the bias, and the head that predicts the next sentence.
      ignored: unneeded + (tied ? ["cls.predictions.decoder.weight", "lm_head.decoder.weight"] : []) + [
        "cls.predictions.decoder.bias", "lm_head.decoder.bias", "cls.seq_relationship.weight", "cls.seq_relationship.bias",
      ], rules: rules)
  }

  private static func distilBert(_ c: ConfigurationReader, _ contents: CheckpointContents) throws -> Blueprint {
    let width = try c.integer("dim", "hidden_size", in: ConfigurationReader.widths)
    let heads = try c.integer("n_heads", "num_attention_heads", in: 1...(1 << 16))
    guard width % heads == 0 else { throw c.refused("\"dim\" (\(width)) is not a multiple of \"n_heads\" (\(heads))") }
    var backbone = BackboneConfiguration(
      input: .tokens(vocabulary: try c.integer("vocab_size", in: 1...(1 << 28))), width: width,
      layers: try c.integer("n_layers", "num_hidden_layers", in: 1...10_000), heads: heads,
      mixers: [MixerChoice("softmax", options: ["rotary": false, "bias": true])],
      hidden: try c.integer("hidden_dim", in: 1...(1 << 24)), preNorm: false, isCausal: false, positions: .learned,
      length: try c.integer("max_position_embeddings", in: 1...(1 << 32), default: 512))
    backbone.embeddingNorm = true
    backbone.normEpsilon = 1e-12
    backbone.activation = try c.activation("activation", default: "gelu")
    var parts = TextEncoderConfiguration()
    parts.isTied = try c.flag("tie_word_embeddings", default: true)
    if try classifies(c) {
      parts.pooler = .relu
      parts.classes = try classes(c)
    }
    let headKind = try c.strings("architectures").contains { $0.hasSuffix("ForMaskedLM") }
    if contents.has(suffix: "vocab_transform.weight", otherwise: headKind) { parts.vocabularyHead = backbone.activation }
    return try textEncoder(
      c, backbone, parts, prefix: "distilbert.", ignored: parts.isTied ? ["vocab_projector.weight"] : [],
      rules: [
        .module("distilbert.embeddings.word_embeddings", "backbone.embedding"),
        .tensor("distilbert.embeddings.position_embeddings.weight", "backbone.positions"),
        .module("distilbert.embeddings.LayerNorm", "backbone.embedding_norm"), .module("pre_classifier", "pooler"),
        .module("classifier", "classifier"), .module("vocab_transform", "vocabulary_head.dense"),
        .module("vocab_layer_norm", "vocabulary_head.norm"), .tensor("vocab_projector.bias", "vocabulary_head.bias"),
        .tensor("vocab_projector.weight", "vocabulary_head.decoder"),
      ]
        + .part(
          "distilbert.transformer.layer.*", "backbone.blocks.*",
          [
            .module("attention.q_lin", "mixer.query"), .module("attention.k_lin", "mixer.key"), .module("attention.v_lin", "mixer.value"),
            .module("attention.out_lin", "mixer.output"), .module("sa_layer_norm", "mixer_norm"),
            .module("ffn.lin1", "feed_forward.up"), .module("ffn.lin2", "feed_forward.down"),
            .module("output_layer_norm", "feed_forward_norm"),
          ]))
  }
}
