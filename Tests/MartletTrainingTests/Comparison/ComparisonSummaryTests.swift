import Foundation
import Testing

@testable import MartletTraining

@Suite struct ComparisonSummaryTests {
  @Test func spreadIsThatOfTheSample() throws {
    let spread = Spread([2, 4, 4, 4, 5, 5, 7, 9])
    #expect(spread.mean == 5)
    #expect(abs(try #require(spread.standardDeviation) - (32.0 / 7).squareRoot()) < 1e-12)
    #expect((spread.minimum, spread.maximum, spread.count) == (2, 9, 8))
    #expect(Spread([3]).standardDeviation == nil, "one value has no spread")
    #expect(Spread([1, .nan, 3, .infinity]) == Spread([1, 3]), "what is not finite doesn't count")
    #expect(Spread([.nan]).count == 0 && Spread([]).mean.isNaN)
  }

  @Test func armsAreGroupedByMixerAndPretraining() throws {
    let summaries = exampleResults(divergedSeed: 2).summaries
    #expect(summaries.map(\.name) == ["softmax", "softmax, pretrained", "gla", "gla, pretrained", "s4", "s4, pretrained"])
    #expect(abs(summaries[0].mean(MetricName.accuracy) - 0.60) < 1e-12)
    #expect(abs(try #require(summaries[0].metrics[MetricName.accuracy]?.standardDeviation) - 0.01) < 1e-12)
    #expect(summaries[4].diverged == [2])
    #expect(summaries[4].metrics[MetricName.accuracy]?.count == 2)
  }

  @Test func gainsArePairedBySeedAndClearOnlyBeyondTheSpread() {
    let gains = exampleResults().pretrainingGains
    #expect(gains.map(\.mixer) == ["softmax", "gla", "s4"])
    #expect(abs(gains[0].difference.mean - 0.10) < 1e-12)
    #expect(gains[0].isClear && gains[0].isImprovement)
    #expect(!gains[1].isClear, "a gain of nothing is not clear")
    #expect(exampleResults(seeds: [0]).pretrainingGains.allSatisfy { !$0.isClear }, "one seed makes nothing clear")
  }

  @Test func theParetoFrontHoldsWhatNothingBeats() {
    //  cost     1    2    3    4    2    1
    //  quality  1    3    2    4    3    0
    let cost: [Double] = [1, 2, 3, 4, 2, 1]
    let quality: [Double] = [1, 3, 2, 4, 3, 0]
    #expect(ParetoFront.indices(cost: cost, quality: quality, higherIsBetter: true) == [0, 1, 4, 3])
    #expect(ParetoFront.indices(cost: cost, quality: quality, higherIsBetter: false) == [5])
    #expect(ParetoFront.indices(cost: [1, .nan, 0], quality: [.nan, 1, 2], higherIsBetter: true) == [2])
    #expect(ParetoFront.indices(cost: [], quality: [], higherIsBetter: true) == [])
  }

  @Test func theParetoFrontAgreesWithItsDefinition() {
    var state: UInt64 = 1
    func next() -> Double {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return Double((state >> 33) % 12)
    }
    for _ in 0..<200 {
      let cost = (0..<15).map { _ in next() }
      let quality = (0..<15).map { _ in next() }
      for higher in [true, false] {
        let expected = cost.indices.filter { a in
          !cost.indices.contains { b in
            let (noWorse, better) =
              higher ? (quality[b] >= quality[a], quality[b] > quality[a]) : (quality[b] <= quality[a], quality[b] < quality[a])
            return cost[b] <= cost[a] && noWorse && (cost[b] < cost[a] || better)
          }
        }
        #expect(Set(ParetoFront.indices(cost: cost, quality: quality, higherIsBetter: higher)) == Set(expected))
      }
    }
  }

