/// BERT's normalization in one pass over the text.
struct BertNormalization {
  var cleansText: Bool
  var separatesChinese: Bool
  var stripsAccents: Bool
  var lowercases: Bool

  func apply(_ text: TextView, into out: inout TextBuffer, _ scratch: inout NormalizationScratch) {
    if stripsAccents && needsReordering(text) {
      applyInStages(text, into: &out, &scratch)
    } else {
      pass(text, into: &out, cleans: cleansText, chinese: separatesChinese, accents: stripsAccents, lowers: lowercases)
    }
  }

  /// ASCII: 0 is removed, the others are written.
  private static func asciiTable(cleans: Bool, lowers: Bool) -> [UInt8] {
    (UInt8(0)..<0x80).map { byte in
      if cleans && (byte == 0x09 || byte == 0x0A || byte == 0x0D || byte == 0x20) { return 0x20 }
      if cleans && (byte < 0x20 || byte == 0x7F) { return 0 }
      return lowers && byte &- 0x41 < 26 ? byte | 0x20 : byte
    }
  }
  private static let tables = [
    asciiTable(cleans: false, lowers: false), asciiTable(cleans: false, lowers: true), asciiTable(cleans: true, lowers: false),
    asciiTable(cleans: true, lowers: true),
  ]

  private func pass(_ text: TextView, into out: inout TextBuffer, cleans: Bool, chinese: Bool, accents: Bool, lowers: Bool) {
    let classes = UnicodeTables.classes
    let bytes = text.bytes
    let count = text.count
    out.bytes.reserve(count + 16)
    Self.tables[(cleans ? 2 : 0) + (lowers ? 1 : 0)].withUnsafeBufferPointer { ascii in
      var position = 0
      while position < count {
        let byte = bytes[position]
        if byte < 0x80 {
          let mapped = ascii[Int(byte)]
          // Only cleaning removes; an unclean NUL is written.
          if mapped != 0 || !cleans {
            out.bytes.append(mapped)
            out.note(1, text, position)
          }
          position += 1
          continue
        }
        let (scalar, length) = UTF8Text.scalar(bytes + position)
        let kind = scalarClass(scalar, classes)
        if cleans && (kind.contains(.bertControl) || scalar == 0xFFFD) {
          // removed
        } else if cleans && kind.contains(.space) {
          out.append(0x20, from: text, at: position)
        } else if chinese && Self.isChinese(scalar) {
          out.append(0x20, from: text, at: position)
          write(scalar, text, position, accents, lowers, classes, &out)
          out.append(0x20, from: text, at: position)
        } else {
          write(scalar, text, position, accents, lowers, classes, &out)
        }
        position += length
      }
    }
  }

  private func write(
    _ scalar: UInt32, _ text: TextView, _ place: Int, _ accents: Bool, _ lowers: Bool, _ classes: ScalarTable<UInt16>,
    _ out: inout TextBuffer
  ) {
    if accents {
      if Hangul.syllables.contains(scalar) {
        let index = scalar - Hangul.syllables.lowerBound
        out.append(Hangul.leads.lowerBound + index / 588, from: text, at: place)
        out.append(Hangul.vowels.lowerBound + index % 588 / 28, from: text, at: place)
        if index % 28 > 0 { out.append(Hangul.finals.lowerBound - 1 + index % 28, from: text, at: place) }
        return
      }
      if let parts = UnicodeTables.canonical[scalar] {
        for part in parts where !scalarClass(part, classes).contains(.nonspacing) { writeCase(part, text, place, lowers, &out) }
        return
      }
      if scalarClass(scalar, classes).contains(.nonspacing) { return }
    }
    writeCase(scalar, text, place, lowers, &out)
  }

  @inline(__always)
  private func writeCase(_ scalar: UInt32, _ text: TextView, _ place: Int, _ lowers: Bool, _ out: inout TextBuffer) {
    if lowers {
      if scalar < 0x80 {
        out.append(scalar &- 0x41 < 26 ? scalar | 0x20 : scalar, from: text, at: place)
        return
      }
      if let mapped = UnicodeTables.lowercase[scalar] {
        for part in mapped { out.append(part, from: text, at: place) }
        return
      }
    }
    out.append(scalar, from: text, at: place)
  }

  /// The blocks BERT calls Chinese.
  static func isChinese(_ scalar: UInt32) -> Bool {
    switch scalar {
    case 0x4E00...0x9FFF, 0x3400...0x4DBF, 0x20000...0x2A6DF, 0x2A700...0x2B73F, 0x2B740...0x2B81F, 0x2B920...0x2CEAF, 0xF900...0xFAFF,
      0x2F800...0x2FA1F:
      true
    default: false
    }
  }

  /// Whether marks that stay after stripping could change places when decomposed: those with a combining class that aren't nonspacing.
  private func needsReordering(_ text: TextView) -> Bool {
    let classes = UnicodeTables.classes
    let combining = UnicodeTables.combiningClasses
    var position = 0
    while position < text.count {
      if text.bytes[position] < 0xC4 {
        position += UTF8Text.length(text.bytes[position])
        continue
      }
      let (scalar, length) = UTF8Text.scalar(text.bytes + position)
      if combining[scalar] != 0 && !scalarClass(scalar, classes).contains(.nonspacing) { return true }
      position += length
    }
    return false
  }

  private func applyInStages(_ text: TextView, into out: inout TextBuffer, _ scratch: inout NormalizationScratch) {
    var clean = TextBuffer()
    clean.begin(isAligned: out.isAligned)
    pass(text, into: &clean, cleans: cleansText, chinese: separatesChinese, accents: false, lowers: false)
    var decomposed = TextBuffer()
    decomposed.begin(isAligned: out.isAligned)
    if !NormalizationForm.nfd.apply(clean.view, into: &decomposed, &scratch) { decomposed.copy(clean.view, 0, clean.bytes.count) }
    pass(decomposed.view, into: &out, cleans: false, chinese: false, accents: true, lowers: lowercases)
  }
}
