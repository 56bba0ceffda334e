import Foundation
import Martlet
import MartletMixers
import MartletModels

/// Every mixer as a whole layer, projections included, beside its reference form and attention in PyTorch: how time and memory grow
/// with the length, and how the time of one more token grows with the context.
extension BenchmarkCase {
  /// Width and heads of the measured layers; the batch is one sequence.
  private static let layerSite = (width: 256, heads: 4)
  static let layerGroup = "Mixer layers"
  static let operatorGroup = "Mixer operators"
  static let stepGroup = "Mixer layers, one token"

  /// A layer's input and the gradient of its output, [1, length, width].
  private static func layerInputs(_ length: Int) -> (x: Tensor, upstream: Tensor) {
    let generator = RandomGenerator(seed: 0)
    return (
      Tensor.randomNormal([1, length, layerSite.width], generator: generator),
      Tensor.randomNormal([1, length, layerSite.width], generator: generator)
    )
  }

  private static func layer(_ kind: MixerKind, length: Int) throws -> any SequenceMixer {
    let site = MixerSite(
      width: layerSite.width, heads: layerSite.heads, isCausal: kind.directions.contains(.causal), length: length)
    return try kind(site, generator: RandomGenerator(seed: 0))
  }

  static var mixerLayers: [BenchmarkCase] {
    MixerKind.all.flatMap { kind in
      [1024, 4096, 16384, 65536].map { length in
        let size = "L\(Figure.length(length)) B1 D\(layerSite.width) H\(layerSite.heads)"
        let reference = Peer("\(kind.name) layer forward+backward \(size)", "PyTorch, reference form")
        // PyTorch's attention takes most of a minute at the greatest length: once is enough.
        let attention = Peer("attention layer forward+backward \(size)", "PyTorch scaled_dot_product_attention")
        return BenchmarkCase(
          "\(kind.name) layer forward+backward \(size)", group: layerGroup, point: .init(kind.name, length),
          peers: kind.name == "softmax" ? [reference, attention] : [reference],
          // Forward and, twice that, backward.
          work: (try? layer(kind, length: length)).map { .operations(6 * Double($0.multiplyAdds(length: length))) },
          isHeavy: length > 1024
        ) {
          let mixer = try layer(kind, length: length)
          let (x, upstream) = layerInputs(length)
          let leaves = [x.tracked()] + mixer.trainableParameters().map(\.tensor)
          return { _ = gradient(of: mixer(leaves[0]), with: leaves, seed: upstream) }
        }
      }
    }
  }

  // MARK: What a mixer does between its projections

  /// A layer's time is mostly dense products, which PyTorch has as well; here is what the family's kernels do.
  static var mixerOperators: [BenchmarkCase] {
    let mixers = [
      "aaren", "linear", "norm_attention", "nprf", "rala", "slab", "lolcats", "gla", "scalar_gate", "deltanet", "atlas", "mamba", "sgconv",
      "lmu",
    ]
    return mixers.flatMap { mixer in
      [1024, 4096, 16384, 65536].map { length in
        let size = "L\(Figure.length(length)) B1 D\(layerSite.width) H\(layerSite.heads)"
        let name = "\(mixer) operator forward+backward \(size)"
        let published = Peer("\(mixer) published operator forward+backward \(size)", "PyTorch, the authors' quadratic form")
        // What an L × L matrix of every head allows in time and memory.
        let hasPublished = ["norm_attention", "lolcats"].contains(mixer) && length <= 4096
        return BenchmarkCase(
          name, group: operatorGroup, point: .init(mixer, length),
          peers: [Peer(name, "PyTorch, reference form")] + (hasPublished ? [published] : []),
          isHeavy: length > 1024
        ) {
          let generator = RandomGenerator(seed: 0)
          let one = operatorCase(mixer, length, generator)
          let leaves = one.inputs.map { $0.tracked() }
          let upstream = withoutGradient { Tensor.randomNormal(one.run(leaves).shape, generator: generator) }
          return { _ = gradient(of: one.run(leaves), with: leaves, seed: upstream) }
        }
      }
    }
  }

