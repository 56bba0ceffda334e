import Foundation
import Testing

@testable import MartletData

@Suite struct ImageSequenceTaskTests {
  let folder = TemporaryFolder()

  private func idx(_ shape: [Int], _ bytes: [UInt8]) -> [UInt8] {
    let header: [UInt8] = [0, 0, 8, UInt8(shape.count)]
    return shape.reduce(header) { found, length in found + [24, 16, 8, 0].map { UInt8(length >> $0 & 255) } } + bytes
  }

  /// 20 images of 4×6; pixel p of image i is 10 i + p.
  private var pixels: [UInt8] { (0..<20).flatMap { image in (0..<24).map { UInt8(10 * image + $0) } } }
  private var labels: [UInt8] { (0..<20).map { UInt8($0 % 5) } }

  private func writePair(_ prefix: String, compressed: Bool = false) {
    let (images, classes) = (idx([20, 4, 6], pixels), idx([20], labels))
    if compressed {
      folder.compress("\(prefix)-images-idx3-ubyte.gz", images)
      folder.compress("\(prefix)-labels-idx1-ubyte.gz", classes)
    } else {
      folder.write("\(prefix)-images-idx3-ubyte", images)
      folder.write("\(prefix)-labels-idx1-ubyte", classes)
    }
  }

  @Test func pixelsComeRowByRowAsGreyLevels() throws {
    writePair("train")
    writePair("t10k", compressed: true)
    var options = ImageSequenceTask.Options()
    options.encoding = .tokens
    let task = try ImageSequenceTask(directory: folder.path, options: options)
    #expect(task.count(.train) == 18 && task.count(.validation) == 2 && task.count(.test) == 20)
    #expect(task.objective == .classification(classes: 5) && task.inputKind == .tokens(vocabulary: 256, padding: nil))
    let batch = try task.evaluationBatch(.test, index: 0, size: 20)!
    #expect(batch.inputs.toArray(UInt8.self) == pixels && batch.targets.toArray(UInt8.self) == labels)
    let validation = try task.evaluationBatch(.validation, index: 0, size: 20)!
    #expect(validation.inputs.toArray(UInt8.self) == Array(pixels.suffix(48)), "the last tenth of the training images")
  }

  @Test func continuousValuesAreStandardised() throws {
    writePair("train")
    writePair("t10k")
    let task = try ImageSequenceTask(directory: folder.path)
    let all = task.batch(.train, Array(0..<18))
    let values = all.inputs.toArray(Double.self)
    #expect(all.inputs.shape == [18, 24, 1])
    let mean = values.reduce(0, +) / Double(values.count)
    let deviation = (values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(values.count)).squareRoot()
    #expect(abs(mean) < 1e-5 && abs(deviation - 1) < 1e-5, "\(mean), \(deviation)")
    let pixel = (Float(pixels[24 * 3 + 7]) / 255 - task.mean[0]) / task.deviation[0]
    #expect(abs(Float(values[24 * 3 + 7]) - pixel) < 1e-6)
  }

  @Test func downscalingAveragesSquaresAndThePermutationIsFixed() throws {
    writePair("train")
    writePair("t10k")
    var options = ImageSequenceTask.Options()
    options.encoding = .tokens
    options.downscale = 2
    let small = try ImageSequenceTask(directory: folder.path, options: options)
    #expect(small.length == 6)
    let expected = (0..<2).flatMap { (y: Int) -> [Int] in
      (0..<3).map { (x: Int) -> Int in
        let corner = 12 * y + 2 * x
        let sum: Int = [0, 1, 6, 7].reduce(0) { $0 + Int(pixels[corner + $1]) }
        return Int((Double(sum) / 4).rounded())
      }
    }
    #expect(small.batch(.test, [0]).inputs.toArray(Int.self) == expected)

    options.downscale = 1
    options.permutation = 3
    let permuted = try ImageSequenceTask(directory: folder.path, options: options)
    let order = permuted.batch(.test, [0]).inputs.toArray(Int.self)  // image 0 holds 0...23
    #expect(order.sorted() == Array(0..<24) && order != Array(0..<24))
    #expect(permuted.batch(.train, [4]).inputs.toArray(Int.self) == order.map { $0 + 40 })
    options.permutation = 4
    #expect(try ImageSequenceTask(directory: folder.path, options: options).batch(.test, [0]).inputs.toArray(Int.self) != order)

    options.downscale = 3
    let error = #expect(throws: DataError.self) { try ImageSequenceTask(directory: folder.path, options: options) }
    #expect(error?.message.contains("downscale 3 does not divide 4×6") == true)
  }

