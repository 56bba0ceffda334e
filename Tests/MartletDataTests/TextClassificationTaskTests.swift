import Foundation
import Testing

@testable import MartletData

@Suite struct TextClassificationTaskTests {
  let folder = TemporaryFolder()

  private func example(_ task: TextClassificationTask, _ split: DataSplit, _ index: Int) -> (String, Int) {
    let (bytes, label) = task.example(split, index)
    return (String(decoding: bytes, as: UTF8.self), label)
  }

  @Test func tablesWithAndWithoutAHeaderReadAlike() throws {
    folder.write("a/train.tsv", "sentence\tlabel\ngood film\t1\nbad \"film\t0\n")
    folder.write("a/dev.tsv", "fine\t1\n")
    folder.write("a/test.tsv", "label\tid\ttext\r\n0\t7\tawful\r\n")
    let task = try TextClassificationTask(path: folder.path + "/a")
    #expect(DataSplit.allCases.map(task.count) == [2, 1, 1] && task.labels == ["0", "1"])
    #expect(example(task, .train, 0) == ("good film", 1) && example(task, .train, 1) == ("bad \"film", 0))
    #expect(example(task, .validation, 0) == ("fine", 1) && example(task, .test, 0) == ("awful", 0))
    #expect(task.length == 9 && task.objective == .classification(classes: 2))
  }

  @Test func bytesAreTakenAsTheyAre() throws {
    folder.write("train.tsv", Array("é\u{0}x".utf8) + [255, 254, 9, 49, 10] + Array("longer than ten\t0\n".utf8))
    folder.write("test.tsv", "a\t1\n")
    folder.write("dev.tsv", "b\t0")
    var options = TextClassificationTask.Options()
    options.length = 10
    let task = try TextClassificationTask(path: folder.path, options: options)
    let batch = task.batch(.train, [0, 1])
    #expect(batch.inputs.shape == [2, 10])
    #expect(batch.inputs[0].toArray(Int.self) == [0xc3 + 1, 0xa9 + 1, 1, 121, 256, 255, 0, 0, 0, 0])
    #expect(batch.inputs[1].toArray(Int.self) == "longer tha".utf8.map { Int($0) + 1 })
    #expect(batch.mask?[0].toArray(Bool.self) == (0..<10).map { $0 < 6 })
    options.fillsToLength = true
    options.length = 20
    #expect(try TextClassificationTask(path: folder.path, options: options).batch(.test, [0]).inputs.shape == [1, 20])
  }

  @Test func quotedFieldsMayHoldCommasQuotesAndLineEnds() throws {
    folder.write("train.csv", "text,label\n\"one, \"\"two\"\"\nthree\",yes\nplain,no\n")
    folder.write("dev.csv", "\"text\",\"label\"\nx,no\n")
    folder.write("test.csv", "label,text\nyes,\"\"\"\"\n")
    let task = try TextClassificationTask(path: folder.path)
    #expect(task.labels == ["no", "yes"])
    #expect(example(task, .train, 0) == ("one, \"two\"\nthree", 1) && example(task, .train, 1) == ("plain", 0))
    #expect(example(task, .test, 0) == ("\"", 1))
  }

  @Test func jsonLinesAndCompressedFiles() throws {
    let lines = (0..<30).map { "{\"text\": \"number \($0) \\u00e9\", \"label\": \($0 % 3 + 10)}" }.joined(separator: "\n")
    let path = folder.compress("all.jsonl.gz", Array(lines.utf8))
    let task = try TextClassificationTask(path: path)
    #expect(task.labels == ["10", "11", "12"] && DataSplit.allCases.map(task.count) == [24, 3, 3])
    var seen: Set<String> = []
    for split in DataSplit.allCases {
      for index in 0..<task.count(split) {
        let (text, label) = example(task, split, index)
        #expect(Int(text.split(separator: " ")[1])! % 3 == label)
        #expect(seen.insert(text).inserted, "splits are disjoint")
      }
    }
  }

  @Test func foldersOfClasses() throws {
    for split in ["train", "test"] {
      for label in ["pos", "neg"] {
        for number in 0..<10 { folder.write("imdb/\(split)/\(label)/\(number)_7.txt", "\(split) \(label) \(number)") }
      }
    }
    folder.write("imdb/train/unsup/0_0.txt", "no label")
    let task = try TextClassificationTask(path: folder.path + "/imdb")
    #expect(task.labels == ["neg", "pos"] && DataSplit.allCases.map(task.count) == [18, 2, 20])
    let validation = (0..<2).map { example(task, .validation, $0).0 }
    let training = (0..<18).map { example(task, .train, $0).0 }
    #expect(Set(validation + training).count == 20 && (validation + training).allSatisfy { $0.hasPrefix("train") })
    #expect((0..<20).allSatisfy { example(task, .test, $0).0.contains("pos") == (example(task, .test, $0).1 == 1) })
    let flat = try TextClassificationTask(path: folder.path + "/imdb/test")
    #expect(DataSplit.allCases.map(flat.count) == [16, 2, 2])
  }

  @Test func malformedRecordsAreNamedWithTheirLine() throws {
    let cases = [
      ("x.tsv", "a\t1\nb\n", "x.tsv:2: 2 columns"), ("x.tsv", "a\t1\n\nb\t0\n", "x.tsv:2: an empty line"),
      ("x.tsv", "a\t1\n\t0\n", "x.tsv:2: the text is empty"),
      ("x.tsv", "a\t1\nb\t \n", "x.tsv:2: the label is empty"), ("x.tsv", "a b\n", "x.tsv:1: a text and a label"),
      ("x.tsv", "a\tb\n", "x.tsv:1: neither column"),
      ("x.tsv", "", "holds no texts"), ("x.tsv", "a\t1\nb\t1\n", "2 different labels"),
      ("x.csv", "a,1\n\"b,0\n", "x.csv:2: a quoted field"),
      ("x.csv", "a,1\n\"b\"c,0\n", "x.csv:2: something follows"),
      ("x.jsonl", "{\"text\":\"a\",\"label\":1}\n{\"text\":\"b\"}\n", "x.jsonl:2: the object has no label"),
      ("x.jsonl", "{\"text\":\"a\",\"label\":1}\n[1]\n", "x.jsonl:2: a JSON object"),
      ("x.jsonl", "{\"label\":1}\n", "x.jsonl:1: the object has no text"),
      ("x.txt", "a\t1\n", "ends in .tsv"),
    ]
    for (name, text, expected) in cases {
      let path = folder.write(name, text)
      let error = #expect(throws: DataError.self) { try TextClassificationTask(path: path) }
      #expect(error?.message.contains(expected) == true, "\(error?.message ?? "none")")
    }
    folder.write("known/train.tsv", "a\t1\nb\t0\n")
    folder.write("known/test.tsv", "c\t1\nd\t2\n")
    let error = #expect(throws: DataError.self) { try TextClassificationTask(path: folder.path + "/known") }
    #expect(error?.message.contains("test.tsv:2: the label “2” does not occur") == true, "\(error?.message ?? "none")")
    #expect(throws: DataError.self) { try TextClassificationTask(path: folder.path + "/none") }
  }
}
