import Foundation

/// A task named on the command line or in a recipe: `name[:argument][?key=value&flag…]`, e.g. `image:data/mnist?permuted&downscale=2`.
///
/// ``usage`` lists the names, what they take and an example of each.
public struct TaskSpecification: Equatable, Sendable {
  public let name: String
  /// A file, files divided by commas, or a folder.
  public let argument: String?
  /// Values by key; a key without `=` has the value `true`.
  public let options: [String: String]

  /// Throws `DataError` for an unknown task or key (naming those that exist and the nearest), a key given twice, a missing argument and
  /// one that the task does not take. Values are checked by ``make()``.
  public init(_ text: String) throws {
    let mark = text.lastIndex(of: "?")
    let head = text[..<(mark ?? text.endIndex)]
    let colon = head.firstIndex(of: ":")
    let name = String(head[..<(colon ?? head.endIndex)])
    guard let kind = TaskKind.all.first(where: { $0.name == name }) else {
      throw DataError(
        "there is no task “\(name)”\(Self.suggestion(name, TaskKind.all.map(\.name))); tasks: \(TaskKind.all.map(\.name).joined(separator: ", "))"
      )
    }
    self.name = name
    argument = colon.map { String(head[head.index(after: $0)...]) }.flatMap { $0.isEmpty ? nil : $0 }
    switch kind.argument {
    case .none: if let argument { throw DataError("the task \(name) takes no file, found “\(argument)”; example: \(kind.example)") }
    case .optional: break
    case .required(let what):
      if argument == nil { throw DataError("the task \(name) needs \(what): \(name):PATH; example: \(kind.example)") }
    }
    var options: [String: String] = [:]
    let keys = kind.options.map(\.key)
    for item in mark.map({ text[text.index(after: $0)...].split(separator: "&") }) ?? [] {
      let halves = item.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      let key = String(halves[0])
      guard keys.contains(key) else {
        throw DataError("the task \(name) has no option “\(key)”\(Self.suggestion(key, keys)); options: \(keys.joined(separator: ", "))")
      }
      guard options.updateValue(halves.count == 2 ? String(halves[1]) : "true", forKey: key) == nil else {
        throw DataError("the option \(key) of the task \(name) is given twice")
      }
    }
    self.options = options
  }

  /// Builds the task: reads its files or generates its examples.
  ///
  /// Throws `DataError` for values out of range or of another type, and whatever the task finds wrong with its files.
  public func make() throws -> any LearningTask {
    // An existing specification names an existing kind.
    let kind = TaskKind.all.first { $0.name == name }!
    return try kind.make(TaskArguments(name: name, argument: argument, options: options))
  }

  /// The nearest of the candidates in parentheses, if one is near enough to be a slip.
  static func suggestion(_ word: String, _ candidates: [String]) -> String {
    let nearest = candidates.map { (distance: editDistance(word.lowercased(), $0), $0) }.min { $0.distance < $1.distance }
    guard let (distance, candidate) = nearest, distance <= max(2, candidate.count / 3), distance < candidate.count else { return "" }
    return " (did you mean “\(candidate)”?)"
  }

  /// Insertions, deletions, replacements and swaps of neighbours that turn one word into the other.
  static func editDistance(_ a: String, _ b: String) -> Int {
    let (a, b) = (Array(a), Array(b))
    var rows = [[Int]](repeating: [Int](repeating: 0, count: b.count + 1), count: a.count + 1)
    for i in 0...a.count { rows[i][0] = i }
    for j in 0...b.count { rows[0][j] = j }
    for i in a.indices {
      for j in b.indices {
        var best = min(rows[i][j + 1] + 1, rows[i + 1][j] + 1, rows[i][j] + (a[i] == b[j] ? 0 : 1))
        if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] { best = min(best, rows[i - 1][j - 1] + 1) }
        rows[i + 1][j + 1] = best
      }
    }
    return rows[a.count][b.count]
  }

  /// All tasks with their options and an example each, for `--help`.
  public static var usage: String {
    TaskKind.all.map { kind in
      let head: String
      switch kind.argument {
      case .none: head = kind.name
      case .optional(let what): head = "\(kind.name) | \(kind.name):PATH (\(what))"
      case .required(let what): head = "\(kind.name):PATH (\(what))"
      }
      let width = kind.options.map { $0.key.count + 1 + $0.standard.count }.max() ?? 0
      let options = kind.options.map { option in
        let left = option.standard.isEmpty ? option.key : "\(option.key)=\(option.standard)"
        return "      \(left.padding(toLength: max(width, left.count), withPad: " ", startingAt: 0))  \(option.meaning)"
      }
      return (["  \(head)", "    \(kind.summary)"] + options + ["    example: \(kind.example)"]).joined(separator: "\n")
    }.joined(separator: "\n\n")
  }
}

