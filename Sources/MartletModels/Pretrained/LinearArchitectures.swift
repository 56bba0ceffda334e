import MartletFormats

/// Linear-time decoders in the layout of flash-linear-attention.
extension Architecture {
  static let linearDecoders: [Architecture] = [
    Architecture(["gla"], classPrefixes: ["GLA"], "gated linear attention (flash-linear-attention)") { c, contents in
      let share = try c.number("expand_k", in: 1e-3...1e3, default: 0.5)
      let valueShare = try c.number("expand_v", in: 1e-3...1e3, default: 1)
      let heads = try c.integer("num_heads", in: 1...(1 << 16), default: 4)
      let shared = try c.integer("num_kv_heads", in: 1...(1 << 16), default: heads)
      try c.unsupported("num_kv_heads", unless: shared == heads, "keys shared by several heads")
      try c.unsupported("feature_map", unless: !c.isGiven("feature_map"), "a feature map")
      try c.unsupported("clamp_min", unless: !c.isGiven("clamp_min"), "a least gate")
      let affine = try c.flag("elementwise_affine", default: true)
      try c.unsupported("elementwise_affine", unless: affine, "a norm without parameters")
      let gated = try c.flag("use_output_gate", default: true)
      let options: JSONObject = [
        "key_ratio": try ratio(c, share, heads), "value_ratio": try ratio(c, valueShare, heads),
        "gate_rank": .integer(try c.integer("gate_low_rank_dim", in: 1...(1 << 16), default: 16)),
        "gate_temperature": .number(try c.number("gate_logit_normalizer", in: 1e-6...1e6, default: 16)), "output_gate": .bool(gated),
        "convolution": .integer(try convolution(c, default: false)), "norm_epsilon": .number(try c.norm),
      ]
      let isFused = contents.has(suffix: "attn.g_norm_swish_gate.weight", otherwise: gated)
      return try linear(
        c, "gla", heads: heads, options,
        names: [
          .module("attn.gk_proj.0", "mixer.gate_in"), .module("attn.gk_proj.1", "mixer.gate_out"),
          .module("attn.g_proj", "mixer.output_gate"), .module(isFused ? "attn.g_norm_swish_gate" : "attn.g_norm", "mixer.norm"),
        ])
    },
    Architecture(["delta_net"], classPrefixes: ["DeltaNet"], "DeltaNet (flash-linear-attention)") { c, _ in
      let heads = try c.integer("num_heads", in: 1...(1 << 16), default: 16)
      let learnsRate = try c.flag("use_beta", default: true)
      try c.unsupported("use_beta", unless: learnsRate, "a fixed rate of writing")
      let norm = try c.optionalString("qk_norm") ?? "l2"
      try c.unsupported("qk_norm", unless: norm == "l2", "this norm of queries and keys")
      let activation = try c.optionalString("qk_activation") ?? "silu"
      try c.unsupported("qk_activation", unless: activation == "silu", "this activation of queries and keys")
      let options: JSONObject = [
        "key_ratio": try ratio(c, try c.number("expand_k", in: 1e-3...1e3, default: 1), heads),
        "value_ratio": try ratio(c, try c.number("expand_v", in: 1e-3...1e3, default: 1), heads),
        "output_gate": .bool(try c.flag("use_gate", default: false)), "convolution": .integer(try convolution(c, default: true)),
        "negative_eigenvalues": .bool(try c.flag("allow_neg_eigval", default: false)), "norm_epsilon": .number(try c.norm),
      ]
      return try linear(
        c, "deltanet", heads: heads, options,
        names: [
          .module("attn.b_proj", "mixer.rate"), .module("attn.g_proj", "mixer.output_gate"), .module("attn.o_norm", "mixer.norm"),
        ])
    },
  ]

  /// Total width of keys or values over the model's: even for every head, as the kernels have it.
  private static func ratio(_ c: ConfigurationReader, _ share: Double, _ heads: Int) throws -> JSONValue {
    let width = try c.integer("hidden_size", in: ConfigurationReader.widths, default: 2048)
    let total = Int(Double(width) * share)
    guard total > 0, total % (2 * heads) == 0 else {
      throw c.refused("\(share) × \"hidden_size\" (\(width)) is \(total), which isn't even for each of \(heads) \"num_heads\"")
    }
    return .number(Double(total) / Double(width))
  }

  private static func convolution(_ c: ConfigurationReader, default fallback: Bool) throws -> Int {
    try c.flag("use_short_conv", default: fallback) ? try c.integer("conv_size", in: 1...256, default: 4) : 0
  }

  private static func linear(
    _ c: ConfigurationReader, _ mixer: String, heads: Int, _ options: JSONObject, names: [NameRule]
  ) throws -> Blueprint {
    try c.unsupported("attn", unless: !c.isGiven("attn"), "a mixture with softmax attention")
    let width = try c.integer("hidden_size", in: ConfigurationReader.widths, default: 2048)
    let ratio = try c.integer("hidden_ratio", in: 1...64, default: 4)
    // Without a width of its own the feed-forward takes two thirds of ratio × width, to a multiple of 256.
    let hidden = try c.optionalInteger("intermediate_size", in: 1...(1 << 24)) ?? (2 * ratio * width / 3 + 255) / 256 * 256
    var options = options
    options["heads"] = .integer(heads)
    var backbone = BackboneConfiguration(
      input: .tokens(vocabulary: try c.integer("vocab_size", in: 1...(1 << 28), default: 32000)), width: width,
      layers: try c.integer("num_hidden_layers", in: 1...10_000, default: 24), heads: heads,
      mixers: [MixerChoice(mixer, options: .object(options))], feedForward: .swiglu, hidden: hidden, norm: .rms, isCausal: true,
      length: try c.integer("max_position_embeddings", in: 1...(1 << 32), default: 2048))
    backbone.normEpsilon = try c.norm
    backbone.activation = try c.activation("hidden_act", default: "swish")
    let taps = NameRule.Layout.reshaped { [$0[0], 1, $0[1]] }
    return languageModel(
      backbone, tied: try c.flag("tie_word_embeddings", default: false), prefix: "model.",
      rules: [
        .module("model.embeddings", "backbone.embedding"), .module("model.norm", "backbone.final_norm"), .module("lm_head", "head"),
      ]
        + .part(
          "model.layers.*", "backbone.blocks.*",
          names + [
            .module("attn_norm", "mixer_norm"), .module("mlp_norm", "feed_forward_norm"), .module("attn.q_proj", "mixer.query"),
            .module("attn.k_proj", "mixer.key"), .module("attn.v_proj", "mixer.value"), .module("attn.o_proj", "mixer.output"),
            .module("attn.q_conv1d", "mixer.query_convolution", layout: taps),
            .module("attn.k_conv1d", "mixer.key_convolution", layout: taps),
            .module("attn.v_conv1d", "mixer.value_convolution", layout: taps),
            .module("mlp.gate_proj", "feed_forward.gate"), .module("mlp.up_proj", "feed_forward.up"),
            .module("mlp.down_proj", "feed_forward.down"),
          ]))
  }
}

extension ConfigurationReader {
  fileprivate var norm: Double { get throws { try number("norm_eps", in: 1e-30...1, default: 1e-6) } }
}
