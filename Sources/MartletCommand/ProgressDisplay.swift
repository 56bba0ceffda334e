import Foundation
import MartletCatalog

/// One line on standard error that shows how far long work is: a bar that is redrawn on a terminal, a plain line now and then
/// elsewhere.
final class ProgressDisplay {
  private let isTerminal = isatty(STDERR_FILENO) == 1
  private let plainInterval: Double
  private var last = ContinuousClock.now - .seconds(3600)
  private var isLineOpen = false

  /// - Parameter plainInterval: seconds between lines when standard error is no terminal.
  init(plainInterval: Double = 15) { self.plainInterval = plainInterval }

  /// Shows a state of a training, at most ten times a second.
  func update(_ title: String, _ progress: TrainingProgress) {
    let rate = progress.seconds > 0 ? Double(progress.positions) / progress.seconds : 0
    let left = progress.fraction > 0 ? progress.seconds * (1 / progress.fraction - 1) : 0
    update(
      title, progress.fraction,
      "step \(progress.step)  loss \(String(format: "%.4f", progress.loss))  \(Self.rate(rate)) tokens/s  \(Self.time(left)) left")
  }

  /// Shows how much is done (`nil` where that isn't known) and some figures, at most ten times a second.
  func update(_ title: String, _ fraction: Double?, _ figures: @autoclosure () -> String) {
    let now = ContinuousClock.now
    let isEnd = fraction ?? 0 >= 1
    guard now - last >= .seconds(isTerminal ? 0.1 : plainInterval) || isEnd else { return }
    last = now
    let share = fraction.map { "\(Int($0 * 100)) %  " } ?? ""
    if isTerminal {
      let cells = 24
      let bar = fraction.map { fraction in
        let full = Int(min(1, fraction) * Double(cells))
        return String(repeating: "█", count: full) + String(repeating: "░", count: cells - full) + " "
      }
      write("\r\u{1B}[2K\(title)  \(bar ?? "")\(share)\(figures())")
      isLineOpen = true
      if isEnd { close() }
    } else {
      write("\(title)  \(share)\(figures())\n")
    }
  }

  /// A line that stays.
  func note(_ text: String) {
    close()
    write(text + "\n")
  }

  func close() {
    guard isLineOpen else { return }
    write("\n")
    isLineOpen = false
  }

  private func write(_ text: String) { FileHandle.standardError.write(Data(text.utf8)) }

  static func rate(_ x: Double) -> String {
    switch x {
    case 1e6...: String(format: "%.1fM", x / 1e6)
    case 1e3...: String(format: "%.1fk", x / 1e3)
    default: String(format: "%.0f", x)
    }
  }

  static func time(_ seconds: Double) -> String {
    let s = Int(seconds.rounded())
    if s >= 3600 { return "\(s / 3600) h \(s % 3600 / 60) min" }
    return s >= 60 ? "\(s / 60) min \(s % 60) s" : "\(s) s"
  }
}
