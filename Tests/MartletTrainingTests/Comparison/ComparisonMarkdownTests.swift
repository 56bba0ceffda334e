import Foundation
import Testing

@testable import MartletTraining

/// The comparison as a part of a document.
@Suite struct ComparisonMarkdownTests {
  @Test func tablesVerdictAndCommandAreThere() throws {
    var results = exampleResults()
    for arm in results.arms.indices {
      for point in results.arms[arm].scaling.indices {
        results.arms[arm].scaling[point].trainSeconds = results.arms[arm].scaling[point].seconds
      }
    }
    let lines = results.markdown().split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
    #expect(lines[0] == "## recall")
    #expect(lines.contains("martlet compare --task recall"))
    let rows = lines.filter { $0.hasPrefix("| gla |") }
    #expect(rows.count == 2, "one of quality and cost, one of growth: \(rows)")
    #expect(rows[0].contains("**"), "gla is the best from scratch and the fastest: \(rows[0])")
    #expect(rows[0].contains("0.62") || rows[0].contains("62"))
    let softmax = try #require(lines.last { $0.hasPrefix("| softmax |") })
    #expect(softmax.contains("–"), "what did not fit has a dash: \(softmax)")
    // Every row of a table has its head's columns.
    for line in lines where line.hasPrefix("|") { #expect([8, 9].contains(line.split(separator: "|").count), "\(line)") }
    #expect(lines.filter { $0.hasPrefix("- **") }.count == ComparisonVerdict(results).statements.count)
  }
}
