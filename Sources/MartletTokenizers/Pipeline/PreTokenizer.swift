/// Cuts the normalized text into the pieces that the model sees.
public indirect enum PreTokenizer: Sendable {
  /// At white space, which goes, and around every punctuation character.
  case bert
  /// Cuts as GPT-2 (unless switched off) and writes bytes in the letters of the byte-level alphabet.
  case byteLevel(addsPrefixSpace: Bool, usesPattern: Bool)
  case split(TextPattern, SplitBehavior, isInverted: Bool)
  /// Words and runs of other characters; white space goes.
  case whitespace
  case whitespaceSplit
  /// SentencePiece's blanks: written as `replacement`, before the first word too as the scheme says.
  case metaspace(replacement: Unicode.Scalar, PrependScheme, splits: Bool)
  case punctuation(SplitBehavior)
  case digits(individually: Bool)
  case delimiter(Unicode.Scalar)
  /// Where the script changes.
  case unicodeScripts
  /// Every so many characters.
  case fixedLength(Int)
  case sequence([PreTokenizer])

  public enum PrependScheme: String, Sendable { case first, never, always }

  /// Without sequences inside sequences.
  var flattened: [PreTokenizer] { if case .sequence(let parts) = self { parts.flatMap(\.flattened) } else { [self] } }
}

/// What becomes of the matches when a text is split at them.
public enum SplitBehavior: String, Sendable {
  case removed = "Removed"
  case isolated = "Isolated"
  case mergedWithPrevious = "MergedWithPrevious"
  case mergedWithNext = "MergedWithNext"
  case contiguous = "Contiguous"
}

/// Bytes `start` up to `end` of a text.
struct Piece {
  var start: UInt32
  var end: UInt32
}

/// Turns the matches in a text and what lies between them into pieces.
struct PieceCollector: ~Copyable {
  let behavior: SplitBehavior
  var position: Int  // up to here everything has been seen
  private var held: (start: Int, end: Int)?
  private var lastWasMatch = false
  private let isInverted: Bool

  init(_ behavior: SplitBehavior, isInverted: Bool = false, from start: Int) {
    self.behavior = behavior
    self.isInverted = isInverted
    position = start
  }

  /// A match, and before it what lies between it and the last one.
  @inline(__always)
  mutating func match(_ start: Int, _ end: Int, _ out: inout RawBuffer<Piece>) {
    if start > position { segment(position, start, isMatch: isInverted, &out) }
    segment(start, end, isMatch: !isInverted, &out)
    position = end
  }

  mutating func finish(_ end: Int, _ out: inout RawBuffer<Piece>) {
    if end > position { segment(position, end, isMatch: isInverted, &out) }
    if let held { emit(held.start, held.end, &out) }
    held = nil
  }

  @inline(__always)
  private func emit(_ start: Int, _ end: Int, _ out: inout RawBuffer<Piece>) {
    if end > start { out.append(Piece(start: UInt32(start), end: UInt32(end))) }
  }

  @inline(__always)
  private mutating func segment(_ start: Int, _ end: Int, isMatch: Bool, _ out: inout RawBuffer<Piece>) {
    switch behavior {
    case .isolated: emit(start, end, &out)
    case .removed: if !isMatch { emit(start, end, &out) }
    case .contiguous:
      if let last = held, isMatch == lastWasMatch {
        held = (last.start, end)
      } else {
        if let held { emit(held.start, held.end, &out) }
        held = (start, end)
      }
      lastWasMatch = isMatch
    case .mergedWithPrevious:
      if let last = held, isMatch, !lastWasMatch {
        held = (last.start, end)
      } else {
        if let held { emit(held.start, held.end, &out) }
        held = (start, end)
      }
      lastWasMatch = isMatch
    case .mergedWithNext:
      // `held` is a match that waits for what follows.
      if let waiting = held {
        held = nil
        if isMatch {
          emit(waiting.start, waiting.end, &out)
          held = (start, end)
        } else {
          emit(waiting.start, end, &out)
        }
      } else if isMatch {
        held = (start, end)
      } else {
        emit(start, end, &out)
      }
    }
  }
}

extension PreTokenizer {
  /// Whether a step writes a new text (else it only cuts).
  var writes: Bool {
    switch self {
    case .byteLevel, .metaspace: true
    default: false
    }
  }

