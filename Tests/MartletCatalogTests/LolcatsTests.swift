import Foundation
import MartletTraining
import Testing

@testable import MartletCatalog

/// What `make_lolcats_fixtures.py` computed by the paper's equations in float64, and what probe gives.
@Suite struct LolcatsProbeTests {
  static let cases = ((try? FileManager.default.contentsOfDirectory(atPath: MixerProbeTests.folder)) ?? [])
    .filter { $0.hasPrefix("lolcats_") && $0.hasSuffix(".safetensors") }.sorted()

  @Test func thereAreFixtures() { #expect(Self.cases.count >= 5) }

  @Test(arguments: cases, ["float32", "float64"]) func agreesWithTheEquations(_ name: String, _ dtype: String) throws {
    let file = try SafetensorsFile(MixerProbeTests.folder + "/" + name)
    let tensors = try file.tensors()
    let inputs = tensors.filter { !$0.key.hasPrefix("expected.") }
    let expected = Dictionary(
      uniqueKeysWithValues: tensors.filter { $0.key.hasPrefix("expected.") }.map { (String($0.key.dropFirst("expected.".count)), $0.value) }
    )
    let allowed = dtype == "float64" ? 1e-7 : 1e-5
    let configuration = try JSONValue.parse(try #require(file.metadata["configuration"]))
    for mode in try #require(file.metadata["modes"]).split(separator: ",") {
      var object = try #require(configuration.objectValue)
      object["mode"] = .string(String(mode))
      object["dtype"] = .string(dtype)
      let found = try Catalog.implementation("lolcats").probe(configuration: .object(object), tensors: inputs)
      #expect(Set(found.keys) == Set(expected.keys))
      for (key, tensor) in found {
        let reference = try #require(expected[key])
        #expect(tensor.shape == reference.shape, "\(key)")
        let error = MixerProbeTests.error(tensor, reference)
        #expect(error <= allowed, "\(name), mode \(mode), \(dtype): \(key) is off by \(error), allowed are \(allowed)")
      }
    }
  }

  @Test func wrongTensorsAreRefusedByName() throws {
    let implementation = try Catalog.implementation("lolcats")
    let x = Tensor.ones([1, 5, 8])
    func message(_ configuration: JSONValue, _ tensors: [String: Tensor]) -> String {
      do { return "accepted, giving \(try implementation.probe(configuration: configuration, tensors: tensors).keys)" } catch {
        return "\(error)"
      }
    }
    #expect(message(["heads": 2], ["x": x, "weight.key_mop.weight": x]).contains("Did you mean \"weight.key_map.weight\""))
    #expect(message(["heads": 2], ["x": x, "weight.window_factor": x]).contains("expected [2]"))
    #expect(message(["heads": 2], ["y": x]).contains("\"x\""))
    #expect(message(["heads": 2, "windw": 3], ["x": x]).contains("Did you mean \"window\""))
    #expect(message(["heads": 2, "output_factor": 0], ["x": x]).contains("positive"))
    #expect(message(["heads": 3], ["x": x]).contains("multiple"))
  }
}

@Suite struct LolcatsReproductionTests {
  private func small() -> LolcatsExperiment {
    LolcatsExperiment(seeds: [2], pretrainingSteps: 3, steps: 4, batchSize: 2, length: 24, heldOut: 4, textBytes: 4000)
  }

  @Test func linearisingInMiniature() throws {
    var lines: [String] = []
    let reproduction = try small().run { lines.append($0) }
    #expect(reproduction.id == "lolcats")
    #expect(reproduction.claim == (try Catalog.entry("lolcats").claim))
    #expect(reproduction.arms.map(\.name) == LolcatsExperiment.arms)
    #expect(lines.count == 6, "a line for each arm: \(lines)")
    let losses = try reproduction.arms.map { try #require($0.metrics["loss"]) }
    #expect(losses.allSatisfy { $0.isFinite && $0 > 0 })
    let holds = LolcatsExperiment.holds(
      base: losses[0], swap: losses[1], transfer: losses[2], transferAndLoRA: losses[3], lora: losses[4], loraAndMaps: losses[5])
    #expect(reproduction.verdict == (holds ? .holds : .fails), "losses \(losses)")
    // Two maps of 16 columns on 16 channels and a factor for each of four heads; rank 4 on four square layers of 64; three layers.
    let (maps, adapters) = (3 * (2 * 4 * 16 * 16 + 4), 3 * 4 * 4 * 128)
    #expect(
      reproduction.arms.map { $0.metrics["trained_parameters"] }
        == [nil, nil, maps, adapters, adapters, maps + adapters].map { $0.map(Double.init) })
  }

  @Test func theVerdictFollowsEveryLoss() {
    func holds(_ base: Double, _ swap: Double, _ transfer: Double, _ both: Double, _ lora: Double, _ joint: Double) -> Bool {
      LolcatsExperiment.holds(base: base, swap: swap, transfer: transfer, transferAndLoRA: both, lora: lora, loraAndMaps: joint)
    }
    #expect(holds(2.912, 2.953, 2.919, 2.915, 2.942, 2.926))
    #expect(!holds(2.912, 2.953, 2.914, 2.915, 2.942, 2.926), "LoRA must help after the transfer")
    #expect(!holds(2.912, 2.953, 2.954, 2.915, 2.942, 2.926), "the transfer must help")
    #expect(!holds(2.912, 2.953, 2.919, 2.915, 2.942, 2.914), "both at once must not be better")
    #expect(!holds(2.912, 2.953, 2.919, 2.915, 2.920, 2.926), "LoRA alone must not be better than both at once")
    #expect(!holds(2.912, 2.953, 2.940, 2.930, 2.942, 2.935), "less than 0.6 of the gap")
    #expect(!holds(2.912, 2.953, .nan, 2.915, 2.942, 2.926))
  }

  @Test func theTextOfAnExperimentCanBeGiven() throws {
    #expect(try ExperimentText.given([:]) == nil)
    let file = FileManager.default.temporaryDirectory.appendingPathComponent("text-\(UUID().uuidString).txt")
    try Data("to be".utf8).write(to: file)
    defer { try? FileManager.default.removeItem(at: file) }
    let given = try ExperimentText.given([ExperimentText.variable: file.path])
    #expect(given?.bytes == Data("to be".utf8) && given?.name == file.lastPathComponent)
    #expect(throws: TensorError.self) { try ExperimentText.given([ExperimentText.variable: file.path + ".not"]) }
  }
}
