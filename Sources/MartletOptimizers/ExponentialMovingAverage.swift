/// A running average of parameters, for evaluation and for self-distillation's teachers (Polyak & Juditsky 1992; Tarvainen &
/// Valpola 2017, *Mean teachers*).
///
///     θ̄ ← θ̄ + (1 − d) (θ − θ̄)
///
/// With `warmup` the decay of the t-th update (from 1) is min(d, (1 + t) / (10 + t)), so that the start is forgotten sooner.
public final class ExponentialMovingAverage {
  public let decay: Double
  public let warmup: Bool

  /// Updates so far.
  public private(set) var updates = 0

  private let parameters: [(name: String, tensor: Tensor)]

  /// The averages, or the parameters' own values while swapped in.
  private let averages: [Tensor]

  /// True while the parameters hold the averages.
  public private(set) var isSwappedIn = false

  /// Begins with the parameters' present values.
  public init(_ parameters: [(name: String, tensor: Tensor)], decay: Double, warmup: Bool = false) {
    require((0...1).contains(decay), "the decay of a moving average must lie in 0...1, got \(decay)")
    self.decay = decay
    self.warmup = warmup
    self.parameters = parameters
    averages = withoutGradient { parameters.map { $0.tensor.detached().copy() } }
  }

  /// Averages the parameters in; call it after each optimizer step.
  public func update() {
    require(!isSwappedIn, "a moving average can't be updated while it is swapped in; call swap() first")
    updates += 1
    if averages.isEmpty { return }
    let t = Double(updates)
    let d = warmup ? min(decay, (1 + t) / (10 + t)) : decay
    withoutGradient { ForEach.interpolate(averages, towards: parameters.map(\.tensor), weight: 1 - d) }
  }

  /// Exchanges the values of parameters and averages, in place: once for evaluation, once more to go on training.
  public func swap() {
    withoutGradient {
      for ((_, parameter), average) in zip(parameters, averages) {
        let held = parameter.detached().copy()
        parameter.copyInPlace(average)
        average.copyInPlace(held)
      }
    }
    isSwappedIn.toggle()
  }

  /// Runs `body` with the averages in the parameters.
  public func withAverages<Result>(_ body: () throws -> Result) rethrows -> Result {
    swap()
    defer { swap() }
    return try body()
  }

  public var stateBytes: Int { averages.reduce(0) { $0 + $1.byteCount } }

  /// `average.<name>` for every parameter, the live tensors, and `updates`, an int64 scalar.
  public func stateDictionary() -> [String: Tensor] {
    require(!isSwappedIn, "the state of a moving average can't be taken while it is swapped in; call swap() first")
    var state = ["updates": Tensor([Int64(updates)], [])]
    for ((name, _), average) in zip(parameters, averages) { state["average." + name] = average }
    return state
  }

  /// Takes over a state written by `stateDictionary()`.
  ///
  /// - Throws: `TensorError` for missing or unknown entries and for other shapes or dtypes; the averages are then unchanged.
  public func load(_ state: [String: Tensor]) throws {
    guard !isSwappedIn else { throw TensorError("a moving average can't be loaded while it is swapped in; call swap() first") }
    guard let count = state["updates"], count.dtype == .int64, count.count == 1 else {
      throw TensorError("moving average: the entry “updates” is missing or is not one int64 number")
    }
    let given = try zip(parameters, averages).map { parameter, average in
      let key = "average." + parameter.name
      guard let tensor = state[key] else { throw TensorError("moving average: the entry “\(key)” is missing") }
      guard tensor.shape == average.shape, tensor.dtype == average.dtype else {
        throw TensorError(
          "moving average: “\(key)” is \(tensor.dtype) of shape \(tensor.shape), expected \(average.dtype) of shape \(average.shape)")
      }
      return tensor
    }
    let known = Set(parameters.map { "average." + $0.name } + ["updates"])
    if let unknown = state.keys.sorted().first(where: { !known.contains($0) }) {
      throw TensorError("moving average: the entry “\(unknown)” belongs to no parameter")
    }
    withoutGradient { for (average, tensor) in zip(averages, given) { average.copyInPlace(tensor) } }
    updates = count.itemInt()
  }
}
