import Foundation
import Testing

@testable import MartletData

/// ListOps written once more in the plainest way: a tree, its value and its written form by recursion.
private indirect enum Tree: Equatable {
  case digit(Int)
  case list(String, [Tree])

  static func read(_ tokens: inout ArraySlice<UInt8>) -> Tree {
    let token = tokens.removeFirst()
    if token <= 10 { return .digit(Int(token) - 1) }
    var children: [Tree] = []
    while tokens.first != 15 { children.append(read(&tokens)) }
    tokens.removeFirst()
    return .list(["MIN", "MAX", "MED", "SM"][Int(token) - 11], children)
  }

  var value: Int {
    guard case .list(let name, let children) = self else {
      if case .digit(let digit) = self { return digit }
      return -1
    }
    let values = children.map(\.value).sorted()
    switch name {
    case "MIN": return values.first!
    case "MAX": return values.last!
    case "SM": return values.reduce(0, +) % 10
    default: return Int(Double(values[(values.count - 1) / 2] + values[values.count / 2]) / 2)
    }
  }

  var written: String {
    switch self {
    case .digit(let digit): return String(digit)
    case .list(let name, let children):
      return "( " + children.reduce("[" + name) { "( \($0) \($1.written) )" } + " ] )"
    }
  }

  var depth: Int {
    guard case .list(_, let children) = self else { return 1 }
    return 1 + children.map(\.depth).max()!
  }
}

@Suite struct ListOpsTests {
  private func value(_ text: String) throws -> Int { try ListOps.evaluate(ListOps.parse(text)) }

  @Test func operatorsHaveTheirMeaning() throws {
    #expect(try value("[MED 1 2 ]") == 1)
    #expect(try value("[SM 9 9 ]") == 8)
    #expect(try value("[MIN 4 2 7 ]") == 2)
    #expect(try value("[MAX 4 2 7 ]") == 7)
    #expect(try value("[MED 9 0 5 ]") == 5)
    #expect(try value("[MED 1 9 4 6 ]") == 5)
    #expect(try value("[MAX 2 [SM 5 6 7 ] [MIN 9 8 ] ]") == 8)
    #expect(try value("7") == 7)
    #expect(try value("( ( ( [MAX 2 ) 7 ) X )") == 7)
  }

  @Test func theWrittenFormIsTheReleasedOne() throws {
    #expect(ListOps.write(try ListOps.parse("[MAX 2 7 ]")) == "( ( ( [MAX 2 ) 7 ) ] )")
    #expect(ListOps.write(try ListOps.parse("[MAX 2 [MIN 3 ] ]")) == "( ( ( [MAX 2 ) ( ( [MIN 3 ) ] ) ) ] )")
    #expect(ListOps.write(try ListOps.parse("4")) == "4")
  }

  @Test func generatedTreesAgreeWithThePlainImplementation() throws {
    let generator = ListOpsGenerator(maxDepth: 7, maxArguments: 6, minLength: 10, maxLength: 300, seed: 11)
    let trees = try generator.generate(200)
    for index in trees.indices {
      let tokens = Array(trees[index])
      var rest = tokens[...]
      let tree = Tree.read(&rest)
      #expect(rest.isEmpty)
      #expect(tokens.count > 10 && tokens.count < 300)
      #expect(try ListOps.evaluate(tokens) == tree.value)
      #expect(ListOps.write(tokens) == tree.written)
      #expect(try ListOps.parse(tree.written) == tokens)
      #expect(ListOps.depth(tokens) == tree.depth && tree.depth <= 7)
    }
    #expect(Set(trees.indices.map { Array(trees[$0]) }).count == 200)
  }

  @Test func theOriginalParametersGiveTheOriginalDistribution() {
    let generator = ListOpsGenerator(seed: 1)
    var tokens: [UInt8] = []
    var lengths: [Int] = []
    var digits = 0
    for attempt in 0..<4000 as Range<UInt64> {
      if generator.draw(attempt: attempt, into: &tokens) {
        lengths.append(tokens.count)
        #expect(ListOps.depth(tokens) <= 10)
      } else if tokens.count == 1 {
        digits += 1
      }
    }
    // The sheet's figures: three quarters single digits, about 8 % accepted, mean length about 1060.
    #expect(abs(Double(digits) / 4000 - 0.75) < 0.03, "single digits: \(Double(digits) / 4000)")
    #expect(abs(Double(lengths.count) / 4000 - 0.08) < 0.02, "accepted: \(Double(lengths.count) / 4000)")
    let mean = Double(lengths.reduce(0, +)) / Double(lengths.count)
    #expect(abs(mean - 1060) < 90, "mean length \(mean)")
    #expect(lengths.allSatisfy { $0 > 500 && $0 < 2000 })
  }

  @Test func whatIsNoExpressionIsRefused() {
    for text in ["", "[MAX ]", "[MAX 1", "1 2", "1 ]", "]", "[FIRST 1 2 ]", "( 1", "1 )", "[MAX 1 10 ]", "MAX"] {
      #expect(throws: DataError.self, "\(text)") { try self.value(text) }
    }
  }

  @Test func tooFewExpressionsAreAnErrorNotALoop() {
    let digits = ListOpsGenerator(maxDepth: 1, maxArguments: 2, minLength: 0, maxLength: 5)
    #expect(throws: Never.self) { try digits.generate(10, patience: 1000) }
    let error = #expect(throws: DataError.self) { try digits.generate(11, patience: 1000) }
    #expect(error?.message.contains("only 10 of 11") == true, "\(error?.message ?? "none")")
  }
}

