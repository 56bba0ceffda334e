/// A text encoder with its tokenizer: sentence embeddings, class scores, scores of pairs.
///
/// Texts of any lengths are read end to end without padding, in batches of neighbours in length; the results stand in the order given.
public struct TextEmbedder {
  public let encoder: TextEncoder
  public let tokenizer: Tokenizer
  /// Tokens of a text that are read at most, special ones included; longer texts are cut.
  public let maximumLength: Int
  /// Tokens that are read at once.
  public var batchTokens = 2048

  /// - Parameter maximumLength: `nil` for what the checkpoint says.
  /// - Throws: `ConfigurationError` for a length that the model doesn't reach, or a tokenizer of another vocabulary.
  public init(encoder: TextEncoder, tokenizer: Tokenizer, maximumLength: Int? = nil) throws {
    let c = encoder.backbone.configuration
    let limit = c.positions == .learned ? c.length : .max
    let usual = encoder.sentence.configuration.longest ?? tokenizer.configuration.maximumLength ?? limit
    let length = maximumLength ?? min(usual, limit, 1 << 20)
    guard length > 2, length <= limit else {
      throw ConfigurationError("texts must be cut to 3...\(limit) tokens, which the model's positions reach; got \(length)")
    }
    guard case .tokens(let vocabulary) = c.input, tokenizer.idCount <= vocabulary else {
      throw ConfigurationError(
        "the tokenizer has ids up to \(tokenizer.idCount - 1), which the model's vocabulary lacks: they don't belong together")
    }
    self.encoder = encoder
    self.maximumLength = length
    var own = tokenizer
    own.padding = nil
    own.truncation = Truncation(maximumLength: length)
    self.tokenizer = own
  }

  /// Embeddings [texts, width] in float32, pooled and normalised as the checkpoint asks.
  ///
  /// - Parameter progress: receives how many texts are done; returning false stops, and the rest stays zero.
  public func embed(_ texts: [String], threads: Int = 1, progress: (Int) -> Bool = { _ in true }) throws -> Tensor {
    try run(try tokenizer.encode(texts, threads: threads), progress) { outputs, packing in encoder.embeddings(outputs, packing: packing) }
  }

  /// Logits of the classes, [texts, classes]. Throws `ConfigurationError` for a checkpoint without a classifier.
  public func classLogits(_ texts: [String], threads: Int = 1, progress: (Int) -> Bool = { _ in true }) throws -> Tensor {
    try classLogits(of: try tokenizer.encode(texts, threads: threads), progress)
  }

  /// Logits of the classes for pairs of texts, [pairs, classes]: a cross-encoder's scores, where there is one class.
  public func classLogits(pairs: [(String, String)], progress: (Int) -> Bool = { _ in true }) throws -> Tensor {
    try classLogits(of: try pairs.map { try tokenizer.encode($0.0, pair: $0.1) }, progress)
  }

  private func classLogits(of encodings: [Encoding], _ progress: (Int) -> Bool) throws -> Tensor {
    guard encoder.classifier != nil else {
      throw ConfigurationError("the checkpoint has no classifier: it can embed texts, not classify or score them")
    }
    return try run(encodings, progress) { outputs, packing in encoder.classLogits(outputs, packing: packing)! }
  }

  private func run(
    _ encodings: [Encoding], _ progress: (Int) -> Bool, _ head: (Tensor, SequencePacking) -> Tensor
  ) throws -> Tensor {
    let hasTypes = encoder.backbone.tokenTypes != nil
    return try evaluating(encoder) {
      var rows: Tensor?
      var done = 0
      for batch in SequencePacking.batches(of: encodings.map(\.count), total: batchTokens) {
        let packing = SequencePacking(lengths: batch.map { encodings[$0].count })
        let tokens = Tensor(batch.flatMap { encodings[$0].ids.map(Int64.init) }, [1, packing.offsets.last!])
        let types = hasTypes ? Tensor(batch.flatMap { encodings[$0].typeIds.map(Int64.init) }, [1, packing.offsets.last!]) : nil
        let result = head(encoder(tokens, tokenTypes: types, packing: packing), packing).to(.float32)
        guard result.isFinite().all().toArray(Bool.self) == [true] else {
          throw TensorError("the encoder's outputs are not numbers: its weights are broken")
        }
        if rows == nil { rows = Tensor.zeros([encodings.count, result.dim(1)]) }
        rows = rows!.indexAdd(Tensor(batch), result, axis: 0)
        done += batch.count
        if !progress(done) { break }
      }
      return rows
        ?? Tensor.zeros([0, head(Tensor.zeros([1, 1, encoder.backbone.configuration.width]), SequencePacking(lengths: [1])).dim(1)])
    }
  }
}
