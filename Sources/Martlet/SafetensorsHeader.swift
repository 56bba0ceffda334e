import Foundation

/// A safetensors file that can't be read or written: which file, and why, with the tensor's name and the numbers.
public struct SafetensorsError: Error, CustomStringConvertible, Sendable {
  public let file: String
  public let reason: String
  public init(file: String, reason: String) {
    self.file = file
    self.reason = reason
  }
  public var description: String { "\(file): \(reason)" }
}

/// The header of a safetensors file: 8 bytes with its length (little-endian), then JSON that gives each tensor's dtype, shape and
/// place, then the tensors' bytes.
///
/// A header that parses is safe to read by: every tensor lies inside the file and has the size of its shape and dtype, no two overlap,
/// and together they cover all of the data (the format's rule, which leaves no room for hidden content).
public struct SafetensorsHeader: Sendable {
  /// Where a tensor lies.
  public struct Entry: Sendable, Hashable {
    public let dtype: DType
    public let shape: [Int]
    /// Offsets from the beginning of the file.
    public let bytes: Range<Int>
  }

  /// The tensors' names in the order of their bytes (equal places: in the header's order).
  public let names: [String]
  public let entries: [String: Entry]
  /// The text pairs under `__metadata__`.
  public let metadata: [String: String]
  /// Where the tensors' bytes begin, from the beginning of the file.
  public let dataOffset: Int

  /// The longest header that is read or written, as in the reference implementation.
  public static let maximumHeaderBytes = 100_000_000
  static let metadataKey = "__metadata__"

  /// Reads and checks the header. `bytes` is the beginning of the file (at least the header), `fileSize` the length of all of it, and
  /// `file` what messages call it. Throws ``SafetensorsError``.
  public static func parse(_ bytes: UnsafeRawBufferPointer, fileSize: Int, file: String) throws -> SafetensorsHeader {
    func refused(_ reason: String) -> SafetensorsError { SafetensorsError(file: file, reason: reason) }

    guard fileSize >= 8, bytes.count >= 8 else { throw refused("\(fileSize) bytes are too few for a safetensors file (8 at least)") }
    let declared = UInt64(littleEndian: bytes.loadUnaligned(as: UInt64.self))
    guard declared <= UInt64(maximumHeaderBytes) else {
      throw refused("the header claims \(declared) bytes, more than the allowed \(maximumHeaderBytes); is this a safetensors file?")
    }
    let length = Int(declared)
    guard length <= fileSize - 8, length <= bytes.count - 8 else {
      throw refused("the header claims \(length) bytes, but only \(min(fileSize, bytes.count) - 8) follow; the file may be cut off")
    }
    let text = UnsafeBufferPointer(rebasing: bytes.bindMemory(to: UInt8.self)[8..<(8 + length)])
    guard text.first == UInt8(ascii: "{") else { throw refused("the header doesn't begin with \"{\"; is this a safetensors file?") }
    let json: JSONValue
    do {
      json = try JSONValue.parse(text, maximumDepth: 16)
    } catch { throw refused("the header isn't valid JSON: \(error)") }
    guard let object = json.objectValue else { throw refused("the header is \(json.kindDescription) where an object was expected") }

    let dataOffset = 8 + length
    let dataSize = fileSize - dataOffset
    var names: [String] = []
    var entries: [String: Entry] = [:]
    var metadata: [String: String] = [:]
    for (name, value) in object.pairs {
      if name == metadataKey {
        guard let pairs = value.objectValue else { throw refused("__metadata__ is \(value.kindDescription) where an object was expected") }
        for (key, value) in pairs.pairs {
          guard let text = value.stringValue else {
            throw refused("__metadata__ \"\(key)\" is \(value.kindDescription) where a string was expected")
          }
          metadata[key] = text
        }
        continue
      }
      do {
        entries[name] = try entry(value, dataOffset: dataOffset, dataSize: dataSize)
      } catch let problem as EntryProblem { throw refused("tensor \"\(name)\": \(problem.reason)") }
      names.append(name)
    }

    let order = names.enumerated().map { (place: entries[$1]!.bytes, index: $0, name: $1) }.sorted {
      ($0.place.lowerBound, $0.place.upperBound, $0.index) < ($1.place.lowerBound, $1.place.upperBound, $1.index)
    }
    var end = dataOffset
    var previous = ""
    for (place, _, name) in order {
      if place.lowerBound < end {
        throw refused("tensors \"\(previous)\" and \"\(name)\" overlap at byte \(place.lowerBound - dataOffset) of the data")
      }
      if place.lowerBound > end {
        let hole = (end - dataOffset)..<(place.lowerBound - dataOffset)
        throw refused("bytes \(hole) of the data, before tensor \"\(name)\", belong to no tensor")
      }
      end = place.upperBound
      previous = name
    }
    if end != fileSize {
      throw refused("\(fileSize - end) bytes after the last tensor's end (byte \(end - dataOffset) of the data) belong to no tensor")
    }
    return SafetensorsHeader(names: order.map(\.name), entries: entries, metadata: metadata, dataOffset: dataOffset)
  }

