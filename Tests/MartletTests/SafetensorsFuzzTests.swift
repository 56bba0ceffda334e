import Foundation
import Martlet
import Testing

/// Files damaged in every way we could think of: each must be refused with a ``SafetensorsError``, or be consistent to the last byte.
@Suite struct SafetensorsFuzzTests {
  @Test func damagedFilesAreRefusedOrConsistent() throws {
    var fuzzer = Fuzzer(seed: 20_260_101)
    var accepted = 0
    var refused = 0
    let start = Date()
    for round in 0..<100_000 {
      let bytes = fuzzer.file()
      do {
        let file = try SafetensorsFile(bytes, name: "round \(round)")
        if let problem = try inconsistency(of: file, bytes: bytes) {
          Issue.record("round \(round): \(problem)\n\(String(decoding: bytes, as: UTF8.self))")
          return
        }
        accepted += 1
      } catch is SafetensorsError {
        refused += 1
      } catch {
        Issue.record("round \(round): \(type(of: error)) \(error)")
        return
      }
    }
    print("safetensors: \(accepted) damaged files accepted, \(refused) refused in \(Int(Date().timeIntervalSince(start))) s")
    // The mutations must reach both sides of every check: many files stay valid, most do not.
    #expect(accepted > 1000 && refused > 50_000, "\(accepted) accepted, \(refused) refused")
  }

  /// What is wrong with a file that was accepted; nil when every byte of the data belongs to one tensor, which reads back as it.
  func inconsistency(of file: SafetensorsFile, bytes: [UInt8]) throws -> String? {
    var covered = file.header.dataOffset
    for name in file.names {
      let entry = try file.info(name)
      guard entry.bytes.lowerBound == covered else { return "\(name) begins at \(entry.bytes.lowerBound), not at \(covered)" }
      covered = entry.bytes.upperBound
      guard covered <= bytes.count else { return "\(name) ends at \(covered) of \(bytes.count)" }
      var count = 1.0
      for size in entry.shape { count *= Double(size) }
      guard count * Double(entry.dtype.itemSize) == Double(entry.bytes.count) else { return "\(name) has \(entry.bytes.count) bytes" }
      let tensor = try file.tensor(name)
      guard tensor.shape == entry.shape, tensor.dtype == entry.dtype else { return "\(name) has another shape or dtype" }
      let isSame = tensor.withUnsafeBytes { read in
        read.count == entry.bytes.count && bytes[entry.bytes].withUnsafeBytes { $0.elementsEqual(read) }
      }
      guard isSame else { return "\(name) reads other bytes than the file's" }
    }
    return covered == bytes.count ? nil : "\(bytes.count - covered) bytes belong to no tensor"
  }
}

