/// What a recurrent mixer remembers of a batch of sequences: a matrix, a few vectors, or keys and values of every position.
///
/// Generation joins sequences that were read alone, drops those that ended, repeats those that a beam search keeps twice, and goes
/// back after rejected guesses.
public protocol MixerState: Sendable {
  /// The sequences at these rows, in this order; a row may be repeated. Shares nothing with the old state.
  func selecting(_ rows: [Int]) -> Self
  /// The sequences of all the states, one after the other.
  static func joined(_ states: [Self]) -> Self
  /// Forgets all but the first `length` positions. Returns false, changing nothing, when the state can't go back.
  mutating func truncate(to length: Int) -> Bool
}

extension MixerState {
  public mutating func truncate(to length: Int) -> Bool { false }

  /// Joins states whose type the caller need not know; all must have this one's.
  public static func joinedAny(_ states: [any MixerState]) -> any MixerState { joined(states.map { $0 as! Self }) }
}

/// A state that is some tensors whose first axis is the batch.
public protocol TensorState: MixerState {
  var tensors: [Tensor] { get set }
}

extension TensorState {
  public func selecting(_ rows: [Int]) -> Self {
    var result = self
    let index = Tensor(rows)
    result.tensors = tensors.map { $0.take(index.to($0.device)) }
    return result
  }

  public static func joined(_ states: [Self]) -> Self {
    guard var result = states.first else { fatalError("no states to join") }
    result.tensors = result.tensors.indices.map { i in concatenated(states.map { $0.tensors[i] }) }
    return result
  }
}

/// How the keys and values of attention are stored while a sequence grows.
public struct CacheOptions: Sendable, Equatable {
  public enum Storage: String, Sendable, Codable, CaseIterable {
    /// As they are computed.
    case full
    case bfloat16
    /// One scale a position and head: about a quarter of the bytes, with an error of at most 1/254 of a row's largest number.
    case int8
  }

  /// Positions to make room for at once; the room doubles when it is full.
  public var capacity: Int
  public var storage: Storage

  public init(capacity: Int = 64, storage: Storage = .full) {
    self.capacity = capacity
    self.storage = storage
  }
}
