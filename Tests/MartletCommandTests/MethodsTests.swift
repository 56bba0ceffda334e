import MartletCatalog
import Testing

@Suite struct MethodsTests {
  @Test func jsonIsTheCatalogAndNothingElse() throws {
    let run = try CommandRun(["methods", "--json"])
    #expect(run.status == 0)
    #expect(run.errors.isEmpty)
    #expect(try run.json == Catalog.json)
  }

  @Test func theTableHasEveryMethodAndTheCounts() throws {
    let run = try CommandRun(["methods"])
    #expect(run.status == 0)
    let lines = run.output.split(separator: "\n")
    for entry in Catalog.all { #expect(lines.contains { $0.hasPrefix(entry.id + " ") && $0.contains(entry.title) }, "\(entry.id)") }
    let ready = Catalog.all.count { $0.status == .ready }
    #expect(lines.last == "\(ready) ready, \(Catalog.all.count - ready) planned")
    #expect(!run.output.contains("\u{1B}"), "colours in a pipe")
  }

  @Test func filtersNarrowTheList() throws {
    let run = try CommandRun(["methods", "--family", "linear-attention", "--kind", "mixer", "--search", "GATED attention", "--json"])
    let found = try #require(run.json.arrayValue)
    #expect(found.contains { $0["id"] == "gla" })
    for method in found {
      #expect(method["family"] == "linear-attention" && method["kind"] == "mixer")
    }
    let planned = try #require(CommandRun(["methods", "--status", "planned", "--json"]).json.arrayValue)
    #expect(planned.count == Catalog.all.count { $0.status == .planned })
  }

  @Test func nothingFoundIsNoError() throws {
    let run = try CommandRun(["methods", "--search", "zzzzqqqq"])
    #expect(run.status == 0)
    #expect(run.output == "0 ready, 0 planned (of \(Catalog.all.count) methods)\n")
    #expect(try CommandRun(["methods", "--search", "zzzzqqqq", "--json"]).json == [])
  }

  @Test func aWrongFilterSuggestsTheNearest() throws {
    try CommandRun(["methods", "--family", "linear-atention"]).expectRefusal("\"linear-attention\"", "--family")
    try CommandRun(["methods", "--status", "redy"]).expectRefusal("Did you mean \"ready\"")
  }

  @Test func aReaderThatGoesAwayEndsItQuietly() throws {
    // More than a pipe holds, so that writing is still going on when the reader is gone.
    for _ in 0..<3 {
      let run = try CommandRun(shell: #""$MARTLET" methods --json | head -n 1"#)
      #expect(run.status == 0)
      #expect(run.output == "[\n")
      #expect(run.errors.isEmpty, "\(run.errors)")
    }
  }
}