/// Typed access to what was given, with messages that name the option.
struct TaskArguments {
  let name: String
  let argument: String?
  let options: [String: String]

  func integer(_ key: String, _ standard: Int, least: Int = 0) throws -> Int {
    guard let text = options[key] else { return standard }
    guard let value = Int(text), value >= least, value <= 1 << 40 else {
      throw DataError("the option \(key) of the task \(name) must be an integer of at least \(least), not “\(text)”")
    }
    return value
  }

  func real(_ key: String, _ standard: Double) throws -> Double {
    guard let text = options[key] else { return standard }
    guard let value = Double(text), value.isFinite else {
      throw DataError("the option \(key) of the task \(name) must be a number, not “\(text)”")
    }
    return value
  }

  func flag(_ key: String) throws -> Bool {
    switch options[key] {
    case nil, "false", "no", "0": return false
    case "true", "yes", "1": return true
    case .some(let text): throw DataError("the option \(key) of the task \(name) is true or false, not “\(text)”")
    }
  }

  func seed() throws -> UInt64 { UInt64(try integer("seed", 0)) }

  /// `examples` for training, `heldout` for validation and test each.
  func counts(_ train: Int, _ heldout: Int) throws -> SplitCounts {
    let heldout = try integer("heldout", heldout, least: 1)
    return SplitCounts(train: try integer("examples", train, least: 1), validation: heldout, test: heldout)
  }
}

/// One task that can be named.
struct TaskKind {
  enum Argument {
    case none
    case optional(String)
    case required(String)
  }

  struct Option {
    let key: String
    /// The value taken when it is not given, as text; empty for flags and "all".
    let standard: String
    let meaning: String

    init(_ key: String, _ standard: String = "", _ meaning: String) {
      self.key = key
      self.standard = standard
      self.meaning = meaning
    }

    static func generated(_ examples: String, _ heldout: String) -> [Option] {
      [
        Option("examples", examples, "training examples"), Option("heldout", heldout, "validation examples, and as many test examples"),
        Option("seed", "0", "seed of the data"),
      ]
    }

    static let limits = [
      Option("examples", "", "at most so many training examples"),
      Option("heldout", "", "at most so many validation and test examples each"),
    ]
  }

  let name: String
  let argument: Argument
  let summary: String
  let options: [Option]
  let example: String
  let make: @Sendable (TaskArguments) throws -> any LearningTask
}

extension TaskKind: Sendable {}
extension TaskKind.Argument: Sendable {}
extension TaskKind.Option: Sendable {}

