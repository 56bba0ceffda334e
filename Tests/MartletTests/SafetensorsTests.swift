import Foundation
import Martlet
import Testing

@Suite struct SafetensorsTests {
  // MARK: Files of the reference implementation

  let fixtures = Bundle.module.resourcePath! + "/Fixtures"

  /// What `Fixtures/make_safetensors.py` stores for an element type.
  func ramp(_ count: Int, _ dtype: DType) -> [Double] {
    (0..<count).map { i in
      if dtype == .bool { return i % 3 == 0 ? 1 : 0 }
      return dtype.isFloatingPoint || dtype.isComplex ? Double(i) * 0.5 - 1 : Double(i % 100)
    }
  }

  @Test func everyDTypeOfTheReferenceIsRead() throws {
    let file = try SafetensorsFile(fixtures + "/every_dtype.safetensors")
    #expect(file.metadata == ["format": "pt", "note": "a \"quoted\" line\nand π"])
    #expect(file.names.count == 19)
    for dtype in DType.allCases where dtype != .complex128 {
      let tensor = try file.tensor("\(dtype)")
      #expect(tensor.dtype == dtype && tensor.shape == [2, 3])
      if dtype.isComplex {
        #expect(tensor.realPart.to(.float64).toArray(Double.self) == ramp(6, dtype))
        #expect(tensor.imaginaryPart.to(.float64).toArray(Double.self) == ramp(6, dtype).map { -$0 })
      } else {
        #expect(tensor.to(.float64).toArray(Double.self) == ramp(6, dtype), "\(dtype)")
      }
    }
    #expect(try file.tensor("scalar").shape == [] && file.tensor("scalar").item() == 3.5)
    #expect(try file.tensor("empty").shape == [0, 4])
    #expect(try file.tensor("naïve.😀").toArray(Double.self) == ramp(5, .float32))
    let info = try file.info("float64")
    #expect(info.dtype == .float64 && info.shape == [2, 3] && info.bytes.count == 48)
  }

  @Test func tensorsThatTheFileDoesNotAlignAreCopied() throws {
    let file = try SafetensorsFile(fixtures + "/misaligned.safetensors")
    #expect(try file.info("y").bytes.lowerBound % 8 != 0)
    #expect(try file.tensor("x").toArray(Float.self) == [-1, -0.5, 0, 0.5])
    #expect(try file.tensor("y").toArray(Int.self) == [0, 1, 2])
  }

  @Test(arguments: ["", "/model.safetensors.index.json"]) func shardsAreReadTogether(suffix: String) throws {
    let tensors = try Safetensors.load(fixtures + "/sharded" + suffix)
    #expect(tensors.keys.sorted() == ["a", "b", "c"])
    #expect(tensors["a"]!.toArray(Float.self) == [-1, -0.5, 0, 0.5] && tensors["a"]!.shape == [2, 2])
    #expect(tensors["b"]!.toArray(Int.self) == [0, 1, 2])
    #expect(tensors["c"]!.dtype == .bfloat16)
  }

  // MARK: Round trips

