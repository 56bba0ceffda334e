import Foundation

/// Images of one size with their classes, as bytes.
public struct LabelledImages: Sendable {
  /// Rows and columns of an image.
  public let height: Int
  public let width: Int
  /// 1 (grey) or 3 (red, green, blue).
  public let channels: Int
  /// [count, channels, height, width], 0...255.
  public private(set) var pixels: [UInt8]
  /// [count].
  public private(set) var labels: [UInt8]

  public var count: Int { labels.count }
  public var bytesPerImage: Int { channels * height * width }

  /// Reads a pair of IDX files (the format of MNIST and its relatives), plain or gzip.
  ///
  /// Throws `DataError` naming the file for a wrong magic number, a truncated or overlong file and for different numbers of
  /// images and labels.
  public init(images: String, labels: String) throws {
    let (shape, pixels) = try Self.readIDX(images, rank: 3, what: "images")
    let (counts, classes) = try Self.readIDX(labels, rank: 1, what: "labels")
    guard shape[0] == counts[0] else {
      throw DataError(labels, "\(counts[0]) labels, but \(shape[0]) images in \(images)")
    }
    (height, width, channels) = (shape[1], shape[2], 1)
    self.pixels = pixels
    self.labels = classes
  }

  private static func readIDX(_ path: String, rank: Int, what: String) throws -> (shape: [Int], bytes: [UInt8]) {
    let reader = try ByteReader(path: path)
    let header = try reader.read(upTo: 4 + 4 * rank)
    let magic = [0, 0, 8, UInt8(rank)]
    guard header.prefix(4).elementsEqual(magic) else {
      throw DataError(
        path,
        "an IDX file of \(what) begins with the bytes \(hex(magic[...])), found \(header.isEmpty ? "an empty file" : hex(header.prefix(4)))"
      )
    }
    guard header.count == 4 + 4 * rank else {
      throw DataError(path, "the IDX header has \(4 + 4 * rank) bytes, the file only \(header.count)")
    }
    let shape = (1...rank).map { axis in (0..<4).reduce(0) { $0 << 8 | Int(header[4 * axis + $1]) } }
    let (size, overflow) = shape.reduce((1, false)) { product, length in
      let (value, over) = product.0.multipliedReportingOverflow(by: length)
      return (value, product.1 || over)
    }
    let shapeText = shape.map(String.init).joined(separator: "×")
    guard !overflow, size > 0, size <= 1 << 36 else { throw DataError(path, "the header's sizes \(shapeText) make no sense") }
    let bytes = try reader.read(upTo: size)
    guard bytes.count == size else {
      throw DataError(path, "the file is truncated: the header says \(shapeText) = \(size) bytes of \(what), found \(bytes.count)")
    }
    guard try reader.read(upTo: 1).isEmpty else {
      throw DataError(path, "the header says \(shapeText) = \(size) bytes of \(what), but more follows")
    }
    return (shape, bytes)
  }

  private static func hex(_ bytes: ArraySlice<UInt8>) -> String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: " ")
  }

  /// Reads the binary version of CIFAR-10, plain or gzip: records of one label and 3 · 32 · 32 bytes.
  ///
  /// Throws `DataError` naming the file when it is empty, when its size is no multiple of 3073 or a label is above 9.
  public init(cifar paths: [String]) throws {
    (height, width, channels) = (32, 32, 3)
    pixels = []
    labels = []
    let record = 1 + 3 * 32 * 32
    for path in paths {
      let bytes = try ByteReader(path: path).readAll(limit: 1 << 34)
      guard !bytes.isEmpty else { throw DataError(path, "the file is empty; CIFAR records of \(record) bytes were expected") }
      guard bytes.count % record == 0 else {
        throw DataError(
          path,
          "\(bytes.count) bytes are no whole number of CIFAR records of \(record): \(bytes.count / record) and \(bytes.count % record) bytes"
        )
      }
      pixels.reserveCapacity(pixels.count + bytes.count)
      for start in stride(from: 0, to: bytes.count, by: record) {
        guard bytes[start] < 10 else {
          throw DataError(path, "record \(start / record) has the label \(bytes[start]), expected 0...9")
        }
        labels.append(bytes[start])
        pixels.append(contentsOf: bytes[start + 1..<start + record])
      }
    }
  }

  /// The images with the given numbers, in their order.
  public func selecting(_ indices: [Int]) -> LabelledImages {
    var selected = self
    selected.labels = indices.map { labels[$0] }
    selected.pixels = []
    selected.pixels.reserveCapacity(indices.count * bytesPerImage)
    for index in indices { selected.pixels.append(contentsOf: pixels[index * bytesPerImage..<(index + 1) * bytesPerImage]) }
    return selected
  }

  /// One image as values 0...1 averaged over the cells of a `size`×`size` grid laid over it, row by row (grey images only).
  /// A pixel that a cell covers in part counts for that part.
  public func areaAverages(_ index: Int, size: Int) -> [Float] {
    precondition(channels == 1, "area averages need grey images")
    func weights(_ length: Int) -> [[(Int, Float)]] {
      let scale = Double(length) / Double(size)
      return (0..<size).map { cell in
        let (low, high) = (Double(cell) * scale, Double(cell + 1) * scale)
        return (Int(low)..<min(length, Int(high.rounded(.up)))).map { pixel in
          (pixel, Float((min(high, Double(pixel + 1)) - max(low, Double(pixel))) / scale))
        }
      }
    }
    let (rows, columns) = (weights(height), weights(width))
    let start = index * bytesPerImage
    return (0..<size * size).map { cell in
      var sum: Float = 0
      for (y, rowWeight) in rows[cell / size] {
        for (x, columnWeight) in columns[cell % size] {
          sum += rowWeight * columnWeight * Float(pixels[start + y * width + x])
        }
      }
      return sum / 255
    }
  }
}

