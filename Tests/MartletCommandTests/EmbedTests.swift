import Foundation
import MartletCatalog
import MartletTokenizers
import Testing

@Suite struct EmbedTests {
  private let texts = ["hello you", "", "a b c d e f g", "abc!", "zz"]

  private func withModel<R>(_ body: (_ folder: String, _ model: String, _ lines: String) throws -> R) throws -> R {
    try withTemporaryFolder { folder in
      try body(
        folder, try TinyModel.make("minilm", in: folder, special: true),
        try TinyModel.write(texts.joined(separator: "\n") + "\n", to: folder + "/lines.txt"))
    }
  }

  private func distance(_ a: Tensor, _ b: Tensor) -> Double { (a - b).abs().max().item() }

  @Test func vectorsAreTheLibrarysInTheOrderOfTheLines() throws {
    try withModel { folder, model, lines in
      let out = folder + "/out.safetensors"
      let run = try CommandRun(["embed", model, "--input", lines, "--output", out, "--json"])
      #expect(run.status == 0 && run.errors.isEmpty, "\(run.errors)")
      #expect(try run.json["texts"]?.intValue == 5)
      let file = try SafetensorsFile(out)
      #expect(file.names == ["embeddings"])
      let found = try file.tensor("embeddings")
      let encoder = try #require(try PretrainedModel.load(model).textEncoder)
      let embedder = try TextEmbedder(encoder: encoder, tokenizer: try Tokenizer.load(model))
      #expect(found.shape == [5, encoder.backbone.configuration.width] && found.dtype == .float32)
      #expect(distance(found, try embedder.embed(texts)) < 1e-5)
      // One at a time, without neighbours.
      for (i, text) in texts.enumerated() { #expect(distance(found[i], try embedder.embed([text])[0]) < 1e-5, "\(text)") }
      let small = folder + "/small.safetensors"
      #expect(try CommandRun(["embed", model, "--input", lines, "--output", small, "--batch-tokens", "4"]).status == 0)
      #expect(distance(found, try SafetensorsFile(small).tensor("embeddings")) < 1e-5)
    }
  }

  @Test func poolingAndLengthCanBeSaid() throws {
    try withModel { folder, model, lines in
      func embeddings(_ options: String...) throws -> Tensor {
        let out = folder + "/\(options.joined()).safetensors"
        let run = try CommandRun(["embed", model, "--input", lines, "--output", out] + options)
        #expect(run.status == 0, "\(run.errors)")
        return try SafetensorsFile(out).tensor("embeddings")
      }
      let usual = try embeddings()
      func lengths(_ x: Tensor) -> [Float] { x.square().sum(axis: -1).sqrt().toArray(Float.self) }
      let scaled = try embeddings("--normalize")
      #expect(lengths(scaled).allSatisfy { abs($0 - 1) < 1e-5 })
      let raw = try embeddings("--no-normalize")
      #expect(lengths(raw).contains { abs($0 - 1) > 1e-2 })
      #expect(distance(raw / raw.square().sum(axis: -1, keepDims: true).sqrt(), scaled) < 1e-5)
      #expect(distance(usual, try embeddings("--pooling", "mean")) < 1e-6)
      #expect(distance(usual, try embeddings("--pooling", "cls")) > 1e-3)
      let cut = try embeddings("--max-length", "4")
      #expect(distance(usual[1], cut[1]) < 1e-5 && distance(usual[2], cut[2]) > 1e-3)
    }
  }

  @Test func wrongUseIsRefusedBeforeTheWork() throws {
    try withModel { folder, model, lines in
      let out = folder + "/out.safetensors"
      let decoder = try TinyModel.make("gpt2", in: folder)
      try CommandRun(["embed", decoder, "--input", lines, "--output", out]).expectRefusal("gpt2", "text encoder")
      try CommandRun(["embed", model, "--input", lines, "--output", folder + "/no/out.safetensors"]).expectRefusal("there is no folder")
      try CommandRun(["embed", model, "--input", folder + "/absent.txt", "--output", out]).expectRefusal("absent.txt")
      try CommandRun(["embed", model, "--input", lines, "--output", out, "--pooling", "maen"]).expectRefusal("\"mean\"")
      try CommandRun(["embed", model, "--input", lines, "--output", out, "--max-length", "100000"]).expectRefusal("positions")
      #expect(!FileManager.default.fileExists(atPath: out))
      let empty = try TinyModel.write("", to: folder + "/empty.txt")
      #expect(try CommandRun(["embed", model, "--input", empty, "--output", out]).status == 0)
      #expect(try SafetensorsFile(out).tensor("embeddings").shape == [0, 32])
    }
  }
}
