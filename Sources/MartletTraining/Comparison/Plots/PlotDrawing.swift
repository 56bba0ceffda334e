import Foundation

/// An SVG picture under construction, with the frame that all plots share. Colours come from the page's style sheet: class `aN`
/// is the N-th mixer's.
struct PlotDrawing {
  static let width = 520.0
  static let height = 390.0

  /// The area inside the axes.
  let left: Double, right: Double, top: Double, bottom: Double
  private(set) var body = ""

  init(left: Double = 66, rightMargin: Double = 96, topMargin: Double = 30, bottomMargin: Double = 50) {
    self.left = left
    right = Self.width - rightMargin
    top = topMargin
    bottom = Self.height - bottomMargin
  }

  mutating func add(_ markup: String) { body += markup + "\n" }

  /// Axes with grid lines and titles. The vertical title stands above the axis, where it needs no turned head.
  mutating func axes(x: [PlotScale.Tick], y: [PlotScale.Tick], xTitle: String, yTitle: String) {
    for tick in y {
      add("<line class=\"grid\" x1=\"\(left.svg)\" x2=\"\(right.svg)\" y1=\"\(tick.position.svg)\" y2=\"\(tick.position.svg)\"/>")
      add("<text class=\"tick\" x=\"\((left - 8).svg)\" y=\"\((tick.position + 4).svg)\" text-anchor=\"end\">\(tick.label.escaped)</text>")
    }
    var lastEnd = -Double.infinity
    for tick in x {
      add("<line class=\"axis\" x1=\"\(tick.position.svg)\" x2=\"\(tick.position.svg)\" y1=\"\(bottom.svg)\" y2=\"\((bottom + 5).svg)\"/>")
      // A label that would touch its neighbour is left out; its tick stays.
      let half = PlotText.width(tick.label) / 2
      guard tick.position - half > lastEnd + 6 else { continue }
      lastEnd = tick.position + half
      add("<text class=\"tick\" x=\"\(tick.position.svg)\" y=\"\((bottom + 20).svg)\" text-anchor=\"middle\">\(tick.label.escaped)</text>")
    }
    add("<line class=\"axis\" x1=\"\(left.svg)\" x2=\"\(right.svg)\" y1=\"\(bottom.svg)\" y2=\"\(bottom.svg)\"/>")
    add(
      "<text class=\"title\" x=\"\(((left + right) / 2).svg)\" y=\"\((bottom + 42).svg)\" text-anchor=\"middle\">\(xTitle.escaped)</text>")
    add("<text class=\"title\" x=\"8\" y=\"16\">\(yTitle.escaped)</text>")
  }

  /// The name of a line at its right end.
  struct EndLabel {
    let x: Double, y: Double
    let text: String
    let arm: Int
    let isFilled: Bool
    let tip: String
  }

  /// Names at the right end of lines, moved apart where they would overlap and tied to their line by a hair. None are drawn where
  /// there is no room for all; the legend names them too.
  mutating func endLabels(_ labels: [EndLabel]) {
    let spacing = 16.0
    guard Double(labels.count) * spacing <= bottom - top + spacing else { return }
    var placed = labels.sorted { $0.y < $1.y }.map { (label: $0, y: $0.y) }
    // Push down where too close, then back up from the bottom edge.
    for index in placed.indices.dropFirst() { placed[index].y = max(placed[index].y, placed[index - 1].y + spacing) }
    if let last = placed.last, last.y > bottom {
      placed[placed.count - 1].y = bottom
      for index in placed.indices.dropLast().reversed() { placed[index].y = min(placed[index].y, placed[index + 1].y - spacing) }
    }
    for (label, y) in placed {
      add(
        "<g class=\"a\(label.arm) mark\" data-tip=\"\(label.tip.escaped)\"><title>\(label.tip.escaped)</title><path class=\"hair\" d=\"M\((label.x + 3).svg) \(label.y.svg)L\((right + 8).svg) \(y.svg)\"/>"
      )
      // A line that ends well before the edge, as one that took less time, shows its marker there too.
      if label.x < right - 16 { add(PlotMarker.markup(arm: label.arm, x: label.x, y: label.y, radius: 4, isFilled: label.isFilled)) }
      add(PlotMarker.markup(arm: label.arm, x: right + 15, y: y, radius: 4.5, isFilled: label.isFilled))
      add("<text class=\"name\" x=\"\((right + 25).svg)\" y=\"\((y + 4).svg)\">\(PlotText.shortened(label.text, 11).escaped)</text></g>")
    }
  }

