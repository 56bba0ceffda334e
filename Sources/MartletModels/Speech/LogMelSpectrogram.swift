import Foundation

/// Log-mel frames of speech as Whisper reads them (Radford et al. 2022, §2.2): samples → [bands, frames].
///
/// Short-time power spectra under a Hann window, mirrored at the ends; triangular filters on Slaney's mel scale, of equal area;
/// log₁₀ of what they let through, no lower than 8 below its maximum, brought near ±1 by (x + 4)/4.
public struct LogMelSpectrogram: @unchecked Sendable {
  public struct Configuration: Sendable, Equatable, Codable {
    /// Samples a second.
    public var sampleRate: Int
    /// Mel bands.
    public var bands: Int
    /// Samples of a window.
    public var window: Int
    /// Samples between windows.
    public var hop: Int
    /// Length to which shorter audio is padded with silence.
    public var seconds: Int

    public init(sampleRate: Int = 16_000, bands: Int = 80, window: Int = 400, hop: Int = 160, seconds: Int = 30) {
      self.sampleRate = sampleRate
      self.bands = bands
      self.window = window
      self.hop = hop
      self.seconds = seconds
    }

    public var samples: Int { sampleRate * seconds }
    public var frames: Int { samples / hop }

    /// From the contents of a `preprocessor_config.json`; keys that are absent keep Whisper's values.
    ///
    /// Throws `ConfigurationError` that names the key.
    public init(preprocessor: JSONValue) throws {
      func integer(_ key: String, _ fallback: Int) throws -> Int {
        guard let value = preprocessor[key] else { return fallback }
        guard let number = value.intValue else {
          throw ConfigurationError("\"\(key)\" of the audio preprocessor must be an integer, not \(value.serialized())")
        }
        return number
      }
      self.init(
        sampleRate: try integer("sampling_rate", 16_000), bands: try integer("feature_size", 80), window: try integer("n_fft", 400),
        hop: try integer("hop_length", 160), seconds: try integer("chunk_length", 30))
      if let dither = preprocessor["dither"]?.doubleValue, dither != 0 {
        throw ConfigurationError("dither \(dither) of the audio preprocessor is random noise, which isn't supported; set it to 0")
      }
      if preprocessor["do_normalize"]?.boolValue == true {
        throw ConfigurationError("do_normalize of the audio preprocessor isn't supported; Whisper's models are trained without it")
      }
      try validate()
    }

    /// Throws `ConfigurationError` for numbers that make no spectrogram.
    public func validate() throws {
      func check(_ key: String, _ value: Int, _ range: ClosedRange<Int>) throws {
        guard range.contains(value) else {
          throw ConfigurationError("the audio preprocessor's \(key) must be in \(range.lowerBound)...\(range.upperBound), got \(value)")
        }
      }
      try check("sampling_rate", sampleRate, 1000...768_000)
      try check("feature_size", bands, 1...4096)
      try check("n_fft", window, 2...(1 << 16))
      try check("hop_length", hop, 1...(1 << 16))
      try check("chunk_length", seconds, 1...3600)
      guard samples > window / 2 else { throw ConfigurationError("a window of \(window) samples needs longer audio than \(samples)") }
    }
  }

  public let configuration: Configuration
  /// [bands, window/2 + 1]
  public let filters: Tensor
  /// [window]
  private let hann: Tensor

  /// Throws `ConfigurationError` for numbers that make no spectrogram.
  public init(_ configuration: Configuration = Configuration()) throws {
    try configuration.validate()
    let c = configuration
    self.configuration = c
    filters = melFilters(
      bands: c.bands, bins: c.window / 2 + 1, sampleRate: Double(c.sampleRate), highest: min(8000, Double(c.sampleRate) / 2))
    hann = Tensor((0..<c.window).map { Float(0.5 - 0.5 * cos(2 * Double.pi * Double($0) / Double(c.window))) })
  }

  /// Frames of one recording, [1, bands, frames]: padded with silence to the whole length.
  ///
  /// - Parameter samples: at `sampleRate`, in ±1.
  /// - Throws: `ConfigurationError` for audio longer than the model reads at once; see ``segments(of:)``.
  public func callAsFunction(_ samples: [Float]) throws -> Tensor {
    let c = configuration
    guard samples.count <= c.samples else {
      throw ConfigurationError(
        "the audio has \(samples.count) samples (\(samples.count / c.sampleRate) s), the model reads \(c.samples) (\(c.seconds) s) at once; "
          + "cut it into segments")
    }
    return frames(of: Tensor(samples + [Float](repeating: 0, count: c.samples - samples.count)))
  }

  /// Frames of several recordings, [batch, bands, frames].
  public func callAsFunction(_ recordings: [[Float]]) throws -> Tensor { concatenated(try recordings.map { try self($0) }) }

  /// Consecutive pieces, each as long as the model reads at once; the last may be shorter. Empty audio gives one empty piece.
  public func segments(of samples: [Float]) -> [[Float]] {
    let length = configuration.samples
    return samples.isEmpty
      ? [[]] : stride(from: 0, to: samples.count, by: length).map { Array(samples[$0..<min($0 + length, samples.count)]) }
  }

  /// samples [n] → [1, bands, n / hop].
  private func frames(of samples: Tensor) -> Tensor {
    let c = configuration
    let mirrored = reflect(.tensor(samples.expandedDimension(0)), .ints([c.window / 2, c.window / 2])).squeezed(0)
    let count = samples.dim(0) / c.hop
    let pieces = mirrored.windows(axis: 0, size: c.window, step: c.hop).narrowed(axis: 0, start: 0, length: count)  // [frames, window]
    let power = (pieces * hann).rfft().viewAsReal().square().sum(axis: -1)  // [frames, bins]
    let mel = linearMap(power, filters).T  // [bands, frames]
    let log = mel.clamped(min: 1e-10).log() / Foundation.log(10.0)
    let floor = log.max().item() - 8
    return ((log.clamped(min: floor) + 4) / 4).contiguous().expandedDimension(0)
  }
}

private let reflect = Operator("aten::reflection_pad1d")

/// Triangular filters of equal area on Slaney's mel scale, [bands, bins]: linear below 1 kHz (3 mel every 200 Hz), above it 27 mel for
/// every factor of 6.4.
public func melFilters(bands: Int, bins: Int, sampleRate: Double, lowest: Double = 0, highest: Double) -> Tensor {
  let step = log(6.4) / 27
  func mel(_ hertz: Double) -> Double { hertz < 1000 ? hertz * 3 / 200 : 15 + log(hertz / 1000) / step }
  func hertz(_ mel: Double) -> Double { mel < 15 ? mel * 200 / 3 : 1000 * exp((mel - 15) * step) }
  let (low, high) = (mel(lowest), mel(highest))
  let edges = (0..<bands + 2).map { hertz(low + (high - low) * Double($0) / Double(bands + 1)) }
  var weights = [Float](repeating: 0, count: bands * bins)
  for band in 0..<bands {
    let (left, centre, right) = (edges[band], edges[band + 1], edges[band + 2])
    for bin in 0..<bins {
      let frequency = sampleRate / 2 * Double(bin) / Double(max(bins - 1, 1))
      let height = min((frequency - left) / (centre - left), (right - frequency) / (right - centre))
      if height > 0 { weights[band * bins + bin] = Float(height * 2 / (right - left)) }
    }
  }
  return Tensor(weights, [bands, bins])
}
