import MartletMixers

/// max |a − b| / max |b|, in float64.
func relativeError(_ found: Tensor, _ expected: Tensor) -> Double {
  precondition(found.shape == expected.shape, "\(found.shape) and \(expected.shape)")
  let (a, b) = (found.detached().to(.float64), expected.detached().to(.float64))
  return (a - b).abs().max().item() / max(b.abs().max().item(), 1e-30)
}

/// max |a − b| of real or complex tensors.
func largestDifference(_ a: Tensor, _ b: Tensor) -> Double { (a - b).abs().max().item() }

/// Every kind of mixer in every direction that it has.
struct MixerCase: Sendable, CustomStringConvertible {
  let name: String
  let isCausal: Bool

  static let causal = MixerKind.all.filter { $0.directions.contains(.causal) }.map { MixerCase(name: $0.name, isCausal: true) }
  static let all =
    causal + MixerKind.all.filter { $0.directions.contains(.bidirectional) }.map { MixerCase(name: $0.name, isCausal: false) }
  /// Those that also run token by token.
  static let recurrent = causal.filter { (try? $0.make(length: 8)) is any RecurrentMixer }

  var description: String { "\(name)\(isCausal ? "" : " (bidirectional)")" }

  /// Forms that go through a Fourier transform, where "nothing changes" holds to rounding only.
  var usesFourier: Bool { ["s4", "s4d", "dlr", "selective_s4", "sgconv", "lmu"].contains(name) }

  /// Options under which every output depends on every input: a mixer that drops tokens is told to keep all.
  var seeingEverything: JSONObject { name == "selective_s4" ? ["ratio": 0] : [:] }

  /// Whether a parameter acts through a hard choice: its gradient is that of a soft one (straight through) by design, while differences
  /// of the function are zero. What it must be instead is tested with the mixer.
  func actsThroughAChoice(_ parameter: String) -> Bool { name == "selective_s4" && parameter.hasPrefix("selector.") }

  /// Options under which packed sequences are tried: the plain ones and those with parts of their own.
  var packedOptions: [JSONObject] {
    switch name {
    case "deltanet": [[:], ["convolution": 0], ["gated": true, "output_gate": true, "negative_eigenvalues": true]]
    case "gla", "retention", "scalar_gate", "linear": [[:], ["convolution": 0]].filter { $0.isEmpty || hasKey("convolution") }
    default: [[:]]
    }
  }

  private func hasKey(_ key: String) -> Bool { (try? MixerKind.named(name))?.keys.contains { $0.name == key } ?? false }

  /// Those whose state is a cache that grows with the context.
  var keepsEveryToken: Bool { ["softmax", "nprf"].contains(name) }

  /// Options under which a mixer has all the parameters that any of its forms trains slowly.
  var optionsOfSlowParameters: JSONObject { name == "sgconv" ? ["decay": "power"] : [:] }

  /// A mixer of 16 channels with small options and parameters away from their first values, so that biases and gates act.
  func make(
    width: Int = 16, length: Int, options: JSONObject = [:], dtype: DType = .float32, seed: UInt64 = 5
  ) throws -> any SequenceMixer {
    let kind = try MixerKind.named(name)
    var options = options
    func set(_ key: String, _ value: JSONValue) {
      if options[key] == nil, kind.keys.contains(where: { $0.name == key }) { options[key] = value }
    }
    set("state", 8)
    set("gate_rank", 4)
    set("gate_temperature", 2)
    set("convolution", 3)
    set("chunk", 16)
    if name == "mamba" {
      // At its usual first steps of some hundredths A matters so little that finite differences see rounding only.
      set("dt_min", 0.5)
      set("dt_max", 2)
    }
    if ["window", "lolcats"].contains(name) { set("window", 4) }
    // Not a divisor of the lengths tried; the outputs 8 to 12 that must see each other lie in one of diagonal attention's blocks.
    set("block", name == "diagonal_attention" ? 16 : 12)
    set("kernel_dim", 8)
    set("features", 6)
    let site = MixerSite(width: width, heads: 2, isCausal: isCausal, length: length)
    let generator = RandomGenerator(seed: seed)
    let mixer = try kind(site, options: .object(options), generator: generator)
    mixer.eval()
    withoutGradient {
      for (_, parameter) in mixer.parameters() {
        parameter.addInPlace(Tensor.randomNormal(parameter.shape, generator: generator) * 0.1)
      }
    }
    if dtype != .float32 { mixer.to(dtype) }
    return mixer
  }

  func recurrent(width: Int = 16, length: Int, dtype: DType = .float32) throws -> any RecurrentMixer {
    guard let mixer = try make(width: width, length: length, dtype: dtype) as? any RecurrentMixer else {
      throw ConfigurationError("\(name) isn't recurrent")
    }
    return mixer
  }
}

/// Standard normal values in float32 (converted), so that modules of both precisions see the same numbers.
func normal(_ shape: [Int], seed: UInt64 = 1, _ dtype: DType = .float32) -> Tensor {
  Tensor.randomNormal(shape, generator: RandomGenerator(seed: seed)).to(dtype)
}