  @Test func aFolderWithoutTestFilesIsCutInDisjointParts() throws {
    writePair("t10k")
    var options = ImageSequenceTask.Options()
    options.encoding = .tokens
    let task = try ImageSequenceTask(directory: folder.path, options: options)
    #expect(DataSplit.allCases.map(task.count) == [16, 2, 2])
    let firsts = DataSplit.allCases.flatMap {
      task.batch($0, Array(0..<task.count($0)))
        .inputs.selected(axis: 1, 0).toArray(Int.self)
    }
    #expect(firsts.sorted() == (0..<20).map { $0 * 10 })
    options.trainLimit = 5
    #expect(try ImageSequenceTask(directory: folder.path, options: options).count(.train) == 5)
  }

  @Test func colourRecordsBecomeGreyOrThreeChannels() throws {
    var random = SeededRandom(seed: 2)
    let records = (0..<10).map { index in [UInt8(index)] + (0..<3072).map { _ in UInt8(truncatingIfNeeded: random.next()) } }
    folder.write("data_batch_1.bin", Array(records[..<5].joined()))
    folder.write("data_batch_2.bin", Array(records[5...].joined()))
    folder.compress("test_batch.bin.gz", records[3])
    var options = ImageSequenceTask.Options()
    options.encoding = .tokens
    let grey = try ImageSequenceTask(directory: folder.path, options: options).batch(.test, [0])
    #expect(grey.targets.toArray(Int.self) == [3])
    let image = records[3].dropFirst().map(Double.init)
    let expected = (0..<1024).map { (place: Int) -> Int in
      let (red, green, blue) = (0.2989 * image[place], 0.5870 * image[1024 + place], 0.1140 * image[2048 + place])
      return Int(red + green + blue)
    }
    #expect(grey.inputs.toArray(Int.self) == expected)

    options.encoding = .continuous
    options.inColour = true
    let task = try ImageSequenceTask(directory: folder.path, options: options)
    #expect(task.inputKind == .continuous(channels: 3) && task.count(.train) == 9)
    let values = task.batch(.test, [0]).inputs
    #expect(values.shape == [1, 1024, 3])
    for channel in 0..<3 {
      let value = (Float(image[1024 * channel + 77]) / 255 - task.mean[channel]) / task.deviation[channel]
      #expect(abs(values[0, 77, channel].toArray(Float.self)[0] - value) < 1e-5)
    }
    options.encoding = .tokens
    #expect(throws: DataError.self) { try ImageSequenceTask(directory: folder.path, options: options) }
  }