  /// Cuts one piece of a text into smaller ones.
  func cut(_ text: TextView, _ piece: Piece, into out: inout RawBuffer<Piece>, _ memory: RegularExpression.Memory) throws {
    let start = Int(piece.start)
    let end = Int(piece.end)
    let bytes = text.bytes
    let classes = UnicodeTables.classes
    switch self {
    case .bert:
      var position = start
      var word = start
      while position < end {
        let (scalar, length) = UTF8Text.scalar(bytes + position)
        let kind = scalarClass(scalar, classes)
        if !kind.isDisjoint(with: [.space, .bertPunctuation]) {
          if position > word { out.append(Piece(start: UInt32(word), end: UInt32(position))) }
          word = position + length
          if !kind.contains(.space) { out.append(Piece(start: UInt32(position), end: UInt32(word))) }
        }
        position += length
      }
      if end > word { out.append(Piece(start: UInt32(word), end: UInt32(end))) }
    case .whitespaceSplit: split(text, start, end, .removed, into: &out) { $0.contains(.space) }
    case .punctuation(let behavior): split(text, start, end, behavior, into: &out) { $0.contains(.bertPunctuation) }
    case .digits(let individually):
      split(text, start, end, individually ? .isolated : .contiguous, into: &out) { $0.contains(.numeric) }
    case .delimiter(let delimiter):
      var collector = PieceCollector(.removed, from: start)
      var position = start
      while position < end {
        let (scalar, length) = UTF8Text.scalar(bytes + position)
        if scalar == delimiter.value { collector.match(position, position + length, &out) }
        position += length
      }
      collector.finish(end, &out)
    case .whitespace:
      var position = start
      while position < end {
        var (scalar, length) = UTF8Text.scalar(bytes + position)
        let kind = scalarClass(scalar, classes)
        let first = position
        position += length
        if !kind.contains(.whitespaceWord) && kind.contains(.space) { continue }
        let isWord = kind.contains(.whitespaceWord)
        while position < end {
          (scalar, length) = UTF8Text.scalar(bytes + position)
          let kind = scalarClass(scalar, classes)
          if kind.contains(.whitespaceWord) != isWord || !isWord && kind.contains(.space) { break }
          position += length
        }
        out.append(Piece(start: UInt32(first), end: UInt32(position)))
      }
    case .split(let pattern, let behavior, let isInverted):
      if case .regularExpression(let expression) = pattern, let scanner = expression.scanner,
        behavior == .isolated || behavior == .removed && isInverted
      {
        scanner.scan(bytes, start, end, into: &out)
        return
      }
      var collector = PieceCollector(behavior, isInverted: isInverted, from: start)
      try pattern.forEachMatch(in: bytes + start, end - start, memory) { from, to in
        collector.match(start + from, start + to, &out)
      }
      collector.finish(end, &out)
    case .unicodeScripts:
      var last = UnicodeScript.none
      var position = start
      var first = -1
      while position < end {
        let (scalar, length) = UTF8Text.scalar(bytes + position)
        let script = UnicodeScript.of(scalar)
        if script != UnicodeScript.any && last != UnicodeScript.any && last != script {
          if first >= 0 { out.append(Piece(start: UInt32(first), end: UInt32(position))) }
          first = position
        }
        if script != UnicodeScript.any { last = script }
        position += length
      }
      // Blanks before the first letter are lost, as in the library.
      if first >= 0 && end > first { out.append(Piece(start: UInt32(first), end: UInt32(end))) }
    case .fixedLength(let characters):
      var position = start
      while position < end {
        let first = position
        var count = 0
        while position < end && count < characters {
          position = min(position + UTF8Text.length(bytes[position]), end)
          count += 1
        }
        out.append(Piece(start: UInt32(first), end: UInt32(position)))
      }
    case .byteLevel(_, let usesPattern):
      if usesPattern { PatternScanner.gpt2.scan(bytes, start, end, into: &out) } else { out.append(piece) }
    case .metaspace, .sequence: out.append(piece)
    }
  }

  private func split(
    _ text: TextView, _ start: Int, _ end: Int, _ behavior: SplitBehavior, into out: inout RawBuffer<Piece>,
    where isDelimiter: (ScalarClass) -> Bool
  ) {
    let classes = UnicodeTables.classes
    var collector = PieceCollector(behavior, from: start)
    var position = start
    while position < end {
      let (scalar, length) = UTF8Text.scalar(text.bytes + position)
      if isDelimiter(scalarClass(scalar, classes)) { collector.match(position, position + length, &out) }
      position += length
    }
    collector.finish(end, &out)
  }
}
