import MartletCatalog
import MartletTraining
import Testing

@Suite struct DescribeTests {
  private static let planned = Catalog.all.first { $0.status == .planned && !MixerKind.all.map(\.name).contains($0.id) }!

  @Test func everyMethodAndMixerIsDescribed() throws {
    // One process a method would take long: the first of each kind, and every mixer.
    var ids: [String] = []
    for kind in MethodEntry.Kind.allCases { ids += Catalog.all.first { $0.kind == kind }.map { [$0.id] } ?? [] }
    for name in ids + MixerKind.all.map(\.name) {
      let run = try CommandRun(["describe", name, "--json"])
      #expect(run.status == 0, "\(name): \(run.errors)")
      let object = try run.json
      #expect(object["id"] == .string(name) || object["name"] == .string(name))
    }
  }

  @Test func textOfAPlannedMethodHasClaimAndContract() throws {
    let entry = Self.planned
    let run = try CommandRun(["describe", entry.id])
    #expect(run.status == 0)
    #expect(run.output.contains(entry.title))
    #expect(run.output.contains("planned"))
    #expect(run.output.contains("reads: "))
    // The claim is broken into lines.
    #expect(run.output.split(whereSeparator: \.isWhitespace).joined(separator: " ").contains(entry.claim))
  }

  @Test func aMixersShapesFollowItsOptions() throws {
    func shapes(_ config: String) throws -> [JSONValue] {
      try #require(CommandRun(["describe", "window", "--config", config, "--json"]).json["parameters"]?.arrayValue)
    }
    let (plain, grouped) = (try shapes("{}"), try shapes(#"{"kv_heads": 1}"#))
    #expect(plain.count == grouped.count && plain != grouped)
  }

  @Test func wrongConfigurationsAreRefused() throws {
    try CommandRun(["describe", "window", "--config", #"{"windw": 3}"#]).expectRefusal("windw", "\"window\"")
    try CommandRun(["describe", "window", "--config", #"{"heads": 3}"#]).expectRefusal("64", "3 heads")
    try CommandRun(["describe", "window", "--config", "{"]).expectRefusal("--config", "byte 1")
    try CommandRun(["describe", "window", "--config", "absent.json"]).expectRefusal("absent.json")
    try CommandRun(["describe", Self.planned.id, "--config", "{}"]).expectRefusal("planned")
    try CommandRun(["describe", "tasks", "--config", "{}"]).expectRefusal("tasks")
  }

  @Test func tasksAreListed() throws {
    let run = try CommandRun(["describe", "tasks"])
    #expect(run.output == TaskSpecification.usage + "\n")
    #expect(try CommandRun(["describe", "tasks", "--json"]).json["usage"] == .string(TaskSpecification.usage))
  }

  @Test func anUnknownNameSuggestsMethodsAndMixers() throws {
    try CommandRun(["describe", "deltanett"]).expectRefusal("\"deltanet\"")
    try CommandRun(["describe", "softmaxx"]).expectRefusal("\"softmax\"")
  }
}
