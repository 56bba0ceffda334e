import ArgumentParser
import Foundation
import MartletCatalog
import MartletTraining

struct DescribeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "describe",
    abstract: "Show a method or mixer whole: claim, configuration, parameters and contract; or the tasks.",
    discussion: """
      Takes a method's id (`martlet methods` lists them), a mixer's name or “tasks”. Parameter shapes are those of the default \
      configuration, or of --config.

      Example: martlet describe gla --config '{"heads": 2}'
      """)

  /// Everything that can be described, each name once.
  private static var names: [String] {
    let ids = CatalogArguments.ids
    return ids + MixerKind.all.map(\.name).filter { !ids.contains($0) } + ["tasks"]
  }

  @Argument(help: "A method's id, a mixer's name, or “tasks”.", completion: .list(Self.names))
  var name: String

  @Option(help: "Configuration for the parameter shapes: a JSON file, or JSON itself.", completion: .file(extensions: ["json"]))
  var config: String?

  @Flag(help: "Print a JSON object.")
  var json = false

  func run() throws {
    let configuration = try CatalogArguments.configuration(config)
    if name == "tasks" {
      guard config == nil else { throw ValidationError("tasks have no --config; their options follow a question mark: listops?small") }
      if json { Output.json(["usage": .string(TaskSpecification.usage)]) } else { print(TaskSpecification.usage) }
      return
    }
    let kind = MixerKind.all.first { $0.name == name }
    let entry = Catalog.all.first { $0.id == name }
    guard entry != nil || kind != nil else {
      let names = Self.names
      throw ValidationError(
        "no method or mixer is called “\(name)”.\(Suggestions.phrase(for: name, in: names)) "
          + "`martlet methods` lists the methods; mixers: \(MixerKind.all.map(\.name).joined(separator: ", "))")
    }
    // A mixer's options differ from those of the method it comes from; --config speaks of the method where that can be run.
    let method = try entry.map { try MethodDescription($0, configuration) }
    let mixer = try kind.map { try MixerDescription($0, entry?.status == .ready ? .null : configuration) }
    // A planned method has no configuration that could be given.
    if kind == nil && config != nil { _ = try Catalog.implementation(name) }
    if json {
      var object = method?.json ?? JSONObject()
      if let mixer { if method == nil { object = mixer.json } else { object["mixer"] = .object(mixer.json) } }
      Output.json(JSONValue.object(object))
    } else {
      // A method that is ready has shown its mixer's options and parameters already.
      let mixerText = method?.implementation == nil ? mixer?.text : mixer?.use
      print([method?.text, mixerText].compactMap { $0 }.joined(separator: "\n\n"))
    }
  }
}

/// A catalog entry with what its implementation says of itself.
private struct MethodDescription {
  let entry: MethodEntry
  let implementation: (any MethodImplementation)?
  let shapes: [(key: String, shape: [Int])]
  let contract: ProbeContract

  init(_ entry: MethodEntry, _ configuration: JSONValue) throws {
    self.entry = entry
    implementation = entry.implementation
    contract = ProbeContract(entry)
    shapes =
      try implementation.map { implementation in
        try withTorchErrors { try implementation.parameterShapes(configuration: configuration) }
      } ?? []
  }

  var json: JSONObject {
    var object = entry.json.objectValue ?? JSONObject()
    object["source"] = implementation.map { .string($0.source) } ?? .null
    object["configuration"] = implementation.map { configurationJSON($0.configurationKeys) } ?? .null
    object["parameters"] = implementation == nil ? .null : parametersJSON(shapes)
    object["probe"] = ["reads": .string(contract.reads), "writes": .string(contract.writes)]
    return object
  }

  var text: String {
    var blocks = [
      "\(Output.heading(entry.id))  \(entry.title)",
      Output.wrapped(
        "\(entry.year), \(entry.arxiv.map { "https://arxiv.org/abs/\($0)" } ?? "not on arXiv") · \(entry.kind.rawValue) · "
          + "\(entry.family.rawValue) · \(entry.status.rawValue)"),
      Output.heading("Claim") + "\n" + Output.wrapped(entry.claim),
    ]
    if let implementation {
      blocks.append(Output.heading("Equations") + "\n" + Output.wrapped(implementation.source))
      blocks.append(Output.heading("Configuration") + "\n" + configurationText(implementation.configurationKeys))
      blocks.append(Output.heading("Parameters") + "\n" + parametersText(shapes))
    }
    blocks.append(
      Output.heading("Probe") + "\n" + Output.wrapped("reads: \(contract.reads)") + "\n" + Output.wrapped("writes: \(contract.writes)")
        + (implementation == nil
          ? "" : "\n  martlet probe \(entry.id) --config c.json --in in.safetensors --out out.safetensors"))
    blocks.append(
      Output.heading("Reproduce") + "\n"
        + (implementation.map { $0.isReproducible ? "  martlet reproduce \(entry.id)" : "  no experiment: the method serves as a baseline" }
          ?? "  planned: it can't be run yet"))
    return blocks.joined(separator: "\n\n")
  }
}

