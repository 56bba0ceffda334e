import Foundation
import MartletModels
import Testing

@Suite struct ImageTests {
  private static func image() throws -> PixelImage {
    let x = try ShapeFixtures.frontEnd("image")
    return PixelImage(width: x.dim(1), height: x.dim(0), channels: 3, pixels: x.toArray(UInt8.self))
  }

  @Test(arguments: ResizingFilter.allCases) func resizedBytesAreThoseOfPillow(_ filter: ResizingFilter) throws {
    let image = try Self.image()
    for (width, height) in [(16, 9), (50, 31), (37, 40), (11, 23)] {
      let wanted = try ShapeFixtures.frontEnd("resized.\(filter.rawValue).\(width).\(height)").toArray(UInt8.self)
      let found = image.resized(width: width, height: height, filter: filter)
      #expect(found.width == width && found.height == height)
      let wrong = zip(found.pixels, wanted).filter { $0 != $1 }
      #expect(found.pixels.count == wanted.count && wrong.isEmpty, "\(width)×\(height): \(wrong.count) bytes differ")
    }
  }

  @Test func greyIsThatOfPillow() throws {
    #expect(try Self.image().converted(channels: 1).pixels == ShapeFixtures.frontEnd("grey").toArray(UInt8.self))
    let grey = PixelImage(width: 2, height: 1, channels: 1, pixels: [7, 200])
    #expect(grey.converted(channels: 3).pixels == [7, 7, 7, 200, 200, 200])
  }

  @Test(arguments: ["vit", "deit", "padded", "edge", "longest"]) func pixelsAreThoseOfTransformers(_ name: String) throws {
    let json = try #require(try ShapeFixtures.json("preprocessors.json")[name])
    let found = try ImagePreprocessor(preprocessor: json)(try Self.image())
    let error = relativeDifference(found, try ShapeFixtures.frontEnd("pixels.\(name)"))
    #expect(error < 1e-6, "differs by \(error) (\(found.shape))")
  }

