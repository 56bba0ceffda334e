import Foundation

/// A record of a TFRecord file: the length as 8 bytes, the length's checksum, the payload, the payload's checksum, all
/// little-endian.
func tfRecord(_ payload: Data) -> Data {
  let length = withUnsafeBytes(of: UInt64(payload.count).littleEndian) { Data($0) }
  var record = length
  record.reserveCapacity(payload.count + 16)
  withUnsafeBytes(of: maskedCRC32C(length).littleEndian) { record.append(contentsOf: $0) }
  record.append(payload)
  withUnsafeBytes(of: maskedCRC32C(payload).littleEndian) { record.append(contentsOf: $0) }
  return record
}

/// TFRecord's checksum: the CRC rotated right by 15 bits plus a constant, because a CRC of data that holds its own CRC is weak.
func maskedCRC32C(_ data: Data) -> UInt32 {
  let crc = crc32c(data)
  return (crc >> 15 | crc << 17) &+ 0xA282_EAD8
}

/// The CRC of 32 bits with Castagnoli's polynomial (RFC 3720, B.4), a byte at a time.
func crc32c(_ data: Data) -> UInt32 {
  ~data.reduce(~UInt32(0)) { crc, byte in castagnoli[Int((crc ^ UInt32(byte)) & 0xFF)] ^ crc >> 8 }
}

/// What one byte does to the checksum; the polynomial with its bits reversed.
private let castagnoli: [UInt32] = (0..<256).map { byte in
  (0..<8).reduce(UInt32(byte)) { value, _ in value & 1 == 1 ? value >> 1 ^ 0x82F6_3B78 : value >> 1 }
}
