/// What SentencePiece does to a text before its model sees it: the compiled rules, blanks at the ends and in runs taken out, a blank
/// put before, blanks written as "▁".
///
/// Differs from ``PrecompiledCharacterMap``, which follows the `tokenizers` library: here the longest rule that fits at a place is
/// applied, wherever the place is in a grapheme; and user-defined pieces are left as they are.
public final class SentencePieceNormalizer: Sendable {
  public let addsDummyPrefix: Bool
  public let removesExtraSpaces: Bool
  public let escapesSpaces: Bool
  /// The blank of `addsDummyPrefix` goes behind the text.
  public let treatsSpaceAsSuffix: Bool
  /// The double array of the rules; empty without rules.
  private let units: [UInt32]
  /// What the rules put in place, each ended by a zero byte.
  private let replacements: [UInt8]
  /// Whether some rule begins with the byte.
  private let hasRule: [Bool]
  private let userDefined: ByteTrie?

  /// `rules` as they stand in the file, empty for none. Throws ``VocabularyError`` where their sizes don't fit.
  init(
    rules: [UInt8], addsDummyPrefix: Bool, removesExtraSpaces: Bool, escapesSpaces: Bool, treatsSpaceAsSuffix: Bool, userDefined: ByteTrie?
  ) throws(VocabularyError) {
    self.addsDummyPrefix = addsDummyPrefix
    self.removesExtraSpaces = removesExtraSpaces
    self.escapesSpaces = escapesSpaces
    self.treatsSpaceAsSuffix = treatsSpaceAsSuffix
    self.userDefined = userDefined
    if rules.isEmpty {
      units = []
      replacements = []
    } else {
      guard rules.count >= 4 else { throw VocabularyError("precompiled_charsmap has only \(rules.count) bytes") }
      func number(_ at: Int) -> UInt32 {
        UInt32(rules[at]) | UInt32(rules[at + 1]) << 8 | UInt32(rules[at + 2]) << 16 | UInt32(rules[at + 3]) << 24
      }
      let size = Int(number(0))
      guard size % 4 == 0, size > 0, size <= rules.count - 4 else {
        throw VocabularyError("precompiled_charsmap claims a table of \(size) bytes, and has \(rules.count - 4)")
      }
      units = (0..<(size / 4)).map { number(4 + 4 * $0) }
      replacements = Array(rules[(4 + size)...])
      guard replacements.withUnsafeBufferPointer({ $0.isEmpty || UTF8Text.isValid($0.baseAddress!, $0.count) }) else {
        throw VocabularyError("the replacements in precompiled_charsmap aren't valid UTF-8")
      }
    }
    var hasRule = [Bool](repeating: false, count: 256)
    for byte in 0..<256 where !units.isEmpty {
      let node = Int(Self.offset(units[0]) ^ UInt32(byte))
      hasRule[byte] = node < units.count && units[node] & 0x8000_00FF == UInt32(byte)
    }
    self.hasRule = hasRule
  }

  @inline(__always)
  private static func offset(_ unit: UInt32) -> UInt32 { (unit >> 10) << ((unit & 0x200) >> 6) }

  /// The longest rule that the text begins with: its length and where its replacement is. nil for none.
  private func rule(_ text: UnsafePointer<UInt8>, _ count: Int) -> (length: Int, replacement: Range<Int>)? {
    guard count > 0, hasRule[Int(text[0])] else { return nil }
    var best: (length: Int, start: Int)?
    units.withUnsafeBufferPointer { units in
      var node = Self.offset(units[0])
      for i in 0..<count {
        node ^= UInt32(text[i])
        guard Int(node) < units.count else { return }
        let unit = units[Int(node)]
        if unit & 0x8000_00FF != UInt32(text[i]) { return }
        node ^= Self.offset(unit)
        guard Int(node) < units.count else { return }
        // A rule can't end inside a character, whatever a lying table says.
        if unit >> 8 & 1 == 1, i + 1 == count || text[i + 1] & 0xC0 != 0x80 { best = (i + 1, Int(units[Int(node)] & 0x7FFF_FFFF)) }
      }
    }
    guard let best, best.start < replacements.count, replacements[best.start] & 0xC0 != 0x80 else { return nil }
    var end = best.start
    while end < replacements.count, replacements[end] != 0 { end += 1 }
    return (best.length, best.start..<end)
  }

