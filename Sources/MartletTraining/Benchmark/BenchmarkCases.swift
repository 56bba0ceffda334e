import Foundation
import Martlet
import MartletModels
import MartletNN
import MartletOptimizers

extension BenchmarkCase {
  /// Everything that `martlet bench` measures. Sizes and inputs are those of the peer's case of the same line.
  public static var all: [BenchmarkCase] {
    training + attention + linearTime + stateSpace + mixerOperators + mixerLayers + mixerSteps + generation + pretrained + tokenization
      + overhead
  }

  /// The cases whose name contains any of the texts; all when there is none. Heavy ones only when asked for.
  public static func selected(_ texts: [String] = [], heavy: Bool) -> [BenchmarkCase] {
    all.filter { benchmark in
      (heavy || !benchmark.isHeavy) && (texts.isEmpty || texts.contains { benchmark.name.localizedCaseInsensitiveContains($0) })
    }
  }

  // MARK: A training step of a GPT

  private struct GPTSize {
    var width: Int
    var layers: Int
    var heads: Int
    var batch: Int
    var length: Int
    var vocabulary = 256

    func configuration(mixer: MixerChoice = MixerChoice("softmax", options: ["rotary": false, "bias": true])) -> BackboneConfiguration {
      BackboneConfiguration(
        input: .tokens(vocabulary: vocabulary), width: width, layers: layers, heads: heads, mixers: [mixer], isCausal: true,
        positions: .learned, length: length)
    }

    /// Forward and backward: three products for each weight and token, and the half of the scores that causality leaves.
    var operations: Double {
      let tokens = Double(batch * length)
      let weights = Double(layers * 12 * width * width + vocabulary * width)
      return 6 * tokens * weights + Double(layers * batch) * attentionOperations(length: length, width: width)
    }
  }

  /// Causal attention forward and backward over all heads, `width` = heads · head width: 2 products forward, 5 backward
  /// (the scores are made again), half of each.
  private static func attentionOperations(length: Int, width: Int) -> Double {
    7 * Double(length) * Double(length) * Double(width)
  }

  private static var training: [BenchmarkCase] {
    let sizes = [
      ("gpt-tiny", GPTSize(width: 64, layers: 2, heads: 4, batch: 4, length: 64)),
      ("gpt-5m", GPTSize(width: 256, layers: 6, heads: 8, batch: 8, length: 512)),
    ]
    return sizes.map { name, size in
      BenchmarkCase(
        "\(name) training step", group: "Training step (forward, loss, backward, AdamW)",
        peers: [
          Peer("\(name) eager", "PyTorch eager"), Peer("\(name) eager, fused AdamW", "PyTorch eager, fused AdamW"),
          Peer("\(name) torch.compile", "torch.compile"),
        ], work: .operations(size.operations), isHeavy: name == "gpt-5m"
      ) {
        let generator = RandomGenerator(seed: 0)
        let model = try LanguageModel(size.configuration(), generator: generator)
        let optimizer = AdamW(
          [ParameterGroup("all", model.trainableParameters())], learningRate: 3e-4,
          .init(beta1: 0.9, beta2: 0.95, weightDecay: 0.1))
        let data = Tensor.randomIntegers(below: size.vocabulary, [size.batch, size.length + 1], generator: generator)
        let tokens = data[0..., ..<size.length].contiguous()
        let targets = data[0..., 1...].contiguous()
        return {
          crossEntropy(model(tokens), targets).backward()
          optimizer.step()
          optimizer.zeroGradients()
        }
      }
    }
  }

  // MARK: Operators forward and backward

  /// A call that runs `body` on the leaves and its gradients back from a fixed upstream one.
  private static func differentiated(_ leaves: [Tensor], upstream: Tensor, _ body: @escaping ([Tensor]) -> Tensor) -> () throws -> Void {
    let leaves = leaves.map { $0.tracked() }
    return { _ = gradient(of: body(leaves), with: leaves, seed: upstream) }
  }

  private static func name(_ length: Int) -> String { Figure.length(length) }

  private static var attention: [BenchmarkCase] {
    let sizes = [(4, 4, 64, 16), (1, 8, 1024, 64), (1, 8, 4096, 64), (1, 8, 16384, 64)]
    return sizes.map { batch, heads, length, d in
      let size = "B\(batch) H\(heads) L\(length) d\(d)"
      let plain = length <= 1024 ? [Peer("plain train causal \(size)", "PyTorch, scores written out")] : []
      return BenchmarkCase(
        "attention causal forward+backward \(size)", group: "Softmax attention",
        peers: [Peer("sdpa train causal \(size)", "PyTorch scaled_dot_product_attention")] + plain,
        work: .operations(Double(batch) * attentionOperations(length: length, width: heads * d)), isHeavy: length > 1024
      ) {
        let generator = RandomGenerator(seed: 0)
        let inputs = (0..<4).map { _ in Tensor.randomNormal([batch, heads, length, d], generator: generator) }
        return differentiated(Array(inputs[..<3]), upstream: inputs[3]) { softmaxAttention($0[0], $0[1], $0[2], causal: true) }
      }
    }
  }

