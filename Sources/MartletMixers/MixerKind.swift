/// What a mixer of a model is told besides its own options.
public struct MixerSite: Sendable {
  /// The model's width.
  public var width: Int
  /// Heads, for mixers that have them.
  public var heads: Int
  public var isCausal: Bool
  /// The longest sequence expected.
  public var length: Int
  public var dropout: Double

  public init(width: Int, heads: Int, isCausal: Bool, length: Int, dropout: Double = 0) {
    self.width = width
    self.heads = heads
    self.isCausal = isCausal
    self.length = length
    self.dropout = dropout
  }
}

/// Which positions an output may depend on.
public enum MixerDirection: String, Sendable, CaseIterable {
  /// The own one and those before it.
  case causal
  /// All.
  case bidirectional
}

/// A mixer that can be chosen by name and options, as the command line, recipes and comparisons do.
public struct MixerKind: Sendable {
  public let name: String
  /// One line for lists.
  public let summary: String
  public let keys: [ConfigurationKey]
  /// Suffixes of the parameters that want a small learning rate of their own and no weight decay.
  public let slowParameters: [String]
  /// The directions in which the mixer can be built.
  public let directions: Set<MixerDirection>
  /// The width of a head must be a multiple of it where a model's width is chosen for the mixer.
  public let headMultiple: Int
  let make: @Sendable (MixerSite, JSONValue, RandomGenerator) throws -> any SequenceMixer

  public init(
    name: String, summary: String, keys: [ConfigurationKey], slowParameters: [String] = [],
    directions: Set<MixerDirection> = [.causal, .bidirectional], headMultiple: Int = 2,
    make: @escaping @Sendable (MixerSite, JSONValue, RandomGenerator) throws -> any SequenceMixer
  ) {
    self.name = name
    self.summary = summary
    self.keys = keys
    self.slowParameters = slowParameters
    self.directions = directions
    self.headMultiple = headMultiple
    self.make = make
  }

  /// Builds the mixer. Throws `ConfigurationError` for unknown or unfit options, and for a direction that the mixer doesn't have.
  public func callAsFunction(_ site: MixerSite, options: JSONValue = .null, generator: RandomGenerator) throws -> any SequenceMixer {
    let direction: MixerDirection = site.isCausal ? .causal : .bidirectional
    guard directions.contains(direction) else {
      let other = site.isCausal ? "it sees all positions: use it where the whole input is known" : "it sees the past only"
      throw ConfigurationError("\"\(name)\" has no \(direction.rawValue) form (\(other))")
    }
    return try make(site, keys.completed(options), generator)
  }

  /// Every mixer that can be built, by name.
  public static let all: [MixerKind] = [
    .softmax,
    .window,
    .block,
    .aaren,
    .linear,
    .normAttention,
    .diagonalAttention,
    .nprf,
    .rala,
    .slab,
    .lolcats,
    .gla,
    .retention,
    .scalarGate,
    .deltaNet,
    .atlas,
    .s4d,
    .s4,
    .dlr,
    .selectiveS4,
    .lmu,
    .mamba,
    .sgconv,
  ]

  /// The mixer of a name. Throws `ConfigurationError`, which lists the names and suggests the nearest.
  public static func named(_ name: String) throws -> MixerKind {
    if let kind = all.first(where: { $0.name == name }) { return kind }
    throw ConfigurationError(
      "no mixer is called \"\(name)\".\(Suggestions.phrase(for: name, in: all.map(\.name))) There are: \(all.map(\.name).joined(separator: ", "))"
    )
  }
}

/// A mixer by name with options, e.g. `gla` or `s4d?state=32&initialization=legs`.
public struct MixerChoice: Sendable, Equatable, Codable {
  public var name: String
  public var options: JSONValue

  public init(_ name: String, options: JSONValue = .null) {
    self.name = name
    self.options = options
  }

  /// Reads `name` or `name?key=value&key=value`. Throws `ConfigurationError` for a bad name, key or value.
  public init(parsing text: String) throws {
    let parts = text.split(separator: "?", maxSplits: 1).map(String.init)
    guard let name = parts.first else { throw ConfigurationError("an empty mixer name") }
    let kind = try MixerKind.named(name)
    self.name = name
    guard parts.count > 1 else {
      options = .null
      return
    }
    var object = JSONObject()
    for pair in parts[1].split(separator: "&") {
      let sides = pair.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
      let value = sides.count > 1 ? sides[1] : "true"
      let isText = kind.keys.first { $0.name == sides[0] }?.type == .string
      object[sides[0]] = isText ? .string(value) : ((try? JSONValue.parse(value)) ?? .string(value))
    }
    options = .object(object)
    _ = try kind.keys.completed(options)
  }

