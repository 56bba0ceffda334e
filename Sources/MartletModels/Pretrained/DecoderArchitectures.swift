import Foundation
import MartletFormats

/// Options of softmax attention in a decoder that several families share, put together for each layer.
private struct AttentionOptions {
  var heads: Int
  var keyValueHeads: Int
  var headWidth: Int
  var rotary: RotaryParameters?
  var rotaryWidth: Int?
  /// Positions that a token sees, its own among them (the ecosystem's `sliding_window`); `nil` for all.
  var window: Int?
  var more: JSONObject = [:]

  var choice: MixerChoice {
    var options: JSONObject = [
      "heads": .integer(heads), "kv_heads": .integer(keyValueHeads), "head_width": .integer(headWidth), "rotary": .bool(rotary != nil),
    ]
    if let rotary {
      options["rotary_base"] = .number(rotary.base)
      if let rotaryWidth, rotaryWidth != headWidth { options["rotary_width"] = .integer(rotaryWidth) }
      if rotary.scaling != .null { options["rotary_scaling"] = rotary.scaling }
    }
    if let window { options["window"] = .integer(window - 1) }
    for (key, value) in more.pairs { options[key] = value }
    return MixerChoice("softmax", options: .object(options))
  }
}

extension ConfigurationReader {
  fileprivate var vocabulary: Int { get throws { try integer("vocab_size", in: 1...(1 << 28)) } }
  fileprivate var layers: Int { get throws { try integer("num_hidden_layers", "n_layer", in: 1...10_000) } }
  fileprivate var length: Int { get throws { try integer("max_position_embeddings", in: 1...(1 << 32), default: 2048) } }

  /// Refuses heads that aren't a language model's.
  fileprivate func requireLanguageModel() throws {
    for name in try strings("architectures") where name.contains("Classification") || name.contains("QuestionAnswering") {
      throw refused("\"architectures\" names \(name): of this family only language models can be loaded")
    }
  }

  /// Which layers see a window only: as `layer_types` says, else as the family does.
  fileprivate func slidingLayers(_ layers: Int, otherwise fallback: (Int) throws -> Bool) throws -> [Bool] {
    let kinds = try strings("layer_types")
    if kinds.isEmpty { return try (0..<layers).map(fallback) }
    guard kinds.count == layers else { throw refused("\"layer_types\" has \(kinds.count) entries for \(layers) layers") }
    return try kinds.map {
      switch $0 {
      case "full_attention": return false
      case "sliding_attention": return true
      default: throw refused("\"layer_types\" names \"\($0)\"; supported are full_attention and sliding_attention")
      }
    }
  }

  fileprivate var epsilon: Double { get throws { try number("rms_norm_eps", "layer_norm_eps", in: 1e-30...1, default: 1e-6) } }
}

/// A decoder's blueprint: the language model over a backbone.
func languageModel(
  _ backbone: BackboneConfiguration, tied: Bool, headBias: Bool = false, softcap: Double? = nil, prefix: String,
  ignored: [String] = [], rules: [NameRule]
) -> Blueprint {
  Blueprint(
    backbone: backbone, prefix: prefix,
    // With a tied embedding some files repeat it as the head.
    ignored: ignored + ["rotary_emb.inv_freq"] + (tied ? ["lm_head.weight", "embed_out.weight"] : []), rules: rules
  ) { try LanguageModel(backbone, tiedEmbedding: tied, headBias: headBias, logitSoftcap: softcap, generator: $0) }
}

