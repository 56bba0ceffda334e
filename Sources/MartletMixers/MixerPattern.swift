/// The mixers of a model's layers: one for all, or several that take turns. In text, `deltanet+window` alternates and
/// `deltanet*2+softmax` has two layers of the first to one of the second; each part may have options: `deltanet+window?window=128`.
///
/// The pattern repeats over the layers, whose number need not be a multiple of its length.
public struct MixerPattern: Sendable, Equatable {
  public var mixers: [MixerChoice]

  public init(_ mixers: [MixerChoice]) { self.mixers = mixers }

  public init(_ mixer: MixerChoice) { self.init([mixer]) }

  /// The most layers that a pattern may spell out.
  public static let longest = 10_000

  /// Throws `ConfigurationError` that names the bad part.
  public init(parsing text: String) throws {
    var mixers: [MixerChoice] = []
    for part in Self.parts(of: text) {
      func failed(_ reason: String) -> ConfigurationError {
        ConfigurationError(part.isEmpty || part == text ? "\(reason)" : "\"\(part)\" in \"\(text)\": \(reason)")
      }
      guard !part.isEmpty else {
        throw ConfigurationError("an empty mixer name in \"\(text)\": a pattern is written like deltanet*2+softmax")
      }
      var (name, count) = (part, 1)
      if let star = part.lastIndex(of: "*") {
        let digits = part[part.index(after: star)...]
        guard let number = Int(digits), (1...Self.longest).contains(number) else {
          throw failed("\"*\(digits)\" is no number of layers in 1...\(Self.longest)")
        }
        (name, count) = (String(part[..<star]), number)
      }
      do {
        mixers += Array(repeating: try MixerChoice(parsing: name), count: count)
      } catch let error as ConfigurationError {
        throw failed(error.message)
      }
      guard mixers.count <= Self.longest else { throw failed("the pattern has more than \(Self.longest) layers") }
    }
    self.init(mixers)
  }

  /// What stands between plus signs; that of an exponent, as in `dt_max=1e+2`, separates nothing.
  private static func parts(of text: String) -> [String] {
    let characters = Array(text)
    var parts = [""]
    for (i, character) in characters.enumerated() {
      let next = i + 1 < characters.count ? characters[i + 1] : " "
      if character == "+", !next.isNumber {
        parts.append("")
      } else {
        parts[parts.count - 1].append(character)
      }
    }
    return parts
  }

  /// The text that `init(parsing:)` reads.
  public var text: String {
    var runs: [(mixer: MixerChoice, count: Int)] = []
    for mixer in mixers {
      if runs.last?.mixer == mixer { runs[runs.count - 1].count += 1 } else { runs.append((mixer, 1)) }
    }
    // A single mixer for all layers needs no number.
    if runs.count == 1 { return runs[0].mixer.text }
    return runs.map { $0.mixer.text + ($0.count > 1 ? "*\($0.count)" : "") }.joined(separator: "+")
  }

  /// The mixer of a layer.
  public func mixer(layer: Int) -> MixerChoice { mixers[layer % mixers.count] }

  /// Suffixes of the parameters that want a small learning rate, of all mixers. Throws `ConfigurationError` for an unknown name.
  public var slowParameters: [String] {
    get throws { try Set(mixers.flatMap { try $0.kind.slowParameters }).sorted() }
  }
}

extension MixerPattern: Codable {
  /// From its text, or from the name and options of a single mixer.
  public init(from decoder: any Decoder) throws {
    if let text = try? decoder.singleValueContainer().decode(String.self) {
      self = try MixerPattern(parsing: text)
    } else {
      self.init(try MixerChoice(from: decoder))
    }
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(text)
  }
}

/// Layers of a recurrent mixer with a few of attention between them: the two hybrids of DeltaNet (Yang et al. 2024, §3.4).
public enum HybridStack {
  /// Sliding-window attention in every other layer, beginning with the second.
  ///
  /// - Parameter layers: of the model; the pattern has as many.
  public static func slidingWindow(
    _ mixer: MixerChoice = MixerChoice("deltanet"), window: MixerChoice = MixerChoice("window"), layers: Int
  ) -> MixerPattern {
    MixerPattern((0..<layers).map { $0 % 2 == 1 ? window : mixer })
  }

  /// Attention over the whole sequence in two layers, the second and the (N/2 + 1)-th of N.
  public static func globalAttention(
    _ mixer: MixerChoice = MixerChoice("deltanet"), attention: MixerChoice = MixerChoice("softmax"), layers: Int
  ) -> MixerPattern {
    MixerPattern((0..<layers).map { $0 == 1 || $0 == layers / 2 ? attention : mixer })
  }
}