  /// Inputs, each of which is differentiated, and the call.
  private static func operatorCase(
    _ mixer: String, _ length: Int, _ generator: RandomGenerator
  ) -> (inputs: [Tensor], run: ([Tensor]) -> Tensor) {
    let (width, heads) = layerSite
    func normal(_ shape: [Int]) -> Tensor { Tensor.randomNormal(shape, generator: generator) }
    func uniform(_ shape: [Int]) -> Tensor { Tensor.random(shape, generator: generator) }
    /// As a layer has it: [1, L, H, d] seen as [1, H, L, d].
    func headed(_ d: Int? = nil) -> Tensor { normal([1, length, heads, d ?? width / heads]).swappedAxes(1, 2) }
    func unit(_ x: Tensor) -> Tensor { x / x.norm(axis: -1, keepDims: true) }
    func gate(_ x: Tensor) -> Tensor { x.logSigmoid() * (1.0 / 16) }
    let grid = TokenGrid(length: length, columns: TokenGrid.columns(forLength: length))
    switch mixer {
    case "aaren":
      return ([normal([1, heads, length]), headed()], { prefixAttention($0[0], $0[1]).output })
    case "linear":
      return ([headed().elu() + 1.0, headed().elu() + 1.0, headed()], { linearAttention($0[0], $0[1], $0[2], causal: true) })
    case "norm_attention":
      return ([headed(), headed(), headed()], { gatedLinearAttention($0[0], $0[1], $0[2], logGate: nil, scale: 1).output })
    case "nprf":
      let bias = (normal([heads, length]) * 0.1).exp()
      return (
        [headed(16).exp(), headed(16).exp(), headed(), bias],
        { x in
          let (top, bottom) = toeplitzAttention(x[0], x[1], x[2], past: x[3])
          return top / bottom.reshaped([1, heads, length, 1])
        }
      )
    case "rala":
      let rotation = RoPE2D(headWidth: width / heads)
      return (
        (0..<3).map { _ in normal([1, length, width]) },
        { tokenLinearAttention($0[0], $0[1], $0[2], heads: heads, feature: .elu, rotation: rotation, grid: grid, reweighted: true) }
      )
    case "slab":
      return (
        (0..<3).map { _ in normal([1, length, width]) },
        { tokenLinearAttention($0[0], $0[1], $0[2], heads: heads, feature: .relu, grid: grid, reweighted: false) }
      )
    case "lolcats":
      return (
        [headed(), headed(), headed(), headed().softmax(axis: -1), headed().softmax(axis: -1), Tensor.ones([heads]) * 0.1],
        { windowedLinearAttention($0[0], $0[1], $0[2], queryFeatures: $0[3], keyFeatures: $0[4], windowFactor: $0[5], window: 64) }
      )
    case "gla":
      return ([headed(), headed(), headed(), gate(headed())], { gatedLinearAttention($0[0], $0[1], $0[2], logGate: $0[3]).output })
    case "scalar_gate":
      return (
        [headed(), headed(), headed(), gate(normal([1, heads, length]))],
        { gatedLinearAttention($0[0], $0[1], $0[2], logGate: $0[3]).output }
      )
    case "deltanet":
      return (
        [unit(headed()), unit(headed()), headed(), uniform([1, heads, length])], { deltaRule($0[0], $0[1], $0[2], rate: $0[3]).output }
      )
    case "atlas":
      let (features, window, rule) = (91, 4, OmegaRule(chunk: 8))
      let memory = Tensor.zeros([1, heads, features, width / heads])
      return (
        [
          unit(headed(features)), unit(headed(features)), headed(), gate(normal([1, heads, length])),
          uniform([1, heads, length]) * (1.0 / 16), uniform([1, heads, length, window]),
        ],
        { x in
          var state = OmegaState(weights: [memory], rule: rule, window: window, features: features, valueWidth: width / heads)
          let gates = OmegaGates(retention: x[3].exp(), rate: x[4], window: x[5])
          return omegaRule(x[0], x[1], x[2], gates, rule: rule, state: &state)
        }
      )
    case "mamba":
      let channels = 2 * width
      return (
        [
          normal([1, length, channels]), normal([1, length, channels]) - 4.0, uniform([channels, 16]) * -16.0, normal([1, length, 16]),
          normal([1, length, 16]),
        ],
        { selectiveScan($0[0], delta: $0[1], A: $0[2], B: $0[3], C: $0[4]).output }
      )
    case "lmu":
      let (a, b) = HiPPO.legT(width, window: Double(length))
      let held = zeroOrderHold(a, b)
      let signal = normal([1, length])
      let memory = LegendreMemory(A: held.A, B: held.B)
      return ([signal], { memory($0[0]) })
    default:
      precondition(mixer == "sgconv")
      return (
        [normal([1, length, width]).swappedAxes(1, 2), normal([width, length]) * (1 / Double(length))], { longConvolution($0[0], $0[1]) }
      )
    }
  }

