import Foundation

/// The comparison as one HTML file that needs nothing else: no network, no fonts, no libraries. Plots are drawn here, in SVG, so
/// that the file prints, opens anywhere and will still do so in ten years.
public enum ComparisonReport {
  /// The report's HTML.
  public static func html(results: ComparisonResults) -> String {
    let mixers = results.mixers
    let title = "\(subject(results)) on \(results.task)"
    return """
      <!DOCTYPE html>
      <html lang="en">
      <head>
      <meta charset="utf-8">
      <meta name="viewport" content="width=device-width, initial-scale=1">
      <title>\(title.escaped)</title>
      <style>
      \(ReportStyle.css)
      \(ReportStyle.armColours(mixers.count))
      </style>
      </head>
      <body>
      <main>
      \(header(results))
      \(verdict(results))
      \(table(results))
      \(plots(results))
      \(details(results))
      <footer>Made by Martlet \(results.version.escaped) on \(day(results.date)).</footer>
      </main>
      <script>
      \(ReportScript.javaScript)
      </script>
      </body>
      </html>

      """
  }

  /// Writes the report beside its results: the old file or the whole new one, never half of it. Throws `FileError`.
  public static func write(_ results: ComparisonResults, to path: String) throws {
    try writeDurably(Data(html(results: results).utf8), to: path)
  }

  // MARK: - Sections

  private static func header(_ results: ComparisonResults) -> String {
    let fairness = ComparisonFairness(results)
    let items = fairness.statements(budget: results.budget).map { "<li\($0.holds ? "" : " class=\"broken\"")>\($0.text.escaped)</li>" }
    let seeds = Set(results.arms.map(\.seed)).count
    let ways = Set(results.arms.map(\.pretrained)).count == 2 ? ", each from scratch and after self-pretraining" : ""
    let runs = "\(results.arms.count) \(results.arms.count == 1 ? "run" : "runs")"
    return """
      <header>
      <p class="kicker">Martlet · fair comparison</p>
      <h1>\(subject(results).escaped) on \(results.task.escaped)</h1>
      <p class="lead">\(results.taskSummary.escaped)\(results.taskSummary.hasSuffix(".") ? "" : ".") \(count(results.mixers.count, "sequence mixer"))\(ways), \(count(seeds, "seed")): \(runs) on one machine.</p>
      <ul class="fair">
      \(items.joined(separator: "\n"))
      </ul>
      </header>
      """
  }

  private static func verdict(_ results: ComparisonResults) -> String {
    let items = ComparisonVerdict(results).statements.map { "<div><h3>\($0.heading.escaped)</h3><p>\($0.text.escaped)</p></div>" }
    return """
      <section aria-labelledby="verdict">
      <h2 id="verdict">In short</h2>
      <div class="card verdict">
      \(items.joined(separator: "\n"))
      </div>
      </section>
      """
  }

  private static func table(_ results: ComparisonResults) -> String {
    let table = ComparisonTable(results)
    let head = (["mixer"] + table.titles).map { "<th scope=\"col\">\($0.escaped)</th>" }.joined()
    let rows = table.rows.enumerated().map { index, row in
      let cells = row.values.map { value in
        let style = value.isBest ? "best" : value.isWarning ? "warn" : "slot"
        let sort = value.number.isFinite ? "\(value.number)" : ""
        let best = value.isBest ? " title=\"best of the column\"" : ""
        return "<td class=\"\(style)\" data-v=\"\(sort)\"\(best)>\(value.text.escaped)\(value.note.map { "<br>" + $0.escaped } ?? "")</td>"
      }
      return "<tr><th scope=\"row\" data-v=\"\(row.mixer.escaped)\">\(row.mixer.escaped)</th>\(cells.joined())</tr>"
    }
    let seeds = Set(results.arms.map(\.seed)).count
    let spread = seeds > 1 ? "Mean ± standard deviation over \(seeds) seeds" : "One seed, so no spread is known"
    let direction = results.primaryMetricHigherIsBetter ? "higher is better" : "lower is better"
    return """
      <section aria-labelledby="table">
      <h2 id="table">The numbers</h2>
      <div class="card scroll"><table class="sortable"><thead><tr>\(head)</tr></thead><tbody>
      \(rows.joined(separator: "\n"))
      </tbody></table></div>
      <p class="note">\(spread). The figures are \(ComparisonVerdict.words(results.primaryMetric).escaped) on the test split (\(direction)). Speed and memory are means over all runs of a mixer. ★ is the best of a column.</p>
      </section>
      """
  }

