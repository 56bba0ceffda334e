import Foundation
import MartletCatalog
import MartletTokenizers
import Testing

@Suite struct GenerateTests {
  private func withModel<R>(_ name: String = "llama-3", _ body: (_ folder: String, _ model: String) throws -> R) throws -> R {
    try withTemporaryFolder { folder in try body(folder, try TinyModel.make(name, in: folder)) }
  }

  /// The ids that the library gives for a prompt.
  private func expected(_ model: String, _ prompt: String, _ change: (inout GenerationOptions) -> Void = { _ in }) throws -> [Int] {
    let pretrained = try PretrainedModel.load(model)
    var options = GenerationOptions(pretrained.configuration, maximumTokens: 12)
    change(&options)
    let tokens = try Tokenizer.load(model).encode(prompt).ids.map(Int.init)
    return try MartletInference.generate(try #require(pretrained.languageModel), prompts: [tokens], options: options)[0].tokens
  }

  private func ids(_ model: String, _ prompt: String, _ options: String...) throws -> [Int] {
    let run = try CommandRun(["generate", model, prompt, "--tokens", "12", "--json"] + options)
    #expect(run.status == 0, "\(run.errors)")
    return try #require(run.json["ids"]?.integers)
  }

  @Test(arguments: ["llama-3", "gpt2", "qwen3", "gla"]) func greedyTokensAreTheLibrarys(name: String) throws {
    try withModel(name) { _, model in
      let run = try CommandRun(["generate", model, "hello you", "--tokens", "12", "--json", "--logprobs"])
      #expect(run.status == 0 && run.errors.isEmpty, "\(run.errors)")
      let json = try run.json
      let found = try #require(json["ids"]?.integers)
      #expect(found == (try expected(model, "hello you")))
      #expect(json["tokens"]?.intValue == found.count && json["promptTokens"]?.intValue == 8)
      #expect(json["logProbabilities"]?.arrayValue?.count == found.count)
      let end = try PretrainedConfiguration(directory: model).endTokens
      let isEnded = found.last.map(end.contains) ?? false
      #expect(json["finish"]?.stringValue == (isEnded ? "stop" : "length"))
      // As it reads behind the prompt.
      let tokenizer = try Tokenizer.load(model)
      let prompt = try tokenizer.encode("hello you").ids.map(Int.init)
      let whole = try tokenizer.decode(prompt + (isEnded ? found.dropLast() : found[...]))
      let text = String(whole.dropFirst("hello you".count))
      #expect(json["text"]?.stringValue == text)
      let first = try #require(json["secondsToFirstToken"]?.doubleValue)
      #expect(first > 0)
      // On a terminal or in a pipe: the prompt and what follows it.
      #expect(try CommandRun(["generate", model, "hello you", "--tokens", "12"]).output == "hello you" + text + "\n")
    }
  }

  @Test func samplingFollowsItsOptionsAndSeed() throws {
    try withModel { _, model in
      let sampled = try ids(model, "abc", "--temperature", "1.2", "--top-k", "20", "--top-p", "0.9", "--min-p", "0.01", "--seed", "5")
      #expect(
        sampled
          == (try expected(model, "abc") {
            $0.sampler = Sampler(temperature: 1.2, topK: 20, topP: 0.9, minP: 0.01)
            $0.seed = 5
          }))
      #expect(
        sampled != (try ids(model, "abc", "--temperature", "1.2", "--top-k", "20", "--top-p", "0.9", "--min-p", "0.01", "--seed", "6")))
      let greedy = try ids(model, "abc")
      let banned = try ids(model, "abc", "--logit-bias", "\(greedy[0])=-inf")
      #expect(!banned.contains(greedy[0]))
      let penalised = try ids(
        model, "abc", "--repetition-penalty", "1.5", "--presence-penalty", "0.5", "--frequency-penalty", "0.25", "--no-repeat-ngram", "2")
      #expect(
        penalised
          == (try expected(model, "abc") {
            $0.repetitionPenalty = 1.5
            $0.presencePenalty = 0.5
            $0.frequencyPenalty = 0.25
            $0.noRepeatedRun = 2
          }))
    }
  }

  @Test func generationConfigurationIsTheDefault() throws {
    try withModel { _, model in
      _ = try TinyModel.write(
        #"{"do_sample": true, "temperature": 1.5, "top_k": 30, "eos_token_id": 2}"#, to: model + "/generation_config.json")
      let own = try ids(model, "abc", "--seed", "3")
      #expect(
        own
          == (try expected(model, "abc") {
            $0.sampler = Sampler(temperature: 1.5, topK: 30)
            $0.seed = 3
          }))
      #expect(try ids(model, "abc", "--temperature", "0") == (try expected(model, "abc") { $0.sampler = Sampler(temperature: 0) }))
    }
  }

  @Test func stopStringsEndTheText() throws {
    try withModel { _, model in
      let whole = try #require(try CommandRun(["generate", model, "abc", "--tokens", "12", "--json"]).json["text"]?.stringValue)
      let stop = String(whole.dropFirst(4).prefix(2))
      try #require(stop.count == 2)
      let cut = try CommandRun(["generate", model, "abc", "--tokens", "12", "--json", "--stop", "nowhere", "--stop", stop]).json
      let place = try #require(whole.range(of: stop))
      #expect(cut["text"]?.stringValue == String(whole[..<place.lowerBound]))
      #expect(cut["finish"]?.stringValue == "stop")
    }
  }

  @Test func otherWaysOfComputingGiveTheSameText() throws {
    try withModel { folder, model in
      let greedy = try ids(model, "hello")
      #expect(try ids(model, "hello", "--beams", "1") == greedy)
      let draft = try CommandRun(["generate", model, "hello", "--tokens", "12", "--json", "--draft", model, "--guesses", "3"])
      #expect(try draft.json["ids"]?.integers == greedy, "\(draft.errors)")
      #expect(try #require(draft.json["speculation"]?["accepted"]?.intValue) > 0)
      #expect(try ids(model, "hello", "--weights", "float32", "--cache", "full") == greedy)
      // Rounded, so perhaps other tokens, but as many.
      for options in [
        ["--weights", "int8"], ["--weights", "int4"], ["--weights", "bfloat16"], ["--cache", "int8"], ["--cache", "bfloat16"],
      ] {
        let run = try CommandRun(["generate", model, "hello", "--tokens", "12", "--json"] + options)
        #expect(run.status == 0, "\(options): \(run.errors)")
        #expect(try #require(run.json["tokens"]?.intValue) > 0)
      }
      let search = try CommandRun(["generate", model, "hello", "--tokens", "12", "--json", "--beams", "4", "--length-penalty", "0.5"])
      #expect(try #require(search.json["score"]?.doubleValue) < 0, "\(search.errors)")
      #expect(try #require(search.json["seconds"]?.doubleValue) > 0)
      #expect(try search.json["tokensPerSecond"] == nil, "a search has no rate after a first token")
    }
  }

  @Test func aFileOfPromptsGivesALineEach() throws {
    try withModel { folder, model in
      let prompts = ["a", "hello you", "zz top", "b c d e f"]
      let file = try TinyModel.write(prompts.joined(separator: "\n"), to: folder + "/prompts.txt")
      let run = try CommandRun(["generate", model, "--input", file, "--tokens", "12", "--batch", "3"])
      #expect(run.status == 0, "\(run.errors)")
      let lines = try run.jsonLines
      #expect(lines.map { $0["prompt"]?.stringValue } == prompts)
      for (line, prompt) in zip(lines, prompts) { #expect(line["ids"]?.integers == (try expected(model, prompt)), "\(prompt)") }
    }
  }

  @Test func chatsGoThroughTheTemplate() throws {
    try withModel { _, model in
      let text = "system be nice ! user hi ! assistant"
      let run = try CommandRun(["generate", model, "hi", "--chat", "--system", "be nice", "--tokens", "12", "--json"])
      #expect(try run.json["ids"]?.integers == (try expected(model, text)), "\(run.errors)")
      let piped = try CommandRun(shell: #"printf 'hi\n' | "$MARTLET" generate \#(model) --chat --system "be nice" --tokens 12"#)
      #expect(piped.output == (try #require(run.json["text"]?.stringValue)) + "\n", "\(piped.errors)")
      try FileManager.default.removeItem(atPath: model + "/tokenizer_config.json")
      try CommandRun(["generate", model, "hi", "--chat"]).expectRefusal("chat template")
    }
  }

  @Test func encoderDecodersTranslateTheirInput() throws {
    try withModel("t5") { folder, model in
      let pretrained = try PretrainedModel.load(model)
      let t5 = try #require(pretrained.encoderDecoder)
      func expected(_ text: String) throws -> [Int] {
        let tokens = try Tokenizer.load(model).encode(text).ids.map(Int.init)
        let state = try withoutGradient { try t5.initialState(memory: t5.encode(Tensor(tokens, [1, tokens.count]))) }
        let options = GenerationOptions(pretrained.configuration, maximumTokens: 12)
        return try MartletInference.generate(t5, prompts: [t5.decoderPrompt], options: options, start: state)[0].tokens
      }
      let file = try TinyModel.write("hello\na b c\n", to: folder + "/prompts.txt")
      let lines = try CommandRun(["generate", model, "--input", file, "--tokens", "12"]).jsonLines
      #expect(lines.map { $0["ids"]?.integers ?? [] } == (try ["hello", "a b c"].map(expected)))
    }
  }

  @Test func speechModelsReadARecording() throws {
    try withModel("whisper") { folder, model in
      // 60 frames in a second of 6000 samples, as the small model reads at once.
      _ = try TinyModel.write(
        #"{"feature_size": 20, "sampling_rate": 6000, "n_fft": 400, "hop_length": 100, "chunk_length": 1}"#,
        to: model + "/preprocessor_config.json")
      let samples = (0..<9000).map { Int16(8000 * sin(Double($0) * 0.3)) }
      var wave = Data("RIFF".utf8)
      func append(_ value: some FixedWidthInteger) { withUnsafeBytes(of: value.littleEndian) { wave.append(contentsOf: $0) } }
      append(UInt32(36 + samples.count * 2))
      wave.append(Data("WAVEfmt ".utf8))
      append(UInt32(16))
      append(UInt16(1))
      append(UInt16(1))
      append(UInt32(6000))
      append(UInt32(12000))
      append(UInt16(2))
      append(UInt16(16))
      wave.append(Data("data".utf8))
      append(UInt32(samples.count * 2))
      for sample in samples { append(sample) }
      let audio = folder + "/a.wav"
      try wave.write(to: URL(fileURLWithPath: audio))
      let run = try CommandRun(["generate", model, "--audio", audio, "--tokens", "6", "--json"])
      #expect(run.status == 0, "\(run.errors)")
      // Two pieces: 1.5 seconds are more than the model reads at once.
      #expect(try #require(run.json["tokens"]?.intValue) > 6)
      try CommandRun(["generate", model, "some text"]).expectRefusal("--audio")
    }
  }

  @Test func whatCantBeGeneratedIsRefused() throws {
    try withModel { folder, model in
      let encoder = try TinyModel.make("minilm", in: folder)
      try CommandRun(["generate", encoder, "a"]).expectRefusal("bert", "martlet embed")
      try CommandRun(["generate", folder + "/absent", "a"]).expectRefusal("absent")
      try CommandRun(["generate", model, "a", "--logit-bias", "3"]).expectRefusal("ID=VALUE")
      try CommandRun(["generate", model, "a", "--logit-bias", "6400=1"]).expectRefusal("6400", "vocabulary")
      try CommandRun(["generate", model, "a", "--weights", "int9"]).expectRefusal("\"int8\"")
      try CommandRun(["generate", model, "a", "--top-p", "1.5"]).expectRefusal("top-p")
      try CommandRun(["generate", model, "a", "--draft", encoder]).expectRefusal("draft")
      try CommandRun(["generate", model, "a", "--system", "b"]).expectRefusal("--chat")
      try CommandRun(["generate", model, "a", "--audio", "b.wav"]).expectRefusal("--audio")
      try FileManager.default.removeItem(atPath: model + "/tokenizer.json")
      try FileManager.default.removeItem(atPath: model + "/tokenizer_config.json")
      try CommandRun(["generate", model, "a"]).expectRefusal("tokenizer")
    }
  }

  @Test func byteModelsStillContinueATextAndEvaluate() throws {
    try withTemporaryFolder { folder in
      let text = try TinyModel.write(String(repeating: "the quick brown fox. ", count: 400), to: folder + "/book.txt")
      let train = try CommandRun([
        "train", "--task", "bytes:\(text)", "--mixer", "gla", "--set", "width=16", "--set", "layers=1", "--budget", "4steps", "--out",
        folder + "/model",
      ])
      try #require(train.status == 0, "\(train.errors)")
      let arguments = ["generate", folder + "/model", "the ", "--tokens", "5", "--temperature", "0"]
      let run = try CommandRun(arguments + ["--json"])
      #expect(try run.json["ids"]?.integers?.count == 5, "\(run.errors)")
      #expect(try run.json["tokens"]?.intValue == 5)
      // The bytes of an untrained model are seldom text.
      let plain = try CommandRun(shell: #""$MARTLET" \#(arguments.map { "'\($0)'" }.joined(separator: " ")) | wc -c"#)
      #expect(plain.output.trimmingCharacters(in: .whitespacesAndNewlines) == "\(4 + 5 + 1)", "\(plain.errors)")
      try CommandRun(arguments + ["--chat"]).expectRefusal("--chat", "martlet train")
      #expect(try CommandRun(["inspect", folder + "/model", "--json"]).json["task"]?.stringValue == "bytes:\(text)")
      try CommandRun(["generate", folder + "/modle", "a"]).expectRefusal("\"model\"")
      let metrics = try CommandRun(["evaluate", folder + "/model", "--json"])
      #expect(try #require(metrics.json["bitsPerByte"]?.doubleValue) > 0, "\(metrics.errors)")
    }
  }
}
