import Foundation
import MartletModels
import Testing

@Suite struct VisionTransformerTests {
  @Test(arguments: ["vit", "vit-features", "deit"]) func outputsAreThoseOfTransformers(_ name: String) throws {
    let (pretrained, expected) = try ShapeFixtures.checkpoint(name)
    let model = try #require(pretrained.visionTransformer)
    try withoutGradient {
      let pixels = try #require(expected["pixel_values"])
      let hidden = model.hiddenStates(pixels)
      let (own, distilled) = model.classScores(hidden)
      let prefix = name == "deit" ? 2 : 1
      #expect(hidden.prefix == prefix && hidden.tokens.shape == [2, prefix + 9, 32] && hidden.patches.shape == [2, 9, 32])
      let found: [String: Tensor?] = [
        "last_hidden_state": hidden.tokens, "pooler_output": model.pooled(hidden), "logits": model(pixels), "cls_logits": own,
        "distillation_logits": distilled,
      ]
      var compared = 0
      for (key, tensor) in found {
        guard let wanted = expected[key] else { continue }
        let error = relativeDifference(try #require(tensor), wanted)
        #expect(error < 1e-4, "\(key) differs by \(error)")
        compared += 1
      }
      #expect(compared == ["vit": 1, "vit-features": 2, "deit": 3][name])
    }
  }

  @Test(arguments: ["vit", "deit"]) func positionsAreInterpolatedToOtherSizes(_ name: String) throws {
    let model = try #require(try ShapeFixtures.checkpoint(name).pretrained.visionTransformer)
    try withoutGradient {
      for size in ["32.40", "24.26", "11.83"] {
        let pixels = try ShapeFixtures.frontEnd("interpolated.\(name).\(size).pixels")
        let error = relativeDifference(
          model(pixels, interpolating: true), try ShapeFixtures.frontEnd("interpolated.\(name).\(size).logits"))
        #expect(error < 1e-4, "\(size): \(error)")
      }
    }
  }

  @Test func imagesOfTheWrongSizeAreRefused() throws {
    let model = try #require(try ShapeFixtures.checkpoint("vit").pretrained.visionTransformer)
    func message(_ shape: [Int], interpolating: Bool = false) -> String {
      do {
        _ = try withTorchErrors { model(Tensor.zeros(shape), interpolating: interpolating) }
        return "accepted"
      } catch { return "\(error)" }
    }
    #expect(message([1, 3, 24, 32]).contains("24×24 pixels, got 24×32"))
    #expect(message([1, 1, 24, 24]).contains("[batch, 3, height, width]"))
    #expect(message([3, 24, 24]).contains("[batch, 3, height, width]"))
    #expect(message([1, 3, 7, 24], interpolating: true).contains("smaller than a patch"))
    #expect(message([1, 3, 24, 24]) == "accepted")
  }

  @Test func halfTheBitsGiveNearlyTheSame() throws {
    let (pretrained, expected) = try ShapeFixtures.checkpoint("deit")
    let half = try #require(try PretrainedModel.load(PretrainedFixture.folder("deit"), dtype: .bfloat16).visionTransformer)
    let whole = try #require(pretrained.visionTransformer)
    let pixels = try #require(expected["pixel_values"])
    withoutGradient {
      let wanted = whole(pixels)
      let found = half(pixels)
      #expect(found.dtype == .bfloat16 && half(Tensor.zeros([1, 3, 32, 40]), interpolating: true).allFinite)
      let error = relativeDifference(found.to(.float32), wanted)
      #expect(error < 0.1, "differs by \(error)")
    }
  }

  @Test func everyParameterGetsAGradient() throws {
    let model = try #require(try ShapeFixtures.checkpoint("deit").pretrained.visionTransformer)
    model.unfreeze()
    model(Tensor.randomNormal([2, 3, 24, 24], generator: generator())).square().mean().backward()
    for (name, parameter) in model.parameters() {
      let gradient = try #require(parameter.gradient, "\(name) has no gradient")
      // Keys' biases move all scores of a query alike.
      #expect(gradient.allFinite && (name.hasSuffix("key.bias") || gradient.abs().max().item() > 0), "\(name)")
    }
  }

  @Test func whatMakesNoModelIsRefusedByName() throws {
    #expect(ShapeFixtures.loading("vit", ["image_size": 0]).contains("\"image_size\""))
    #expect(ShapeFixtures.loading("vit", ["image_size": [24, 24, 3]]).contains("\"image_size\""))
    #expect(ShapeFixtures.loading("vit", ["image_size": [24, 24]]) == "loaded")
    #expect(ShapeFixtures.loading("vit", ["image_size": 32]).contains("position_embeddings"))
    #expect(ShapeFixtures.loading("vit", ["image_size": 65536, "patch_size": 1]).contains("too many tokens"))
    #expect(ShapeFixtures.loading("vit", ["image_size": 65536, "patch_size": 64]).contains("describes a model of at least"))
    #expect(ShapeFixtures.loading("vit", ["patch_size": [8, 4]]).contains("square patches"))
    #expect(ShapeFixtures.loading("vit", ["patch_size": 48]).contains("at least a patch"))
    #expect(ShapeFixtures.loading("vit", ["num_channels": 1]).contains("patch_embeddings.projection.weight"))
    #expect(ShapeFixtures.loading("vit", ["hidden_size": 1_000_000_000]).contains("\"hidden_size\""))
    #expect(ShapeFixtures.loading("vit", ["num_attention_heads": 5]).contains("not a multiple"))
    #expect(ShapeFixtures.loading("vit", ["architectures": ["ViTForMaskedImageModeling"]]).contains("ViTForMaskedImageModeling"))
  }
}
