import Foundation
import MartletModels
import Testing

/// Language models against what `transformers` (for the linear ones, an independent model of ours in PyTorch) computes.
@Suite struct PretrainedDecoderTests {
  static let tolerance = 1e-4

  @Test(arguments: PretrainedFixture.decoders) func logitsAreTheReferences(name: String) throws {
    let model = try #require(try PretrainedModel.load(PretrainedFixture.folder(name)).languageModel)
    let expected = try PretrainedFixture.expected(name)
    let difference = withoutGradient { relativeDifference(model(expected["input_ids"]!), expected["logits"]!) }
    print("\(name): relative error \(difference)")
    #expect(difference < Self.tolerance)
    if let short = expected["short_input_ids"] {
      let difference = withoutGradient { relativeDifference(model(short), expected["short_logits"]!) }
      #expect(difference < Self.tolerance, "the shorter input")
    }
  }

  @Test(arguments: PretrainedFixture.decoders) func greedyContinuationsAreTheReferences(name: String) throws {
    let model = try #require(try PretrainedModel.load(PretrainedFixture.folder(name)).languageModel)
    let expected = try PretrainedFixture.expected(name)
    let prompt = expected["prompt"]!
    let greedy = expected["greedy"]!.toArray(Int.self)
    #expect(greedy.count == 64)
    try withoutGradient {
      // Token by token, after the prompt at once.
      var state = try model.initialState(batch: 1)
      var tokens = prompt
      var chosen: [Int] = []
      for _ in greedy {
        chosen.append(model.advance(tokens, &state).argmax(axis: -1).itemInt())
        tokens = Tensor([chosen.last!], [1, 1])
      }
      #expect(chosen == greedy)
      // In parallel over the whole sequence; dynamic frequencies are others for every length, and the reference's cache keeps the old ones.
      guard name != "llama-dynamic" else { return }
      let whole = concatenated([prompt, Tensor(Array(greedy.dropLast()), [1, greedy.count - 1])], axis: 1)
      let parallel = model(whole)[0, (prompt.dim(1) - 1)...].argmax(axis: -1).toArray(Int.self)
      #expect(parallel == greedy)
    }
  }

  /// Files of before transformers 5 spell rotary positions with `rope_theta` and `rope_scaling`.
  @Test(arguments: ["llama-3", "llama-linear", "llama-yarn", "llama-dynamic", "gemma3", "phi3", "phi3-longrope", "gpt-neox", "qwen3"])
  func olderSpellingsOfRotaryPositionsMeanTheSame(name: String) throws {
    let expected = try PretrainedFixture.expected(name)
    func older(_ json: inout JSONObject) {
      let parameters = json["rope_parameters"]!
      json["rope_parameters"] = nil
      let global = parameters["full_attention"] ?? parameters
      json["rope_theta"] = global["rope_theta"]!
      if let local = parameters["sliding_attention"] { json["rope_local_base_freq"] = local["rope_theta"]! }
      if let share = global["partial_rotary_factor"] {
        json[name.hasPrefix("gpt-neox") ? "rotary_pct" : "partial_rotary_factor"] = share
      }
      var scaling = global.objectValue!
      for key in ["rope_theta", "partial_rotary_factor"] { scaling[key] = nil }
      // Older still: "type", and "su" for LongRoPE.
      if let type = scaling["rope_type"], name != "llama-3" {
        scaling["rope_type"] = nil
        scaling["type"] = type == "longrope" ? "su" : type
      }
      json["rope_scaling"] = global["rope_type"] == "default" ? .null : .object(scaling)
    }
    try withChangedCheckpoint(name, configuration: older) { folder in
      let model = try #require(try PretrainedModel.load(folder).languageModel)
      let difference = withoutGradient { relativeDifference(model(expected["input_ids"]!), expected["logits"]!) }
      #expect(difference < Self.tolerance)
    }
  }

