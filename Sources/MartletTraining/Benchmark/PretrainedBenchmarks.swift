import Martlet
import MartletModels
import MartletNN

extension BenchmarkCase {
  /// Pretrained models' shapes with random weights: a Llama of 109 million parameters and MiniLM.
  static var pretrained: [BenchmarkCase] { llama + miniLM }

  private static let llamaConfiguration: BackboneConfiguration = {
    var c = BackboneConfiguration(
      input: .tokens(vocabulary: 32000), width: 768, layers: 12, heads: 12, mixers: [MixerChoice("softmax")], feedForward: .swiglu,
      hidden: 2048, norm: .rms, isCausal: true, length: 4096)
    c.normEpsilon = 1e-6
    return c
  }()

  private static func llamaModel() throws -> LanguageModel {
    let model = try LanguageModel(llamaConfiguration, generator: RandomGenerator(seed: 0))
    model.eval()
    for (_, tensor) in model.parameters() { tensor.requiresGradient = false }
    return model
  }

  /// Weights that a token's products read: all but the embedding's rows, which are the output projection at the same time.
  private static let llamaWeights = Double(12 * (4 * 768 * 768 + 3 * 768 * 2048) + 32000 * 768)

  private static var llama: [BenchmarkCase] {
    let context = 512
    let cacheBytes = Double(12 * 2 * context * 768 * 4)
    return [
      BenchmarkCase(
        "llama-109m prefill, 512 tokens", group: "Pretrained models",
        peers: [Peer("llama-109m prefill L512", "transformers, PyTorch eager")],
        work: .operations(2 * (llamaWeights - 32000 * 768) * Double(context) + 2 * 32000 * 768 + 12 * 2 * 512 * 512 * 768),
        isHeavy: true
      ) {
        let model = try llamaModel()
        let tokens = Tensor.randomIntegers(below: 32000, [1, context], generator: RandomGenerator(seed: 1))
        return {
          try withoutGradient {
            var state = try model.initialState(batch: 1, cache: CacheOptions(capacity: context))
            _ = model.advance(tokens, &state).max().item()
          }
        }
      }
    ]
      + [("float32", 4.0), ("bfloat16", 2), ("int8", 1), ("int4", 0.5 + 2.0 / 64)].map { name, bytes in
        BenchmarkCase(
          "llama-109m one token after 512, \(name) weights", group: "Pretrained models",
          peers: [Peer("llama-109m decode C512", "transformers in float32, with its cache")],
          work: .traffic(llamaWeights * bytes + cacheBytes), isHeavy: true
        ) {
          let model = try llamaModel()
          switch name {
          case "bfloat16":
            for case let module in model.modules().map(\.module) {
              if let linear = module as? Linear { linear.to(.bfloat16) }
              if let embedding = module as? Embedding { embedding.to(.bfloat16) }
            }
          case "int8", "int4":
            // The output projection too, for which the embedding's matrix serves.
            model.head = Linear(weight: model.backbone.embedding!.weight)
            try model.quantizeLinears(WeightQuantization(bits: name == "int8" ? 8 : 4))
          default: break
          }
          var state = try withoutGradient {
            var state = try model.initialState(batch: 1, cache: CacheOptions(capacity: context + 64))
            _ = model.advance(Tensor.randomIntegers(below: 32000, [1, context], generator: RandomGenerator(seed: 1)), &state)
            return state
          }
          let token = Tensor.zeros([1, 1], dtype: .int64)
          return {
            withoutGradient {
              _ = model.advance(token, &state).max().item()
              _ = state.truncate(to: context)
            }
          }
        }
      }
  }

  /// Unequal lengths, 4 to 66 tokens, the same on the peer's side.
  private static func sentenceLengths(_ count: Int) -> [Int] {
    var state = 1
    return (0..<count).map { _ in
      state = (state * 1_103_515_245 + 12345) % (1 << 31)
      let u = Double(state) / Double(1 << 31)
      return 4 + Int(62 * u * u)
    }
  }

  private static var miniLM: [BenchmarkCase] {
    let lengths = sentenceLengths(1000)
    let tokens = Double(lengths.reduce(0, +))
    let squares = Double(lengths.reduce(0) { $0 + $1 * $1 })
    return [
      BenchmarkCase(
        "MiniLM, 1000 unequal sentences", group: "Pretrained models",
        peers: [
          Peer("minilm 1000 sentences", "transformers, padded batches of 32"),
          Peer("minilm 1000 sentences sorted", "transformers, batches of 32 sorted by length"),
        ], work: .operations(6 * (2 * tokens * Double(12 * 384 * 384) + 4 * squares * 384)), isHeavy: true
      ) {
        var c = BackboneConfiguration(
          input: .tokens(vocabulary: 30522), width: 384, layers: 6, heads: 12,
          mixers: [MixerChoice("softmax", options: ["rotary": false, "bias": true])], hidden: 1536, preNorm: false, isCausal: false,
          positions: .learned, length: 512)
        c.normEpsilon = 1e-12
        (c.embeddingNorm, c.tokenTypes) = (true, 2)
        let model = try SequenceBackbone(c, generator: RandomGenerator(seed: 0))
        model.eval()
        for (_, tensor) in model.parameters() { tensor.requiresGradient = false }
        let generator = RandomGenerator(seed: 1)
        let sentences = lengths.map { Tensor.randomIntegers(below: 30522, [1, $0], generator: generator) }
        return {
          withoutGradient {
            for batch in SequencePacking.batches(of: lengths, total: 2048) {
              let packing = SequencePacking(lengths: batch.map { lengths[$0] })
              let x = model(concatenated(batch.map { sentences[$0] }, axis: 1), packing: packing)
              let pooled = Pooling.mean(x, packing: packing)
              _ = (pooled / pooled.norm(axis: -1, keepDims: true)).sum().item()
            }
          }
        }
      }
    ]
  }
}
