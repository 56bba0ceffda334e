import Foundation
import MartletCatalog
import Testing

@Suite struct LinearizeTests {
  private func text(_ folder: String) throws -> String {
    var random = SeededRandom(seed: 1)
    let words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "off", "to", "sea"]
    return try TinyModel.write(
      (0..<900).map { _ in words[random.integer(below: words.count)] }.joined(separator: " "), to: folder + "/text.txt")
  }

  private let quick = [
    "--window", "4", "--features", "6", "--sequence", "32", "--transfer-steps", "6", "--lora-steps", "6", "--lora-rank", "2",
  ]

  @Test(arguments: ["llama-3", "gpt2"]) func aLinearisedModelIsReadByTheOtherCommands(_ name: String) throws {
    try withTemporaryFolder { folder in
      let (source, out, data) = (try TinyModel.make(name, in: folder), folder + "/out", try text(folder))
      let run = try CommandRun(["linearize", source, "--data", data, "--out", out, "--json"] + quick)
      #expect(run.status == 0, "\(run.errors)")
      let figures = try run.json
      for stage in ["teacher", "swap", "transfer", "transfer + LoRA"] {
        let perplexity = try #require(figures["perplexity"]?[stage]?.doubleValue, "\(stage)")
        #expect(perplexity > 1 && perplexity < 1000, "\(stage): \(perplexity)")
      }
      #expect(figures["layers"]?.integers == [0, 1])
      let left = try FileManager.default.contentsOfDirectory(atPath: folder)
      #expect(Set(left) == [name, "out", "text.txt"], "what was kept for going on is removed")
      #expect(FileManager.default.contentsEqual(atPath: source + "/tokenizer.json", andPath: out + "/tokenizer.json"))

      let config = try JSONValue.parse(try String(contentsOfFile: out + "/config.json", encoding: .utf8))
      #expect(config["linearized_attention"]?["window"]?.intValue == 4)
      let evaluated = try CommandRun(["evaluate", out, "--perplexity", data, "--window", "32", "--json"])
      #expect(evaluated.status == 0, "\(evaluated.errors)")
      let generated = try CommandRun(["generate", out, "the cat", "--tokens", "20", "--temperature", "0"])
      #expect(generated.status == 0, "\(generated.errors)")
      let inspected = try CommandRun(["inspect", out])
      #expect(inspected.status == 0, "\(inspected.errors)")
      #expect(try CommandRun(["convert", out, folder + "/half", "--dtype", "bfloat16"]).status == 0)
      #expect(try CommandRun(["evaluate", folder + "/half", "--perplexity", data, "--window", "32"]).status == 0)
      try CommandRun(["linearize", out, "--data", data, "--out", folder + "/twice"] + quick).expectRefusal("linearised already")
    }
  }

  @Test func theTableNamesEveryStage() throws {
    try withTemporaryFolder { folder in
      let (source, data) = (try TinyModel.make("qwen2", in: folder), try text(folder))
      let run = try CommandRun(["linearize", source, "--data", data, "--out", folder + "/out", "--layout", "blocks", "--affine"] + quick)
      #expect(run.status == 0, "\(run.errors)")
      for part in ["teacher", "swap", "transfer", "transfer + LoRA", "perplexity", "layers linearised"] {
        #expect(run.output.contains(part), "“\(part)” is missing in: \(run.output)")
      }
    }
  }

  @Test func whatCantBeIsRefused() throws {
    try withTemporaryFolder { folder in
      let (source, data) = (try TinyModel.make("llama-3", in: folder), try text(folder))
      func linearize(_ model: String, _ arguments: String...) throws -> CommandRun {
        try CommandRun(["linearize", model, "--data", data, "--out", folder + "/out"] + arguments)
      }
      try linearize(folder + "/lama-3").expectRefusal("Did you mean \"llama-3\"")
      try linearize(source, "--sequence", "2k").expectRefusal("text.txt", "sequences of 2048")
      try linearize(source, "--layout", "sledding").expectRefusal("\"sliding\"")
      try linearize(source, "--lora-rank", "0").expectRefusal("--lora-rank")
      try linearize(source, "--window", "1k", "--sequence", "32", "--transfer-steps", "-1").expectRefusal("--transfer-steps")
      try CommandRun(["linearize", source, "--data", folder + "/none.txt", "--out", folder + "/out"]).expectRefusal("none.txt")
      try CommandRun(["linearize", source, "--data", data, "--out", source]).expectRefusal("MODEL itself")
      let encoder = try TinyModel.make("bert", in: folder, special: true)
      try linearize(encoder).expectRefusal("no decoder")
      let capped = try TinyModel.make("gemma2", in: folder)
      try linearize(capped, "--sequence", "32").expectRefusal("softcap")
      _ = try TinyModel.make("gpt2", in: folder)
      try CommandRun(["linearize", source, "--data", data, "--out", folder + "/gpt2"]).expectRefusal("exists already", "--force")
      #expect(!FileManager.default.fileExists(atPath: folder + "/out"))
    }
  }
}
