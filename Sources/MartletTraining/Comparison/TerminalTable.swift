import Foundation

/// Aligned columns for a terminal: text to the left, numbers to the right, a rule below the headings.
///
/// Widths count the cells a terminal draws: none for combining marks, two for East Asian wide characters and emoji. Control
/// characters in a cell are replaced, so that a file's contents can't steer the terminal.
public struct TerminalTable: Sendable {
  public enum Alignment: Sendable { case left, right }

  public struct Column: Sendable {
    public var title: String
    public var alignment: Alignment
    public init(_ title: String, _ alignment: Alignment = .left) {
      self.title = title
      self.alignment = alignment
    }
  }

  public enum Emphasis: Sendable { case none, strong, faint, warning }

  public struct Cell: Sendable, ExpressibleByStringLiteral, ExpressibleByStringInterpolation {
    public var text: String
    public var emphasis: Emphasis
    public init(_ text: String, _ emphasis: Emphasis = .none) {
      self.text = text
      self.emphasis = emphasis
    }
    public init(stringLiteral value: String) { self.init(value) }
  }

  public var columns: [Column]
  public private(set) var rows: [[Cell]] = []
  private var rules: Set<Int> = []

  public init(_ columns: [Column]) { self.columns = columns }

  /// Adds a row; missing cells at its end stay empty.
  public mutating func add(_ cells: [Cell]) {
    precondition(cells.count <= columns.count, "\(cells.count) cells for \(columns.count) columns")
    rows.append(cells + Array(repeating: Cell(""), count: columns.count - cells.count))
  }

  /// Draws a rule above the next row.
  public mutating func addRule() { rules.insert(rows.count) }

  /// The table's lines, without a newline at the end.
  public func rendered(colour: Bool = Terminal.wantsColour) -> String {
    let texts = rows.map { $0.map { Terminal.sanitised($0.text) } }
    let titles = columns.map { Terminal.sanitised($0.title) }
    let widths = columns.indices.map { column in
      ([titles[column]] + texts.map { $0[column] }).map(Terminal.width).max() ?? 0
    }
    func line(_ cells: [String], _ emphases: [Emphasis]) -> String {
      var parts: [String] = []
      for (column, text) in cells.enumerated() {
        let padding = String(repeating: " ", count: widths[column] - Terminal.width(text))
        let styled = colour ? Terminal.styled(text, emphases[column]) : text
        parts.append(columns[column].alignment == .left ? styled + padding : padding + styled)
      }
      var joined = parts.joined(separator: "  ")
      while joined.hasSuffix(" ") { joined.removeLast() }
      return joined
    }
    let rule = widths.map { String(repeating: "─", count: $0) }.joined(separator: "──")
    let styledRule = colour ? Terminal.styled(rule, .faint) : rule
    var lines = [line(titles, titles.map { _ in .strong }), styledRule]
    for (index, row) in rows.enumerated() {
      if index > 0 && rules.contains(index) { lines.append(styledRule) }
      lines.append(line(texts[index], row.map(\.emphasis)))
    }
    return lines.joined(separator: "\n")
  }
}

/// What the terminal at standard output can do.
public enum Terminal {
  /// Standard output is a terminal that shows colours, and the user has not asked for none (NO_COLOR, https://no-color.org).
  public static var wantsColour: Bool {
    let environment = ProcessInfo.processInfo.environment
    return isatty(1) == 1 && (environment["NO_COLOR"] ?? "").isEmpty && environment["TERM"] != "dumb"
  }

  /// Cells that `text` takes on a terminal.
  public static func width(_ text: String) -> Int { text.reduce(0) { $0 + width(of: $1) } }

  private static func width(of character: Character) -> Int {
    let scalars = character.unicodeScalars
    // An emoji may be a sequence that starts with a narrow scalar: a keycap, a flag, a sign with the emoji selector.
    if scalars.count > 1 && scalars.contains(where: { $0.value == 0xFE0F || (0x1F1E6...0x1F1FF).contains($0.value) }) { return 2 }
    return scalars.map(width(of:)).max() ?? 0
  }

  private static func width(of scalar: Unicode.Scalar) -> Int {
    switch scalar.properties.generalCategory {
    case .nonspacingMark, .enclosingMark, .format, .control: return 0
    default: break
    }
    if scalar.properties.isEmojiPresentation { return 2 }
    return wideRanges.contains { $0.contains(scalar.value) } ? 2 : 1
  }

  // East Asian Width "W" and "F" (Unicode Annex 11), by block.
  private static let wideRanges: [ClosedRange<UInt32>] = [
    0x1100...0x115F, 0x2E80...0x303E, 0x3041...0x33FF, 0x3400...0x4DBF, 0x4E00...0x9FFF, 0xA000...0xA4CF, 0xA960...0xA97C,
    0xAC00...0xD7A3, 0xF900...0xFAFF, 0xFE30...0xFE6F, 0xFF00...0xFF60, 0xFFE0...0xFFE6, 0x20000...0x3FFFD,
  ]

  /// `text` on one line, with control characters replaced by what can be seen.
  public static func sanitised(_ text: String) -> String {
    guard text.unicodeScalars.contains(where: { $0.properties.generalCategory == .control }) else { return text }
    var scalars = String.UnicodeScalarView()
    for scalar in text.unicodeScalars {
      guard scalar.properties.generalCategory == .control else {
        scalars.append(scalar)
        continue
      }
      scalars.append(scalar == "\n" || scalar == "\t" || scalar == "\r" ? " " : "\u{FFFD}")
    }
    return String(scalars)
  }

  static func styled(_ text: String, _ emphasis: TerminalTable.Emphasis) -> String {
    let code: String
    switch emphasis {
    case .none: return text
    case .strong: code = "1"
    case .faint: code = "2"
    case .warning: code = "33"
    }
    return text.isEmpty ? text : "\u{1B}[\(code)m\(text)\u{1B}[0m"
  }
}
