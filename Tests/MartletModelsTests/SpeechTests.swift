import Foundation
import MartletModels
import Testing

@Suite struct SpeechTests {
  private static func audio() throws -> [Float] {
    try ShapeFixtures.frontEnd("audio").toArray(Int16.self).map { Float($0) / 32768 }
  }

  // MARK: Log-mel frames

  @Test(arguments: [80, 128]) func framesAreThoseOfTransformers(_ bands: Int) throws {
    let spectrogram = try LogMelSpectrogram(.init(bands: bands))
    let frames = try spectrogram(Self.audio())
    #expect(frames.shape == [1, bands, 3000])
    let error = (frames[0, .all, ..<110] - (try ShapeFixtures.frontEnd("mel.\(bands)"))).abs().max().item()
    #expect(error < 1e-4, "differs by \(error)")
    // Silence stands at the floor.
    #expect((frames[0, .all, 110...] - frames[0, 0, 2999]).abs().max().item() == 0)
  }

  @Test func filtersHaveEqualAreaAndCoverTheBand() {
    let filters = melFilters(bands: 80, bins: 201, sampleRate: 16000, highest: 8000)
    #expect(filters.shape == [80, 201] && filters.min().item() == 0)
    // 40 Hz between bins: the widest triangles are sampled finely enough to show their area, 1.
    let areas = (filters * 40.0).sum(axis: 1)[60...]
    #expect((areas - 1).abs().max().item() < 0.02, "\(areas)")
  }

  @Test func tooLongAudioIsRefusedAndCutIntoSegments() throws {
    let spectrogram = try LogMelSpectrogram(.init(sampleRate: 1000, bands: 8, window: 40, hop: 10, seconds: 2))
    let samples = (0..<4500).map { Float($0) }
    let error = #expect(throws: ConfigurationError.self) { try spectrogram(samples) }
    #expect(error?.message.contains("4500 samples") == true)
    let segments = spectrogram.segments(of: samples)
    #expect(segments.map(\.count) == [2000, 2000, 500] && segments.flatMap { $0 } == samples)
    #expect(try spectrogram(segments).shape == [3, 8, 200])
    #expect(try spectrogram([Float]()).allFinite)
  }

  @Test func preprocessorsThatCanNotBeFollowedAreRefused() throws {
    let found = try LogMelSpectrogram.Configuration(preprocessor: ["feature_size": 128, "chunk_length": 10])
    #expect(found == .init(bands: 128, seconds: 10))
    for json: JSONValue in [
      ["n_fft": 0], ["hop_length": -1], ["sampling_rate": 1_000_000_000], ["feature_size": "many"], ["chunk_length": 1_000_000],
      ["dither": 0.1], ["do_normalize": true],
    ] {
      #expect(throws: ConfigurationError.self, "\(json.serialized())") { try LogMelSpectrogram.Configuration(preprocessor: json) }
    }
  }

  // MARK: WAV files

