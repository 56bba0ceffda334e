import Foundation
import MartletCatalog
import Testing

@Suite struct ConvertTests {
  @Test(arguments: ["bfloat16", "float16", "float32"]) func writesAFolderInAnotherPrecision(dtype: String) throws {
    try withTemporaryFolder { folder in
      let (source, out) = (try TinyModel.make("llama-3", in: folder), folder + "/out")
      let run = try CommandRun(["convert", source, out, "--dtype", dtype, "--json"])
      #expect(run.status == 0, "\(run.errors)")
      let (before, after) = (try Safetensors.load(source), try Safetensors.load(out))
      #expect(Set(before.keys) == Set(after.keys))
      for (name, tensor) in after {
        #expect("\(tensor.dtype)" == dtype && tensor.shape == before[name]!.shape)
        #expect(tensor.toArray(Float.self) == before[name]!.to(tensor.dtype).toArray(Float.self), "\(name)")
      }
      let config = try JSONValue.parse(try String(contentsOfFile: out + "/config.json", encoding: .utf8))
      #expect(config["dtype"]?.stringValue == dtype)
      for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        #expect(FileManager.default.contentsEqual(atPath: source + "/" + file, andPath: out + "/" + file), "\(file)")
      }
      let bytes = after.values.reduce(0) { $0 + $1.byteCount }
      #expect(try run.json["bytesWritten"]?.intValue == bytes)
      #expect(try PretrainedModel.load(out).configuration.modelType == "llama")
      #expect(try FileManager.default.contentsOfDirectory(atPath: folder).sorted() == ["llama-3", "out"], "a temporary folder is left")
    }
  }

  @Test func shardsHaveTheSizeAskedFor() throws {
    try withTemporaryFolder { folder in
      let (source, out) = (TinyModel.checkpoints + "/gpt2", folder + "/out")
      let run = try CommandRun(["convert", source, out, "--shard-size", "16kB"])
      #expect(run.status == 0, "\(run.errors)")
      let shards = try FileManager.default.contentsOfDirectory(atPath: out).filter { $0.hasSuffix(".safetensors") }
      #expect(shards.count > 1)
      for shard in shards {
        let tensors = try Safetensors.load(out + "/" + shard)
        #expect(tensors.values.reduce(0) { $0 + $1.byteCount } <= 16_000 || tensors.count == 1)
      }
      let (before, after) = (try Safetensors.load(source), try Safetensors.load(out))
      for (name, tensor) in after { #expect(tensor.toArray(Float.self) == before[name]!.toArray(Float.self), "\(name)") }
    }
  }

  @Test func aFileBecomesAFile() throws {
    try withTemporaryFolder { folder in
      let (source, out) = (folder + "/in.safetensors", folder + "/out.safetensors")
      try Safetensors.save(
        ["w": Tensor([1.5, -2] as [Float], [2]), "n": Tensor([7], [1])], to: source, metadata: ["format": "pt", "by": "me"])
      #expect(try CommandRun(["convert", source, out, "--dtype", "bfloat16"]).status == 0)
      let file = try SafetensorsFile(out)
      let (w, n) = (try file.tensor("w"), try file.tensor("n"))
      #expect(w.dtype == .bfloat16 && w.toArray(Float.self) == [1.5, -2])
      #expect(n.dtype == .int64 && n.toArray(Int.self) == [7])
      #expect(file.metadata["by"] == "me")
      try Safetensors.save(["w": Tensor([1e6] as [Float], [1])], to: source)
      try CommandRun(["convert", source, folder + "/other.safetensors", "--dtype", "float16"]).expectRefusal("\"w\"", "bfloat16")
      #expect(!FileManager.default.fileExists(atPath: folder + "/other.safetensors"))
    }
  }

  @Test func whatCantBeIsRefused() throws {
    try withTemporaryFolder { folder in
      let source = try TinyModel.make("llama-2", in: folder)
      func convert(_ arguments: String...) throws -> CommandRun { try CommandRun(["convert", source] + arguments) }
      try convert(folder + "/out", "--dtype", "int8").expectRefusal("int8", "martlet generate --weights")
      try convert(folder + "/out", "--dtype", "bfloat61").expectRefusal("\"bfloat16\"")
      try convert(folder + "/out", "--shard-size", "2XB").expectRefusal("2XB")
      try convert(source).expectRefusal("MODEL itself")
      _ = try TinyModel.make("gpt2", in: folder)
      try convert(folder + "/gpt2").expectRefusal("exists already", "--force")
      #expect(!FileManager.default.fileExists(atPath: folder + "/out"))
    }
  }
}