  /// The text that `init(parsing:)` reads.
  public var text: String {
    guard let object = options.objectValue, !object.isEmpty else { return name }
    return name + "?"
      + object.pairs.map { "\($0.key)=\($0.value.stringValue ?? $0.value.serialized())" }.joined(separator: "&")
  }

  public var kind: MixerKind { get throws { try .named(name) } }
}

// MARK: The kinds

extension MixerKind {
  private static let rotaryKey = ConfigurationKey("rotary", .boolean, default: true, "rotary positions on queries and keys")
  static let headsKey = ConfigurationKey("heads", .integer, default: 0, "heads; 0 takes the model's")

  /// The heads that the options or the place ask for. Throws `ConfigurationError` when they don't divide the width.
  static func heads(_ options: JSONValue, _ site: MixerSite) throws -> Int {
    let heads = options["heads"]?.intValue ?? 0
    let chosen = heads == 0 ? site.heads : heads
    guard chosen > 0, site.width % chosen == 0 else {
      throw ConfigurationError("width \(site.width) is not a multiple of \(chosen) heads")
    }
    return chosen
  }

  static func softmaxConfiguration(_ site: MixerSite, _ options: JSONValue, window: Int?) throws -> SoftmaxAttention.Configuration {
    let headWidth = options["head_width"]?.intValue
    let given = options["heads"]?.intValue ?? 0
    let heads = headWidth == nil ? try heads(options, site) : given > 0 ? given : site.heads
    let shared = options["kv_heads"]?.intValue ?? 0
    let keyValueHeads = shared == 0 ? heads : shared
    guard heads > 0, keyValueHeads > 0, heads % keyValueHeads == 0 else {
      throw ConfigurationError("\(heads) heads are not a multiple of kv_heads \(keyValueHeads)")
    }
    let width = headWidth ?? site.width / heads
    guard width > 0, width * heads <= 1 << 20 else { throw ConfigurationError("head_width must be positive and sensible, got \(width)") }
    let isRotary = options["rotary"]?.boolValue ?? true
    let turned = options["rotary_width"]?.intValue ?? width
    guard !isRotary || turned % 2 == 0 && turned > 0 && turned <= width else {
      throw ConfigurationError("rotary positions need an even head width, at most \(width) channels of it, got \(turned)")
    }
    let bias = options["bias"]?.boolValue ?? false
    return SoftmaxAttention.Configuration(
      width: site.width, heads: heads, keyValueHeads: keyValueHeads, headWidth: width, isCausal: site.isCausal, window: window,
      rotaryBase: isRotary ? options["rotary_base"]?.doubleValue ?? 10000 : nil,
      rotaryScaling: try options["rotary_scaling"].flatMap { try RotaryScaling(options: $0) }, rotaryWidth: turned, bias: bias,
      keyBias: options["key_bias"]?.boolValue, outputBias: options["output_bias"]?.boolValue,
      queryKeyNorm: options["qk_norm"]?.boolValue ?? false, normEpsilon: options["norm_epsilon"]?.doubleValue ?? 1e-6,
      normUnitOffset: options["norm_unit_offset"]?.boolValue ?? false, scale: options["scale"]?.doubleValue,
      softcap: options["softcap"]?.doubleValue)
  }

  private static func windowSize(_ options: JSONValue) throws -> Int? {
    guard let window = options["window"]?.intValue else { return nil }
    guard window >= 0 else { throw ConfigurationError("the window must not be negative, got \(window)") }
    return window
  }

