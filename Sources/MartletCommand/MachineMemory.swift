import Foundation

/// Memory of the machine that a process can have, in bytes.
struct MachineMemory {
  /// All there is: the machine's, or what its container allows.
  let total: Int
  /// What could be taken now without swapping; all where the system doesn't say.
  let available: Int

  init() {
    var total = Int(ProcessInfo.processInfo.physicalMemory)
    var available = total
    #if os(Linux)
      if let text = try? String(contentsOfFile: "/proc/meminfo", encoding: .utf8),
        let line = text.split(separator: "\n").first(where: { $0.hasPrefix("MemAvailable:") }),
        let kibibytes = Int(line.split(separator: " ").dropFirst().first ?? "")
      {
        available = kibibytes << 10
      }
      func number(_ name: String) -> Int? {
        (try? String(contentsOfFile: "/sys/fs/cgroup/" + name, encoding: .utf8)).flatMap {
          Int($0.trimmingCharacters(in: .whitespacesAndNewlines))
        }
      }
      if let limit = number("memory.max"), limit < total {
        total = limit
        available = min(available, max(0, limit - (number("memory.current") ?? 0)))
      }
    #endif
    self.total = total
    self.available = min(available, total)
  }
}
