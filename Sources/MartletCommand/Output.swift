import Foundation
import MartletCatalog
import MartletTraining

/// What commands print: results on standard output, everything else on standard error.
enum Output {
  /// One JSON value and nothing else.
  static func json(_ value: JSONValue) { print(value.serialized(indentation: 2)) }

  /// A line on standard error. Unlike `FileHandle`, it survives a standard error that is closed.
  static func note(_ line: String) {
    var text = line + "\n"
    text.withUTF8 { bytes in
      var rest = UnsafeRawBufferPointer(bytes)
      while rest.count > 0 {
        let written = write(STDERR_FILENO, rest.baseAddress, rest.count)
        if written < 0 && errno == EINTR { continue }
        guard written > 0 else { return }
        rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(written))
      }
    }
  }

  /// Columns of the terminal at standard output; nil where it is a file or a pipe, which have no width.
  static var terminalWidth: Int? {
    guard isatty(STDOUT_FILENO) == 1 else { return nil }
    var size = winsize()
    if ioctl(STDOUT_FILENO, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0 { return Int(size.ws_col) }
    return ProcessInfo.processInfo.environment["COLUMNS"].flatMap { Int($0) }.flatMap { $0 > 0 ? $0 : nil } ?? 80
  }

  /// `text` in at most `width` cells, its end replaced by … where it is longer.
  static func shortened(_ text: String, to width: Int) -> String {
    guard Terminal.width(text) > width else { return text }
    var result = ""
    var cells = 1
    for character in text {
      cells += Terminal.width(String(character))
      if cells > width { break }
      result.append(character)
    }
    while result.last == " " { result.removeLast() }
    return result + "…"
  }

  /// `text` broken between words into lines of at most `width` cells; a longer word has a line of its own.
  static func lines(_ text: String, width: Int) -> [String] {
    var lines: [String] = []
    for paragraph in text.split(separator: "\n", omittingEmptySubsequences: false) {
      var line = ""
      for word in paragraph.split(separator: " ") {
        if !line.isEmpty && Terminal.width(line) + 1 + Terminal.width(String(word)) > width {
          lines.append(line)
          line = ""
        }
        line += (line.isEmpty ? "" : " ") + word
      }
      lines.append(line)
    }
    return lines
  }

  /// `text` broken into lines of at most the terminal's width (100 where there is none), each indented.
  static func wrapped(_ text: String, indentation: Int = 2) -> String {
    let margin = String(repeating: " ", count: indentation)
    return lines(text, width: max(20, (terminalWidth ?? 100) - indentation)).map { $0.isEmpty ? "" : margin + $0 }.joined(separator: "\n")
  }

  /// A heading, bold where the terminal shows it.
  static func heading(_ text: String) -> String { Terminal.wantsColour ? "\u{1B}[1m\(text)\u{1B}[0m" : text }

  /// A shape as `[64, 128]`.
  static func shape(_ shape: [Int]) -> String { "[" + shape.map(String.init).joined(separator: ", ") + "]" }

  static func json(_ shape: [Int]) -> JSONValue { .array(shape.map(JSONValue.integer)) }
}