  static let softmaxKeys: [ConfigurationKey] = [
    headsKey, ConfigurationKey("kv_heads", .integer, default: 0, "key/value heads (grouped-query attention); 0 for as many as heads"),
    rotaryKey, ConfigurationKey("bias", .boolean, default: false, "biases in the projections"),
    ConfigurationKey("qk_norm", .boolean, default: false, "RMS-normalise queries and keys per head"),
    ConfigurationKey("head_width", .integer, default: .null, "channels of a head; null for width / heads"),
    ConfigurationKey("rotary_base", .number, default: 10000, "base of the rotary frequencies"),
    ConfigurationKey("rotary_width", .integer, default: .null, "channels of a head that are turned; null for all"),
    ConfigurationKey(
      "rotary_scaling", .object, default: .null, "for longer contexts: {\"type\": linear|ntk|dynamic|yarn|llama3|longrope, …}"),
    ConfigurationKey("key_bias", .boolean, default: .null, "a bias on keys; null for as bias says"),
    ConfigurationKey("output_bias", .boolean, default: .null, "a bias on the output; null for as bias says"),
    ConfigurationKey("norm_epsilon", .number, default: 1e-6, "of the norms of queries and keys"),
    ConfigurationKey("norm_unit_offset", .boolean, default: false, "these norms' factors are 1 + weight"),
    ConfigurationKey("scale", .number, default: .null, "factor on the scores; null for head_width^-1/2"),
    ConfigurationKey("softcap", .number, default: .null, "scores are squashed to ± this; null for not"),
  ]

  public static let softmax = MixerKind(
    name: "softmax", summary: "softmax attention over all positions (Vaswani et al. 2017)",
    keys: softmaxKeys + [ConfigurationKey("window", .integer, default: .null, "positions seen on each side; null for all")]
  ) { site, options, generator in
    SoftmaxAttention(try softmaxConfiguration(site, options, window: try windowSize(options)), generator: generator)
  }

  public static let window = MixerKind(
    name: "window", summary: "softmax attention over a sliding window",
    keys: softmaxKeys + [ConfigurationKey("window", .integer, default: 64, "positions seen on each side")]
  ) { site, options, generator in
    SoftmaxAttention(try softmaxConfiguration(site, options, window: try windowSize(options)), generator: generator)
  }

  public static let linear = MixerKind(
    name: "linear", summary: "linear attention with elu + 1 features (Katharopoulos et al. 2020)", keys: [headsKey]
  ) { site, options, generator in
    LinearAttention(.init(width: site.width, heads: try heads(options, site), isCausal: site.isCausal), generator: generator)
  }

  private static let gatedKeys: [ConfigurationKey] = [
    headsKey, ConfigurationKey("key_ratio", .number, default: 0.5, "total key width over model width"),
    ConfigurationKey("value_ratio", .number, default: 1, "total value width over model width"),
    ConfigurationKey("gate_rank", .integer, default: 16, "rank of the gate's projection"),
    ConfigurationKey("gate_temperature", .number, default: 16, "τ: log-gates are divided by it"),
    ConfigurationKey("output_gate", .boolean, default: true, "SiLU gate on the output"),
    ConfigurationKey("convolution", .integer, default: 0, "size of a causal depthwise convolution on q, k, v; 0 for none"),
    ConfigurationKey("norm_epsilon", .number, default: 1e-5, "of the norm on the output"),
    ConfigurationKey("chunk", .integer, default: 64, "positions processed together"),
  ]

  private static let gateKey = ConfigurationKey(
    "gate", .string, default: "per_channel", "what makes the state forget", choices: GatedLinearAttention.GateKind.allCases.map(\.rawValue))

  /// The width of all heads together at a ratio to the model's: the nearest even width per head, at least 2.
  static func total(_ options: JSONValue, _ key: String, _ fallback: Double, _ site: MixerSite, _ heads: Int) -> Int {
    max(2, 2 * Int((Double(site.width) * (options[key]?.doubleValue ?? fallback) / Double(2 * heads)).rounded())) * heads
  }

  /// With a gate of its own, or with the one that the key `gate` chooses.
  private static func gated(_ name: String, _ summary: String, _ fixed: GatedLinearAttention.GateKind? = nil) -> MixerKind {
    MixerKind(name: name, summary: summary, keys: (fixed == nil ? [gateKey] : []) + gatedKeys) { site, options, generator in
      let gate = fixed ?? options["gate"]?.stringValue.flatMap(GatedLinearAttention.GateKind.init) ?? .perChannel
      let heads = try heads(options, site)
      let configuration = GatedLinearAttention.Configuration(
        width: site.width, heads: heads, keyWidth: total(options, "key_ratio", 0.5, site, heads),
        valueWidth: total(options, "value_ratio", 1, site, heads), gate: gate,
        gateRank: options["gate_rank"]?.intValue ?? 16, gateTemperature: options["gate_temperature"]?.doubleValue ?? 16,
        outputGate: options["output_gate"]?.boolValue ?? true, convolution: options["convolution"]?.intValue ?? 0,
        normEpsilon: options["norm_epsilon"]?.doubleValue ?? 1e-5, chunk: options["chunk"]?.intValue ?? 64, isCausal: site.isCausal)
      guard configuration.gateRank > 0, configuration.gateTemperature > 0, configuration.chunk > 0, configuration.convolution >= 0 else {
        throw ConfigurationError("gate_rank, gate_temperature and chunk must be positive and convolution not negative")
      }
      return GatedLinearAttention(configuration, generator: generator)
    }
  }

