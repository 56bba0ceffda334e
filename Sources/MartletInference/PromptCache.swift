import Synchronization

/// Keeps the states of prompts that were read, so that a prompt that begins like an earlier one is read from there on.
///
/// Keys and values can be cut to any common beginning; recurrent states only serve prompts that begin with the whole earlier one.
public final class PromptCache: Sendable {
  private struct Entry: Sendable {
    let tokens: [Int]
    let state: SequenceBackbone.State
  }

  /// The most recently used last.
  private let entries = Mutex<[Entry]>([])
  public let limit: Int

  /// - Parameter limit: prompts that are kept.
  public init(limit: Int = 8) { self.limit = max(1, limit) }

  /// How many prompts are kept.
  public var count: Int { entries.withLock { $0.count } }

  /// A copy of the state that has read the longest known beginning of a prompt, at least one token short of it (the last token is read
  /// for its logits).
  func longestPrefix(of prompt: [Int]) -> (length: Int, state: SequenceBackbone.State)? {
    entries.withLock { entries in
      func common(_ entry: Entry) -> Int { min(zip(entry.tokens, prompt).prefix { $0 == $1 }.count, prompt.count - 1) }
      let order = entries.indices.sorted { common(entries[$0]) > common(entries[$1]) }
      for index in order {
        let length = common(entries[index])
        guard length > 0 else { return nil }
        var state = entries[index].state.copied()
        guard length == entries[index].tokens.count || state.truncate(to: length) else { continue }
        entries.append(entries.remove(at: index))
        return (length, state)
      }
      return nil
    }
  }

  func store(_ prompt: [Int], _ state: SequenceBackbone.State) {
    let entry = Entry(tokens: prompt, state: state.copied())
    entries.withLock { entries in
      entries.removeAll { $0.tokens == prompt }
      entries.append(entry)
      if entries.count > limit { entries.removeFirst(entries.count - limit) }
    }
  }

  public func removeAll() { entries.withLock { $0 = [] } }
}
