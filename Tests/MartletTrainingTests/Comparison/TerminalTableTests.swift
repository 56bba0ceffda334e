import Foundation
import Testing

@testable import MartletTraining

@Suite struct TerminalTableTests {
  @Test func columnsAreAligned() {
    var table = TerminalTable([.init("name"), .init("value", .right)])
    table.add(["softmax", "1"])
    table.add(["日本語", "12.5"])
    table.addRule()
    table.add(["é", .init("−3", .strong)])
    table.add(["👍🏽 ok"])
    #expect(
      table.rendered(colour: false) == """
        name     value
        ──────────────
        softmax      1
        日本語    12.5
        ──────────────
        é           −3
        👍🏽 ok
        """)
  }

  @Test func colourDoesNotMoveAColumn() {
    var table = TerminalTable([.init("name"), .init("value", .right)])
    table.add(["a", .init("1", .strong)])
    table.add(["b", .init("200", .warning)])
    let coloured = table.rendered(colour: true)
    #expect(coloured.contains("\u{1B}[1m1\u{1B}[0m"))
    #expect(coloured.replacing(/\u{1B}\[\d+m/, with: "") == table.rendered(colour: false))
  }

  @Test func widthsAreThoseOfATerminal() {
    for (text, width) in [("abc", 3), ("e\u{301}", 1), ("漢字", 4), ("🇯🇵", 2), ("a\u{200B}b", 2), ("한", 2), ("±µ", 2), ("", 0)] {
      #expect(Terminal.width(text) == width, "\(text)")
    }
  }

  @Test func aCellCannotSteerTheTerminal() {
    var table = TerminalTable([.init("name")])
    table.add(["a\u{1B}[2Jb\nc"])
    let text = table.rendered(colour: false)
    #expect(!text.contains("\u{1B}") && text.split(separator: "\n").count == 3)
  }

  @Test func theComparisonsTableMarksTheBest() {
    let lines = exampleResults().table().rendered(colour: false).split(separator: "\n").map(String.init)
    #expect(lines.count == 5)
    for title in [
      "mixer", "from scratch", "after self-pretraining", "gain", "parameters", "train tokens/s", "inference tokens/s", "peak memory",
    ] {
      #expect(lines[0].contains(title))
    }
    #expect(lines[2].contains("100 MB *") && lines[3].contains("62.0 ± 1.0 % *") && lines[4].contains("71.0 ± 1.0 % *"))
    #expect(lines[4].contains("+21.0 points"))
    // Every line ends within the heading's rule, and numbers end at the same cell.
    #expect(lines.allSatisfy { Terminal.width($0) <= Terminal.width(lines[1]) })
  }
}
