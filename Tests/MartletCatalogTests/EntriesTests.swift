import Martlet
import MartletCatalog
import Testing

@Suite struct EntriesTests {
  @Test func everyPaperOfTheSheetsHasOneEntry() {
    let papers = MethodEntry.Sheet.allCases.filter { $0 != .baselines }
    // Recurrent mixers, attention, adapters, compression, training, vision, learning, domains.
    #expect(papers.map(\.entries.count) == [14, 16, 20, 18, 16, 15, 11, 14])
    #expect(papers.flatMap(\.entries).count == 124)
    #expect(MethodEntry.Sheet.baselines.entries.map(\.id) == ["softmax", "linear", "s4d", "lmu", "mamba"])
    #expect(Catalog.all.count == 129)
    #expect(Set(Catalog.all.map(\.id)).count == 129, "an id is used twice")
    #expect(Set(Catalog.all.map(\.title)).count == 129, "a title is used twice")
    #expect(Set(Catalog.all.compactMap(\.arxiv)).count == 129, "an arXiv id is used twice or missing")
    for sheet in MethodEntry.Sheet.allCases {
      for entry in sheet.entries { #expect(entry.sheet == sheet, "\(entry.id)") }
    }
  }

  @Test(arguments: Catalog.all.map(\.id)) func fieldsAreWellFormed(id: String) throws {
    let entry = try Catalog.entry(id)
    #expect(entry.id.allSatisfy { $0.isLowercase || $0.isNumber || "-+".contains($0) }, "\(entry.id)")
    #expect((2017...2026).contains(entry.year))
    let arxiv = try #require(entry.arxiv)
    let parts = arxiv.split(separator: ".")
    #expect(parts.count == 2 && parts[0].count == 4 && parts[1].count == 5 && parts.joined().allSatisfy(\.isNumber), "\(arxiv)")
    // An identifier begins with the year of the first version; a venue's year may be later.
    let firstYear = try #require(Int("20" + arxiv.prefix(2)))
    #expect((firstYear...firstYear + 1).contains(entry.year), "\(id): \(entry.year), arXiv \(arxiv)")
    #expect(entry.claim.hasSuffix(".") && !entry.claim.contains("\n") && !entry.claim.contains("  "), "\(entry.claim)")
    #expect((60...320).contains(entry.claim.count), "\(id): \(entry.claim.count) characters")
    #expect(!entry.title.contains("\n") && !entry.title.contains("  ") && !entry.title.hasSuffix("."), "\(entry.title)")
  }

  @Test func everyFamilyAndKindIsUsed() {
    #expect(Set(Catalog.all.map(\.family)) == Set(MethodEntry.Family.allCases))
    #expect(Set(Catalog.all.map(\.kind)) == Set(MethodEntry.Kind.allCases))
  }

  @Test func statusFollowsTheRegistry() throws {
    for entry in Catalog.all {
      #expect((entry.status == .ready) == (Catalog.implementations[entry.id] != nil))
    }
    for id in Catalog.implementations.keys { _ = try Catalog.entry(id) }
  }

  @Test func jsonHasExactlyTheAgreedKeys() throws {
    let list = try #require(try JSONValue.parse(Catalog.json.serialized(indentation: 2)).arrayValue)
    #expect(list.count == 129)
    for value in list {
      #expect(value.objectValue?.keys == ["id", "title", "year", "arxiv", "family", "kind", "status", "claim"])
      #expect(["ready", "planned"].contains(value["status"]?.stringValue))
    }
    let gla = try #require(list.first { $0["id"] == "gla" })
    #expect(gla["title"] == "Gated Linear Attention Transformers with Hardware-Efficient Training")
    #expect(gla["year"] == 2023 && gla["arxiv"] == "2312.06635" && gla["kind"] == "mixer")
  }

  @Test func anUnknownIdSuggestsTheNearest() throws {
    #expect(try Catalog.entry("dsi++").id == "dsi++")
    let error = #expect(throws: UnknownMethod.self) { try Catalog.entry("deltanett") }
    #expect(error?.suggestions.first == "deltanet")
    #expect("\(error!)".contains("\"deltanet\""))
    #expect(throws: UnknownMethod.self) { try Catalog.entry("") }
    let strange = #expect(throws: UnknownMethod.self) { try Catalog.entry("qqqqqqqqqqqq") }
    #expect(strange?.suggestions == [])
    #expect("\(strange!)".contains("martlet methods"))
  }

  @Test func aPlannedMethodCannotBeRun() throws {
    let planned = try #require(Catalog.all.first { $0.status == .planned })
    #expect(throws: MethodNotReady.self) { try Catalog.implementation(planned.id) }
  }
}

@Suite struct ConfigurationTests {
  private struct Sample: MethodImplementation {
    let configurationKeys = [
      ConfigurationKey("width", .integer, default: nil, "channels"),
      ConfigurationKey("heads", .integer, default: 4, "heads"),
      ConfigurationKey("gate", .string, default: "channel", "gate", choices: ["none", "channel"]),
      ConfigurationKey("window", .integer, default: .null, "window length, null for none"),
    ]
    let source = "none"
    func parameterShapes(configuration: JSONValue) throws -> [(key: String, shape: [Int])] { [] }
    func probe(configuration: JSONValue, tensors: [String: Tensor]) throws -> [String: Tensor] { tensors }
    func reproduce(progress: (String) -> Void) throws -> Reproduction {
      Reproduction(id: "x", claim: "c", inequality: "a < b", holds: false, seconds: 1, seeds: [0], arms: [])
    }
  }

  @Test func defaultsAreFilledInOrder() throws {
    let full = try Sample().completed(["heads": 2, "width": 8])
    #expect(full.serialized() == #"{"width":8,"heads":2,"gate":"channel","window":null}"#)
  }

  @Test func wrongConfigurationsAreRefused() {
    func message(_ configuration: JSONValue) -> String {
      do {
        return "accepted \(try Sample().completed(configuration))"
      } catch { return "\(error)" }
    }
    #expect(message(["widht": 8]) == "unknown configuration key \"widht\". Did you mean \"width\"?")
    #expect(message([:]).contains("\"width\""))
    #expect(message(["width": 2.5]).contains("type integer, not 2.5"))
    #expect(message(["width": 8, "gate": "some"]).contains("one of none, channel"))
    #expect(message([1]).contains("must be an object"))
  }

  @Test func reproductionsPrintTheAgreedObject() {
    let reproduction = Reproduction(
      id: "x", claim: "c", inequality: "a < b", holds: true, seconds: 1.5, seeds: [0, 1],
      arms: [.init(name: "a", metrics: ["loss": 0.5, "accuracy": 1])])
    #expect(
      reproduction.json.serialized()
        == #"{"id":"x","claim":"c","inequality":"a < b","verdict":"holds","seconds":1.5,"seeds":[0,1],"#
        + #""arms":[{"name":"a","metrics":{"accuracy":1.0,"loss":0.5}}]}"#)
  }
}