extension Architecture {
  static let decoders: [Architecture] = [
    Architecture(["llama"], classPrefixes: ["Llama"], "Llama 1 to 3") { c, _ in try llamaLike(c, attentionBias: "attention_bias") },
    Architecture(["mistral"], classPrefixes: ["Mistral"], "Mistral") { c, _ in
      try llamaLike(c) { _ in try c.optionalInteger("sliding_window", in: 1...(1 << 32)) }
    },
    Architecture(["qwen2"], classPrefixes: ["Qwen2"], "Qwen 2 and 2.5") { c, _ in
      try llamaLike(c, options: ["bias": true, "output_bias": false], window: qwenWindow(c))
    },
    Architecture(["qwen3"], classPrefixes: ["Qwen3"], "Qwen 3") { c, _ in
      try llamaLike(
        c, attentionBias: "attention_bias", options: ["qk_norm": true, "norm_epsilon": .number(try c.epsilon)], window: qwenWindow(c))
    },
    Architecture(["gemma2"], classPrefixes: ["Gemma2"], "Gemma 2") { c, _ in try gemma(c, isThird: false) },
    Architecture(["gemma3_text"], classPrefixes: ["Gemma3ForCausalLM", "Gemma3Text"], "Gemma 3, text") { c, _ in
      try gemma(c, isThird: true)
    },
    Architecture(["phi3"], classPrefixes: ["Phi3"], "Phi 3 and 4") { c, _ in
      try llamaLike(c, isFused: true) { _ in try c.optionalInteger("sliding_window", in: 1...(1 << 32)) }
    },
    Architecture(["gpt2"], classPrefixes: ["GPT2"], "GPT-2") { c, _ in try gpt2(c) },
    Architecture(["opt"], classPrefixes: ["OPT"], "OPT") { c, _ in try opt(c) },
    Architecture(["gpt_neox"], classPrefixes: ["GPTNeoX"], "GPT-NeoX and Pythia") { c, _ in try gptNeoX(c) },
  ]

  // MARK: Llama and its kin

  /// Names that Llama gave and its kin kept.
  private static func llamaNames(isFused: Bool = false, isSandwich: Bool = false) -> [NameRule] {
    let projections: [NameRule] =
      isFused
      ? [
        .module("self_attn.qkv_proj", "mixer.query", "mixer.key", "mixer.value"),
        .module("mlp.gate_up_proj", "feed_forward.gate", "feed_forward.up"),
      ]
      : [
        .module("self_attn.q_proj", "mixer.query"), .module("self_attn.k_proj", "mixer.key"),
        .module("self_attn.v_proj", "mixer.value"), .module("mlp.gate_proj", "feed_forward.gate"),
        .module("mlp.up_proj", "feed_forward.up"),
      ]
    let norms: [NameRule] =
      isSandwich
      ? [
        .module("post_attention_layernorm", "mixer_output_norm"), .module("pre_feedforward_layernorm", "feed_forward_norm"),
        .module("post_feedforward_layernorm", "feed_forward_output_norm"),
      ] : [.module("post_attention_layernorm", "feed_forward_norm")]
    return [
      .module("model.embed_tokens", "backbone.embedding"), .module("model.norm", "backbone.final_norm"), .module("lm_head", "head"),
    ]
      + .part(
        "model.layers.*", "backbone.blocks.*",
        projections + norms + [
          .module("input_layernorm", "mixer_norm"), .module("self_attn.o_proj", "mixer.output"),
          .module("self_attn.q_norm", "mixer.query_norm"), .module("self_attn.k_norm", "mixer.key_norm"),
          .module("mlp.down_proj", "feed_forward.down"),
        ])
  }

  private static func qwenWindow(_ c: ConfigurationReader) throws -> (Int) throws -> Int? {
    guard try c.flag("use_sliding_window", default: false), let window = try c.optionalInteger("sliding_window", in: 1...(1 << 32)) else {
      return { _ in nil }
    }
    let first = try c.integer("max_window_layers", in: 0...10_000, default: 28)
    let sliding = try c.slidingLayers(c.layers) { $0 >= first }
    return { sliding[$0] ? window : nil }
  }