  /// A folder of its own, removed at the end.
  func inFolder(_ body: (String) throws -> Void) throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("martlet-" + UUID().uuidString).path
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    try body(folder)
  }

  @Test func everyDTypeSurvivesARoundTrip() throws {
    try inFolder { folder in
      var tensors = ["scalar": Tensor(2.5), "empty": Tensor.zeros([3, 0, 2]), "a/b.\"c\"\n😀": Tensor([1, 2] as [Float])]
      for dtype in DType.allCases where dtype != .complex128 { tensors["\(dtype)"] = Tensor(ramp(7, dtype), [7]).to(dtype) }
      let path = folder + "/x.safetensors"
      try Safetensors.save(tensors, to: path, metadata: ["format": "pt", "who": "é\u{1}"])
      let file = try SafetensorsFile(path)
      #expect(file.metadata == ["format": "pt", "who": "é\u{1}"])
      #expect(Set(file.names) == Set(tensors.keys))
      #expect(file.header.dataOffset % 8 == 0)
      for (name, tensor) in tensors {
        let read = try file.tensor(name)
        #expect(read.dtype == tensor.dtype && read.shape == tensor.shape)
        #expect(try file.info(name).bytes.lowerBound % tensor.dtype.itemSize == 0, "\(name) is not aligned")
        #expect(bytes(read) == bytes(tensor), "\(name)")
      }
      #expect(try FileManager.default.contentsOfDirectory(atPath: folder) == ["x.safetensors"], "a temporary file is left")
    }
  }

  func bytes(_ tensor: Tensor) -> [UInt8] { tensor.contiguous().withUnsafeBytes { [UInt8]($0) } }

  @Test func viewsAreWrittenAsTheyRead() throws {
    try inFolder { folder in
      let x = Tensor.arange(12).to(.float32).reshaped(3, 4)
      let z = Tensor.complex(Tensor([1, 2] as [Float]), Tensor([3, 4] as [Float]))
      let path = folder + "/x.safetensors"
      try Safetensors.save(
        ["t": x.transposed(), "row": x[1], "conj": z.conjugated(), "minus": z.conjugated().imaginaryPart], to: path)
      let read = try Safetensors.load(path)
      #expect(read["t"]!.toArray(Float.self) == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11])
      #expect(read["row"]!.toArray(Float.self) == [4, 5, 6, 7])
      #expect(read["conj"]!.imaginaryPart.toArray(Float.self) == [-3, -4])
      #expect(read["minus"]!.toArray(Float.self) == [-3, -4])
    }
  }

  @Test func editsInPlaceStayInMemory() throws {
    try inFolder { folder in
      let path = folder + "/x.safetensors"
      try Safetensors.save(["x": Tensor([1, 2, 3] as [Float])], to: path)
      var tensor: Tensor? = try SafetensorsFile(path).tensor("x")  // the file object is gone, the mapping must not be
      tensor!.fillInPlace(9)
      #expect(tensor!.toArray(Float.self) == [9, 9, 9])
      #expect(try Safetensors.load(path)["x"]!.toArray(Float.self) == [1, 2, 3])
      // A new file takes the place of the mapped one, which stays readable.
      try Safetensors.save(["x": Tensor.zeros([1 << 16])], to: path)
      #expect(tensor!.toArray(Float.self) == [9, 9, 9])
      tensor = nil
      #expect(try Safetensors.load(path)["x"]!.count == 1 << 16)
    }
  }

  @Test func nothingIsCopiedOnLoading() throws {
    try inFolder { folder in
      let path = folder + "/x.safetensors"
      try Safetensors.save(["x": Tensor.zeros([8]), "y": Tensor.zeros([8])], to: path)
      let file = try SafetensorsFile(path)
      let one = try file.tensor("x")
      let other = try file.tensor("x")
      one.fillInPlace(5)
      #expect(other.toArray(Float.self) == [Float](repeating: 5, count: 8), "two tensors of one mapping share its pages")
    }
  }

  @Test func shardsHoldAtMostTheirSize() throws {
    try inFolder { folder in
      var tensors: [String: Tensor] = [:]
      for i in 0..<5 { tensors["layer.\(i)"] = Tensor([Float](repeating: Float(i), count: 100)) }
      tensors["large"] = Tensor.ones([1000])
      try Safetensors.saveSharded(tensors, toFolder: folder, maximumShardBytes: 900)
      let files = try FileManager.default.contentsOfDirectory(atPath: folder).sorted()
      // Sorted by name: [large], [0, 1], [2, 3], [4].
      #expect(files == (1...4).map { "model-0000\($0)-of-00004.safetensors" } + ["model.safetensors.index.json"])
      for (name, tensor) in try Safetensors.load(folder) { #expect(bytes(tensor) == bytes(tensors[name]!)) }
      #expect(try Safetensors.load(folder).count == 6)
      let index = try JSONValue.parse(String(contentsOfFile: folder + "/model.safetensors.index.json", encoding: .utf8))
      #expect(index["metadata"]?["total_size"] == 6000)

      // A later save of another size leaves nothing of the earlier one that a reader could take for it.
      try Safetensors.saveSharded(["only": Tensor.ones([2])], toFolder: folder)
      #expect(try FileManager.default.contentsOfDirectory(atPath: folder) == ["model.safetensors"])
      #expect(try Safetensors.load(folder).keys.sorted() == ["only"])
    }
  }

  // MARK: Refusals

  /// A file of the given header text and that many bytes of data.
  func made(_ header: String, data: Int = 0) -> [UInt8] {
    withUnsafeBytes(of: UInt64(header.utf8.count).littleEndian) { [UInt8]($0) } + Array(header.utf8) + [UInt8](repeating: 0, count: data)
  }

  func refusal(_ bytes: [UInt8]) -> String {
    do {
      let file = try SafetensorsFile(bytes, name: "f")
      return "accepted \(file.names)"
    } catch let error as SafetensorsError { return error.description } catch { return "another error: \(error)" }
  }

  func tensor(_ dtype: String = "F32", _ shape: String = "[2]", _ offsets: String = "[0,8]") -> String {
    #"{"dtype":"\#(dtype)","shape":\#(shape),"data_offsets":\#(offsets)}"#
  }

  @Test func theSmallestFilesAreAccepted() {
    #expect(refusal(made("{}")) == "accepted []")
    #expect(refusal(made("{}   ")) == "accepted []")
    #expect(refusal(made(#"{"x":\#(tensor())}"#, data: 8)) == #"accepted ["x"]"#)
    #expect(refusal(made(#"{"x":\#(tensor("F32", "[]", "[0,4]"))}"#, data: 4)) == #"accepted ["x"]"#)
    #expect(refusal(made(#"{"x":\#(tensor("F32", "[0,5]", "[0,0]")),"y":\#(tensor())}"#, data: 8)) == #"accepted ["x", "y"]"#)
  }

  @Test func theBeginningIsChecked() {
    #expect(refusal([]).contains("0 bytes are too few"))
    #expect(refusal([1, 0, 0]).contains("3 bytes are too few"))
    #expect(refusal([UInt8](repeating: 0xFF, count: 16)).contains("more than the allowed 100000000"))
    #expect(refusal([9, 0, 0, 0, 0, 0, 0, 0, 0x7B, 0x7D]).contains("claims 9 bytes, but only 2 follow"))
    #expect(refusal(made("")).contains("doesn't begin with"))
    #expect(refusal(made(" {}")).contains("doesn't begin with"))
    #expect(refusal(made("{")).contains("isn't valid JSON"))
    #expect(refusal(made("{} x")).contains("isn't valid JSON"))
    #expect(refusal([3, 0, 0, 0, 0, 0, 0, 0, 0x7B, 0xFF, 0x7D]).contains("isn't valid JSON"))
  }

  @Test func duplicatesAreRefused() {
    #expect(refusal(made(#"{"x":\#(tensor()),"x":\#(tensor())}"#, data: 8)).contains("the key \"x\" occurs twice"))
    #expect(refusal(made(#"{"x":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, data: 8)).contains("occurs twice"))
    #expect(refusal(made(#"{"__metadata__":{"a":"1","a":"2"}}"#)).contains("occurs twice"))
  }

  @Test func everyFieldIsChecked() {
    func entry(_ text: String, data: Int = 8) -> String { refusal(made(#"{"x":\#(text)}"#, data: data)) }
    #expect(entry("[]").contains("tensor \"x\": an array where an object"))
    #expect(entry(#"{"shape":[2],"data_offsets":[0,8]}"#).contains("\"dtype\" is missing"))
    #expect(entry(#"{"dtype":"F32","data_offsets":[0,8]}"#).contains("\"shape\" is missing"))
    #expect(entry(#"{"dtype":"F32","shape":[2]}"#).contains("\"data_offsets\" is missing"))
    #expect(entry(tensor("F99")).contains("dtype \"F99\" is not known"))
    #expect(entry(tensor("F32", "[-2]")).contains("the integer -2"))
    #expect(entry(tensor("F32", "[2.0]")).contains("the number 2.0"))
    #expect(entry(tensor("F32", "[9223372036854775808]")).contains("integer from 0 to 2^63 - 1"))
    #expect(entry(tensor("F32", "[4294967296,4294967296]")).contains("more elements than 64 bits"))
    // The product is 0, yet libtorch's strides would overflow.
    #expect(entry(tensor("F32", "[0,4294967296,4294967296]", "[0,0]"), data: 0).contains("more elements than 64 bits"))
    #expect(entry(tensor("F32", "[4611686018427387904]")).contains("more bytes than 64 bits"))
    #expect(entry(tensor("F32", "[2]", "[0,4]"), data: 4).contains("takes 8 bytes, data_offsets [0, 4] hold 4"))
    #expect(entry(tensor("F32", "[2]", "[8,0]")).contains("begin at 8 after their end 0"))
    #expect(entry(tensor("F32", "[2]", "[0,8,9]")).contains("3 numbers"))
    #expect(entry(tensor("F32", "[2]", "[0,8]"), data: 7).contains("end at 8, but the file has 7 bytes"))
    #expect(refusal(made(#"{"__metadata__":3}"#)).contains("__metadata__ is the integer 3"))
    #expect(refusal(made(#"{"__metadata__":{"a":1}}"#)).contains("__metadata__ \"a\" is the integer 1"))
  }

  @Test func theDataAreCoveredOnce() {
    let overlap = refusal(made(#"{"x":\#(tensor()),"y":\#(tensor("F32", "[2]", "[4,12]"))}"#, data: 12))
    #expect(overlap.contains("\"x\" and \"y\" overlap at byte 4"))
    let hole = refusal(made(#"{"x":\#(tensor()),"y":\#(tensor("F32", "[2]", "[12,20]"))}"#, data: 20))
    #expect(hole.contains("bytes 8..<12 of the data, before tensor \"y\""))
    #expect(refusal(made(#"{"x":\#(tensor("F32", "[2]", "[4,12]"))}"#, data: 12)).contains("bytes 0..<4"))
    #expect(refusal(made(#"{"x":\#(tensor())}"#, data: 9)).contains("1 bytes after the last tensor's end"))
    #expect(refusal(made("{}", data: 1)).contains("1 bytes after"))
  }

  @Test func missingThingsAreNamed() throws {
    try inFolder { folder in
      func message(_ body: @autoclosure () throws -> Any) -> String {
        do { return "accepted \(try body())" } catch { return "\(error)" }
      }
      #expect(message(try SafetensorsFile(folder + "/none")).contains("/none: can't be opened: No such file"))
      #expect(message(try SafetensorsFile(folder)).contains("is not a regular file"))
      #expect(message(try Safetensors.load(folder + "/none")).contains("there is no such file or folder"))
      #expect(message(try Safetensors.load(folder)).contains("no .safetensors file in this folder"))
      let path = folder + "/x.safetensors"
      try Safetensors.save(["weight": Tensor.ones([2])], to: path)
      #expect(message(try SafetensorsFile(path).tensor("wieght")).contains("no tensor \"wieght\". Did you mean \"weight\"?"))
      try Safetensors.save(["weight": Tensor.ones([2])], to: folder + "/y.safetensors")
      #expect(message(try Safetensors.load(folder)).contains("several checkpoints are in this folder (x.safetensors, y.safetensors)"))

      let index = folder + "/z.safetensors.index.json"
      func indexMessage(_ text: String) throws -> String {
        try text.write(toFile: index, atomically: true, encoding: .utf8)
        return message(try Safetensors.load(index))
      }
      #expect(try indexMessage("{}").contains("there is no object \"weight_map\""))
      #expect(try indexMessage("[").contains("isn't valid JSON"))
      let missing = try indexMessage(#"{"weight_map":{"weight":"q.safetensors"}}"#)
      #expect(missing.contains("the shard \"q.safetensors\" (of tensor \"weight\") is missing"))
      #expect(try indexMessage(#"{"weight_map":{"bias":"x.safetensors"}}"#).contains("\"bias\" is not in its shard \"x.safetensors\""))
      for shard in ["../x.safetensors", "/etc/passwd", "a/x.safetensors", "..", ".", "", "a\\\\b", "x\\u0000"] {
        #expect(try indexMessage(#"{"weight_map":{"weight":"\#(shard)"}}"#).contains("is not a plain file name"), "\(shard)")
      }
      #expect(try indexMessage(#"{"weight_map":{"weight":"x.safetensors"}}"#).hasPrefix("accepted"))
    }
  }

  @Test func whatTheFormatLacksIsNotWritten() throws {
    try inFolder { folder in
      let path = folder + "/x.safetensors"
      #expect(throws: SafetensorsError.self) { try Safetensors.save(["z": Tensor.zeros([1], dtype: .complex128)], to: path) }
      #expect(throws: SafetensorsError.self) { try Safetensors.save(["__metadata__": Tensor.zeros([1])], to: path) }
      #expect(throws: SafetensorsError.self) { try Safetensors.save(["x": Tensor.zeros([1])], to: folder + "/no/such/x.safetensors") }
      // Renaming over a folder fails after the temporary file is written: it must be gone again.
      try FileManager.default.createDirectory(atPath: folder + "/d", withIntermediateDirectories: true)
      #expect(throws: SafetensorsError.self) { try Safetensors.save(["x": Tensor.zeros([1])], to: folder + "/d") }
      #expect(try FileManager.default.contentsOfDirectory(atPath: folder) == ["d"])
    }
  }
}
