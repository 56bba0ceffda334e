import Foundation
import MartletModels
import Testing

/// Text encoders against what `transformers` computes.
@Suite struct PretrainedEncoderTests {
  static let tolerance = 1e-4

  /// Differences at padded positions don't count.
  private func difference(_ a: Tensor, _ b: Tensor, _ mask: Tensor) -> Double {
    let keep = mask.expandedDimension(-1).to(a.dtype)
    return relativeDifference(a * keep, b * keep)
  }

  @Test(arguments: PretrainedFixture.encoders) func outputsAreTheReferences(name: String) throws {
    let encoder = try #require(try PretrainedModel.load(PretrainedFixture.folder(name)).textEncoder)
    let expected = try PretrainedFixture.expected(name)
    let mask = expected["attention_mask"]!.to(.bool)
    try withoutGradient {
      let outputs = encoder(expected["input_ids"]!, mask: mask, tokenTypes: expected["token_type_ids"])
      let error = difference(outputs, expected["last_hidden_state"]!, mask)
      print("\(name): relative error \(error)")
      #expect(error < Self.tolerance)
      if let pooled = expected["pooler_output"] { #expect(relativeDifference(encoder.pooled(outputs), pooled) < Self.tolerance) }
      if let logits = expected["logits"] {
        if logits.rank == 3 {
          let own = try #require(encoder.vocabularyLogits(outputs))
          #expect(difference(own, logits, mask) < Self.tolerance)
        } else {
          let own = try #require(encoder.classLogits(outputs))
          #expect(relativeDifference(own, logits) < Self.tolerance)
        }
      }
      if let embeddings = expected["embeddings"] {
        #expect(relativeDifference(encoder.embeddings(outputs, mask: mask), embeddings) < Self.tolerance)
      }
    }
  }

  @Test(arguments: ["minilm", "bert-classifier", "roberta-classifier"]) func packedTextsGiveTheSame(name: String) throws {
    let encoder = try #require(try PretrainedModel.load(PretrainedFixture.folder(name)).textEncoder)
    let expected = try PretrainedFixture.expected(name)
    let lengths = expected["attention_mask"]!.sum(axis: 1).toArray(Int.self)
    func packed(_ x: Tensor) -> Tensor {
      concatenated(lengths.enumerated().map { x[$0, 0..<$1] }).expandedDimension(0)
    }
    try withoutGradient {
      let packing = SequencePacking(lengths: lengths)
      let outputs = encoder(packed(expected["input_ids"]!), tokenTypes: expected["token_type_ids"].map(packed), packing: packing)
      if let embeddings = expected["embeddings"] {
        #expect(relativeDifference(encoder.embeddings(outputs, packing: packing), embeddings) < Self.tolerance)
      }
      if let logits = expected["logits"] {
        let own = try #require(encoder.classLogits(outputs, packing: packing))
        #expect(relativeDifference(own, logits) < Self.tolerance)
      }
    }
  }

  @Test func labelsAndPartsFollowTheCheckpoint() throws {
    let classifier = try PretrainedModel.load(PretrainedFixture.folder("bert-classifier"))
    #expect(classifier.configuration.labels == ["bad", "middling", "good"])
    #expect(classifier.textEncoder?.vocabularyHead == nil && classifier.languageModel == nil)
    let scorer = try #require(try PretrainedModel.load(PretrainedFixture.folder("bert-cross-encoder")).textEncoder)
    #expect(scorer.classifier?.outFeatures == 1)
    let sentences = try #require(try PretrainedModel.load(PretrainedFixture.folder("minilm")).textEncoder)
    #expect(sentences.sentence.configuration.modes == [.mean] && sentences.sentence.configuration.normalizes)
    #expect(sentences.sentence.configuration.longest == 32)
  }

  @Test func tensorFlowsNamesOfNormsAreKnown() throws {
    let expected = try PretrainedFixture.expected("bert")
    func older(_ tensors: inout [String: Tensor]) {
      tensors = Dictionary(
        uniqueKeysWithValues: tensors.map { key, value in
          (key.replacing("LayerNorm.weight", with: "LayerNorm.gamma").replacing("LayerNorm.bias", with: "LayerNorm.beta"), value)
        })
      tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]!
      tensors["cls.seq_relationship.weight"] = Tensor.zeros([2, 32])
      tensors["bert.embeddings.position_ids"] = Tensor.arange(32).expandedDimension(0)
    }
    try withChangedCheckpoint("bert", tensors: older) { folder in
      let encoder = try #require(try PretrainedModel.load(folder).textEncoder)
      let mask = expected["attention_mask"]!.to(.bool)
      let outputs = withoutGradient {
        encoder(expected["input_ids"]!, mask: mask, tokenTypes: expected["token_type_ids"])
      }
      #expect(difference(outputs, expected["last_hidden_state"]!, mask) < Self.tolerance)
    }
  }

