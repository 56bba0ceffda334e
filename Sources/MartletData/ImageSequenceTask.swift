import Foundation

/// Classifies an image read pixel by pixel, row after row (sequential MNIST, permuted MNIST, sequential CIFAR-10, the image
/// task of the Long Range Arena).
public final class ImageSequenceTask: IndexedTask {
  /// What becomes of a pixel.
  public enum Encoding: Equatable, Sendable {
    /// x / 255, standardised per channel with mean and deviation of the training images: float32 [batch, length, channels].
    case continuous
    /// The grey level as one of 256 ids: int64 [batch, length].
    case tokens
  }

  public struct Options: Equatable, Sendable {
    public var encoding = Encoding.continuous
    /// Three channels; else grey = 0.2989 R + 0.5870 G + 0.1140 B, truncated to an integer.
    public var inColour = false
    /// Averages squares of so many pixels a side: 2 turns 28×28 into 14×14 = 196 positions.
    public var downscale = 1
    /// The positions in one fixed random order, that of this seed.
    public var permutation: UInt64?
    /// At most so many training images.
    public var trainLimit = Int.max
    /// At most so many validation images, and as many test images.
    public var evaluationLimit = Int.max
    /// Cuts a folder that has no test files into parts.
    public var splitSeed: UInt64 = 0

    public init() {}
  }

  public let name: String
  public let summary: String
  public let inputKind: InputKind
  public let objective: TaskObjective
  public let length: Int
  public let order: BatchOrder

  /// Mean and deviation of x / 255 per channel over the training images (over 5000 evenly spaced ones where there are more).
  public let mean: [Float]
  public let deviation: [Float]

  private let images: [DataSplit: LabelledImages]
  private let options: Options
  /// Position in the sequence -> pixel of the (downscaled) image.
  private let pixelAt: [Int]
  private let channels: Int

  /// - Parameter directory: a folder with IDX files or CIFAR-10's binary files, plain or gzip. With training and test files the
  ///   last tenth of the training images is the validation set; otherwise everything is shuffled (by `splitSeed`) and cut 80/10/10.
  /// - Throws: `DataError` for files that are missing or damaged, naming them, and for options that don't fit the images.
  public convenience init(directory: String, options: Options = Options()) throws {
    let folder = try ImageFolder(path: directory)
    let all = folder.train
    let label = "image folder \(URL(fileURLWithPath: directory).lastPathComponent)"
    guard let test = folder.test else {
      var random = SeededRandom(seed: options.splitSeed, stream: 0x696D_6167_6573)
      let shuffled = random.permutation(all.count)
      let (validation, test) = (all.count * 8 / 10, all.count * 9 / 10)
      try self.init(
        train: all.selecting(Array(shuffled[..<validation].prefix(options.trainLimit))),
        validation: all.selecting(Array(shuffled[validation..<test].prefix(options.evaluationLimit))),
        test: all.selecting(Array(shuffled[test...].prefix(options.evaluationLimit))), options: options, source: label)
      return
    }
    let validation = all.count * 9 / 10
    try self.init(
      train: all.selecting(Array((0..<validation).prefix(options.trainLimit))),
      validation: all.selecting(Array((validation..<all.count).prefix(options.evaluationLimit))),
      test: test.selecting(Array((0..<test.count).prefix(options.evaluationLimit))), options: options, source: label)
  }

