/// Memory for encoding one text after the other, and the way of a text through the steps. Used by one thread at a time.
final class Workspace: @unchecked Sendable {
  private var state = EncodingState()

  func begin(keepsOffsets: Bool) throws { state.begin(keepsOffsets: keepsOffsets) }
  func tokenize(_ text: UnsafeBufferPointer<UInt8>, _ core: Tokenizer.Core) throws { try state.tokenize(text, core) }
  var tokenCount: Int { state.sink.ids.count }

  /// Calls `body` with the normalized and pre-tokenized pieces of a text, which training counts.
  func forEachPiece(of text: UnsafeBufferPointer<UInt8>, _ core: Tokenizer.Core, _ body: @escaping (UnsafePointer<UInt8>, Int) -> Void)
    throws
  {
    try begin(keepsOffsets: false)
    state.pieceBody = body
    defer { state.pieceBody = nil }
    try tokenize(text, core)
  }

  func shrink() { state.shrink() }

  func assemble(_ layout: [PostProcessor.TemplatePiece], _ ranges: [Range<Int>], _ core: Tokenizer.Core) -> Encoding {
    state.assemble(layout, ranges, core)
  }

  func trimOffsets(_ core: Tokenizer.Core, addsPrefixSpace: Bool, _ tokens: Range<Int>, of text: UnsafeBufferPointer<UInt8>) {
    state.trimOffsets(core, addsPrefixSpace: addsPrefixSpace, tokens, of: text)
  }
}

/// A struct, so that the compiler knows that nobody else touches it meanwhile.
struct EncodingState: ~Copyable {
  var sink = TokenSink()
  /// Gets the pieces instead of the model.
  var pieceBody: ((UnsafePointer<UInt8>, Int) -> Void)?
  private var scratch = ModelScratch()
  private var cache = WordCache()
  private var normalization = NormalizationScratch()
  private var memory = RegularExpression.Memory()
  // The normalized text swings between the first two, the pre-tokenized one between the others.
  private var a = TextBuffer()
  private var b = TextBuffer()
  private var c = TextBuffer()
  private var d = TextBuffer()
  private var given = TextBuffer()
  private var pieces = RawBuffer<Piece>(capacity: 256)
  private var nextPieces = RawBuffer<Piece>(capacity: 256)

  mutating func begin(keepsOffsets: Bool) {
    sink.ids.removeAll(keeping: 1 << 20)
    sink.spans.removeAll(keeping: 1 << 20)
    sink.keepsSpans = keepsOffsets
  }

  mutating func shrink() {
    scratch.shrink()
    pieces.removeAll(keeping: 1 << 18)
    nextPieces.removeAll(keeping: 1 << 18)
  }

  /// Appends the tokens of a text.
  mutating func tokenize(_ text: UnsafeBufferPointer<UInt8>, _ core: Tokenizer.Core) throws {
    guard let base = text.baseAddress, text.count > 0 else { return }
    guard text.count < Int(Int32.max) / 4 else {
      throw TokenizationError("a text of \(text.count) bytes is too long to be tokenized at once")
    }
    var view = TextView(bytes: base, count: text.count, starts: nil, ends: nil, firstCount: UTF8Text.length(base[0]))
    if sink.keepsSpans {
      given.begin(isAligned: true)
      var position = 0
      while position < text.count {
        let length = UTF8Text.length(base[position])
        given.starts.append(repeating: UInt32(position), count: length)
        given.ends.append(repeating: UInt32(position + length), count: length)
        position += length
      }
      view.starts = UnsafePointer(given.starts.base)
      view.ends = UnsafePointer(given.ends.base)
    }
    let added = core.added
    try added.forEachPart(of: view, .asGiven) { id, start, end in
      if id >= 0 {
        sink.append(id, start, end)
      } else {
        try tokenizeSection(view.slice(start, end), core)
      }
    }
  }

  /// Text between added tokens that are found as given.
  private mutating func tokenizeSection(_ section: TextView, _ core: Tokenizer.Core) throws {
    var view = section
    var inA = false
    for normalizer in core.normalizers {
      if inA {
        b.begin(isAligned: sink.keepsSpans)
        if try normalizer.apply(view, into: &b, &normalization, memory) {
          view = b.view
          inA = false
        }
      } else {
        a.begin(isAligned: sink.keepsSpans)
        if try normalizer.apply(view, into: &a, &normalization, memory) {
          view = a.view
          inA = true
        }
      }
    }
    let whole = view
    try core.added.forEachPart(of: whole, .normalized) { id, start, end in
      if id >= 0 {
        if sink.keepsSpans {
          sink.append(id, Int(whole.starts![start]), Int(whole.ends![end - 1]))
        } else {
          sink.append(id, 0, 0)
        }
      } else {
        try tokenizeText(whole.slice(start, end), core)
      }
    }
  }

