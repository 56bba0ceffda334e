import Foundation

extension Tensor: CustomStringConvertible {
  /// The values (summarised beyond 1,000 elements), shape, dtype and device.
  public var description: String {
    let summarised = count > 1000
    let values = dtype.isComplex ? "…" : render(detached().to(.cpu), summarised: summarised)
    let place = device == .cpu ? "" : ", device: \(device)"
    return "Tensor(\(values), shape: \(shape), dtype: \(dtype)\(place))"
  }

  private func render(_ tensor: Tensor, summarised: Bool) -> String {
    let edge = 3
    func format(_ value: Double) -> String {
      switch tensor.dtype {
      case .bool: value != 0 ? "true" : "false"
      case let type where type.isFloatingPoint: String(format: "%.4g", value)
      default: String(Int(value))
      }
    }
    if tensor.rank == 0 { return format(tensor.item()) }
    let length = tensor.dim(0)
    let shown: [Int?] =
      summarised && length > 2 * edge
      ? Array(0..<edge).map { $0 } + [nil] + Array((length - edge)..<length).map { $0 } : Array(0..<length).map { $0 }
    if tensor.rank == 1 {
      return "[" + shown.map { $0.map { format(tensor.selected(axis: 0, $0).item()) } ?? "…" }.joined(separator: ", ") + "]"
    }
    return "[" + shown.map { $0.map { render(tensor.selected(axis: 0, $0), summarised: summarised) } ?? "…" }.joined(separator: ",\n ")
      + "]"
  }
}
