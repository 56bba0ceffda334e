import Foundation
import MartletTraining
import Testing

/// `kill -9` at random moments: a training must always go on, and end where it would have ended.
@Suite struct KillTests {
  private func start(_ out: String) throws -> Process {
    let process = Process()
    process.executableURL = CommandRun.executable
    process.arguments = [
      "train", "--task", "listops?small&examples=64&heldout=16", "--mixer", "linear", "--set", "width=16", "--set", "layers=1",
      "--set", "dropout=0.1", "--set", "checkpointInterval=0", "--set", "evaluations=8", "--set", "batchSize=4", "--budget", "400steps",
      "--seed", "3", "--threads", "1", "--out", out,
    ]
    process.standardOutput = FileHandle.nullDevice
    process.standardError = FileHandle.nullDevice
    try process.run()
    return process
  }

  @Test func fiftyKillsLoseNothing() throws {
    try withTemporaryFolder { folder in
      let whole = try start(folder + "/whole")
      whole.waitUntilExit()
      #expect(whole.terminationStatus == 0)

      var random = SystemRandomNumberGenerator()
      var kills = 0
      let out = folder + "/killed"
      while kills < 50 {
        let process = try start(out)
        usleep(useconds_t.random(in: 0...400_000, using: &random))
        guard process.isRunning else {
          // It came to its end: start afresh, so that later kills also meet a running training.
          #expect(process.terminationStatus == 0, "run after \(kills) kills")
          try compare(folder + "/whole", out)
          try FileManager.default.removeItem(atPath: out)
          continue
        }
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
        kills += 1
      }
      let last = try start(out)
      last.waitUntilExit()
      #expect(last.terminationStatus == 0, "the run after \(kills) kills")
      try compare(folder + "/whole", out)
    }
  }

  /// Expects equal weights.
  private func compare(_ a: String, _ b: String) throws {
    let (x, y) = (try Safetensors.load(a + "/model.safetensors"), try Safetensors.load(b + "/model.safetensors"))
    #expect(Set(x.keys) == Set(y.keys))
    for (key, tensor) in x { #expect(tensor.isEqual(to: y[key]!), "\(key)") }
  }
}
