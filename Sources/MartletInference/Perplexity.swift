import Foundation

/// How well a model predicts a text.
public struct PerplexityResult: Sendable, Equatable {
  /// −Σ ln p of the predicted tokens.
  public var negativeLogLikelihood = 0.0
  public var tokens = 0

  /// exp of the mean.
  public var perplexity: Double { tokens > 0 ? exp(negativeLogLikelihood / Double(tokens)) : .nan }

  public init() {}
}

/// The perplexity of a causal model on tokens, in windows that slide: every token after the first is predicted once, from at least
/// `window − stride` tokens before it where there are as many.
///
/// - Parameters:
///   - window: tokens the model sees at once.
///   - stride: tokens by which the window moves; fewer are dearer and give more context.
///   - progress: receives the share of tokens that are done; returning false stops with what there is.
/// - Throws: `ConfigurationError` for fewer than two tokens, tokens outside the vocabulary or a stride that skips some.
public func perplexity(
  _ model: LanguageModel, tokens: [Int], window: Int, stride: Int? = nil, progress: (Double, PerplexityResult) -> Bool = { _, _ in true }
) throws -> PerplexityResult {
  let stride = stride ?? window
  guard tokens.count > 1 else { throw ConfigurationError("perplexity needs at least two tokens, got \(tokens.count)") }
  guard window > 1, (1...window).contains(stride) else {
    throw ConfigurationError("the window must hold at least two tokens and move by 1...\(max(1, window)), got \(window) and \(stride)")
  }
  try checkPrompts([tokens], vocabulary: model.vocabulary)
  return try evaluating(model) {
    var result = PerplexityResult()
    var predicted = 1
    var begin = 0
    while predicted < tokens.count {
      let end = min(begin + window, tokens.count)
      let part = Tensor(Array(tokens[begin..<end]), [1, end - begin])
      let outputs = model.backbone(part)
      // Logits of the new tokens only: the vocabulary is often the largest product.
      let fresh = outputs.narrowed(axis: 1, start: predicted - 1 - begin, length: end - predicted)
      let targets = Tensor(Array(tokens[predicted..<end]), [1, end - predicted])
      let loss = crossEntropy(model.logits(fresh).to(.float32), targets).item()
      guard loss.isFinite else {
        throw TensorError("the model's loss at token \(predicted) is \(loss): its weights or the input are broken")
      }
      result.negativeLogLikelihood += loss * Double(end - predicted)
      result.tokens += end - predicted
      predicted = end
      // The next token needs at least the one before it.
      begin = min(begin + stride, predicted - 1)
      if !progress(Double(predicted) / Double(tokens.count), result) { break }
    }
    return result
  }
}
