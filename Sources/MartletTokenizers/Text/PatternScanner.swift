/// The patterns that most byte-level tokenizers share, matched by hand: every match, one after the other, covers the text.
///
/// `PatternScannerTests` compares them with the patterns themselves.
enum PatternScanner: Sendable {
  case gpt2
  /// cl100k, Llama 3 (up to three digits together) and Qwen 2 (one digit).
  case contractions(maximumDigits: Int)

  /// The scanner for a pattern, if there is one.
  init?(_ pattern: String) {
    let start = #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"#
    let end = #"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    switch pattern {
    case #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#,
      #"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#:
      self = .gpt2
    case start + #"\p{N}{1,3}"# + end: self = .contractions(maximumDigits: 3)
    case start + #"\p{N}"# + end: self = .contractions(maximumDigits: 1)
    default: return nil
    }
  }

  func scan(_ bytes: UnsafePointer<UInt8>, _ start: Int, _ end: Int, into out: inout RawBuffer<Piece>) {
    let classes = UnicodeTables.classes
    switch self {
    case .gpt2:
      var position = start
      while position < end {
        let next = Self.gpt2Match(bytes, position, end, classes)
        out.append(Piece(start: UInt32(position), end: UInt32(next)))
        position = next
      }
    case .contractions(let maximumDigits):
      var position = start
      while position < end {
        let next = Self.contractionMatch(bytes, position, end, maximumDigits, classes)
        out.append(Piece(start: UInt32(position), end: UInt32(next)))
        position = next
      }
    }
  }

  private static let other: ScalarClass = [.space, .letter, .number]

  /// The end of the run of characters of a class that begins at `position`.
  @inline(__always)
  private static func run(
    _ bytes: UnsafePointer<UInt8>, _ position: Int, _ end: Int, _ wanted: ScalarClass, _ classes: ScalarTable<UInt16>
  ) -> Int {
    var position = position
    while position < end {
      let (scalar, length) = UTF8Text.scalar(bytes + position)
      if scalarClass(scalar, classes).isDisjoint(with: wanted) { break }
      position += length
    }
    return position
  }

  /// The end of the run of characters that are neither space nor letter nor number.
  @inline(__always)
  private static func otherRun(_ bytes: UnsafePointer<UInt8>, _ position: Int, _ end: Int, _ classes: ScalarTable<UInt16>) -> Int {
    var position = position
    while position < end {
      let (scalar, length) = UTF8Text.scalar(bytes + position)
      if !scalarClass(scalar, classes).isDisjoint(with: other) { break }
      position += length
    }
    return position
  }

  /// Of white space from `position` to `stop`, all but the last character when something else follows: `\s+(?!\S)|\s+`.
  @inline(__always)
  private static func spaces(_ bytes: UnsafePointer<UInt8>, _ position: Int, _ stop: Int, _ end: Int) -> Int {
    if stop == end { return stop }
    var last = stop - 1
    while bytes[last] & 0xC0 == 0x80 { last -= 1 }
    return last > position ? last : stop
  }

  private static func gpt2Match(_ bytes: UnsafePointer<UInt8>, _ position: Int, _ end: Int, _ classes: ScalarTable<UInt16>) -> Int {
    let byte = bytes[position]
    if byte == UInt8(ascii: "'"), position + 1 < end {
      switch bytes[position + 1] {
      case UInt8(ascii: "s"), UInt8(ascii: "t"), UInt8(ascii: "m"), UInt8(ascii: "d"): return position + 2
      case UInt8(ascii: "r") where position + 2 < end && bytes[position + 2] == UInt8(ascii: "e"): return position + 3
      case UInt8(ascii: "v") where position + 2 < end && bytes[position + 2] == UInt8(ascii: "e"): return position + 3
      case UInt8(ascii: "l") where position + 2 < end && bytes[position + 2] == UInt8(ascii: "l"): return position + 3
      default: break
      }
    }
    let first = byte == 0x20 && position + 1 < end ? position + 1 : position
    let (scalar, length) = UTF8Text.scalar(bytes + first)
    let kind = scalarClass(scalar, classes)
    if kind.contains(.letter) { return run(bytes, first + length, end, .letter, classes) }
    if kind.contains(.number) { return run(bytes, first + length, end, .number, classes) }
    if !kind.contains(.space) { return otherRun(bytes, first + length, end, classes) }
    return spaces(bytes, position, run(bytes, position, end, .space, classes), end)
  }

  /// Bytes of a contraction at an apostrophe, in any case, or 0. The long s counts as an s.
  @inline(__always)
  private static func contraction(_ bytes: UnsafePointer<UInt8>, _ position: Int, _ end: Int) -> Int {
    if position + 1 >= end { return 0 }
    let first = bytes[position + 1] | 0x20
    switch first {
    case UInt8(ascii: "s"), UInt8(ascii: "t"), UInt8(ascii: "m"), UInt8(ascii: "d"): return 2
    case UInt8(ascii: "r"), UInt8(ascii: "v"):
      return position + 2 < end && bytes[position + 2] | 0x20 == UInt8(ascii: "e") ? 3 : 0
    case UInt8(ascii: "l"): return position + 2 < end && bytes[position + 2] | 0x20 == UInt8(ascii: "l") ? 3 : 0
    default: return bytes[position + 1] == 0xC5 && position + 2 < end && bytes[position + 2] == 0xBF ? 3 : 0
    }
  }

  private static func contractionMatch(
    _ bytes: UnsafePointer<UInt8>, _ position: Int, _ end: Int, _ maximumDigits: Int, _ classes: ScalarTable<UInt16>
  ) -> Int {
    let byte = bytes[position]
    if byte == UInt8(ascii: "'") {
      let length = contraction(bytes, position, end)
      if length > 0 { return position + length }
    }
    let (scalar, length) = UTF8Text.scalar(bytes + position)
    let kind = scalarClass(scalar, classes)
    let next = position + length
    if kind.contains(.letter) { return run(bytes, next, end, .letter, classes) }
    let isBreak = byte == 0x0A || byte == 0x0D
    if kind.contains(.number) {
      var stop = next
      var count = 1
      while count < maximumDigits && stop < end {
        let (scalar, length) = UTF8Text.scalar(bytes + stop)
        if !scalarClass(scalar, classes).contains(.number) { break }
        stop += length
        count += 1
      }
      return stop
    }
    // One character that isn't a line break may stand before letters.
    var following: ScalarClass = []
    var followingLength = 0
    if next < end {
      let (scalar, length) = UTF8Text.scalar(bytes + next)
      following = scalarClass(scalar, classes)
      followingLength = length
      if !isBreak && following.contains(.letter) { return run(bytes, next + length, end, .letter, classes) }
    }
    // ` ?[^\s\p{L}\p{N}]+[\r\n]*`
    var stop = 0
    if !kind.contains(.space) {
      stop = otherRun(bytes, next, end, classes)
    } else if byte == 0x20 && next < end && following.isDisjoint(with: other) {
      stop = otherRun(bytes, next + followingLength, end, classes)
    }
    if stop > 0 {
      while stop < end && (bytes[stop] == 0x0A || bytes[stop] == 0x0D) { stop += 1 }
      return stop
    }
    // White space: up to its last line break, if there is one.
    let spacesEnd = run(bytes, position, end, .space, classes)
    var last = spacesEnd
    while last > position {
      if bytes[last - 1] == 0x0A || bytes[last - 1] == 0x0D { return last }
      last -= 1
    }
    return spaces(bytes, position, spacesEnd, end)
  }
}
