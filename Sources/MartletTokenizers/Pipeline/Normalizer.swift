/// Changes the text before it is cut.
public indirect enum Normalizer: Sendable {
  /// BERT's: removes control characters and makes every space a blank; puts blanks around Chinese characters; strips accents
  /// (nil: when it lowers the case); lowers the case.
  case bert(cleansText: Bool, separatesChinese: Bool, stripsAccents: Bool?, lowercases: Bool)
  case nfc, nfd, nfkc, nfkd
  case lowercase
  /// Removes white space at the ends.
  case strip(left: Bool, right: Bool)
  /// Removes combining marks (decompose first).
  case stripAccents
  case replace(TextPattern, with: String)
  /// Puts a string before a text that isn't empty.
  case prepend(String)
  /// SentencePiece's compiled rules.
  case precompiled(PrecompiledCharacterMap)
  /// All that SentencePiece itself does.
  case sentencePiece(SentencePieceNormalizer)
  /// Cleaning as in SentencePiece's nmt rules.
  case nmt
  /// Letters of the byte-level alphabet for bytes.
  case byteLevel
  case sequence([Normalizer])

  /// Without sequences inside sequences.
  var flattened: [Normalizer] { if case .sequence(let parts) = self { parts.flatMap(\.flattened) } else { [self] } }

  /// Writes the changed text to `out`; false, with nothing that counts written, when the text stays as it is.
  func apply(_ text: TextView, into out: inout TextBuffer, _ scratch: inout NormalizationScratch, _ memory: RegularExpression.Memory) throws
    -> Bool
  {
    let bytes = text.bytes
    let count = text.count
    switch self {
    case .bert(let cleans, let chinese, let accents, let lowers):
      BertNormalization(cleansText: cleans, separatesChinese: chinese, stripsAccents: accents ?? lowers, lowercases: lowers)
        .apply(text, into: &out, &scratch)
      return true
    case .nfc: return NormalizationForm.nfc.apply(text, into: &out, &scratch)
    case .nfd: return NormalizationForm.nfd.apply(text, into: &out, &scratch)
    case .nfkc: return NormalizationForm.nfkc.apply(text, into: &out, &scratch)
    case .nfkd: return NormalizationForm.nfkd.apply(text, into: &out, &scratch)
    case .lowercase:
      let mappings = UnicodeTables.lowercase
      var position = 0
      while position < count {
        let (scalar, length) = UTF8Text.scalar(bytes + position)
        if scalar < 0x80 {
          out.append(scalar &- 0x41 < 26 ? scalar | 0x20 : scalar, from: text, at: position)
        } else if let mapped = mappings[scalar] {
          for part in mapped { out.append(part, from: text, at: position) }
        } else {
          out.copy(text, position, position + length)
        }
        position += length
      }
      return true
    case .strip(let left, let right):
      let classes = UnicodeTables.classes
      var start = 0
      var end = count
      while left && start < end {
        let (scalar, length) = UTF8Text.scalar(bytes + start)
        if !scalarClass(scalar, classes).contains(.space) { break }
        start += length
      }
      while right && end > start {
        let (scalar, length) = UTF8Text.scalarBefore(bytes, end)
        if !scalarClass(scalar, classes).contains(.space) { break }
        end -= length
      }
      if start == 0 && end == count { return false }
      out.copy(text, start, end)
      return true
    case .stripAccents:
      if UTF8Text.isASCII(bytes, count) { return false }
      let classes = UnicodeTables.classes
      var position = 0
      while position < count {
        let (scalar, length) = UTF8Text.scalar(bytes + position)
        if !scalarClass(scalar, classes).contains(.combining) { out.copy(text, position, position + length) }
        position += length
      }
      return true
    case .replace(let pattern, let content):
      var copied = 0
      var content = content
      try content.withUTF8 { content in
        try pattern.forEachMatch(in: bytes, count, memory) { start, end in
          out.copy(text, copied, start)
          out.append(content, from: text, at: max(end - 1, 0))
          copied = end
        }
      }
      if copied == 0 && out.bytes.count == 0 { return false }
      out.copy(text, copied, count)
      return true
    case .prepend(let content):
      if count == 0 || content.isEmpty { return false }
      var content = content
      content.withUTF8 { out.append($0, from: text, at: 0) }
      out.copy(text, 0, count)
      return true
    case .precompiled(let map): return map.apply(text, into: &out)
    case .sentencePiece(let normalizer):
      normalizer.apply(text, into: &out)
      return true
    case .nmt:
      var position = 0
      while position < count {
        let (scalar, length) = UTF8Text.scalar(bytes + position)
        switch scalar {
        case 0x1...0x8, 0xB, 0xE...0x1F, 0x7F, 0x8F, 0x9F: break
        case 0x9, 0xA, 0xC, 0xD, 0x1680, 0x200B...0x200F, 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD:
          out.append(0x20, from: text, at: position)
        default: out.copy(text, position, position + length)
        }
        position += length
      }
      return true
    case .byteLevel:
      for place in 0..<count { out.append(ByteAlphabet.scalars[Int(bytes[place])], from: text, at: place) }
      return true
    case .sequence(let parts):
      // Sequences are flattened before they are run; alone they run here through memory of their own.
      var input = TextBuffer()
      input.begin(isAligned: out.isAligned)
      input.copy(text, 0, count)
      var hasChanged = false
      for part in parts {
        var output = TextBuffer()
        output.begin(isAligned: out.isAligned)
        if try part.apply(input.view, into: &output, &scratch, memory) {
          input = output
          hasChanged = true
        }
      }
      if hasChanged { out.copy(input.view, 0, input.bytes.count) }
      return hasChanged
    }
  }
}

/// What Split and Replace look for.
public enum TextPattern: Sendable {
  case string(String)
  case regularExpression(RegularExpression)

  /// Calls `body` with every match from left to right.
  func forEachMatch(
    in text: UnsafePointer<UInt8>, _ count: Int, _ memory: RegularExpression.Memory, _ body: (_ start: Int, _ end: Int) -> Void
  ) throws {
    switch self {
    case .regularExpression(let expression): try expression.forEachMatch(in: text, count, memory, body)
    case .string(let string):
      var string = string
      string.withUTF8 { wanted in
        // As a pattern: the empty string matches before every character and at the end.
        if wanted.isEmpty {
          var position = 0
          while position < count {
            body(position, position)
            position += UTF8Text.length(text[position])
          }
          body(count, count)
          return
        }
        let first = wanted[0]
        var position = 0
        while position + wanted.count <= count {
          if text[position] == first, ByteHash.equal(text + position, wanted.baseAddress!, wanted.count) {
            body(position, position + wanted.count)
            position += wanted.count
          } else {
            position += 1
          }
        }
      }
    }
  }
}