  /// One token after a context, by layers that run token by token.
  static var mixerSteps: [BenchmarkCase] {
    MixerKind.all.filter { $0.directions.contains(.causal) }.flatMap { kind in
      (try? kind(MixerSite(width: 16, heads: 2, isCausal: true, length: 16), generator: RandomGenerator(seed: 0))) is any RecurrentMixer
        ? [1024, 16384, 131_072, 1_048_576].filter { $0 < 1_048_576 || !remembersEveryToken(kind) }.map { stepCase(kind, context: $0) } : []
    }
  }

  /// Mixers without a state of bounded size, but for attention, which is compared with at every length.
  private static func remembersEveryToken(_ kind: MixerKind) -> Bool { [MixerKind.sgconv.name, MixerKind.nprf.name].contains(kind.name) }

  private static func stepCase(_ kind: MixerKind, context: Int) -> BenchmarkCase {
    let name = "\(kind.name) layer, one token after \(Figure.length(context)), D\(layerSite.width) H\(layerSite.heads)"
    var step = BenchmarkCase(
      name, group: stepGroup, point: .init(kind.name, context),
      peers: kind.name != "softmax"
        ? []
        : [
          Peer(
            "attention layer, one token after \(Figure.length(context)) D\(layerSite.width) H\(layerSite.heads)",
            "PyTorch attention with a cache")
        ],
      isHeavy: context > 1024
    ) { {} }
    step.prepare = {
      guard let mixer = try layer(kind, length: context) as? any RecurrentMixer else { fatalError("\(kind.name) isn't recurrent") }
      mixer.eval()
      let generator = RandomGenerator(seed: 0)
      let state: any MixerState = withoutGradient { () -> any MixerState in
        if kind.name == "softmax" {
          let shape = [1, layerSite.heads, context + 64, layerSite.width / layerSite.heads]
          return KeyValueCache(
            keys: .randomNormal(shape, generator: generator), values: .randomNormal(shape, generator: generator), lengths: [context])
        }
        // The same of other mixers that keep the whole context, which to read in pieces would take the square of its length.
        if kind.name == MixerKind.nprf.name {
          let heads = [1, layerSite.heads, context]
          var state: any MixerState = NormalizedKernelAttention.State(
            keys: .randomNormal(heads + [16], generator: generator),
            values: .randomNormal(heads + [layerSite.width / layerSite.heads], generator: generator))
          // Makes room for further tokens.
          _ = mixer.stepAny(.randomNormal([1, layerSite.width], generator: generator), &state)
          return state
        }
        if var state = mixer.initialAnyState(batch: 1) as? SGConv.State {
          state.ring = .randomNormal(state.ring.shape, generator: generator)
          return state
        }
        // A context of random tokens, read in pieces: the state holds what so long a context leaves in it.
        var state = mixer.initialAnyState(batch: 1)
        for start in stride(from: 0, to: context, by: 4096) {
          let piece = Tensor.randomNormal([1, min(4096, context - start), layerSite.width], generator: generator)
          _ = mixer.advanceAny(piece, &state)
        }
        return state
      }
      let token = Tensor.randomNormal([1, layerSite.width], generator: generator)
      return .init(stateBytes: mixer.anyStateBytes(state)) {
        // Every call continues from the same length.
        var next = state
        withoutGradient { _ = mixer.stepAny(token, &next) }
      }
    }
    return step
  }
}
