import Foundation
import Testing

@testable import MartletTraining

@Suite struct ComparisonResultsTests {
  @Test func resultsSurviveAFileByteForByte() throws {
    try withTemporaryFolder { folder in
      let results = exampleResults()
      let path = folder + "/deep/er/results.json"
      try results.write(to: path)
      let back = try ComparisonResults.read(path)
      #expect(try back.json() == results.json())
      #expect(back.arms.count == 18)
      #expect(back.date == results.date)
      #expect(try ComparisonResults.read(folder + "/deep/er").task == "recall", "a folder stands for the results.json in it")
      #expect(try FileManager.default.contentsOfDirectory(atPath: folder + "/deep/er") == ["results.json"], "no temporary file is left")
    }
  }

  @Test func theKeysOfTheFileAreTheDocumentedOnes() throws {
    let object = try #require(try JSONSerialization.jsonObject(with: exampleResults().json()) as? [String: Any])
    #expect(
      Set(object.keys) == [
        "task", "taskSummary", "budget", "command", "machine", "version", "date", "lengths", "arms", "primaryMetric",
        "primaryMetricHigherIsBetter",
      ])
    let arm = try #require((object["arms"] as? [[String: Any]])?.first)
    #expect(Set(arm.keys) == ["mixer", "pretrained", "seed", "parameters", "width", "metrics", "curve", "scaling"])
    let scaling = try #require(arm["scaling"] as? [[String: Any]])
    #expect(Set(scaling[0].keys) == ["length", "seconds", "bytes"])
    #expect(Set(scaling[3].keys) == ["length", "note"])
  }

  @Test func notANumberIsNullInTheFileAndComesBack() throws {
    let json = try exampleResults(divergedSeed: 1).json()
    #expect(String(decoding: json, as: UTF8.self).contains("\"accuracy\" : null"))
    let back = try ComparisonResults(json: json, file: "results.json")
    let arm = try #require(back.arms.first { $0.mixer == "s4" && !$0.pretrained && $0.seed == 1 })
    #expect(try #require(arm.metrics[MetricName.accuracy]).isNaN)
    #expect(arm.curve[9].trainLoss.isNaN)
    #expect(try #require(arm.curve[9].validationMetric).isNaN)
    #expect(arm.curve[8].validationMetric == nil, "not evaluated is not the same as diverged")
    #expect(back.hasDiverged(arm))
  }

  @Test func aDamagedFileIsRefusedWithItsNameAndTheReason() throws {
    let good = String(decoding: try exampleResults().json(), as: UTF8.self)
    func message(_ text: String) -> String {
      do {
        _ = try ComparisonResults(json: Data(text.utf8), file: "runs/results.json")
        return "accepted"
      } catch { return "\(error)" }
    }
    #expect(message(good) == "accepted")
    let cases = [
      (String(good.dropLast(good.count / 2)), "valid JSON"), ("[]", "expected"), ("{}", "\"task\" is missing"),
      (good.replacing("\"budget\" : \"100 steps\"", with: "\"budget\" : 100"), "budget"),
      (good.replacing("\"width\" : 64", with: "\"width\" : \"wide\"", maxReplacements: 1), "arms[0].width"),
      (good.replacing("\"seed\" : 1,", with: "\"seed\" : 0,"), "twice"),
      (good.replacing("\"length\" : 512,", with: "\"length\" : -512,"), "scaling"),
      (good.replacing("2023-11-14T22:13:20Z", with: "yesterday"), "date"),
    ]
    for (text, reason) in cases {
      let found = message(text)
      #expect(found.hasPrefix("runs/results.json: "), "\(found)")
      #expect(found.contains(reason), "\(found) should mention \(reason)")
    }
  }

  @Test func aMissingOrEmptyFileIsNamed() throws {
    try withTemporaryFolder { folder in
      #expect(throws: FileError.self) { try ComparisonResults.read(folder + "/none.json") }
      try Data().write(to: URL(fileURLWithPath: folder + "/empty.json"))
      let error = #expect(throws: FileError.self) { try ComparisonResults.read(folder + "/empty.json") }
      #expect(error?.description == folder + "/empty.json: is empty")
    }
  }

  @Test func aFailedWriteLeavesTheOldFile() throws {
    try withTemporaryFolder { folder in
      // A folder stands where the file should go: the rename at the very end fails.
      let path = folder + "/results.json"
      try FileManager.default.createDirectory(atPath: path + "/inside", withIntermediateDirectories: true)
      #expect(throws: FileError.self) { try exampleResults().write(to: path) }
      #expect(try FileManager.default.contentsOfDirectory(atPath: folder) == ["results.json"])
    }
  }
}