  @Test func oldConfigurationsAndWrongOnesAreUnderstood() throws {
    let old = try ImagePreprocessor(preprocessor: ["size": 24, "resample": 3, "do_center_crop": false, "image_mean": [0, 0, 0]])
    #expect(old.size == .exact(width: 24, height: 24) && old.filter == .bicubic && old.mean == [0, 0, 0] && old.crop == nil)
    func message(_ json: JSONValue) -> String {
      do {
        _ = try ImagePreprocessor(preprocessor: json)
        return "accepted"
      } catch { return "\(error)" }
    }
    #expect(message(["size": 0]).contains("\"size\""))
    #expect(message(["size": ["height": 1_000_000_000, "width": 2]]).contains("\"size\""))
    #expect(message(["size": ["depth": 3]]).contains("shortest_edge"))
    #expect(message(["resample": 9]).contains("\"resample\""))
    #expect(message(["image_std": [1, 0, 1]]).contains("other than 0"))
    #expect(message(["image_mean": [1, 2]]).contains("3 numbers"))
    #expect(message(["do_resize": "yes"]).contains("do_resize"))
    // One pixel high and very wide: the proportions would ask for gigabytes.
    let slender = PixelImage(width: 1 << 20, height: 1, channels: 1, pixels: [UInt8](repeating: 0, count: 1 << 20))
    #expect(throws: ConfigurationError.self) {
      try ImagePreprocessor(size: .shortestEdge(1 << 14, longest: nil), mean: nil, deviation: nil, channels: 1)(slender)
    }
  }

  static let files = [
    "colour.png", "transparent.png", "palette.png", "grey.png", "bits.png", "halved.jpg", "full.jpg", "progressive.jpg", "grey.jpg",
  ]

  @Test(arguments: files) func filesAreReadAsPillowReadsThem(_ name: String) throws {
    let wanted = try ShapeFixtures.frontEnd("file.\(name)")
    let found = try PixelImage(contentsOf: ShapeFixtures.folder + "/images/" + name)
    #expect([found.height, found.width] == Array(wanted.shape[..<2]) && found.channels == (wanted.rank == 3 ? 3 : 1))
    let bytes = wanted.toArray(UInt8.self)
    let furthest = zip(found.pixels, bytes).map { abs(Int($0) - Int($1)) }.max()
    // PNG loses nothing; decoders of JPEG may round differently.
    #expect(furthest! <= (name.hasSuffix(".png") ? 0 : 2) && found.pixels.count == bytes.count, "differs by \(furthest!)")
  }

  @Test(arguments: files) func damagedFilesAreRefusedOrReadButNeverCrash(_ name: String) throws {
    let whole = try Data(contentsOf: URL(fileURLWithPath: ShapeFixtures.folder + "/images/" + name))
    for length in stride(from: 0, to: whole.count - 20, by: max(1, whole.count / 150)) {
      #expect(throws: FileError.self, "\(length) of \(whole.count) bytes") { try PixelImage(whole.prefix(length), name: "cut") }
    }
    var random = SystemIndependentNumbers(seed: 5)
    for _ in 0..<200 {
      var damaged = whole
      for _ in 0..<3 { damaged[Int(random.next() % UInt64(whole.count))] = UInt8(truncatingIfNeeded: random.next() >> 32) }
      if let image = try? PixelImage(damaged, name: "damaged") {
        #expect(image.pixels.count == image.width * image.height * image.channels)
      }
    }
  }

  @Test func imagesThatAreNotReadAreRefusedByName() throws {
    func message(_ data: Data) -> String {
      do {
        _ = try PixelImage(data, name: "x")
        return "accepted"
      } catch { return "\(error)" }
    }
    let folder = URL(fileURLWithPath: ShapeFixtures.folder + "/images")
    #expect(message(try Data(contentsOf: folder.appendingPathComponent("cmyk.jpg"))).contains("CMYK"))
    #expect(message(Data("GIF89a".utf8)).contains("x: is not an image"))
    // A header that claims 65,500 pixels squared.
    var claim = try Data(contentsOf: folder.appendingPathComponent("grey.jpg"))
    let frame = try #require(claim.firstRange(of: [0xFF, 0xC0]))
    claim.replaceSubrange(frame.lowerBound + 5..<frame.lowerBound + 9, with: [0xFF, 0xDC, 0xFF, 0xDC])
    #expect(message(claim).contains("too many pixels"))
    #expect(throws: FileError.self) { try PixelImage(contentsOf: "/no/such/image.png") }
  }

  @Test func portableMapsAreRead() throws {
    func read(_ text: String, _ bytes: [UInt8] = []) throws -> PixelImage { try PixelImage(Data(text.utf8) + Data(bytes), name: "x.ppm") }
    let colour = try read("P6 # a comment\n2 1\n255\n", [1, 2, 3, 250, 251, 252])
    #expect(colour == PixelImage(width: 2, height: 1, channels: 3, pixels: [1, 2, 3, 250, 251, 252]))
    #expect(try read("P5\n1 2\n15\n", [0, 15]).pixels == [0, 255])
    #expect(try read("P5\n1 1\n65535\n", [0x80, 0x80]).pixels == [128])
    #expect(try read("P2\n2 1\n4\n0 # dark\n 4").pixels == [0, 255])
    #expect(try read("P3\n1 1\n255\n9 8 7").pixels == [9, 8, 7])
    func message(_ text: String, _ bytes: [UInt8] = []) -> String {
      do {
        _ = try read(text, bytes)
        return "accepted"
      } catch { return "\(error)" }
    }
    #expect(message("P6\n2 2\n255\n", [1, 2, 3]).contains("truncated"))
    #expect(message("P6\n1000000 1000000\n255\n").contains("claims"))
    #expect(message("P3\n10000 10000\n255\n1 2").contains("ends before"))
    #expect(message("P6\n2 2\n70000\n").contains("levels"))
    #expect(message("P6\n2 x\n").contains("no height"))
    #expect(message("P6\n99999999999999999999 1\n255\n").contains("claims"))
    #expect(message("P9\n").contains("x.ppm"))
    #expect(message("").contains("x.ppm"))
    let whole = Array("P6\n3 2\n255\n".utf8) + [UInt8](0..<18)
    for length in 0..<whole.count { #expect(throws: FileError.self) { try PixelImage(Data(whole[..<length]), name: "cut") } }
  }
}

/// The generator SplitMix64, for tests that need the same numbers everywhere.
private struct SystemIndependentNumbers {
  private var state: UInt64
  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }
}
