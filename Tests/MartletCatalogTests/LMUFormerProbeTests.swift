import Foundation
import Martlet
import MartletCatalog
import Testing

/// What `make_lmuformer_fixtures.py` computed by the paper's equations in float64, and what probe gives.
@Suite struct LMUFormerProbeTests {
  static let cases: [String] = ((try? FileManager.default.contentsOfDirectory(atPath: MixerProbeTests.folder)) ?? [])
    .filter { $0.hasPrefix("lmuformer_") && $0.hasSuffix(".safetensors") }.sorted()

  @Test func thereAreFixturesOfBothForms() {
    #expect(Self.cases.count == 6 && Self.cases.contains { $0.contains("spiking") }, "\(Self.cases)")
  }

  @Test(arguments: cases, ["float32", "float64"]) func agreesWithTheEquations(name: String, dtype: String) throws {
    let file = try SafetensorsFile(MixerProbeTests.folder + "/" + name)
    let tensors = try file.tensors()
    let inputs = tensors.filter { !$0.key.hasPrefix("expected.") }
    let allowed = dtype == "float64" ? 1e-7 : 1e-5
    let configuration = try JSONValue.parse(#require(file.metadata["configuration"]))
    for mode in try #require(file.metadata["modes"]).split(separator: ",").map(String.init) {
      var object = try #require(configuration.objectValue)
      object["mode"] = .string(mode)
      object["dtype"] = .string(dtype)
      let found = try Catalog.implementation("lmuformer").probe(configuration: .object(object), tensors: inputs)
      #expect(Set(found.keys) == Set(tensors.keys.filter { $0.hasPrefix("expected.") }.map { String($0.dropFirst(9)) }))
      for (key, tensor) in found.sorted(by: { $0.key < $1.key }) {
        let expected = try #require(tensors["expected." + key])
        #expect(tensor.shape == expected.shape, "\(key)")
        // Norms make the gradients of the biases before them vanish.
        if expected.abs().max().item() < 1e-6 {
          #expect(tensor.abs().max().item() < 1e-5, "\(name), mode \(mode): \(key) must vanish")
          continue
        }
        let error = MixerProbeTests.error(tensor, expected)
        #expect(error <= allowed, "\(name), mode \(mode): \(key) is off by \(error), allowed are \(allowed)")
      }
    }
  }

  private func message(_ configuration: JSONValue, _ tensors: [String: Tensor]) -> String {
    do {
      return "accepted, giving \(try Catalog.implementation("lmuformer").probe(configuration: configuration, tensors: tensors).keys)"
    } catch { return "\(error)" }
  }

  @Test func wrongTensorsAreRefusedByName() {
    let small: JSONValue = ["width": 4, "classes": 3, "window": 5]
    let x = Tensor.ones([2, 5, 3])
    #expect(message(small, ["x": x]).hasPrefix("accepted"))
    #expect(message(small, [:]).contains("\"x\""))
    #expect(message(small, ["x": x, "weight.heat.bias": Tensor.ones([3])]).contains("Did you mean \"weight.head.bias\""))
    #expect(message(small, ["x": x, "weight.head.bias": Tensor.ones([4])]).contains("expected [3]"))
    #expect(message(small, ["x": x, "mask": Tensor.ones([2, 5])]).contains("mask must be bool [2, 5]"))
    #expect(message(small, ["x": x, "grad_y": Tensor.ones([2, 4])]).contains("expected [2, 3]"))
    #expect(message(["width": 4, "mode": "stream"], ["x": x, "mask": Tensor.ones([2, 5], dtype: .bool)]).contains("takes no \"mask\""))
    #expect(message(["width": 4, "channels": 2], ["x": x]).contains("x has 3 channels"))
    #expect(message(["width": 0], ["x": x]).contains("too small"))
  }

  @Test func describedParametersAreThoseThatProbeTakes() throws {
    let implementation = try Catalog.implementation("lmuformer")
    let configuration: JSONValue = ["width": 4, "classes": 3, "channels": 3, "spiking": true]
    let shapes = try implementation.parameterShapes(configuration: configuration)
    let weights = Dictionary(uniqueKeysWithValues: shapes.map { ("weight." + $0.key, Tensor.full($0.shape, 0.1)) })
    let found = try implementation.probe(
      configuration: configuration, tensors: weights.merging(["x": Tensor.ones([2, 5, 3]), "grad_y": Tensor.ones([2, 3])]) { $1 })
    #expect(Set(found.keys) == Set(["y", "grad_x"] + shapes.map { "grad." + $0.key }))
    #expect(!implementation.source.isEmpty)
  }
}
