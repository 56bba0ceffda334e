import CTorch

extension Tensor {
  /// Whether operations on this tensor are recorded for differentiation.
  public var requiresGradient: Bool {
    get { ctorch_requires_grad(handle) }
    set { checkTorch(ctorch_set_requires_grad(handle, newValue)) }
  }

  /// True for parameters and constants, false for results of recorded operations.
  public var isLeaf: Bool { ctorch_is_leaf(handle) }

  /// The gradient accumulated by `backward()`.
  public var gradient: Tensor? {
    get {
      var result: ctorch_tensor?
      checkTorch(ctorch_grad(handle, &result))
      return result.map(Tensor.init(owning:))
    }
    set { checkTorch(ctorch_set_grad(handle, newValue?.handle)) }
  }

  /// Marks the tensor for differentiation and returns it.
  @discardableResult
  public func tracked() -> Tensor {
    requiresGradient = true
    return self
  }

  /// Adds d self / d leaf to the `gradient` of every leaf that took part.
  ///
  /// - Parameters:
  ///   - seed: the gradient with respect to this tensor; may be absent for a single element (1).
  ///   - retainGraph: keeps the graph for another pass.
  ///   - createGraph: records the pass itself, for higher derivatives.
  public func backward(seed: Tensor? = nil, retainGraph: Bool? = nil, createGraph: Bool = false) {
    if isSkippingAfterError { return }
    let roots: [ctorch_tensor?] = [handle]
    let seeds: [ctorch_tensor?] = [seed?.handle]
    checkTorch(ctorch_backward(roots, seeds, 1, retainGraph ?? createGraph, createGraph))
  }
}

/// The gradients of (the sum of) `output` with respect to `inputs`; nothing is accumulated. `nil` where an input took no part.
///
/// - Parameters:
///   - seed: the gradient with respect to `output`; may be absent for a single element.
///   - createGraph: records the pass, so that the results can be differentiated again.
public func gradient(
  of output: Tensor, with inputs: [Tensor], seed: Tensor? = nil, retainGraph: Bool? = nil, createGraph: Bool = false
) -> [Tensor?] {
  gradient(of: [output], with: inputs, seeds: [seed], retainGraph: retainGraph, createGraph: createGraph)
}

/// The gradients of several outputs together.
public func gradient(
  of outputs: [Tensor], with inputs: [Tensor], seeds: [Tensor?], retainGraph: Bool? = nil, createGraph: Bool = false
) -> [Tensor?] {
  if isSkippingAfterError { return inputs.map { _ in nil } }
  var results = [ctorch_tensor?](repeating: nil, count: inputs.count)
  withExtendedLifetime((outputs, inputs, seeds)) {
    checkTorch(
      ctorch_gradient(
        outputs.map { $0.handle }, seeds.map { $0?.handle }, Int64(outputs.count), inputs.map { $0.handle }, Int64(inputs.count),
        retainGraph ?? createGraph, createGraph, true, &results))
  }
  return results.map { $0.map(Tensor.init(owning:)) }
}

/// Runs `body` without recording for differentiation. The mode belongs to the thread: don't suspend inside.
public func withoutGradient<Result>(_ body: () throws -> Result) rethrows -> Result {
  try withGradient(enabled: false, body)
}

/// Runs `body` with recording switched on or off.
public func withGradient<Result>(enabled: Bool, _ body: () throws -> Result) rethrows -> Result {
  let previous = ctorch_grad_enabled()
  ctorch_set_grad_enabled(enabled)
  defer { ctorch_set_grad_enabled(previous) }
  return try body()
}

/// Whether operations of this thread are recorded.
public var isGradientEnabled: Bool { ctorch_grad_enabled() }

/// Runs `body` with matrix products and convolutions in `dtype` (bfloat16), norms and losses in float32.
public func withAutocast<Result>(
  _ enabled: Bool = true, dtype: DType = .bfloat16, device: Device = .cpu, _ body: () throws -> Result
) rethrows -> Result {
  let outer = AutocastDTypes.current[device.kind]
  let previous = ctorch_autocast_enabled(device.kind.rawValue)
  func set(_ flag: Bool, _ dtype: DType) {
    // Switching off empties libtorch's cache of converted weights, which does not tell one dtype from another.
    ctorch_set_autocast(device.kind.rawValue, false, dtype.rawValue)
    if flag { ctorch_set_autocast(device.kind.rawValue, true, dtype.rawValue) }
  }
  set(enabled, dtype)
  defer { set(previous, outer ?? dtype) }
  var types = AutocastDTypes.current
  if enabled { types[device.kind] = dtype }
  return try AutocastDTypes.$current.withValue(types, operation: body)
}

/// The dtypes of the `withAutocast` around, so that the end of an inner one restores the outer's.
private enum AutocastDTypes {
  @TaskLocal static var current: [Device.Kind: DType] = [:]
}

/// Whether the thread is inside `withAutocast` for the device.
public func isAutocastEnabled(_ device: Device = .cpu) -> Bool { ctorch_autocast_enabled(device.kind.rawValue) }

// MARK: Custom functions

