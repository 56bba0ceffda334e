import Foundation
import MartletFormats

/// Rotary positions as `config.json` gives them: newer files in `rope_parameters` (one object, or one for each kind of layer), older ones in
/// `rope_theta`, `rope_scaling` and keys of their own.
struct RotaryParameters {
  var base: Double
  /// Share of a head's channels that is turned.
  var share: Double
  /// In the spelling that `RotaryScaling` reads; `null` for none.
  var scaling: JSONValue

  /// - Parameters:
  ///   - layerKind: "full_attention" or "sliding_attention", where they differ.
  ///   - baseKeys: older spellings of the base, and what the family takes when there is none.
  init(
    _ c: ConfigurationReader, layerKind: String? = nil, baseKey: String = "rope_theta", shareKey: String = "partial_rotary_factor",
    defaultBase: Double = 10000, defaultShare: Double = 1, scaled: Bool = true
  ) throws {
    var source = c
    var scalingObject: ConfigurationReader?
    if let newer = try c.optionalObject("rope_parameters") {
      source = newer
      if let layerKind, let own = try newer.optionalObject(layerKind) { source = own }
      scalingObject = source
    } else if scaled {
      scalingObject = try c.optionalObject("rope_scaling")
    }
    let bases = 1e-3...1e15
    let given = try source.optionalNumber("rope_theta", in: bases) ?? c.optionalNumber(baseKey, in: bases)
    base = try given ?? c.optionalNumber("rope_theta", in: bases) ?? defaultBase
    let shares = 1e-6...1.0
    share =
      try source.optionalNumber("partial_rotary_factor", in: shares) ?? c.optionalNumber(shareKey, in: shares) ?? defaultShare
    scaling = .null
    if let scalingObject { scaling = try Self.scaling(scalingObject, c) }
  }

  /// The scaling with what files leave implicit filled in.
  private static func scaling(_ s: ConfigurationReader, _ c: ConfigurationReader) throws -> JSONValue {
    let type = try s.optionalString("rope_type") ?? s.optionalString("type") ?? "default"
    if type == "default" { return .null }
    var object = s.json
    for key in ["rope_theta", "partial_rotary_factor", "type"] { object[key] = nil }
    object["rope_type"] = .string(type)
    let lengths = 1...(1 << 40)
    let longest = try c.optionalInteger("max_position_embeddings", in: lengths)
    let original =
      try s.optionalInteger("original_max_position_embeddings", in: lengths)
      ?? c.optionalInteger("original_max_position_embeddings", in: lengths)
    var factor = try s.optionalNumber("factor", in: 1e-3...1e6)
    switch type {
    case "dynamic":
      // The length that the model was trained on is the longest here, whatever else is said.
      guard let longest else { throw c.refused("\"rope_scaling\" of type dynamic needs \"max_position_embeddings\"") }
      object["original_max_position_embeddings"] = .integer(longest)
    case "yarn":
      guard let start = original ?? longest else { throw s.refused("the type yarn needs \"original_max_position_embeddings\"") }
      object["original_max_position_embeddings"] = .integer(start)
      if factor == nil, let longest { factor = Double(longest) / Double(start) }
      if let factor { object["factor"] = .number(factor) }
      let tempers = 1e-6...1e6
      if !s.isGiven("attention_factor"), let factor, let mscale = try s.optionalNumber("mscale", in: 0...1e6),
        let all = try s.optionalNumber("mscale_all_dim", in: 0...1e6), mscale > 0, all > 0
      {
        // The tempering of a part of the channels relative to all (DeepSeek's spelling).
        func temper(_ weight: Double) -> Double { factor <= 1 ? 1 : 0.1 * weight * log(factor) + 1 }
        object["attention_factor"] = .number(temper(mscale) / temper(all))
      } else {
        _ = try s.optionalNumber("attention_factor", in: tempers)
      }
      for key in ["beta_fast", "beta_slow"] where try s.optionalNumber(key, in: 0...1e6) == 0 { object[key] = nil }
    case "longrope", "su":
      guard let start = original, let longest else {
        throw s.refused("the type \(type) needs \"original_max_position_embeddings\" and \"max_position_embeddings\"")
      }
      object["original_max_position_embeddings"] = .integer(start)
      if try s.optionalNumber("attention_factor", in: 1e-6...1e6) == nil {
        let stretch = factor ?? Double(longest) / Double(start)
        guard start > 1 || stretch <= 1 else { throw s.refused("\"original_max_position_embeddings\" must be above 1") }
        object["attention_factor"] = .number(stretch <= 1 ? 1 : (1 + log(stretch) / log(Double(start))).squareRoot())
      }
      for key in ["short_factor", "long_factor"] {
        guard let list = try s.optionalList(key), !list.isEmpty else { throw s.refused("the type \(type) needs the list \"\(key)\"") }
      }
    default: break
    }
    return .object(object)
  }

  /// Channels of a head that are turned. Throws `FileError` where that is no even number or the factors' number doesn't fit.
  func width(headWidth: Int, _ c: ConfigurationReader) throws -> Int {
    let turned = Int(Double(headWidth) * share)
    guard turned >= 2, turned % 2 == 0 else {
      throw c.refused("rotary positions need an even number of channels of a head, \(share) of \(headWidth) is \(turned)")
    }
    for key in ["short_factor", "long_factor"] {
      if let list = scaling[key]?.arrayValue, list.count != turned / 2 {
        throw c.refused("\"\(key)\" has \(list.count) factors where \(turned) rotary channels need \(turned / 2)")
      }
    }
    return turned
  }
}
