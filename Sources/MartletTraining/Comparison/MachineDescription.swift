import Foundation

/// The machine and the versions that a measurement belongs to; a time without them says nothing.
public struct MachineDescription: Codable, Equatable, Sendable {
  /// The processor's own name, such as "AMD EPYC 9B45".
  public var processor: String
  /// Logical cores this process may use.
  public var cores: Int
  /// Main memory in bytes.
  public var memoryBytes: Int
  /// Operating system with its version.
  public var system: String
  /// The Swift compiler that built the program.
  public var swift: String
  /// The libtorch that ran it.
  public var libtorch: String

  public init(processor: String, cores: Int, memoryBytes: Int, system: String, swift: String, libtorch: String) {
    self.processor = processor
    self.cores = cores
    self.memoryBytes = memoryBytes
    self.system = system
    self.swift = swift
    self.libtorch = libtorch
  }

  /// This machine. The caller, who has the engine at hand, passes libtorch's version.
  public static func current(libtorch: String) -> MachineDescription {
    let process = ProcessInfo.processInfo
    return MachineDescription(
      processor: processorName() ?? "unknown processor", cores: process.activeProcessorCount, memoryBytes: Int(process.physicalMemory),
      system: process.operatingSystemVersionString, swift: compilerVersion, libtorch: libtorch)
  }

  /// One line, such as "AMD EPYC 9B45, 2 cores, 25.2 GB, Debian 12, Swift 6.3, libtorch 2.13.0".
  public var summary: String {
    "\(processor), \(cores) \(cores == 1 ? "core" : "cores"), \(Figure.bytes(Double(memoryBytes))), \(system), Swift \(swift), libtorch \(libtorch)"
  }

  private static func processorName() -> String? {
    #if canImport(Darwin)
      var size = 0
      guard sysctlbyname("machdep.cpu.brand_string", nil, &size, nil, 0) == 0, size > 1 else { return nil }
      var name = [UInt8](repeating: 0, count: size)
      guard sysctlbyname("machdep.cpu.brand_string", &name, &size, nil, 0) == 0 else { return nil }
      return String(decoding: name.prefix { $0 != 0 }, as: UTF8.self)
    #else
      guard let text = try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8) else { return nil }
      // x86 calls it "model name"; boards with ARM cores say "Model" or "Hardware", servers nothing at all.
      for key in ["model name", "Model", "Hardware"] {
        for line in text.split(separator: "\n") {
          let parts = line.split(separator: ":", maxSplits: 1).map { $0.trimmingCharacters(in: .whitespaces) }
          if parts.count == 2 && parts[0] == key && !parts[1].isEmpty { return parts[1] }
        }
      }
      return nil
    #endif
  }

  // The language gives a program no way to ask at run time which compiler built it.
  private static var compilerVersion: String {
    #if compiler(>=6.6)
      "6.6 or newer"
    #elseif compiler(>=6.5)
      "6.5"
    #elseif compiler(>=6.4)
      "6.4"
    #elseif compiler(>=6.3)
      "6.3"
    #else
      "6.2"
    #endif
  }
}
