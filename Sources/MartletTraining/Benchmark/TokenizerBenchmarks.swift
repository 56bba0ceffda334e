import Foundation
import MartletTokenizers

extension BenchmarkCase {
  /// Tokenizers of every kind on code and on words of many scripts, beside the Rust library, one thread each, text by text.
  static var tokenization: [BenchmarkCase] {
    let names = ["bert", "gpt2", "llama3", "llama2", "t5"]
    let codes = names.map { name in
      BenchmarkCase(
        "tokenize code, \(name)", group: "Tokenizers (ids of all texts)",
        peers: [
          Peer("tokenize code \(name)", "tokenizers (Rust), encode"),
          Peer("tokenize code \(name) in batches", "tokenizers (Rust), encode_batch_fast, one thread"),
        ]
      ) { try tokenizing(name, try codeLines()) }
    }
    let scripts = names.map { name in
      BenchmarkCase(
        "tokenize words of many scripts, \(name)", group: "Tokenizers (ids of all texts)",
        peers: [
          Peer("tokenize scripts \(name)", "tokenizers (Rust), encode"),
          Peer("tokenize scripts \(name) in batches", "tokenizers (Rust), encode_batch_fast, one thread"),
        ]
      ) { try tokenizing(name, scriptLines()) }
    }
    return codes + scripts
  }

  private static var checkout: URL {
    URL(fileURLWithPath: PeerProcess.script()).deletingLastPathComponent().deletingLastPathComponent()
  }

  private static func tokenizing(_ name: String, _ texts: [String]) throws -> () throws -> Void {
    let path = checkout.appendingPathComponent("Tests/MartletTokenizersTests/Fixtures/parity/\(name).json").path
    let tokenizer = try Tokenizer.load(path)
    return {
      var tokens = 0
      for text in texts { tokens += try tokenizer.encode(text).count }
      precondition(tokens > 0)
    }
  }

  /// The first 20,000 lines of this checkout's sources, files by path.
  private static func codeLines() throws -> [String] {
    let folder = checkout.appendingPathComponent("Sources")
    guard let files = FileManager.default.enumerator(atPath: folder.path) else {
      throw FileError(folder.path, "the sources of the checkout are needed as text to tokenize")
    }
    let names = files.compactMap { $0 as? String }.filter { $0.hasSuffix(".swift") }.sorted {
      Array($0.utf8).lexicographicallyPrecedes(Array($1.utf8))
    }
    var lines: [String] = []
    for name in names where lines.count < 20_000 {
      let text = try String(contentsOf: folder.appendingPathComponent(name), encoding: .utf8)
      lines += text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
    }
    return Array(lines.prefix(20_000))
  }

  /// 5,000 lines of made-up words, the same on both sides: letters of a script chosen by a linear congruential generator.
  private static func scriptLines() -> [String] {
    let scripts: [(first: UInt32, count: UInt32)] = [
      (0x61, 26), (0x61, 26), (0x61, 26), (0xE0, 23), (0x3B1, 25), (0x430, 32), (0x5D0, 27), (0x627, 36), (0x905, 53), (0xE01, 46),
      (0x3041, 83), (0x4E00, 2000), (0xAC00, 3000), (0x1F600, 70), (0x30, 10),
    ]
    var state: UInt64 = 1
    func next(_ bound: UInt32) -> UInt32 {
      state = (state * 1_103_515_245 + 12345) & 0x7FFF_FFFF
      return UInt32(state >> 8) % bound
    }
    return (0..<5000).map { _ in
      var line = String.UnicodeScalarView()
      for word in 0..<(3 + next(20)) {
        if word > 0 { line.append(" ") }
        let script = scripts[Int(next(UInt32(scripts.count)))]
        for _ in 0..<(1 + next(8)) { line.append(Unicode.Scalar(script.first + next(script.count))!) }
        if next(6) == 0 { line.append(next(2) == 0 ? "," : ".") }
      }
      return String(line)
    }
  }
}
