/// One thing to be timed, ours and by name the same thing in PyTorch.
public struct BenchmarkCase: Sendable {
  /// What of the machine bounds the case, to put its rate beside the limit.
  public enum Work: Sendable {
    /// Floating-point operations of one call, a multiplication with addition counting two.
    case operations(Double)
    /// Bytes that one call must at least read and write.
    case traffic(Double)
  }

  /// The same computation in another library.
  public struct Peer: Sendable {
    /// The case's name in `Benchmarks/peers`.
    public var name: String
    /// What a reader calls it, e.g. "PyTorch eager".
    public var label: String

    public init(_ name: String, _ label: String) {
      self.name = name
      self.label = label
    }
  }

  /// Where the case stands in a series that is measured at several lengths.
  public struct Point: Codable, Sendable, Equatable {
    public var series: String
    /// Tokens of the sequence, or of the context.
    public var length: Int

    public init(_ series: String, _ length: Int) {
      self.series = series
      self.length = length
    }
  }

  public var name: String
  public var group: String
  public var point: Point?
  public var peers: [Peer]
  /// Asked for when the case is measured: to know the work of a layer is to build it.
  public var work: @Sendable () -> Work?
  /// Takes seconds a call or gigabytes of memory: left out of quick runs.
  public var isHeavy: Bool
  /// Makes the inputs and returns what is to be measured.
  public var prepare: @Sendable () throws -> Prepared

  /// The call to be timed and, for a step of a recurrent mixer, the bytes of the state that it starts from.
  public struct Prepared {
    public var call: () throws -> Void
    public var stateBytes: Int?

    public init(stateBytes: Int? = nil, call: @escaping () throws -> Void) {
      self.call = call
      self.stateBytes = stateBytes
    }
  }

  public init(
    _ name: String, group: String, point: Point? = nil, peers: [Peer] = [], work: @autoclosure @escaping @Sendable () -> Work? = nil,
    isHeavy: Bool = false,
    setup: @escaping @Sendable () throws -> () throws -> Void
  ) {
    self.name = name
    self.group = group
    self.point = point
    self.peers = peers
    self.work = work
    self.isHeavy = isHeavy
    prepare = { Prepared(call: try setup()) }
  }
}
