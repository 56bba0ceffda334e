/// The tokens a model found, with their places in the piece where these are wanted.
struct TokenSink: ~Copyable {
  var ids = RawBuffer<Int32>(capacity: 256)
  var spans = RawBuffer<TokenSpan>(capacity: 1)
  /// Whether `spans` is kept.
  var keepsSpans = false

  @inline(__always)
  mutating func append(_ id: Int32, _ start: Int, _ end: Int) {
    ids.append(id)
    if keepsSpans { spans.append(TokenSpan(start: UInt32(start), end: UInt32(end))) }
  }
}

/// Bytes from `start` up to `end`.
struct TokenSpan {
  var start: UInt32
  var end: UInt32
}

/// Memory the models work in, kept from piece to piece.
struct ModelScratch: ~Copyable {
  struct Symbol {
    var id: Int32
    var length: Int32  // bytes; -1 once merged into the one before
  }
  struct Merge {
    var rank: UInt32
    var result: Int32
  }
  struct Link {
    var previous: Int32
    var next: Int32
  }
  /// The best way to reach a place of the text (Unigram).
  struct Step {
    var score: Double
    var start: Int32  // -1: not reached
    var id: Int32
  }

  var symbols = RawBuffer<Symbol>()
  var merges = RawBuffer<Merge>()
  var links = RawBuffer<Link>()
  var heap = RawBuffer<UInt64>()
  var steps = RawBuffer<Step>()
  var spelling = RawBuffer<UInt8>()

  /// Gives back what one very long piece made grow.
  mutating func shrink() {
    let limit = 1 << 16
    symbols.removeAll(keeping: limit)
    merges.removeAll(keeping: limit)
    links.removeAll(keeping: limit)
    heap.removeAll(keeping: limit)
    steps.removeAll(keeping: limit)
    spelling.removeAll(keeping: limit)
  }
}

/// A text that can't be tokenized by this tokenizer: a token it needs is missing, or a pattern gave up.
public struct TokenizationError: Error, CustomStringConvertible, Sendable, Equatable {
  public let description: String
  public init(_ description: String) { self.description = description }
}