/// The image files of one folder: pairs `…images-idx3-ubyte` and `…labels-idx1-ubyte`, or CIFAR-10's `….bin`, each maybe `.gz`.
///
/// Files whose name begins with `t10k` or contains `test` are the test set; without such a file, or with nothing else, `test` is
/// `nil` and everything is in `train`.
struct ImageFolder {
  let train: LabelledImages
  let test: LabelledImages?

  init(path: String) throws {
    let names: [String]
    do { names = try FileManager.default.contentsOfDirectory(atPath: path).sorted() } catch {
      throw DataError(path, "the folder can't be read: \(error.localizedDescription)")
    }
    func stem(_ name: String, _ ending: String) -> String? {
      let plain = name.hasSuffix(".gz") ? String(name.dropLast(3)) : name
      return plain.hasSuffix(ending) ? String(plain.dropLast(ending.count)) : nil
    }
    func isTest(_ name: String) -> Bool { name.hasPrefix("t10k") || name.contains("test") }

    var pairs: [(name: String, images: String, labels: String)] = []
    for separator in ["-", "."] {
      for name in names {
        guard let stem = stem(name, "images\(separator)idx3-ubyte") else { continue }
        let wanted = stem + "labels\(separator)idx1-ubyte"
        guard let labels = names.first(where: { $0 == wanted || $0 == wanted + ".gz" }) else {
          throw DataError(path + "/" + name, "its labels are missing: \(wanted) or \(wanted).gz was expected beside it")
        }
        if pairs.contains(where: { $0.name == stem }) { throw DataError(path, "there are two files of \(stem)images; keep one") }
        pairs.append((stem, path + "/" + name, path + "/" + labels))
      }
    }
    let records = names.filter { stem($0, ".bin") != nil }
    guard pairs.isEmpty || records.isEmpty else {
      throw DataError(path, "there are IDX files (\(pairs.count)) and CIFAR files (\(records.count)); put them in two folders")
    }
    guard !pairs.isEmpty || !records.isEmpty else {
      throw DataError(
        path,
        "no images: *images-idx3-ubyte with *labels-idx1-ubyte, or CIFAR-10's *.bin (each maybe .gz) were expected, found "
          + (names.isEmpty ? "an empty folder" : names.prefix(5).joined(separator: ", ")))
    }
    guard records.isEmpty else {
      let (test, train) = (records.filter(isTest), records.filter { !isTest($0) })
      self.train = try LabelledImages(cifar: (train.isEmpty ? test : train).map { path + "/" + $0 })
      self.test = train.isEmpty || test.isEmpty ? nil : try LabelledImages(cifar: test.map { path + "/" + $0 })
      return
    }
    let (test, train) = (pairs.filter { isTest($0.name) }, pairs.filter { !isTest($0.name) })
    guard train.count <= 1 && test.count <= 1 else {
      throw DataError(
        path, "one set of training images and one of test images were expected, found \(pairs.map(\.name).joined(separator: ", "))")
    }
    let first = (train.first ?? test.first)!
    self.train = try LabelledImages(images: first.images, labels: first.labels)
    self.test = try train.isEmpty ? nil : test.first.map { try LabelledImages(images: $0.images, labels: $0.labels) }
    if let other = self.test, (other.height, other.width) != (self.train.height, self.train.width) {
      throw DataError(
        test[0].images, "images of \(other.height)×\(other.width), but \(self.train.height)×\(self.train.width) in \(first.images)")
    }
  }
}
