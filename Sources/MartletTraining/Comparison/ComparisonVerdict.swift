import Foundation

/// The comparison in a few sentences, each computed from its numbers and claiming no more than they carry.
public struct ComparisonVerdict: Sendable {
  public struct Statement: Sendable, Equatable {
    public let heading: String
    public let text: String
  }
  public let statements: [Statement]

  public init(_ results: ComparisonResults) {
    let summaries = results.summaries
    statements = [
      Self.quality(results, summaries), Self.cheapest(results, summaries), Self.pretraining(results), Self.length(results),
      Self.divergence(summaries),
    ].compactMap { $0 }
  }

  /// Arms that may be ranked: every seed has a finite figure.
  static func ranked(_ results: ComparisonResults, _ summaries: [ArmSummary]) -> [ArmSummary] {
    summaries.filter { $0.diverged.isEmpty && $0.mean(results.primaryMetric).isFinite }
      .sorted { results.isBetter($0.mean(results.primaryMetric), than: $1.mean(results.primaryMetric)) }
  }

  private static func quality(_ results: ComparisonResults, _ summaries: [ArmSummary]) -> Statement? {
    let ranked = ranked(results, summaries)
    guard let best = ranked.first, let spread = best.metrics[results.primaryMetric] else {
      return Statement(heading: "Best quality", text: "No arm reached a finite \(words(results.primaryMetric)).")
    }
    let metric = results.primaryMetric
    var text = "\(phrase(best)) reaches the best \(words(metric)): \(Figure.metric(metric, spread))"
    if spread.count > 1 {
      text += " over \(spread.count) seeds."
      let close = within(results, ranked, of: spread)
      if close.count > 1 {
        text += " Within one standard deviation of it: \(list(close.dropFirst().map(phrase)))."
      } else if ranked.count > 1 {
        text +=
          " No other arm is within one standard deviation of it; next is \(phrase(ranked[1])) with \(Figure.metric(metric, ranked[1].mean(metric)))."
      }
    } else {
      text += ". With one seed the spread is unknown: a small lead may be chance."
      if ranked.count > 1 { text += " Next is \(phrase(ranked[1])) with \(Figure.metric(metric, ranked[1].mean(metric)))." }
    }
    return Statement(heading: "Best quality", text: text)
  }

  private static func cheapest(_ results: ComparisonResults, _ summaries: [ArmSummary]) -> Statement? {
    let ranked = ranked(results, summaries)
    guard let best = ranked.first, let spread = best.metrics[results.primaryMetric], spread.count > 1 else { return nil }
    let close = within(results, ranked, of: spread)
    func statement(_ what: String, _ cost: (ArmSummary) -> Double, _ format: (Double) -> String) -> String? {
      let candidates = close.filter { cost($0).isFinite }
      guard let cheapest = candidates.min(by: { cost($0) < cost($1) }), cost(best).isFinite else { return nil }
      if cheapest.name == best.name { return "\(phrase(best)) itself \(what) (\(format(cost(best))))" }
      return "\(phrase(cheapest)) \(what) (\(format(cost(cheapest))) against \(format(cost(best))) for \(phrase(best)))"
    }
    let parts = [
      statement("trains in the least time", { $0.mean(MetricName.trainSeconds) }, Figure.seconds),
      statement(
        "answers fastest", { 1 / $0.mean(MetricName.inferenceTokensPerSecond) }, { Figure.count(1 / $0) + " tokens/s" }),
      statement("needs the least memory", { $0.mean(MetricName.peakTensorBytes) }, Figure.bytes),
    ].compactMap { $0 }
    guard !parts.isEmpty else { return nil }
    let scope =
      close.count == 1
      ? "Only the best arm is within one standard deviation of the best" : "Of the arms within one standard deviation of the best"
    return Statement(
      heading: "Cheapest at that quality",
      text: close.count == 1 ? scope + ": nothing cheaper is as good." : scope + ", " + parts.joined(separator: "; ") + ".")
  }

