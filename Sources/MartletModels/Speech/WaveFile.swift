import Foundation

/// Audio of a RIFF/WAVE file: PCM of 8, 16, 24 or 32 bits, or floating point of 32 or 64.
public struct WaveFile: Sendable {
  /// Samples a second.
  public let sampleRate: Int
  public let channels: Int
  /// In ±1; the channels of a moment stand together.
  public let samples: [Float]

  /// Seconds.
  public var duration: Double { Double(samples.count / channels) / Double(sampleRate) }

  /// Throws `FileError` for a file that can't be read or isn't such audio.
  public init(_ path: String) throws {
    let data: Data
    do {
      data = try Data(contentsOf: URL(fileURLWithPath: path), options: .mappedIfSafe)
    } catch {
      throw FileError(path, "can't be read (\(error.localizedDescription))")
    }
    try self.init(data, name: path)
  }

  /// - Parameter name: for messages. Throws `FileError`.
  public init(_ data: Data, name: String) throws {
    func fail(_ reason: String) -> FileError { FileError(name, reason) }
    let bytes = [UInt8](data.prefix(12))
    guard bytes.count == 12, bytes[8..<12].elementsEqual("WAVE".utf8), bytes[0..<4].elementsEqual("RIFF".utf8) else {
      throw fail("is not a WAVE file: it doesn't begin with RIFF…WAVE. Convert the audio to WAV (e.g. ffmpeg -i in.mp3 out.wav)")
    }
    var format: Format?
    var found: (samples: [Float], format: Format)?
    try data.withUnsafeBytes { (buffer: UnsafeRawBufferPointer) in
      func number(_ offset: Int, _ count: Int) -> Int { (0..<count).reduce(0) { $0 | Int(buffer[offset + $1]) << (8 * $1) } }
      var offset = 12
      while offset + 8 <= buffer.count && found == nil {
        let isFormat = buffer[offset..<offset + 4].elementsEqual("fmt ".utf8)
        let isData = buffer[offset..<offset + 4].elementsEqual("data".utf8)
        var size = number(offset + 4, 4)
        offset += 8
        // Writers to a pipe don't know the length: the rest of the file is meant.
        if isData && size == 0xFFFF_FFFF { size = buffer.count - offset }
        guard size <= buffer.count - offset else {
          throw fail("is truncated: a part at byte \(offset) claims \(size) bytes, \(buffer.count - offset) are left")
        }
        if isFormat {
          guard size >= 16 else { throw fail("has a format description of \(size) bytes, at least 16 are needed") }
          var tag = number(offset, 2)
          // The extensible form keeps the tag at the head of a longer identifier.
          if tag == 0xFFFE && size >= 26 { tag = number(offset + 24, 2) }
          format = try Format(
            tag: tag, channels: number(offset + 2, 2), sampleRate: number(offset + 4, 4), block: number(offset + 12, 2),
            bits: number(offset + 14, 2), name: name)
        } else if isData {
          guard let format else { throw fail("has samples before their format") }
          found = (format.read(UnsafeRawBufferPointer(rebasing: buffer[offset..<offset + size])), format)
        }
        offset += size + size % 2
      }
    }
    guard let found else { throw fail(format == nil ? "has no format description (fmt)" : "has no samples (data)") }
    sampleRate = found.format.sampleRate
    channels = found.format.channels
    samples = found.samples
  }

  private struct Format {
    let isFloat: Bool
    let channels, sampleRate, bytes: Int

    init(tag: Int, channels: Int, sampleRate: Int, block: Int, bits: Int, name: String) throws {
      guard tag == 1 && [8, 16, 24, 32].contains(bits) || tag == 3 && [32, 64].contains(bits) else {
        throw FileError(
          name, "has samples of kind \(tag) with \(bits) bits; PCM of 8, 16, 24 or 32 bits and floating point of 32 or 64 can be read")
      }
      guard (1...256).contains(channels) else { throw FileError(name, "has \(channels) channels; 1...256 can be read") }
      guard (1...768_000).contains(sampleRate) else {
        throw FileError(name, "has \(sampleRate) samples a second; 1...768000 can be read")
      }
      guard block == channels * bits / 8 else {
        throw FileError(name, "contradicts itself: \(channels) channels of \(bits) bits in blocks of \(block) bytes")
      }
      (isFloat, self.channels, self.sampleRate, bytes) = (tag == 3, channels, sampleRate, bits / 8)
    }

    func read(_ buffer: UnsafeRawBufferPointer) -> [Float] {
      // An incomplete last block is left out.
      let count = buffer.count / (bytes * channels) * channels
      func load<T: FixedWidthInteger>(_ i: Int, _ type: T.Type) -> T {
        T(littleEndian: buffer.loadUnaligned(fromByteOffset: i * MemoryLayout<T>.size, as: T.self))
      }
      return [Float](unsafeUninitializedCapacity: count) { result, initialized in
        switch (bytes, isFloat) {
        case (1, _): for i in 0..<count { result[i] = (Float(buffer[i]) - 128) / 128 }
        case (2, _): for i in 0..<count { result[i] = Float(load(i, Int16.self)) / 32768 }
        case (3, _):
          for i in 0..<count {
            let value = Int32(buffer[3 * i]) | Int32(buffer[3 * i + 1]) << 8 | Int32(Int8(bitPattern: buffer[3 * i + 2])) << 16
            result[i] = Float(value) / 8_388_608
          }
        case (4, false): for i in 0..<count { result[i] = Float(load(i, Int32.self)) / 2_147_483_648 }
        case (4, true): for i in 0..<count { result[i] = finite(Float(bitPattern: load(i, UInt32.self))) }
        default: for i in 0..<count { result[i] = finite(Float(Double(bitPattern: load(i, UInt64.self)))) }
        }
        initialized = count
      }
    }

    /// One NaN would spoil every frame.
    private func finite(_ x: Float) -> Float { x.isFinite ? x : 0 }
  }

  /// The mean of the channels at another rate, for models of speech.
  public func mono(sampleRate target: Int = 16_000) -> [Float] {
    var mixed = samples
    if channels > 1 {
      mixed = (0..<samples.count / channels).map { moment in
        (0..<channels).reduce(Float(0)) { $0 + samples[moment * channels + $1] } / Float(channels)
      }
    }
    return resampled(mixed, from: sampleRate, to: target)
  }
}
