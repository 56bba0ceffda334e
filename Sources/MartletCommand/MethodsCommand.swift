import ArgumentParser
import MartletCatalog
import MartletTraining

struct MethodsCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "methods",
    abstract: "List the papers whose methods Martlet knows.",
    discussion: """
      “ready” methods can be probed and reproduced; “planned” ones have a description only. Titles are shortened to the terminal's \
      width, and whole when the output goes to a file or a pipe.

      Example: martlet methods --kind mixer --search 'gated attention'
      """)

  @Option(
    help: "Only this family, e.g. linear-attention.", completion: .list(MethodEntry.Family.allCases.map(\.rawValue)),
    transform: CatalogArguments.parse)
  var family: MethodEntry.Family?

  @Option(
    help: "Only this kind, e.g. mixer.", completion: .list(MethodEntry.Kind.allCases.map(\.rawValue)), transform: CatalogArguments.parse)
  var kind: MethodEntry.Kind?

  @Option(
    help: "Only ready or only planned methods.", completion: .list(["ready", "planned"]),
    transform: { try CatalogArguments.parse($0, among: [.ready, .planned]) })
  var status: MethodEntry.Status?

  @Option(help: "Only methods with all these words in id, title, claim or arXiv number.")
  var search: String?

  @Flag(help: "Print a JSON array.")
  var json = false

  func run() throws {
    let chosen = Catalog.all.filter(isWanted)
    if json {
      Output.json(JSONValue.array(chosen.map(\.json)))
      return
    }
    if !chosen.isEmpty { print(table(chosen).rendered() + "\n") }
    let ready = chosen.count { $0.status == .ready }
    let counts = "\(ready) ready, \(chosen.count - ready) planned"
    print(chosen.count == Catalog.all.count ? counts : "\(counts) (of \(Catalog.all.count) methods)")
  }

  private func isWanted(_ entry: MethodEntry) -> Bool {
    if let family, entry.family != family { return false }
    if let kind, entry.kind != kind { return false }
    if let status, entry.status != status { return false }
    let text = [entry.id, entry.title, entry.claim, entry.arxiv ?? ""].joined(separator: "\n").lowercased()
    return (search ?? "").lowercased().split(separator: " ").allSatisfy { text.contains($0) }
  }

  private func table(_ entries: [MethodEntry]) -> TerminalTable {
    var table = TerminalTable([
      .init("id"), .init("year", .right), .init("title"), .init("family"), .init("kind"), .init("status"),
    ])
    // What the other columns and the gaps between all leave to the title.
    let others = [
      entries.map(\.id.count).max() ?? 0, 4, entries.map(\.family.rawValue.count).max() ?? 0, entries.map(\.kind.rawValue.count).max() ?? 0,
      "planned".count,
    ]
    let titleWidth = Output.terminalWidth.map { max(16, $0 - others.reduce(10, +)) } ?? Int.max
    for entry in entries {
      let emphasis: TerminalTable.Emphasis = entry.status == .ready ? .strong : .none
      table.add([
        .init(entry.id, emphasis), "\(entry.year)", .init(Output.shortened(entry.title, to: titleWidth)), .init(entry.family.rawValue),
        .init(entry.kind.rawValue), .init(entry.status.rawValue, entry.status == .ready ? .strong : .faint),
      ])
    }
    return table
  }
}
