import Foundation

/// The mixers' layers side by side, one line each, from the rows of a benchmark: how time and memory grow with the length, from where
/// on a mixer is faster than softmax attention, and whether one more token costs the same after any context.
public struct MixerSummary: Sendable {
  /// The figures of one mixer by length.
  public struct Series: Sendable {
    public var name: String
    public var seconds: [Int: Double] = [:]
    public var bytes: [Int: Double] = [:]
    /// The reference form's time over ours, of the whole layer and of what stands between its projections.
    public var ratios: [Int: Double] = [:]
    public var operatorRatios: [Int: Double] = [:]
    public var tokenSeconds: [Int: Double] = [:]
    /// Of the state after a context.
    public var stateBytes: [Int: Double] = [:]
  }

  /// In the order of the rows.
  public let series: [Series]
  /// Lengths of sequences and of contexts that were measured.
  public let lengths, operatorLengths, contexts: [Int]

  public init(_ rows: [BenchmarkRow]) {
    var series: [Series] = []
    for row in rows {
      guard let point = row.point else { continue }
      let place = series.firstIndex { $0.name == point.series } ?? series.count
      if place == series.count { series.append(Series(name: point.series)) }
      switch (row.group, row.unit) {
      case (BenchmarkCase.layerGroup, "s"):
        // A case has a row for each peer; the reference form is the first.
        if series[place].seconds[point.length] == nil {
          series[place].seconds[point.length] = row.ours
          series[place].ratios[point.length] = row.ratio?.median
        }
      case (BenchmarkCase.operatorGroup, "s"):
        if series[place].operatorRatios[point.length] == nil { series[place].operatorRatios[point.length] = row.ratio?.median }
      case (BenchmarkCase.layerGroup, _): series[place].bytes[point.length] = row.ours
      case (BenchmarkCase.stepGroup, "s"):
        if series[place].tokenSeconds[point.length] == nil { series[place].tokenSeconds[point.length] = row.ours }
      case (BenchmarkCase.stepGroup, _) where row.isState: series[place].stateBytes[point.length] = row.ours
      default: break
      }
    }
    self.series = series
    operatorLengths = Set(series.flatMap { $0.operatorRatios.keys }).sorted()
    lengths = Set(series.flatMap { $0.seconds.keys }).sorted()
    contexts = Set(series.flatMap { $0.tokenSeconds.keys }).sorted()
  }

  /// The length from which on a mixer is faster than attention, by straight lines between measured points in logarithms; `nil` when it
  /// is not at any measured length, 0 when it is at all.
  public static func crossing(_ mixer: [Int: Double], attention: [Int: Double]) -> Double? {
    let lengths = mixer.keys.filter { attention[$0] != nil }.sorted()
    let gaps = lengths.map { log(mixer[$0]! / attention[$0]!) }
    guard let last = gaps.last, last < 0 else { return nil }
    guard let place = gaps.lastIndex(where: { $0 >= 0 }) else { return 0 }
    let (low, high) = (log(Double(lengths[place])), log(Double(lengths[place + 1])))
    return exp(low + (high - low) * gaps[place] / (gaps[place] - gaps[place + 1]))
  }

  /// The exponent p of figure ∝ length^p between the two greatest lengths.
  public static func exponent(_ figures: [Int: Double]) -> Double? {
    let lengths = figures.keys.sorted()
    guard lengths.count >= 2, let a = figures[lengths[lengths.count - 2]], let b = figures[lengths[lengths.count - 1]], a > 0 else {
      return nil
    }
    return log(b / a) / log(Double(lengths[lengths.count - 1]) / Double(lengths[lengths.count - 2]))
  }

  /// Empty where there are neither layers nor steps among the rows.
  public func markdown() -> String {
    let attention = series.first { $0.name == "softmax" }
    func cell(_ value: Double?, _ form: (Double) -> String) -> String { value.map(form) ?? "–" }
    func times(_ value: Double) -> String { Figure.fixed(value, value < 10 ? 1 : 0) + "×" }
    func row(_ cells: [String]) -> String { "| " + cells.joined(separator: " | ") + " |\n" }
    guard !lengths.isEmpty || !contexts.isEmpty else { return "" }
    var text = "## Mixers side by side\n"
    if let longest = lengths.last {
      text += """

        A layer with its projections, one sequence, forward and backward. “Reference” is the time of the method's reference form in PyTorch \
        over ours, of the layer and then of the operator alone, without the projections that are the same on both \
        sides. The form is that of the authors' code, but in chunks where that takes all pairs of tokens (norm_attention, lolcats; the \
        authors' own stands among the operators below). “Softmax” is the time of our softmax attention over the mixer's, followed by the \
        length from which on the mixer is faster; “growth” the exponent of time and of memory between the two greatest lengths (1 is linear).


        """
      text += row(
        ["mixer"] + lengths.map { "time, \(Figure.length($0))" } + lengths.map { "reference, \(Figure.length($0))" }
          + operatorLengths.map { "operator, \(Figure.length($0))" }
          + ["softmax, \(Figure.length(longest))", "faster from", "memory, \(Figure.length(longest))", "growth"])
      text += row(["---"] + Array(repeating: "---:", count: 2 * lengths.count + operatorLengths.count + 4))
      for one in series where !one.seconds.isEmpty {
        let against = attention.flatMap { a in a.seconds[longest].flatMap { s in one.seconds[longest].map { s / $0 } } }
        let crossing = attention.flatMap { Self.crossing(one.seconds, attention: $0.seconds) }
        let never = attention?.seconds.isEmpty == false ? "never" : "–"
        let from = one.name == "softmax" ? "" : crossing.map { $0 == 0 ? "all" : Figure.roughLength($0) } ?? never
        text += row(
          [one.name] + lengths.map { cell(one.seconds[$0], Figure.seconds) } + lengths.map { cell(one.ratios[$0], times) }
            + operatorLengths.map { cell(one.operatorRatios[$0], times) }
            + [
              one.name == "softmax" ? "" : cell(against, times), from, cell(one.bytes[longest], Figure.bytes),
              [Self.exponent(one.seconds), Self.exponent(one.bytes)].map { cell($0) { Figure.fixed($0, 2) } }.joined(separator: ", "),
            ])
      }
    }
    if !contexts.isEmpty {
      text += "\nOne more token after a context, the same layers:\n\n"
      text += row(["mixer"] + contexts.map { "after \(Figure.length($0))" } + ["last / first"])
      text += row(["---"] + Array(repeating: "---:", count: contexts.count + 1))
      for one in series where !one.tokenSeconds.isEmpty {
        let growth = one.tokenSeconds[contexts[0]].flatMap { first in one.tokenSeconds[contexts.last!].map { $0 / first } }
        text += row([one.name] + contexts.map { cell(one.tokenSeconds[$0], Figure.seconds) } + [cell(growth, times)])
      }
      if series.contains(where: { !$0.stateBytes.isEmpty }) {
        text += "\nAnd the state that a layer keeps of the context, for one sequence:\n\n"
        text += row(["mixer"] + contexts.map { "after \(Figure.length($0))" })
        text += row(["---"] + Array(repeating: "---:", count: contexts.count))
        for one in series where !one.stateBytes.isEmpty {
          text += row([one.name] + contexts.map { cell(one.stateBytes[$0], Figure.bytes) })
        }
      }
    }
    return text
  }
}
