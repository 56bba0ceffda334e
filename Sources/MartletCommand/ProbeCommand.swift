import ArgumentParser
import Foundation
import MartletCatalog
import MartletTraining

struct ProbeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "probe",
    abstract: "Run a method on tensors from a safetensors file.",
    discussion: """
      `martlet describe ID` names the tensors read and written, the configuration and the parameters. The output file is written \
      whole or not at all.

      Example: martlet probe gla --config '{"heads": 2}' --in in.safetensors --out out.safetensors
      """)

  @Argument(help: "The method's id.", completion: .list(CatalogArguments.readyIDs))
  var id: String

  @Option(help: "Configuration: a JSON file, or JSON itself.", completion: .file(extensions: ["json"]))
  var config: String?

  @Option(name: .customLong("in"), help: "Tensors to read.", completion: .file(extensions: ["safetensors"]))
  var input: String

  @Option(name: .customLong("out"), help: "File to write.", completion: .file(extensions: ["safetensors"]))
  var output: String

  @OptionGroup var compute: ComputeOptions

  @Flag(help: "Print a JSON object with the tensors written.")
  var json = false

  func run() throws {
    compute.apply()
    let implementation = try Catalog.implementation(id)
    let configuration = try CatalogArguments.configuration(config)
    try OutputFile.check(output, option: "--out")
    let notice = InterruptNotice { [output] in Output.note("interrupted: \(output) is not written") }
    let tensors = try SafetensorsFile(input).tensors()
    let results = try withTorchErrors { try implementation.probe(configuration: configuration, tensors: tensors) }
    try notice.whole { try Safetensors.save(results, to: output) }
    report(results.sorted { $0.key < $1.key })
  }

  private func report(_ results: [(key: String, value: Tensor)]) {
    if json {
      let tensors = results.map { name, tensor -> JSONValue in
        ["name": .string(name), "dtype": .string("\(tensor.dtype)"), "shape": Output.json(tensor.shape)]
      }
      Output.json(["id": .string(id), "out": .string(output), "tensors": .array(tensors)])
      return
    }
    var table = TerminalTable([.init("tensor"), .init("shape"), .init("type")])
    for (name, tensor) in results { table.add([.init(name), .init(Output.shape(tensor.shape)), "\(tensor.dtype)"]) }
    print(table.rendered() + "\n\n\(results.count) tensors written to \(output)")
  }
}
