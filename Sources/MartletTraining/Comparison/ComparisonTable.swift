import Foundation

/// The comparison's main table, the same on the terminal and in the report.
struct ComparisonTable {
  struct Value {
    let text: String
    /// What the figure needs beside it, such as how many seeds diverged.
    var note: String?
    /// What to sort by; NaN where there is nothing.
    let number: Double
    var isBest = false
    var isWarning = false
  }
  struct Row {
    let mixer: String
    var values: [Value]
  }

  let titles: [String]
  var rows: [Row]

  init(_ results: ComparisonResults) {
    let metric = results.primaryMetric
    let summaries = results.summaries
    let gains = results.pretrainingGains
    let hasPretrained = summaries.contains { $0.pretrained }
    let hasScratch = summaries.contains { !$0.pretrained }
    let isHigherBetter = results.primaryMetricHigherIsBetter
    // The quality columns that the results have, then the costs. `direction` says which end is best; nil marks none.
    var columns: [(title: String, direction: Bool?, value: (String) -> Value)] = []
    func summary(_ mixer: String, _ pretrained: Bool) -> ArmSummary? {
      summaries.first { $0.mixer == mixer && $0.pretrained == pretrained }
    }
    func quality(_ pretrained: Bool) -> (String) -> Value {
      { mixer in
        guard let summary = summary(mixer, pretrained) else { return Value(text: "–", number: .nan) }
        let spread = summary.metrics[metric] ?? Spread([])
        guard !summary.diverged.isEmpty else { return Value(text: Figure.metric(metric, spread), number: spread.mean) }
        return Value(
          text: Figure.metric(metric, spread),
          note: spread.count == 0 ? nil : "\(summary.diverged.count) of \(summary.seeds.count) diverged", number: .nan,
          isWarning: true)
      }
    }
    if hasScratch { columns.append(("from scratch", isHigherBetter, quality(false))) }
    if hasPretrained { columns.append(("after self-pretraining", isHigherBetter, quality(true))) }
    if hasScratch && hasPretrained {
      columns.append(
        (
          "gain", nil,
          { mixer in
            guard let gain = gains.first(where: { $0.mixer == mixer }) else { return Value(text: "–", number: .nan) }
            return Value(text: Figure.difference(metric, gain.difference.mean), number: gain.difference.mean)
          }
        ))
    }
    func cost(_ key: String, _ format: @escaping (Double) -> String) -> (String) -> Value {
      { mixer in
        // The cost of the model itself: from scratch and pretrained run the same, so all arms count.
        let spread = Spread(results.arms.filter { $0.mixer == mixer }.map { $0.metrics[key] ?? .nan })
        return Value(text: spread.count == 0 ? "–" : format(spread.mean), number: spread.mean)
      }
    }
    columns.append(
      (
        "parameters", nil,
        { mixer in
          let count = results.arms.first { $0.mixer == mixer }?.parameters ?? 0
          return Value(text: Figure.count(Double(count)), number: Double(count))
        }
      ))
    columns.append(("train tokens/s", true, cost(MetricName.trainTokensPerSecond, Figure.count)))
    columns.append(("inference tokens/s", true, cost(MetricName.inferenceTokensPerSecond, Figure.count)))
    columns.append(("peak memory", false, cost(MetricName.peakTensorBytes, Figure.bytes)))

    titles = columns.map(\.title)
    rows = results.mixers.map { mixer in Row(mixer: mixer, values: columns.map { $0.value(mixer) }) }
    for (index, column) in columns.enumerated() {
      guard let higher = column.direction, rows.count > 1 else { continue }
      let numbers = rows.map { $0.values[index].number }.filter(\.isFinite)
      guard let best = higher ? numbers.max() : numbers.min() else { continue }
      for row in rows.indices where rows[row].values[index].number == best { rows[row].values[index].isBest = true }
    }
  }
}

extension ComparisonResults {
  /// The table for the terminal; `*` marks the best of a column.
  public func table() -> TerminalTable {
    let table = ComparisonTable(self)
    var terminal = TerminalTable([.init("mixer")] + table.titles.map { .init($0, .right) })
    for row in table.rows {
      let cells = row.values.map { value -> TerminalTable.Cell in
        let text = value.note.map { "\(value.text), \($0)" } ?? value.text
        return .init(text + (value.isBest ? " *" : "  "), value.isBest ? .strong : value.isWarning ? .warning : .none)
      }
      terminal.add([.init(row.mixer)] + cells)
    }
    return terminal
  }

  /// The table, what its marks mean, and the verdict, ready to print.
  public func terminalReport(colour: Bool = Terminal.wantsColour) -> String {
    let direction = primaryMetricHigherIsBetter ? "higher is better" : "lower is better"
    let seeds = Set(arms.map(\.seed)).count
    var lines = [
      "\(task): \(ComparisonVerdict.words(primaryMetric)) (\(direction)), budget \(budget), \(seeds == 1 ? "1 seed" : "\(seeds) seeds, mean ± standard deviation")",
      "",
      table().rendered(colour: colour), "  * best of the column", "",
    ]
    for statement in ComparisonVerdict(self).statements {
      lines.append(Terminal.sanitised("\(statement.heading): \(statement.text)"))
    }
    return lines.joined(separator: "\n")
  }
}
