import Martlet
import MartletModels

/// Every mixer as a whole layer, projections included, beside its reference form and attention in PyTorch: how time and memory grow
/// with the length, and how the time of one more token grows with the context.
extension BenchmarkCase {
  /// Width and heads of the measured layers; the batch is one sequence.
  private static let layerSite = (width: 256, heads: 4)
  static let layerGroup = "Mixer layers"
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

  /// One token after a context, by layers that run token by token.
  static var mixerSteps: [BenchmarkCase] {
    MixerKind.all.filter { $0.directions.contains(.causal) }.flatMap { kind in
      (try? kind(MixerSite(width: 16, heads: 2, isCausal: true, length: 16), generator: RandomGenerator(seed: 0))) is any RecurrentMixer
        ? [1024, 16384, 131_072, 1_048_576].map { stepCase(kind, context: $0) } : []
    }
  }

  private static func stepCase(_ kind: MixerKind, context: Int) -> BenchmarkCase {
    let name = "\(kind.name) layer, one token after \(Figure.length(context)), D\(layerSite.width) H\(layerSite.heads)"
    return BenchmarkCase(
      name, group: stepGroup, point: .init(kind.name, context),
      peers: kind.name != "softmax"
        ? []
        : [
          Peer(
            "attention layer, one token after \(Figure.length(context)) D\(layerSite.width) H\(layerSite.heads)",
            "PyTorch attention with a cache")
        ],
      isHeavy: context > 1024
    ) {
      guard let mixer = try layer(kind, length: context) as? any RecurrentMixer else { fatalError("\(kind.name) isn't recurrent") }
      mixer.eval()
      let generator = RandomGenerator(seed: 0)
      let state = withoutGradient {
        if kind.name == "softmax" {
          let shape = [1, layerSite.heads, context + 64, layerSite.width / layerSite.heads]
          return KeyValueCache(
            keys: .randomNormal(shape, generator: generator), values: .randomNormal(shape, generator: generator), lengths: [context])
            as any MixerState
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
      return {
        // Every call continues from the same length.
        var next = state
        withoutGradient { _ = mixer.stepAny(token, &next) }
      }
    }
  }
}
