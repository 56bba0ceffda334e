import Foundation

/// One safetensors file, mapped into memory: opening reads the header only, and a tensor's pages are read when they are used.
///
/// The mapping is private: changing a tensor in place changes this process's copy of the page, never the file. Tensors keep the
/// mapping alive after the `SafetensorsFile` is gone. A file that someone else shortens meanwhile can't be read any further (the
/// system ends the process); ``Safetensors/save(_:to:metadata:)`` never does this, it replaces the file as a whole.
public final class SafetensorsFile: Sendable {
  public let path: String
  public let header: SafetensorsHeader
  private let memory: FileMemory

  /// The tensors' names in the order of their bytes.
  public var names: [String] { header.names }
  public var metadata: [String: String] { header.metadata }

  /// Maps a file and checks its header. Throws ``SafetensorsError``.
  public init(_ path: String) throws {
    self.path = path
    memory = try FileMemory(mapping: path)
    header = try SafetensorsHeader.parse(UnsafeRawBufferPointer(memory.bytes), fileSize: memory.bytes.count, file: path)
  }

  /// The same over a copy of bytes in memory; `name` is what messages call them.
  public init(_ bytes: some Collection<UInt8>, name: String) throws {
    path = name
    memory = FileMemory(copying: bytes)
    header = try SafetensorsHeader.parse(UnsafeRawBufferPointer(memory.bytes), fileSize: memory.bytes.count, file: name)
  }

  /// A tensor's dtype, shape and place in the file. Throws ``SafetensorsError`` for a name that isn't there, suggesting the nearest.
  public func info(_ name: String) throws -> SafetensorsHeader.Entry {
    guard let entry = header.entries[name] else {
      throw SafetensorsError(file: path, reason: "there is no tensor \"\(name)\".\(Suggestions.phrase(for: name, in: names))")
    }
    return entry
  }

  /// The tensor, over the file's own pages (copied only where the file doesn't align it to its dtype).
  /// Throws ``SafetensorsError`` for a name that isn't there, or a shape that libtorch refuses.
  public func tensor(_ name: String) throws -> Tensor {
    let entry = try info(name)
    guard entry.bytes.count > 0 else { return Tensor.empty(entry.shape, dtype: entry.dtype) }
    let start = memory.bytes.baseAddress! + entry.bytes.lowerBound
    if Int(bitPattern: start) % entry.dtype.itemSize != 0 {
      let copy = Tensor.empty(entry.shape, dtype: entry.dtype)
      copy.withUnsafeBytes { $0.copyMemory(from: UnsafeRawBufferPointer(start: start, count: entry.bytes.count)) }
      return copy
    }
    do {
      let memory = self.memory
      return try Tensor.over(start, shape: entry.shape, dtype: entry.dtype) { withExtendedLifetime(memory) {} }
    } catch { throw SafetensorsError(file: path, reason: "tensor \"\(name)\": \(error)") }
  }

  /// All tensors by name.
  public func tensors() throws -> [String: Tensor] {
    var result: [String: Tensor] = [:]
    for name in names { result[name] = try tensor(name) }
    return result
  }
}

/// The bytes of a file, mapped privately or copied, released when the last tensor over them is gone.
private final class FileMemory: @unchecked Sendable {
  let bytes: UnsafeMutableRawBufferPointer
  private let isMapped: Bool

  init(mapping path: String) throws {
    func refused(_ reason: String) -> SafetensorsError { SafetensorsError(file: path, reason: reason) }
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw refused("can't be opened: \(String(cString: strerror(errno)))") }
    defer { close(descriptor) }
    var status = stat()
    guard fstat(descriptor, &status) == 0 else { throw refused("can't be examined: \(String(cString: strerror(errno)))") }
    guard status.st_mode & S_IFMT == S_IFREG else { throw refused("is not a regular file") }
    let size = Int(status.st_size)
    // An empty file can't be mapped.
    guard size >= 8 else { throw refused("\(size) bytes are too few for a safetensors file (8 at least)") }
    // No swap is reserved for pages that will hardly ever be written.
    let address = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, descriptor, 0)
    guard let address, address != MAP_FAILED else { throw refused("can't be mapped: \(String(cString: strerror(errno)))") }
    bytes = UnsafeMutableRawBufferPointer(start: address, count: size)
    isMapped = true
  }

  init(copying source: some Collection<UInt8>) {
    bytes = .allocate(byteCount: source.count, alignment: 64)
    bytes.copyBytes(from: source)
    isMapped = false
  }

  deinit {
    if isMapped { munmap(bytes.baseAddress!, bytes.count) } else { bytes.deallocate() }
  }
}

