import Foundation
import MartletModels
import Testing

@Suite struct EncoderDecoderTests {
  /// T5 1.0, T5 1.1 and Whisper, with what the decoder starts from.
  static let names = ["t5", "t5-v1.1", "whisper"]

  private func parts(_ name: String) throws -> (
    pretrained: PretrainedModel, model: EncoderDecoder, input: Tensor, mask: Tensor?, expected: [String: Tensor]
  ) {
    let (pretrained, expected) = try ShapeFixtures.checkpoint(name)
    let input = try #require(expected["input_ids"]?.to(.int64) ?? expected["input_features"])
    return (pretrained, try #require(pretrained.encoderDecoder), input, expected["attention_mask"].map { $0 .== 1 }, expected)
  }

  @Test(arguments: names) func hiddenStatesAndLogitsAreThoseOfTransformers(_ name: String) throws {
    let (_, model, input, mask, expected) = try parts(name)
    try withoutGradient {
      var hidden = model.encoderOutputs(input, mask: mask)
      var wanted = try #require(expected["last_hidden_state"])
      if let mask {
        // What stands at padding is nobody's business.
        hidden = hidden * mask.expandedDimension(-1).to(.float32)
        wanted = wanted * mask.expandedDimension(-1).to(.float32)
      }
      let hiddenError = relativeDifference(hidden, wanted)
      #expect(hiddenError < 1e-4, "hidden states differ by \(hiddenError)")
      let logits = model(input, mask: mask, output: try #require(expected["decoder_input_ids"]).to(.int64))
      let error = relativeDifference(logits, try #require(expected["logits"]))
      #expect(error < 1e-4, "logits differ by \(error)")
    }
  }

  @Test(arguments: names) func theGreedyContinuationIsThatOfTransformers(_ name: String) throws {
    let (_, model, input, mask, expected) = try parts(name)
    let greedy = try #require(expected["greedy"]).to(.int64).toArray(Int.self)
    try withoutGradient {
      let first = input.narrowed(axis: 0, start: 0, length: 1)
      let memory = model.encode(first, mask: mask?.narrowed(axis: 0, start: 0, length: 1))
      var state = try model.initialState(memory: memory)
      var tokens = model.decoderPrompt
      for _ in greedy { tokens.append(model.advance(Tensor([tokens.last!], [1, 1]), &state).argmax(axis: -1).itemInt()) }
      #expect(Array(tokens.dropFirst()) == greedy)
      // The parallel form agrees with every step.
      let parallel = model.logits(model.decoder(Tensor(Array(tokens.dropLast()), [1, greedy.count]), memory: memory))
      #expect(parallel.argmax(axis: -1).reshaped(-1).toArray(Int.self) == greedy)
    }
  }

  @Test(arguments: names) func stepsAndPiecesGiveTheParallelLogits(_ name: String) throws {
    let (_, model, input, mask, expected) = try parts(name)
    let output = try #require(expected["decoder_input_ids"]).to(.int64)
    try withoutGradient {
      let memory = model.encode(input, mask: mask)
      let parallel = model(input, mask: mask, output: output)
      for storage in [CacheOptions.Storage.full, .int8] {
        var state = try model.initialState(memory: memory, cache: CacheOptions(capacity: 2, storage: storage))
        var parts = [model.advanceEvery(output[.all, 0..<3], &state)]
        for t in 3..<output.dim(1) { parts.append(model.advanceEvery(output[.all, t..<(t + 1)], &state)) }
        let error = relativeDifference(concatenated(parts, axis: 1), parallel)
        #expect(error < (storage == .int8 ? 0.1 : 1e-4), "\(storage): \(error)")
      }
    }
  }

  @Test(arguments: names) func rowsOfABatchDoNotSeeEachOther(_ name: String) throws {
    let (_, model, input, mask, expected) = try parts(name)
    let output = try #require(expected["decoder_input_ids"]).to(.int64)
    withoutGradient {
      let together = model(input, mask: mask, output: output)
      for row in 0..<2 {
        let length = mask.map { $0[row].to(.int64).sum().itemInt() }
        var alone = input.narrowed(axis: 0, start: row, length: 1)
        if let length { alone = alone[.all, 0..<length] }
        let logits = model(alone, output: output.narrowed(axis: 0, start: row, length: 1))
        let error = relativeDifference(logits, together.narrowed(axis: 0, start: row, length: 1))
        #expect(error < 1e-4, "row \(row) differs by \(error)")
      }
    }
  }

  @Test func statesOfUnequalInputsJoinAndPart() throws {
    let (_, model, input, mask, expected) = try parts("t5")
    let output = try #require(expected["decoder_input_ids"]).to(.int64)
    try withoutGradient {
      var together = try model.initialState(memory: model.encode(input, mask: mask))
      // The second input is shorter, and read alone it needs no mask.
      let single = try (0..<2).map { row -> SequenceBackbone.State in
        let length = try #require(mask)[row].to(.int64).sum().itemInt()
        return try model.initialState(memory: model.encode(input[row..<(row + 1), 0..<length]))
      }
      var joined = SequenceBackbone.State.joined(single)
      #expect(joined.memory?.batch == 2)
      let expected = model.advance(output[.all, 0..<4], &together)
      #expect(relativeDifference(model.advance(output[.all, 0..<4], &joined), expected) < 1e-4)
      // In another order, one twice.
      var chosen = joined.selecting([1, 0, 1])
      let next = output[.all, 4..<5]
      let after = model.advance(next, &together)
      let rows = Tensor([1, 0, 1])
      #expect(relativeDifference(model.advance(next.take(rows), &chosen), after.take(rows)) < 1e-4)
    }
  }

  @Test func severalOutputsShareTheMemoryOfOneInput() throws {
    let (_, model, input, _, expected) = try parts("whisper")
    let output = try #require(expected["decoder_input_ids"]).to(.int64)
    try withoutGradient {
      let memory = model.encode(input.narrowed(axis: 0, start: 0, length: 1))
      var shared = try model.initialState(memory: memory, batch: 2)
      let logits = model.advanceEvery(output, &shared)
      #expect(shared.memory?.batch == 1)
      for row in 0..<2 {
        var own = try model.initialState(memory: memory)
        let alone = model.advanceEvery(output.narrowed(axis: 0, start: row, length: 1), &own)
        #expect(relativeDifference(logits.narrowed(axis: 0, start: row, length: 1), alone) < 1e-4)
      }
      #expect(throws: ConfigurationError.self) { try model.initialState(memory: model.encode(input), batch: 3) }
      #expect(throws: ConfigurationError.self) { try model.initialState(batch: 1) }
    }
  }

  @Test func aHeadOfItsOwnIsReadAndTheScaleFollowsTheConfiguration() throws {
    let (_, model, input, mask, expected) = try parts("t5-v1.1")
    let output = try #require(expected["decoder_input_ids"]).to(.int64)
    #expect(model.head == nil && model.configuration.outputScale == 1)
    let head = Tensor.randomNormal([64, 32], generator: generator())
    try withChangedCheckpoint(
      "t5-v1.1",
      configuration: {
        $0["tie_word_embeddings"] = false
        $0["scale_decoder_outputs"] = nil
      }, tensors: { $0["lm_head.weight"] = head }
    ) { source in
      let own = try #require(try PretrainedModel.load(source).encoderDecoder)
      #expect(own.head != nil && own.configuration.outputScale == 1)
      withoutGradient {
        let hidden = model.decoder(output, memory: model.encode(input, mask: mask))
        #expect(relativeDifference(own(input, mask: mask, output: output), hidden.matmul(head.T)) < 1e-5)
      }
    }
    let scaled = try parts("t5").model
    #expect(abs(scaled.configuration.outputScale - 1 / 32.0.squareRoot()) < 1e-12)
  }

  @Test func theSharedTableIsOneParameterAndTrains() throws {
    let (_, model, input, mask, expected) = try parts("t5")
    #expect(model.parameters().filter { $0.name.hasSuffix("embedding.weight") }.map(\.name) == ["encoder.embedding.weight"])
    model.unfreeze()
    let logits = model(input, mask: mask, output: try #require(expected["decoder_input_ids"]).to(.int64))
    logits.square().mean().backward()
    for (name, parameter) in model.parameters() {
      let gradient = try #require(parameter.gradient, "\(name) has no gradient")
      #expect(gradient.allFinite && gradient.abs().max().item() > 0, "\(name)")
    }
  }

  /// The bound is twice the error that transformers itself has in bfloat16: the fixtures' attention is sharp.
  @Test(arguments: zip(names, [0.12, 0.25, 0.04])) func halfTheBitsGiveNearlyTheSame(_ name: String, bound: Double) throws {
    func difference(_ a: Tensor, _ b: Tensor) -> Double { (a.to(.float32) - b).norm().item() / b.norm().item() }
    let (_, model, input, mask, expected) = try parts(name)
    let output = try #require(expected["decoder_input_ids"]).to(.int64)
    let half = try #require(try PretrainedModel.load(PretrainedFixture.folder(name), dtype: .bfloat16).encoderDecoder)
    try withoutGradient {
      let wanted = model(input, mask: mask, output: output)
      let found = half(input, mask: mask, output: output)
      #expect(found.dtype == .bfloat16)
      let error = difference(found, wanted)
      #expect(error < bound, "differs by \(error)")
      var state = try half.initialState(memory: half.encode(input, mask: mask))
      var last = half.advance(output[.all, 0..<1], &state)
      for t in 1..<output.dim(1) { last = half.advance(output[.all, t..<(t + 1)], &state) }
      let stepError = difference(last, wanted[.all, -1])
      #expect(stepError < 2 * bound, "the last step differs by \(stepError)")
    }
  }

  // MARK: T5's distances

  @Test func bucketsAreThoseOfTransformersAtEveryDistance() throws {
    for (buckets, furthest) in [(32, 128), (16, 20), (64, 256), (32, 512), (20, 77)] {
      for bidirectional in [true, false] {
        let bias = RelativePositionBias(
          heads: 1, buckets: buckets, maximumDistance: furthest, bidirectional: bidirectional, generator: generator())
        let wanted = try ShapeFixtures.frontEnd("buckets.\(buckets).\(furthest).\(bidirectional ? "both" : "past")").to(.int64)
          .toArray(Int.self)
        let found = (-600...600).map(bias.bucket)
        let wrong = zip(-600...600, zip(found, wanted)).filter { $0.1.0 != $0.1.1 }
        #expect(wrong.isEmpty, "\(buckets) buckets to \(furthest): \(wrong.prefix(5))")
      }
    }
  }

  @Test func scoresOfAWindowAreThoseOfTheirDistances() {
    for (queries, keys) in [(1, 1), (1, 9), (4, 9), (7, 7)] {
      let bias = RelativePositionBias(heads: 3, buckets: 8, maximumDistance: 12, bidirectional: false, generator: generator())
      let scores = bias(queries: queries, keys: keys)
      #expect(scores.shape == [3, queries, keys])
      for i in 0..<queries {
        for j in 0..<keys {
          let expected = bias.weight[bias.bucket(j - (i + keys - queries))]
          #expect(relativeDifference(scores[.all, i, j], expected) == 0, "query \(i), key \(j)")
        }
      }
    }
  }

  // MARK: Refusals

  @Test func whatMakesNoModelIsRefusedByName() throws {
    #expect(ShapeFixtures.loading("t5", ["d_model": 0]).contains("\"d_model\" must be a whole number"))
    #expect(ShapeFixtures.loading("t5", ["num_layers": 1_000_000_000]).contains("\"num_layers\""))
    #expect(ShapeFixtures.loading("t5", ["num_layers": 10_000]).contains("describes a model of at least"))
    #expect(ShapeFixtures.loading("t5", ["feed_forward_proj": "gated-gulu"]).contains("gulu"))
    #expect(ShapeFixtures.loading("t5", ["feed_forward_proj": "very-gated-gelu"]).contains("feed_forward_proj"))
    #expect(ShapeFixtures.loading("t5", ["architectures": ["T5EncoderModel"]]).contains("T5EncoderModel"))
    #expect(ShapeFixtures.loading("t5", ["relative_attention_max_distance": 3]).contains("relative positions"))
    #expect(ShapeFixtures.loading("t5", ["num_layers": 3]).contains("encoder.block.2"))
    #expect(ShapeFixtures.loading("t5", ["decoder_start_token_id": 64]).contains("decoder_start_token_id"))
    #expect(ShapeFixtures.loading("whisper", ["encoder_ffn_dim": .integer(1 << 24)]).contains("describes a model of at least"))
    #expect(ShapeFixtures.loading("whisper", ["max_source_positions": .integer(1 << 24)]).contains("describes a model of at least"))
    #expect(ShapeFixtures.loading("whisper", ["decoder_attention_heads": 5]).contains("not a multiple"))
    #expect(ShapeFixtures.loading("whisper", ["num_mel_bins": 80]).contains("conv1"))
    #expect(
      ShapeFixtures.loading("whisper", ["architectures": ["WhisperForAudioClassification"]]).contains("WhisperForAudioClassification"))
  }

  @Test func inputOfTheWrongShapeIsRefused() throws {
    let (_, model, input, _, _) = try parts("whisper")
    #expect(throws: TensorError.self) { try withTorchErrors { model.encode(input[.all, 0..<10]) } }
    let tooLong = concatenated([input, input], axis: 2)
    let error = #expect(throws: TensorError.self) { try withTorchErrors { model.encode(tooLong) } }
    #expect(error?.message.contains("positions end at 30") == true, "\(String(describing: error))")
  }
}
