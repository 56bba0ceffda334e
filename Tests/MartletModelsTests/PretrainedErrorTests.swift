import Foundation
import MartletModels
import Testing

/// What is wrong with a checkpoint is said by file, key and tensor; nothing crashes or takes memory for it.
@Suite struct PretrainedErrorTests {
  private func message(_ folder: String) -> String {
    do {
      _ = try PretrainedModel.load(folder)
      return "no error"
    } catch { return "\(error)" }
  }

  @Test(arguments: [
    ("hidden_size", JSONValue.integer(0)), ("hidden_size", .integer(1_000_000_000)), ("hidden_size", "32"),
    ("num_hidden_layers", .integer(-1)), ("num_hidden_layers", .integer(1_000_000_000)), ("num_attention_heads", .integer(0)),
    ("num_key_value_heads", .integer(3)), ("vocab_size", .integer(0)), ("vocab_size", .number(1e300)),
    ("intermediate_size", .integer(-5)), ("rms_norm_eps", .integer(-1)), ("rms_norm_eps", .bool(true)), ("hidden_act", "gleu"),
    ("tie_word_embeddings", "yes"), ("max_position_embeddings", .integer(0)), ("head_dim", .integer(0)),
    ("rope_parameters", .array([])), ("layer_types", .null),
  ])
  func absurdConfigurationsAreRefusedByKey(key: String, value: JSONValue) throws {
    try withChangedCheckpoint("llama-2", configuration: { $0[key] = value }) { folder in
      let text = message(folder)
      if value == .null {
        #expect(text == "no error")
      } else {
        #expect(text.contains("config.json") && text.contains(key.replacing("hidden_act", with: "gleu")), "\(text)")
      }
    }
  }

