/// UTF-8 read and written a scalar at a time; the text is known to be valid.
enum UTF8Text {
  /// Bytes of the character that begins with this byte.
  @inline(__always)
  static func length(_ first: UInt8) -> Int {
    first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4
  }

  @inline(__always)
  static func scalar(_ bytes: UnsafePointer<UInt8>) -> (value: UInt32, length: Int) {
    let first = UInt32(bytes[0])
    if first < 0x80 { return (first, 1) }
    if first < 0xE0 { return ((first & 0x1F) << 6 | UInt32(bytes[1] & 0x3F), 2) }
    if first < 0xF0 { return ((first & 0xF) << 12 | UInt32(bytes[1] & 0x3F) << 6 | UInt32(bytes[2] & 0x3F), 3) }
    let high = (first & 0x7) << 18 | UInt32(bytes[1] & 0x3F) << 12
    return (high | UInt32(bytes[2] & 0x3F) << 6 | UInt32(bytes[3] & 0x3F), 4)
  }

  /// The character that ends before `end` (which isn't 0).
  @inline(__always)
  static func scalarBefore(_ bytes: UnsafePointer<UInt8>, _ end: Int) -> (value: UInt32, length: Int) {
    var start = end - 1
    while start > 0 && bytes[start] & 0xC0 == 0x80 { start -= 1 }
    return scalar(bytes + start)
  }

  @inline(__always)
  static func append(_ value: UInt32, to buffer: inout RawBuffer<UInt8>) {
    if value < 0x80 {
      buffer.append(UInt8(truncatingIfNeeded: value))
    } else if value < 0x800 {
      buffer.append(UInt8(truncatingIfNeeded: 0xC0 | value >> 6))
      buffer.append(UInt8(truncatingIfNeeded: 0x80 | value & 0x3F))
    } else if value < 0x10000 {
      buffer.append(UInt8(truncatingIfNeeded: 0xE0 | value >> 12))
      buffer.append(UInt8(truncatingIfNeeded: 0x80 | (value >> 6) & 0x3F))
      buffer.append(UInt8(truncatingIfNeeded: 0x80 | value & 0x3F))
    } else {
      buffer.append(UInt8(truncatingIfNeeded: 0xF0 | value >> 18))
      buffer.append(UInt8(truncatingIfNeeded: 0x80 | (value >> 12) & 0x3F))
      buffer.append(UInt8(truncatingIfNeeded: 0x80 | (value >> 6) & 0x3F))
      buffer.append(UInt8(truncatingIfNeeded: 0x80 | value & 0x3F))
    }
  }

  @inline(__always)
  static func width(_ value: UInt32) -> Int { value < 0x80 ? 1 : value < 0x800 ? 2 : value < 0x10000 ? 3 : 4 }

  static func isASCII(_ bytes: UnsafePointer<UInt8>, _ count: Int) -> Bool {
    let raw = UnsafeRawPointer(bytes)
    var i = 0
    while i + 8 <= count {
      if raw.loadUnaligned(fromByteOffset: i, as: UInt64.self) & 0x8080_8080_8080_8080 != 0 { return false }
      i += 8
    }
    while i < count {
      if bytes[i] >= 0x80 { return false }
      i += 1
    }
    return true
  }

  /// Whether the bytes are well-formed UTF-8 (no surrogates, nothing overlong, nothing above U+10FFFF).
  static func isValid(_ bytes: UnsafePointer<UInt8>, _ count: Int) -> Bool {
    let raw = UnsafeRawPointer(bytes)
    var i = 0
    while i < count {
      if i + 8 <= count && raw.loadUnaligned(fromByteOffset: i, as: UInt64.self) & 0x8080_8080_8080_8080 == 0 {
        i += 8
        continue
      }
      let first = bytes[i]
      if first < 0x80 {
        i += 1
        continue
      }
      if first < 0xC2 || first > 0xF4 { return false }
      let length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4
      if i + length > count { return false }
      let second = bytes[i + 1]
      switch first {
      case 0xE0: if second < 0xA0 || second > 0xBF { return false }
      case 0xED: if second < 0x80 || second > 0x9F { return false }
      case 0xF0: if second < 0x90 || second > 0xBF { return false }
      case 0xF4: if second < 0x80 || second > 0x8F { return false }
      default: if second & 0xC0 != 0x80 { return false }
      }
      if length > 2 && bytes[i + 2] & 0xC0 != 0x80 { return false }
      if length > 3 && bytes[i + 3] & 0xC0 != 0x80 { return false }
      i += length
    }
    return true
  }
}
