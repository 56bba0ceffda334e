/// A copy of a module that follows it slowly: the momentum encoder of contrastive learning (He et al. 2020, *MoCo*), the teacher of
/// self-distillation, the guide of token selection.
///
///     θ̄ ← λ θ̄ + (1 − λ) θ
///
/// Its tensors are buffers: they are saved in checkpoints under the copy's path as the original's are under its own, take no part in
/// optimization and never receive gradients. They change only in ``update(from:)``, which the owner calls after each step of the
/// optimizer (see ``OptimizerStepListener``).
///
/// Run it inside `withoutGradient`: inputs that are being differentiated would otherwise be recorded.
public final class EMACopy<Followed: Module>: Module {
  public let module: Followed
  /// λ.
  public let decay: Double

  /// - Parameters:
  ///   - module: of the same structure as `source`; its values are replaced by those of `source`.
  ///   - decay: λ in 0...1.
  public init(_ module: Followed, of source: Followed, decay: Double) {
    require((0...1).contains(decay), "the decay of a moving average must lie in 0...1, got \(decay)")
    require(module !== source, "a copy can't be the module that it follows")
    self.module = module
    self.decay = decay
    super.init()
    module.freeze()
    follow(source, weight: 1)
  }

  /// One step towards the source's parameters; its buffers are taken as they are.
  public func update(from source: Followed) { follow(source, weight: 1 - decay) }

  /// Takes over the source's parameters and buffers as they are.
  public func reset(to source: Followed) { follow(source, weight: 1) }

  private func follow(_ source: Followed, weight: Double) {
    withoutGradient {
      for (own, other) in pairs(module.parameters(), source.parameters()) {
        if weight == 1 { own.copyInPlace(other) } else { interpolate.run(.tensor(own), .tensor(other), .double(weight)) }
      }
      for (own, other) in pairs(module.buffers(), source.buffers()) { own.copyInPlace(other) }
    }
  }

  private typealias Named = (name: String, tensor: Tensor)

  private func pairs(_ own: [Named], _ other: [Named]) -> [(Tensor, Tensor)] {
    require(
      own.map(\.name) == other.map(\.name) && zip(own, other).allSatisfy { $0.tensor.shape == $1.tensor.shape },
      "a copy can only follow a module of its own structure; it has \(own.map(\.name)), the other \(other.map(\.name))")
    return zip(own, other).map { ($0.tensor, $1.tensor) }
  }

  // MARK: Its place in the tree

  // The copy stands in the module's place: paths don't show that there is something in between.
  override func nodes() -> [(key: String, node: Node)] { module.nodes() }

  public override func modules(prefix: String = "") -> [(path: String, module: Module)] {
    [(prefix, self)] + module.modules(prefix: prefix)
  }

  override func slots(_ wanted: (Node) -> (any ParameterSlot)?, prefix: String) -> [(key: String, slot: any ParameterSlot)] {
    super.slots(
      { node in
        if case .parameter(let slot) = node { return wanted(.buffer(slot)) }
        return wanted(node)
      }, prefix: prefix)
  }

  // What listens inside a copy follows the original already, through its buffers.
  public override func optimizerStepListeners() -> [any OptimizerStepListener] { [] }
}

private let interpolate = Operator("aten::lerp_", "Scalar")
