import MartletFormats

/// What `config.json` says of attention that was linearised: the section `linearized_attention` beside the keys of the base model, which
/// other programs pass over.
///
/// ```json
/// "linearized_attention": {"method": "lolcats", "layers": [0, 1, 2], "window": 64, "layout": "sliding",
///                          "feature_map": "hedgehog", "features": 64, "affine": false}
/// ```
///
/// The tensors of these layers stand beside the projections', under the family's names: `….feature_map_q.weight`, `….feature_map_k.weight`
/// ([heads, channels, columns]; rectified maps also have `.bias`) and `….window_factors` ([heads]).
public struct LinearizedAttention: Sendable, Equatable {
  /// The section's key.
  public static let key = "linearized_attention"
  static let method = "lolcats"

  /// Layers whose attention is a ``WindowedLinearAttention``; the others keep theirs.
  public var layers: [Int]
  public var options: WindowedLinearAttention.Options

  public init(layers: [Int], options: WindowedLinearAttention.Options) {
    self.layers = layers
    self.options = options
  }

  /// `nil` where the section is missing. Throws `FileError` that names the key.
  init?(_ reader: ConfigurationReader, layers count: Int) throws {
    guard let section = try reader.optionalObject(Self.key) else { return nil }
    func refused(_ reason: String) -> any Error { reader.refused("\"\(Self.key)\": \(reason)") }
    let known = ["method", "layers", "window", "layout", "feature_map", "features", "affine"]
    if let strange = section.json.keys.first(where: { !known.contains($0) }) {
      throw refused("there is no key \"\(strange)\".\(Suggestions.phrase(for: strange, in: known))")
    }
    let method = section.json["method"]?.stringValue ?? ""
    guard method == Self.method else { throw refused("\"method\" must be \"\(Self.method)\", it is \"\(method)\"") }
    guard let layers = section.json["layers"]?.arrayValue?.map(\.intValue), !layers.isEmpty,
      layers.allSatisfy({ $0.map { (0..<count).contains($0) } ?? false }), Set(layers).count == layers.count
    else { throw refused("\"layers\" must list layers in 0..<\(count), each once") }
    func choice<Value: RawRepresentable & CaseIterable>(_ key: String, _ fallback: Value) throws -> Value where Value.RawValue == String {
      guard let given = section.json[key] else { return fallback }
      guard let value = given.stringValue.flatMap(Value.init) else {
        throw refused("\"\(key)\" must be one of \(Value.allCases.map(\.rawValue).joined(separator: ", ")), it is \(given.serialized())")
      }
      return value
    }
    self.layers = layers.map { $0! }
    options = WindowedLinearAttention.Options(
      window: try section.integer("window", in: 1...(1 << 20)), layout: try choice("layout", .sliding),
      featureMap: try choice("feature_map", .hedgehog), features: try section.optionalInteger("features", in: 1...(1 << 16)),
      affine: try section.optionalFlag("affine") ?? false)
  }

  /// The section.
  public var json: JSONValue {
    var object: JSONObject = [
      "method": .string(Self.method), "layers": .array(layers.map(JSONValue.integer)), "window": .integer(options.window),
      "layout": .string(options.layout.rawValue), "feature_map": .string(options.featureMap.rawValue),
    ]
    if let features = options.features { object["features"] = .integer(features) }
    object["affine"] = .bool(options.affine)
    return .object(object)
  }

  /// A decoder's blueprint with these layers linearised. Throws `ConfigurationError` for models and layers that can't be.
  func applied(to blueprint: Blueprint) throws -> Blueprint {
    var result = blueprint
    guard blueprint.backbone.isCausal, let attention = blueprint.rules.first(where: { $0.own == ["backbone.blocks.*.mixer.output"] }),
      let dot = attention.foreign.lastIndex(of: ".")
    else { throw ConfigurationError("\"\(Self.key)\" is for decoders with softmax attention") }
    result.backbone.mixers = try (0..<blueprint.backbone.layers).map { layer in
      let choice = blueprint.backbone.mixer(layer: layer)
      guard layers.contains(layer) else { return choice }
      guard choice.name == "softmax" else { throw ConfigurationError("\"\(Self.key)\": layer \(layer) has no softmax attention") }
      var merged = choice.options.objectValue ?? JSONObject()
      for (key, value) in json.objectValue!.pairs where key != "method" && key != "layers" { merged[key] = value }
      return MixerChoice("lolcats", options: .object(merged))
    }
    let place = String(attention.foreign[..<dot])
    let own = "backbone.blocks.*.mixer"
    result.rules += [
      .module(place + ".feature_map_q", own + ".query_map"), .module(place + ".feature_map_k", own + ".key_map"),
      .tensor(place + ".window_factors", own + ".window_factor"),
    ]
    result.make = { [layers, options] generator in
      let model = try blueprint.make(generator)
      guard let language = model as? LanguageModel else { throw ConfigurationError("\"\(Self.key)\" is for language models") }
      try language.linearize(layers: layers, options, generator: generator)
      return model
    }
    return result
  }
}

extension LanguageModel {
  /// Puts a ``WindowedLinearAttention`` over the same projections in the place of each of these layers' attention, with feature maps that
  /// are not trained yet.
  ///
  /// - Throws: `ConfigurationError` for a layer without softmax attention, or whose attention can't be linearised; nothing is changed
  ///   then.
  public func linearize(layers: [Int], _ options: WindowedLinearAttention.Options, generator: RandomGenerator) throws {
    for (layer, mixer) in zip(layers, try linearized(layers, options, generator)) { backbone.blocks[layer].mixer = mixer }
  }

  private func linearized(
    _ layers: [Int], _ options: WindowedLinearAttention.Options, _ generator: RandomGenerator
  ) throws -> [WindowedLinearAttention] {
    try layers.map { layer in
      guard backbone.blocks.indices.contains(layer) else { throw ConfigurationError("there is no layer \(layer)") }
      guard let attention = backbone.blocks[layer].mixer as? SoftmaxAttention else {
        throw ConfigurationError("layer \(layer) has no softmax attention but a \(type(of: backbone.blocks[layer].mixer))")
      }
      let mixer = try WindowedLinearAttention(from: attention, options, generator: generator)
      mixer.train(attention.isTraining)
      return mixer
    }
  }

  /// Throws what ``linearize(layers:_:generator:)`` would; changes nothing and takes no memory.
  public func checkLinearizable(layers: [Int], _ options: WindowedLinearAttention.Options) throws {
    try Initializer.$isSkipped.withValue(true) { _ = try linearized(layers, options, RandomGenerator(seed: 0)) }
  }

  /// Layers whose attention sees more than a window of so many positions: those worth linearising.
  public func linearizableLayers(window: Int) -> [Int] {
    backbone.blocks.indices.filter { i in
      guard let attention = backbone.blocks[i].mixer as? SoftmaxAttention else { return false }
      return attention.configuration.window.map { $0 + 1 > window } ?? true
    }
  }
}
