import Foundation

/// Plot 2: a quantity during training, one thin line a seed and a thick one for their mean.
struct CurvePlot {
  enum Quantity { case trainLoss, validation }
  enum Axis { case steps, time }

  let svg: String

  /// More points than a line can show are averaged in windows.
  static let maximumPoints = 120

  private typealias Line = [(x: Double, y: Double)]

  /// Nil where no arm has recorded the quantity.
  init?(_ results: ComparisonResults, _ quantity: Quantity, _ axis: Axis, id: String) {
    let mixers = results.mixers
    struct Group {
      let summary: ArmSummary
      let arm: Int
      let seeds: [Line]
      let mean: Line
      /// Last finite points of the seeds that diverged on the way.
      let ends: [(x: Double, y: Double)]
    }
    // As in the table, the mean is over the runs that ended with a number; the others show as thin lines that stop at a cross.
    func healthy(_ arms: [ComparisonArm]) -> [ComparisonArm] { arms.filter { !results.hasDiverged($0) } }
    let groups = results.summaries.compactMap { summary -> Group? in
      let arms = results.arms.filter { $0.mixer == summary.mixer && $0.pretrained == summary.pretrained }
      let lines = arms.map { Self.line($0.curve, quantity, axis) }
      let finite = lines.map { $0.filter { $0.y.isFinite && $0.x.isFinite } }
      guard finite.contains(where: { !$0.isEmpty }) else { return nil }
      let ends = zip(lines, finite).compactMap { all, finite in all.last.map(\.y.isFinite) == false ? finite.last : nil }
      return Group(
        summary: summary, arm: mixers.firstIndex(of: summary.mixer)!, seeds: finite,
        mean: Self.mean(healthy(arms).map(\.curve), quantity, axis),
        ends: ends)
    }
    guard !groups.isEmpty else { return nil }

    var drawing = PlotDrawing(rightMargin: 112)
    let values = groups.flatMap { $0.seeds.flatMap { $0.map(\.y) } }.sorted()
    // A run that explodes before it diverges would press all others against the axis: the top follows the bulk of the points.
    let limit = quantity == .trainLoss ? values[Int(Double(values.count - 1) * 0.985)] * 1.05 : values.last!
    let x = PlotScale.linear(groups.flatMap { $0.seeds.flatMap { $0.map(\.x) } } + [0], (drawing.left, drawing.right), air: 0)
    let y = PlotScale.linear(values.filter { $0 <= limit }, (drawing.bottom, drawing.top), air: 0.05)
    let metric = quantity == .trainLoss ? MetricName.loss : results.primaryMetric
    let higher = quantity == .validation && results.primaryMetricHigherIsBetter
    drawing.axes(
      x: axis == .steps ? x.ticks(count: 5) { Figure.trimmed(Figure.count($0)) } : x.timeTicks(count: 5),
      y: y.metricTicks(metric, count: 6), xTitle: axis == .steps ? "training steps" : "training time",
      yTitle: (quantity == .trainLoss ? "training loss" : "validation \(ComparisonVerdict.words(results.primaryMetric))")
        + (higher ? " (higher is better)" : " (lower is better)"))

    func path(_ line: Line) -> String {
      line.enumerated().map { "\($0.offset == 0 ? "M" : "L")\(x.position($0.element.x).svg) \(y.position($0.element.y).svg)" }.joined()
    }
    drawing.add("<g clip-path=\"url(#\(id)-c)\">")
    for group in groups where group.seeds.count > 1 {
      let style = group.summary.pretrained ? "thin dashed" : "thin"
      for line in group.seeds where line.count > 1 {
        drawing.add("<path class=\"a\(group.arm) \(style)\" d=\"\(path(line))\"/>")
      }
    }
    for group in groups {
      let style = group.summary.pretrained ? "line dashed" : "line"
      drawing.add("<path class=\"a\(group.arm) \(style)\" d=\"\(path(group.mean))\"/>")
    }
    for group in groups {
      for end in group.ends {
        let (px, py) = (x.position(end.x), max(y.position(end.y), drawing.top + 6))
        let tip = "\(group.summary.name) diverged after \(axis == .steps ? "step " + Figure.grouped(Int(end.x)) : Figure.seconds(end.x))"
        drawing.add(
          "<g class=\"a\(group.arm) mark\" data-tip=\"\(tip.escaped)\"><title>\(tip.escaped)</title><path class=\"cross\" d=\"M\((px - 5).svg) \((py - 5).svg)l10 10m0 -10l-10 10\"/></g>"
        )
      }
    }
    drawing.add("</g>")
    drawing.endLabels(
      groups.compactMap { group in
        group.mean.last.map { last in
          PlotDrawing.EndLabel(
            x: x.position(last.x), y: min(max(y.position(last.y), drawing.top), drawing.bottom), text: group.summary.mixer, arm: group.arm,
            isFilled: group.summary.pretrained, tip: "\(group.summary.name): \(Figure.metric(metric, last.y)) at the end")
        }
      })
    svg = drawing.svg(
      id: id, title: quantity == .trainLoss ? "Training loss" : "Validation \(ComparisonVerdict.words(results.primaryMetric))",
      description: groups.map { "\($0.summary.name) ends at \($0.mean.last.map { Figure.metric(metric, $0.y) } ?? "nothing")" }
        .joined(separator: "; ") + ".")
  }

  private static func value(_ point: CurvePoint, _ quantity: Quantity) -> Double? {
    quantity == .trainLoss ? point.trainLoss : point.validationMetric
  }

  private static func line(_ curve: [CurvePoint], _ quantity: Quantity, _ axis: Axis) -> Line {
    thinned(
      curve.compactMap { point in value(point, quantity).map { (axis == .steps ? Double(point.step) : point.seconds, $0) } })
  }

  /// The mean over the seeds that are finite at a step, for the steps that all seeds which got so far have recorded.
  private static func mean(_ curves: [[CurvePoint]], _ quantity: Quantity, _ axis: Axis) -> Line {
    var byStep: [Int: [(seconds: Double, value: Double)]] = [:]
    for curve in curves {
      for point in curve {
        if let value = value(point, quantity) { byStep[point.step, default: []].append((point.seconds, value)) }
      }
    }
    // A mean over fewer seeds than recorded the quantity at all would jump where one of them ends.
    let recorded = curves.filter { $0.contains { value($0, quantity) != nil } }.count
    return thinned(
      byStep.keys.sorted().compactMap { step in
        let points = byStep[step]!
        let finite = points.filter { $0.value.isFinite }
        guard points.count == recorded, finite.count == points.count else { return nil }
        let x = axis == .steps ? Double(step) : finite.map(\.seconds).reduce(0, +) / Double(finite.count)
        return (x, finite.map(\.value).reduce(0, +) / Double(finite.count))
      })
  }

  private static func thinned(_ line: Line) -> Line {
    guard line.count > maximumPoints else { return line }
    let window = (line.count + maximumPoints - 1) / maximumPoints
    return stride(from: 0, to: line.count, by: window).map { start in
      let part = line[start..<min(start + window, line.count)]
      return (part.map(\.x).reduce(0, +) / Double(part.count), part.map(\.y).reduce(0, +) / Double(part.count))
    }
  }
}
