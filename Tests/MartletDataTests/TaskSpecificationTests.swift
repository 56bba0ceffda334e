import Foundation
import Testing

@testable import MartletData

@Suite struct TaskSpecificationTests {
  private func message(_ text: String) -> String {
    do {
      _ = try TaskSpecification(text).make()
      return "no error"
    } catch { return "\(error)" }
  }

  @Test func nameArgumentAndOptionsAreTakenApart() throws {
    let specification = try TaskSpecification("image:some/folder:x?permuted&downscale=2&seed=3")
    #expect(specification.name == "image" && specification.argument == "some/folder:x")
    #expect(specification.options == ["permuted": "true", "downscale": "2", "seed": "3"])
    #expect(try TaskSpecification("bytes:what?.txt?length=8").argument == "what?.txt")
    #expect(try TaskSpecification("recall").options.isEmpty)
  }

  @Test func optionsReachTheTask() throws {
    let recall = try TaskSpecification("recall?length=96&pairs=4&vocabulary=32&examples=50&heldout=20&seed=1").make()
    #expect(recall.length == 96 && recall.count(.train) == 50 && recall.count(.test) == 20 && recall.objective == .tokens(vocabulary: 32))
    let direct = try AssociativeRecallTask(
      length: 96, vocabulary: 32, pairs: 4, counts: SplitCounts(train: 50, validation: 20, test: 20), seed: 1)
    #expect(try recall.trainingBatch(step: 2, size: 4, seed: 0) == direct.trainingBatch(step: 2, size: 4, seed: 0))

    let small = try TaskSpecification("listops?small&examples=30&heldout=10").make()
    #expect(small.length == 128 && small.count(.train) == 30)
    #expect(try TaskSpecification("copying?length=100&items=5&symbols=3").make().inputKind == .tokens(vocabulary: 5, padding: nil))
    #expect(try TaskSpecification("dictionary?steps=10&keys=3&values=5").make().objective == .tokens(vocabulary: 9))
    #expect(try TaskSpecification("frequency?length=64&classes=4&noise=0.5").make().objective == .classification(classes: 4))
    #expect(try TaskSpecification("shift?length=20&symbols=5").make().objective == .tokens(vocabulary: 5))
    #expect(try TaskSpecification("digits?examples=20&heldout=5").make().count(.validation) == 5)

    #expect(try TaskSpecification("video?frames=4&places=3&channels=6").make().inputKind == .continuous(channels: 6))

    let folder = TemporaryFolder()
    let text = folder.write("text.txt", String(repeating: "to be or not to be ", count: 100))
    #expect(try TaskSpecification("bytes:\(text),\(text)?length=32&heldout=2").make().count(.test) == 2)
    let table = folder.write("t.tsv", (0..<20).map { "text \($0)\t\($0 % 2)\n" }.joined())
    #expect(try TaskSpecification("text:\(table)?length=6&examples=7").make().length == 6)
    try ListOpsTask(generator: .tiny(), counts: SplitCounts(train: 5, validation: 5, test: 5)).write(to: folder.path)
    #expect(try TaskSpecification("listops:\(folder.path)?examples=3").make().count(.train) == 3)
  }

  @Test func slipsAreAnsweredWithTheNearest() {
    #expect(message("listop").contains("did you mean “listops”?"))
    #expect(message("frequnecy").contains("did you mean “frequency”?"))
    let unknown = message("zzzzzz")
    #expect(!unknown.contains("did you mean"))
    let names = "listops, bytes, image, text, recall, copying, dictionary, latest_binding, frequency, digits, video, shift"
    #expect(unknown.contains(names), "\(unknown)")
    #expect(message("recall?pair=4").contains("did you mean “pairs”?"))
    #expect(message("recall?zzz=4").contains("options: length, vocabulary, pairs, power, examples, heldout, seed"))
  }

  @Test func whatMakesNoSenseIsExplained() {
    #expect(message("bytes").contains("bytes:PATH"))
    #expect(message("recall:file").contains("takes no file"))
    #expect(message("recall?pairs=x").contains("an integer of at least 0, not “x”"))
    #expect(message("recall?seed=-1").contains("an integer of at least 0"))
    #expect(message("recall?examples=3000000000").contains("at most 2147483647 examples"))
    #expect(message("recall?power=high").contains("must be a number"))
    #expect(message("listops?small=maybe").contains("true or false"))
    #expect(message("listops?small&tiny").contains("exclude one another"))
    #expect(message("listops:x?depth=3").contains("for generated expressions"))
    #expect(message("recall?pairs=4&pairs=5").contains("given twice"))
    #expect(message("image:/does/not/exist").contains("/does/not/exist"))
    #expect(message("bytes:/does/not/exist").contains("no such file"))
  }

  @Test func theUsageShowsAnExampleOfEachThatParses() throws {
    let examples = TaskSpecification.usage.split(separator: "\n").compactMap { line in
      line.range(of: "example: ").map { String(line[$0.upperBound...]) }
    }
    #expect(examples.count == TaskKind.all.count)
    for example in examples { #expect(throws: Never.self) { try TaskSpecification(example) } }
    #expect(TaskSpecification.usage.contains("downscale=1"))
  }

  @Test func editDistanceCountsSlips() {
    #expect(TaskSpecification.editDistance("", "abc") == 3)
    #expect(TaskSpecification.editDistance("kitten", "sitting") == 3)
    #expect(TaskSpecification.editDistance("ab", "ba") == 1)
  }
}