  /// Normalized text without added tokens.
  private mutating func tokenizeText(_ text: TextView, _ core: Tokenizer.Core) throws {
    var view = text
    var inC = false
    pieces.count = 0
    pieces.append(Piece(start: 0, end: UInt32(text.count)))
    var isRaw = false
    let steps = core.preTokenizers
    for (index, step) in steps.enumerated() {
      switch step {
      case .byteLevel(let addsPrefixSpace, let usesPattern):
        if addsPrefixSpace && !piecesBegin(with: 0x20, view) {
          if inC {
            Self.prefix(&pieces, view, into: &d, sink.keepsSpans)
            view = d.view
          } else {
            Self.prefix(&pieces, view, into: &c, sink.keepsSpans)
            view = c.view
          }
          inC.toggle()
        }
        if usesPattern { try cut(step, view) }
        if core.givesRawBytes && index == steps.count - 1 {
          isRaw = true
        } else {
          if inC {
            Self.spell(&pieces, view, into: &d, sink.keepsSpans)
            view = d.view
          } else {
            Self.spell(&pieces, view, into: &c, sink.keepsSpans)
            view = c.view
          }
          inC.toggle()
        }
      case .metaspace(let replacement, let scheme, let splits):
        if inC {
          Self.metaspace(&pieces, &nextPieces, view, into: &d, replacement.value, scheme, splits, sink.keepsSpans)
          view = d.view
        } else {
          Self.metaspace(&pieces, &nextPieces, view, into: &c, replacement.value, scheme, splits, sink.keepsSpans)
          view = c.view
        }
        inC.toggle()
        swap(&pieces, &nextPieces)
      default: try cut(step, view)
      }
    }
    try runModel(view, isRaw: isRaw, core.model)
  }

  private mutating func cut(_ step: PreTokenizer, _ view: TextView) throws {
    nextPieces.count = 0
    for i in 0..<pieces.count { try step.cut(view, pieces[i], into: &nextPieces, memory) }
    swap(&pieces, &nextPieces)
  }

  private func piecesBegin(with byte: UInt8, _ view: TextView) -> Bool {
    for i in 0..<pieces.count where view.bytes[Int(pieces[i].start)] != byte { return false }
    return true
  }

  /// Writes every piece with a blank before it where it has none.
  private static func prefix(_ pieces: inout RawBuffer<Piece>, _ view: TextView, into out: inout TextBuffer, _ isAligned: Bool) {
    out.begin(isAligned: isAligned)
    for i in 0..<pieces.count {
      let piece = pieces[i]
      let start = out.bytes.count
      if view.bytes[Int(piece.start)] != 0x20 { out.append(0x20, from: view, at: Int(piece.start)) }
      out.copy(view, Int(piece.start), Int(piece.end))
      pieces[i] = Piece(start: UInt32(start), end: UInt32(out.bytes.count))
    }
  }

  /// Writes every piece in the letters of the byte-level alphabet.
  private static func spell(_ pieces: inout RawBuffer<Piece>, _ view: TextView, into out: inout TextBuffer, _ isAligned: Bool) {
    out.begin(isAligned: isAligned)
    ByteAlphabet.scalars.withUnsafeBufferPointer { scalars in
      for i in 0..<pieces.count {
        let start = out.bytes.count
        for place in Int(pieces[i].start)..<Int(pieces[i].end) { out.append(scalars[Int(view.bytes[place])], from: view, at: place) }
        pieces[i] = Piece(start: UInt32(start), end: UInt32(out.bytes.count))
      }
    }
  }

  /// Writes every piece with its blanks replaced and one put before it as the scheme says, and cuts before every replacement.
  private static func metaspace(
    _ pieces: inout RawBuffer<Piece>, _ cut: inout RawBuffer<Piece>, _ view: TextView, into out: inout TextBuffer, _ replacement: UInt32,
    _ scheme: PreTokenizer.PrependScheme, _ splits: Bool, _ isAligned: Bool
  ) {
    out.begin(isAligned: isAligned)
    cut.count = 0
    let width = UTF8Text.width(replacement)
    for i in 0..<pieces.count {
      let start = Int(pieces[i].start)
      let end = Int(pieces[i].end)
      let written = out.bytes.count
      let first = view.bytes[start] == 0x20 ? replacement : UTF8Text.scalar(view.bytes + start).value
      let isAtStart = start < view.firstCount
      if first != replacement && (scheme == .always || scheme == .first && isAtStart) {
        out.append(replacement, from: view, at: start)
      }
      var collector = PieceCollector(.mergedWithNext, from: written)
      if splits && out.bytes.count > written { collector.match(written, out.bytes.count, &cut) }
      var position = start
      while position < end {
        let byte = view.bytes[position]
        if byte == 0x20 {
          let at = out.bytes.count
          out.append(replacement, from: view, at: position)
          if splits { collector.match(at, at + width, &cut) }
          position += 1
          continue
        }
        let length = UTF8Text.length(byte)
        let at = out.bytes.count
        out.copy(view, position, position + length)
        // The replacement may stand in the text itself.
        if splits && length == width && UTF8Text.scalar(view.bytes + position).value == replacement {
          collector.match(at, at + width, &cut)
        }
        position += length
      }
      if splits {
        collector.finish(out.bytes.count, &cut)
      } else {
        cut.append(Piece(start: UInt32(written), end: UInt32(out.bytes.count)))
      }
    }
  }