  /// Configurations that leave the kinds of layers to the family's rule.
  @Test(arguments: ["qwen2", "gemma2"]) func layerKindsFollowTheFamily(name: String) throws {
    let expected = try PretrainedFixture.expected(name)
    try withChangedCheckpoint(name, configuration: { $0["layer_types"] = nil }) { folder in
      let model = try #require(try PretrainedModel.load(folder).languageModel)
      let difference = withoutGradient { relativeDifference(model(expected["input_ids"]!), expected["logits"]!) }
      #expect(difference < Self.tolerance)
    }
  }

  @Test(arguments: ["gpt2", "llama-2", "opt"]) func theBaseModelsNamesMayLackTheirPrefix(name: String) throws {
    let expected = try PretrainedFixture.expected(name)
    func bare(_ tensors: inout [String: Tensor]) {
      tensors = Dictionary(
        uniqueKeysWithValues: tensors.map { key, value in
          var key = key
          for prefix in ["transformer.", "model."] where key.hasPrefix(prefix) { key.removeFirst(prefix.count) }
          return (key, value)
        })
      // What old GPT-2 files hold besides.
      if name == "gpt2" { tensors["h.0.attn.bias"] = Tensor.ones([1, 1, 4, 4]) }
    }
    try withChangedCheckpoint(name, tensors: bare) { folder in
      let model = try #require(try PretrainedModel.load(folder).languageModel)
      let difference = withoutGradient { relativeDifference(model(expected["input_ids"]!), expected["logits"]!) }
      #expect(difference < Self.tolerance)
    }
  }

  @Test func parametersAreTheMappedTensorsThemselves() throws {
    // A float read through the model lies in the file's pages: the tensor keeps the file's dtype and is contiguous, and rows of a
    // fused projection share one storage.
    let model = try #require(try PretrainedModel.load(PretrainedFixture.folder("phi3")).languageModel)
    let attention = try #require(model.backbone.blocks[0].mixer as? SoftmaxAttention)
    func address(_ layer: any LinearLayer) -> Int { layer.denseWeight().withUnsafeBytes { Int(bitPattern: $0.baseAddress!) } }
    let queryBytes = attention.query.denseWeight().byteCount
    #expect(address(attention.key) == address(attention.query) + queryBytes)
    #expect(!model.parameters().contains { $0.tensor.requiresGradient })
    #expect(!model.isTraining)
  }

  @Test func tensorsAreConvertedOnRequest() throws {
    let folder = PretrainedFixture.folder("llama-2")
    let model = try #require(try PretrainedModel.load(folder, dtype: .bfloat16).languageModel)
    // Matrices in 16 bits, vectors in float32: half a matrix is what a step reads.
    #expect(model.parameters().allSatisfy { $0.tensor.dtype == ($0.tensor.rank == 2 ? .bfloat16 : .float32) })
    let expected = try PretrainedFixture.expected("llama-2")
    let difference = withoutGradient { relativeDifference(model(expected["input_ids"]!).to(.float32), expected["logits"]!) }
    #expect(difference < 0.1)
  }

  @Test func progressCountsEveryTensor() throws {
    var seen: [LoadProgress] = []
    _ = try PretrainedModel.load(PretrainedFixture.folder("llama-3")) { seen.append($0) }
    #expect(seen.map(\.tensors) == Array(1...seen.count))
    #expect(seen.last?.tensors == seen.last?.allTensors && seen.last?.bytes == seen.last?.allBytes)
  }

  @Test func generationTokensAreRead() throws {
    let configuration = try PretrainedConfiguration(directory: PretrainedFixture.folder("llama-2"))
    #expect(configuration.endTokens == [2] && configuration.beginToken == 1 && configuration.padToken == 0)
    #expect(configuration.modelType == "llama" && configuration.contextLength == 128)
  }

  @Test func anUntrainedModelHasTheSameParameters() throws {
    let configuration = try PretrainedConfiguration(directory: PretrainedFixture.folder("qwen3"))
    let fresh = try PretrainedModel.untrained(configuration, generator: generator())
    let read = try PretrainedModel.load(PretrainedFixture.folder("qwen3"))
    #expect(fresh.model.parameters().map(\.name) == read.model.parameters().map(\.name))
    #expect(fresh.model.parameters().map(\.tensor.shape) == read.model.parameters().map(\.tensor.shape))
  }
}
