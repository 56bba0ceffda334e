import CTorch

/// Where a tensor lives: `.cpu`, `.cuda(0)`, `.mps`.
public struct Device: Hashable, Sendable, CustomStringConvertible {
  public enum Kind: Int32, Sendable {
    case cpu = 0
    case cuda = 1
    case mps = 13
    /// Shapes without values or memory.
    case meta = 14
  }

  public let kind: Kind
  public let index: Int

  public static let cpu = Device(kind: .cpu, index: -1)
  public static let mps = Device(kind: .mps, index: 0)
  public static let meta = Device(kind: .meta)
  public static func cuda(_ index: Int = 0) -> Device { Device(kind: .cuda, index: index) }

  public init(kind: Kind, index: Int = -1) {
    self.kind = kind
    self.index = index
  }

  /// Reads `cpu`, `cuda`, `cuda:1` or `mps`.
  public init(_ text: String) throws {
    let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
    let index = parts.count > 1 ? Int(parts[1]) : 0
    guard let index, index >= 0 else { throw TensorError("device “\(text)”: the index after “:” must be a number") }
    switch parts[0] {
    case "cpu": self = .cpu
    case "cuda": self = .cuda(index)
    case "mps": self = .mps
    default: throw TensorError("unknown device “\(text)”: expected cpu, cuda, cuda:N or mps")
    }
    guard isAvailable else { throw TensorError("device \(self) is not available with this libtorch on this machine") }
  }

  public var isAvailable: Bool { ctorch_device_available(kind.rawValue) }

  public var description: String {
    switch kind {
    case .cpu: "cpu"
    case .cuda: "cuda:\(max(index, 0))"
    case .mps: "mps"
    case .meta: "meta"
    }
  }
}
