import MartletCatalog
import Testing

@Suite struct UsageTests {
  @Test func helpAndVersionSucceed() throws {
    for arguments in [[], ["--help"], ["help", "probe"], ["methods", "--help"], ["runs", "show", "--help"], ["--version"]] {
      let run = try CommandRun(arguments)
      #expect(run.status == 0, "\(arguments): \(run.errors)")
      #expect(!run.output.isEmpty && run.errors.isEmpty)
    }
  }

  @Test func everyCommandsHelpHasAnExample() throws {
    for words in [
      ["methods"], ["describe"], ["probe"], ["reproduce"], ["runs"], ["generate"], ["embed"], ["evaluate"], ["tokenize"], ["inspect"],
      ["convert"],
    ]
      + ["list", "show", "diff", "delete"].map({ ["runs", $0] })
    {
      #expect(try CommandRun(words + ["--help"]).output.contains("Example: martlet \(words.joined(separator: " "))"), "\(words)")
    }
  }

  @Test(arguments: ["bash", "zsh", "fish"]) func completionsNameTheMethods(shell: String) throws {
    let run = try CommandRun(["--generate-completion-script", shell])
    #expect(run.status == 0)
    #expect(run.output.contains("deltanet") && run.output.contains("linear-attention"))
  }

  @Test func slipsAreRefusedWithTheNearest() throws {
    try CommandRun(["metods"]).expectRefusal("\"methods\"")
    try CommandRun(["methods", "--jsn"]).expectRefusal("--json")
    try CommandRun(["methods", "stray"]).expectRefusal("stray")
    try CommandRun(["probe", "gla"]).expectRefusal("--in")
    try CommandRun(["runs", "shwo"]).expectRefusal("shwo")
  }

  @Test func reproduceRefusesBeforeItWorks() throws {
    try CommandRun(["reproduce"]).expectRefusal("--all")
    try CommandRun(["reproduce", "--all", "gla"]).expectRefusal("not both")
    // The first id could run; the second is found to be wrong before it does.
    try CommandRun(["reproduce", "gla", "deltanett", "--json"]).expectRefusal("\"deltanet\"")
    let planned = try #require(Catalog.all.first { $0.status == .planned }).id
    try CommandRun(["reproduce", planned]).expectRefusal(planned, "planned")
  }

  @Test func anInterruptedReproductionStillPrintsJSON() throws {
    let run = try CommandRun(
      shell: """
        "$MARTLET" reproduce gla s4 --json --threads 1 &
        while kill -INT $! 2>/dev/null; do sleep 0.05; done
        wait $!
        """)
    #expect(run.status == 130, "\(run.errors)")
    #expect(try run.json == [])
    #expect(run.errors.contains("[1/2] gla") && run.errors.contains("no verdict was reached"))
  }

  @Test func aClosedStandardErrorIsNoCrash() throws {
    let run = try CommandRun(shell: #""$MARTLET" metods 2>&-"#)
    #expect(run.status == 2)
  }
}
