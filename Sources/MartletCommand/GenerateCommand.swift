import ArgumentParser
import Foundation
import MartletCatalog

struct GenerateCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "generate",
    abstract: "Continue a text with a byte-level language model trained by `martlet train`.",
    discussion: "Example: martlet generate models/book \"To be, or\" --tokens 200 --temperature 0.8 --seed 1")

  @Argument(help: "A model folder.", completion: .directory)
  var model: String

  @Argument(help: "The text to continue.")
  var prompt: String

  @Option(help: "Bytes to add.")
  var tokens: Int = 200

  @Option(help: "Temperature; 0 takes the likeliest byte.")
  var temperature: Double = 0.8

  @Option(help: "Only the k likeliest.")
  var topK: Int?

  @Option(help: "The smallest set that reaches this probability.")
  var topP: Double = 1

  @Option(help: "Only those at least this fraction as likely as the likeliest.")
  var minP: Double = 0

  @Option(help: "Seed of the sampling.")
  var seed: Int = 0

  @Option(help: "Threads inside operators; 0 takes the machine's.")
  var threads: Int = 0

  @Flag(help: "Print one JSON object with the text, the time to the first byte and the rate.")
  var json = false

  mutating func run() throws {
    if threads > 0 { Engine.threads = threads }
    Interruption.watch()
    guard tokens >= 0 else { throw ValidationError("--tokens must not be negative, got \(tokens)") }
    let start = ContinuousClock.now
    let (model, saved) = try SavedModel.load(URL(fileURLWithPath: self.model, isDirectory: true))
    guard case .tokens(let vocabulary) = saved.objective, vocabulary == 256 else {
      throw FileError(self.model, "was trained on “\(saved.task)”, which is no byte-level language model, so it can't continue a text")
    }
    let bytes = Array(prompt.utf8)
    var produced: [UInt8] = []
    var first: Double?
    let json = self.json
    func seconds() -> Double {
      let elapsed = ContinuousClock.now - start
      return Double(elapsed.components.seconds) + Double(elapsed.components.attoseconds) * 1e-18
    }
    if !json { FileHandle.standardOutput.write(Data(bytes)) }
    var options = GenerationOptions(
      maximumTokens: tokens, sampler: Sampler(temperature: temperature, topK: topK, topP: topP, minP: minP))
    options.seed = UInt64(bitPattern: Int64(seed))
    _ = try withTorchErrors {
      try MartletInference.generate(model, prompts: [bytes.map(Int.init)], options: options) { _, next, _ in
        if first == nil { first = seconds() }
        let byte = UInt8(truncatingIfNeeded: next)
        produced.append(byte)
        if !json { FileHandle.standardOutput.write(Data([byte])) }
        return !Interruption.isAsked
      }
    }
    let total = seconds()
    if json {
      let rate = produced.count > 1 ? Double(produced.count - 1) / max(1e-9, total - (first ?? 0)) : 0
      let object: JSONValue = [
        "prompt": .string(prompt), "text": .string(String(decoding: produced, as: UTF8.self)), "tokens": .integer(produced.count),
        "secondsToFirstToken": .number(first ?? 0), "tokensPerSecond": .number(rate), "seed": .integer(seed),
      ]
      print(object.serialized(indentation: 2))
    } else {
      print()
    }
  }
}
