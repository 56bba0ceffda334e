import Foundation
import Synchronization

/// Ctrl-C asks running work to save and stop; a second one ends the process at once.
enum Interruption {
  private static let asked = Atomic<Bool>(false)

  static var isAsked: Bool { asked.load(ordering: .relaxed) }

  static func watch() {
    for number in [SIGINT, SIGTERM] {
      signal(number) { number in
        if Interruption.asked.exchange(true, ordering: .relaxed) { _exit(128 + number) }
      }
    }
  }

  /// Forgets that it was asked and lets signals end the process, while there is no work to save.
  static func ignore() {
    for number in [SIGINT, SIGTERM] { signal(number, SIG_DFL) }
    asked.store(false, ordering: .relaxed)
  }
}
