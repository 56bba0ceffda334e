import Dispatch
import Synchronization

/// Work shared out among threads.
enum Threads {
  /// The results in the order of the elements; the first error of any of them is thrown.
  static func map<T: Sendable, R: Sendable>(
    _ elements: [T], threads: Int, _ body: @escaping @Sendable (T) throws -> R
  ) throws -> [R] {
    let count = elements.count
    let chunks = min(threads * 4, count)
    let results = Mutex<[Int: Result<[R], any Error>]>([:])
    let next = Atomic<Int>(0)
    DispatchQueue.concurrentPerform(iterations: min(threads, chunks)) { _ in
      while true {
        let chunk = next.wrappingAdd(1, ordering: .relaxed).oldValue
        if chunk >= chunks { return }
        let range = (count * chunk / chunks)..<(count * (chunk + 1) / chunks)
        let result = Result { try elements[range].map(body) }
        results.withLock { $0[chunk] = result }
      }
    }
    return try results.withLock { found in try (0..<chunks).flatMap { try found[$0]!.get() } }
  }
}