  /// A file with one format and one data part.
  private func wave(
    tag: Int = 1, channels: Int = 1, rate: Int = 16000, bits: Int, _ body: [UInt8], claimed: Int? = nil, extensible: Bool = false,
    before: [UInt8] = []
  ) -> Data {
    func little(_ value: Int, _ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
    let block = channels * bits / 8
    var format = little(extensible ? 0xFFFE : tag, 2) + little(channels, 2) + little(rate, 4) + little(rate * block, 4)
    format += little(block, 2) + little(bits, 2)
    if extensible { format += little(22, 2) + little(bits, 2) + little(0, 4) + little(tag, 2) + [UInt8](repeating: 9, count: 14) }
    let parts =
      before + Array("fmt ".utf8) + little(format.count, 4) + format + Array("data".utf8) + little(claimed ?? body.count, 4) + body
    return Data(Array("RIFF".utf8) + little(parts.count + 4, 4) + Array("WAVE".utf8) + parts)
  }

  private func bytes<T>(_ values: [T]) -> [UInt8] { values.withUnsafeBytes { Array($0) } }

  @Test func everyKindOfSampleIsRead() throws {
    func read(_ data: Data) throws -> [Float] { try WaveFile(data, name: "x.wav").samples }
    #expect(try read(wave(bits: 8, [0, 128, 192])) == [-1, 0, 0.5])
    #expect(try read(wave(bits: 16, bytes([Int16.min, 0, 16384]))) == [-1, 0, 0.5])
    #expect(try read(wave(bits: 24, [0, 0, 0x80, 0, 0, 0, 0, 0, 0x40, 0xFF, 0xFF, 0xFF])) == [-1, 0, 0.5, -1 / 8_388_608])
    #expect(try read(wave(bits: 32, bytes([Int32.min, 0, 1 << 30]))) == [-1, 0, 0.5])
    #expect(try read(wave(tag: 3, bits: 32, bytes([Float(-1), .nan, 0.25]))) == [-1, 0, 0.25])
    #expect(try read(wave(tag: 3, bits: 64, bytes([-1.0, 0.25]))) == [-1, 0.25])
    #expect(try read(wave(bits: 16, bytes([Int16(16384)]), extensible: true)) == [0.5])
    // A list of odd length before the format, padded to even; the length unknown, as from a pipe.
    #expect(try read(wave(bits: 16, bytes([Int16(16384)]), before: Array("LIST".utf8) + [3, 0, 0, 0, 1, 2, 3, 0])) == [0.5])
    #expect(try read(wave(bits: 16, bytes([Int16(16384), 16384]), claimed: 0xFFFF_FFFF)) == [0.5, 0.5])
    let stereo = try WaveFile(wave(channels: 2, rate: 16000, bits: 16, bytes([Int16(16384), 0, 0, -16384])), name: "x.wav")
    #expect(stereo.channels == 2 && stereo.mono() == [0.25, -0.25] && stereo.duration == 2 / 16000.0)
  }

  @Test func damagedFilesAreRefusedByName() throws {
    func message(_ data: Data) -> String {
      do {
        _ = try WaveFile(data, name: "x.wav")
        return "accepted"
      } catch { return "\(error)" }
    }
    #expect(message(Data()).contains("x.wav"))
    #expect(message(Data("ID3 and so on, an MP3".utf8)).contains("is not a WAVE file"))
    #expect(message(wave(bits: 16, [1, 2], claimed: 2_000_000_000)).contains("claims 2000000000 bytes"))
    #expect(message(wave(bits: 12, [1, 2])).contains("12 bits"))
    #expect(message(wave(tag: 85, bits: 16, [1, 2])).contains("kind 85"))
    #expect(message(wave(channels: 0, bits: 16, [1, 2])).contains("0 channels"))
    #expect(message(wave(channels: 60000, bits: 8, [1, 2])).contains("60000 channels"))
    #expect(message(wave(rate: 0, bits: 16, [1, 2])).contains("0 samples a second"))
    let whole = wave(channels: 2, bits: 16, bytes([Int16(1), 2, 3, 4]))
    for length in 0..<(whole.count - 8) { #expect(message(whole.prefix(length)) != "accepted", "\(length) bytes") }
    // Any single byte may be wrong: an answer or an error, never a crash.
    for i in 0..<whole.count {
      for value: UInt8 in [0, 0x7F, 0xFF] {
        var damaged = whole
        damaged[i] = value
        _ = message(damaged)
      }
    }
    let missing = #expect(throws: FileError.self) { try WaveFile("/no/such/file.wav") }
    #expect(missing?.file == "/no/such/file.wav")
  }

  // MARK: Rates

  @Test(arguments: [8000, 11025, 22050, 44100, 48000]) func tonesKeepTheirShapeAtAnotherRate(_ rate: Int) {
    func tone(_ hertz: Double, _ rate: Int, _ count: Int) -> [Float] {
      (0..<count).map { Float(sin(2 * .pi * hertz * Double($0) / Double(rate) + 0.3)) }
    }
    let found = resampled(tone(1234, rate, rate / 8), from: rate, to: 16000)
    #expect(abs(found.count - 2000) <= 1)
    let wanted = tone(1234, 16000, found.count)
    let error = (200..<found.count - 200).map { abs(found[$0] - wanted[$0]) }.max()!
    #expect(error < 1e-3, "differs by \(error)")
    if rate > 20000 {
      // Above half the new rate nothing may come through as another tone.
      let rest = resampled(tone(10000, rate, rate / 8), from: rate, to: 16000)[200..<1800].map { abs($0) }.max()!
      #expect(rest < 1e-3, "\(rest) of a tone above the band is left")
    }
  }

  @Test func sameRatesAndNothingStayAsTheyAre() {
    #expect(resampled([1, 2, 3], from: 16000, to: 16000) == [1, 2, 3])
    #expect(resampled([], from: 8000, to: 16000).isEmpty)
    let constant = resampled([Float](repeating: 1, count: 800), from: 44100, to: 16000)
    #expect(constant[100..<190].allSatisfy { abs($0 - 1) < 1e-3 })
  }

  // MARK: What the decoder is told

  @Test func theDecoderPromptFollowsTheConfiguration() throws {
    let json: JSONValue = [
      "decoder_start_token_id": 50258, "eos_token_id": 50257, "no_timestamps_token_id": 50363, "suppress_tokens": [1, 2],
      "begin_suppress_tokens": [220, 50257], "lang_to_id": ["<|en|>": 50259, "<|de|>": 50261],
      "task_to_id": ["transcribe": 50359, "translate": 50358],
    ]
    let prompt = try WhisperPrompt(generationConfiguration: json)
    #expect(try prompt.tokens(language: "en") == [50258, 50259, 50359, 50363])
    #expect(try prompt.tokens(language: "<|de|>", task: .translate, timestamps: true) == [50258, 50261, 50358])
    #expect(prompt.suppressed == [1, 2] && prompt.suppressedAtStart == [220, 50257] && prompt.ends == [50257])
    let error = #expect(throws: ConfigurationError.self) { try prompt.tokens(language: "em") }
    #expect(error?.message.contains("de, en") == true)
    #expect(throws: ConfigurationError.self) { try prompt.tokens() }
    var logits = [Float](repeating: 0, count: 51865)
    (logits[5], logits[50259], logits[50261]) = (9, 1, 2)
    #expect(prompt.detectedLanguage(Tensor(logits)) == "de")
    // Files from before the tables, and models of English only.
    let old = try WhisperPrompt(
      generationConfiguration: ["eos_token_id": [7, 8]],
      modelConfiguration: ["decoder_start_token_id": 3, "forced_decoder_ids": [[1, nil], [2, 11], [3, 12]], "eos_token_id": 1])
    #expect(try old.tokens() == [3, 11, 12] && old.ends == [7, 8] && old.detectedLanguage(Tensor(logits)) == nil)
    #expect(throws: ConfigurationError.self) { try old.tokens(language: "en") }
    for wrong: JSONValue in [
      .null, ["decoder_start_token_id": -1], ["decoder_start_token_id": 1, "suppress_tokens": ["a"]],
      ["decoder_start_token_id": 1, "lang_to_id": [1]], ["decoder_start_token_id": 1, "forced_decoder_ids": [[1]]],
    ] {
      #expect(throws: ConfigurationError.self, "\(wrong.serialized())") { try WhisperPrompt(generationConfiguration: wrong) }
    }
  }

  @Test func aFolderTellsHowItsModelIsFed() throws {
    try withChangedCheckpoint("whisper") { path in
      let pretrained = try PretrainedModel.load(path)
      #expect(throws: FileError.self) { try pretrained.logMelSpectrogram() }
      func write(_ text: String) throws {
        try Data(text.utf8).write(to: URL(fileURLWithPath: path + "/preprocessor_config.json"))
      }
      try write(#"{"feature_size": 80}"#)
      let error = #expect(throws: FileError.self) { try pretrained.logMelSpectrogram() }
      #expect(error?.description.contains("reads 20 mel bands") == true, "\(String(describing: error))")
      // The fixture's encoder has 30 positions, for 60 frames: 0.6 s would do, a second is the least that a file can say.
      try write(#"{"feature_size": 20, "hop_length": 320, "chunk_length": 1, "n_fft": 400, "sampling_rate": 16000}"#)
      let frames = try pretrained.logMelSpectrogram()(Array(Self.audio()[..<8000]))
      #expect(frames.shape == [1, 20, 50])
      let model = try #require(pretrained.encoderDecoder)
      withoutGradient { #expect(model.encoderOutputs(frames).shape == [1, 25, 32]) }
      #expect(try pretrained.whisperPrompt().start == 3)
    }
  }
}
