import Foundation

extension ComparisonResults {
  /// The report's tables and verdict as Markdown, with the command that makes them again: for documents.
  public func markdown() -> String {
    func cell(_ text: String) -> String { text.replacingOccurrences(of: "|", with: "\\|") }
    func row(_ cells: [String]) -> String { "| " + cells.map(cell).joined(separator: " | ") + " |\n" }
    let direction = primaryMetricHigherIsBetter ? "higher is better" : "lower is better"
    let seeds = Set(arms.map(\.seed)).count
    var text = """
      ## \(task)

      \(taskSummary)

      \(ComparisonVerdict.words(primaryMetric).prefix(1).uppercased())\(ComparisonVerdict.words(primaryMetric).dropFirst()) \
      (\(direction)), budget \(budget), \(seeds == 1 ? "1 seed" : "\(seeds) seeds, mean ± standard deviation"); bold is the best of a column.

      ```sh
      \(command)
      ```

      \(machine.summary), Martlet \(version), \(date.formatted(.iso8601.year().month().day())).


      """
    let table = ComparisonTable(self)
    text += row(["mixer"] + table.titles)
    text += row(["---"] + table.titles.map { _ in "---:" })
    for line in table.rows {
      text += row(
        [line.mixer]
          + line.values.map { value in
            let words = value.note.map { "\(value.text), \($0)" } ?? value.text
            return value.isBest ? "**\(words)**" : words
          })
    }
    if !lengths.isEmpty {
      text += "\nOne training step on one sequence (forward and backward), and the memory of a forward pass, by length:\n\n"
      text += row(["mixer"] + lengths.map { "step, \(Figure.length($0))" } + lengths.map { "memory, \(Figure.length($0))" })
      text += row(["---"] + lengths.flatMap { _ in ["---:"] } + lengths.map { _ in "---:" })
      for mixer in mixers {
        let points = arms.first { $0.mixer == mixer && !$0.scaling.isEmpty }?.scaling ?? []
        func figure(_ length: Int, _ value: (ScalingPoint) -> String?) -> String {
          points.first { $0.length == length }.flatMap(value) ?? "–"
        }
        text += row(
          [mixer] + lengths.map { figure($0) { $0.trainSeconds.map(Figure.seconds) } }
            + lengths.map { figure($0) { $0.bytes.map { Figure.bytes(Double($0)) } } })
      }
    }
    text += "\n"
    for statement in ComparisonVerdict(self).statements { text += "- **\(statement.heading)**: \(statement.text)\n" }
    return text
  }
}
