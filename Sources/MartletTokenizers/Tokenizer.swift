import Synchronization

/// Text to tokens and back, as the tokenizer files of Hugging Face describe it.
///
///     let tokenizer = try Tokenizer.load("models/all-MiniLM-L6-v2")
///     let ids = try tokenizer.encode("Swifts sleep in the air.").ids
///     let text = try tokenizer.decode(ids)
///
/// The way of a text: added tokens are found; the ``Normalizer`` changes what lies between them; the ``PreTokenizer`` cuts that into pieces;
/// the ``TokenizerModel`` turns pieces into tokens; the ``PostProcessor`` adds special tokens. May be used from several threads at once.
public struct Tokenizer: Sendable {
  /// What doesn't change, shared by copies.
  private(set) var core: Core
  /// Applied by `encode` when set (some files set it).
  public var truncation: Truncation?
  /// Applied by `encode` when set (some files set it).
  public var padding: Padding?
  /// What stands beside the tokenizer: special tokens, chat templates, limits.
  public var configuration: TokenizerConfiguration

  /// Throws ``VocabularyError`` or ``TokenizationError`` when the added tokens can't be.
  public init(
    model: TokenizerModel, normalizer: Normalizer? = nil, preTokenizer: PreTokenizer? = nil, postProcessor: PostProcessor? = nil,
    decoder: Decoder? = nil, addedTokens: [AddedToken] = [], truncation: Truncation? = nil, padding: Padding? = nil,
    configuration: TokenizerConfiguration = TokenizerConfiguration()
  ) throws {
    core = try Core(
      model: model, normalizer: normalizer, preTokenizer: preTokenizer, postProcessor: postProcessor, decoder: decoder,
      added: AddedVocabulary(addedTokens, model: model, normalizer: normalizer))
    self.truncation = truncation
    self.padding = padding
    self.configuration = configuration
  }

  /// Puts other special tokens around texts from now on.
  mutating func replacePostProcessor(by postProcessor: PostProcessor) {
    core = Core(
      model: core.model, normalizer: core.normalizer, preTokenizer: core.preTokenizer, postProcessor: postProcessor,
      decoder: core.decoder, added: core.added)
  }

  public var model: TokenizerModel { core.model }
  public var normalizer: Normalizer? { core.normalizer }
  public var preTokenizer: PreTokenizer? { core.preTokenizer }
  public var postProcessor: PostProcessor? { core.postProcessor }
  public var decoder: Decoder? { core.decoder }
  /// The added tokens in the order of their ids.
  public var addedTokens: [(id: Int, token: AddedToken)] { core.added.tokens }

  /// Tokens of the model and added ones, each counted once.
  public var vocabularyCount: Int {
    let own = core.model.vocabulary
    return core.model.tokenCount + core.added.tokens.count { own.id(of: $0.token.content) == nil }
  }
  /// One more than the largest id: what an embedding table must have at least.
  public var idCount: Int { max(core.model.vocabulary.idCount, (core.added.tokens.last?.id ?? -1) + 1) }

  /// The id of a token; nil for an unknown one.
  public func id(of token: String) -> Int? { core.added.id(of: Array(token.utf8)) ?? core.model.vocabulary.id(of: token) }
  /// The token with an id as the vocabulary spells it; nil where nobody has it.
  public func token(of id: Int) -> String? { core.token(of: id) }
  /// Whether `decode` leaves the token out when special tokens are skipped.
  public func isSpecial(_ id: Int) -> Bool { core.added.isSpecial.contains(id) }

  public var unknownId: Int? { configuration.unknownToken.flatMap(id(of:)) ?? core.model.unknownId }
  public var beginningId: Int? { configuration.beginningToken.flatMap(id(of:)) }
  public var endId: Int? { configuration.endToken.flatMap(id(of:)) }
  public var paddingId: Int? { configuration.paddingToken.flatMap(id(of:)) ?? padding?.id }
  public var separatorId: Int? { configuration.separatorToken.flatMap(id(of:)) }
  public var classificationId: Int? { configuration.classificationToken.flatMap(id(of:)) }
  public var maskId: Int? { configuration.maskToken.flatMap(id(of:)) }