  public static let gla = gated("gla", "gated linear attention (Yang et al. 2023)")
  public static let retention = gated("retention", "retention: constant decay per head (Sun et al. 2023)", .retention)
  public static let scalarGate = gated("scalar_gate", "linear attention with one data-dependent decay per head", .scalar)

  public static let deltaNet = MixerKind(
    name: "deltanet", summary: "delta rule: writes correct what the memory says (Yang et al. 2024)",
    keys: [
      headsKey, ConfigurationKey("key_ratio", .number, default: 1, "total key width over model width"),
      ConfigurationKey("value_ratio", .number, default: 1, "total value width over model width"),
      ConfigurationKey("convolution", .integer, default: 4, "size of a causal depthwise convolution on q, k, v; 0 for none"),
      ConfigurationKey("negative_eigenvalues", .boolean, default: false, "rates up to 2, so that transitions can reflect"),
      ConfigurationKey("gated", .boolean, default: false, "a data-dependent decay of the state per head (Gated DeltaNet)"),
      ConfigurationKey("output_gate", .boolean, default: false, "SiLU gate on the output"),
      ConfigurationKey("norm_epsilon", .number, default: 1e-5, "of the norm on the output"),
      ConfigurationKey("chunk", .integer, default: 64, "positions processed together"),
    ]
  ) { site, options, generator in
    let heads = try heads(options, site)
    let configuration = DeltaNet.Configuration(
      width: site.width, heads: heads, keyWidth: total(options, "key_ratio", 1, site, heads),
      valueWidth: total(options, "value_ratio", 1, site, heads), convolution: options["convolution"]?.intValue ?? 4,
      allowNegativeEigenvalues: options["negative_eigenvalues"]?.boolValue ?? false, gated: options["gated"]?.boolValue ?? false,
      outputGate: options["output_gate"]?.boolValue ?? false, normEpsilon: options["norm_epsilon"]?.doubleValue ?? 1e-5,
      chunk: options["chunk"]?.intValue ?? 64, isCausal: site.isCausal)
    guard configuration.chunk > 0, configuration.convolution >= 0 else {
      throw ConfigurationError("chunk must be positive and convolution not negative")
    }
    return DeltaNet(configuration, generator: generator)
  }

  static let stateKeys: [ConfigurationKey] = [
    ConfigurationKey("state", .integer, default: 64, "N, state size of each channel (even)"),
    ConfigurationKey("dt_min", .number, default: 0.001, "smallest step at the start"),
    ConfigurationKey("dt_max", .number, default: 0.1, "largest step at the start"),
    ConfigurationKey("n_ssm", .integer, default: 0, "different (A, B), shared by the channels in turn; 0 for one a channel"),
    ConfigurationKey("b_clip", .number, default: .null, "bounds |Im B| of LegS at the start; null for not (the authors' code: 2)"),
  ]

  /// Of diagonal systems.
  static let diagonalKeys: [ConfigurationKey] = [
    ConfigurationKey(
      "initialization", .string, default: "lin", "of the state matrix", choices: DiagonalKernel.Initialization.allCases.map(\.rawValue)),
    ConfigurationKey("discretization", .string, default: "zoh", "of the system", choices: Discretization.allCases.map(\.rawValue)),
  ]

  /// The state space that the options ask for. Throws `ConfigurationError` for numbers that make none.
  static func stateConfiguration(_ site: MixerSite, _ options: JSONValue, _ structure: S4.Structure) throws -> S4.Configuration {
    let state = options["state"]?.intValue ?? 64
    let (low, high) = (options["dt_min"]?.doubleValue ?? 1e-3, options["dt_max"]?.doubleValue ?? 1e-1)
    let systems = options["n_ssm"]?.intValue ?? 0
    let clip = options["b_clip"]?.doubleValue
    guard state > 0, state % 2 == 0 else { throw ConfigurationError("state must be even and positive, got \(state)") }
    guard low > 0, low <= high else { throw ConfigurationError("steps need 0 < dt_min ≤ dt_max, got \(low) and \(high)") }
    guard systems >= 0, systems == 0 || site.width % systems == 0 else {
      throw ConfigurationError("n_ssm must divide the width \(site.width), got \(systems)")
    }
    guard clip ?? 1 > 0 else { throw ConfigurationError("b_clip must be positive, got \(clip ?? 0)") }
    return S4.Configuration(
      width: site.width, state: state, structure: structure,
      initialization: options["initialization"]?.stringValue.flatMap(DiagonalKernel.Initialization.init) ?? .lin,
      discretization: options["discretization"]?.stringValue.flatMap(Discretization.init) ?? .zoh, stepRange: low...high,
      length: max(site.length, 1), isCausal: site.isCausal, dropout: site.dropout, systems: systems == 0 ? nil : systems, inputClip: clip)
  }