private struct Fuzzer {
  /// SplitMix64.
  struct Generator: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
      state &+= 0x9E37_79B9_7F4A_7C15
      var z = state
      z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
      z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
      return z ^ (z >> 31)
    }
  }

  var generator: Generator
  private let plain: [[UInt8]]

  init(seed: UInt64) {
    generator = Generator(state: seed)
    plain = [Self.layouts[0], Self.layouts[1]].map { Self.assemble(header: Self.text($0), data: 34) }
  }

  /// One tensor of a header, as text, so that anything can stand in any place.
  struct Member {
    var name, dtype: String
    var shape, offsets: [String]
    var extra = ""
  }

  static let layouts: [[Member]] = [
    [
      Member(name: "a", dtype: "F32", shape: ["2", "3"], offsets: ["0", "24"]),
      Member(name: "b.c", dtype: "F16", shape: ["4"], offsets: ["24", "32"]),
      Member(name: "d", dtype: "BOOL", shape: ["2", "1"], offsets: ["32", "34"]),
    ],
    [
      Member(name: "w", dtype: "I64", shape: ["4"], offsets: ["0", "32"]),
      Member(name: "e", dtype: "F32", shape: ["0", "7"], offsets: ["32", "32"]),
      Member(name: "s", dtype: "BF16", shape: [], offsets: ["32", "34"]),
    ],
  ]
  static let numbers = [
    "0", "1", "2", "3", "4", "6", "8", "12", "24", "32", "33", "34", "35", "-1", "-0", "01", "1.0", "1e1", "2147483648", "4294967296",
    "4611686018427387904", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1e400", "null", "\"4\"", "[]", "true", "",
  ]
  static let dtypes = [
    "F32", "F64", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL", "F8_E4M3", "F8_E5M2", "C64", "F4", "f32", "",
  ]
  static let tokens = [
    "{", "}", "[", "]", ",", ":", "\"", "\\", "\\u0000", "\\ud800", "null", " ", "\n", "\0", "é", "1", "-", "{}", "\"a\":", "0,",
  ]

  static func text(_ members: [Member]) -> String {
    var text = #"{"__metadata__":{"format":"pt"}"#
    for member in members {
      text += #","\#(member.name)":{"dtype":"\#(member.dtype)","shape":[\#(member.shape.joined(separator: ","))],"#
      text += #""data_offsets":[\#(member.offsets.joined(separator: ","))]\#(member.extra)}"#
    }
    return text + "}"
  }

  static func assemble(header: String, data: Int, declared: UInt64? = nil) -> [UInt8] {
    let length = declared ?? UInt64(header.utf8.count)
    var file = withUnsafeBytes(of: length.littleEndian) { [UInt8]($0) }
    file.append(contentsOf: header.utf8)
    for i in 0..<data { file.append(UInt8(truncatingIfNeeded: i &* 37)) }
    return file
  }

  mutating func random(_ count: Int) -> Int { Int(generator.next() % UInt64(count)) }
  mutating func pick<T>(_ list: [T]) -> T { list[random(list.count)] }

  mutating func file() -> [UInt8] { random(2) == 0 ? rewritten() : damaged() }

  /// Edits of the header's meaning: still mostly JSON, with its length right.
  mutating func rewritten() -> [UInt8] {
    var members = pick(Self.layouts)
    var data = 34
    for _ in 0...random(2) {
      let i = random(members.count)
      switch random(11) {
      case 0: members[i].dtype = pick(Self.dtypes)
      case 1: if !members[i].shape.isEmpty { members[i].shape[random(members[i].shape.count)] = pick(Self.numbers) }
      case 2: members[i].offsets[random(2)] = pick(Self.numbers)
      case 3: members[i].shape.insert(pick(Self.numbers), at: random(members[i].shape.count + 1))
      case 4: members[i].shape.shuffle(using: &generator)
      case 5: members[i].name = pick(["a", "d", "w", "e", "", "__metadata__", "\\u0061", "é", "e\\u0301", "x\\u0000"])
      case 6: members.append(members[i])
      case 7: if members.count > 1 { members.remove(at: i) }
      case 8: members.shuffle(using: &generator)
      case 9:
        members[i].extra = pick([",\"x\":1", ",\"shape\":[1]", ",", ",\"x\":" + String(repeating: "[", count: 40), ",\"x\":{\"y\":[]}"])
      default: data = max(0, 34 + random(5) - 2)
      }
      if members.isEmpty { break }
    }
    return Self.assemble(header: Self.text(members), data: data)
  }

  /// Edits of the bytes.
  mutating func damaged() -> [UInt8] {
    var file = pick(plain)
    for _ in 0...random(3) where file.count > 8 {
      switch random(8) {
      case 0: file[random(file.count)] ^= 1 << UInt8(random(8))
      case 1: file[random(file.count)] = UInt8(random(256))
      case 2: file.removeLast(random(file.count))
      case 3: file.append(contentsOf: (0..<random(20)).map { _ in UInt8(random(256)) })
      case 4:
        // The length of the header, by a little or to an extreme.
        let lengths: [UInt64] = [0, 1, UInt64(file.count), UInt64(file.count) - 8, 100_000_000, 100_000_001, 1 << 63, .max, .max - 7]
        let near = UInt64(bitPattern: Int64(file[0]) + Int64(random(9)) - 4)
        let length = random(2) == 0 ? near : pick(lengths)
        withUnsafeBytes(of: length.littleEndian) { bytes in for i in 0..<8 { file[i] = bytes[i] } }
      case 5:
        let from = random(file.count)
        let piece = Array(file[from..<min(file.count, from + random(30))])
        file.insert(contentsOf: piece, at: random(file.count + 1))
      case 6:
        let from = random(file.count)
        file.removeSubrange(from..<min(file.count, from + random(12)))
      default: file.insert(contentsOf: pick(Self.tokens).utf8, at: 8 + random(file.count - 7))
      }
    }
    return file
  }
}
