import Foundation

/// Classifies a text read byte by byte (the byte-level text task of the Long Range Arena, SST-2, …).
///
/// Input ids are byte + 1, 0 fills on the right (vocabulary 257); bytes are taken as they are, whatever their encoding, and cut to
/// the length. Classes are numbered in the order of the labels of the training texts: by number when all are integers, else by name.
public final class TextClassificationTask: IndexedTask {
  public let name: String
  public let summary: String
  public let inputKind = InputKind.tokens(vocabulary: 257, padding: 0)
  public let objective: TaskObjective
  public let length: Int
  public let order: BatchOrder
  /// The labels in the files; their places are the classes.
  public let labels: [String]

  private let texts: [DataSplit: ByteSequences]
  private let classes: [DataSplit: [UInt16]]
  private let isFull: Bool

  public struct Options: Equatable, Sendable {
    /// Bytes of a text that are kept.
    public var length = 1000
    /// At most so many training texts.
    public var trainLimit = Int.max
    /// At most so many validation texts, and as many test texts.
    public var evaluationLimit = Int.max
    /// Determines which texts become validation and test where the files don't say.
    public var splitSeed: UInt64 = 0
    /// Batches are always `length` wide; else as wide as their longest text.
    public var fillsToLength = false

    public init() {}
  }

  /// - Parameter path: a `.tsv`, `.csv` or `.jsonl` file (maybe `.gz`), cut 80/10/10 at random; or a folder with `train`, `test` and
  ///   maybe `dev` (`valid`, `val`, `validation`) as such files or as subfolders with one folder a class (`train/pos/….txt`); or a folder
  ///   with one subfolder a class. A missing validation or test part is a tenth of the training texts each.
  /// - Throws: `DataError` with file and line for records of another form, unknown labels, and fewer than two classes.
  public init(path: String, options: Options = Options(), name: String = "text") throws {
    guard options.length > 0 else { throw DataError("the length of a text must be positive, not \(options.length)") }
    let parts = try Self.parts(path, seed: options.splitSeed)
    let found = Set(parts[.train]!.records.map(\.label))
    let labels = found.allSatisfy { Int($0) != nil } ? found.sorted { Int($0)! < Int($1)! } : found.sorted()
    guard (2...1 << 16).contains(labels.count) else {
      throw DataError(
        path, "at least 2 different labels were expected, found \(labels.count) (\(labels.prefix(3).joined(separator: ", ")))")
    }
    let numbers = Dictionary(uniqueKeysWithValues: labels.enumerated().map { ($1, UInt16($0)) })
    var texts: [DataSplit: ByteSequences] = [:]
    var classes: [DataSplit: [UInt16]] = [:]
    for (split, part) in parts {
      var sequences = ByteSequences()
      var targets: [UInt16] = []
      for record in part.records.prefix(split == .train ? options.trainLimit : options.evaluationLimit) {
        guard let number = numbers[record.label] else {
          throw DataError(
            "\(record.place): the label “\(record.label)” does not occur among the training texts (\(labels.prefix(8).joined(separator: ", ")))"
          )
        }
        sequences.append(record.text.prefix(options.length))
        targets.append(number)
      }
      texts[split] = sequences
      classes[split] = targets
    }
    self.texts = texts
    self.classes = classes
    self.labels = labels
    self.name = name
    length = options.fillsToLength ? options.length : min(options.length, texts.values.map(\.longest).max() ?? options.length)
    isFull = options.fillsToLength
    objective = .classification(classes: labels.count)
    order = BatchOrder(count: texts[.train]!.count)
    let counts = DataSplit.allCases.map { String(texts[$0]!.count) }.joined(separator: "/")
    summary =
      "Text: \(labels.count) classes from at most \(length) bytes; \(counts) from \(URL(fileURLWithPath: path).lastPathComponent)"
  }

  private static func parts(_ path: String, seed: UInt64) throws -> [DataSplit: LabelledText] {
    var isDirectory: ObjCBool = false
    guard FileManager.default.fileExists(atPath: path, isDirectory: &isDirectory) else {
      throw DataError(path, "there is no such file or folder")
    }
    guard isDirectory.boolValue else { return try cut(LabelledText(file: path), seed: seed) }
    guard let train = try part(path, ["train"]) else {
      let classes = try LabelledText.subfolders(path)
      guard classes.count >= 2 else {
        throw DataError(
          path,
          "train.tsv (.csv, .jsonl, maybe .gz), a folder train/ with one subfolder a class, or such subfolders were expected, found "
            + (try LabelledText.entries(path).prefix(5).joined(separator: ", ")))
      }
      return try cut(LabelledText(classFolders: path), seed: seed)
    }
    let validation = try part(path, ["dev", "validation", "valid", "val"])
    let test = try part(path, ["test"])
    if let validation, let test { return [.train: train, .validation: validation, .test: test] }
    if validation == nil && test == nil { return cut(train, seed: seed) }
    let pieces = train.cut([0.9, 0.1], seed: seed)
    return [.train: pieces[0], .validation: validation ?? pieces[1], .test: test ?? pieces[1]]
  }

  private static func cut(_ all: LabelledText, seed: UInt64) -> [DataSplit: LabelledText] {
    let pieces = all.cut([0.8, 0.1, 0.1], seed: seed)
    return [.train: pieces[0], .validation: pieces[1], .test: pieces[2]]
  }

  private static func part(_ folder: String, _ names: [String]) throws -> LabelledText? {
    for name in names {
      for ending in LabelledText.endings.flatMap({ [$0, $0 + ".gz"] }) {
        let file = "\(folder)/\(name).\(ending)"
        if FileManager.default.fileExists(atPath: file) { return try LabelledText(file: file) }
      }
      var isDirectory: ObjCBool = false
      if FileManager.default.fileExists(atPath: folder + "/" + name, isDirectory: &isDirectory), isDirectory.boolValue {
        return try LabelledText(classFolders: folder + "/" + name)
      }
    }
    return nil
  }

  public func count(_ split: DataSplit) -> Int { texts[split]!.count }

  /// The bytes of one text and its class.
  public func example(_ split: DataSplit, _ index: Int) -> (bytes: [UInt8], class: Int) {
    (Array(texts[split]![index]), Int(classes[split]![index]))
  }

  public func batch(_ split: DataSplit, _ indices: [Int]) -> Batch {
    let (inputs, mask) = texts[split]!.tokens(indices, offset: 1, limit: length, isFull: isFull)
    return Batch(inputs: inputs, mask: mask, targets: Tensor(indices.map { Int64(classes[split]![$0]) }, [indices.count]))
  }
}