  /// Queries, keys and values as a layer has them, [1, L, 4, 64] seen as [1, 4, L, 64], and the upstream gradient.
  private static func headed(_ length: Int, _ count: Int) -> [Tensor] {
    let generator = RandomGenerator(seed: 0)
    return (0..<count).map { _ in Tensor.randomNormal([1, length, 4, 64], generator: generator).swappedAxes(1, 2) }
  }

  private static var linearTime: [BenchmarkCase] {
    @Sendable func traffic(_ length: Int, _ tensors: Int) -> Work { .traffic(Double(tensors * length * 4 * 64 * 4)) }
    return [1024, 4096, 16384, 65536].flatMap { length in
      let suffix = "L\(length) forward+backward"
      let recurrence = length <= 1024 ? [Peer("gla recurrence \(suffix)", "PyTorch, token by token")] : []
      return [
        // q, k, v, g and the upstream gradient are read, o and four gradients written; backward reads q, k, v, g again.
        BenchmarkCase(
          "gla \(suffix) B1 H4 d64", group: "Linear-time attention",
          peers: [Peer("gla chunked \(suffix)", "PyTorch, chunked reference form")] + recurrence, work: traffic(length, 14),
          isHeavy: length > 1024
        ) {
          let x = headed(length, 5)
          let gate = (-x[3]).softplus() * (-1.0 / 16)  // logsigmoid(x)/16
          return differentiated([x[0], x[1], x[2], gate], upstream: x[4]) {
            gatedLinearAttention($0[0], $0[1], $0[2], logGate: $0[3]).output
          }
        },
        BenchmarkCase(
          "linear attention, unnormalised \(suffix) B1 H4 d64", group: "Linear-time attention",
          peers: [Peer("linear chunked \(suffix)", "PyTorch, chunked form")], work: traffic(length, 11), isHeavy: length > 1024
        ) {
          let x = headed(length, 4)
          return differentiated(Array(x[..<3]), upstream: x[3]) { gatedLinearAttention($0[0], $0[1], $0[2], logGate: nil).output }
        },
        BenchmarkCase(
          "linear attention, normalised \(suffix) B1 H4 d64", group: "Linear-time attention",
          peers: [Peer("normalised chunked \(suffix)", "PyTorch, chunked form")], work: traffic(length, 11), isHeavy: length > 1024
        ) {
          let x = headed(length, 4)
          return differentiated([x[0].elu() + 1.0, x[1].elu() + 1.0, x[2]], upstream: x[3]) {
            linearAttention($0[0], $0[1], $0[2], causal: true)
          }
        },
      ]
    }
  }

  // MARK: State spaces

  /// Steps, poles times step, and vectors of `channels` systems with 32 conjugate pairs.
  private static func systems(_ channels: Int, _ generator: RandomGenerator) -> (delta: Tensor, poles: Tensor, vectors: [Tensor]) {
    let pairs = 32
    let delta = (Tensor.random([channels, 1], generator: generator) * 4.6 - 6.9).exp()
    let frequencies = Tensor.arange(0, Double(pairs)) * Double.pi + Tensor.zeros([channels, pairs])
    let poles = Tensor.complex(delta * (Tensor.zeros([channels, pairs]) - 0.5), delta * frequencies)
    let vectors = (0..<3).map { _ in
      Tensor.complex(
        Tensor.randomNormal([channels, pairs], generator: generator) * 0.5.squareRoot(),
        Tensor.randomNormal([channels, pairs], generator: generator) * 0.5.squareRoot())
    }
    return (delta, poles, vectors)
  }