  /// RMS norms before gated feed-forwards and rotary attention.
  private static func llamaLike(
    _ c: ConfigurationReader, isFused: Bool = false, attentionBias: String? = nil, options: JSONObject = [:],
    window: (Int) throws -> Int? = { _ in nil }
  ) throws -> Blueprint {
    try c.requireLanguageModel()
    let width = try c.integer("hidden_size", in: ConfigurationReader.widths)
    let heads = try c.integer("num_attention_heads", in: 1...(1 << 16))
    let headWidth = try c.headWidth(width: width, heads: heads)
    let rotary = try RotaryParameters(c)
    let layers = try c.layers
    var attention = AttentionOptions(
      heads: heads, keyValueHeads: try c.keyValueHeads(heads: heads), headWidth: headWidth, rotary: rotary,
      rotaryWidth: try rotary.width(headWidth: headWidth, c), more: options)
    if let attentionBias, try c.flag(attentionBias, default: false) { attention.more["bias"] = true }
    let mixers = try (0..<layers).map { layer in
      attention.window = try window(layer)
      return attention.choice
    }
    var backbone = BackboneConfiguration(
      input: .tokens(vocabulary: try c.vocabulary), width: width, layers: layers, heads: heads, mixers: shortest(mixers),
      feedForward: .swiglu, hidden: try c.integer("intermediate_size", in: 1...(1 << 24)), norm: .rms, isCausal: true,
      length: try c.length)
    backbone.normEpsilon = try c.epsilon
    backbone.activation = try c.activation("hidden_act", default: "silu")
    backbone.feedForwardBias = try c.flag("mlp_bias", default: false)
    return languageModel(
      backbone, tied: try c.flag("tie_word_embeddings", default: false), prefix: "model.", rules: llamaNames(isFused: isFused))
  }

  /// One choice where all layers have the same.
  private static func shortest(_ mixers: [MixerChoice]) -> [MixerChoice] {
    mixers.allSatisfy { $0 == mixers[0] } ? [mixers[0]] : mixers
  }

  // MARK: Gemma

  private static func gemma(_ c: ConfigurationReader, isThird: Bool) throws -> Blueprint {
    try c.requireLanguageModel()
    let bidirectional = try c.flag("use_bidirectional_attention", default: false)
    try c.unsupported("use_bidirectional_attention", unless: !bidirectional, "attention to later positions")
    let width = try c.integer("hidden_size", in: ConfigurationReader.widths)
    let heads = try c.integer("num_attention_heads", in: 1...(1 << 16))
    let headWidth = try c.integer("head_dim", in: 1...(1 << 16), default: 256)
    let layers = try c.layers
    let window = try c.integer("sliding_window", in: 1...(1 << 32), default: 4096)
    // Local and global layers take turns; of Gemma 3's, every sixth is global.
    let pattern = try c.integer("sliding_window_pattern", "_sliding_window_pattern", in: 1...10_000, default: isThird ? 6 : 2)
    let sliding = try c.slidingLayers(layers) { ($0 + 1) % pattern != 0 }
    let scale = try c.number("query_pre_attn_scalar", in: 1e-6...1e9, default: 256)
    var more: JSONObject = ["scale": .number(1 / scale.squareRoot()), "bias": .bool(try c.flag("attention_bias", default: false))]
    if let cap = try c.optionalNumber("attn_logit_softcapping", in: 1e-6...1e9) { more["softcap"] = .number(cap) }
    if isThird {
      more["qk_norm"] = true
      more["norm_unit_offset"] = true
      more["norm_epsilon"] = .number(try c.epsilon)
    }
    let global = try RotaryParameters(c, layerKind: "full_attention", defaultBase: isThird ? 1_000_000 : 10_000)
    let hasOwnLocal = isThird
    let local =
      hasOwnLocal
      ? try RotaryParameters(
        localView(c), layerKind: "sliding_attention", baseKey: "rope_local_base_freq", defaultBase: 10_000, scaled: false) : global
    let mixers = try sliding.map { isLocal in
      let rotary = isLocal ? local : global
      return AttentionOptions(
        heads: heads, keyValueHeads: try c.keyValueHeads(heads: heads), headWidth: headWidth, rotary: rotary,
        rotaryWidth: try rotary.width(headWidth: headWidth, c), window: isLocal ? window : nil, more: more
      ).choice
    }
    var backbone = BackboneConfiguration(
      input: .tokens(vocabulary: try c.vocabulary), width: width, layers: layers, heads: heads, mixers: shortest(mixers),
      feedForward: .geglu, hidden: try c.integer("intermediate_size", in: 1...(1 << 24)), norm: .rmsUnitOffset, isCausal: true,
      length: try c.length)
    backbone.normEpsilon = try c.epsilon
    backbone.branchNorm = true
    backbone.embeddingScale = Double(width).squareRoot()
    backbone.activation = try c.activation("hidden_activation", "hidden_act", default: "gelu_pytorch_tanh")
    return languageModel(
      backbone, tied: try c.flag("tie_word_embeddings", default: true),
      softcap: try c.optionalNumber("final_logit_softcapping", in: 1e-6...1e9), prefix: "model.",
      rules: llamaNames(isSandwich: true))
  }

