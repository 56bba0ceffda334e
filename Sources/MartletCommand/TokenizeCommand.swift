import ArgumentParser
import Foundation
import MartletCatalog
import MartletTokenizers

struct TokenizeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "tokenize",
    abstract: "Turn texts into a model's tokens, or tokens back into text.",
    discussion: """
      MODEL is a folder with a tokenizer (tokenizer.json, vocab.txt, vocab.json and merges.txt, or a SentencePiece model), or such a \
      file. Every line of the input is a text; bytes that are no UTF-8 are read as U+FFFD. With --json each text gives one line \
      {"ids":[…],"tokens":[…]}.

      A tokenizer.json may ask for truncation and padding. They are applied when that file is named, as the tokenizers library does, \
      and not when its folder is, as transformers does; the options --truncation and --padding say it either way.

      Example: martlet tokenize models/minilm --input lines.txt --json
      Back to text: martlet tokenize models/minilm --decode --text '101 9170 102'
      """)

  @Argument(help: "A model's folder, or a tokenizer file.", completion: .directory)
  var model: String

  @Option(help: "A file of lines; “-” or nothing for standard input.", completion: .file())
  var input: String?

  @Option(help: "A text itself, instead of lines. May be repeated.")
  var text: [String] = []

  @Flag(help: "Each line holds two texts with a tab between them, to be encoded as a pair.")
  var pair = false

  @Flag(help: "Add no special tokens; with --decode, leave them out of the text.")
  var noSpecial = false

  @Flag(inversion: .prefixedNo, help: "Truncate as the tokenizer's file says.")
  var truncation: Bool?

  @Flag(inversion: .prefixedNo, help: "Pad as the tokenizer's file says.")
  var padding: Bool?

  @Option(help: "Cut texts to so many tokens, special ones included.")
  var maxLength: Int?

  @Flag(help: "Also say which bytes of the text each token comes from (with --json).")
  var offsets = false

  @Flag(help: "The lines are ids (numbers, or JSON as this command prints it); print their text.")
  var decode = false

  @Flag(help: "Print only how many texts, tokens and bytes there are.")
  var count = false

  @Option(help: "Threads that share the lines; 0 takes the machine's.")
  var threads: Int = 0

  @Flag(help: "Print one JSON object a line (one in all with --count).")
  var json = false

  func validate() throws {
    guard text.isEmpty || input == nil else { throw ValidationError("give --text or --input, not both") }
    guard (0...1024).contains(threads) else { throw ValidationError("--threads must lie between 0 and 1024, got \(threads)") }
    guard maxLength ?? 1 > 0 else { throw ValidationError("--max-length must be positive, got \(maxLength!)") }
    if decode {
      for (isGiven, option) in [(pair, "--pair"), (offsets, "--offsets"), (count, "--count"), (maxLength != nil, "--max-length")]
      where isGiven { throw ValidationError("\(option) is for encoding, not for --decode") }
    }
    guard !offsets || json else { throw ValidationError("--offsets needs --json") }
  }

  func run() throws {
    var tokenizer = try Tokenizer.load(model)
    var isFolder: ObjCBool = false
    let isFile = FileManager.default.fileExists(atPath: model, isDirectory: &isFolder) && !isFolder.boolValue
    if !(truncation ?? isFile) { tokenizer.truncation = nil }
    if !(padding ?? isFile) { tokenizer.padding = nil }
    if let maxLength {
      if tokenizer.truncation == nil { tokenizer.truncation = Truncation(maximumLength: maxLength) }
      tokenizer.truncation?.maximumLength = maxLength
    }
    let workers = (0..<(threads > 0 ? threads : ProcessInfo.processInfo.activeProcessorCount)).map { _ in
      TokenizeWorker(tokenizer, self)
    }
    if !text.isEmpty {
      var bytes: [UInt8] = []
      var lines: [Range<Int>] = []
      for text in text {
        lines.append(bytes.count..<(bytes.count + text.utf8.count))
        bytes += text.utf8
      }
      try process(LineReader.Batch(bytes: bytes, lines: lines), firstLine: 1, name: "--text", Array(workers.prefix(1)))
    } else {
      var reader = try LineReader(input)
      var line = 1
      while let batch = try reader.next() {
        try process(batch, firstLine: line, name: reader.name, workers)
        line += batch.lines.count
      }
    }
    if count { report(workers) }
  }

  /// Shares the lines of a batch among the workers and writes what they made in the order of the lines.
  private func process(_ batch: LineReader.Batch, firstLine: Int, name: String, _ workers: [TokenizeWorker]) throws {
    let count = batch.lines.count
    // Threads cost more than they bring where there is little to do.
    let parts = batch.bytes.count < 1 << 14 ? 1 : min(workers.count, count)
    DispatchQueue.concurrentPerform(iterations: parts) { part in
      workers[part].process(batch, (count * part / parts)..<(count * (part + 1) / parts))
    }
    for worker in workers.prefix(parts) {
      StandardOutput.write(worker.output)
      guard let failure = worker.failure else { continue }
      throw FileError(name, "line \(firstLine + failure.line): \(failure.reason)")
    }
  }

  private func report(_ workers: [TokenizeWorker]) {
    let texts = workers.reduce(0) { $0 + $1.texts }
    let tokens = workers.reduce(0) { $0 + $1.tokens }
    let bytes = workers.reduce(0) { $0 + $1.bytes }
    if json {
      Output.json(["texts": .integer(texts), "tokens": .integer(tokens), "bytes": .integer(bytes)])
      return
    }
    let ratio = tokens > 0 ? ", \(Figure.number(Double(bytes) / Double(tokens))) bytes a token" : ""
    print("\(Figure.grouped(texts)) texts, \(Figure.grouped(tokens)) tokens, \(Figure.grouped(bytes)) bytes\(ratio)")
  }
}

