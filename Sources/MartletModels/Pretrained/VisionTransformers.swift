import MartletFormats

extension Architecture {
  /// Vision transformers.
  static let visionTransformers: [Architecture] = [
    Architecture(["vit"], classPrefixes: ["ViT"], "ViT, images") { c, contents in try describeVision(c, contents, isDistilled: false) },
    Architecture(["deit"], classPrefixes: ["DeiT"], "DeiT, images") { c, contents in try describeVision(c, contents, isDistilled: true) },
  ]

  private static func describeVision(
    _ c: ConfigurationReader, _ contents: CheckpointContents, isDistilled: Bool
  ) throws -> Blueprint {
    let classes = try c.strings("architectures")
    if let name = classes.first(where: { $0.contains("MaskedImageModeling") }) {
      throw c.refused("\"architectures\" names \(name): the head that reconstructs pixels is not supported")
    }
    let width = try c.integer("hidden_size", in: ConfigurationReader.widths)
    let heads = try c.integer("num_attention_heads", in: 1...(1 << 16))
    let headWidth = try c.headWidth(width: width, heads: heads)
    let attention = MixerChoice(
      "softmax",
      options: [
        "heads": .integer(heads), "head_width": .integer(headWidth), "rotary": false, "bias": .bool(try c.flag("qkv_bias", default: true)),
        "output_bias": true,
      ])
    let (height, breadth) = try c.imageSize("image_size")
    let (patch, patchBreadth) = try c.imageSize("patch_size")
    guard patch == patchBreadth else { throw c.refused("\"patch_size\" is \(patch)×\(patchBreadth): only square patches are supported") }
    var backbone = BackboneConfiguration(
      input: .continuous(channels: width), width: width, layers: try c.integer("num_hidden_layers", in: 1...10_000), heads: heads,
      mixers: [attention], hidden: try c.integer("intermediate_size", in: 1...(1 << 24)), isCausal: false,
      dropout: try c.number("hidden_dropout_prob", in: 0...0.999, default: 0), length: 1 << 23)
    backbone.projectsInput = false
    backbone.normEpsilon = try c.number("layer_norm_eps", in: 1e-30...1, default: 1e-12)
    backbone.activation = try c.activation("hidden_act", default: "gelu")

    let labels = try c.optionalObject("id2label")?.json.count ?? c.integer("num_labels", in: 1...(1 << 24), default: 2)
    let isClassifier = classes.contains { $0.contains("Classification") }
    let head: VisionTransformerConfiguration.Head
    if contents.has(suffix: "cls_classifier.weight", otherwise: classes.contains { $0.hasSuffix("WithTeacher") }) {
      head = .distilled(classes: labels)
    } else if contents.has(suffix: "classifier.weight", otherwise: isClassifier) {
      head = .classes(labels)
    } else if contents.has(suffix: "pooler.dense.weight", otherwise: true) {
      head = .pooler(
        width: try c.integer("pooler_output_size", in: ConfigurationReader.widths, default: width),
        activation: try c.activation("pooler_act", default: "tanh"))
    } else {
      head = .none
    }
    let configuration = VisionTransformerConfiguration(
      backbone: backbone, imageHeight: height, imageWidth: breadth, patch: patch,
      channels: try c.integer("num_channels", in: 1...1024, default: 3), distillationToken: isDistilled, head: head)
    try c.describing { try configuration.validate() }
    let base = isDistilled ? "deit" : "vit"
    let classifier = if case .distilled = head { "cls_classifier" } else { "classifier" }
    var blueprint = Blueprint(
      backbone: backbone, prefix: base + ".", ignored: ["embeddings.mask_token"],
      rules: [
        .tensor("\(base).embeddings.cls_token", "class_token"),
        .tensor("\(base).embeddings.distillation_token", "distillation_token"),
        .tensor("\(base).embeddings.position_embeddings", "positions"),
        .module("\(base).embeddings.patch_embeddings.projection", "patch_embedding"),
        .module("\(base).layernorm", "backbone.final_norm"), .module("\(base).pooler.dense", "pooler"),
        .module(classifier, "classifier"), .module("distillation_classifier", "distillation_classifier"),
      ]
        + .part(
          "\(base).encoder.layer.*", "backbone.blocks.*",
          [
            .module("attention.attention.query", "mixer.query"), .module("attention.attention.key", "mixer.key"),
            .module("attention.attention.value", "mixer.value"), .module("attention.output.dense", "mixer.output"),
            .module("intermediate.dense", "feed_forward.up"), .module("output.dense", "feed_forward.down"),
            .module("layernorm_before", "mixer_norm"), .module("layernorm_after", "feed_forward_norm"),
          ])
    ) { try VisionTransformer(configuration, generator: $0) }
    blueprint.otherElements = (configuration.rows * configuration.columns + configuration.channels * patch * patch) * width
    return blueprint
  }
}

extension ConfigurationReader {
  /// Height and width: one number, or a pair.
  fileprivate func imageSize(_ key: String) throws -> (height: Int, width: Int) {
    let range = 1...(1 << 16)
    guard case .array(let pair)? = json[key] else {
      let size = try integer(key, in: range)
      return (size, size)
    }
    let numbers = pair.compactMap(\.intValue).filter(range.contains)
    guard pair.count == 2, numbers.count == 2 else {
      throw refused("\"\(key)\" must be a whole number in 1...65536 or a pair of them, it is \(JSONValue.array(pair).serialized())")
    }
    return (numbers[0], numbers[1])
  }
}