  public static let s4d = MixerKind(
    name: "s4d", summary: "diagonal state space (Gu et al. 2022)", keys: stateKeys + diagonalKeys,
    slowParameters: DiagonalKernel.slowParameters
  ) { site, options, generator in
    S4(try stateConfiguration(site, options, .diagonal), generator: generator)
  }

  public static let s4 = MixerKind(
    name: "s4", summary: "state space with a diagonal plus rank one matrix, HiPPO-LegS (Gu et al. 2021)",
    keys: stateKeys + [
      ConfigurationKey(
        "initialization", .string, default: "legs", "of the state matrix", choices: DPLRKernel.Initialization.allCases.map(\.rawValue))
    ], slowParameters: DPLRKernel.slowParameters
  ) { site, options, generator in
    S4(try stateConfiguration(site, options, .dplr), generator: generator)
  }
}

extension MixerKind {
  public static let dlr = MixerKind(
    name: "dlr", summary: "diagonal linear RNN (Gupta et al. 2022)",
    keys: [ConfigurationKey("state", .integer, default: 1024, "N, complex states that all channels share")],
    slowParameters: DLRKernel.slowParameters
  ) { site, options, generator in
    let state = options["state"]?.intValue ?? 1024
    guard state > 0 else { throw ConfigurationError("state must be positive, got \(state)") }
    return S4(
      .init(width: site.width, state: state, structure: .dlr, length: max(site.length, 1), isCausal: site.isCausal, dropout: site.dropout),
      generator: generator)
  }
}

extension RotaryScaling {
  /// From options in the spelling of Hugging Face's `rope_scaling`: `type` (or `rope_type`), `factor`, and each kind's own keys;
  /// `nil` for null and `default`. Throws `ConfigurationError` that names what is missing.
  public init?(options: JSONValue) throws {
    guard let object = options.objectValue else { return nil }
    let type = object["rope_type"]?.stringValue ?? object["type"]?.stringValue ?? "default"
    func number(_ key: String) throws -> Double {
      guard let value = object[key]?.doubleValue, value.isFinite, value > 0 else {
        throw ConfigurationError("rotary scaling \"\(type)\" needs a positive number \"\(key)\"")
      }
      return value
    }
    func original() throws -> Int { Int(min(try number("original_max_position_embeddings"), 1e15)) }
    switch type {
    case "default": return nil
    case "linear": self = .linear(factor: try number("factor"))
    case "ntk": self = .ntk(factor: try number("factor"))
    case "dynamic": self = .dynamic(factor: try number("factor"), original: try original())
    case "yarn":
      self = .yarn(
        factor: try number("factor"), original: try original(), betaFast: object["beta_fast"]?.doubleValue ?? 32,
        betaSlow: object["beta_slow"]?.doubleValue ?? 1, attentionFactor: object["attention_factor"]?.doubleValue,
        truncate: object["truncate"]?.boolValue ?? true)
    case "llama3":
      self = .llama3(
        factor: try number("factor"), low: try number("low_freq_factor"), high: try number("high_freq_factor"),
        original: try original())
    case "longrope", "su":
      func list(_ key: String) throws -> [Double] {
        guard let values = object[key]?.arrayValue?.compactMap(\.doubleValue), values.allSatisfy({ $0 > 0 && $0.isFinite }) else {
          throw ConfigurationError("rotary scaling \"\(type)\" needs a list of positive numbers \"\(key)\"")
        }
        return values
      }
      self = .longRope(
        short: try list("short_factor"), long: try list("long_factor"), original: try original(),
        attentionFactor: try number("attention_factor"))
    default:
      throw ConfigurationError(
        "unknown rotary scaling \"\(type)\".\(Suggestions.phrase(for: type, in: ["linear", "ntk", "dynamic", "yarn", "llama3", "longrope"]))"
      )
    }
  }
}
