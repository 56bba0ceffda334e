@testable import MartletData

extension Batch: Equatable {
  /// Same shapes and same values.
  public static func == (a: Batch, b: Batch) -> Bool {
    a.inputs.shape == b.inputs.shape && a.targets.shape == b.targets.shape && (a.mask == nil) == (b.mask == nil)
      && a.inputs.toArray(Double.self) == b.inputs.toArray(Double.self) && a.targets.toArray(Int.self) == b.targets.toArray(Int.self)
      && a.mask?.toArray(Bool.self) == b.mask?.toArray(Bool.self)
  }
}
