/// Makes text of tokens: every step turns a list of strings into another, and the last list is joined.
public indirect enum Decoder: Sendable {
  case byteLevel
  /// Takes the prefix away, or puts a blank where there is none; `cleansUp`: no blanks before punctuation and English contractions.
  case wordPiece(prefix: String, cleansUp: Bool)
  case metaspace(replacement: Unicode.Scalar, PreTokenizer.PrependScheme)
  case bpe(suffix: String)
  case byteFallback
  case fuse
  /// Takes up to so many characters away at the ends.
  case strip(Unicode.Scalar, start: Int, stop: Int)
  case replace(TextPattern, with: String)
  case ctc(paddingToken: String, wordDelimiter: String, cleansUp: Bool)
  case sequence([Decoder])

  func decode(_ tokens: [[UInt8]]) throws -> [[UInt8]] {
    switch self {
    case .byteLevel:
      var bytes: [UInt8] = []
      for token in tokens { Self.appendBytes(token, to: &bytes) }
      return [Array(String(decoding: bytes, as: UTF8.self).utf8)]
    case .wordPiece(let prefix, let cleansUp):
      let prefix = Array(prefix.utf8)
      return tokens.enumerated().map { index, token in
        var token = token
        if index > 0 {
          if token.starts(with: prefix) { token.removeFirst(prefix.count) } else { token.insert(0x20, at: 0) }
        }
        return cleansUp ? Self.cleanedUp(token) : token
      }
    case .metaspace(let replacement, let scheme):
      let wanted = Array(String(Character(replacement)).utf8)
      return tokens.enumerated().map { index, token in
        Self.replacing(wanted, by: index == 0 && scheme != .never ? [] : [0x20], in: token)
      }
    case .bpe(let suffix):
      return tokens.enumerated().map { index, token in
        Self.replacing(Array(suffix.utf8), by: index == tokens.count - 1 ? [] : [0x20], in: token)
      }
    case .byteFallback:
      var result: [[UInt8]] = []
      var bytes: [UInt8] = []
      func flush() {
        if bytes.isEmpty { return }
        if bytes.withUnsafeBufferPointer({ UTF8Text.isValid($0.baseAddress!, $0.count) }) {
          result.append(bytes)
        } else {
          result.append(contentsOf: repeatElement([0xEF, 0xBF, 0xBD], count: bytes.count))
        }
        bytes = []
      }
      for token in tokens {
        if let byte = token.withUnsafeBufferPointer({ ByteFallback.byte($0) }) {
          bytes.append(byte)
        } else {
          flush()
          result.append(token)
        }
      }
      flush()
      return result
    case .fuse: return [Array(tokens.joined())]
    case .strip(let content, let start, let stop):
      let wanted = Array(String(Character(content)).utf8)
      return tokens.map { token in
        var token = token[...]
        var count = 0
        while count < start && token.starts(with: wanted) {
          token = token.dropFirst(wanted.count)
          count += 1
        }
        count = 0
        while count < stop && token.count >= wanted.count && token.suffix(wanted.count).elementsEqual(wanted) {
          token = token.dropLast(wanted.count)
          count += 1
        }
        return Array(token)
      }
    case .replace(let pattern, let content):
      let memory = RegularExpression.Memory()
      let content = Array(content.utf8)
      return try tokens.map { token in
        if token.isEmpty { return token }
        var result: [UInt8] = []
        var copied = 0
        try token.withUnsafeBufferPointer { bytes in
          try pattern.forEachMatch(in: bytes.baseAddress!, bytes.count, memory) { start, end in
            result.append(contentsOf: bytes[copied..<start])
            result.append(contentsOf: content)
            copied = end
          }
          result.append(contentsOf: bytes[copied...])
        }
        return result
      }
    case .ctc(let padding, let delimiter, let cleansUp):
      var result: [[UInt8]] = []
      var last: [UInt8]?
      for token in tokens {
        if token == last { continue }
        last = token
        var text = Self.replacing(Array(padding.utf8), by: [], in: token)
        if cleansUp { text = Self.replacing(Array(delimiter.utf8), by: [0x20], in: Self.cleanedUp(text)) }
        if !text.isEmpty { result.append(text) }
      }
      return result
    case .sequence(let parts): return try parts.reduce(tokens) { try $1.decode($0) }
    }
  }

  /// The bytes a byte-level token stands for; a token with other letters stands for itself.
  static func appendBytes(_ token: [UInt8], to bytes: inout [UInt8]) {
    let before = bytes.count
    var position = 0
    while position < token.count {
      let first = token[position]
      var scalar = Int(first)
      var length = 1
      if first >= 0xC2 && first < 0xE0 && position + 1 < token.count {
        scalar = Int(first & 0x1F) << 6 | Int(token[position + 1] & 0x3F)
        length = 2
      } else if first >= 0x80 {
        scalar = .max
      }
      guard scalar < ByteAlphabet.bytes.count, ByteAlphabet.bytes[scalar] >= 0 else {
        bytes.removeLast(bytes.count - before)
        bytes.append(contentsOf: token)
        return
      }
      bytes.append(UInt8(ByteAlphabet.bytes[scalar]))
      position += length
    }
  }

  static func replacing(_ wanted: [UInt8], by replacement: [UInt8], in text: [UInt8]) -> [UInt8] {
    if wanted.isEmpty {
      // Before every character and at the end, as Rust's `replace` does.
      if replacement.isEmpty { return text }
      var result = replacement
      var position = 0
      while position < text.count {
        let length = UTF8Text.length(text[position])
        result.append(contentsOf: text[position..<min(position + length, text.count)])
        result.append(contentsOf: replacement)
        position += length
      }
      return result
    }
    var result: [UInt8] = []
    var position = 0
    while position < text.count {
      if text[position] == wanted[0], text.count - position >= wanted.count,
        text[position..<(position + wanted.count)].elementsEqual(wanted)
      {
        result.append(contentsOf: replacement)
        position += wanted.count
      } else {
        result.append(text[position])
        position += 1
      }
    }
    return result
  }

  private static let contractions: [(String, String)] = [
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" do not", " don't"),
    (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
  ]

  private static func cleanedUp(_ text: [UInt8]) -> [UInt8] {
    if !text.contains(0x20) { return text }
    return contractions.reduce(text) { replacing(Array($1.0.utf8), by: Array($1.1.utf8), in: $0) }
  }
}
