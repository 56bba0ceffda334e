import CKernels
import CTorch
import Foundation

/// The process's engine: threads, memory and versions.
public enum Engine {
  /// Makes libtorch and the fused kernels ready, once, before the first operator.
  static let started: Void = {
    ctorch_count_memory()
    martlet_kernels_load()
  }()

  /// The version of libtorch, e.g. `2.13.0`.
  public static var torchVersion: String { String(cString: ctorch_version()) }

  /// Threads used inside one operator (OpenMP). `OMP_NUM_THREADS` sets the value at start.
  public static var threads: Int {
    get { Int(ctorch_threads()) }
    set { ctorch_set_threads(Int32(newValue)) }
  }
}

/// What the process holds in memory.
public enum MemoryUsage {
  /// Bytes of CPU tensors alive now.
  public static var tensorBytes: Int { Int(ctorch_memory_current()) }

  /// Most bytes of CPU tensors alive at once since the start or the last `resetPeak()`.
  public static var peakTensorBytes: Int { Int(ctorch_memory_peak()) }

  /// Bytes of freed CPU tensors that are kept for the next ones, so that these find their memory's pages in place. Together with
  /// the tensors alive they are never more than the most that was alive at once (up to an eighth more, as sizes are rounded up).
  public static var keptBytes: Int { Int(ctorch_memory_kept()) }

  /// Gives the kept bytes back to the system, e.g. between two models in a long-lived process.
  public static func releaseKept() { ctorch_memory_release() }

  public static func resetPeak() {
    _ = Engine.started
    ctorch_memory_reset_peak()
  }

  /// Resident bytes of the process now; `nil` where the system does not say.
  public static var residentBytes: Int? { statusBytes("VmRSS:") }

  /// Most resident bytes of the process so far.
  public static var peakResidentBytes: Int? { statusBytes("VmHWM:") }

  private static func statusBytes(_ key: String) -> Int? {
    guard let text = try? String(contentsOfFile: "/proc/self/status", encoding: .utf8) else { return nil }
    for line in text.split(separator: "\n") where line.hasPrefix(key) {
      return line.split(whereSeparator: { $0 == " " || $0 == "\t" }).dropFirst().first.flatMap { Int($0) }.map { $0 * 1024 }
    }
    return nil
  }
}
