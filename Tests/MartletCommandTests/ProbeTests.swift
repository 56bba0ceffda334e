import Foundation
import MartletCatalog
import Testing

@Suite struct ProbeTests {
  /// The methods that take x [batch, length, width] and grad_y.
  static let mixers = Catalog.all.filter { $0.kind == .mixer && $0.status == .ready }.map(\.id)

  private func writeInput(_ path: String, length: Int = 12, width: Int = 16) throws -> [String: Tensor] {
    let generator = RandomGenerator(seed: 3)
    let tensors = [
      "x": Tensor.randomNormal([2, length, width], generator: generator),
      "grad_y": Tensor.randomNormal([2, length, width], generator: generator),
    ]
    try Safetensors.save(tensors, to: path)
    return tensors
  }

  @Test func aReadyMixerExists() { #expect(!Self.mixers.isEmpty) }

  @Test(arguments: mixers) func writesWhatTheImplementationComputes(id: String) throws {
    try withTemporaryFolder { folder in
      let (input, output, config) = (folder + "/in.safetensors", folder + "/out.safetensors", folder + "/c.json")
      let tensors = try writeInput(input)
      try #"{"width": 16}"#.write(toFile: config, atomically: true, encoding: .utf8)
      let run = try CommandRun(["probe", id, "--config", config, "--in", input, "--out", output, "--threads", "1", "--json"])
      #expect(run.status == 0, "\(run.errors)")
      let expected = try Catalog.implementation(id).probe(configuration: ["width": 16], tensors: tensors)
      let written = try SafetensorsFile(output).tensors()
      #expect(Set(written.keys) == Set(expected.keys))
      #expect(expected.keys.contains("y") && expected.keys.contains("grad_x"))
      for (name, tensor) in expected {
        let other = try #require(written[name])
        #expect(other.shape == tensor.shape && other.dtype == tensor.dtype, "\(name)")
        let (a, b) = (other.toArray(Float.self), tensor.toArray(Float.self))
        let scale = max(b.map(abs).max() ?? 0, 1e-30)
        let error = zip(a, b).map { abs($0 - $1) }.max() ?? 0
        // The sums of more threads may be grouped in another way.
        #expect(error <= 1e-5 * scale, "\(name): \(error) of \(scale), allowed 1e-5")
      }
      let listed = try #require(run.json["tensors"]?.arrayValue)
      #expect(listed.compactMap { $0["name"]?.stringValue } == expected.keys.sorted())
      #expect(try FileManager.default.contentsOfDirectory(atPath: folder).count == 3, "a temporary file is left")
    }
  }

  @Test func configurationMayBeGivenInPlaceOrLeftOut() throws {
    let id = try #require(Self.mixers.first)
    try withTemporaryFolder { folder in
      let (input, output) = (folder + "/in.safetensors", folder + "/out.safetensors")
      _ = try writeInput(input)
      let plain = try CommandRun(["probe", id, "--in", input, "--out", output])
      #expect(plain.status == 0, "\(plain.errors)")
      #expect(plain.output.contains("[2, 12, 16]"))
      let configured = try CommandRun(["probe", id, "--config", #" {"width": 16}"#, "--in", input, "--out", output])
      #expect(configured.status == 0, "\(configured.errors)")
    }
  }

  @Test func unreadableInputIsRefusedAndNothingWritten() throws {
    let id = try #require(Self.mixers.first)
    try withTemporaryFolder { folder in
      let (input, output) = (folder + "/in.safetensors", folder + "/out.safetensors")
      func probe(_ path: String) throws -> CommandRun { try CommandRun(["probe", id, "--in", path, "--out", output]) }
      try probe(folder + "/absent.safetensors").expectRefusal("absent.safetensors")
      try probe(folder).expectRefusal(folder)
      _ = try writeInput(input)
      let whole = try Data(contentsOf: URL(fileURLWithPath: input))
      let damaged: [(String, Data)] = [
        ("empty", Data()), ("cut", whole.dropLast(5)), ("length", Data(repeating: 0xFF, count: 8) + whole.dropFirst(8)),
        ("text", Data("this is no checkpoint at all".utf8)),
      ]
      for (name, bytes) in damaged {
        let path = folder + "/\(name).safetensors"
        try bytes.write(to: URL(fileURLWithPath: path))
        try probe(path).expectRefusal(path)
      }
      #expect(!FileManager.default.fileExists(atPath: output))
    }
  }

  @Test func unfitTensorsConfigurationsAndPathsAreRefused() throws {
    let id = try #require(Self.mixers.first)
    try withTemporaryFolder { folder in
      let (input, output) = (folder + "/in.safetensors", folder + "/out.safetensors")
      _ = try writeInput(input)
      func probe(_ arguments: String..., output: String? = nil) throws -> CommandRun {
        try CommandRun(["probe", id, "--in", input, "--out", output ?? folder + "/out.safetensors"] + arguments)
      }
      try probe("--config", #"{"widht": 16}"#).expectRefusal("widht", "\"width\"")
      try probe("--config", #"{"width": 32}"#).expectRefusal("32")
      try probe("--config", #"{"width": }"#).expectRefusal("--config", "byte")
      try probe("--config", folder + "/absent.json").expectRefusal("absent.json")
      try probe("--threads", "-1").expectRefusal("threads")
      try probe(output: folder).expectRefusal("is a folder")
      try probe(output: folder + "/absent/out.safetensors").expectRefusal("there is no folder")
      try Safetensors.save(["y": Tensor([1, 2] as [Float], [2])], to: input)
      try probe().expectRefusal("\"x\"")
      #expect(!FileManager.default.fileExists(atPath: output))
    }
  }

  @Test func plannedAndUnknownMethodsAreRefused() throws {
    let planned = try #require(Catalog.all.first { $0.status == .planned }).id
    try CommandRun(["probe", planned, "--in", "a", "--out", "b"]).expectRefusal(planned, "planned")
    try CommandRun(["probe", "deltanett", "--in", "a", "--out", "b"]).expectRefusal("\"deltanet\"")
  }

  @Test func anInterruptionSaysThatNothingIsWritten() throws {
    try #require(Self.mixers.contains("gla"))
    try withTemporaryFolder { folder in
      let (input, output) = (folder + "/in.safetensors", folder + "/out.safetensors")
      // Token by token with gradients: minutes, so that the signals below come before the end.
      _ = try writeInput(input, length: 200_000, width: 16)
      let run = try CommandRun(
        shell: """
          "$MARTLET" probe gla --config '{"mode": "recurrent"}' --in \(input) --out \(output) &
          while kill -INT $! 2>/dev/null; do sleep 0.05; done
          wait $!
          """)
      #expect(run.status == 130, "\(run.errors)")
      #expect(run.errors.contains("interrupted: \(output) is not written"))
      #expect(!FileManager.default.fileExists(atPath: output))
    }
  }
}
