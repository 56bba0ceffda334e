import ArgumentParser
import Foundation
import MartletCatalog
import MartletTokenizers

struct GenerateCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "generate",
    abstract: "Continue a text, answer in a chat, or run a file of prompts.",
    discussion: """
      MODEL is a Hugging Face folder of a language model or an encoder-decoder, or a byte-level model made by `martlet train`. \
      Sampling follows the model's generation_config.json unless options say otherwise; without either, the likeliest token is taken \
      (byte-level models: temperature 0.8). Without a prompt, --chat at a terminal begins a conversation; else the prompt is read from \
      standard input. With --input every line is a prompt of its own, and each gives one JSON object on a line.

      Example: martlet generate models/llama "To be, or" --tokens 100 --temperature 0.8 --seed 1
      A chat: martlet generate models/qwen --chat --system "Answer briefly."
      Faster: martlet generate models/llama "To be, or" --weights int4 --draft models/llama-small --guesses 5
      Speech: martlet generate models/whisper --audio talk.wav
      """)

  @Argument(help: "A model folder.", completion: .directory)
  var model: String

  @Argument(help: "The text to continue, or the message of a chat.")
  var prompt: String?

  @Option(help: "A file of prompts, one a line.", completion: .file())
  var input: String?

  @Option(help: "Prompts of --input that run together.")
  var batch: Int = 8

  @Flag(help: "The prompt is a user's message: put it into the model's chat template.")
  var chat = false

  @Option(help: "The system message of a chat.")
  var system: String?

  @Option(help: "A recording for a model of speech.", completion: .file(extensions: ["wav"]))
  var audio: String?

  @Option(help: "The language of the recording, e.g. en; detected unless given.")
  var language: String?

  @Option(
    help: "What to do with the recording: transcribe, or translate to English.",
    completion: .list(WhisperPrompt.Task.allCases.map(\.rawValue)))
  var task: String?

  @OptionGroup(title: "Sampling") var sampling: SamplingOptions

  @Option(help: "Search with so many beams instead of sampling.")
  var beams: Int?

  @Option(help: "Power of the length by which a beam's score is divided: above 0 favours longer texts.")
  var lengthPenalty: Double?

  @Option(help: "End the text before this string. May be repeated.")
  var stop: [String] = []

  @Option(help: "A small model of the same vocabulary that guesses ahead.", completion: .directory)
  var draft: String?

  @Option(help: "Tokens that --draft guesses at a time.")
  var guesses: Int = 4

  @Option(
    help: "Form of the weights: float32, bfloat16, int8 or int4; the file's unless given.",
    completion: .list(WeightsOption.allCases.map(\.rawValue)))
  var weights: String?

  @Flag(help: "Add no special tokens to the prompt.")
  var noSpecial = false

  @OptionGroup var compute: ComputeOptions

  @Flag(help: "Say each token's log-probability (with --json or --input).")
  var logprobs = false

  @Flag(help: "Print one JSON object with the text, its tokens, the time to the first token and the rate.")
  var json = false

  func validate() throws {
    func refuse(_ isGiven: Bool, _ message: @autoclosure () -> String) throws { if isGiven { throw ValidationError(message()) } }
    try refuse(input != nil && prompt != nil, "give a prompt or --input, not both")
    try refuse(audio != nil && (prompt != nil || input != nil || chat), "--audio is the whole input; leave out prompt, --input and --chat")
    try refuse(audio == nil && (language != nil || task != nil), "--language and --task belong to --audio")
    try refuse(system != nil && !chat, "--system is the system message of a --chat")
    try refuse(logprobs && !json && input == nil, "--logprobs needs --json")
    try refuse(!(1...4096).contains(batch), "--batch must lie between 1 and 4096, got \(batch)")
    try refuse(guesses < 1, "--guesses must be positive, got \(guesses)")
    try refuse(stop.contains(""), "--stop needs a string")
    if let beams {
      try refuse(beams < 1, "--beams must be positive, got \(beams)")
      try refuse(draft != nil, "--beams and --draft exclude each other")
      try refuse(!stop.isEmpty, "--stop does not work with --beams")
      try refuse(logprobs, "--logprobs does not work with --beams")
      try refuse(audio != nil, "--audio does not work with --beams")
    }
    try refuse(lengthPenalty != nil && beams == nil, "--length-penalty belongs to --beams")
    try refuse(draft != nil && input != nil, "--draft works on one prompt, not with --input")
    if let weights { let _: WeightsOption = try CatalogArguments.parse(weights) }
    if let task { let _: WhisperPrompt.Task = try CatalogArguments.parse(task) }
  }

  func run() throws {
    let watch = Stopwatch()
    compute.apply()
    Interruption.watch()
    switch try PretrainedArguments.kind(model) {
    case .trained: try continueBytes(watch)
    case .checkpoint: try runPretrained(watch)
    case .tensors: throw FileError(model, "is one file of tensors; name the folder that holds it with its config.json")
    }
  }

  private func prompted() throws -> String {
    if let prompt { return prompt }
    let data = FileHandle.standardInput.readDataToEndOfFile()
    var text = String(decoding: data, as: UTF8.self)
    if text.hasSuffix("\n") { text.removeLast() }
    return text
  }

  // MARK: Pretrained models

  private func runPretrained(_ watch: Stopwatch) throws {
    let producer = try TextProducer(
      model, weights: try weights.map { try CatalogArguments.parse($0) }, sampling: sampling, stopStrings: stop,
      draft: draft.map { ($0, guesses) })
    if let input { return try runAll(input, producer) }
    if chat && prompt == nil && isatty(STDIN_FILENO) == 1 {
      guard !json else { throw ValidationError("--json needs a prompt") }
      var session = ChatSession(producer, system: system)
      return try session.run()
    }
    let streams = !json && beams == nil
    func show(_ piece: String) -> Bool {
      if streams { StandardOutput.write(piece) }
      return true
    }
    let result: ProducedText
    if let audio {
      result = try producer.transcribe(
        audio, language: language, task: try task.map { try CatalogArguments.parse($0) }, watch: watch, onText: show)
    } else {
      let text = try prompted()
      let tokens = try self.tokens(of: text, producer)
      // A chat's question isn't part of its answer, nor an encoder's input of its output.
      if !json && !chat && producer.pretrained.encoderDecoder == nil { StandardOutput.write(text) }
      result =
        try beamOptions.map { try producer.search([(text, tokens)], $0, watch: watch)[0] }
        ?? producer.produce([(text, tokens)], watch: watch) { _, piece in show(piece) }[0]
    }
    if json { return Output.json(result.json(seed: sampling.seed, logProbabilities: logprobs)) }
    if !streams { StandardOutput.write(result.text) }
    StandardOutput.write("\n")
  }

  private var beamOptions: BeamSearchOptions? {
    beams.map {
      var options = BeamSearchOptions(beams: $0)
      if let lengthPenalty { options.lengthPenalty = lengthPenalty }
      return options
    }
  }

  private func tokens(of text: String, _ producer: TextProducer) throws -> [Int] {
    guard chat else { return try producer.tokens(text, special: !noSpecial) }
    var messages = [ChatMessage(role: "user", content: text)]
    if let system { messages.insert(ChatMessage(role: "system", content: system), at: 0) }
    // Templates write the special tokens themselves.
    return try producer.tokens(try producer.rendered(messages), special: false)
  }

  /// Every line of a file as a prompt; results in the order of the lines.
  private func runAll(_ input: String, _ producer: TextProducer) throws {
    var reader = try LineReader(input)
    var number = 0
    while let lines = try reader.next() {
      for start in stride(from: 0, to: lines.lines.count, by: batch) {
        let texts = lines.lines[start..<min(start + batch, lines.lines.count)].map(lines.text)
        let prompts = try texts.enumerated().map { i, text in
          do { return (text, try self.tokens(of: text, producer)) } catch {
            throw FileError(reader.name, "line \(number + i + 1): \(error)")
          }
        }
        number += texts.count
        let watch = Stopwatch()
        let results = try beamOptions.map { try producer.search(prompts, $0, watch: watch) } ?? producer.produce(prompts, watch: watch)
        if Interruption.isAsked { throw CommandLineErrors.interrupted }
        for result in results {
          StandardOutput.write(result.json(seed: sampling.seed, logProbabilities: logprobs, timed: false).serialized() + "\n")
        }
      }
    }
  }

  // MARK: Byte-level models

  /// Continues a text with a model of bytes made by `martlet train`.
  private func continueBytes(_ watch: Stopwatch) throws {
    let others = [
      (input != nil, "--input"), (chat, "--chat"), (audio != nil, "--audio"), (beams != nil, "--beams"), (draft != nil, "--draft"),
      (weights != nil, "--weights"), (!stop.isEmpty, "--stop"),
    ]
    if let option = others.first(where: \.0)?.1 {
      throw ValidationError("\(option) is for pretrained models; this one was made by `martlet train`")
    }
    let (model, saved) = try SavedModel.load(URL(fileURLWithPath: self.model, isDirectory: true))
    guard case .tokens(let vocabulary) = saved.objective, vocabulary == 256 else {
      throw FileError(self.model, "was trained on “\(saved.task)”, which is no byte-level language model, so it can't continue a text")
    }
    let prompt = try prompted()
    let bytes = Array(prompt.utf8)
    var result = ProducedText(prompt: prompt, promptTokens: bytes.count)
    var produced: [UInt8] = []
    if !json { StandardOutput.write(bytes) }
    let options = try sampling.options(over: GenerationOptions(maximumTokens: sampling.tokens, sampler: Sampler(temperature: 0.8)))
    let sequences = try withTorchErrors {
      try MartletInference.generate(model, prompts: [bytes.map(Int.init)], options: options) { _, next, _ in
        if result.firstSeconds == nil { result.firstSeconds = watch.seconds }
        let byte = UInt8(truncatingIfNeeded: next)
        produced.append(byte)
        if !json { StandardOutput.write([byte]) }
        return !Interruption.isAsked
      }
    }
    result.seconds = watch.seconds
    result.text = String(decoding: produced, as: UTF8.self)
    result.ids = sequences[0].tokens
    result.logProbabilities = sequences[0].logProbabilities
    result.finish = sequences[0].finish.rawValue
    if json { Output.json(result.json(seed: sampling.seed, logProbabilities: logprobs)) } else { StandardOutput.write("\n") }
  }
}