  /// Writes the changed text.
  func apply(_ text: TextView, into out: inout TextBuffer) {
    let bytes = text.bytes
    let count = text.count
    let space: UInt32 = escapesSpaces ? 0x2581 : 0x20
    var position = 0
    if removesExtraSpaces {
      while position < count {
        if let length = userDefined?.longestPrefix(bytes + position, count - position).length, length > 0 { break }
        if let (length, replacement) = rule(bytes + position, count - position) {
          guard replacement.count == 1, replacements[replacement.lowerBound] == 0x20 else { break }
          position += length
        } else if bytes[position] == 0x20 {
          position += 1
        } else {
          break
        }
      }
    }
    if position == count { return }
    if addsDummyPrefix, !treatsSpaceAsSuffix { out.append(space, from: text, at: position) }
    var wasSpace = removesExtraSpaces
    while position < count {
      let length: Int
      let user = userDefined?.longestPrefix(bytes + position, count - position).length ?? 0
      if user > 0 {
        length = user
        for place in position..<(position + user) {
          if bytes[place] != 0x20 {
            out.copy(text, place, place + 1)
            wasSpace = false
          } else if !wasSpace {
            out.append(space, from: text, at: place)
          }
        }
        if bytes[position + user - 1] == 0x20 { wasSpace = true }
      } else if let (fits, replacement) = rule(bytes + position, count - position) {
        length = fits
        wasSpace = replacements.withUnsafeBufferPointer {
          write(text, UnsafeBufferPointer(rebasing: $0[replacement]), at: position, space, wasSpace, &out)
        }
      } else {
        length = UTF8Text.length(bytes[position])
        if bytes[position] == 0x20 {
          if !wasSpace { out.append(space, from: text, at: position) }
          wasSpace = true
        } else {
          out.copy(text, position, position + length)
          wasSpace = false
        }
      }
      if !removesExtraSpaces { wasSpace = false }
      position += length
    }
    if removesExtraSpaces { removeTrailing(space, &out) }
    if addsDummyPrefix, treatsSpaceAsSuffix { out.append(space, from: text, at: count - 1) }
  }

  /// Writes what takes the place of some characters; whether it ends with a blank.
  private func write(
    _ text: TextView, _ content: UnsafeBufferPointer<UInt8>, at place: Int, _ space: UInt32, _ wasSpace: Bool, _ out: inout TextBuffer
  ) -> Bool {
    var start = 0
    if wasSpace { while start < content.count, content[start] == 0x20 { start += 1 } }
    // Nothing written leaves the state as it is.
    if start == content.count { return wasSpace }
    var run = start
    for index in start..<content.count where content[index] == 0x20 {
      if index > run { out.append(UnsafeBufferPointer(rebasing: content[run..<index]), from: text, at: place) }
      out.append(space, from: text, at: place)
      run = index + 1
    }
    if run < content.count { out.append(UnsafeBufferPointer(rebasing: content[run...]), from: text, at: place) }
    return content[content.count - 1] == 0x20
  }

  private func removeTrailing(_ space: UInt32, _ out: inout TextBuffer) {
    let width = UTF8Text.width(space)
    while out.bytes.count >= width {
      let end = out.bytes.count
      guard UTF8Text.scalarBefore(UnsafePointer(out.bytes.base), end).value == space else { return }
      out.bytes.count = end - width
      if out.isAligned {
        out.starts.count = end - width
        out.ends.count = end - width
      }
    }
  }
}
