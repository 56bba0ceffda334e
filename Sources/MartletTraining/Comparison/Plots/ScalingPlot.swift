import Foundation

/// Plots 3 and 4: time or memory against sequence length, both axes logarithmic, so that equal growth is an equal slope.
struct ScalingPlot {
  enum Quantity { case inferenceTime, trainingTime, memory }

  let svg: String

  /// Nil where nothing was measured.
  init?(_ results: ComparisonResults, _ quantity: Quantity, id: String) {
    let mixers = results.mixers
    func points(_ curve: ScalingCurve) -> [ScalingCurve.Point] {
      switch quantity {
      case .inferenceTime: curve.seconds
      case .trainingTime: curve.trainSeconds
      case .memory: curve.bytes
      }
    }
    let curves = results.scalingCurves
    let drawn = curves.filter { !points($0).isEmpty }
    guard !drawn.isEmpty else { return nil }
    func format(_ value: Double) -> String { quantity == .memory ? Figure.bytes(value) : Figure.seconds(value) }

    var drawing = PlotDrawing(rightMargin: 112)
    var unfit: [(curve: ScalingCurve, length: Int, note: String)] = []
    for curve in curves { unfit += curve.missing.map { (curve, $0.length, $0.note) } }
    let lengths = Set(drawn.flatMap { points($0).map(\.length) } + unfit.map { $0.length }).sorted()
    let x = PlotScale.logarithmic(lengths.map(Double.init), (drawing.left, drawing.right), air: 0.03)
    // What did not fit is shown in a strip of its own at the top, above every measured value.
    let strip = unfit.isEmpty ? 0 : 22.0
    let y = PlotScale.logarithmic(drawn.flatMap { points($0).map(\.value) }, (drawing.bottom, drawing.top + strip), air: 0.06)
    drawing.axes(
      x: lengths.map { .init(position: x.position(Double($0)), label: Figure.length($0)) },
      y: y.ticks(count: 7) { Figure.trimmed(format($0)) },
      xTitle: "sequence length (tokens)",
      yTitle: quantity == .memory
        ? "peak memory of a pass" : quantity == .trainingTime ? "time of a training step" : "time of a forward pass")

    for curve in drawn {
      let arm = mixers.firstIndex(of: curve.mixer)!
      let places = points(curve).map { (x: x.position(Double($0.length)), y: y.position($0.value)) }
      let path = places.enumerated().map { "\($0.offset == 0 ? "M" : "L")\($0.element.x.svg) \($0.element.y.svg)" }.joined()
      drawing.add("<path class=\"a\(arm) line\" d=\"\(path)\"/>")
    }
    for curve in drawn {
      let arm = mixers.firstIndex(of: curve.mixer)!
      for point in points(curve) {
        let tip = "\(curve.mixer) at \(Figure.length(point.length)) tokens: \(format(point.value))"
        drawing.add(
          "<g class=\"a\(arm) mark\" data-tip=\"\(tip.escaped)\"><title>\(tip.escaped)</title>"
            + PlotMarker.markup(arm: arm, x: x.position(Double(point.length)), y: y.position(point.value), radius: 4.5, isFilled: false)
            + "</g>")
      }
    }
    if !unfit.isEmpty {
      drawing.add("<text class=\"tick\" x=\"\((drawing.left - 8).svg)\" y=\"\((drawing.top + 12).svg)\" text-anchor=\"end\">no fit</text>")
      for length in Set(unfit.map { $0.length }) {
        let here = unfit.filter { $0.length == length }
        for (index, item) in here.enumerated() {
          let arm = mixers.firstIndex(of: item.curve.mixer)!
          let px = x.position(Double(length)) + (Double(index) - Double(here.count - 1) / 2) * 13
          let tip = "\(item.curve.mixer) at \(Figure.length(length)) tokens: \(item.note)"
          drawing.add(
            "<g class=\"a\(arm) mark\" data-tip=\"\(tip.escaped)\"><title>\(tip.escaped)</title><path class=\"cross\" d=\"M\((px - 4.5).svg) \((drawing.top + 3.5).svg)l9 9m0 -9l-9 9\"/></g>"
          )
        }
      }
    }
    drawing.endLabels(
      drawn.map { curve in
        let last = points(curve).last!
        return PlotDrawing.EndLabel(
          x: x.position(Double(last.length)), y: y.position(last.value), text: curve.mixer, arm: mixers.firstIndex(of: curve.mixer)!,
          isFilled: false, tip: "\(curve.mixer) at \(Figure.length(last.length)) tokens: \(format(last.value))")
      })
    svg = drawing.svg(
      id: id, title: quantity == .memory ? "Memory against sequence length" : "Time against sequence length",
      description: drawn.map { curve in
        let last = points(curve).last!
        return "\(curve.mixer) takes \(format(last.value)) at \(Figure.length(last.length)) tokens"
      }.joined(separator: "; ") + ".")
  }
}