  /// The parts of a tokenizer that don't change, and memory for encoding.
  final class Core: Sendable {
    let model: TokenizerModel
    let normalizer: Normalizer?
    let preTokenizer: PreTokenizer?
    let postProcessor: PostProcessor?
    let decoder: Decoder?
    let added: AddedVocabulary
    let normalizers: [Normalizer]
    let preTokenizers: [PreTokenizer]
    /// Pieces go to the model as raw bytes, though the pre-tokenizer ends with the byte-level alphabet: same tokens, less work.
    let givesRawBytes: Bool
    private let pool = Mutex<[Workspace]>([])

    init(
      model: TokenizerModel, normalizer: Normalizer?, preTokenizer: PreTokenizer?, postProcessor: PostProcessor?, decoder: Decoder?,
      added: AddedVocabulary
    ) {
      self.model = model
      self.normalizer = normalizer
      self.preTokenizer = preTokenizer
      self.postProcessor = postProcessor
      self.decoder = decoder
      self.added = added
      normalizers = normalizer?.flattened ?? []
      preTokenizers = preTokenizer?.flattened ?? []
      if case .byteLevel = preTokenizers.last, case .bpe(let bpe) = model {
        givesRawBytes = bpe.readsRawBytes
      } else {
        givesRawBytes = false
      }
    }

    func token(of id: Int) -> String? {
      added.spelling(of: id).map { String(decoding: $0, as: UTF8.self) } ?? model.vocabulary.token(of: id)
    }

    /// Runs `body` with memory that nobody else uses meanwhile.
    func withWorkspace<R>(_ body: (Workspace) throws -> R) rethrows -> R {
      let workspace = pool.withLock { $0.popLast() } ?? Workspace()
      defer {
        workspace.shrink()
        pool.withLock { if $0.count < 16 { $0.append(workspace) } }
      }
      return try body(workspace)
    }
  }

  // MARK: Encoding

  /// The tokens of a text or of a pair of texts.
  ///
  /// `offsets`: also say where each token comes from (slower). Throws ``TokenizationError`` when a token that is needed doesn't exist, a
  /// pattern gives up, or truncation is impossible.
  public func encode(_ text: String, pair: String? = nil, addSpecialTokens: Bool = true, offsets: Bool = false) throws -> Encoding {
    var text = text
    return try text.withUTF8 { bytes in
      guard var pair else { return try encode(utf8: bytes, pair: nil, addSpecialTokens, offsets) }
      return try pair.withUTF8 { try encode(utf8: bytes, pair: $0, addSpecialTokens, offsets) }
    }
  }

  /// The tokens of bytes that ought to be UTF-8. What isn't is replaced by U+FFFD, one for each part of a character that was begun
  /// (as Python's `bytes.decode(errors="replace")` does); offsets then count in the repaired text.
  public func encode(
    bytes: UnsafeBufferPointer<UInt8>, pair: UnsafeBufferPointer<UInt8>? = nil, addSpecialTokens: Bool = true, offsets: Bool = false
  ) throws -> Encoding {
    func repaired<R>(_ bytes: UnsafeBufferPointer<UInt8>, _ body: (UnsafeBufferPointer<UInt8>) throws -> R) rethrows -> R {
      if bytes.isEmpty || UTF8Text.isValid(bytes.baseAddress!, bytes.count) { return try body(bytes) }
      var text = String(decoding: bytes, as: UTF8.self)
      return try text.withUTF8(body)
    }
    return try repaired(bytes) { bytes in
      guard let pair else { return try encode(utf8: bytes, pair: nil, addSpecialTokens, offsets) }
      return try repaired(pair) { try encode(utf8: bytes, pair: $0, addSpecialTokens, offsets) }
    }
  }

  /// As `encode(bytes:)` of a buffer.
  public func encode(bytes: [UInt8], addSpecialTokens: Bool = true, offsets: Bool = false) throws -> Encoding {
    try bytes.withUnsafeBufferPointer { try encode(bytes: $0, addSpecialTokens: addSpecialTokens, offsets: offsets) }
  }