  private mutating func runModel(_ view: TextView, isRaw: Bool, _ model: TokenizerModel) throws {
    if let pieceBody {
      for i in 0..<pieces.count { pieceBody(view.bytes + Int(pieces[i].start), Int(pieces[i].end - pieces[i].start)) }
      return
    }
    for i in 0..<pieces.count {
      let piece = pieces[i]
      let bytes = view.bytes + Int(piece.start)
      let count = Int(piece.end - piece.start)
      if sink.keepsSpans {
        let before = sink.spans.count
        try model.tokenize(bytes, count, isRaw: isRaw, into: &sink, &scratch)
        // Places in the piece become places in the text given.
        for j in before..<sink.spans.count {
          let span = sink.spans[j]
          if span.end > span.start {
            sink.spans[j] = TokenSpan(
              start: view.starts![Int(piece.start + span.start)], end: view.ends![Int(piece.start + span.end) - 1])
          }
        }
      } else if count <= WordCache.longestWord && count > 0 {
        let hash = cache.hash(bytes, count)
        if cache.append(bytes, count, hash, to: &sink) { continue }
        let before = sink.ids.count
        try model.tokenize(bytes, count, isRaw: isRaw, into: &sink, &scratch)
        cache.insert(bytes, count, hash, UnsafeBufferPointer(start: sink.ids.base + before, count: sink.ids.count - before))
      } else {
        try model.tokenize(bytes, count, isRaw: isRaw, into: &sink, &scratch)
      }
    }
  }

  func assemble(_ layout: [PostProcessor.TemplatePiece], _ ranges: [Range<Int>], _ core: Tokenizer.Core) -> Encoding {
    var total = 0
    var runs: [Encoding.Run] = []
    runs.reserveCapacity(layout.count + 1)
    for piece in layout {
      switch piece {
      case .text(let text, let typeId):
        runs.append(Encoding.Run(count: ranges[text].count, typeId: Int32(truncatingIfNeeded: typeId), kind: .text, text: Int8(text)))
        total += ranges[text].count
      case .special(let tokens, let typeId):
        runs.append(Encoding.Run(count: tokens.count, typeId: Int32(truncatingIfNeeded: typeId), kind: .special, text: -1))
        total += tokens.count
      }
    }
    let base = sink.ids.base
    let ids = [Int32](unsafeUninitializedCapacity: total) { out, count in
      for piece in layout {
        switch piece {
        case .text(let text, _):
          let range = ranges[text]
          if !range.isEmpty { (out.baseAddress! + count).initialize(from: base + range.lowerBound, count: range.count) }
          count += range.count
        case .special(let tokens, _):
          for token in tokens {
            out[count] = Int32(token.id)
            count += 1
          }
        }
      }
    }
    var offsets: [Range<Int>] = []
    if sink.keepsSpans {
      offsets.reserveCapacity(total)
      for piece in layout {
        switch piece {
        case .text(let text, _):
          for i in ranges[text] { offsets.append(Int(sink.spans[i].start)..<max(Int(sink.spans[i].start), Int(sink.spans[i].end))) }
        case .special(let tokens, _): offsets.append(contentsOf: repeatElement(0..<0, count: tokens.count))
        }
      }
    }
    return Encoding(ids: ids, offsets: offsets, runs: runs, tokenizer: core)
  }

  /// Takes white space at the ends of byte-level tokens out of their offsets, a character of the text for a blank of the token.
  mutating func trimOffsets(
    _ core: Tokenizer.Core, addsPrefixSpace: Bool, _ tokens: Range<Int>, of text: UnsafeBufferPointer<UInt8>
  ) {
    for i in tokens {
      var start = Int(sink.spans[i].start)
      var end = Int(sink.spans[i].end)
      let id = Int(sink.ids[i])
      // An added token may have taken white space: it is as it stands in the text.
      let isAdded = core.added.token(of: id) != nil
      guard let token = isAdded ? String(decoding: text[start..<end], as: UTF8.self) : core.token(of: id) else { continue }
      let scalars = Array(token.unicodeScalars)
      func isSpace(_ scalar: Unicode.Scalar) -> Bool {
        scalar.value == 0x120 || scalarClass(scalar.value, UnicodeTables.classes).contains(.space)
      }
      var leading = scalars.prefix(while: isSpace).count
      let trailing = scalars.reversed().prefix(while: isSpace).count
      if leading > 0 {
        // A blank that was put before the text is in nobody's offsets.
        if (i == tokens.lowerBound || start == 0) && addsPrefixSpace && leading == 1 { leading = 0 }
        for _ in 0..<leading where start < end { start += UTF8Text.length(text[start]) }
        start = min(start, end)
      }
      for _ in 0..<trailing where end > start {
        end -= 1
        while end > start && text[end] & 0xC0 == 0x80 { end -= 1 }
      }
      sink.spans[i] = TokenSpan(start: UInt32(start), end: UInt32(end))
    }
  }
}