  /// The finished picture. `title` and `description` are what a screen reader says.
  func svg(id: String, title: String, description: String) -> String {
    """
    <svg viewBox="0 0 \(Self.width.svg) \(Self.height.svg)" role="img" aria-labelledby="\(id)-t \(id)-d">
    <title id="\(id)-t">\(title.escaped)</title><desc id="\(id)-d">\(description.escaped)</desc>
    <defs><clipPath id="\(id)-c"><rect x="\(left.svg)" y="\(top.svg)" width="\((right - left).svg)" height="\((bottom - top).svg)"/></clipPath></defs>
    \(body)</svg>
    """
  }
}

/// Shapes that tell mixers apart without colour, shifted by one against the eight colours in each further round; open for from scratch, filled for pretrained.
enum PlotMarker {
  static func markup(arm: Int, x: Double, y: Double, radius: Double, isFilled: Bool) -> String {
    "<path class=\"marker\(isFilled ? " filled" : "")\" d=\"\(path((arm + arm / 8) % 8, x, y, radius))\"/>"
  }

  private static func path(_ shape: Int, _ x: Double, _ y: Double, _ r: Double) -> String {
    func polygon(_ points: [(Double, Double)]) -> String {
      "M" + points.map { "\((x + r * $0.0).svg) \((y + r * $0.1).svg)" }.joined(separator: "L") + "Z"
    }
    func regular(_ corners: Int, _ scale: Double, inner: Double? = nil) -> String {
      let count = inner == nil ? corners : 2 * corners
      return polygon(
        (0..<count).map { index in
          let angle = 2 * Double.pi * Double(index) / Double(count)
          let size = inner != nil && index % 2 == 1 ? inner! : scale
          return (size * sin(angle), -size * cos(angle))
        })
    }
    switch shape {
    case 0: return "M\((x - r).svg) \(y.svg)a\(r.svg) \(r.svg) 0 1 0 \((2 * r).svg) 0a\(r.svg) \(r.svg) 0 1 0 \((-2 * r).svg) 0Z"
    case 1: return polygon([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)])
    case 2: return regular(3, 1.25)
    case 3: return polygon([(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)])
    case 4: return polygon([(0, 1.25), (1.1, -0.65), (-1.1, -0.65)])
    case 5: return regular(5, 1.3, inner: 0.58)
    case 6:
      return polygon([
        (-0.4, -1.1), (0.4, -1.1), (0.4, -0.4), (1.1, -0.4), (1.1, 0.4), (0.4, 0.4), (0.4, 1.1), (-0.4, 1.1), (-0.4, 0.4), (-1.1, 0.4),
        (-1.1, -0.4), (-0.4, -0.4),
      ])
    default: return regular(6, 1.15)
    }
  }
}

/// Widths of text can't be measured here; these estimates err on the wide side for a sans-serif at 13 units.
enum PlotText {
  static let size = 13.0
  static func width(_ text: String) -> Double { Double(Terminal.width(text)) * size * 0.58 }
  static func shortened(_ text: String, _ count: Int) -> String { text.count > count ? text.prefix(count - 1) + "…" : text }
}

extension Double {
  /// One decimal, without a trailing ".0".
  var svg: String {
    guard isFinite else { return "0" }
    let tenths = (self * 10).rounded()
    guard abs(tenths) < 1e15 else { return "0" }
    let whole = Int(tenths)
    if whole % 10 == 0 { return String(whole / 10) }
    return (whole < 0 ? "-" : "") + "\(abs(whole) / 10).\(abs(whole) % 10)"
  }
}

extension String {
  /// Safe as HTML text and inside quoted attributes; what HTML can't hold at all is replaced.
  var escaped: String {
    var result = ""
    result.reserveCapacity(utf8.count)
    for scalar in unicodeScalars {
      switch scalar {
      case "&": result += "&amp;"
      case "<": result += "&lt;"
      case ">": result += "&gt;"
      case "\"": result += "&quot;"
      case "'": result += "&#39;"
      case "\n", "\t": result.unicodeScalars.append(scalar)
      default: result.unicodeScalars.append(scalar.properties.generalCategory == .control ? "\u{FFFD}" : scalar)
      }
    }
    return result
  }
}
