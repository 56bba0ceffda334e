import CImages
import Foundation

/// A decoded image of 8 bits a channel.
public struct PixelImage: Sendable, Equatable {
  public let width: Int
  public let height: Int
  /// 1 (grey) or 3 (red, green, blue).
  public let channels: Int
  /// Row by row from the top; the channels of a pixel stand together.
  public let pixels: [UInt8]

  /// Pixels of an image that can be read at most, as a short file can claim, and even unpack to, any number.
  public static let largest = 1 << 27

  public init(width: Int, height: Int, channels: Int, pixels: [UInt8]) {
    require(
      width > 0 && height > 0 && pixels.count == width * height * channels,
      "\(pixels.count) bytes are not an image of \(width)×\(height) pixels with \(channels) channels")
    self.width = width
    self.height = height
    self.channels = channels
    self.pixels = pixels
  }

  /// The same picture with another number of channels: grey in all three, or grey by the weights of ITU-R 601.
  public func converted(channels target: Int) -> PixelImage {
    if target == channels { return self }
    let count = width * height
    let converted: [UInt8]
    if target == 3 {
      converted = pixels.flatMap { [$0, $0, $0] }
    } else {
      converted = (0..<count).map { i in
        let (red, green, blue) = (Int(pixels[3 * i]), Int(pixels[3 * i + 1]), Int(pixels[3 * i + 2]))
        return UInt8((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)
      }
    }
    return PixelImage(width: width, height: height, channels: target, pixels: converted)
  }

  // MARK: Reading

  /// Reads a PNG, JPEG, PGM (P2, P5) or PPM (P3, P6) file. Transparency is left out; photographs are not turned by their EXIF data.
  ///
  /// Throws `FileError` for a file that can't be read, is damaged or holds something else.
  public init(contentsOf path: String) throws {
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
    if data.starts(with: [0x89, 0x50, 0x4E, 0x47]) {
      self = try Self.decoded("PNG", data, name, cimages_decode_png)
    } else if data.starts(with: [0xFF, 0xD8]) {
      self = try Self.decoded("JPEG", data, name, cimages_decode_jpeg)
    } else {
      self = try Self.readPortableMap([UInt8](data), name: name)
    }
  }

  private static func decoded(
    _ kind: String, _ data: Data, _ name: String, _ decode: (UnsafePointer<UInt8>, Int, UInt64) -> cimages_image
  ) throws -> PixelImage {
    var image = data.withUnsafeBytes { decode($0.baseAddress!.assumingMemoryBound(to: UInt8.self), $0.count, UInt64(largest)) }
    defer { cimages_free(&image) }
    guard let bytes = image.pixels else {
      let message = withUnsafeBytes(of: image.message) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
      throw FileError(name, "is a \(kind) file that can't be decoded: \(message)")
    }
    let count = image.width * image.height * image.channels
    return PixelImage(
      width: image.width, height: image.height, channels: image.channels, pixels: Array(UnsafeBufferPointer(start: bytes, count: count)))
  }

  /// The portable formats of Netpbm: a text header, then numbers as bytes or as text.
  private static func readPortableMap(_ bytes: [UInt8], name: String) throws -> PixelImage {
    func fail(_ reason: String) -> FileError { FileError(name, reason) }
    guard bytes.count > 2, bytes[0] == UInt8(ascii: "P"),
      let kind = ["2", "3", "5", "6"].first(where: { Character($0).asciiValue == bytes[1] })
    else { throw fail("is not an image that can be read: PNG, JPEG, PGM or PPM (P2, P3, P5, P6)") }
    var position = 2
    func isSpace(_ byte: UInt8) -> Bool { byte == 32 || (9...13).contains(byte) }
    /// The next number of the text, after spaces and comments.
    func number(_ what: String) throws -> Int {
      while position < bytes.count, isSpace(bytes[position]) || bytes[position] == UInt8(ascii: "#") {
        if bytes[position] == UInt8(ascii: "#") {
          while position < bytes.count, bytes[position] != 10 { position += 1 }
        } else {
          position += 1
        }
      }
      var value = 0
      let start = position
      while position < bytes.count, (48...57).contains(bytes[position]), position - start < 10 {
        value = value * 10 + Int(bytes[position] - 48)
        position += 1
      }
      guard position > start else { throw fail("has no \(what) at byte \(start)") }
      return value
    }
    let (width, height) = (try number("width"), try number("height"))
    let levels = try number("number of levels")
    let channels = kind == "3" || kind == "6" ? 3 : 1
    guard width > 0, height > 0, width <= largest, height <= largest, width * height <= largest else {
      throw fail("claims \(width)×\(height) pixels; images of 1 to \(largest) pixels can be read")
    }
    guard (1...65535).contains(levels) else { throw fail("claims \(levels) levels; 1 to 65535 can be read") }
    let count = width * height * channels
    func scaled(_ value: Int) -> UInt8 { UInt8((min(value, levels) * 255 + levels / 2) / levels) }
    guard kind == "5" || kind == "6" else {
      // Each number takes at least a digit and a space, so a short file can't claim a large image.
      guard bytes.count - position >= 2 * count - 1 else { throw fail("ends before its \(count) numbers") }
      return PixelImage(width: width, height: height, channels: channels, pixels: try (0..<count).map { _ in scaled(try number("number")) })
    }
    position += 1
    let size = levels > 255 ? 2 : 1
    guard bytes.count - position >= count * size else {
      throw fail("is truncated: \(width)×\(height) pixels need \(count * size) bytes, \(max(0, bytes.count - position)) are left")
    }
    let pixels = (0..<count).map { i in
      size == 1 ? scaled(Int(bytes[position + i])) : scaled(Int(bytes[position + 2 * i]) << 8 | Int(bytes[position + 2 * i + 1]))
    }
    return PixelImage(width: width, height: height, channels: channels, pixels: pixels)
  }
}
