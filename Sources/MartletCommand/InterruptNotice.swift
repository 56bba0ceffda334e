import ArgumentParser
import Dispatch
import Foundation

/// Ends the process on Ctrl-C with status 130, after `leave` has said what is kept, for work that can't be asked to stop.
/// ``whole(_:)`` keeps the end out of what must not be cut in two.
final class InterruptNotice {
  private let source: any DispatchSourceSignal
  private let lock = NSLock()

  /// - Parameter leave: runs on another thread than the work; prints what the user gets.
  init(_ leave: @escaping @Sendable () -> Void) {
    signal(SIGINT, SIG_IGN)
    source = DispatchSource.makeSignalSource(signal: SIGINT, queue: .global(qos: .userInitiated))
    source.setEventHandler { [lock] in
      lock.lock()
      leave()
      fflush(nil)
      // Without the destructors of libraries whose threads are still at work.
      _exit(CommandLineErrors.interrupted.rawValue)
    }
    source.resume()
  }

  /// Runs `body` to its end before an interruption takes effect.
  func whole<Result>(_ body: () throws -> Result) rethrows -> Result {
    lock.lock()
    defer { lock.unlock() }
    return try body()
  }
}