  private static func plots(_ results: ComparisonResults) -> String {
    """
    <section aria-labelledby="plots">
    <h2 id="plots">Plots</h2>
    \(legend(results))
    <div class="plots">
    \([qualityCost(results), curves(results), scaling(results)].joined(separator: "\n"))
    </div>
    </section>
    """
  }

  private static func legend(_ results: ComparisonResults) -> String {
    let chips = results.mixers.enumerated().map { index, mixer in
      "<button type=\"button\" class=\"chip\" data-arm=\"\(index)\" aria-pressed=\"true\"><svg class=\"a\(index)\" viewBox=\"0 0 18 18\" aria-hidden=\"true\">\(PlotMarker.markup(arm: index, x: 9, y: 9, radius: 5.5, isFilled: false))</svg>\(mixer.escaped)</button>"
    }
    var keys: [String] = []
    if Set(results.arms.map(\.pretrained)).count == 2 {
      keys = [("", false, "from scratch"), (" dashed", true, "after self-pretraining")].map { style, isFilled, text in
        "<span class=\"key\"><svg viewBox=\"0 0 40 18\" aria-hidden=\"true\" style=\"--arm:var(--muted)\"><path class=\"line\(style)\" d=\"M1 9H39\"/>\(PlotMarker.markup(arm: 0, x: 20, y: 9, radius: 5, isFilled: isFilled))</svg>\(text)</span>"
      }
    }
    return "<div class=\"legend\" role=\"group\" aria-label=\"Mixers shown in the plots\">\((chips + keys).joined())</div>"
  }

  private static func qualityCost(_ results: ComparisonResults) -> String {
    let panes = QualityCostPlot.costs(of: results).enumerated().compactMap { index, cost in
      QualityCostPlot(results, cost, id: "cost\(index)").map { (cost, $0) }
    }
    guard !panes.isEmpty else { return "" }
    let svg = switcher("cost", "Cost", panes.map { ($0.0.label, $0.1.svg) })
    let bars = results.summaries.contains { $0.seeds.count > 1 } ? " Bars reach one standard deviation each way." : ""
    let fronts = panes.map { cost, plot in
      "<p><strong>\(cost.label)</strong>, cheapest first:</p><ol>"
        + plot.front.map { index in
          let point = plot.points[index]
          return
            "<li>\(point.summary.name.escaped): \(Figure.metric(results.primaryMetric, point.quality.mean)), \(cost.format(point.cost.mean))</li>"
        }.joined() + "</ol>"
    }
    let corner = results.primaryMetricHigherIsBetter ? "upper" : "lower"
    return """
      <figure class="plot card"><h3>1 · Quality against cost</h3>
      \(svg)
      <figcaption>The best place is the \(corner) left: good and cheap.\(bars) Ringed points, joined by the dotted stairs, are on the Pareto front.</figcaption></figure>
      <div class="card side"><h3>The Pareto front</h3>
      <p class="note">Nothing else is both cheaper and better than these, so a sensible choice is among them; every other arm is beaten by one of them on both counts.</p>
      \(fronts.joined(separator: "\n"))
      </div>
      """
  }

  private static func curves(_ results: ComparisonResults) -> String {
    func figure(_ quantity: CurvePlot.Quantity, _ heading: String, _ id: String, _ caption: String) -> String {
      let panes = [("By steps", CurvePlot.Axis.steps), ("By time", .time)].enumerated().compactMap { index, item in
        CurvePlot(results, quantity, item.1, id: "\(id)\(index)").map { (item.0, $0.svg) }
      }
      guard !panes.isEmpty else { return "" }
      return """
        <figure class="plot card"><h3>\(heading)</h3>
        \(switcher(id, "Horizontal axis", panes))
        <figcaption>\(caption)</figcaption></figure>
        """
    }
    let seeds = results.summaries.contains { $0.seeds.count > 1 } ? "Thick: mean over seeds; thin: each seed. " : ""
    let crosses = results.arms.contains { results.hasDiverged($0) } ? " A cross marks where a run diverged." : ""
    return figure(
      .trainLoss, "2a · Learning: training loss", "loss",
      seeds + "By steps shows who learns most from the same examples, by time who gets there first." + crosses)
      + figure(
        .validation, "2b · Learning: validation", "valid",
        seeds + "Where the training loss still falls and this no longer improves, the model is memorising.")
  }