/// A function with its own backward rule.
///
/// - Parameters:
///   - inputs: tensors the function depends on, in the order in which `backward` returns their gradients.
///   - forward: computes the outputs; it runs without recording.
///   - backward: from the outputs' gradients (`nil`: zero) to one gradient per input (`nil`: none). It runs with recording
///     when the caller asked for a graph, so that higher derivatives work if it uses tensor operations of the *inputs*.
///     Capturing an output keeps the graph alive in a cycle: capture `output.detached()`.
public func customFunction(
  _ inputs: [Tensor], name: String = "CustomFunction", forward: () -> [Tensor],
  backward: @escaping ([Tensor?]) -> [Tensor?]
) -> [Tensor] {
  let outputs = withoutGradient(forward)
  if isSkippingAfterError { return outputs }
  let context = Unmanaged.passRetained(BackwardBox(backward))
  var results = [ctorch_tensor?](repeating: nil, count: outputs.count)
  withExtendedLifetime((inputs, outputs)) {
    checkTorch(
      ctorch_custom_function(
        name, inputs.map { $0.handle }, Int64(inputs.count), outputs.map { $0.handle }, Int64(outputs.count),
        { context, grads, gradCount, results, resultCount in
          let box = Unmanaged<BackwardBox>.fromOpaque(context!).takeUnretainedValue()
          let given = (0..<Int(gradCount)).map { i -> Tensor? in
            guard let handle = grads![i] else { return nil }
            ctorch_retain(handle)
            return Tensor(owning: handle)
          }
          do {
            let computed = try withTorchErrors { box.backward(given) }
            guard computed.count == Int(resultCount) else {
              throw TensorError("a custom function returned \(computed.count) gradients for \(resultCount) inputs")
            }
            for (i, tensor) in computed.enumerated() {
              guard let tensor else { continue }
              ctorch_retain(tensor.handle)
              results![i] = tensor.handle
            }
            return 0
          } catch {
            ctorch_set_error("\(error)")
            return 1
          }
        },
        { Unmanaged<BackwardBox>.fromOpaque($0!).release() }, context.toOpaque(), &results))
  }
  return results.map { $0.map(Tensor.init(owning:)) ?? .skipped }
}

private final class BackwardBox {
  let backward: ([Tensor?]) -> [Tensor?]
  init(_ backward: @escaping ([Tensor?]) -> [Tensor?]) { self.backward = backward }
}

/// Computes `body` without keeping its intermediate results; they are computed again in the backward pass. Memory of the
/// body's activations is traded for one more forward pass (Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost*).
///
/// - Parameters:
///   - inputs: tensors given to `body`.
///   - parameters: leaves that `body` captures and whose gradients are wanted.
///   - body: must compute the same each time it runs: restore its generators inside.
public func checkpointed(_ inputs: [Tensor], parameters: [Tensor], _ body: @escaping ([Tensor]) -> [Tensor]) -> [Tensor] {
  customFunction(inputs + parameters, name: "Checkpoint") {
    body(inputs)
  } backward: { grads in
    let again = inputs.map { input -> Tensor in
      let leaf = input.detached()
      if input.requiresGradient { leaf.requiresGradient = true }
      return leaf
    }
    let outputs = withGradient(enabled: true) { body(again) }
    let used = outputs.indices.filter { grads[$0] != nil && outputs[$0].requiresGradient }
    let wanted = again + parameters
    let tracked = wanted.indices.filter { wanted[$0].requiresGradient }
    let found = gradient(of: used.map { outputs[$0] }, with: tracked.map { wanted[$0] }, seeds: used.map { grads[$0] })
    var results = [Tensor?](repeating: nil, count: wanted.count)
    for (i, position) in tracked.enumerated() { results[position] = found[i] }
    return results
  }
}

// MARK: Finite differences

/// The largest difference between the gradients by differentiation and by central differences of a scalar function,
/// relative to the largest gradient. Use float64 inputs: with `step` 1e-6 a right gradient gives about 1e-9…1e-7.
///
/// - Parameter probes: how many elements of each input are checked (all, when it has no more).
public func gradientError(
  _ inputs: [Tensor], step: Double = 1e-6, probes: Int = 24, seed: UInt64 = 0, _ function: ([Tensor]) -> Tensor
) -> Double {
  // Row-major, because a copy keeps its source's strides and the elements are changed through a flat view.
  let leaves = inputs.map { $0.detached().contiguous().copy().tracked() }
  let exact = gradient(of: function(leaves), with: leaves)
  let generator = RandomGenerator(seed: seed)
  var worst = 0.0
  var scale = 1e-12
  for (leaf, gradient) in zip(leaves, exact) {
    let flat = leaf.detached().reshaped(-1)
    let order =
      leaf.count <= probes
      ? Array(0..<leaf.count)
      : Array(Tensor.randomPermutation(leaf.count, generator: generator).toArray(Int.self).prefix(probes))
    let analytic = gradient?.reshaped(-1)
    for position in order {
      let value = flat[position].item()
      withoutGradient {
        flat[position] = Tensor(value + step, dtype: flat.dtype)
        let up = function(leaves).item()
        flat[position] = Tensor(value - step, dtype: flat.dtype)
        let down = function(leaves).item()
        flat[position] = Tensor(value, dtype: flat.dtype)
        let numeric = (up - down) / (2 * step)
        let expected = analytic?[position].item() ?? 0
        worst = Swift.max(worst, Swift.abs(numeric - expected))
        scale = Swift.max(scale, Swift.abs(expected), Swift.abs(numeric))
      }
    }
  }
  return worst / scale
}