/// A mixer that models take by name, with its options and its parameters at one site.
private struct MixerDescription {
  let kind: MixerKind
  /// The site whose parameter shapes are shown: causal, unless the mixer has no causal form.
  let site: MixerSite
  let shapes: [(key: String, shape: [Int])]

  init(_ kind: MixerKind, _ options: JSONValue) throws {
    let site = MixerSite(width: 64, heads: 4, isCausal: kind.directions.contains(.causal), length: 256)
    self.kind = kind
    self.site = site
    let mixer = try withTorchErrors { try kind(site, options: options, generator: RandomGenerator(seed: 0)) }
    shapes = mixer.parameters().map { ($0.name, $0.tensor.shape) }
  }

  var json: JSONObject {
    [
      "name": .string(kind.name), "summary": .string(kind.summary), "configuration": configurationJSON(kind.keys),
      "site": ["width": .integer(site.width), "heads": .integer(site.heads), "causal": .bool(site.isCausal)],
      "parameters": parametersJSON(shapes),
    ]
  }

  var text: String {
    [
      "\(Output.heading("The mixer \(kind.name)"))  \(kind.summary)",
      Output.heading("Options") + " (\(kind.name)?key=value&key=value)\n" + configurationText(kind.keys),
      Output.heading("Parameters") + " (width \(site.width), \(site.heads) heads, \(site.isCausal ? "causal" : "bidirectional"))\n"
        + parametersText(shapes),
      use,
    ].joined(separator: "\n\n")
  }

  /// How a model takes the mixer.
  var use: String {
    let mixers = kind.name == "softmax" ? "softmax" : "softmax,\(kind.name)"
    return Output.heading("In a model") + " (--mixers \(kind.name), or '\(kind.name)?key=value&key=value')\n"
      + "  martlet compare --task 'listops?small' --mixers \(mixers) --out runs/\(kind.name)"
  }
}

private func configurationJSON(_ keys: [ConfigurationKey]) -> JSONValue {
  .array(
    keys.map { key in
      [
        "key": .string(key.name), "type": .string(key.type.rawValue), "required": .bool(key.defaultValue == nil),
        "default": key.defaultValue ?? .null, "choices": .array(key.choices.map(JSONValue.string)), "meaning": .string(key.meaning),
      ]
    })
}

private func configurationText(_ keys: [ConfigurationKey]) -> String {
  guard !keys.isEmpty else { return "  none" }
  let rows = keys.map { key in
    let choices = key.choices.isEmpty ? "" : " (\(key.choices.joined(separator: ", ")))"
    return [key.name, key.type.rawValue, key.defaultValue?.serialized() ?? "required", key.meaning + choices]
  }
  let titles = ["key", "type", "default", "meaning"]
  // The last column takes what the others leave of the terminal's width, over as many lines as it needs.
  let others = (0..<3).map { column in (rows.map { Terminal.width($0[column]) } + [titles[column].count]).max() ?? 0 }.reduce(8, +)
  var table = TerminalTable(titles.map { .init($0) })
  for row in rows {
    for (line, meaning) in Output.lines(row[3], width: Output.terminalWidth.map { max(24, $0 - others) } ?? .max).enumerated() {
      table.add((line == 0 ? Array(row.prefix(3)) : ["", "", ""]).map { .init($0) } + [.init(meaning)])
    }
  }
  return indented(table.rendered())
}

private func parametersJSON(_ shapes: [(key: String, shape: [Int])]) -> JSONValue {
  .array(shapes.map { ["key": .string($0.key), "shape": Output.json($0.shape)] })
}

private func parametersText(_ shapes: [(key: String, shape: [Int])]) -> String {
  guard !shapes.isEmpty else { return "  none" }
  let width = shapes.map(\.key.count).max() ?? 0
  let lines = shapes.map { "  " + $0.key.padding(toLength: width, withPad: " ", startingAt: 0) + "  " + Output.shape($0.shape) }
  let count = shapes.reduce(0) { $0 + $1.shape.reduce(1, *) }
  return (lines + ["  \(Figure.grouped(count)) in all"]).joined(separator: "\n")
}

private func indented(_ text: String) -> String {
  text.split(separator: "\n", omittingEmptySubsequences: false).map { "  " + $0 }.joined(separator: "\n")
}
