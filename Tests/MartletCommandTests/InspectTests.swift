import Foundation
import MartletCatalog
import Testing

@Suite struct InspectTests {
  @Test func aDecodersFacts() throws {
    try withTemporaryFolder { folder in
      let model = try TinyModel.make("llama-3", in: folder)
      let json = try CommandRun(["inspect", model, "--json", "--tensors"]).json
      let pretrained = try PretrainedModel.load(model)
      let count = pretrained.model.parameters().reduce(0) { $0 + $1.tensor.count }
      #expect(json["architecture"]?.stringValue == "llama")
      #expect(json["parameters"]?.intValue == count)
      #expect(json["parts"]?.arrayValue?.reduce(0) { $0 + ($1["parameters"]?.intValue ?? 0) } == count)
      #expect(json["files"]?.intValue == 5)  // four shards, and the expected outputs beside them
      // 2 layers × keys and values × 2 heads × 16 channels × 4 bytes.
      let position = 2 * 2 * 2 * 16 * 4
      #expect(json["state"]?["bytesPerToken"]?.intValue == position)
      let contexts = try #require(json["state"]?["contexts"]?.arrayValue)
      #expect(contexts.first?["length"]?.intValue == 1024 && contexts.last?["length"]?.intValue == 128 << 10)
      #expect(contexts.first?["full"]?.intValue == 1024 * position)
      #expect(contexts.first?["bfloat16"]?.intValue == 512 * position)
      let memory = try #require(json["memory"]?.arrayValue)
      #expect(memory.map { $0["weights"]?.stringValue } == ["float32", "bfloat16", "int8", "int4"])
      #expect(memory[0]["bytes"]?.intValue == 4 * count && memory[0]["fits"]?.boolValue == true)
      // What the quantised layers really take.
      for (form, bits) in [(memory[2], 8), (memory[3], 4)] {
        let copy = try PretrainedModel.load(model)
        try copy.model.quantizeLinears(WeightQuantization(bits: bits))
        let bytes = (copy.model.parameters() + copy.model.buffers()).reduce(0) { $0 + $1.tensor.byteCount }
        #expect(form["bytes"]?.intValue == bytes, "\(bits) bits")
      }
      #expect(json["tokenizer"]?["kind"]?.stringValue == "WordPiece")
      #expect(json["tokenizer"]?["chatTemplate"]?.boolValue == true)
      let names = json["tensors"]?.arrayValue?.compactMap { $0["name"]?.stringValue }
      #expect(Set(names ?? []) == Set(try Safetensors.load(model).keys))

      let text = try CommandRun(["inspect", model])
      #expect(text.status == 0 && text.errors.isEmpty)
      for part in ["llama", "WordPiece, 58 tokens", "128k", "int4", "feed-forward", Figure.grouped(count)] {
        #expect(text.output.contains(part), "“\(part)” is missing in: \(text.output)")
      }
    }
  }

  @Test func recurrentModelsHaveAConstantState() throws {
    let json = try CommandRun(["inspect", TinyModel.checkpoints + "/gla", "--json"]).json
    #expect(json["state"]?["isConstant"]?.boolValue == true)
    #expect(try #require(json["state"]?["contexts"]?.arrayValue?.first?["full"]?.intValue) > 0)
    #expect(json["tokenizer"] == .null)
  }

  @Test(arguments: ["minilm", "bert-classifier", "gpt2", "gemma3", "t5", "whisper", "vit"]) func everyKindOfModel(name: String) throws {
    let run = try CommandRun(["inspect", TinyModel.checkpoints + "/" + name, "--json"])
    #expect(run.status == 0, "\(run.errors)")
    let pretrained = try PretrainedModel.load(TinyModel.checkpoints + "/" + name)
    #expect(try run.json["parameters"]?.intValue == pretrained.model.parameters().reduce(0) { $0 + $1.tensor.count })
    #expect(try CommandRun(["inspect", TinyModel.checkpoints + "/" + name]).status == 0)
  }

  @Test func aFileOfTensors() throws {
    let json = try CommandRun(["inspect", TinyModel.checkpoints + "/gpt2/model.safetensors", "--json"]).json
    let tensors = try Safetensors.load(TinyModel.checkpoints + "/gpt2/model.safetensors")
    #expect(json["parameters"]?.intValue == tensors.values.reduce(0) { $0 + $1.count })
    #expect(json["architecture"] == nil)
  }

  @Test func whatIsNoModelIsRefused() throws {
    try withTemporaryFolder { folder in
      try CommandRun(["inspect", folder + "/absent"]).expectRefusal("absent")
      try CommandRun(["inspect", folder]).expectRefusal("config.json")
      let model = try TinyModel.make("llama-2", in: folder)
      let config = model + "/config.json"
      let text = try String(contentsOfFile: config, encoding: .utf8)
      _ = try TinyModel.write(text.replacing("\"llama\"", with: "\"lama\""), to: config)
      try CommandRun(["inspect", model]).expectRefusal("lama", "\"llama\"")
      _ = try TinyModel.write(text.replacing("\"hidden_size\": 32", with: "\"hidden_size\": 1000000000"), to: config)
      try CommandRun(["inspect", model]).expectRefusal("hidden_size")
      _ = try TinyModel.write(text, to: config)
      let weights = model + "/model.safetensors"
      try Data(contentsOf: URL(fileURLWithPath: weights)).dropLast(100).write(to: URL(fileURLWithPath: weights))
      try CommandRun(["inspect", model]).expectRefusal("model.safetensors", "cut off")
      try FileManager.default.moveItem(atPath: weights, toPath: model + "/pytorch_model.bin")
      try FileManager.default.removeItem(atPath: model + "/expected.safetensors")
      try CommandRun(["inspect", model]).expectRefusal("pytorch_model.bin", "safetensors")
    }
  }
}
