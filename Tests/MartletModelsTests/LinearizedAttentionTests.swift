import Foundation
import MartletModels
import Testing

/// A linearised model is written and read again, whatever the family.
@Suite struct LinearizedAttentionTests {
  static let families = ["llama-3", "mistral", "qwen2", "qwen3", "phi3", "gpt2", "gpt-neox", "opt"]

  /// A checkpoint, linearised with maps that have learnt something.
  private func linearized(_ name: String, _ options: WindowedLinearAttention.Options, layers: [Int]? = nil) throws -> PretrainedModel {
    let pretrained = try PretrainedModel.load(PretrainedFixture.folder(name))
    let model = try #require(pretrained.languageModel)
    let generator = RandomGenerator(seed: 1)
    let layers = layers ?? Array(model.backbone.blocks.indices)
    try model.linearize(layers: layers, options, generator: generator)
    withoutGradient {
      for (name, tensor) in model.parameters() where name.contains("_map.") || name.hasSuffix("window_factor") {
        tensor.addInPlace(Tensor.randomNormal(tensor.shape, generator: generator) * 0.3)
      }
    }
    var json = pretrained.configuration.json
    json[LinearizedAttention.key] = LinearizedAttention(layers: layers, options: options).json
    return try pretrained.described(by: json)
  }

  @Test(arguments: families) func savedModelsGiveTheSameLogits(_ name: String) throws {
    for options in [
      WindowedLinearAttention.Options(window: 3, features: 5),
      .init(window: 2, layout: .blocks, featureMap: .rectified, affine: true),
    ] {
      try withTemporaryFolder { folder in
        let before = try linearized(name, options)
        let tokens = Tensor([1, 5, 2, 9, 7, 3, 4, 8, 6, 10, 11, 12], [1, 12])
        let expected = withoutGradient { before.languageModel!(tokens) }
        let plain = withoutGradient { try! PretrainedModel.load(PretrainedFixture.folder(name)).languageModel!(tokens) }
        #expect(relativeDifference(expected, plain) > 1e-5, "\(name): linearising must change the logits")
        try before.save(to: folder + "/out")
        let after = try PretrainedModel.load(folder + "/out")
        let model = try #require(after.languageModel)
        #expect(relativeDifference(withoutGradient { model(tokens) }, expected) == 0, "\(name)")
        #expect(after.configuration.blueprint.backbone.mixer(layer: 0).name == "lolcats")
        let names = Set(try Safetensors.load(folder + "/out").keys)
        #expect(names.contains { $0.hasSuffix(".feature_map_q.weight") } && names.contains { $0.hasSuffix(".window_factors") })
        #expect(names.contains { $0.hasSuffix(".feature_map_k.bias") } == (options.featureMap == .rectified))
        #expect(names.isSuperset(of: try Safetensors.load(PretrainedFixture.folder(name)).keys.filter { $0 != "lm_head.weight" }))
        // Token by token, in constant memory.
        var state = try model.initialState(batch: 1)
        let bytes = model.backbone.stateBytes(state)
        let last = withoutGradient { () -> Tensor in
          var logits = Tensor.zeros([1])
          for t in 0..<12 { logits = model.advance(tokens[.all, t..<(t + 1)], &state) }
          return logits
        }
        #expect(relativeDifference(last, expected[.all, 11]) <= 1e-5)
        #expect(model.backbone.stateBytes(state) == bytes)
      }
    }
  }

  @Test func someLayersMayKeepTheirAttention() throws {
    try withTemporaryFolder { folder in
      let before = try linearized("llama-3", .init(window: 3), layers: [1])
      try before.save(to: folder + "/out")
      let after = try PretrainedModel.load(folder + "/out")
      let mixers = try #require(after.languageModel).backbone.blocks.map(\.mixer)
      #expect(mixers[0] is SoftmaxAttention && mixers[1] is WindowedLinearAttention)
      // Written and read again, the file is the same.
      try after.save(to: folder + "/again")
      let (first, second) = (try Safetensors.load(folder + "/out"), try Safetensors.load(folder + "/again"))
      #expect(first.keys.sorted() == second.keys.sorted())
      for (key, tensor) in first { #expect(tensor.toArray(Float.self) == second[key]!.toArray(Float.self), "\(key)") }
    }
  }

  @Test func windowsNarrowerThanTheNewOneAreLeftAlone() throws {
    let model = try #require(try PretrainedModel.load(PretrainedFixture.folder("gemma3")).languageModel)
    let windows = model.backbone.blocks.map { ($0.mixer as! SoftmaxAttention).configuration.window }
    let widest = try #require(windows.compactMap { $0 }.max())
    #expect(model.linearizableLayers(window: widest + 1) == windows.indices.filter { windows[$0] == nil })
    #expect(model.linearizableLayers(window: widest) == Array(windows.indices))
  }

  @Test func aWrongSectionIsRefusedByName() throws {
    func message(_ section: JSONValue, _ name: String = "llama-3") throws -> String {
      var text = "accepted"
      try withChangedCheckpoint(name, configuration: { $0[LinearizedAttention.key] = section }) { folder in
        do { _ = try PretrainedModel.load(folder) } catch { text = "\(error)" }
      }
      return text
    }
    let good: JSONObject = ["method": "lolcats", "layers": [0], "window": 4]
    func changed(_ key: String, _ value: JSONValue) -> JSONValue {
      var object = good
      object[key] = value
      return .object(object)
    }
    #expect(try message(.object(good)).contains("feature_map_q.weight"), "the tensors are missing")
    #expect(try message(changed("method", "lolcat")).contains("\"lolcats\""))
    #expect(try message(changed("layers", [7])).contains("\"layers\""))
    #expect(try message(changed("layers", [0, 0])).contains("\"layers\""))
    #expect(try message(changed("window", 0)).contains("\"window\""))
    #expect(try message(changed("layout", "round")).contains("sliding, blocks"))
    #expect(try message(changed("windw", 3)).contains("Did you mean \"window\""))
    #expect(try message("yes").contains("must be an object"))
    #expect(try message(.object(good), "bert").contains("decoders"))
    #expect(try message(.object(good), "gemma2").contains("softcap"))
  }
}