@Suite struct ListOpsTaskTests {
  let counts = SplitCounts(train: 60, validation: 20, test: 20)

  @Test func splitsAreDisjointAndEqualSeedsGiveEqualData() throws {
    let task = try ListOpsTask(generator: .small(seed: 3), counts: counts)
    var seen: Set<[UInt8]> = []
    for split in DataSplit.allCases {
      #expect(task.count(split) == counts[split])
      for index in 0..<task.count(split) {
        let (tokens, value) = task.example(split, index)
        #expect(seen.insert(tokens).inserted)
        #expect((20...128).contains(tokens.count) && ListOps.depth(tokens) <= 5)
        #expect(try ListOps.evaluate(tokens) == value)
      }
    }
    let again = try ListOpsTask(generator: .small(seed: 3), counts: counts)
    let other = try ListOpsTask(generator: .small(seed: 4), counts: counts)
    let batch = try task.trainingBatch(step: 9, size: 16, seed: 1)
    #expect(batch == (try again.trainingBatch(step: 9, size: 16, seed: 1)))
    #expect(batch != (try other.trainingBatch(step: 9, size: 16, seed: 1)))
    // More examples of the same seed begin with the same ones.
    let more = try ListOpsTask(generator: .small(seed: 3), counts: SplitCounts(train: 90, validation: 1, test: 1))
    #expect(more.example(.train, 59) == task.example(.train, 59))
  }

  @Test func batchesAreFilledOnTheRight() throws {
    let task = try ListOpsTask(generator: .tiny(), counts: counts)
    let batch = try task.evaluationBatch(.test, index: 1, size: 12)!
    #expect(batch.inputs.dim(0) == 8)
    let width = batch.inputs.dim(1)
    let ids = batch.inputs.toArray(Int.self)
    let mask = batch.mask!.toArray(Bool.self)
    for row in 0..<8 {
      let (tokens, value) = task.example(.test, 12 + row)
      #expect(Array(ids[row * width..<(row + 1) * width]) == tokens.map(Int.init) + [Int](repeating: 0, count: width - tokens.count))
      #expect(Array(mask[row * width..<(row + 1) * width]) == (0..<width).map { $0 < tokens.count })
      #expect(batch.targets[row].itemInt() == value)
    }
    #expect(try task.evaluationBatch(.test, index: 2, size: 12) == nil)
    let full = try ListOpsTask(generator: .tiny(), counts: counts, fillsToLength: true)
    #expect(try full.trainingBatch(step: 0, size: 2, seed: 0).inputs.shape == [2, 39] && full.length == 39)
  }

  @Test func theReleasedLayoutIsWrittenAndRead() throws {
    let folder = TemporaryFolder()
    let task = try ListOpsTask(generator: .small(), counts: counts)
    try task.write(to: folder.path + "/listops")
    let name = folder.path + "/listops"
    let names = try FileManager.default.contentsOfDirectory(atPath: name).sorted()
    #expect(names == ["basic_test.tsv", "basic_train.tsv", "basic_val.tsv"])
    #expect(folder.bytes("listops/basic_val.tsv").starts(with: "Source\tTarget\n( ( ".utf8))
    // One of the files compressed.
    folder.compress("listops/basic_test.tsv.gz", folder.bytes("listops/basic_test.tsv"))
    try FileManager.default.removeItem(atPath: name + "/basic_test.tsv")
    let read = try ListOpsTask(directory: name)
    for split in DataSplit.allCases {
      #expect(read.count(split) == task.count(split))
      for index in 0..<task.count(split) { #expect(read.example(split, index) == task.example(split, index)) }
    }
    #expect(read.length <= task.length)
    let cut = try ListOpsTask(directory: name, length: 25, limits: SplitCounts(train: 5, validation: 2, test: 3))
    #expect(cut.length == 25 && cut.count(.train) == 5 && cut.count(.test) == 3)
    #expect(cut.example(.train, 4).tokens == Array(task.example(.train, 4).tokens.prefix(25)))
    #expect(cut.example(.train, 4).value == task.example(.train, 4).value)
  }

  @Test func damagedFilesAreNamedWithTheirLine() throws {
    let good = "Source\tTarget\n( ( ( [MAX 2 ) 7 ) ] )\t7\n"
    let cases = [
      ("", "empty"), ("source,target\n", ":1: the header"), (good + "( ( ( [MAX 2 ) 7 ) ] )\n", ":3:"),
      (good + "( ( ( [MAX 2 ) 7\t7\n", ":3:"),
      (good + "( ( ( [MAX 2 ) 7 ) ] )\t12\n", "0...9"), (good + "( ( ( [MAX 2 ) 7 ) ] )\t6\n", "that of the expression 7"),
      (good + "\n", ":3:"),
    ]
    for (text, expected) in cases {
      let folder = TemporaryFolder()
      folder.write("basic_train.tsv", text)
      folder.write("basic_val.tsv", good)
      folder.write("basic_test.tsv", good)
      let error = #expect(throws: DataError.self) { try ListOpsTask(directory: folder.path) }
      #expect(
        error?.message.contains("basic_train.tsv") == true && error?.message.contains(expected) == true, "\(error?.message ?? "none")")
    }
    let folder = TemporaryFolder()
    folder.write("basic_train.tsv", good)
    let error = #expect(throws: DataError.self) { try ListOpsTask(directory: folder.path) }
    #expect(error?.message.contains("no such file") == true)
  }
}