  private static var stateSpace: [BenchmarkCase] {
    let channels = 64
    return [1024, 4096, 16384, 65536].flatMap { length in
      // The peers keep several complex [channels, pairs, length] tensors for their way back: beyond 16k they don't fit.
      let hasPeer = length <= 16384
      func peers(_ kind: String) -> [Peer] {
        hasPeer ? [Peer("\(kind) D=\(channels) N=64 L=\(length) B=4", "PyTorch, the papers' form")] : []
      }
      @Sendable func inputs(_ generator: RandomGenerator) -> (u: Tensor, skip: Tensor, upstream: Tensor) {
        (
          Tensor.randomNormal([4, length, channels], generator: generator), Tensor.randomNormal([channels], generator: generator),
          Tensor.randomNormal([4, length, channels], generator: generator).swappedAxes(1, 2)
        )
      }
      return [
        BenchmarkCase(
          "s4d kernel and convolution, forward+backward D64 N64 L\(length) B4", group: "State spaces", peers: peers("s4d"),
          isHeavy: length > 1024
        ) {
          let generator = RandomGenerator(seed: 0)
          let (_, poles, v) = systems(channels, generator)
          let (u, skip, upstream) = inputs(generator)
          return differentiated([u, v[0], poles, skip], upstream: upstream) { x in
            let kernel = vandermondeKernel(coefficient: x[1] * v[1], logTransition: x[2], length: length)
            return longConvolution(x[0].swappedAxes(1, 2), kernel, skip: x[3])
          }
        },
        BenchmarkCase(
          "s4 kernel and convolution, forward+backward D64 N64 L\(length) B4", group: "State spaces", peers: peers("s4"),
          isHeavy: length > 1024
        ) {
          let generator = RandomGenerator(seed: 0)
          let (delta, poles, v) = systems(channels, generator)
          let (u, skip, upstream) = inputs(generator)
          let step = delta.to(.complex128)
          let angles = Tensor.arange(0, Double(length / 2 + 1), dtype: .float64) * (-2 * .pi / Double(length))
          let omega = Tensor.complex(angles.cos(), angles.sin())
          let (g, h) = (1.0 - omega, (omega + 1.0) * 0.5)
          return differentiated([u] + v + [poles, skip], upstream: upstream) { x in
            // In double precision, as DPLRKernel makes its kernel.
            let (c, b, p) = (x[1].to(.complex128), x[2].to(.complex128), x[3].to(.complex128))
            let conjugate = p.conjugated()
            let pairs = stacked([c * b, c * p, conjugate * b, conjugate * p], axis: 0) * step
            let r = cauchyKernel(numerators: pairs.resolvingConjugate(), poles: x[4].to(.complex128), nodesG: g, nodesH: h)
            let kernel = (r[0] - h * r[1] * r[2] / (h * r[3] + 1.0)).irfft(length: length).to(.float32)
            return longConvolution(x[0].swappedAxes(1, 2), kernel, skip: x[5])
          }
        },
      ]
    }
  }

  // MARK: One token at a time

  private static var generation: [BenchmarkCase] {
    let mixers = [
      ("softmax", MixerChoice("softmax", options: ["rotary": false, "bias": true])), ("gla", MixerChoice("gla")),
      ("s4d", MixerChoice("s4d")),
    ]
    return [256, 4096, 16384].flatMap { context in
      mixers.map { name, mixer in
        BenchmarkCase(
          "one token after \(context), \(name), width 256, 6 layers", group: "Generation, one sequence",
          peers: [
            Peer("gpt-5m token cached C\(context)", "PyTorch GPT with a cache"),
            Peer("gpt-5m token recomputed C\(context)", "PyTorch GPT without a cache"),
          ], isHeavy: context > 256
        ) {
          let generator = RandomGenerator(seed: 0)
          let size = GPTSize(width: 256, layers: 6, heads: 8, batch: 1, length: context + 1)
          let model = try LanguageModel(size.configuration(mixer: mixer), generator: generator)
          model.eval()
          var state = try withoutGradient { try model.initialState(batch: 1) }
          state.positions = [context]
          for i in state.layers.indices where state.layers[i] is KeyValueCache {
            // A cache as long as the context; the states of the others have one size for every length.
            let shape = [1, size.heads, context + 64, size.width / size.heads]
            state.layers[i] = KeyValueCache(
              keys: .randomNormal(shape, generator: generator), values: .randomNormal(shape, generator: generator), lengths: [context])
          }
          let token = Tensor.zeros([1, 1], dtype: .int64)
          return {
            // Every call continues from the same length.
            var next = state
            withoutGradient { _ = model.advance(token, &next) }
          }
        }
      }
    }
  }

  // MARK: Overhead

  private static var overhead: [BenchmarkCase] {
    [
      BenchmarkCase(
        "perceptron 32-64-10, batch 8, training step", group: "Overhead", peers: [Peer("perceptron step", "PyTorch eager")]
      ) {
        let generator = RandomGenerator(seed: 0)
        let layers = [Linear(32, 64, generator: generator), Linear(64, 10, generator: generator)]
        let parameters = layers.enumerated().flatMap { i, layer in layer.parameters().map { ("\(i).\($0.name)", $0.tensor) } }
        let optimizer = AdamW([ParameterGroup("all", parameters)], learningRate: 1e-3)
        let x = Tensor.randomNormal([8, 32], generator: generator)
        let targets = Tensor.arange(8)
        return {
          crossEntropy(layers[1](layers[0](x).gelu()), targets).backward()
          optimizer.step()
          optimizer.zeroGradients()
        }
      },
      BenchmarkCase(
        "200 dependent additions of 16 numbers, forward+backward", group: "Overhead",
        peers: [Peer("chain of 200 additions", "PyTorch eager")]
      ) {
        let x = Tensor.zeros([16]).tracked()
        let one = Tensor.ones([16])
        return {
          var y = x
          for _ in 0..<200 { y = y + one }
          _ = gradient(of: y.sum(), with: [x])
        }
      },
    ]
  }
}