  @Test func damagedFilesAreNamedWithWhatWasExpected() throws {
    let (images, classes) = (idx([20, 4, 6], pixels), idx([20], labels))
    let cases: [(images: [UInt8], labels: [UInt8], culprit: String, expected: String)] = [
      ([0, 0, 9, 3] + images.dropFirst(4), classes, "images", "00 00 08 03, found 00 00 09 03"), ([], classes, "images", "empty file"),
      (Array(images.prefix(9)), classes, "images", "16 bytes, the file only 9"),
      (Array(images.dropLast()), classes, "images", "480 bytes of images, found 479"), (images + [1], classes, "images", "more follows"),
      (images, idx([19], Array(labels.prefix(19))), "labels", "19 labels, but 20 images"), (images, images, "labels", "00 00 08 01"),
      (idx([1 << 30, 1 << 30, 1 << 30], []), classes, "images", "make no sense"),
      (idx([1 << 20, 64, 64], []), classes, "images", "found 0"),
    ]
    for test in cases {
      let folder = TemporaryFolder()
      folder.write("train-images-idx3-ubyte", test.images)
      folder.write("train-labels-idx1-ubyte", test.labels)
      let error = #expect(throws: DataError.self) { try ImageSequenceTask(directory: folder.path) }
      #expect(
        error?.message.hasPrefix("\(folder.path)/train-\(test.culprit)") == true && error?.message.contains(test.expected) == true,
        "\(error?.message ?? "none")")
    }
    for (records, expected) in [
      ([UInt8](repeating: 1, count: 3074), "1 and 1 bytes"), ([], "empty"), ([UInt8](repeating: 10, count: 3073), "label 10"),
    ] {
      let folder = TemporaryFolder()
      folder.write("train.bin", records)
      let error = #expect(throws: DataError.self) { try ImageSequenceTask(directory: folder.path) }
      #expect(error?.message.contains("train.bin") == true && error?.message.contains(expected) == true, "\(error?.message ?? "none")")
    }
    let empty = TemporaryFolder()
    #expect(throws: DataError.self) { try ImageSequenceTask(directory: empty.path) }
    empty.write("train-images-idx3-ubyte", images)
    let missing = #expect(throws: DataError.self) { try ImageSequenceTask(directory: empty.path) }
    #expect(missing?.message.contains("train-labels-idx1-ubyte") == true)
    let truncated = TemporaryFolder()
    truncated.compress("train-images-idx3-ubyte.gz", images)
    truncated.write("train-images-idx3-ubyte.gz", Array(truncated.bytes("train-images-idx3-ubyte.gz").dropLast(9)))
    truncated.write("train-labels-idx1-ubyte", classes)
    let error = #expect(throws: DataError.self) { try ImageSequenceTask(directory: truncated.path) }
    #expect(error?.message.contains("truncated") == true)
  }

  @Test func areaAveragesKeepTheMean() throws {
    writePair("train")
    let images = try LabelledImages(
      images: folder.path + "/train-images-idx3-ubyte", labels: folder.path + "/train-labels-idx1-ubyte")
    for size in [1, 2, 3, 5, 8] {
      let cells = images.areaAverages(7, size: size)
      let mean = cells.reduce(0, +) / Float(cells.count)
      #expect(cells.count == size * size && abs(mean - (70 + 11.5) / 255) < 1e-5, "size \(size): \(mean)")
    }
    // 4×6 to 2×2: cells of two rows and three columns.
    let first = Float([0, 1, 2, 6, 7, 8].reduce(0, +)) / 6 / 255
    #expect(abs(images.areaAverages(0, size: 2)[0] - first) < 1e-6)
  }

  @Test func digitsCanBeMadeOfImageFiles() throws {
    writePair("t10k", compressed: true)
    let counts = SplitCounts(train: 10, validation: 5, test: 5)
    let task = try DigitsTask(directory: folder.path, counts: counts, seed: 1)
    let images = try LabelledImages(
      images: folder.path + "/t10k-images-idx3-ubyte.gz", labels: folder.path + "/t10k-labels-idx1-ubyte.gz")
    let expected = Dictionary(uniqueKeysWithValues: (0..<20).map { (images.areaAverages($0, size: 8), Int(images.labels[$0])) })
    var found: Set<[Float]> = []
    for split in DataSplit.allCases {
      let batch = task.batch(split, Array(0..<task.count(split)))
      for (row, label) in batch.targets.toArray(Int.self).enumerated() {
        let values = batch.inputs[row].toArray(Float.self)
        #expect(expected[values] == label)
        found.insert(values)
      }
    }
    #expect(found.count == 20, "every image is in one split")
    let error = #expect(throws: DataError.self) {
      try DigitsTask(directory: folder.path, counts: SplitCounts(train: 11, validation: 5, test: 5))
    }
    #expect(error?.message.contains("21 images are needed, found 20") == true)
  }
}