  private static func pretraining(_ results: ComparisonResults) -> Statement? {
    let gains = results.pretrainingGains
    guard !gains.isEmpty else { return nil }
    let metric = results.primaryMetric
    func items(_ gains: [PretrainingGain]) -> String {
      list(gains.map { "\($0.mixer) (\(Figure.difference(metric, $0.difference.mean)))" })
    }
    guard gains.contains(where: { $0.difference.count > 1 }) else {
      return Statement(
        heading: "Self-pretraining",
        text: "Change of \(words(metric)) with one seed, so without a known spread: \(items(gains)).")
    }
    let order = gains.sorted { results.isBetter($0.difference.mean, than: $1.difference.mean) }
    let better = order.filter { $0.isClear && $0.isImprovement }
    let worse = order.filter { $0.isClear && !$0.isImprovement }
    let unclear = order.filter { !$0.isClear }
    var sentences: [String] = []
    if !better.isEmpty { sentences.append("It clearly helps \(items(better)).") }
    if !worse.isEmpty { sentences.append("It clearly hurts \(items(worse)).") }
    if !unclear.isEmpty {
      sentences.append(
        (better.isEmpty && worse.isEmpty ? "It makes no clear difference for " : "No clear difference for ") + items(unclear) + ".")
    }
    return Statement(heading: "Self-pretraining", text: sentences.joined(separator: " "))
  }

  private static func length(_ results: ComparisonResults) -> Statement? {
    let curves = results.scalingCurves.filter { !$0.seconds.isEmpty }
    let lengths = Set(curves.flatMap { $0.seconds.map(\.length) }).sorted()
    guard curves.count > 1, lengths.count > 1 else { return nil }
    func fastest(at length: Int) -> (mixer: String, value: Double)? {
      curves.compactMap { curve in curve.seconds.first { $0.length == length }.map { (curve.mixer, $0.value) } }.min { $0.1 < $1.1 }
    }
    guard let short = fastest(at: lengths[0]), let long = fastest(at: lengths[lengths.count - 1]) else { return nil }
    var sentences: [String] = []
    if short.mixer == long.mixer {
      sentences.append(
        "\(short.mixer) is fastest both at \(Figure.length(lengths[0])) tokens (\(Figure.seconds(short.value)) a pass) and at \(Figure.length(lengths.last!)) (\(Figure.seconds(long.value)))."
      )
    } else {
      sentences.append(
        "\(short.mixer) is fastest at \(Figure.length(lengths[0])) tokens (\(Figure.seconds(short.value)) a pass), \(long.mixer) at \(Figure.length(lengths.last!)) (\(Figure.seconds(long.value)))."
      )
    }
    // The curve that climbs most steeply is the one the others overtake.
    let climbing = curves.compactMap { curve in ScalingCurve.growthPerDoubling(curve.seconds).map { (curve, $0) } }.max { $0.1 < $1.1 }?.0
    if let climbing {
      let passed = curves.filter { $0.mixer != climbing.mixer }
        .compactMap { ScalingCurve.crossings(($0.mixer, $0.seconds), (climbing.mixer, climbing.seconds)).last }
        .filter { $0.slower == climbing.mixer }.sorted { $0.length < $1.length }
      if !passed.isEmpty {
        // The first few tell the story; the plot has all.
        let shown = passed.count > 4 ? Array(passed.prefix(3)) : passed
        var items = shown.map { "\($0.faster) from \(Figure.roughLength($0.length)) tokens" }
        if shown.count < passed.count { items.append("\(passed.count - shown.count) more later") }
        sentences.append("\(climbing.mixer), whose time grows most steeply, is overtaken by \(list(items)).")
      }
    }
    let unfit = curves.compactMap { curve in curve.missing.first.map { "\(curve.mixer) from \(Figure.length($0.length))" } }
    if !unfit.isEmpty { sentences.append("Not measured, since it did not fit: \(list(unfit)).") }
    return Statement(heading: "Growing length", text: sentences.joined(separator: " "))
  }

