/// Brings images to what a vision model reads, as a `preprocessor_config.json` says: resize, crop, rescale, normalise.
public struct ImagePreprocessor: Sendable, Equatable {
  public enum Size: Sendable, Equatable {
    case exact(width: Int, height: Int)
    /// The shorter edge gets this length, the proportions stay; the longer one at most so much, if given.
    case shortestEdge(Int, longest: Int?)
  }

  /// `nil` to keep the size.
  public var size: Size?
  public var filter: ResizingFilter
  /// `nil` to keep all.
  public var crop: (width: Int, height: Int)?
  /// Factor on the bytes.
  public var rescaling: Double
  /// Of each channel, or one for all; `nil` for none.
  public var mean: [Double]?
  public var deviation: [Double]?
  public var channels: Int

  public init(
    size: Size? = .exact(width: 224, height: 224), filter: ResizingFilter = .bilinear, crop: (width: Int, height: Int)? = nil,
    rescaling: Double = 1 / 255, mean: [Double]? = [0.5, 0.5, 0.5], deviation: [Double]? = [0.5, 0.5, 0.5], channels: Int = 3
  ) {
    self.size = size
    self.filter = filter
    self.crop = crop
    self.rescaling = rescaling
    self.mean = mean
    self.deviation = deviation
    self.channels = channels
  }

  public static func == (a: Self, b: Self) -> Bool {
    a.size == b.size && a.filter == b.filter && a.crop?.width == b.crop?.width && a.crop?.height == b.crop?.height
      && a.rescaling == b.rescaling && a.mean == b.mean && a.deviation == b.deviation && a.channels == b.channels
  }

  /// From the contents of a `preprocessor_config.json` of ViT, DeiT and their kin. Keys that are absent have ViT's values.
  ///
  /// Throws `ConfigurationError` that names the key.
  public init(preprocessor json: JSONValue, channels: Int = 3) throws {
    func given(_ key: String) -> JSONValue? { json[key].flatMap { $0 == .null ? nil : $0 } }
    func wrong(_ key: String, _ expected: String) -> ConfigurationError {
      ConfigurationError("\"\(key)\" of the image preprocessor must be \(expected), not \(given(key)?.serialized() ?? "absent")")
    }
    func flag(_ key: String, _ fallback: Bool) throws -> Bool {
      guard let value = given(key) else { return fallback }
      guard let flag = value.boolValue else { throw wrong(key, "true or false") }
      return flag
    }
    let edges = 1...(1 << 14)
    func edge(_ object: JSONValue, _ name: String, of key: String) throws -> Int? {
      guard let value = object[name], value != .null else { return nil }
      guard let number = value.intValue, edges.contains(number) else { throw wrong(key, "of lengths in 1...16384") }
      return number
    }
    func exact(_ key: String, _ fallback: Int) throws -> (width: Int, height: Int)? {
      guard let value = given(key) else { return (fallback, fallback) }
      if let number = value.intValue {
        guard edges.contains(number) else { throw wrong(key, "a length in 1...16384") }
        return (number, number)
      }
      guard let height = try edge(value, "height", of: key), let width = try edge(value, "width", of: key) else { return nil }
      return (width, height)
    }
    func numbers(_ key: String, _ fallback: [Double], isDivisor: Bool) throws -> [Double] {
      guard let value = given(key) else { return fallback }
      let list = value.arrayValue?.compactMap(\.doubleValue) ?? value.doubleValue.map { [$0] } ?? []
      guard list.count == (value.arrayValue?.count ?? 1), list.count == channels || list.count == 1,
        list.allSatisfy({ $0.isFinite && (!isDivisor || $0 != 0) })
      else { throw wrong(key, "\(channels) numbers" + (isDivisor ? " other than 0" : "")) }
      return list
    }
    var size: Size?
    if try flag("do_resize", true) {
      if let (width, height) = try exact("size", 224) {
        size = .exact(width: width, height: height)
      } else if let value = given("size"), let shortest = try edge(value, "shortest_edge", of: "size") {
        size = .shortestEdge(shortest, longest: try edge(value, "longest_edge", of: "size"))
      } else {
        throw wrong("size", "a length, {\"height\", \"width\"} or {\"shortest_edge\"}")
      }
    }
    var filter = ResizingFilter.bilinear
    if let value = given("resample") {
      guard let known = value.intValue.flatMap(ResizingFilter.init) else { throw wrong("resample", "a filter's number in 0...5") }
      filter = known
    }
    var crop: (width: Int, height: Int)?
    if try flag("do_center_crop", false) {
      guard let found = try exact("crop_size", 224) else { throw wrong("crop_size", "a length or {\"height\", \"width\"}") }
      crop = found
    }
    var rescaling = 1.0
    if try flag("do_rescale", true) {
      rescaling = 1.0 / 255
      if let value = given("rescale_factor") {
        guard let factor = value.doubleValue, factor.isFinite else { throw wrong("rescale_factor", "a number") }
        rescaling = factor
      }
    }
    let normalises = try flag("do_normalize", true)
    let half = [Double](repeating: 0.5, count: channels)
    self.init(
      size: size, filter: filter, crop: crop, rescaling: rescaling,
      mean: normalises ? try numbers("image_mean", half, isDivisor: false) : nil,
      deviation: normalises ? try numbers("image_std", half, isDivisor: true) : nil, channels: channels)
  }

  /// One image, [1, channels, height, width].
  ///
  /// Throws `ConfigurationError` for an image so slender that it would grow beyond all bounds.
  public func callAsFunction(_ image: PixelImage) throws -> Tensor {
    var image = image.converted(channels: channels)
    if let size {
      let (width, height) = newSize(size, width: image.width, height: image.height)
      guard width > 0, height > 0, width <= PixelImage.largest, height <= PixelImage.largest, width * height <= PixelImage.largest else {
        throw ConfigurationError("an image of \(image.width)×\(image.height) pixels would become \(width)×\(height)")
      }
      image = image.resized(width: width, height: height, filter: filter)
    }
    if let crop { image = image.centreCropped(width: crop.width, height: crop.height) }
    var x = Tensor(image.pixels, [image.height, image.width, channels]).transposed(2, 0, 1).to(.float32) * rescaling
    func column(_ values: [Double]) -> Tensor { Tensor(values.map(Float.init), [values.count, 1, 1]) }
    if let mean { x = x - column(mean) }
    if let deviation { x = x / column(deviation) }
    return x.contiguous().expandedDimension(0)
  }

  /// Several images, [batch, channels, height, width]; they must come out in one size.
  public func callAsFunction(_ images: [PixelImage]) throws -> Tensor {
    let parts = try images.map { try self($0) }
    guard let first = parts.first, parts.allSatisfy({ $0.shape == first.shape }) else {
      throw ConfigurationError("the images come out in different sizes (or there are none); crop them to one (\"do_center_crop\")")
    }
    return concatenated(parts)
  }

  private func newSize(_ size: Size, width: Int, height: Int) -> (width: Int, height: Int) {
    switch size {
    case .exact(let width, let height): return (width, height)
    case .shortestEdge(var shortest, let longest):
      let (short, long) = (Double(min(width, height)), Double(max(width, height)))
      var exact = Double(shortest)
      if let longest, long / short * exact > Double(longest) {
        exact = Double(longest) * short / long
        shortest = Int(exact.rounded(.toNearestOrEven))
      }
      let other = Int(exact * long / short)
      return width <= height ? (shortest, other) : (other, shortest)
    }
  }
}