  private func encode(
    utf8 text: UnsafeBufferPointer<UInt8>, pair: UnsafeBufferPointer<UInt8>?, _ addSpecialTokens: Bool, _ offsets: Bool
  ) throws -> Encoding {
    var encoding = try core.withWorkspace { workspace in
      try workspace.begin(keepsOffsets: offsets)
      try workspace.tokenize(text, core)
      let first = workspace.tokenCount
      if let pair { try workspace.tokenize(pair, core) }
      let second = workspace.tokenCount - first
      var kept = (first, second)
      if let truncation {
        let added = addSpecialTokens ? core.postProcessor?.addedCount(isPair: pair != nil) ?? 0 : 0
        guard truncation.maximumLength >= added else {
          throw TokenizationError("truncation to \(truncation.maximumLength) tokens leaves no room for \(added) special tokens")
        }
        kept = try truncation.kept(first: first, second: pair == nil ? nil : second, limit: truncation.maximumLength - added)
      }
      let fromRight = truncation?.direction == .left
      let ranges = [
        fromRight ? (first - kept.0)..<first : 0..<kept.0,
        fromRight ? (first + second - kept.1)..<(first + second) : first..<(first + kept.1),
      ]
      if offsets, let trimming = core.postProcessor?.offsetTrimming, trimming.isOn {
        workspace.trimOffsets(core, addsPrefixSpace: trimming.addsPrefixSpace, 0..<first, of: text)
        if let pair {
          workspace.trimOffsets(core, addsPrefixSpace: trimming.addsPrefixSpace, first..<(first + second), of: pair)
        }
      }
      let layout =
        core.postProcessor?.layout(isPair: pair != nil, addsSpecialTokens: addSpecialTokens)
        ?? (pair == nil ? [.text(0, typeId: 0)] : [.text(0, typeId: 0), .text(1, typeId: 1)])
      return workspace.assemble(layout, ranges, core)
    }
    if let padding { encoding.pad(to: padding.length(longest: encoding.count), padding) }
    return encoding
  }

  /// The tokens of many texts, padded to the longest where padding is set. With several threads the texts are shared out.
  public func encode(_ texts: [String], addSpecialTokens: Bool = true, offsets: Bool = false, threads: Int = 1) throws -> [Encoding] {
    var single = self
    single.padding = nil
    var result: [Encoding]
    if threads <= 1 || texts.count < 2 {
      result = try texts.map { try single.encode($0, addSpecialTokens: addSpecialTokens, offsets: offsets) }
    } else {
      let one = single
      result = try Threads.map(texts, threads: threads) { try one.encode($0, addSpecialTokens: addSpecialTokens, offsets: offsets) }
    }
    if let padding {
      let length = padding.length(longest: result.map(\.count).max() ?? 0)
      for i in result.indices { result[i].pad(to: length, padding) }
    }
    return result
  }

  // MARK: Decoding

  /// The text of tokens. Ids that nobody has are left out.
  public func decode<Ids: Sequence>(_ ids: Ids, skipSpecialTokens: Bool = true) throws -> String where Ids.Element: BinaryInteger {
    var spellings: [[UInt8]] = []
    for id in ids {
      guard let spelling = core.spelling(of: Int(id), skipSpecialTokens: skipSpecialTokens) else { continue }
      spellings.append(spelling)
    }
    return try core.text(of: spellings)
  }
}

extension Tokenizer.Core {
  func spelling(of id: Int, skipSpecialTokens: Bool) -> [UInt8]? {
    let spelling = added.spelling(of: id) ?? model.vocabulary.bytes(of: id).map { Array($0) }
    guard let spelling else { return nil }
    if skipSpecialTokens && spelling.withUnsafeBufferPointer({ added.isSpecial($0) }) { return nil }
    return spelling
  }

  func text(of spellings: [[UInt8]]) throws -> String {
    guard let decoder else { return String(decoding: Array(spellings.joined(separator: [0x20])), as: UTF8.self) }
    let parts = try decoder.decode(spellings)
    return parts.count == 1 ? String(decoding: parts[0], as: UTF8.self) : String(decoding: Array(parts.joined()), as: UTF8.self)
  }
}