/// Turns a share of the lines into output. Used by one thread at a time.
private final class TokenizeWorker: @unchecked Sendable {
  private let tokenizer: Tokenizer
  private let command: TokenizeCommand
  /// The JSON string of each token that has been seen.
  private var spellings: [[UInt8]?]
  private(set) var output: [UInt8] = []
  private(set) var failure: (line: Int, reason: String)?
  private(set) var texts = 0
  private(set) var tokens = 0
  private(set) var bytes = 0

  init(_ tokenizer: Tokenizer, _ command: TokenizeCommand) {
    self.tokenizer = tokenizer
    self.command = command
    spellings = Array(repeating: nil, count: tokenizer.idCount)
  }

  func process(_ batch: LineReader.Batch, _ lines: Range<Int>) {
    output.removeAll(keepingCapacity: true)
    failure = nil
    batch.bytes.withUnsafeBufferPointer { bytes in
      for line in lines {
        let range = batch.lines[line]
        let content = UnsafeBufferPointer(rebasing: bytes[range])
        do { if command.decode { try decode(content) } else { try encode(content) } } catch {
          failure = (line, "\(error)")
          return
        }
      }
    }
  }

  private func encode(_ content: UnsafeBufferPointer<UInt8>) throws {
    let encoding: Encoding
    if command.pair {
      guard let tab = content.firstIndex(of: 0x09) else { throw ConfigurationError("has no tab between two texts (--pair)") }
      encoding = try tokenizer.encode(
        bytes: UnsafeBufferPointer(rebasing: content[..<tab]), pair: UnsafeBufferPointer(rebasing: content[(tab + 1)...]),
        addSpecialTokens: !command.noSpecial, offsets: command.offsets)
    } else {
      encoding = try tokenizer.encode(bytes: content, addSpecialTokens: !command.noSpecial, offsets: command.offsets)
    }
    texts += 1
    tokens += encoding.count
    bytes += content.count
    if command.count { return }
    if command.json {
      output += Array("{\"ids\":".utf8)
      JSONBytes.append(encoding.ids, to: &output) { JSONBytes.append($0, to: &$1) }
      output += Array(",\"tokens\":".utf8)
      JSONBytes.append(encoding.ids, to: &output) { $1 += spelling(Int($0)) }
      if command.offsets {
        output += Array(",\"offsets\":".utf8)
        JSONBytes.append(encoding.offsets, to: &output) { range, bytes in
          JSONBytes.append([range.lowerBound, range.upperBound], to: &bytes) { JSONBytes.append($0, to: &$1) }
        }
      }
      output.append(UInt8(ascii: "}"))
    } else {
      for (i, id) in encoding.ids.enumerated() {
        if i > 0 { output.append(0x20) }
        JSONBytes.append(id, to: &output)
        output.append(UInt8(ascii: ":"))
        output += Terminal.sanitised(tokenizer.token(of: Int(id)) ?? "").utf8
      }
    }
    output.append(0x0A)
  }

  private func spelling(_ id: Int) -> [UInt8] {
    guard spellings.indices.contains(id) else { return Array("\"\"".utf8) }
    if let known = spellings[id] { return known }
    var bytes: [UInt8] = []
    JSONBytes.append(tokenizer.token(of: id) ?? "", to: &bytes)
    spellings[id] = bytes
    return bytes
  }

  private func decode(_ content: UnsafeBufferPointer<UInt8>) throws {
    let text = try tokenizer.decode(try ids(content), skipSpecialTokens: command.noSpecial)
    if command.json {
      output += Array("{\"text\":".utf8)
      JSONBytes.append(text, to: &output)
      output.append(UInt8(ascii: "}"))
    } else {
      output += text.utf8
    }
    output.append(0x0A)
  }

  /// Ids as numbers with blanks or commas between them, a JSON array of them, or an object with "ids".
  private func ids(_ content: UnsafeBufferPointer<UInt8>) throws -> [Int] {
    let json: JSONValue?
    switch content.first(where: { $0 != 0x20 && $0 != 0x09 }) {
    case UInt8(ascii: "["): json = try JSONValue.parse(content)
    case UInt8(ascii: "{"):
      json = try JSONValue.parse(content)["ids"]
      guard json != nil else { throw ConfigurationError("the object has no \"ids\"") }
    default: json = nil
    }
    if let json {
      guard let list = json.arrayValue else { throw ConfigurationError("the ids are \(json.kindDescription), not a list") }
      return try list.map {
        guard let id = $0.intValue else { throw ConfigurationError("an id is \($0.kindDescription), not an integer") }
        return id
      }
    }
    return try String(decoding: content, as: UTF8.self).split { $0 == " " || $0 == "," || $0 == "\t" || $0 == "\r" }.map {
      guard let id = Int($0) else { throw ConfigurationError("“\(Output.shortened(String($0), to: 40))” is no id") }
      return id
    }
  }
}