  private struct EntryProblem: Error { let reason: String }

  /// Keys other than the format's three are passed over, as in the reference implementation.
  private static func entry(_ value: JSONValue, dataOffset: Int, dataSize: Int) throws -> Entry {
    guard let fields = value.objectValue else { throw EntryProblem(reason: "\(value.kindDescription) where an object was expected") }
    guard let dtypeName = fields["dtype"]?.stringValue else { throw EntryProblem(reason: "the key \"dtype\" is missing or isn't a string") }
    guard let dtype = DType(safetensorsName: dtypeName) else {
      throw EntryProblem(reason: "the dtype \"\(dtypeName)\" is not known here (known: \(DType.safetensorsNames.joined(separator: ", ")))")
    }
    let shape = try sizes("shape", fields)
    let offsets = try sizes("data_offsets", fields)
    guard offsets.count == 2 else { throw EntryProblem(reason: "data_offsets has \(offsets.count) numbers where 2 were expected") }
    guard offsets[0] <= offsets[1] else { throw EntryProblem(reason: "data_offsets begin at \(offsets[0]) after their end \(offsets[1])") }
    guard offsets[1] <= dataSize else {
      throw EntryProblem(reason: "data_offsets end at \(offsets[1]), but the file has \(dataSize) bytes of data; it may be cut off")
    }
    // All sizes, also beside a zero: libtorch computes strides from them.
    var count = 1
    var extent = 1
    for size in shape {
      let (product, overflow) = count.multipliedReportingOverflow(by: size)
      let (wider, tooWide) = extent.multipliedReportingOverflow(by: max(size, 1))
      if overflow || tooWide { throw EntryProblem(reason: "the shape \(shape) has more elements than 64 bits can count") }
      count = product
      extent = wider
    }
    let (size, overflow) = count.multipliedReportingOverflow(by: dtype.itemSize)
    guard !overflow, !extent.multipliedReportingOverflow(by: dtype.itemSize).overflow else {
      throw EntryProblem(reason: "the shape \(shape) has more bytes than 64 bits can count")
    }
    guard size == offsets[1] - offsets[0] else {
      throw EntryProblem(
        reason: "shape \(shape) of \(dtypeName) takes \(size) bytes, data_offsets \(offsets) hold \(offsets[1] - offsets[0])")
    }
    return Entry(dtype: dtype, shape: shape, bytes: (dataOffset + offsets[0])..<(dataOffset + offsets[1]))
  }

  /// A list of integers in 0 ..< 2^63.
  private static func sizes(_ key: String, _ fields: JSONObject) throws -> [Int] {
    guard let list = fields[key]?.arrayValue else { throw EntryProblem(reason: "the key \"\(key)\" is missing or isn't an array") }
    return try list.map { element in
      // The case itself, not `intValue`: 2.0 is not an integer here.
      guard case .integer(let size) = element, size >= 0 else {
        throw EntryProblem(reason: "\(key) holds \(element.kindDescription) where an integer from 0 to 2^63 - 1 was expected")
      }
      return size
    }
  }
}

extension DType {
  private static let byName: [String: DType] = [
    "BOOL": .bool, "U8": .uint8, "I8": .int8, "F8_E5M2": .float8e5m2, "F8_E4M3": .float8e4m3fn, "I16": .int16, "U16": .uint16,
    "F16": .float16, "BF16": .bfloat16, "I32": .int32, "U32": .uint32, "F32": .float32, "F64": .float64, "I64": .int64, "U64": .uint64,
    "C64": .complex64,
  ]
  private static let nameOf = Dictionary(uniqueKeysWithValues: byName.map { ($0.value, $0.key) })

  static let safetensorsNames = byName.keys.sorted()

  init?(safetensorsName name: String) {
    guard let dtype = Self.byName[name] else { return nil }
    self = dtype
  }

  /// The format's name; nil for complex128, which it lacks.
  var safetensorsName: String? { Self.nameOf[self] }
}
