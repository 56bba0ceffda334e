@_exported import MartletNN

/// A trainable change to a frozen linear layer.
public protocol Adapter: Module {
  /// The adapted layer's output. x: [..., inFeatures] → [..., outFeatures].
  func callAsFunction(_ x: Tensor, base: any LinearLayer) -> Tensor
  /// The weight [outFeatures, inFeatures] of one dense layer that does the same, from the base's. Throws `TensorError` where there is
  /// none, or where the shape doesn't fit.
  func merged(into weight: Tensor) throws -> Tensor
  /// Multiplications with addition for one position, besides the base's.
  func multiplyAdds() -> Int
}

/// A linear layer with an adapter: it takes the layer's place in a model.
public final class AdaptedLinear: Module, LinearLayer {
  @Child public var base: any LinearLayer
  @Child public var adapter: any Adapter

  public init(_ base: any LinearLayer, _ adapter: any Adapter) {
    super.init()
    self.base = base
    self.adapter = adapter
  }

  public var inFeatures: Int { base.inFeatures }
  public var outFeatures: Int { base.outFeatures }
  public func callAsFunction(_ x: Tensor) -> Tensor { adapter(x, base: base) }

  /// The merged weight. Traps where the adapter has none: `merged()` throws instead.
  public func denseWeight() -> Tensor {
    do { return try adapter.merged(into: base.denseWeight()) } catch { fatalError("\(error)") }
  }

  public var storageBytes: Int { base.storageBytes + adapter.parameters().reduce(0) { $0 + $1.tensor.byteCount } }
  public func multiplyAdds() -> Int { base.multiplyAdds() + adapter.multiplyAdds() }

  /// One dense layer that does the same, in the dtype of the base's weight, trained or not as that is. Throws `TensorError` for a base
  /// that isn't dense or an adapter that can't be merged.
  public func merged() throws -> Linear {
    guard let dense = base as? Linear else {
      throw TensorError("an adapter can't be merged into a \(type(of: base)), only into a dense layer")
    }
    return try withoutGradient {
      let weight = try adapter.merged(into: dense.weight.to(dense.weight.dtype == .float64 ? .float64 : .float32)).to(dense.weight.dtype)
      let layer = Linear(weight: weight.detached(), bias: dense.bias?.detached())
      if !dense.weight.requiresGradient { layer.freeze() }
      layer.train(isTraining)
      return layer
    }
  }
}

extension Module {
  /// The linear layers with adapters, by path.
  public var adaptedLayers: [(path: String, layer: AdaptedLinear)] {
    modules().compactMap { path, module in (module as? AdaptedLinear).map { (path, $0) } }
  }

  /// The paths of linear layers that a predicate accepts, in order: where adapters can be attached.
  public func linearPaths(where predicate: (String) -> Bool = { _ in true }) -> [String] {
    modules().filter { $0.module is any LinearLayer && predicate($0.path) }.map(\.path)
  }

  /// Freezes everything and gives the linear layers at these paths adapters, which alone are trained then.
  ///
  /// - Throws: `TensorError` for a path without a linear layer, or one whose layer has an adapter already; nothing is changed then.
  public func attachAdapters(to paths: [String], _ make: (any LinearLayer) throws -> any Adapter) throws {
    let known = Dictionary(modules().map { ($0.path, $0.module) }) { first, _ in first }
    let adapted = try paths.map { path -> (String, AdaptedLinear) in
      guard let layer = known[path] as? any LinearLayer else {
        throw TensorError("there is no linear layer at \"\(path)\"\(known[path].map { ", but a \(type(of: $0))" } ?? "")")
      }
      guard !(layer is AdaptedLinear) else { throw TensorError("the layer at \"\(path)\" has an adapter already") }
      let adapter = try make(layer)
      adapter.train(layer.isTraining)
      return (path, AdaptedLinear(layer, adapter))
    }
    freeze()
    for (path, layer) in adapted {
      layer.train(layer.base.isTraining)
      try replace(path, with: layer)
    }
  }

  /// Puts dense layers in the place of those with adapters, which do the same. Throws `TensorError` as ``AdaptedLinear/merged()``.
  public func mergeAdapters() throws {
    let merged = try adaptedLayers.map { ($0.path, try $0.layer.merged()) }
    for (path, layer) in merged { try replace(path, with: layer) }
  }

  /// Puts the layers below back as they were, without their adapters.
  public func detachAdapters() throws {
    for (path, layer) in adaptedLayers { try replace(path, with: layer.base) }
  }
}