  /// From images already read; all of one size.
  public init(
    train: LabelledImages, validation: LabelledImages, test: LabelledImages, options: Options = Options(), source: String = "images"
  ) throws {
    guard train.count > 0 else { throw DataError("\(source): no training images are left") }
    for other in [validation, test] {
      guard (other.height, other.width, other.channels) == (train.height, train.width, train.channels) else {
        throw DataError("\(source): training images are \(train.height)×\(train.width), others \(other.height)×\(other.width)")
      }
    }
    let scale = options.downscale
    guard scale >= 1, train.height % scale == 0, train.width % scale == 0 else {
      throw DataError("\(source): downscale \(scale) does not divide \(train.height)×\(train.width)")
    }
    guard !options.inColour || train.channels == 3 else { throw DataError("\(source): colour was asked for, but the images are grey") }
    guard !options.inColour || options.encoding == .continuous else {
      throw DataError("\(source): tokens are grey levels; ask for colour or for tokens, not for both")
    }
    self.options = options
    images = [.train: train, .validation: validation, .test: test]
    channels = options.inColour ? 3 : 1
    let (height, width) = (train.height / scale, train.width / scale)
    length = height * width
    order = BatchOrder(count: train.count)
    inputKind = options.encoding == .tokens ? .tokens(vocabulary: 256, padding: nil) : .continuous(channels: channels)
    let classes = max(2, 1 + Int([train, validation, test].map { $0.labels.max() ?? 0 }.max()!))
    objective = .classification(classes: classes)
    name = options.permutation == nil ? "image" : "permuted-image"
    summary =
      "Images as sequences: \(classes) classes from \(length) \(options.encoding == .tokens ? "grey levels" : "pixels of \(channels) channel\(channels == 1 ? "" : "s")")"
      + " (\(height)×\(width)\(options.permutation == nil ? "" : ", permuted")); \(train.count)/\(validation.count)/\(test.count) from \(source)"
    if let seed = options.permutation {
      var random = SeededRandom(seed: seed, stream: 0x7065_726D_7574_65)
      pixelAt = random.permutation(length)
    } else {
      pixelAt = Array(0..<length)
    }

    var sums = [Double](repeating: 0, count: channels)
    var squares = sums
    let sampled = min(train.count, 5000)
    for number in 0..<sampled {
      let levels = Self.levels(train, number * train.count / sampled, scale: scale, inColour: options.inColour)
      for (position, level) in levels.enumerated() {
        let value = Double(level) / 255
        sums[position / length] += value
        squares[position / length] += value * value
      }
    }
    let samples = Double(sampled * length)
    mean = sums.map { Float($0 / samples) }
    deviation = zip(sums, squares).map { sum, square in
      let variance = square / samples - (sum / samples) * (sum / samples)
      return variance > 1e-12 ? Float(variance.squareRoot()) : 1  // one flat colour: leave it as it is
    }
  }

  /// Grey levels or colours 0...255 after averaging, [channels, height, width].
  private static func levels(_ images: LabelledImages, _ index: Int, scale: Int, inColour: Bool) -> [Float] {
    let (height, width) = (images.height, images.width)
    let area = height * width
    let channels = inColour ? 3 : 1
    return images.pixels.withUnsafeBufferPointer { pixels in
      let image = UnsafeBufferPointer(rebasing: pixels[index * images.bytesPerImage..<(index + 1) * images.bytesPerImage])
      let isGreyed = images.channels == 3 && !inColour
      var result = [Float](repeating: 0, count: channels * (height / scale) * (width / scale))
      result.withUnsafeMutableBufferPointer { result in
        for channel in 0..<channels {
          for y in 0..<height {
            let row = (channel * (height / scale) + y / scale) * (width / scale)
            for x in 0..<width {
              let place = y * width + x
              let level =
                isGreyed
                ? (0.2989 * Float(image[place]) + 0.5870 * Float(image[area + place]) + 0.1140 * Float(image[2 * area + place])).rounded(
                  .down)
                : Float(image[channel * area + place])
              result[row + x / scale] += level
            }
          }
        }
        if scale > 1 { for place in result.indices { result[place] /= Float(scale * scale) } }
      }
      return result
    }
  }

  public func count(_ split: DataSplit) -> Int { images[split]!.count }

  public func batch(_ split: DataSplit, _ indices: [Int]) -> Batch {
    let images = self.images[split]!
    let targets = Tensor(indices.map { Int64(images.labels[$0]) }, [indices.count])
    if options.encoding == .tokens {
      var ids: [Int64] = []
      ids.reserveCapacity(indices.count * length)
      for index in indices {
        let levels = Self.levels(images, index, scale: options.downscale, inColour: false)
        for place in pixelAt { ids.append(Int64(levels[place].rounded())) }
      }
      return Batch(inputs: Tensor(ids, [indices.count, length]), targets: targets)
    }
    var values = [Float](repeating: 0, count: indices.count * length * channels)
    for (row, index) in indices.enumerated() {
      let levels = Self.levels(images, index, scale: options.downscale, inColour: options.inColour)
      for position in 0..<length {
        for channel in 0..<channels {
          values[(row * length + position) * channels + channel] =
            (levels[channel * length + pixelAt[position]] / 255 - mean[channel]) / deviation[channel]
        }
      }
    }
    return Batch(inputs: Tensor(values, [indices.count, length, channels]), targets: targets)
  }
}
