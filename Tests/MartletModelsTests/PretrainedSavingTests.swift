import Foundation
import MartletModels
import Testing

/// What is written back is what was read.
@Suite struct PretrainedSavingTests {
  @Test(arguments: PretrainedFixture.all) func savingWritesTheSameTensors(name: String) throws {
    let pretrained = try PretrainedModel.load(PretrainedFixture.folder(name))
    try withTemporaryFolder { folder in
      let copy = folder + "/copy"
      try pretrained.save(to: copy, maximumShardBytes: name == "llama-3" ? 30_000 : 5_000_000)
      let before = try Safetensors.load(PretrainedFixture.folder(name))
      let after = try Safetensors.load(copy)
      #expect(before.keys.sorted() == after.keys.sorted())
      for (key, tensor) in before {
        let other = try #require(after[key])
        #expect(tensor.shape == other.shape && tensor.toArray(Float.self) == other.toArray(Float.self), "\(key)")
      }
      let files = Set(try FileManager.default.contentsOfDirectory(atPath: copy))
      #expect(files.contains("model.safetensors.index.json") == (name == "llama-3"))
      #expect(
        files.contains("generation_config.json")
          == FileManager.default.fileExists(atPath: PretrainedFixture.folder(name) + "/generation_config.json"))
      let json = try JSONValue.parse(String(contentsOfFile: copy + "/config.json", encoding: .utf8))
      #expect(json == .object(pretrained.configuration.json))
      #expect(try FileManager.default.contentsOfDirectory(atPath: folder) == ["copy"])
    }
  }

  @Test func savingKeepsWhatTrainingChanged() throws {
    try withTemporaryFolder { folder in
      let pretrained = try PretrainedModel.load(PretrainedFixture.folder("gpt2"))
      let model = try #require(pretrained.languageModel)
      model.unfreeze()
      let tokens = Tensor([1, 2, 3, 4], [1, 4])
      withoutGradient { for (_, tensor) in model.parameters() { tensor.copyInPlace(tensor * 1.25) } }
      let expected = withoutGradient { model(tokens) }
      try pretrained.save(to: folder)
      let again = try #require(try PretrainedModel.load(folder).languageModel)
      #expect(relativeDifference(withoutGradient { again(tokens) }, expected) == 0)
      // The mapping is private: the fixture itself has not changed.
      let original = try #require(try PretrainedModel.load(PretrainedFixture.folder("gpt2")).languageModel)
      #expect(relativeDifference(withoutGradient { original(tokens) }, expected) > 1e-3)
    }
  }

  @Test func aConvertedModelSaysItsType() throws {
    try withTemporaryFolder { folder in
      try PretrainedModel.load(PretrainedFixture.folder("llama-2"), dtype: .bfloat16).save(to: folder + "/half")
      let json = try JSONValue.parse(String(contentsOfFile: folder + "/half/config.json", encoding: .utf8))
      #expect(json["dtype"] == "bfloat16")
      let tensors = try Safetensors.load(folder + "/half")
      #expect(tensors.values.allSatisfy { $0.dtype == .bfloat16 })
    }
  }

  /// Writes every checkpoint to `$MARTLET_SAVED_CHECKPOINTS`, where Tests/Fixtures/check_saved.py lets transformers read them.
  @Test(.enabled(if: ProcessInfo.processInfo.environment["MARTLET_SAVED_CHECKPOINTS"] != nil))
  func checkpointsAreSavedForTransformers() throws {
    let root = ProcessInfo.processInfo.environment["MARTLET_SAVED_CHECKPOINTS"]!
    for name in PretrainedFixture.all {
      try PretrainedModel.load(PretrainedFixture.folder(name)).save(to: root + "/" + name, maximumShardBytes: 40_000)
    }
  }
}
