import Foundation
import Martlet
import MartletCatalog
import Testing

/// What `make_mixer_fixtures.py` computed by the papers' equations in float64, and what probe gives.
@Suite struct MixerProbeTests {
  static let folder = Bundle.module.bundleURL.appendingPathComponent("Fixtures").path

  static let cases: [String] = ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? [])
    .filter { $0.hasPrefix("mixer_") && $0.hasSuffix(".safetensors") }.sorted()

  /// The mixers that can be probed, by id.
  static let mixers = Catalog.implementations.compactMapValues { $0 as? MixerImplementation }

  @Test func everyMixerHasFixtures() throws {
    let covered = try Set(Self.cases.map { try Fixture($0).id })
    #expect(Set(Self.mixers.keys).subtracting(covered).isEmpty, "without a fixture: \(Set(Self.mixers.keys).subtracting(covered))")
  }

  /// max |a − b| / max |b|
  static func error(_ found: Tensor, _ expected: Tensor) -> Double {
    let reference = expected.to(.float64)
    return (found.to(.float64) - reference).abs().max().item() / max(reference.abs().max().item(), 1e-30)
  }

  struct Fixture {
    let id: String
    let configuration: JSONValue
    let modes: [String]
    /// What float32 may differ by: 1e-5, more where the fixture says that the method amplifies rounding.
    let tolerance: Double
    let inputs: [String: Tensor]
    let expected: [String: Tensor]

    init(_ name: String) throws {
      let file = try SafetensorsFile(MixerProbeTests.folder + "/" + name)
      id = try #require(file.metadata["id"])
      configuration = try JSONValue.parse(#require(file.metadata["configuration"]))
      modes = try #require(file.metadata["modes"]).split(separator: ",").map(String.init)
      tolerance = file.metadata["float32_tolerance"].flatMap(Double.init) ?? 1e-5
      let tensors = try file.tensors()
      inputs = tensors.filter { !$0.key.hasPrefix("expected.") }
      expected = Dictionary(
        uniqueKeysWithValues: tensors.filter { $0.key.hasPrefix("expected.") }.map {
          (String($0.key.dropFirst("expected.".count)), $0.value)
        })
    }

    /// The worst error and its tensor. Outputs at padded positions don't count.
    func errors(mode: String, dtype: String) throws -> [(name: String, error: Double)] {
      var object = try #require(configuration.objectValue)
      object["mode"] = .string(mode)
      object["dtype"] = .string(dtype)
      let implementation = try Catalog.implementation(id)
      var found = try implementation.probe(configuration: .object(object), tensors: inputs)
      let forwardOnly = try implementation.probe(configuration: .object(object), tensors: inputs.filter { $0.key != "grad_y" })
      #expect(forwardOnly.keys.sorted() == ["y"])
      found["y without gradients"] = forwardOnly["y"]
      #expect(Set(found.keys) == Set(expected.keys).union(["y without gradients"]))
      return try found.sorted { $0.key < $1.key }.map { name, tensor in
        let reference = try #require(expected[name] ?? (name.hasPrefix("y") ? expected["y"] : nil), "\(name) isn't expected")
        #expect(tensor.shape == reference.shape, "\(name)")
        #expect(tensor.dtype == (dtype == "float64" ? .float64 : .float32), "\(name)")
        var compared = tensor
        if let mask = inputs["mask"], name.hasPrefix("y") { compared = compared * mask.expandedDimension(-1).to(compared.dtype) }
        return (name, MixerProbeTests.error(compared, reference))
      }
    }
  }

  @Test(arguments: cases) func agreesWithTheEquationsInFloat32(name: String) throws {
    let fixture = try Fixture(name)
    for mode in fixture.modes {
      for (tensor, error) in try fixture.errors(mode: mode, dtype: "float32") {
        #expect(
          error <= fixture.tolerance, "\(name), mode \(mode): \(tensor) is off by \(error), allowed are \(fixture.tolerance)")
      }
    }
  }

  /// The fixtures are stored in float32, which is the only difference left.
  @Test(arguments: cases) func agreesWithTheEquationsInFloat64(name: String) throws {
    let fixture = try Fixture(name)
    for mode in fixture.modes {
      for (tensor, error) in try fixture.errors(mode: mode, dtype: "float64") {
        #expect(error <= 1e-7, "\(name), mode \(mode): \(tensor) is off by \(error), allowed are 1e-7")
      }
    }
  }

  // MARK: Boundaries

  private func message(_ id: String, _ configuration: JSONValue, _ tensors: [String: Tensor]) -> String {
    do { return "accepted, giving \(try Catalog.implementation(id).probe(configuration: configuration, tensors: tensors).keys)" } catch {
      return "\(error)"
    }
  }

  private let x = Tensor.ones([2, 5, 8])

  @Test func wrongTensorsAreRefusedByName() {
    #expect(message("gla", [:], ["x": x, "weight.querry.weight": x]).contains("Did you mean \"weight.query.weight\""))
    #expect(message("gla", [:], ["x": x, "weights": x]).contains("has no tensor \"weights\""))
    #expect(
      message("softmax", ["heads": 2], ["x": x, "weight.key.weight": Tensor.ones([4, 8])])
        == "the tensor \"weight.key.weight\" has the shape [4, 8], expected [8, 8]")
    #expect(message("softmax", [:], ["X": x]).contains("\"x\""))
    #expect(message("softmax", [:], ["x": Tensor.ones([2, 8])]).contains("[batch, length, width]"))
    #expect(message("softmax", ["width": 16], ["x": x]).contains("16"))
    #expect(message("softmax", ["heads": 2], ["x": x, "grad_y": Tensor.ones([2, 5, 4])]).contains("grad_y has the shape [2, 5, 4]"))
    #expect(message("softmax", ["heads": 2], ["x": x, "mask": Tensor.ones([2, 5])]).contains("mask must be bool [2, 5]"))
    #expect(
      message("linear", ["heads": 2, "mode": "recurrent"], ["x": x, "mask": Tensor.ones([2, 5], dtype: .bool)]).contains(
        "takes no \"mask\""))
    #expect(message("linear", ["heads": 2, "mode": "recurrent", "causal": false], ["x": x]).contains("causal"))
    #expect(message("s4", ["length": 3], ["x": x, "grad_y": x]).contains("at least"))
    #expect(message("s4", ["state": 7], ["x": x]).contains("even"))
    #expect(message("gla", ["headz": 2], ["x": x]).contains("Did you mean \"heads\""))
    #expect(message("gla", ["heads": 3], ["x": x]).contains("multiple"))
    #expect(message("gla", ["heads": 0], ["x": x]).contains("positive"))
    #expect(message("gla", ["gate": "strong"], ["x": x]).contains("per_channel"))
  }

  @Test func weightsThatAreNotGivenComeFromTheSeed() throws {
    func y(_ seed: Int, _ weights: [String: Tensor] = [:]) throws -> Tensor {
      try #require(
        Catalog.implementation("gla").probe(
          configuration: ["heads": 2, "seed": .integer(seed)], tensors: weights.merging(["x": x]) { $1 })["y"])
    }
    #expect(try y(1).isEqual(to: y(1)))
    #expect(try !y(1).isEqual(to: y(2)))
    let output = Tensor.zeros([8, 8])
    #expect(try y(1, ["weight.output.weight": output]).abs().max().item() == 0)
  }

  @Test func describedParametersAreThoseThatProbeTakes() throws {
    for (id, implementation) in Self.mixers {
      let configuration: JSONValue = [
        "width": 8, "heads": 2, "length": 5, "causal": .bool(implementation.kind.directions.contains(.causal)),
      ]
      let shapes = try implementation.parameterShapes(configuration: configuration)
      let weights = Dictionary(uniqueKeysWithValues: shapes.map { ("weight." + $0.key, Tensor.full($0.shape, 0.1)) })
      let found = try implementation.probe(
        configuration: configuration, tensors: weights.merging(["x": x, "grad_y": x]) { $1 })
      #expect(Set(found.keys) == Set(["y", "grad_x"] + shapes.map { "grad." + $0.key }), "\(id)")
      #expect(!implementation.source.isEmpty)
      #expect(throws: ConfigurationError.self) { try implementation.parameterShapes(configuration: ["widht": 8]) }
    }
  }

  @Test func aMixerWithoutExperimentSaysSo() throws {
    let error = #expect(throws: NoExperiment.self) { try Catalog.implementation("softmax").reproduce { _ in } }
    #expect("\(error!)".contains("martlet probe softmax"))
  }
}
