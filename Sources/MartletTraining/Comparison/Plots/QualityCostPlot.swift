import Foundation

/// Plot 1: quality against cost, a point for each mixer and way of training, with one standard deviation each way and the Pareto front.
struct QualityCostPlot {
  struct Cost: Sendable {
    let key: String
    let label: String
    let axisTitle: String
    /// From the metric to the cost, and to a label of the cost.
    let value: @Sendable (Double) -> Double
    let format: @Sendable (Double) -> String
  }

  static let costs = [
    Cost(
      key: MetricName.trainSeconds, label: "Training time", axisTitle: "training time", value: { $0 }, format: { Figure.seconds($0) }),
    Cost(
      key: MetricName.inferenceTokensPerSecond, label: "Inference time", axisTitle: "inference time per token", value: { 1 / $0 },
      format: { Figure.seconds($0) }),
    Cost(
      key: MetricName.peakTensorBytes, label: "Memory", axisTitle: "peak tensor memory", value: { $0 }, format: { Figure.bytes($0) }),
  ]

  /// The costs that tell the arms apart: under a budget of time, training time is the budget for all of them.
  static func costs(of results: ComparisonResults) -> [Cost] {
    let seconds = results.arms.compactMap { $0.metrics[MetricName.trainSeconds] }.filter { $0.isFinite && $0 > 0 }
    guard let least = seconds.min(), let most = seconds.max(), most < 1.05 * least else { return costs }
    return costs.filter { $0.key != MetricName.trainSeconds }
  }

  struct Point {
    let summary: ArmSummary
    let arm: Int
    let cost: Spread
    let quality: Spread
  }

  let points: [Point]
  /// Indices into `points`, cheapest first.
  let front: [Int]
  let svg: String

  /// Nil where no arm has both the cost and a quality.
  init?(_ results: ComparisonResults, _ cost: Cost, id: String) {
    let metric = results.primaryMetric
    let mixers = results.mixers
    let points = results.summaries.compactMap { summary -> Point? in
      let arms = results.arms.filter { $0.mixer == summary.mixer && $0.pretrained == summary.pretrained }
      let costs = Spread(arms.map { cost.value($0.metrics[cost.key] ?? .nan) })
      guard summary.diverged.isEmpty, let quality = summary.metrics[metric], quality.count > 0, costs.count > 0 else { return nil }
      return Point(summary: summary, arm: mixers.firstIndex(of: summary.mixer)!, cost: costs, quality: quality)
    }
    guard !points.isEmpty else { return nil }
    self.points = points
    front = ParetoFront.indices(
      cost: points.map(\.cost.mean), quality: points.map(\.quality.mean), higherIsBetter: results.primaryMetricHigherIsBetter)

    var drawing = PlotDrawing(rightMargin: 22)
    let means = points.map(\.cost.mean)
    let isWide = (means.max() ?? 1) / max(means.min() ?? 1, 1e-300) > 8
    let extremes = points.flatMap {
      [$0.cost.mean - ($0.cost.standardDeviation ?? 0), $0.cost.mean, $0.cost.mean + ($0.cost.standardDeviation ?? 0)]
    }
    let x =
      isWide
      ? PlotScale.logarithmic(extremes, (drawing.left, drawing.right), air: 0.1)
      : PlotScale.linear(extremes, (drawing.left, drawing.right), air: 0.14)
    let y = PlotScale.linear(
      points.flatMap { [$0.quality.mean - ($0.quality.standardDeviation ?? 0), $0.quality.mean + ($0.quality.standardDeviation ?? 0)] },
      (drawing.bottom, drawing.top), air: 0.12)
    let higher = results.primaryMetricHigherIsBetter
    drawing.axes(
      x: cost.key == MetricName.peakTensorBytes ? x.ticks(count: 5) { Figure.trimmed(cost.format($0)) } : x.timeTicks(count: 5),
      y: y.metricTicks(metric, count: 6), xTitle: cost.axisTitle + " (less is better)",
      yTitle: ComparisonVerdict.words(metric) + (higher ? " (higher is better)" : " (lower is better)"))

    let places = points.map { (x: x.position($0.cost.mean), y: y.position($0.quality.mean)) }
    // The front as stairs: between two of its points, the cheaper one is the best that money buys.
    if front.count > 1 {
      var path = "M\(places[front[0]].x.svg) \(places[front[0]].y.svg)"
      for index in front.dropFirst() { path += "H\(places[index].x.svg)V\(places[index].y.svg)" }
      drawing.add("<path class=\"front\" d=\"\(path)\"/>")
    }
    // Boxes that names must not cover: all the markers, with their error bars as thin boxes of their own.
    var taken: [Box] = []
    for (point, place) in zip(points, places) {
      taken.append(Box(x: place.x - 12, y: place.y - 12, width: 24, height: 24))
      if let deviation = point.quality.standardDeviation {
        let ends = [y.position(point.quality.mean + deviation), y.position(point.quality.mean - deviation)]
        taken.append(Box(x: place.x - 3, y: ends.min()!, width: 6, height: abs(ends[1] - ends[0])))
      }
      if let deviation = point.cost.standardDeviation, let low = lowEnd(point.cost.mean, deviation, x) {
        taken.append(Box(x: low, y: place.y - 3, width: x.position(point.cost.mean + deviation) - low, height: 6))
      }
    }
    for (index, next) in zip(front, front.dropFirst()) {
      let (a, b) = (places[index], places[next])
      taken.append(Box(x: a.x, y: a.y - 1, width: b.x - a.x, height: 2))
      taken.append(Box(x: b.x - 1, y: min(a.y, b.y), width: 2, height: abs(a.y - b.y)))
    }
    for (index, (point, place)) in zip(points, places).enumerated() {
      let isFront = front.contains(index)
      var tip = "\(point.summary.name): \(Figure.metric(metric, point.quality)) at \(cost.format(point.cost.mean))"
      if point.quality.count > 1 { tip += " (\(point.quality.count) seeds)" }
      if isFront { tip += ", on the Pareto front" }
      drawing.add("<g class=\"a\(point.arm) mark\" data-tip=\"\(tip.escaped)\"><title>\(tip.escaped)</title>")
      if let deviation = point.quality.standardDeviation {
        let (low, high) = (y.position(point.quality.mean - deviation), y.position(point.quality.mean + deviation))
        drawing.add(
          "<path class=\"bar\" d=\"M\(place.x.svg) \(low.svg)V\(high.svg)M\((place.x - 4).svg) \(low.svg)h8M\((place.x - 4).svg) \(high.svg)h8\"/>"
        )
      }
      if let deviation = point.cost.standardDeviation, let low = lowEnd(point.cost.mean, deviation, x) {
        drawing.add("<path class=\"bar\" d=\"M\(low.svg) \(place.y.svg)H\(x.position(point.cost.mean + deviation).svg)\"/>")
      }
      if isFront { drawing.add("<circle class=\"halo\" cx=\"\(place.x.svg)\" cy=\"\(place.y.svg)\" r=\"11\"/>") }
      drawing.add(PlotMarker.markup(arm: point.arm, x: place.x, y: place.y, radius: 6, isFilled: point.summary.pretrained))
      let text = PlotText.shortened(point.summary.mixer, 16)
      let box = Self.freePlace(for: text, at: place, avoiding: taken, in: drawing)
      taken.append(box)
      // A name that found no place close by is tied to its point.
      let nearest = (x: min(max(place.x, box.x), box.x + box.width), y: min(max(place.y, box.y + 3), box.y + box.height - 3))
      if hypot(nearest.x - place.x, nearest.y - place.y) > 18 {
        drawing.add("<path class=\"hair\" d=\"M\(place.x.svg) \(place.y.svg)L\(nearest.x.svg) \(nearest.y.svg)\"/>")
      }
      // Anchored at the side that faces the point, where a font wider than the estimate would touch it.
      let anchor =
        box.x >= place.x
        ? ("start", box.x + 1) : box.x + box.width <= place.x ? ("end", box.x + box.width - 1) : ("middle", box.x + box.width / 2)
      drawing.add(
        "<text class=\"name\" x=\"\(anchor.1.svg)\" y=\"\((box.y + 12.5).svg)\" text-anchor=\"\(anchor.0)\">\(text.escaped)</text></g>")
    }
    let names = front.map { points[$0].summary.name }.joined(separator: "; ")
    svg = drawing.svg(
      id: id, title: "\(ComparisonVerdict.words(metric)) against \(cost.axisTitle)",
      description:
        "One point for each mixer and way of training. On the Pareto front, cheapest first: \(names). The values are in the table of the page."
    )
  }

