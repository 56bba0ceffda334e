import ArgumentParser
import Foundation
import MartletCatalog

struct ConvertCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "convert",
    abstract: "Write a checkpoint in another precision, or in shards of another size.",
    discussion: """
      MODEL is a Hugging Face folder, OUT a new one that transformers reads: the tensors under their names, config.json, and the \
      tokenizer and generation files. A single .safetensors file becomes a single file. OUT appears whole or not at all.

      Quantised weights have no layout in safetensors that other programs agree on, so none are written; `martlet generate \
      --weights int8` or int4 quantises while loading.

      Example: martlet convert models/llama models/llama-bf16 --dtype bfloat16 --shard-size 2GB
      """)

  private static let dtypes: [(name: String, dtype: DType)] = [("float32", .float32), ("bfloat16", .bfloat16), ("float16", .float16)]

  @Argument(help: "A model's folder, or a .safetensors file.", completion: .directory)
  var model: String

  @Argument(help: "The folder (or file) to write.", completion: .directory)
  var out: String

  @Option(help: "float32, bfloat16 or float16; each tensor's own unless given.", completion: .list(["float32", "bfloat16", "float16"]))
  var dtype: String?

  @Option(help: "The largest shard, e.g. 500MB or 2GB; a larger tensor has one of its own.")
  var shardSize: String = "5GB"

  @Flag(help: "Replace the files of an OUT that exists.")
  var force = false

  @OptionGroup var compute: ComputeOptions

  @Flag(help: "Print a JSON object with the bytes read and written.")
  var json = false

  func run() throws {
    compute.apply()
    Interruption.watch()
    let dtype = try parsedType()
    let shardBytes = try Quantity.bytes(shardSize)
    let kind = try PretrainedArguments.kind(model)
    try checkTarget(isFile: kind == .tensors)
    let parameters: Int
    let bytes: (read: Int, written: Int)
    switch kind {
    case .trained: throw FileError(model, "was made by `martlet train` and has no layout that others read; its tensors are in float32")
    case .tensors: (parameters, bytes) = try convertFile(dtype)
    case .checkpoint: (parameters, bytes) = try convertFolder(dtype, shardBytes)
    }
    if json {
      Output.json([
        "out": .string(out), "parameters": .integer(parameters), "bytesRead": .integer(bytes.read), "bytesWritten": .integer(bytes.written),
      ])
    } else {
      print(
        "\(out): \(Figure.grouped(parameters)) parameters, \(Figure.bytes(Double(bytes.written))) of tensors (from \(Figure.bytes(Double(bytes.read))))"
      )
    }
  }

  private func parsedType() throws -> DType? {
    guard let dtype else { return nil }
    if let found = Self.dtypes.first(where: { $0.name == dtype }) { return found.dtype }
    if dtype.hasPrefix("int") || dtype.hasPrefix("uint") || dtype.hasPrefix("q") {
      throw ValidationError(
        "--dtype \(dtype): quantised weights have no layout in safetensors that other programs agree on, so none are written; "
          + "`martlet generate --weights int8` (or int4) quantises while loading")
    }
    let names = Self.dtypes.map(\.name)
    throw ValidationError("--dtype “\(dtype)” is none of: \(names.joined(separator: ", ")).\(Suggestions.phrase(for: dtype, in: names))")
  }

  private func checkTarget(isFile: Bool) throws {
    func real(_ path: String) -> String { URL(fileURLWithPath: path).resolvingSymlinksInPath().standardizedFileURL.path }
    guard real(model) != real(out) else { throw ValidationError("OUT is MODEL itself; name another place") }
    var isFolder: ObjCBool = false
    guard FileManager.default.fileExists(atPath: out, isDirectory: &isFolder) else { return }
    guard isFolder.boolValue != isFile else {
      throw ValidationError("\(out) is a \(isFile ? "folder; name a file" : "file; name a folder")")
    }
    let isEmpty = isFolder.boolValue && (try? FileManager.default.contentsOfDirectory(atPath: out))?.isEmpty ?? false
    guard isEmpty || force else { throw ValidationError("\(out) exists already; name another place, or --force to replace its files") }
  }

  private func checkInterruption() throws {
    guard Interruption.isAsked else { return }
    Output.note("interrupted: \(out) is not written")
    throw CommandLineErrors.interrupted
  }

  /// float16 ends at 65504.
  private func checkRange(_ tensors: [(String, Tensor)]) throws {
    for (name, tensor) in tensors where tensor.dtype == .float16 && tensor.count > 0 {
      guard tensor.abs().max().item().isFinite else {
        throw FileError(model, "\"\(name)\" has numbers beyond float16's range of ±65504; use bfloat16")
      }
    }
  }

  /// Tensor by tensor, as the files have them: what `PretrainedModel` computes in doesn't matter here.
  private func convertFolder(_ dtype: DType?, _ shardBytes: Int) throws -> (Int, (read: Int, written: Int)) {
    try PretrainedArguments.checkFormat(model)
    let configuration = try PretrainedConfiguration(directory: model)
    let manager = FileManager.default
    let isNew = !manager.fileExists(atPath: out)
    let target = isNew ? "\(out).\(UUID().uuidString).partial" : out
    defer { if isNew { try? manager.removeItem(atPath: target) } }

    var parameters = 0
    var bytes = (read: 0, written: 0)
    for folder in [""] + partFolders() {
      let (source, place) = folder.isEmpty ? (model, target) : (model + "/" + folder, target + "/" + folder)
      try manager.createDirectory(atPath: place, withIntermediateDirectories: true)
      let files = try manager.contentsOfDirectory(atPath: source).sorted()
      if files.contains(where: { $0.hasSuffix(".safetensors") || $0.hasSuffix(".safetensors.index.json") }) {
        let tensors = try Safetensors.load(source)
        let result = try converted(tensors, dtype)
        try withTorchErrors { try Safetensors.saveSharded(result, toFolder: place, maximumShardBytes: shardBytes) }
        parameters += tensors.values.reduce(0) { $0 + $1.count }
        bytes.read += tensors.values.reduce(0) { $0 + $1.byteCount }
        bytes.written += result.values.reduce(0) { $0 + $1.byteCount }
        try checkInterruption()
      }
      for file in files where [".json", ".txt", ".model", ".jinja"].contains(where: file.hasSuffix) && !file.hasSuffix(".index.json") {
        guard var data = manager.contents(atPath: source + "/" + file) else { continue }
        if folder.isEmpty && file == "config.json", let dtype {
          var json = configuration.json
          // Older files say torch_dtype; transformers reads both.
          json[json["torch_dtype"] == nil ? "dtype" : "torch_dtype"] = .string("\(dtype)")
          data = Data((JSONValue.object(json).serialized(indentation: 2) + "\n").utf8)
        }
        try writeDurably(data, to: place + "/" + file)
      }
    }
    if isNew {
      do { try manager.moveItem(atPath: target, toPath: out) } catch {
        throw FileError(out, "can't be put in place: \(error.localizedDescription)")
      }
    }
    return (parameters, bytes)
  }

  /// Folders below that sentence-transformers' modules.json names.
  private func partFolders() -> [String] {
    guard let data = FileManager.default.contents(atPath: model + "/modules.json"),
      let list = (try? data.withUnsafeBytes { try JSONValue.parse($0.bindMemory(to: UInt8.self)) })?.arrayValue
    else { return [] }
    var isFolder: ObjCBool = false
    return list.compactMap { $0["path"]?.stringValue }.filter {
      !$0.isEmpty && !$0.contains("/") && !$0.contains("..")
        && FileManager.default.fileExists(atPath: model + "/" + $0, isDirectory: &isFolder) && isFolder.boolValue
    }
  }

  /// Only floating-point tensors change. Throws `FileError` for numbers that the type doesn't reach.
  private func converted(_ tensors: [String: Tensor], _ dtype: DType?) throws -> [String: Tensor] {
    let display = ProgressDisplay(patient: true)
    defer { display.close() }
    var result: [String: Tensor] = [:]
    for (i, (name, tensor)) in tensors.sorted(by: { $0.key < $1.key }).enumerated() {
      result[name] = try withTorchErrors { dtype.map { tensor.dtype.isFloatingPoint ? tensor.to($0) : tensor } ?? tensor }
      display.update("converting", Double(i) / Double(tensors.count), name)
      try checkInterruption()
    }
    if dtype == .float16 { try checkRange(result.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }) }
    return result
  }

  private func convertFile(_ dtype: DType?) throws -> (Int, (read: Int, written: Int)) {
    let file = try SafetensorsFile(model)
    let tensors = try file.tensors()
    let result = try converted(tensors, dtype)
    try Safetensors.save(result, to: out, metadata: file.metadata)
    let sizes = (read: tensors.values.reduce(0) { $0 + $1.byteCount }, written: result.values.reduce(0) { $0 + $1.byteCount })
    return (tensors.values.reduce(0) { $0 + $1.count }, sizes)
  }
}