  private static func scaling(_ results: ComparisonResults) -> String {
    func growth(_ points: (ScalingCurve) -> [ScalingCurve.Point]) -> String {
      let items = results.scalingCurves.compactMap { curve in
        ScalingCurve.growthPerDoubling(points(curve)).map { "\(curve.mixer.escaped) ×\(Figure.fixed($0, 1))" }
      }
      return items.isEmpty ? "" : "<p>Growth when the length doubles, at the longest lengths: \(items.joined(separator: ", ")).</p>"
    }
    let time = [("Inference", ScalingPlot.Quantity.inferenceTime), ("Training", .trainingTime)].enumerated().compactMap { index, item in
      ScalingPlot(results, item.1, id: "time\(index)").map { (item.0, $0.svg) }
    }
    var figures: [String] = []
    if !time.isEmpty {
      figures.append(
        """
        <figure class="plot card"><h3>3 · Time against length</h3>
        \(switcher("time", "Pass", time))
        <figcaption><p>Both axes are logarithmic: a line that doubles with the length climbs half as steeply as one that grows with its square. Where two lines cross, the faster one changes.</p>\(growth(\.seconds))</figcaption></figure>
        """)
    }
    if let memory = ScalingPlot(results, .memory, id: "memory") {
      figures.append(
        """
        <figure class="plot card"><h3>4 · Memory against length</h3>
        \(switcher("mem", "Pass", [("Inference", memory.svg)]))
        <figcaption><p>Peak tensor memory of one forward pass over one sequence. What is above your machine's memory doesn't run.</p>\(growth(\.bytes))</figcaption></figure>
        """)
    }
    return figures.joined(separator: "\n")
  }

  /// Panes of which one is shown, chosen by radio buttons in CSS alone; a single pane needs no choice.
  private static func switcher(_ name: String, _ label: String, _ panes: [(label: String, svg: String)]) -> String {
    guard panes.count > 1 else { return panes.first?.svg ?? "" }
    let inputs = panes.enumerated().map { index, pane in
      "<input type=\"radio\" name=\"\(name)\" id=\"\(name)-\(index)\"\(index == 0 ? " checked" : "")><label for=\"\(name)-\(index)\">\(pane.label.escaped)</label>"
    }
    return "<div class=\"switch\" role=\"radiogroup\" aria-label=\"\(label)\">\(inputs.joined())"
      + panes.map { "<div class=\"pane\">\($0.svg)</div>" }.joined() + "</div>"
  }

  // MARK: - Details

  private static func details(_ results: ComparisonResults) -> String {
    let machine = results.machine
    let facts = [
      ("Command", "<code>\(results.command.escaped)</code>"), ("Task", results.task.escaped),
      ("Budget of each arm", results.budget.escaped),
      ("Date", timestamp(results.date)),
      ("Machine", "\(machine.processor.escaped), \(count(machine.cores, "core")), \(Figure.bytes(Double(machine.memoryBytes))) memory"),
      ("System", machine.system.escaped),
      ("Versions", "Martlet \(results.version.escaped), Swift \(machine.swift.escaped), libtorch \(machine.libtorch.escaped)"),
    ]
    return """
      <section aria-labelledby="details">
      <h2 id="details">Details</h2>
      <div class="card">
      <details open><summary>How it was run</summary><div><dl>
      \(facts.map { "<dt>\($0.0)</dt><dd>\($0.1)</dd>" }.joined(separator: "\n"))
      </dl></div></details>
      <details><summary>Every run</summary><div class="scroll">\(runs(results))</div></details>
      \(lengthTable(results))
      <details><summary>How to read this page</summary><div>
      <p><strong>Fair</strong> means that only the mixer, the part of the model that moves information along the sequence, differs. Widths are chosen so that the models have equally many parameters; data, their order and the budget are the same.</p>
      <p><strong>Self-pretraining</strong> first trains the model to predict hidden parts of the task's own inputs, without labels and without other data, then trains it on the labels. It tells a mixer that can't do the task from one that has only had too few labels.</p>
      <p><strong>Clear</strong> differences from self-pretraining are larger than the spread of the seeds (their pooled standard deviation) and have the same sign in every seed. Three seeds are few: take a clear difference as likely, not as proven.</p>
      <p><strong>Times</strong> belong to the machine above. Others will differ in their absolute times; the order of the mixers and the growth with length carry over further.</p>
      </div></details>
      </div>
      </section>
      """
  }

