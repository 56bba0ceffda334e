import Foundation
import Testing

@testable import MartletTraining

@Suite struct ComparisonReportTests {
  @Test func theReportHoldsEverythingInOneFile() {
    let html = ComparisonReport.html(results: exampleResults())
    for mixer in ["softmax", "gla", "s4"] {
      #expect(html.contains("<th scope=\"row\" data-v=\"\(mixer)\">"), "\(mixer) is missing in the table")
      #expect(html.contains("\(mixer), pretrained: "), "\(mixer) is missing in the plots")
    }
    #expect(!html.contains("http"), "a self-contained page refers to nothing")
    #expect(!html.contains(" src=") && !html.contains("@import") && !html.contains("url(//"))
    #expect(html.contains("71.0 ± 1.0 %"))
    #expect(html.contains("martlet compare --task recall"))
    for plot in ["cost0", "cost1", "cost2", "loss0", "loss1", "valid0", "time0", "memory"] {
      #expect(html.contains("<title id=\"\(plot)-t\">"), "plot \(plot) is missing or has no title")
      #expect(html.contains("<desc id=\"\(plot)-d\">"), "plot \(plot) has no description")
    }
    #expect(html.contains("needs 9 GB, the limit is 8 GB"))
  }

  @Test func everyElementIsClosed() {
    let html = ComparisonReport.html(results: exampleResults(divergedSeed: 1))
    // The page's markup without style and script, read as a stack of tags.
    var open: [String] = []
    let void: Set<Substring> = ["meta", "input", "br"]
    let body = html.replacing(/<(style|script)>[\s\S]*?<\/(style|script)>/, with: "").replacing("<!DOCTYPE html>", with: "")
    for match in body.matches(of: /<(\/?)([a-zA-Z0-9]+)((?:[^<>"]|"[^"]*")*?)(\/?)>/) {
      if void.contains(match.2) || !match.4.isEmpty { continue }
      if match.1.isEmpty {
        open.append(String(match.2))
      } else {
        let last = open.isEmpty ? "nothing" : open.removeLast()
        #expect(last == match.2, "</\(match.2)> closes <\(last)>")
      }
    }
    #expect(open.isEmpty)
    let ids = html.matches(of: /\sid="([^"]+)"/).map(\.1)
    #expect(Set(ids).count == ids.count, "ids are unique")
  }

  @Test func textFromOutsideIsEscaped() {
    var results = exampleResults()
    results.taskSummary = "<script>alert(1)</script> & \"more\""
    for index in results.arms.indices where results.arms[index].mixer == "s4" { results.arms[index].mixer = "\"><img onerror=x>" }
    let html = ComparisonReport.html(results: results)
    #expect(!html.contains("<script>alert") && !html.contains("<img"))
    #expect(html.contains("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;more&quot;"))
  }

  @Test func divergedArmsAreShownAndNeverDrawnAsNumbers() {
    let html = ComparisonReport.html(results: exampleResults(divergedSeed: 1))
    #expect(html.contains("1 of 3 diverged"))
    #expect(html.contains("s4 diverged after step 50"))
    #expect(html.contains("<td class=\"warn\">diverged</td>"))
    #expect(!html.contains("nan") && !html.contains("NaN"))
    #expect(!html.contains("inf\"") && !html.contains("∞"))
    var lost = exampleResults()
    for index in lost.arms.indices { lost.arms[index].metrics[MetricName.accuracy] = .nan }
    let empty = ComparisonReport.html(results: lost)
    #expect(empty.contains("No arm reached a finite accuracy"))
    #expect(!empty.contains("nan") && !empty.contains("NaN"))
  }

  @Test func aSingleSeedClaimsNoSpread() {
    let html = ComparisonReport.html(results: exampleResults(seeds: [1]))
    #expect(!html.contains(" ± "))
    #expect(html.contains("One seed, so no spread is known"))
    #expect(!html.contains("<path class=\"bar\""))
    #expect(exampleResults(seeds: [1]).terminalReport(colour: false).contains(" ± ") == false)
  }

  @Test func sparseResultsStillMakeAPage() {
    var results = exampleResults(seeds: [0])
    results.arms = [ComparisonArm(mixer: "softmax", pretrained: false, seed: 0, parameters: 0, width: 1)]
    #expect(ComparisonReport.html(results: results).contains("softmax"))
    results.arms = []
    #expect(ComparisonReport.html(results: results).contains("</html>"))
  }

  @Test func theFrontInThePlotIsTheOneWorkedOutByHand() throws {
    let plot = try #require(QualityCostPlot(exampleResults(), QualityCostPlot.costs[0], id: "p"))
    #expect(plot.points.count == 6)
    #expect(
      plot.front.map { plot.points[$0].summary.name } == ["gla", "gla, pretrained", "s4, pretrained"],
      "the two of gla are equal, so both stay")
  }

  @Test func axesHaveRoundTicks() {
    #expect(PlotScale.linear([0, 10], (0, 100)).tickValues(count: 5).first == 0)
    let scale = PlotScale.logarithmic([0.001, 10], (0, 100))
    #expect(scale.tickValues(count: 7).map { log10($0).rounded() } == [-3, -2, -1, 0, 1])
    #expect(scale.tickValues(count: 7).allSatisfy { abs(log10($0) - log10($0).rounded()) < 1e-9 })
    #expect(abs(scale.position(0.1) - 50) < 1e-9)
    #expect(PlotScale.linear([0.4, 0.45], (0, 1)).metricTicks(MetricName.accuracy, count: 5).map(\.label).contains("42 %"))
    let time = PlotScale.linear([160, 330], (0, 100)).timeTicks(count: 5).map(\.label)
    #expect(time == ["3 min", "4 min", "5 min"])
  }

  @Test func figuresAreShortAndHaveUnits() {
    #expect(Figure.bytes(12_300_000) == "12.3 MB")
    #expect(Figure.bytes(512) == "512 B")
    #expect(Figure.count(1_234_567) == "1.23 M")
    #expect(Figure.seconds(0.00085) == "850 µs")
    #expect(Figure.seconds(200) == "3.33 min")
    #expect(Figure.length(65536) == "64k" && Figure.length(1000) == "1,000" && Figure.length(1 << 20) == "1M")
    #expect(Figure.trimmed("1.00 ms") == "1 ms" && Figure.trimmed("10 ms") == "10 ms")
    #expect(Figure.fixed(-0.0001, 2) == "0.00" && Figure.fixed(-1.5, 1) == "−1.5")
    #expect(Figure.metric(MetricName.accuracy, .nan) == "diverged")
    #expect((-0.05).svg == "-0.1" && (2.04).svg == "2" && Double.nan.svg == "0")
  }
}