  /// Older files give the local layers' base in a key of its own, and `rope_theta` is the global layers'.
  private static func localView(_ c: ConfigurationReader) -> ConfigurationReader {
    guard !c.isGiven("rope_parameters") else { return c }
    var json = c.json
    json["rope_theta"] = nil
    return ConfigurationReader(file: c.file, json: json)
  }

  // MARK: GPT-2

  private static func gpt2(_ c: ConfigurationReader) throws -> Blueprint {
    try c.requireLanguageModel()
    let crosses = try c.flag("add_cross_attention", default: false)
    try c.unsupported("add_cross_attention", unless: !crosses, "attention to an encoder")
    let width = try c.integer("n_embd", "hidden_size", in: ConfigurationReader.widths)
    let heads = try c.integer("n_head", "num_attention_heads", in: 1...(1 << 16))
    let headWidth = try c.headWidth(width: width, heads: heads)
    let layers = try c.layers
    let isScaled = try c.flag("scale_attn_weights", default: true)
    let byLayer = try c.flag("scale_attn_by_inverse_layer_idx", default: false)
    let mixers = (0..<layers).map { layer in
      let scale = (isScaled ? 1 / Double(headWidth).squareRoot() : 1) / (byLayer ? Double(layer + 1) : 1)
      return AttentionOptions(
        heads: heads, keyValueHeads: heads, headWidth: headWidth, more: ["bias": true, "scale": .number(scale)]
      ).choice
    }
    var backbone = BackboneConfiguration(
      input: .tokens(vocabulary: try c.vocabulary), width: width, layers: layers, heads: heads, mixers: shortest(mixers),
      hidden: try c.optionalInteger("n_inner", in: 1...(1 << 24)) ?? 4 * width, isCausal: true, positions: .learned,
      length: try c.integer("n_positions", "max_position_embeddings", in: 1...(1 << 32)))
    backbone.normEpsilon = try c.number("layer_norm_epsilon", in: 1e-30...1, default: 1e-5)
    backbone.activation = try c.activation("activation_function", default: "gelu_new")
    // Older files keep the causal mask as a buffer.
    return languageModel(
      backbone, tied: try c.flag("tie_word_embeddings", default: true), prefix: "transformer.",
      ignored: ["attn.bias", "attn.masked_bias"],
      rules: [
        .module("transformer.wte", "backbone.embedding"), .tensor("transformer.wpe.weight", "backbone.positions"),
        .module("transformer.ln_f", "backbone.final_norm"), .module("lm_head", "head"),
      ]
        + .part(
          "transformer.h.*", "backbone.blocks.*",
          [
            .module("ln_1", "mixer_norm"), .module("ln_2", "feed_forward_norm"),
            .module("attn.c_attn", "mixer.query", "mixer.key", "mixer.value", layout: .transposed),
            .module("attn.c_proj", "mixer.output", layout: .transposed), .module("mlp.c_fc", "feed_forward.up", layout: .transposed),
            .module("mlp.c_proj", "feed_forward.down", layout: .transposed),
          ]))
  }

  // MARK: OPT