  @Test func curvesCrossWhereTheirPowersMeet() throws {
    // 10 ms (n/1k)² against 15 ms (n/1k): they meet at 1.5k.
    let curves = exampleResults().scalingCurves
    let (softmax, gla) = (curves[0], curves[1])
    let crossings = ScalingCurve.crossings(("gla", gla.seconds), ("softmax", softmax.seconds))
    #expect(crossings.count == 1)
    #expect(crossings[0].faster == "gla" && crossings[0].slower == "softmax")
    #expect(abs(crossings[0].length - 1536) < 1)
    #expect(abs(try #require(ScalingCurve.growthPerDoubling(softmax.seconds)) - 4) < 1e-9)
    #expect(abs(try #require(ScalingCurve.growthPerDoubling(gla.seconds)) - 2) < 1e-9)
    #expect(softmax.missing.map { $0.length } == [4096])
    let touching = softmax.seconds.map { ScalingCurve.Point(length: $0.length, value: $0.value * ($0.length == 512 ? 1.02 : 0.5)) }
    #expect(ScalingCurve.crossings(("a", touching), ("b", softmax.seconds)).isEmpty, "2 % apart is no order")
  }

  @Test func theMedianOfTheArmsIsTheCurve() {
    var results = exampleResults()
    for index in results.arms.indices where results.arms[index].mixer == "gla" && results.arms[index].seed == 0 {
      results.arms[index].scaling[0].seconds = 100
    }
    #expect(abs(results.scalingCurves[1].seconds[0].value - 0.0075) < 1e-12, "two of six slow measurements don't move it")
  }

  @Test func theVerdictSaysWhatTheNumbersSay() throws {
    func text(_ results: ComparisonResults, _ heading: String) -> String {
      ComparisonVerdict(results).statements.first { $0.heading == heading }?.text ?? ""
    }
    let results = exampleResults()
    let best = text(results, "Best quality")
    #expect(best.contains("s4 after self-pretraining reaches the best accuracy: 71.0 ± 1.0 % over 3 seeds"), "\(best)")
    #expect(best.contains("Within one standard deviation of it: softmax after self-pretraining."), "\(best)")
    let cheapest = text(results, "Cheapest at that quality")
    #expect(cheapest.contains("s4 after self-pretraining itself trains in the least time (2.50 min)"), "\(cheapest)")
    #expect(cheapest.contains("softmax after self-pretraining needs the least memory (100 MB against 300 MB"), "\(cheapest)")
    let gain = text(results, "Self-pretraining")
    #expect(gain.contains("clearly helps s4 (+21.0 points) and softmax (+10.0 points)"), "\(gain)")
    #expect(gain.contains("No clear difference for gla"), "\(gain)")
    let length = text(results, "Growing length")
    #expect(length.contains("overtaken by gla from about 1,500 tokens"), "\(length)")
    #expect(length.contains("did not fit: softmax from 4k"), "\(length)")

    let single = exampleResults(seeds: [1])
    #expect(text(single, "Best quality").contains("spread is unknown"))
    #expect(text(single, "Cheapest at that quality") == "", "without a spread nothing is within it")
    #expect(!ComparisonVerdict(single).statements.contains { $0.text.contains("±") })

    let diverged = exampleResults(divergedSeed: 0)
    #expect(text(diverged, "Diverged").contains("s4 (1 of 3 seeds)"))
  }

  @Test func unfairArmsAreCalledUnfair() {
    var results = exampleResults()
    #expect(ComparisonFairness(results).statements(budget: "100 steps").allSatisfy { $0.holds })
    results.arms[0].parameters = 103_000
    results.arms.removeLast()
    results.arms[3].metrics[MetricName.steps] = 90
    let statements = ComparisonFairness(results).statements(budget: "100 steps")
    #expect(statements.map(\.holds) == [false, false, false])
    #expect(ComparisonFairness(results).statements(budget: "10 minutes")[2].holds, "equal time may mean unequal steps")
    #expect(statements[0].text.contains("differ by more than 2 %"))
  }
}
