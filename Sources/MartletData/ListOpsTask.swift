import Foundation

/// Long ListOps of the Long Range Arena (Tay et al. 2020): the value 0...9 of a nested list expression.
///
/// Inputs are ids below 17 (see ``ListOps``), filled with 0 on the right; ten classes.
public final class ListOpsTask: IndexedTask {
  public let name = "listops"
  public let summary: String
  public let inputKind = InputKind.tokens(vocabulary: ListOps.vocabulary, padding: ListOps.padding)
  public let objective = TaskObjective.classification(classes: 10)
  public let length: Int
  public let order: BatchOrder

  private let expressions: [DataSplit: ByteSequences]
  private let values: [DataSplit: [UInt8]]
  private let isFull: Bool

  /// Generates `counts.total` different expressions; train, validation and test are consecutive parts of them, so that no
  /// expression is in two.
  ///
  /// The original task is `ListOpsGenerator()` with 96000/2000/2000.
  /// - Parameter fillsToLength: batches are always `length` wide, as in the original; else as wide as their longest example.
  /// - Throws: `DataError` for senseless parameters or bounds with too few expressions.
  public init(generator: ListOpsGenerator = ListOpsGenerator(), counts: SplitCounts, fillsToLength: Bool = false) throws {
    let counts = try counts.checked()
    let all = try generator.generate(counts.total)
    var expressions: [DataSplit: ByteSequences] = [:]
    var values: [DataSplit: [UInt8]] = [:]
    var start = 0
    for split in DataSplit.allCases {
      var part = ByteSequences()
      for index in start..<start + counts[split] { part.append(all[index]) }
      start += counts[split]
      values[split] = try part.indices.map { UInt8(try ListOps.evaluate(part[$0])) }
      expressions[split] = part
    }
    self.expressions = expressions
    self.values = values
    length = generator.maxLength - 1
    isFull = fillsToLength
    order = BatchOrder(count: counts.train)
    summary =
      "ListOps: the value 0...9 of a nested list expression of \(generator.minLength + 1) to \(generator.maxLength - 1) tokens, depth at most "
      + "\(generator.maxDepth); \(counts.train)/\(counts.validation)/\(counts.test) generated, seed \(generator.seed)"
  }

  /// Reads `basic_train.tsv`, `basic_val.tsv` and `basic_test.tsv` (each maybe `.gz`) of the released layout: a header
  /// `Source<TAB>Target`, then the written form and the value. Longer expressions are cut to `length` tokens.
  ///
  /// - Parameters:
  ///   - limits: at most so many examples of each split.
  ///   - checksValues: every value is compared with that of its expression.
  /// - Throws: `DataError` with file and line for a missing file, another header, a line that is no expression and value.
  public init(
    directory: String, length: Int = 2000, limits: SplitCounts? = nil, checksValues: Bool = true, fillsToLength: Bool = false
  ) throws {
    guard length > 0 else { throw DataError("the length of ListOps must be positive, not \(length)") }
    var expressions: [DataSplit: ByteSequences] = [:]
    var values: [DataSplit: [UInt8]] = [:]
    for split in DataSplit.allCases {
      let plain = directory + "/" + Self.fileName(split)
      let path = FileManager.default.fileExists(atPath: plain) ? plain : plain + ".gz"
      guard FileManager.default.fileExists(atPath: path) else { throw DataError(plain, "there is no such file, nor one with .gz") }
      (expressions[split], values[split]) = try Self.read(
        path, length: length, limit: limits?[split] ?? .max, checksValues: checksValues)
    }
    self.length = min(length, expressions.values.map(\.longest).max() ?? length)
    self.expressions = expressions
    self.values = values
    isFull = fillsToLength
    order = BatchOrder(count: expressions[.train]!.count)
    let counts = DataSplit.allCases.map { String(expressions[$0]!.count) }.joined(separator: "/")
    summary = "ListOps: the value 0...9 of a nested list expression of at most \(self.length) tokens; \(counts) from \(directory)"
  }

  private static func fileName(_ split: DataSplit) -> String {
    switch split {
    case .train: "basic_train.tsv"
    case .validation: "basic_val.tsv"
    case .test: "basic_test.tsv"
    }
  }

  private static func read(_ path: String, length: Int, limit: Int, checksValues: Bool) throws -> (ByteSequences, [UInt8]) {
    let lines = try LineReader(path: path)
    guard let header = try lines.next() else { throw DataError(path, "the file is empty; a header Source<TAB>Target was expected") }
    guard header.elementsEqual("Source\tTarget".utf8) else {
      throw DataError(
        path, line: 1, "the header Source<TAB>Target was expected, found “\(String(decoding: header.prefix(60), as: UTF8.self))”")
    }
    var expressions = ByteSequences()
    var values: [UInt8] = []
    while expressions.count < limit, let line = try lines.next() {
      let columns = line.split(separator: UInt8(ascii: "\t"), omittingEmptySubsequences: false)
      guard columns.count == 2 else {
        throw DataError(path, line: lines.number, "an expression, a tab and a value were expected, found \(columns.count) columns")
      }
      guard columns[1].count == 1, let digit = columns[1].first, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(digit) else {
        throw DataError(
          path, line: lines.number, "a value 0...9 was expected, found “\(String(decoding: columns[1].prefix(20), as: UTF8.self))”")
      }
      let value = digit - UInt8(ascii: "0")
      do {
        let tokens = try ListOps.parse(columns[0])
        let evaluated = try ListOps.evaluate(tokens)
        if checksValues && evaluated != Int(value) { throw DataError("the value given is \(value), that of the expression \(evaluated)") }
        expressions.append(tokens.prefix(length))
      } catch let error as DataError {
        throw DataError(path, line: lines.number, error.message)
      }
      values.append(value)
    }
    return (expressions, values)
  }

  /// Writes the three files of the released layout into a folder, each under a temporary name first.
  public func write(to directory: String) throws {
    do {
      try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
    } catch {
      throw DataError(directory, "the folder can't be made: \(error.localizedDescription)")
    }
    for split in DataSplit.allCases {
      let expressions = expressions[split]!
      let values = values[split]!
      try writeAtomically(directory + "/" + Self.fileName(split)) { append in
        try append("Source\tTarget\n")
        for index in expressions.indices { try append(ListOps.write(expressions[index]) + "\t\(values[index])\n") }
      }
    }
  }

  /// The ids and the value of one example.
  public func example(_ split: DataSplit, _ index: Int) -> (tokens: [UInt8], value: Int) {
    (Array(expressions[split]![index]), Int(values[split]![index]))
  }

  public func count(_ split: DataSplit) -> Int { expressions[split]!.count }

  public func batch(_ split: DataSplit, _ indices: [Int]) -> Batch {
    let (inputs, mask) = expressions[split]!.tokens(indices, offset: 0, limit: length, isFull: isFull)
    return Batch(inputs: inputs, mask: mask, targets: Tensor(indices.map { Int64(values[split]![$0]) }, [indices.count]))
  }
}
