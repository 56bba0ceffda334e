import ArgumentParser
import Foundation
import MartletCatalog

/// Options that decide what is generated, each overriding what the model's generation_config.json says.
struct SamplingOptions: ParsableArguments {
  @Option(help: "Tokens to add at most (bytes, for a byte-level model).")
  var tokens: Int = 200

  @Option(help: "Temperature; 0 takes the likeliest.")
  var temperature: Double?

  @Option(help: "Only the k likeliest.")
  var topK: Int?

  @Option(help: "The smallest set that reaches this probability.")
  var topP: Double?

  @Option(help: "Only those at least this fraction as likely as the likeliest.")
  var minP: Double?

  @Option(help: "Divides the logits of tokens that were there already; 1 changes nothing.")
  var repetitionPenalty: Double?

  @Option(help: "Taken from the logits of tokens that were generated already.")
  var presencePenalty: Double?

  @Option(help: "The same for each time they were.")
  var frequencyPenalty: Double?

  @Option(name: .customLong("no-repeat-ngram"), help: "No run of so many tokens comes twice.")
  var noRepeatedRun: Int?

  @Option(help: "Added to a token's logit, as ID=VALUE; -inf forbids it. May be repeated.")
  var logitBias: [String] = []

  @Option(help: "Seed of the sampling.")
  var seed: Int = 0

  @Option(
    help: "What keys and values are kept in: full, bfloat16 or int8.", completion: .list(CacheOptions.Storage.allCases.map(\.rawValue)))
  var cache: String = "full"

  func validate() throws {
    guard tokens >= 0 else { throw ValidationError("--tokens must not be negative, got \(tokens)") }
    _ = try biases()
    let _: CacheOptions.Storage = try CatalogArguments.parse(cache)
  }

  private func biases() throws -> [Int: Double] {
    var result: [Int: Double] = [:]
    for text in logitBias {
      let sides = text.split(separator: "=", maxSplits: 1).map(String.init)
      guard sides.count == 2, let id = Int(sides[0]), id >= 0, let value = Double(sides[1]), !value.isNaN, value < .infinity else {
        throw ValidationError("--logit-bias takes ID=VALUE such as 50256=-inf or 11=2.5, got “\(text)”")
      }
      result[id, default: 0] += value
    }
    return result
  }

  /// - Parameters:
  ///   - base: what the model asks for.
  ///   - temperature: where neither it nor the user says one.
  func options(over base: GenerationOptions) throws -> GenerationOptions {
    var options = base
    options.maximumTokens = tokens
    if let temperature { options.sampler.temperature = temperature }
    // A user who asks for a way of sampling wants to sample.
    let samples = topK != nil || topP != nil || minP != nil
    if samples && temperature == nil && options.sampler.temperature == 0 { options.sampler.temperature = 1 }
    if let topK { options.sampler.topK = topK }
    if let topP { options.sampler.topP = topP }
    if let minP { options.sampler.minP = minP }
    if let repetitionPenalty { options.repetitionPenalty = repetitionPenalty }
    if let presencePenalty { options.presencePenalty = presencePenalty }
    if let frequencyPenalty { options.frequencyPenalty = frequencyPenalty }
    if let noRepeatedRun { options.noRepeatedRun = noRepeatedRun }
    for (id, value) in try biases() { options.logitBias[id, default: 0] += value }
    options.seed = UInt64(bitPattern: Int64(seed))
    options.cache.storage = try CatalogArguments.parse(cache)
    return options
  }
}

/// The form in which a model's weights are held.
enum WeightsOption: String, CaseIterable {
  case float32, bfloat16, int8, int4

  /// Reads a model. Linear layers are rounded to 8 or 4 bits where that is asked for, one after the other.
  ///
  /// - Parameter weights: `nil` for the file's own type.
  static func load(_ path: String, _ weights: WeightsOption?) throws -> PretrainedModel {
    let dtype: DType? =
      switch weights {
      case .float32: .float32
      case .bfloat16: .bfloat16
      // Rounded from the file's own numbers: the dense model never is in memory as a whole.
      case .int8, .int4, nil: nil
      }
    let pretrained = try PretrainedArguments.load(path, dtype: dtype)
    if let bits = weights == .int8 ? 8 : weights == .int4 ? 4 : nil {
      try withTorchErrors { _ = try pretrained.model.quantizeLinears(WeightQuantization(bits: bits)) }
    }
    return pretrained
  }
}
