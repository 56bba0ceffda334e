/// SentencePiece's compiled normalization rules: a double array that finds strings, and the strings they become.
///
/// Layout: the bytes of the double array as a little-endian 32-bit number, the array (32-bit units, as in Darts-clone), then the
/// replacements, each ended by a zero byte.
public final class PrecompiledCharacterMap: Sendable {
  /// As it stands in the file.
  public let bytes: [UInt8]
  private let units: [UInt32]
  private let replacements: [UInt8]
  /// Whether an ASCII character alone has a rule.
  private let asciiHasRule: [Bool]

  /// Throws ``VocabularyError`` for sizes that don't fit the bytes given and replacements that aren't UTF-8.
  public init(_ bytes: [UInt8]) throws(VocabularyError) {
    self.bytes = bytes
    guard bytes.count >= 4 else { throw VocabularyError("the precompiled character map has only \(bytes.count) bytes") }
    let size = Int(bytes[0]) | Int(bytes[1]) << 8 | Int(bytes[2]) << 16 | Int(bytes[3]) << 24
    guard size % 4 == 0, size > 0, size <= bytes.count - 4 else {
      throw VocabularyError("the precompiled character map claims a table of \(size) bytes, and has \(bytes.count - 4)")
    }
    let units = (0..<(size / 4)).map { i -> UInt32 in
      let at = 4 + 4 * i
      return UInt32(bytes[at]) | UInt32(bytes[at + 1]) << 8 | UInt32(bytes[at + 2]) << 16 | UInt32(bytes[at + 3]) << 24
    }
    self.units = units
    replacements = Array(bytes[(4 + size)...])
    guard replacements.withUnsafeBufferPointer({ $0.isEmpty || UTF8Text.isValid($0.baseAddress!, $0.count) }) else {
      throw VocabularyError("the replacements of the precompiled character map aren't valid UTF-8")
    }
    var asciiHasRule = [Bool](repeating: false, count: 128)
    for byte in UInt8(0)..<128 {
      asciiHasRule[Int(byte)] = withUnsafePointer(to: byte) { Self.find($0, 1, units) != nil }
    }
    self.asciiHasRule = asciiHasRule
  }

  /// The value of the shortest rule that the text begins with.
  private static func find(_ text: UnsafePointer<UInt8>, _ count: Int, _ units: [UInt32]) -> Int? {
    units.withUnsafeBufferPointer { units in
      func offset(_ unit: UInt32) -> UInt32 { (unit >> 10) << ((unit & 0x200) >> 6) }
      var node = offset(units[0])
      for i in 0..<count {
        // As in the Rust crate: a zero byte ends the search.
        if text[i] == 0 { return nil }
        node ^= UInt32(text[i])
        guard Int(node) < units.count else { return nil }
        let unit = units[Int(node)]
        if unit & 0x8000_00FF != UInt32(text[i]) { return nil }
        node ^= offset(unit)
        guard Int(node) < units.count else { return nil }
        if (unit >> 8) & 1 == 1 { return Int(units[Int(node)] & 0x7FFF_FFFF) }
      }
      return nil
    }
  }

  /// What takes the place of the whole text when some rule fits its beginning (the library's own rule, which looks odd and is right).
  private func replacement(_ text: UnsafePointer<UInt8>, _ count: Int) -> Range<Int>? {
    guard let start = Self.find(text, count, units), start < replacements.count else { return nil }
    // A lying offset into the middle of a character.
    if replacements[start] & 0xC0 == 0x80 { return nil }
    var end = start
    while end < replacements.count && replacements[end] != 0 { end += 1 }
    return start..<end
  }

  /// Writes the changed text; false when nothing changes.
  func apply(_ text: TextView, into out: inout TextBuffer) -> Bool {
    let bytes = text.bytes
    let count = text.count
    var copied = 0
    var hasChanged = false

    // Characters removed at the very beginning count, in the library, as the origin of what follows: that decides whether the text still
    // begins at the beginning.
    func copyUnchanged(_ end: Int, _ out: inout TextBuffer) {
      if copied > 0 && copied < end && out.bytes.count == 0 {
        let (scalar, length) = UTF8Text.scalar(bytes + copied)
        out.append(scalar, from: text, at: 0)
        copied += length
      }
      out.copy(text, copied, end)
    }

    func replace(_ range: Range<Int>, _ start: Int, _ end: Int, _ out: inout TextBuffer) {
      copyUnchanged(start, &out)
      let place = out.bytes.count == 0 ? 0 : start
      replacements.withUnsafeBufferPointer { out.append(UnsafeBufferPointer(rebasing: $0[range]), from: text, at: place) }
      copied = end
      hasChanged = true
    }

    var position = 0
    while position < count {
      // A character of ASCII before another one (but CR LF) is a grapheme of its own.
      if bytes[position] < 0x80, position + 1 == count || bytes[position + 1] < 0x80, bytes[position] != 0x0D {
        if asciiHasRule[Int(bytes[position])], let range = replacement(bytes + position, 1) {
          replace(range, position, position + 1, &out)
        }
        position += 1
        continue
      }
      let end = graphemeEnd(bytes, position, count)
      if end - position < 6, let range = replacement(bytes + position, end - position) {
        replace(range, position, end, &out)
      } else {
        var place = position
        while place < end {
          let next = place + UTF8Text.length(bytes[place])
          if let range = replacement(bytes + place, next - place) { replace(range, place, next, &out) }
          place = next
        }
      }
      position = end
    }
    if !hasChanged { return false }
    copyUnchanged(count, &out)
    return true
  }

  private func graphemeEnd(_ bytes: UnsafePointer<UInt8>, _ start: Int, _ count: Int) -> Int {
    var recognizer = Unicode._CharacterRecognizer()
    var position = start
    while position < count {
      let (value, length) = UTF8Text.scalar(bytes + position)
      let isBreak = recognizer.hasBreak(before: Unicode.Scalar(value) ?? "\u{FFFD}")
      if isBreak && position > start { break }
      position += length
    }
    return position
  }
}
