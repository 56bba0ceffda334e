/// Hashes of byte strings for the tables of this module: wide multiplications over words of eight bytes.
///
/// The seed is drawn once a process, so that nobody can prepare a text whose words all fall into one slot. Results don't depend on it.
enum ByteHash {
  static let seed = UInt64.random(in: .min ... .max)

  @inline(__always)
  static func mix(_ a: UInt64, _ b: UInt64) -> UInt64 {
    let product = a.multipliedFullWidth(by: b)
    return product.high ^ product.low
  }

  @inline(__always)
  static func hash(_ bytes: UnsafePointer<UInt8>, _ count: Int, seed: UInt64) -> UInt64 {
    let raw = UnsafeRawPointer(bytes)
    var state = seed ^ 0x9E37_79B9_7F4A_7C15
    if count >= 8 {
      var position = 0
      while position + 8 < count {
        state = mix(state ^ raw.loadUnaligned(fromByteOffset: position, as: UInt64.self), 0xA076_1D64_78BD_642F)
        position += 8
      }
      let last = raw.loadUnaligned(fromByteOffset: count - 8, as: UInt64.self)
      return mix(state ^ last, 0xE703_7ED1_A0B4_28DB ^ UInt64(truncatingIfNeeded: count))
    }
    var last: UInt64 = 0
    if count >= 4 {
      let low = raw.loadUnaligned(as: UInt32.self)
      let high = raw.loadUnaligned(fromByteOffset: count - 4, as: UInt32.self)
      last = UInt64(low) | UInt64(high) << 32
    } else if count > 0 {
      last = UInt64(bytes[0]) | UInt64(bytes[count >> 1]) << 8 | UInt64(bytes[count - 1]) << 16
    }
    return mix(state ^ last, 0xE703_7ED1_A0B4_28DB ^ UInt64(truncatingIfNeeded: count))
  }

  @inline(__always)
  static func equal(_ a: UnsafePointer<UInt8>, _ b: UnsafePointer<UInt8>, _ count: Int) -> Bool {
    var i = 0
    let x = UnsafeRawPointer(a)
    let y = UnsafeRawPointer(b)
    while i + 8 <= count {
      if x.loadUnaligned(fromByteOffset: i, as: UInt64.self) != y.loadUnaligned(fromByteOffset: i, as: UInt64.self) { return false }
      i += 8
    }
    while i < count {
      if a[i] != b[i] { return false }
      i += 1
    }
    return true
  }
}