  struct Box {
    let x: Double, y: Double, width: Double, height: Double
    func overlap(_ other: Box) -> Double {
      let w = min(x + width, other.x + other.width) - max(x, other.x)
      let h = min(y + height, other.y + other.height) - max(y, other.y)
      return w > 0 && h > 0 ? w * h : 0
    }
  }

  /// The first place around the point where the name covers nothing, else the one where it covers least.
  private static func freePlace(for text: String, at place: (x: Double, y: Double), avoiding taken: [Box], in drawing: PlotDrawing) -> Box {
    let width = PlotText.width(text) + 2
    let height = 16.0
    var offsets: [(Double, Double)] = []
    for distance in [15.0, 26, 40] {
      offsets += [
        (distance, -height / 2), (-distance - width, -height / 2), (-width / 2, -distance - height + 2), (-width / 2, distance - 2),
        (distance * 0.8, -distance - height / 2), (distance * 0.8, distance - height / 2),
        (-distance * 0.8 - width, -distance - height / 2),
        (-distance * 0.8 - width, distance - height / 2),
      ]
    }
    let boxes = offsets.map { Box(x: place.x + $0.0, y: place.y + $0.1, width: width, height: height) }
      .filter {
        $0.x > drawing.left + 2 && $0.x + width < PlotDrawing.width - 2 && $0.y > drawing.top - 8 && $0.y + height < drawing.bottom
      }
    func cost(_ box: Box) -> Double { taken.reduce(0) { $0 + $1.overlap(box) } }
    return boxes.first { cost($0) == 0 } ?? boxes.min { cost($0) < cost($1) }
      ?? Box(x: place.x + 13, y: place.y - 8, width: width, height: height)
  }
}

/// Where the lower error bar ends; nil where a logarithmic axis can't show it.
private func lowEnd(_ mean: Double, _ deviation: Double, _ scale: PlotScale) -> Double? {
  let low = mean - deviation
  return scale.isLogarithmic && low <= 0 ? nil : scale.position(low)
}
