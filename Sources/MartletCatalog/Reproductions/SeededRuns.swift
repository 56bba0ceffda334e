import Foundation
import MartletTraining

/// Every arm with every seed, in the order of seeds.
func pairs<Arm>(_ seeds: [Int], _ arms: [Arm]) -> [(seed: Int, arm: Arm)] { seeds.flatMap { seed in arms.map { (seed, $0) } } }

/// The results of `body` for all items, in their order, computed by as many threads as the machine has cores, each with one thread inside
/// operators. What an item gives must depend on nothing but the item: then figures don't depend on the number of cores.
///
/// `body` gets a function that reports progress; lines of several items don't mix.
///
/// - Throws: The first item's error, in the order of items, once those under way have ended; items after an error aren't begun.
func concurrently<Item, Result>(
  _ items: [Item], progress: (String) -> Void, _ body: (_ item: Item, _ progress: (String) -> Void) throws -> Result
) throws -> [Result] {
  // Each entry is written by one thread and read after all have ended; `lock` guards the errors and lines of progress.
  nonisolated(unsafe) var results = [Result?](repeating: nil, count: items.count)
  nonisolated(unsafe) var errors = [Int: any Error]()
  nonisolated(unsafe) let (items, progress, body) = (items, progress, body)
  let lock = NSLock()
  results.withUnsafeMutableBufferPointer { buffer in
    nonisolated(unsafe) let buffer = buffer
    DispatchQueue.concurrentPerform(iterations: items.count) { index in
      guard lock.withLock({ errors.isEmpty }) else { return }
      do {
        buffer[index] = try onOneThread { try body(items[index]) { line in lock.withLock { progress(line) } } }
      } catch {
        lock.withLock { errors[index] = error }
      }
    }
  }
  if let first = errors.min(by: { $0.key < $1.key }) { throw first.value }
  return results.map { $0! }
}
