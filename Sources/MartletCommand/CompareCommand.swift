import ArgumentParser
import Foundation
import MartletCatalog

struct CompareCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "compare",
    abstract: "Compare sequence mixers fairly on your data: same data, same parameters, same budget.",
    discussion: """
      Trains one model per mixer and seed, from scratch and (with --pretrain) after self-pretraining on the same inputs, then \
      measures quality, speed, memory and how they grow with the length. Writes results.json and report.html to --out. \
      Run the same command again to go on where an interrupted one stopped.

      Example: martlet compare --task 'listops?small' --mixers softmax,linear,gla,s4 --pretrain masked --budget 60s --out runs/listops

      `martlet describe tasks` lists the tasks and their options. Mixers: \(MixerKind.all.map(\.name).joined(separator: ", ")); \
      options follow a question mark: s4d?state=32&initialization=legs. An arm may be a hybrid, a pattern that repeats over the \
      layers: deltanet+window alternates, deltanet*2+softmax has two layers of the first to one of the second.
      """)

  @Option(help: "What to learn: listops, bytes:FILE, image:DIR, text:FILE, recall, copying, …", completion: .default)
  var task: String

  @Option(
    help: "Mixers to compare, or patterns of them as deltanet*2+softmax, separated by commas.", completion: .list(MixerKind.all.map(\.name))
  )
  var mixers: String = "softmax,linear,gla,s4"

  @Option(help: "Self-pretraining objective for a second round of arms: none, masked or causal.")
  var pretrain: ComparisonOptions.Pretraining = .none

  @Option(help: "Part of the budget that self-pretraining takes.")
  var pretrainFraction: Double = 0.5

  @Option(help: "Training of each arm: 120s, 5m, 2000steps, 10Mtokens.")
  var budget: String = "60s"

  @Option(help: "Parameters of each arm, matched within 2 % by width.")
  var params: String = "300k"

  @Option(help: "Lengths at which time and memory are measured; “none” for none.")
  var lengths: String = "256,1k,4k,16k"

  @Option(help: "Seeds of each arm.")
  var seeds: Int = 3

  @Option(help: "Examples in a batch.")
  var batchSize: Int = 32

  @Option(help: "Peak learning rate of AdamW (cosine with warm-up).")
  var learningRate: Double = 2e-3

  @Option(help: "Layers of each model.")
  var layers: Int = 4

  @Option(help: "Heads of each layer.")
  var heads: Int = 4

  @Option(help: "Feed-forward: \(FeedForwardKind.allCases.map(\.rawValue).joined(separator: ", ")).")
  var feedForward: FeedForwardKind = .mlp

  @Option(help: "Dropout.")
  var dropout: Double = 0

  @Option(help: "Held-out examples of each of the ten evaluations on the way; their time is not the budget's.")
  var validationExamples: Int = 256

  @Option(help: "Test examples of the final evaluation.")
  var testExamples: Int = 2000

  @Option(help: "Folder for results, report and checkpoints.", completion: .directory)
  var out: String

  @Option(help: "Also write the tables and the verdict in Markdown.", completion: .file(extensions: ["md"]))
  var markdown: String?

  @Option(help: "Threads inside operators; 0 takes the machine's.")
  var threads: Int = 0

  @Flag(help: "Print results.json instead of the table.")
  var json = false

  @Flag(help: "Don't record the run in the experiment store.")
  var noStore = false

  mutating func run() throws {
    if threads > 0 { Engine.threads = threads }
    Interruption.watch()
    let options = ComparisonOptions(
      task: task, mixers: try mixers.split(separator: ",").map { try MixerPattern(parsing: String($0)) }, pretraining: pretrain,
      pretrainingFraction: pretrainFraction, budget: try TrainingBudget(parsing: budget), parameters: try Quantity.count(params),
      lengths: lengths == "none" ? [] : try Quantity.lengths(lengths), seeds: seeds, batchSize: batchSize,
      learningRate: learningRate, layers: layers, heads: heads, feedForward: feedForward, dropout: dropout,
      evaluationExamples: validationExamples, testExamples: testExamples)
    let display = ProgressDisplay()
    let comparison = try Comparison(
      options, directory: URL(fileURLWithPath: out, isDirectory: true), command: Self.commandLine)
    comparison.shouldInterrupt = { Interruption.isAsked }
    if !noStore {
      do { comparison.store = try ExperimentStore() } catch { display.note("warning: no experiment store: \(error)") }
    }
    comparison.onEvent = { event in
      switch event {
      case .armBegan(let name, let number, let of): display.note("[\(number)/\(of)] \(name)")
      case .progress(_, let phase, let progress): display.update("  \(phase)", progress)
      case .measuringLengths: display.note("  measuring time and memory against the length")
      case .armEnded(let arm):
        let figures = ["accuracy", "bitsPerByte", "loss"].compactMap { key in
          arm.metrics[key].map { "\(key) \(String(format: "%.4f", $0))" }
        }
        display.note("  test: \(figures.joined(separator: ", "))")
      case .warning(let text): display.note("warning: \(text)")
      }
    }
    let results = try comparison.run()
    if let markdown { try Data(results.markdown().utf8).write(to: URL(fileURLWithPath: markdown), options: .atomic) }
    if json {
      FileHandle.standardOutput.write(try results.json())
      print()
    } else {
      print(results.terminalReport())
      print("\nreport: \(out)/report.html\nresults: \(out)/results.json")
    }
  }

  /// The command as the shell would need it.
  private static var commandLine: String {
    let plain = Set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:,=+@%")
    let words = CommandLine.arguments.dropFirst().map { word in
      !word.isEmpty && word.allSatisfy(plain.contains) ? word : "'" + word.replacingOccurrences(of: "'", with: "'\\''") + "'"
    }
    return (["martlet"] + words).joined(separator: " ")
  }
}

extension ComparisonOptions.Pretraining: ExpressibleByArgument {}
extension FeedForwardKind: ExpressibleByArgument {}
extension Pooling: ExpressibleByArgument {}
extension NormalizationKind: ExpressibleByArgument {}
extension PositionKind: ExpressibleByArgument {}