  private static func runs(_ results: ComparisonResults) -> String {
    let known = [
      results.primaryMetric, MetricName.accuracy, MetricName.loss, MetricName.bitsPerByte, MetricName.steps, MetricName.trainSeconds,
      MetricName.trainTokensPerSecond, MetricName.inferenceTokensPerSecond, MetricName.peakTensorBytes, MetricName.peakResidentBytes,
    ]
    let present = Set(results.arms.flatMap(\.metrics.keys))
    var keys: [String] = []
    for key in known + present.sorted() where present.contains(key) && !keys.contains(key) { keys.append(key) }
    let head = (["mixer", "trained", "seed", "parameters", "width"] + keys.map(ComparisonVerdict.words)).map {
      "<th scope=\"col\">\($0.escaped)</th>"
    }
    let rows = results.arms.map { arm in
      let cells = keys.map { key in
        guard let value = arm.metrics[key] else { return "<td>–</td>" }
        return value.isFinite ? "<td>\(cell(key, value))</td>" : "<td class=\"warn\">diverged</td>"
      }
      return
        "<tr><th scope=\"row\">\(arm.mixer.escaped)</th><td>\(arm.pretrained ? "pretrained" : "from scratch")</td><td>\(arm.seed)</td><td>\(Figure.grouped(arm.parameters))</td><td>\(arm.width)</td>\(cells.joined())</tr>"
    }
    return "<table><thead><tr>\(head.joined())</tr></thead><tbody>\n\(rows.joined(separator: "\n"))\n</tbody></table>"
  }

  private static func cell(_ key: String, _ value: Double) -> String {
    switch key {
    case MetricName.accuracy, MetricName.loss, MetricName.bitsPerByte: Figure.metric(key, value)
    case MetricName.trainSeconds: Figure.seconds(value)
    case MetricName.peakTensorBytes, MetricName.peakResidentBytes: Figure.bytes(value)
    case MetricName.trainTokensPerSecond, MetricName.inferenceTokensPerSecond: Figure.count(value)
    default: Figure.number(value)
    }
  }

  /// Plots 3 and 4 as a table, for whoever can't see them or wants the figures.
  private static func lengthTable(_ results: ComparisonResults) -> String {
    let curves = results.scalingCurves
    let lengths = Set(curves.flatMap { ($0.seconds + $0.bytes).map(\.length) + $0.missing.map { $0.length } }).sorted()
    guard !lengths.isEmpty else { return "" }
    let head = (["mixer"] + lengths.map(Figure.length)).map { "<th scope=\"col\">\($0)</th>" }.joined()
    let rows = curves.map { curve in
      let cells = lengths.map { length in
        let parts = [
          curve.seconds.first { $0.length == length }.map { Figure.seconds($0.value) },
          curve.bytes.first { $0.length == length }.map { Figure.bytes($0.value) },
        ].compactMap { $0 }
        if parts.isEmpty, let missing = curve.missing.first(where: { $0.length == length }) {
          return "<td class=\"warn\">\(missing.note.escaped)</td>"
        }
        return "<td>\(parts.isEmpty ? "–" : parts.joined(separator: "<br>"))</td>"
      }
      return "<tr><th scope=\"row\">\(curve.mixer.escaped)</th>\(cells.joined())</tr>"
    }
    return """
      <details><summary>Time and memory at each length</summary><div class="scroll"><table><thead><tr>\(head)</tr></thead><tbody>
      \(rows.joined(separator: "\n"))
      </tbody></table><p class="note">One forward pass over one sequence, and its peak tensor memory; medians over the runs of a mixer.</p></div></details>
      """
  }

  // MARK: - Words

  /// The mixers by name, as long as that fits a heading.
  private static func subject(_ results: ComparisonResults) -> String {
    let mixers = results.mixers
    return mixers.count > 5 ? "\(mixers.count) sequence mixers" : joined(mixers)
  }

  private static func joined(_ items: [String]) -> String {
    guard items.count > 1 else { return items.first ?? "No mixer" }
    return items.dropLast().joined(separator: ", ") + " and " + items.last!
  }

  private static func count(_ number: Int, _ noun: String) -> String { "\(number) \(noun)\(number == 1 ? "" : "s")" }

  private static func day(_ date: Date) -> String { String(timestamp(date).prefix(10)) }

  private static func timestamp(_ date: Date) -> String {
    let text = date.formatted(.iso8601)
    return text.replacing("T", with: " ").replacing("Z", with: " UTC")
  }
}