  @Test(arguments: ["xlm-roberta", "camembert"]) func robertasKinAreRead(type: String) throws {
    let expected = try PretrainedFixture.expected("roberta")
    try withChangedCheckpoint("roberta", configuration: { $0["model_type"] = .string(type) }) { folder in
      let encoder = try #require(try PretrainedModel.load(folder).textEncoder)
      let mask = expected["attention_mask"]!.to(.bool)
      let outputs = withoutGradient { encoder(expected["input_ids"]!, mask: mask) }
      #expect(difference(outputs, expected["last_hidden_state"]!, mask) < Self.tolerance)
    }
  }

  @Test func denseModulesAndOtherPoolingsAreRead() throws {
    try withChangedCheckpoint("minilm") { folder in
      let modules = """
        [{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},
         {"idx":1,"name":"1","path":"1_Pooling","type":"sentence_transformers.models.Pooling"},
         {"idx":2,"name":"2","path":"2_Dense","type":"sentence_transformers.models.Dense"}]
        """
      try modules.write(toFile: folder + "/modules.json", atomically: true, encoding: .utf8)
      let pooling = #"{"word_embedding_dimension":32,"pooling_mode_cls_token":true,"pooling_mode_mean_sqrt_len_tokens":true}"#
      try pooling.write(toFile: folder + "/1_Pooling/config.json", atomically: true, encoding: .utf8)
      try FileManager.default.createDirectory(atPath: folder + "/2_Dense", withIntermediateDirectories: true)
      let dense = #"{"in_features":64,"out_features":5,"bias":true,"activation_function":"torch.nn.modules.activation.Tanh"}"#
      try dense.write(toFile: folder + "/2_Dense/config.json", atomically: true, encoding: .utf8)
      let weight = Tensor.randomNormal([5, 64], generator: generator())
      let bias = Tensor.randomNormal([5], generator: generator(8))
      try Safetensors.save(["linear.weight": weight, "linear.bias": bias], to: folder + "/2_Dense/model.safetensors")

      let encoder = try #require(try PretrainedModel.load(folder).textEncoder)
      let x = Tensor.randomNormal([2, 6, 32], generator: generator(9))
      let mask = Tensor([true, true, true, true, true, true, true, true, true, true, false, false], [2, 6])
      let second = x[1, 0..<4]
      let pooled = stacked([
        concatenated([x[0, 0], x[0].sum(axis: 0) / 6.0.squareRoot()]), concatenated([second[0], second.sum(axis: 0) / 2]),
      ])
      let expected = (pooled.matmul(weight.T) + bias).tanh()
      withoutGradient {
        #expect(relativeDifference(encoder.embeddings(x, mask: mask), expected) < 1e-5)
        let packing = SequencePacking(lengths: [6, 4])
        let flat = concatenated([x[0], second]).expandedDimension(0)
        #expect(relativeDifference(encoder.embeddings(flat, packing: packing), expected) < 1e-5)
      }
      // It is written back with the other modules.
      try withTemporaryFolder { other in
        try PretrainedModel.load(folder).save(to: other + "/copy")
        let again = try #require(try PretrainedModel.load(other + "/copy").textEncoder)
        withoutGradient { #expect(relativeDifference(again.embeddings(x, mask: mask), expected) < 1e-5) }
      }
    }
  }
}