extension TaskKind {
  static let all: [TaskKind] = [
    TaskKind(
      name: "listops", argument: .optional("folder with basic_train.tsv, basic_val.tsv, basic_test.tsv"),
      summary: "Long Range Arena's nested list expressions: ten classes. Generated with the original parameters unless told otherwise.",
      options: [
        Option("small", "", "20 to 128 tokens, depth 5"), Option("tiny", "", "6 to 39 tokens, depth 4, at most 5 arguments"),
        Option("depth", "10", "deepest nesting"), Option("arguments", "10", "most arguments of an operator"),
        Option("above", "500", "tokens are more than this"), Option("below", "2000", "tokens are fewer than this"),
        Option("length", "2000", "tokens that are kept of an expression read from a file"),
        Option("full", "", "fill every batch to the full length"),
      ] + Option.generated("4000", "500"),
      example: "listops?small&examples=20000",
      make: { given in
        guard let directory = given.argument else {
          let (small, tiny) = (try given.flag("small"), try given.flag("tiny"))
          guard !(small && tiny) else { throw DataError("the options small and tiny of the task listops exclude one another") }
          guard given.options["length"] == nil else {
            throw DataError("the option length of the task listops is for files; above and below bound generated expressions")
          }
          var generator = small ? ListOpsGenerator.small() : tiny ? .tiny() : ListOpsGenerator()
          generator.maxDepth = try given.integer("depth", generator.maxDepth, least: 1)
          generator.maxArguments = try given.integer("arguments", generator.maxArguments, least: 2)
          generator.minLength = try given.integer("above", generator.minLength)
          generator.maxLength = try given.integer("below", generator.maxLength, least: 2)
          generator.seed = try given.seed()
          return try ListOpsTask(generator: generator, counts: given.counts(4000, 500), fillsToLength: given.flag("full"))
        }
        if let key = ["small", "tiny", "depth", "arguments", "above", "below", "seed"].first(where: { given.options[$0] != nil }) {
          throw DataError("the option \(key) of the task listops is for generated expressions, not for those of \(directory)")
        }
        return try ListOpsTask(
          directory: directory, length: given.integer("length", 2000, least: 1), limits: given.counts(.max, .max),
          fillsToLength: given.flag("full"))
      }),
    TaskKind(
      name: "bytes", argument: .required("files divided by commas"),
      summary: "The next byte of any files; parts of 90/5/5 %.",
      options: [
        Option("length", "256", "bytes of a window"), Option("heldout", "", "at most so many validation and test windows each"),
      ],
      example: "bytes:shakespeare.txt?length=512",
      make: { given in
        try ByteTextTask(
          files: given.argument!.split(separator: ",").map(String.init), length: given.integer("length", 256, least: 1),
          evaluationLimit: given.integer("heldout", .max, least: 1))
      }),
    TaskKind(
      name: "image", argument: .required("folder with IDX files or CIFAR-10's .bin files, maybe .gz"),
      summary: "The class of an image read pixel by pixel.",
      options: [
        Option("permuted", "", "pixels in one fixed random order"), Option("downscale", "1", "average squares of so many pixels a side"),
        Option("tokens", "", "grey levels as 256 ids instead of standardised numbers"),
        Option("colour", "", "three channels instead of grey"),
      ] + Option.limits + [Option("seed", "0", "seed of the order and of the cut of a folder without test files")],
      example: "image:data/mnist?permuted&downscale=2",
      make: { given in
        var options = ImageSequenceTask.Options()
        options.encoding = try given.flag("tokens") ? .tokens : .continuous
        options.inColour = try given.flag("colour")
        options.downscale = try given.integer("downscale", 1, least: 1)
        options.permutation = try given.flag("permuted") ? given.seed() : nil
        options.splitSeed = try given.seed()
        options.trainLimit = try given.integer("examples", .max, least: 1)
        options.evaluationLimit = try given.integer("heldout", .max, least: 1)
        return try ImageSequenceTask(directory: given.argument!, options: options)
      }),
    TaskKind(
      name: "text", argument: .required(".tsv, .csv or .jsonl file, folder with train/dev/test, or folder with one subfolder a class"),
      summary: "The class of a text read byte by byte.",
      options: [Option("length", "1000", "bytes that are kept of a text"), Option("full", "", "fill every batch to the full length")]
        + Option.limits + [Option("seed", "0", "seed of the cut of a file without test texts")],
      example: "text:data/sst2?length=256",
      make: { given in
        var options = TextClassificationTask.Options()
        options.length = try given.integer("length", 1000, least: 1)
        options.fillsToLength = try given.flag("full")
        options.trainLimit = try given.integer("examples", .max, least: 1)
        options.evaluationLimit = try given.integer("heldout", .max, least: 1)
        options.splitSeed = try given.seed()
        return try TextClassificationTask(path: given.argument!, options: options)
      }),
    TaskKind(
      name: "recall", argument: .none, summary: "Multi-query associative recall: the values of keys seen before.",
      options: [
        Option("length", "64", "positions"), Option("vocabulary", "64", "ids, half keys and half values"),
        Option("pairs", "8", "keys with values"),
        Option("power", "0.01", "power law of the gaps; near 0 favours short ones"),
      ] + Option.generated("20000", "500"),
      example: "recall?length=256&pairs=16",
      make: { given in
        try AssociativeRecallTask(
          length: given.integer("length", 64), vocabulary: given.integer("vocabulary", 64), pairs: given.integer("pairs", 8),
          power: given.real("power", 0.01), counts: given.counts(20000, 500), seed: given.seed())
      }),
    TaskKind(
      name: "copying", argument: .none, summary: "Selective copying: items among noise, repeated in order at the end.",
      options: [
        Option("length", "256", "positions with the answer"), Option("items", "16", "items to copy"),
        Option("symbols", "14", "kinds of items"),
      ] + Option.generated("20000", "500"),
      example: "copying?length=512&items=8",
      make: { given in
        try SelectiveCopyingTask(
          length: given.integer("length", 256), items: given.integer("items", 16), symbols: given.integer("symbols", 14),
          counts: given.counts(20000, 500), seed: given.seed())
      }),
    TaskKind(
      name: "dictionary", argument: .none, summary: "A dictionary with resets: the value of a key seen since the last reset.",
      options: [
        Option("steps", "32", "pairs of tokens"), Option("keys", "4", "different keys"), Option("values", "8", "different values"),
        Option("resets", "0.1", "probability of a reset at a step"),
      ] + Option.generated("20000", "500"),
      example: "dictionary?steps=64",
      make: { given in
        try DictionaryResetTask(
          steps: given.integer("steps", 32), keys: given.integer("keys", 4), values: given.integer("values", 8),
          resetRate: given.real("resets", 0.1), counts: given.counts(20000, 500), seed: given.seed())
      }),
    TaskKind(
      name: "latest_binding", argument: .none, summary: "Keys bound again and again: the value a recurring key was last bound to.",
      options: [
        Option("pairs", "32", "pairs of a key and a value"), Option("keys", "8", "different keys"),
        Option("values", "16", "different values"),
      ] + Option.generated("20000", "500"),
      example: "latest_binding?pairs=64",
      make: { given in
        try LatestBindingTask(
          pairs: given.integer("pairs", 32), keys: given.integer("keys", 8), values: given.integer("values", 16),
          counts: given.counts(20000, 500), seed: given.seed())
      }),
    TaskKind(
      name: "frequency", argument: .none, summary: "Which frequency a sine in noise has.",
      options: [
        Option("length", "512", "samples"), Option("classes", "8", "frequencies"),
        Option("noise", "1", "deviation of the noise; the sine has amplitude 1"),
      ] + Option.generated("20000", "500"),
      example: "frequency?length=1024&noise=2",
      make: { given in
        try NoisyFrequencyTask(
          length: given.integer("length", 512), classes: given.integer("classes", 8), noise: given.real("noise", 1),
          counts: given.counts(20000, 500), seed: given.seed())
      }),
    TaskKind(
      name: "digits", argument: .optional("folder with MNIST's files"),
      summary: "8×8 digits as 64 numbers; without a folder drawn by a program, no handwriting.",
      options: Option.generated("200", "500"), example: "digits?examples=400",
      make: { given in
        guard let directory = given.argument else {
          return try DigitsTask(SyntheticDigits(seed: given.seed()), counts: given.counts(200, 500))
        }
        return try DigitsTask(directory: directory, counts: given.counts(200, 500), seed: given.seed())
      }),
    TaskKind(
      name: "video", argument: .none, summary: "The types of two short events among the noisy tokens of a video.",
      options: [
        Option("frames", "16", "frames of a video"), Option("places", "16", "tokens of a frame"),
        Option("channels", "12", "numbers of a token"), Option("draws", "8", "draws of a token that an event overwrites"),
      ] + Option.generated("20000", "500"),
      example: "video?frames=32",
      make: { given in
        try SyntheticVideoTask(
          frames: given.integer("frames", 16), places: given.integer("places", 16), channels: given.integer("channels", 12),
          draws: given.integer("draws", 8), counts: given.counts(20000, 500), seed: given.seed())
      }),
    TaskKind(
      name: "shift", argument: .none, summary: "The token some positions before.",
      options: [
        Option("length", "64", "positions"), Option("distance", "7", "positions back"), Option("symbols", "16", "different tokens"),
      ] + Option.generated("20000", "500"),
      example: "shift?length=256&distance=40",
      make: { given in
        try ShiftTask(
          length: given.integer("length", 64), distance: given.integer("distance", 7), symbols: given.integer("symbols", 16),
          counts: given.counts(20000, 500), seed: given.seed())
      }),
  ]
}