  private static func divergence(_ summaries: [ArmSummary]) -> Statement? {
    let items = summaries.filter { !$0.diverged.isEmpty }.map { "\(phrase($0)) (\($0.diverged.count) of \($0.seeds.count) seeds)" }
    guard !items.isEmpty else { return nil }
    return Statement(
      heading: "Diverged", text: "\(list(items)). Such an arm is not ranked; its means are over the seeds that ended with a number.")
  }

  private static func within(_ results: ComparisonResults, _ ranked: [ArmSummary], of best: Spread) -> [ArmSummary] {
    // A share of the limit more, so that rounding does not decide about an arm exactly one standard deviation away.
    let limit = (best.standardDeviation ?? 0) * (1 + 1e-9)
    return ranked.filter { abs($0.mean(results.primaryMetric) - best.mean) <= limit }
  }

  private static func phrase(_ summary: ArmSummary) -> String {
    summary.pretrained ? "\(summary.mixer) after self-pretraining" : summary.mixer
  }

  private static func list(_ items: [String]) -> String {
    guard items.count > 1 else { return items.first ?? "" }
    return items.dropLast().joined(separator: ", ") + " and " + items.last!
  }

  /// "bitsPerByte" as "bits per byte".
  static func words(_ metric: String) -> String {
    metric.reduce(into: "") { text, character in
      if character.isUppercase && !text.isEmpty { text += " " }
      text += character.lowercased()
    }
  }
}

/// Whether the arms really had equal conditions, read off the results instead of promised.
public struct ComparisonFairness: Sendable {
  /// Largest over smallest parameter count, minus one.
  public let parameterSpread: Double
  public let parameterRange: ClosedRange<Int>?
  public let sameSeeds: Bool
  /// Fewest and most training steps, where the arms say.
  public let stepRange: ClosedRange<Int>?

  /// Parity the comparison aims at.
  public static let parameterTolerance = 0.02

  public init(_ results: ComparisonResults) {
    let counts = results.arms.map(\.parameters)
    parameterRange = counts.isEmpty ? nil : counts.min()!...counts.max()!
    parameterSpread = counts.isEmpty || counts.min()! == 0 ? 0 : Double(counts.max()!) / Double(counts.min()!) - 1
    sameSeeds = Set(results.summaries.map(\.seeds)).count <= 1
    let steps = results.arms.compactMap { $0.metrics[MetricName.steps] }.filter(\.isFinite).map { Int($0) }
    stepRange = steps.isEmpty ? nil : steps.min()!...steps.max()!
  }

  /// Each as (holds, sentence).
  public func statements(budget: String) -> [(holds: Bool, text: String)] {
    var list: [(Bool, String)] = []
    if let range = parameterRange {
      let holds = parameterSpread <= Self.parameterTolerance
      let figures =
        range.lowerBound == range.upperBound
        ? "\(Figure.grouped(range.lowerBound)) parameters in every arm"
        : "\(Figure.grouped(range.lowerBound)) to \(Figure.grouped(range.upperBound)) parameters, \(Figure.fixed(parameterSpread * 100, 1)) % apart"
      list.append((holds, (holds ? "Same size: " : "Sizes differ by more than 2 %: ") + figures + "."))
    }
    list.append(
      (
        sameSeeds,
        sameSeeds
          ? "Same data in the same order: every arm has the same seeds, and a seed fixes examples, order and start."
          : "The arms don't all have the same seeds; means over different seeds compare less well."
      ))
    if let range = stepRange {
      let figures =
        range.lowerBound == range.upperBound
        ? "\(Figure.grouped(range.lowerBound)) steps each"
        : "\(Figure.grouped(range.lowerBound)) to \(Figure.grouped(range.upperBound)) steps"
      // A budget of time gives fast arms more steps; a budget of steps that some did not reach was not the same for all.
      let holds = range.lowerBound == range.upperBound || !budget.lowercased().contains("step")
      list.append((holds, (holds ? "Same budget: " : "Not every arm used its budget: ") + "\(budget) (\(figures))."))
    } else {
      list.append((true, "Same budget: \(budget)."))
    }
    return list
  }
}
