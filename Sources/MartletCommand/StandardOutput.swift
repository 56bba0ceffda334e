import Foundation

/// Standard output as bytes. A reader that goes away ends the process by SIGPIPE, quietly (``CommandLineErrors``).
enum StandardOutput {
  static func write(_ bytes: [UInt8]) {
    // What `print` still holds comes first.
    fflush(nil)
    bytes.withUnsafeBytes { bytes in
      var rest = bytes
      while rest.count > 0 {
        let written = Foundation.write(STDOUT_FILENO, rest.baseAddress, rest.count)
        if written < 0 && errno == EINTR { continue }
        guard written > 0 else {
          Output.note("error: standard output can't be written: \(String(cString: strerror(errno)))")
          exit(CommandLineErrors.badUsage.rawValue)
        }
        rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(written))
      }
    }
  }

  static func write(_ text: String) { write(Array(text.utf8)) }
}

/// JSON put together as bytes, for output of millions of lines.
enum JSONBytes {
  static func append(_ value: some BinaryInteger, to bytes: inout [UInt8]) {
    let start = bytes.count
    var rest = UInt64(value.magnitude)
    repeat {
      bytes.append(UInt8(ascii: "0") + UInt8(rest % 10))
      rest /= 10
    } while rest > 0
    if value < 0 { bytes.append(UInt8(ascii: "-")) }
    bytes[start...].reverse()
  }

  /// A string in quotes. Everything that some language takes for the end of a line is escaped, so that a value stays on one line.
  static func append(_ text: String, to bytes: inout [UInt8]) {
    let quote = UInt8(ascii: "\"")
    bytes.append(quote)
    for scalar in text.unicodeScalars {
      switch scalar.value {
      case 0x22: bytes += [0x5C, 0x22]
      case 0x5C: bytes += [0x5C, 0x5C]
      case 0x0A: bytes += [0x5C, UInt8(ascii: "n")]
      case 0x0D: bytes += [0x5C, UInt8(ascii: "r")]
      case 0x09: bytes += [0x5C, UInt8(ascii: "t")]
      case 0..<0x20, 0x7F, 0x85, 0x2028, 0x2029: bytes += Array("\\u".utf8) + Array(hexadecimal(scalar.value).utf8)
      default: bytes += UTF8.encode(scalar)!
      }
    }
    bytes.append(quote)
  }

  private static func hexadecimal(_ value: UInt32) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: 4 - digits.count) + digits
  }

  /// The elements in brackets, separated by commas.
  static func append<Element>(_ elements: some Sequence<Element>, to bytes: inout [UInt8], _ append: (Element, inout [UInt8]) -> Void) {
    bytes.append(UInt8(ascii: "["))
    var isFirst = true
    for element in elements {
      if !isFirst { bytes.append(UInt8(ascii: ",")) }
      isFirst = false
      append(element, &bytes)
    }
    bytes.append(UInt8(ascii: "]"))
  }
}