  private static func opt(_ c: ConfigurationReader) throws -> Blueprint {
    try c.requireLanguageModel()
    let affine = try c.flag("layer_norm_elementwise_affine", default: true)
    try c.unsupported("layer_norm_elementwise_affine", unless: affine, "layer norm without parameters")
    let width = try c.integer("hidden_size", in: ConfigurationReader.widths)
    let heads = try c.integer("num_attention_heads", in: 1...(1 << 16))
    let bias = try c.flag("enable_bias", default: true)
    let before = try c.flag("do_layer_norm_before", default: true)
    let attention = AttentionOptions(
      heads: heads, keyValueHeads: heads, headWidth: try c.headWidth(width: width, heads: heads), more: ["bias": .bool(bias)])
    var backbone = BackboneConfiguration(
      input: .tokens(vocabulary: try c.vocabulary), width: width, layers: try c.layers, heads: heads, mixers: [attention.choice],
      hidden: try c.integer("ffn_dim", in: 1...(1 << 24)), preNorm: before, isCausal: true, positions: .learned,
      length: try c.integer("max_position_embeddings", in: 1...(1 << 32)))
    backbone.finalNorm = try before && !c.flag("_remove_final_layer_norm", default: false)
    backbone.positionOffset = 2
    backbone.normEpsilon = 1e-5
    backbone.activation = try c.activation("activation_function", default: "relu")
    backbone.feedForwardBias = bias
    backbone.embeddingWidth = try c.optionalInteger("word_embed_proj_dim", in: ConfigurationReader.widths)
    return languageModel(
      backbone, tied: try c.flag("tie_word_embeddings", default: true), prefix: "model.decoder.",
      rules: [
        .module("model.decoder.embed_tokens", "backbone.embedding"),
        .tensor("model.decoder.embed_positions.weight", "backbone.positions"),
        .module("model.decoder.project_in", "backbone.embedding_projection"), .module("model.decoder.project_out", "output_projection"),
        .module("model.decoder.final_layer_norm", "backbone.final_norm"), .module("lm_head", "head"),
      ]
        + .part(
          "model.decoder.layers.*", "backbone.blocks.*",
          [
            .module("self_attn_layer_norm", "mixer_norm"), .module("final_layer_norm", "feed_forward_norm"),
            .module("self_attn.q_proj", "mixer.query"), .module("self_attn.k_proj", "mixer.key"),
            .module("self_attn.v_proj", "mixer.value"), .module("self_attn.out_proj", "mixer.output"),
            .module("fc1", "feed_forward.up"), .module("fc2", "feed_forward.down"),
          ]))
  }

  // MARK: GPT-NeoX

  private static func gptNeoX(_ c: ConfigurationReader) throws -> Blueprint {
    try c.requireLanguageModel()
    let width = try c.integer("hidden_size", in: ConfigurationReader.widths)
    let heads = try c.integer("num_attention_heads", in: 1...(1 << 16))
    guard width % heads == 0 else {
      throw c.refused("\"hidden_size\" (\(width)) is not a multiple of \"num_attention_heads\" (\(heads))")
    }
    let rotary = try RotaryParameters(c, baseKey: "rotary_emb_base", shareKey: "rotary_pct", defaultShare: 0.25)
    let attention = AttentionOptions(
      heads: heads, keyValueHeads: heads, headWidth: width / heads, rotary: rotary,
      rotaryWidth: try rotary.width(headWidth: width / heads, c), more: ["bias": .bool(try c.flag("attention_bias", default: true))])
    var backbone = BackboneConfiguration(
      input: .tokens(vocabulary: try c.vocabulary), width: width, layers: try c.layers, heads: heads, mixers: [attention.choice],
      hidden: try c.integer("intermediate_size", in: 1...(1 << 24)), isCausal: true, length: try c.length)
    backbone.normEpsilon = try c.number("layer_norm_eps", in: 1e-30...1, default: 1e-5)
    backbone.activation = try c.activation("hidden_act", default: "gelu")
    backbone.parallelResidual = try c.flag("use_parallel_residual", default: true)
    return languageModel(
      backbone, tied: try c.flag("tie_word_embeddings", default: false), prefix: "gpt_neox.",
      ignored: ["attention.bias", "attention.masked_bias"],
      rules: [
        .module("gpt_neox.embed_in", "backbone.embedding"), .module("gpt_neox.final_layer_norm", "backbone.final_norm"),
        .module("embed_out", "head"),
      ]
        + .part(
          "gpt_neox.layers.*", "backbone.blocks.*",
          [
            .module("input_layernorm", "mixer_norm"), .module("post_attention_layernorm", "feed_forward_norm"),
            .module("attention.query_key_value", "mixer.query", "mixer.key", "mixer.value", layout: .interleaved(heads: heads)),
            .module("attention.dense", "mixer.output"), .module("mlp.dense_h_to_4h", "feed_forward.up"),
            .module("mlp.dense_4h_to_h", "feed_forward.down"),
          ]))
  }
}