/// Reading and writing checkpoints in the safetensors format.
public enum Safetensors {
  /// All tensors of a checkpoint, over the files' pages: a `.safetensors` file, a `.safetensors.index.json` with its shards beside it, or
  /// a folder with one of these (an index goes first, then `model.safetensors`, then the only `.safetensors` file).
  ///
  /// Of shards, the tensors that the index names are taken. Throws ``SafetensorsError``, naming the file, for what can't be read, a
  /// shard that is missing or lies outside the index's folder, and a tensor that is not in its shard.
  public static func load(_ path: String) throws -> [String: Tensor] {
    var isFolder: ObjCBool = false
    guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) else {
      throw SafetensorsError(file: path, reason: "there is no such file or folder")
    }
    let file = isFolder.boolValue ? try checkpointFile(inFolder: path) : path
    return file.hasSuffix(".json") ? try loadShards(index: file) : try SafetensorsFile(file).tensors()
  }

  private static func checkpointFile(inFolder folder: String) throws -> String {
    let files: [String]
    do { files = try FileManager.default.contentsOfDirectory(atPath: folder).sorted() } catch {
      throw SafetensorsError(file: folder, reason: "can't be listed: \(error.localizedDescription)")
    }
    let indexes = files.filter { $0.hasSuffix(".safetensors.index.json") }
    let single = files.filter { $0.hasSuffix(".safetensors") }
    let preferred = "model.safetensors"
    let chosen: String
    if indexes.contains(preferred + ".index.json") {
      chosen = preferred + ".index.json"
    } else if indexes.count == 1 {
      chosen = indexes[0]
    } else if indexes.isEmpty, single.contains(preferred) {
      chosen = preferred
    } else if indexes.isEmpty, single.count == 1 {
      chosen = single[0]
    } else if indexes.isEmpty, single.isEmpty {
      throw SafetensorsError(file: folder, reason: "there is no .safetensors file in this folder")
    } else {
      let candidates = (indexes.isEmpty ? single : indexes).joined(separator: ", ")
      throw SafetensorsError(file: folder, reason: "several checkpoints are in this folder (\(candidates)); name one of them")
    }
    return folder + "/" + chosen
  }

  private static func loadShards(index path: String) throws -> [String: Tensor] {
    func refused(_ reason: String) -> SafetensorsError { SafetensorsError(file: path, reason: reason) }
    guard let text = FileManager.default.contents(atPath: path) else { throw refused("can't be read") }
    let json: JSONValue
    do {
      json = try text.withUnsafeBytes { try JSONValue.parse($0.bindMemory(to: UInt8.self)) }
    } catch { throw refused("isn't valid JSON: \(error)") }
    guard let map = json["weight_map"]?.objectValue else { throw refused("there is no object \"weight_map\" (tensor name to shard file)") }

    let folder = (path as NSString).deletingLastPathComponent
    var shards: [String: SafetensorsFile] = [:]
    var result: [String: Tensor] = [:]
    for (name, value) in map.pairs {
      guard let shard = value.stringValue else {
        throw refused("weight_map \"\(name)\" is \(value.kindDescription) where a file name was expected")
      }
      // An index must not reach out of its own folder.
      guard !shard.isEmpty, !shard.contains("/"), !shard.contains("\\"), !shard.contains("\0"), shard != ".", !shard.contains("..") else {
        throw refused("weight_map \"\(name)\" names the shard \"\(shard)\", which is not a plain file name")
      }
      let file: SafetensorsFile
      if let opened = shards[shard] {
        file = opened
      } else {
        let shardPath = folder.isEmpty ? shard : folder + "/" + shard
        guard FileManager.default.fileExists(atPath: shardPath) else {
          throw refused("the shard \"\(shard)\" (of tensor \"\(name)\") is missing")
        }
        file = try SafetensorsFile(shardPath)
        shards[shard] = file
      }
      guard file.header.entries[name] != nil else { throw refused("tensor \"\(name)\" is not in its shard \"\(shard)\"") }
      result[name] = try file.tensor(name)
    }
    return result
  }

  /// Writes a checkpoint: to a temporary file in the same folder, flushed to the disk, then renamed over `path`, so that a reader (and
  /// a process that still has the old file mapped) sees the old file or the new one, whole.
  ///
  /// Tensors are written one after another, each copied only if it is not contiguous on the CPU. Larger element types come first, so
  /// that every tensor is aligned in the file. The default metadata is what Hugging Face's readers ask for.
  /// Throws ``SafetensorsError``: complex128 (the format lacks it), the name `__metadata__`, names longer than a header may be, and what
  /// the file system refuses.
  public static func save(_ tensors: [String: Tensor], to path: String, metadata: [String: String] = ["format": "pt"]) throws {
    func refused(_ reason: String) -> SafetensorsError { SafetensorsError(file: path, reason: reason) }
    func systemRefused(_ action: String) -> SafetensorsError { refused("\(action): \(String(cString: strerror(errno)))") }

    let order = tensors.sorted { ($1.value.dtype.itemSize, $0.key) < ($0.value.dtype.itemSize, $1.key) }
    var object = JSONObject()
    if !metadata.isEmpty {
      var pairs = JSONObject()
      for (key, value) in metadata.sorted(by: { $0.key < $1.key }) { pairs[key] = .string(value) }
      object[SafetensorsHeader.metadataKey] = .object(pairs)
    }
    var offset = 0
    for (name, tensor) in order {
      guard name != SafetensorsHeader.metadataKey else { throw refused("a tensor can't be called \"\(name)\"") }
      guard let dtype = tensor.dtype.safetensorsName else {
        throw refused("tensor \"\(name)\" is \(tensor.dtype), which the format lacks; save its real and imaginary parts")
      }
      let end = offset + tensor.byteCount
      object[name] = [
        "dtype": .string(dtype), "shape": .array(tensor.shape.map(JSONValue.integer)),
        "data_offsets": [.integer(offset), .integer(end)],
      ]
      offset = end
    }
    var header = Array(JSONValue.object(object).serialized().utf8)
    // Spaces up to a multiple of 8 align the data.
    header += [UInt8](repeating: UInt8(ascii: " "), count: (8 - header.count % 8) % 8)
    guard header.count <= SafetensorsHeader.maximumHeaderBytes else {
      throw refused("the header would take \(header.count) bytes, more than the allowed \(SafetensorsHeader.maximumHeaderBytes)")
    }

    let temporary = "\(path).\(getpid()).\(UInt32.random(in: 0...UInt32.max)).tmp"
    let descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o666)
    guard descriptor >= 0 else { throw systemRefused("can't create \(temporary)") }
    var isOpen = true
    var isDone = false
    defer {
      if isOpen { close(descriptor) }
      if !isDone { unlink(temporary) }
    }
    func write(_ bytes: UnsafeRawBufferPointer) throws {
      var rest = bytes
      while rest.count > 0 {
        // Linux moves at most 2 GiB a call, and macOS refuses more.
        let written = Foundation.write(descriptor, rest.baseAddress!, min(rest.count, 1 << 30))
        if written < 0 && errno == EINTR { continue }
        guard written > 0 else { throw systemRefused("can't write \(temporary)") }
        rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(written))
      }
    }
    try withUnsafeBytes(of: UInt64(header.count).littleEndian) { try write($0) }
    try header.withUnsafeBytes { try write($0) }
    for (_, tensor) in order {
      try materialized(tensor).withUnsafeBytes { try write(UnsafeRawBufferPointer($0)) }
    }
    guard fsync(descriptor) == 0 else { throw systemRefused("can't flush \(temporary)") }
    isOpen = false
    guard close(descriptor) == 0 else { throw systemRefused("can't close \(temporary)") }
    guard rename(temporary, path) == 0 else { throw systemRefused("can't rename \(temporary)") }
    isDone = true
    flushFolder(of: path)
  }

  /// Makes the renaming itself survive a loss of power, where the file system can.
  private static func flushFolder(of path: String) {
    let folder = (path as NSString).deletingLastPathComponent
    let descriptor = open(folder.isEmpty ? "." : folder, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return }
    fsync(descriptor)
    close(descriptor)
  }

  /// The tensor's elements in row-major order in the CPU's memory, with pending conjugation and negation done.
  private static func materialized(_ tensor: Tensor) -> Tensor {
    resolveNegation(.tensor(tensor.detached().resolvingConjugate())).to(.cpu).contiguous()
  }
  private static let resolveNegation = Operator("aten::resolve_neg")

  /// Writes a checkpoint in shards of at most `maximumShardBytes` (a larger tensor gets a shard of its own):
  /// `model-00001-of-0000N.safetensors` …, then `model.safetensors.index.json`. What fits one shard is written as `model.safetensors` without an index, as Hugging Face does.
  ///
  /// Each file is written as ``save(_:to:metadata:)`` does, the index last; shards and an index that an earlier save left in the folder and
  /// that are no part of this checkpoint are then removed. Throws ``SafetensorsError``.
  public static func saveSharded(
    _ tensors: [String: Tensor], toFolder folder: String, maximumShardBytes: Int = 5_000_000_000,
    metadata: [String: String] = ["format": "pt"]
  ) throws {
    guard maximumShardBytes > 0 else { throw SafetensorsError(file: folder, reason: "shards of \(maximumShardBytes) bytes hold nothing") }
    do { try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true) } catch {
      throw SafetensorsError(file: folder, reason: "can't be created: \(error.localizedDescription)")
    }
    var shards: [[String: Tensor]] = [[:]]
    var filled = 0
    for (name, tensor) in tensors.sorted(by: { $0.key < $1.key }) {
      if filled > 0 && filled + tensor.byteCount > maximumShardBytes {
        shards.append([:])
        filled = 0
      }
      shards[shards.count - 1][name] = tensor
      filled += tensor.byteCount
    }
    let indexName = "model.safetensors.index.json"
    if shards.count == 1 {
      try save(tensors, to: folder + "/model.safetensors", metadata: metadata)
      try removeStale(inFolder: folder, keeping: ["model.safetensors"])
      return
    }
    var map: [(String, String)] = []
    var files: Set<String> = [indexName]
    for (number, shard) in shards.enumerated() {
      let name = "model-\(padded(number + 1))-of-\(padded(shards.count)).safetensors"
      try save(shard, to: folder + "/" + name, metadata: metadata)
      files.insert(name)
      map += shard.keys.map { ($0, name) }
    }
    var weightMap = JSONObject()
    for (tensor, shard) in map.sorted(by: { $0.0 < $1.0 }) { weightMap[tensor] = .string(shard) }
    let total = tensors.values.reduce(0) { $0 + $1.byteCount }
    let index: JSONValue = ["metadata": ["total_size": .integer(total)], "weight_map": .object(weightMap)]
    do {
      try Data((index.serialized(indentation: 2) + "\n").utf8).write(to: URL(fileURLWithPath: folder + "/" + indexName), options: .atomic)
    } catch { throw SafetensorsError(file: folder + "/" + indexName, reason: "can't be written: \(error.localizedDescription)") }
    try removeStale(inFolder: folder, keeping: files)
  }

  private static func padded(_ number: Int) -> String {
    let digits = String(number)
    return String(repeating: "0", count: max(0, 5 - digits.count)) + digits
  }

  /// Removes the checkpoint files of an earlier ``saveSharded(_:toFolder:maximumShardBytes:metadata:)`` that this one didn't write.
  private static func removeStale(inFolder folder: String, keeping files: Set<String>) throws {
    for file in (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? [] where !files.contains(file) {
      let isShard = file.wholeMatch(of: /model-\d{5,}-of-\d{5,}\.safetensors/) != nil
      guard isShard || file == "model.safetensors" || file == "model.safetensors.index.json" else { continue }
      guard unlink(folder + "/" + file) == 0 else {
        throw SafetensorsError(file: folder + "/" + file, reason: "is left from an earlier save and can't be removed")
      }
    }
  }
}
