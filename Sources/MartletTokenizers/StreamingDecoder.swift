/// Text from tokens that come one by one: gives text out as soon as its characters are complete.
///
///     var stream = StreamingDecoder(tokenizer)
///     for id in ids { print(try stream.append(id), terminator: "") }
///     print(try stream.finish())
///
/// The pieces together are what ``Tokenizer/decode(_:skipSpecialTokens:)`` makes of all the tokens, for decoders whose text for a token
/// depends on its neighbours only. A few tokens already given out are decoded again as context, so every step takes the same time.
public struct StreamingDecoder: Sendable {
  private let core: Tokenizer.Core
  private let skipSpecialTokens: Bool
  private var context: [[UInt8]] = []  // tokens given out, then waiting ones
  private var givenOut = 0  // of these
  private var prefix = ""  // text of the ones given out
  /// After so many tokens without a complete character the text is given out as it is.
  private static let patience = 48

  public init(_ tokenizer: Tokenizer, skipSpecialTokens: Bool = true) {
    core = tokenizer.core
    self.skipSpecialTokens = skipSpecialTokens
  }

  /// The text that a token completes; often empty.
  public mutating func append(_ id: some BinaryInteger) throws -> String {
    guard let spelling = core.spelling(of: Int(id), skipSpecialTokens: skipSpecialTokens) else { return "" }
    context.append(spelling)
    let text = try core.text(of: context)
    // An unfinished character reads as U+FFFD.
    if text.unicodeScalars.last == "\u{FFFD}" && context.count - givenOut < Self.patience { return "" }
    return try advance(text)
  }

  /// What is still waiting, also when it is no complete character. The decoder can then begin a new text.
  public mutating func finish() throws -> String {
    let text = context.count > givenOut ? new(try core.text(of: context)) : ""
    context = []
    givenOut = 0
    prefix = ""
    return text
  }

  private mutating func advance(_ text: String) throws -> String {
    let result = new(text)
    if result.isEmpty { return "" }
    // Only what was new stays as context.
    context.removeFirst(givenOut)
    givenOut = context.count
    prefix = try core.text(of: context)
    return result
  }

  /// What a text has beyond the text already given out.
  private func new(_ text: String) -> String {
    let bytes = text.utf8
    let common = zip(bytes, prefix.utf8).prefix { $0 == $1 }.count
    return String(decoding: bytes.dropFirst(common), as: UTF8.self)
  }
}
