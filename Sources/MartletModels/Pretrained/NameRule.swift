/// Which tensor of a checkpoint holds which parameters of our model, and how it is laid out there.
///
/// A `*` stands for a layer's number on both sides. A rule of modules stands for the parameters `weight` and `bias` of both; rules
/// whose parameters the model lacks (biases that are off) fall away.
public struct NameRule: Sendable {
  public enum Layout: Sendable {
    /// As ours; several of ours one below the other (rows of a fused projection), which become views of it.
    case rows
    /// The same with the matrix transposed: GPT-2 keeps [inputs, outputs].
    case transposed
    /// Three matrices, interleaved head by head (GPT-NeoX: each head's query rows, key rows, value rows).
    case interleaved(heads: Int)
    /// Another shape for the same elements in the same order, a function of ours.
    case reshaped(@Sendable ([Int]) -> [Int])
  }

  public let foreign: String
  public let own: [String]
  public let layout: Layout
  public let isModule: Bool

  /// Modules with weight and bias.
  public static func module(_ foreign: String, _ own: String..., layout: Layout = .rows) -> NameRule {
    NameRule(foreign: foreign, own: own, layout: layout, isModule: true)
  }

  /// One tensor by its whole name.
  public static func tensor(_ foreign: String, _ own: String..., layout: Layout = .rows) -> NameRule {
    NameRule(foreign: foreign, own: own, layout: layout, isModule: false)
  }

  /// The same rule with something before the names.
  public func prefixed(_ foreignPrefix: String, _ ownPrefix: String) -> NameRule {
    NameRule(foreign: foreignPrefix + foreign, own: own.map { ownPrefix + $0 }, layout: layout, isModule: isModule)
  }

  /// The rules of single tensors that this one stands for in a model with these parameters.
  func expanded(layers: Int, has: (String) -> Bool) -> [TensorRule] {
    let suffixes = isModule ? [".weight", ".bias"] : [""]
    let numbers = foreign.contains("*") || own[0].contains("*") ? (0..<layers).map(String.init) : [""]
    return numbers.flatMap { number in
      suffixes.compactMap { suffix in
        func named(_ pattern: String) -> String { pattern.replacing("*", with: number) + suffix }
        let names = own.map(named)
        return names.allSatisfy(has) ? TensorRule(foreign: named(foreign), own: names, layout: layout) : nil
      }
    }
  }
}

extension [NameRule] {
  /// Rules of a layer or another part, whose names are given from there on.
  public static func part(_ foreign: String, _ own: String, _ rules: [NameRule]) -> [NameRule] {
    rules.map { $0.prefixed(foreign + ".", own + ".") }
  }
}

/// One tensor of a checkpoint and the parameters that it holds.
struct TensorRule: Sendable {
  var foreign: String
  let own: [String]
  let layout: NameRule.Layout

  /// The shape in the checkpoint of parameters with these shapes.
  func foreignShape(_ shapes: [[Int]]) -> [Int] {
    var joined = shapes[0]
    if shapes.count > 1 { joined[0] = shapes.reduce(0) { $0 + $1[0] } }
    switch layout {
    case .rows, .interleaved: return joined
    case .transposed: return joined.reversed()
    case .reshaped(let shape): return shape(joined)
    }
  }

  /// The parameters, from a tensor of the right shape. Rows are views; other layouts are copied once.
  func split(_ tensor: Tensor, _ shapes: [[Int]]) -> [Tensor] {
    switch layout {
    case .rows, .transposed:
      let turned = if case .transposed = layout, tensor.rank == 2 { tensor.T } else { tensor }
      if shapes.count == 1 { return [turned.contiguous()] }
      var start = 0
      return shapes.map { shape in
        defer { start += shape[0] }
        return turned.narrowed(axis: 0, start: start, length: shape[0]).contiguous()
      }
    case .interleaved(let heads):
      let parts = tensor.reshaped([heads, shapes.count, shapes[0][0] / heads] + shapes[0].dropFirst())
      return shapes.enumerated().map { i, shape in parts.selected(axis: 1, i).reshaped(shape).contiguous() }
    case .reshaped: return [tensor.reshaped(shapes[0])]
    }
  }

  /// The checkpoint's tensor, from the parameters: the inverse of ``split(_:_:)``.
  func join(_ tensors: [Tensor]) -> Tensor {
    switch layout {
    case .rows: return tensors.count == 1 ? tensors[0] : concatenated(tensors)
    case .transposed:
      let all = tensors.count == 1 ? tensors[0] : concatenated(tensors)
      return all.rank == 2 ? all.T.contiguous() : all
    case .interleaved(let heads):
      let parts = tensors.map { $0.reshaped([heads, $0.dim(0) / heads] + $0.shape.dropFirst()) }
      return stacked(parts, axis: 1).reshaped(foreignShape(tensors.map(\.shape)))
    case .reshaped: return tensors[0].reshaped(foreignShape([tensors[0].shape]))
    }
  }
}
