import Foundation
import MartletCatalog
import MartletTokenizers
import Testing

@Suite struct EvaluateTests {
  @Test func perplexityIsTheLibrarys() throws {
    try withTemporaryFolder { folder in
      let model = try TinyModel.make("llama-3", in: folder)
      let text = String(repeating: "hello you abc def! ", count: 12)
      let file = try TinyModel.write(text, to: folder + "/text.txt")
      let run = try CommandRun(["evaluate", model, "--perplexity", file, "--window", "32", "--stride", "8", "--json"])
      #expect(run.status == 0, "\(run.errors)")
      let tokens = try Tokenizer.load(model).encode(text).ids.map(Int.init)
      let loaded = try #require(try PretrainedModel.load(model).languageModel)
      let expected = try MartletInference.perplexity(loaded, tokens: tokens, window: 32, stride: 8)
      let found = try #require(run.json["perplexity"]?.doubleValue)
      #expect(abs(found / expected.perplexity - 1) < 1e-5, "\(found), expected \(expected.perplexity)")
      #expect(try run.json["tokens"]?.intValue == tokens.count - 1)
      #expect(try run.json["bytes"]?.intValue == text.utf8.count)
      let plain = try CommandRun(["evaluate", model, "--perplexity", file])
      #expect(plain.output.contains("perplexity: ") && plain.output.contains("stride 64"), "\(plain.output)\(plain.errors)")
    }
  }

  @Test func classifiersAreJudgedByLabels() throws {
    try withTemporaryFolder { folder in
      let model = try TinyModel.make("bert-classifier", in: folder, special: true)
      let texts = ["a b", "hello", "zz top", "c d e f", "you", "abc"]
      let plain = try TinyModel.write(texts.joined(separator: "\n"), to: folder + "/plain.tsv")
      let predicted = try CommandRun(["evaluate", model, "--classify", plain, "--json"])
      #expect(predicted.status == 0, "\(predicted.errors)")
      #expect(try predicted.json["accuracy"] == .null)
      let labels = try #require(predicted.json["predictions"]?.arrayValue).compactMap { $0["label"]?.stringValue }
      let encoder = try #require(try PretrainedModel.load(model).textEncoder)
      let embedder = try TextEmbedder(encoder: encoder, tokenizer: try Tokenizer.load(model))
      let best = try embedder.classLogits(texts).argmax(axis: -1).toArray(Int.self)
      #expect(labels == best.map { ["bad", "middling", "good"][$0] })

      // Four right, by name and by number; two wrong.
      let wrong = { (i: Int) in ["bad", "middling", "good"][(best[i] + 1) % 3] }
      let given = [labels[0], labels[1], "\(best[2])", labels[3].uppercased(), wrong(4), wrong(5)]
      let tsv = "sentence\tlabel\n" + zip(texts, given).map { "\($0)\t\($1)\n" }.joined()
      let json = zip(texts, given).map { "{\"text\": \"\($0)\", \"label\": \"\($1)\"}\n" }.joined()
      for (name, content) in [("a.tsv", tsv), ("b.jsonl", json)] {
        let file = try TinyModel.write(content, to: folder + "/" + name)
        let run = try CommandRun(["evaluate", model, "--classify", file, "--json"])
        #expect(try run.json["accuracy"]?.doubleValue == 4.0 / 6, "\(run.errors)")
        #expect(try CommandRun(["evaluate", model, "--classify", file]).output.contains("66.67 % of 6 texts"))
      }
      let odd = try TinyModel.write("a\tgod\n", to: folder + "/odd.tsv")
      try CommandRun(["evaluate", model, "--classify", odd]).expectRefusal("god", "\"good\"")
      let ragged = try TinyModel.write("a\tgood\nb\n", to: folder + "/ragged.tsv")
      try CommandRun(["evaluate", model, "--classify", ragged]).expectRefusal("line 2")
    }
  }

  @Test func crossEncodersScorePairs() throws {
    try withTemporaryFolder { folder in
      let model = try TinyModel.make("bert-cross-encoder", in: folder, special: true)
      let pairs = [("hello", "you"), ("a b c", "d e f"), ("zz", "")]
      let file = try TinyModel.write(pairs.map { "\($0)\t\($1)\n" }.joined(), to: folder + "/pairs.tsv")
      let run = try CommandRun(["evaluate", model, "--score", file, "--json"])
      #expect(run.status == 0, "\(run.errors)")
      let scores = try (run.json["scores"]?.arrayValue ?? []).compactMap(\.doubleValue)
      let encoder = try #require(try PretrainedModel.load(model).textEncoder)
      let embedder = try TextEmbedder(encoder: encoder, tokenizer: try Tokenizer.load(model))
      let expected = try embedder.classLogits(pairs: pairs).reshaped(-1).toArray(Float.self)
      #expect(scores.count == 3)
      for (a, b) in zip(scores, expected) { #expect(abs(a - Double(b)) < 1e-5) }
      let bad = try TinyModel.write("only one\n", to: folder + "/bad.tsv")
      try CommandRun(["evaluate", model, "--score", bad]).expectRefusal("line 1", "tab")
      try CommandRun(["evaluate", model]).expectRefusal("--perplexity")
      try CommandRun(["evaluate", model, "--perplexity", file]).expectRefusal("bert", "language model")
    }
  }
}
