import Foundation

extension Tensor: CustomStringConvertible {
  /// The values (summarised beyond 1,000 elements), shape, dtype and device. Complex numbers are written `1+2i`.
  public var description: String {
    // Rendered as float32 where single elements can't be read.
    let readable = dtype == .float8e5m2 || dtype == .float8e4m3fn ? to(.float32) : self
    let values = Self.render(readable.detached().to(.cpu).resolvingConjugate(), summarised: count > 1000)
    let place = device == .cpu ? "" : ", device: \(device)"
    return "Tensor(\(values), shape: \(shape), dtype: \(dtype)\(place))"
  }

  private static func format(_ element: Tensor) -> String {
    func short(_ value: Double) -> String { String(format: "%.4g", value) }
    switch element.dtype {
    case .bool: return element.item() != 0 ? "true" : "false"
    case let type where type.isFloatingPoint: return short(element.item())
    case let type where type.isComplex:
      let imaginary = element.imaginaryPart.item()
      return short(element.realPart.item()) + (imaginary.sign == .minus ? "-" : "+") + short(imaginary.magnitude) + "i"
    default: return String(element.itemInt())
    }
  }

  private static func render(_ tensor: Tensor, summarised: Bool) -> String {
    if tensor.rank == 0 { return format(tensor) }
    let edge = 3
    let length = tensor.dim(0)
    let positions: [Int?] =
      summarised && length > 2 * edge ? Array(0..<edge) + [nil] + Array((length - edge)..<length) : Array(0..<length)
    let parts = positions.map { $0.map { render(tensor.selected(axis: 0, $0), summarised: summarised) } ?? "…" }
    return "[" + parts.joined(separator: tensor.rank == 1 ? ", " : ",\n ") + "]"
  }
}