  @Test func missingKeysAreNamed() throws {
    for key in ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"] {
      try withChangedCheckpoint("llama-2", configuration: { $0[key] = nil }) { folder in
        let text = message(folder)
        #expect(text.contains("\"\(key)\" is missing"), "\(text)")
      }
    }
  }

  @Test func hugeModelsAreRefusedBeforeTheyAreBuilt() throws {
    // Each number alone is sensible; together they would need terabytes, which the tensors contradict.
    func huge(_ json: inout JSONObject) {
      json["hidden_size"] = .integer(1 << 18)
      json["num_hidden_layers"] = 10_000
      json["intermediate_size"] = .integer(1 << 22)
    }
    try withChangedCheckpoint("llama-2", configuration: huge) { folder in
      let text = message(folder)
      #expect(text.contains("parameters") && text.contains("bytes"), "\(text)")
    }
  }

  @Test func unknownArchitecturesAreNamedWithTheNearest() throws {
    try withChangedCheckpoint("llama-2", configuration: { $0["model_type"] = "lama" }) { folder in
      let text = message(folder)
      #expect(text.contains("\"lama\"") && text.contains("llama") && text.contains("gpt_neox"), "\(text)")
    }
    // Without a type the class decides.
    try withChangedCheckpoint("llama-2", configuration: { $0["model_type"] = nil }) { folder in
      #expect(message(folder) == "no error")
    }
    try withChangedCheckpoint("llama-2", configuration: { $0["architectures"] = ["LlamaForSequenceClassification"] }) { folder in
      #expect(message(folder).contains("LlamaForSequenceClassification"))
    }
  }

  @Test func missingUnexpectedAndMisshapenTensorsAreAllNamed() throws {
    func spoil(_ tensors: inout [String: Tensor]) {
      tensors["model.layers.1.mlp.up_proj.weight"] = nil
      tensors["model.layers.0.self_attn.q_proj.weight"] = Tensor.zeros([32, 31])
      tensors["model.layers.7.surprise"] = Tensor.zeros([2])
    }
    try withChangedCheckpoint("llama-2", tensors: spoil) { folder in
      let text = message(folder)
      #expect(text.contains("model.layers.1.mlp.up_proj.weight") && text.contains("feed_forward.up"), "\(text)")
      #expect(text.contains("[32, 31]") && text.contains("[32, 32]") && text.contains("model.layers.7.surprise"), "\(text)")
    }
  }

  @Test func integerTensorsAreRefused() throws {
    func quantised(_ tensors: inout [String: Tensor]) {
      tensors["model.norm.weight"] = Tensor.zeros([32], dtype: .int8)
    }
    try withChangedCheckpoint("llama-2", tensors: quantised) { folder in
      #expect(message(folder).contains("model.norm.weight"))
    }
    try withChangedCheckpoint("llama-2", configuration: { $0["quantization_config"] = ["quant_method": "gptq"] }) { folder in
      #expect(message(folder).contains("quantization_config"))
    }
  }

  @Test func damagedFilesAreNamed() throws {
    try withChangedCheckpoint("llama-2") { folder in
      let path = folder + "/model.safetensors"
      let whole = try Data(contentsOf: URL(fileURLWithPath: path))
      try whole.prefix(whole.count / 2).write(to: URL(fileURLWithPath: path))
      #expect(message(folder).contains("model.safetensors"))
      // A header that claims more than the file has.
      var lying = whole
      lying.replaceSubrange(0..<8, with: withUnsafeBytes(of: UInt64(1 << 60).littleEndian) { Data($0) })
      try lying.write(to: URL(fileURLWithPath: path))
      #expect(message(folder).contains("model.safetensors"))
      try FileManager.default.removeItem(atPath: path)
      #expect(message(folder).contains(".safetensors"))
    }
    try withChangedCheckpoint("llama-2") { folder in
      for text in ["", "[]", "{\"model_type\": ", String(repeating: "[", count: 100_000)] {
        try text.write(toFile: folder + "/config.json", atomically: true, encoding: .utf8)
        #expect(message(folder).contains("config.json"))
      }
      try FileManager.default.removeItem(atPath: folder + "/config.json")
      #expect(message(folder).contains("config.json: there is no such file"))
    }
    #expect(message("/nowhere/at/all").contains("/nowhere/at/all"))
  }

  @Test(arguments: ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors", ""])
  func indexesDoNotReachOutOfTheirFolder(shard: String) throws {
    try withChangedCheckpoint("llama-3") { folder in
      let path = folder + "/model.safetensors.index.json"
      var index = try JSONValue.parse(String(contentsOfFile: path, encoding: .utf8)).objectValue!
      var map = index["weight_map"]!.objectValue!
      map["model.norm.weight"] = .string(shard)
      index["weight_map"] = .object(map)
      try JSONValue.object(index).serialized().write(toFile: path, atomically: true, encoding: .utf8)
      let text = message(folder)
      #expect(text.contains("model.safetensors.index.json") && text.contains("model.norm.weight"), "\(text)")
    }
    try withChangedCheckpoint("minilm") { folder in
      let modules = #"[{"path":"../..","type":"sentence_transformers.models.Pooling"}]"#
      try modules.write(toFile: folder + "/modules.json", atomically: true, encoding: .utf8)
      #expect(message(folder).contains("modules.json"))
    }
  }

  @Test func oddRotaryParametersAreRefused() throws {
    for (value, word) in [
      (#"{"rope_type": "sideways", "rope_theta": 10000.0}"#, "sideways"), (#"{"rope_type": "yarn", "rope_theta": 0}"#, "rope_theta"),
      (#"{"rope_type": "linear", "factor": -1}"#, "factor"), (#"{"rope_type": "linear"}"#, "factor"),
      (#"{"rope_type": "longrope", "short_factor": [1], "long_factor": [1], "original_max_position_embeddings": 8}"#, "factor"),
      (#"{"rope_type": "default", "partial_rotary_factor": 0.01}"#, "channels"),
    ] {
      try withChangedCheckpoint("llama-2", configuration: { $0["rope_parameters"] = try? JSONValue.parse(value) }) { folder in
        let text = message(folder)
        #expect(text.contains("config.json") && text.contains(word), "\(value): \(text)")
      }
    }
  }

  @Test func otherHeadsAreLeftAside() throws {
    func extend(_ tensors: inout [String: Tensor]) {
      tensors["score.weight"] = Tensor.zeros([3, 32])
    }
    try withChangedCheckpoint("llama-2", tensors: extend) { folder in
      let pretrained = try PretrainedModel.load(folder)
      #expect(pretrained.unusedTensors == ["score.weight"])
    }
    // A bias that would change the logits is not.
    try withChangedCheckpoint("llama-2", tensors: { $0["lm_head.bias"] = Tensor.zeros([64]) }) { folder in
      #expect(message(folder).contains("lm_head.bias"))
    }
    try withChangedCheckpoint("llama-2") { folder in
      try FileManager.default.moveItem(atPath: folder + "/model.safetensors", toPath: folder + "/pytorch_model.bin")
      #expect(message(folder).contains("pytorch_model.bin"))
    }
  }

  /// Every key of a configuration with every kind of wrong value: an error or a model that works, never a trap.
  @Test(arguments: ["llama-yarn", "gemma3", "phi3-longrope", "gpt2", "delta-net", "roberta", "t5", "vit", "whisper"])
  func noConfigurationBringsTheProcessDown(name: String) throws {
    let json = try JSONValue.parse(
      String(contentsOfFile: PretrainedFixture.folder(name) + "/config.json", encoding: .utf8)
    ).objectValue!
    let values: [JSONValue] = [0, .integer(.max), .number(0.01), "x", [1, 2]]
    var variants: [(String, JSONObject)] = []
    for key in json.keys {
      for value in values {
        var changed = json
        changed[key] = value
        variants.append((key, changed))
      }
      for inner in json[key]?.objectValue?.keys ?? [] {
        for value in values {
          var object = json[key]!.objectValue!
          object[inner] = value
          var changed = json
          changed[key] = .object(object)
          variants.append((key + "." + inner, changed))
        }
      }
    }
    var loaded = 0
    try withChangedCheckpoint(name) { folder in
      for (key, changed) in variants {
        try JSONValue.object(changed).serialized().write(toFile: folder + "/config.json", atomically: false, encoding: .utf8)
        do {
          let pretrained = try PretrainedModel.load(folder)
          loaded += 1
          let tokens = Tensor([3, 4, 5], [1, 3])
          let output = withoutGradient { pretrained.languageModel?(tokens) ?? pretrained.textEncoder?(tokens) }
          #expect(output.map { $0.dim(1) == 3 } ?? true, "\(key)")
        } catch {
          #expect(error is FileError || error is SafetensorsError, "\(key): \(error)")
        }
      }
    }
    // Many keys (dropout, initialisation) change nothing.
    #expect(loaded > 0 && loaded < variants.count)
  }
}
