import Foundation
import Testing

@testable import MartletTraining

/// The table of mixers that is made from a benchmark's rows.
@Suite struct MixerSummaryTests {
  private func row(
    _ series: String, _ length: Int, _ ours: Double, unit: String = "s", group: String = BenchmarkCase.layerGroup, ratio: Double? = nil
  ) -> BenchmarkRow {
    var row = BenchmarkRow(name: "\(series) \(length)", group: group, point: .init(series, length), ours: ours, unit: unit)
    row.ratio = ratio.map { .init([$0]) }
    return row
  }

  @Test func theCrossingLiesWhereTheLinesMeet() throws {
    // 1000 n against n²: equal at 1000.
    let (linear, square) = ([100: 1e5, 10000: 1e7], [100: 1e4, 10000: 1e8])
    let found = try #require(MixerSummary.crossing(linear, attention: square))
    #expect(abs(found - 1000) < 1e-6, "\(found)")
    #expect(MixerSummary.crossing(square, attention: linear) == nil, "slower at the end")
    #expect(MixerSummary.crossing([100: 1, 200: 1], attention: [100: 2, 200: 2]) == 0)
    #expect(MixerSummary.crossing([:], attention: square) == nil)
  }

  @Test func theExponentIsThatOfThePower() throws {
    let found = try #require(MixerSummary.exponent([10: 5, 100: 7, 1000: 7 * pow(10, 1.5)]))
    #expect(abs(found - 1.5) < 1e-9)
    #expect(MixerSummary.exponent([10: 5]) == nil)
  }

  @Test func everyMixerHasALine() {
    let rows = [
      row("softmax", 1024, 1e-3, ratio: 2), row("softmax", 1024, 1.1e-3, ratio: 3), row("softmax", 4096, 1.6e-2, ratio: 2),
      row("gla", 1024, 2e-3, ratio: 20), row("gla", 4096, 8e-3, ratio: 21), row("gla", 4096, 4e6, unit: "bytes"),
      row("gla", 1024, 1e-4, group: BenchmarkCase.stepGroup), row("gla", 16384, 1.2e-4, group: BenchmarkCase.stepGroup),
      BenchmarkRow(name: "another case", group: "Overhead", ours: 1, unit: "s"),
    ]
    let summary = MixerSummary(rows)
    #expect(summary.series.map(\.name) == ["softmax", "gla"])
    #expect(summary.series[0].ratios[1024] == 2, "the first peer is the reference form")
    let lines = summary.markdown().split(separator: "\n").map(String.init)
    #expect(lines.contains { $0.hasPrefix("| gla |") && $0.contains("20×") && $0.contains("21×") && $0.contains("2.0×") })
    #expect(lines.contains { $0.hasPrefix("| gla |") && $0.hasSuffix("1.2× |") }, "\(lines)")
    #expect(MixerSummary([]).markdown().isEmpty)
  }

  @Test func aStateIsNotACallsMemory() {
    var state = row("gla", 1024, 66e3, unit: "bytes", group: BenchmarkCase.stepGroup)
    let token = row("gla", 1024, 1e-4, group: BenchmarkCase.stepGroup)
    #expect(MixerSummary([token, state]).series[0].stateBytes.isEmpty)
    state.isState = true
    let summary = MixerSummary([token, state, row("gla", 1024, 1e3, unit: "bytes", group: BenchmarkCase.stepGroup)])
    #expect(summary.series[0].stateBytes == [1024: 66e3])
    #expect(summary.markdown().contains("| gla | 66.0 kB |"), "\(summary.markdown())")
  }

  @Test func whatWasNotMeasuredIsNotClaimed() {
    let operators = [
      row("gla", 1024, 1e-3, group: BenchmarkCase.operatorGroup, ratio: 3),
      row("gla", 1024, 1e-3, group: BenchmarkCase.operatorGroup, ratio: 50),
    ]
    #expect(MixerSummary(operators).markdown().isEmpty, "no layer, no table")
    let lines = MixerSummary(operators + [row("gla", 1024, 2e-3, ratio: 2)]).markdown().split(separator: "\n")
    let line = lines.first { $0.hasPrefix("| gla |") } ?? ""
    #expect(line.contains("3.0×") && !line.contains("50×"), "the first peer is the reference form: \(line)")
    #expect(!line.contains("never") && line.contains("–"), "nothing is known of attention: \(line)")
  }
}
