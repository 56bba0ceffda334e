private let embedding = Operator("aten::embedding")

/// Rows of a table by integer id. ids [...] int64 → [..., width].
public final class Embedding: Module {
  @Parameter public var weight: Tensor

  public var vocabulary: Int { weight.dim(0) }
  public var width: Int { weight.dim(1) }

  public init(_ vocabulary: Int, _ width: Int, initializer: Initializer = .normal(1), generator: RandomGenerator) {
    super.init()
    weight = initializer([vocabulary, width], generator)
  }

  public func callAsFunction(_ ids: Tensor) -> Tensor { embedding(.tensor(weight), .tensor(ids)) }
}
