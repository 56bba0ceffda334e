import Foundation
import MartletNN
import Testing

/// A low-rank stand-in for a linear layer.
private final class LowRank: Module, LinearLayer {
  @Parameter var a: Tensor
  @Parameter var b: Tensor
  init(_ inFeatures: Int, _ outFeatures: Int) {
    super.init()
    a = Tensor.ones([1, inFeatures])
    b = Tensor.ones([outFeatures, 1])
  }
  var inFeatures: Int { a.dim(1) }
  var outFeatures: Int { b.dim(0) }
  func callAsFunction(_ x: Tensor) -> Tensor { linearMap(linearMap(x, a), b) }
  func denseWeight() -> Tensor { b.matmul(a) }
  var storageBytes: Int { a.byteCount + b.byteCount }
  func multiplyAdds() -> Int { a.count + b.count }
}

private class Base: Module {
  @Parameter(key: "A_log") var decay: Tensor
  @Buffer(key: "seen") var counter: Tensor
  override init() {
    super.init()
    decay = Tensor.zeros([3])
    counter = Tensor.zeros([1], dtype: .int64)
  }
}

private final class Tree: Base {
  @Child(key: "out_proj") var output: any LinearLayer
  @Child var layers: [any LinearLayer]
  @Child var extra: (any LinearLayer)?
  @Child var missing: LayerNorm?
  @Parameter var bias: Tensor?
  @Parameter var spectrum: Tensor
  let fixed: RMSNorm
  let plain: [LayerNorm]
  let width = 4
  private let hidden: Dropout

  init(extra: Bool = true) {
    let generator = RandomGenerator(seed: 1)
    fixed = RMSNorm(4)
    plain = [LayerNorm(2), LayerNorm(3, bias: false)]
    hidden = Dropout(0.1, generator: generator)
    super.init()
    output = Linear(4, 2, generator: generator)
    layers = [Linear(4, 4, bias: false, generator: generator), Linear(4, 4, generator: generator)]
    self.extra = extra ? Linear(2, 2, bias: false, generator: generator) : nil
    missing = nil
    bias = nil
    spectrum = Tensor.zeros([2], dtype: .complex64)
  }
}

@Suite struct ModuleTests {
  private let expectedNames = [
    "A_log", "out_proj.weight", "out_proj.bias", "layers.0.weight", "layers.1.weight", "layers.1.bias", "extra.weight", "spectrum",
    "fixed.weight", "plain.0.weight", "plain.0.bias", "plain.1.weight",
  ]

  // MARK: Reflection

  @Test func parametersAreFoundByPathInOrderOfDeclaration() {
    let tree = Tree()
    #expect(tree.parameters().map(\.name) == expectedNames)
    #expect(tree.buffers().map(\.name) == ["seen"])
    #expect(tree.parameterCount == 3 + 10 + 16 + 20 + 4 + 2 + 4 + 4 + 3)
    #expect(Tree(extra: false).parameters().map(\.name) == expectedNames.filter { $0 != "extra.weight" })
    #expect(
      tree.modules().map(\.path) == ["", "out_proj", "layers.0", "layers.1", "extra", "fixed", "plain.0", "plain.1", "hidden"])
    #expect(tree.modules(prefix: "model").map(\.path)[1] == "model.out_proj")
    #expect(tree.module(at: "layers.1") === tree.layers[1] && tree.module(at: "layers.2") == nil && tree.module(at: "") === tree)
    #expect(tree.parameters().allSatisfy { $0.tensor.requiresGradient } && !tree.counter.requiresGradient)
  }

  @Test func sharedTensorsAreListedOnceAndLoadThroughEitherName() throws {
    func tied() -> Tree {
      let tree = Tree()
      (tree.layers[1] as! Linear).weight = (tree.layers[0] as! Linear).weight
      return tree
    }
    let tree = tied()
    #expect(tree.parameters().map(\.name) == expectedNames.filter { $0 != "layers.1.weight" })
    #expect(tree.parameterCount == Tree().parameterCount - 16)
    // A file may hold the shared tensor twice; it is no surprise, and its absence is none either.
    var state = tree.stateDictionary()
    #expect(state["layers.1.weight"] == nil)
    #expect(try tied().load(state).missing == [])
    state["layers.1.weight"] = state["layers.0.weight"]
    #expect(try tied().load(state).unexpected == [])
    tree.to(.float64)
    #expect((tree.layers[1] as! Linear).weight === (tree.layers[0] as! Linear).weight, "a conversion keeps them shared")
    #expect(tree.parameters().map(\.name) == expectedNames.filter { $0 != "layers.1.weight" })
  }

  // MARK: State

  @Test func statesGoThroughFilesExactly() throws {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("martlet-\(UUID().uuidString).safetensors").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    let tree = Tree()
    withoutGradient {
      tree.decay.copyInPlace(Tensor([1, -2, 0.1] as [Float]))
      tree.counter.fillInPlace(41)
      tree.spectrum.copyInPlace(Tensor.complex(Tensor([1, 2] as [Float]), Tensor([3, 4] as [Float])))
    }
    try Safetensors.save(tree.stateDictionary(), to: path)
    let other = Tree()
    withoutGradient { other.output.denseWeight().fillInPlace(0) }
    let kept = other.decay
    try other.load(Safetensors.load(path))
    for (a, b) in zip(tree.parameters() + tree.buffers(), other.parameters() + other.buffers()) {
      #expect(a.name == b.name && a.tensor.isEqual(to: b.tensor), "\(a.name)")
    }
    #expect(other.counter.itemInt() == 41)
    #expect(other.decay === kept && kept.requiresGradient, "loading writes into the tensors that are there")
  }

  @Test func theStateSharesMemoryWithTheModule() {
    let tree = Tree()
    tree.stateDictionary()["A_log"]!.fillInPlace(5)
    #expect(tree.decay.toArray(Float.self) == [5, 5, 5])
    #expect(tree.stateDictionary().values.allSatisfy { !$0.requiresGradient })
  }

  @Test func whatDoesNotFitIsListedAndNothingIsChanged() throws {
    let tree = Tree()
    let before = tree.stateDictionary().mapValues { $0.copy() }
    var state = Tree().stateDictionary().mapValues { $0.copy() }
    for tensor in state.values { tensor.fillInPlace(9) }
    state["A_log"] = nil
    state["extra.weight"] = nil
    state["layers.0.weight"] = Tensor.zeros([4, 5])
    state["stranger"] = Tensor.zeros([1])
    let error = #expect(throws: LoadingError.self) { try tree.load(state) }
    #expect(error?.report.missing == ["A_log", "extra.weight"])
    #expect(error?.report.unexpected == ["stranger"])
    #expect(error?.report.misshapen.map(\.key) == ["layers.0.weight"])
    let text = "\(try #require(error))"
    for part in ["missing (2):", "A_log", "extra.weight", "unexpected (1):", "stranger", "layers.0.weight: expected [4, 4], found [4, 5]"] {
      #expect(text.contains(part), "\(text)")
    }
    func unchanged() -> Bool { tree.stateDictionary().allSatisfy { $0.value.isEqual(to: before[$0.key]!) } }
    #expect(unchanged())
    // A wrong shape is an error even where gaps are allowed.
    #expect(throws: LoadingError.self) { try tree.load(state, strict: false) }
    #expect(unchanged())
    state["layers.0.weight"] = nil
    let report = try tree.load(state, strict: false)
    #expect(report.missing == ["A_log", "layers.0.weight", "extra.weight"] && report.unexpected == ["stranger"])
    #expect(tree.counter.itemInt() == 9 && tree.output.denseWeight().min().item() == 9)
    #expect(tree.decay.isEqual(to: before["A_log"]!))
  }

  @Test func longListsAreShortened() {
    let state = Dictionary(uniqueKeysWithValues: (0..<30).map { ("key\($0)", Tensor.zeros([1])) })
    let error = #expect(throws: LoadingError.self) { try RMSNorm(2).load(state) }
    #expect("\(error!)".contains("unexpected (30)") && "\(error!)".contains("… and 10 more"))
  }

  @Test func loadingConvertsTheType() throws {
    let norm = RMSNorm(2)
    try norm.load(["weight": Tensor([0.5, 2] as [Double]).to(.bfloat16)])
    #expect(norm.weight!.dtype == .float32 && norm.weight!.toArray(Float.self) == [0.5, 2])
  }

  // MARK: Replacement

  @Test func layersAreReplacedByPath() throws {
    let tree = Tree()
    try tree.replace("out_proj", with: LowRank(4, 2))
    try tree.replace("layers.1", with: LowRank(4, 4))
    try tree.replace("extra", with: LowRank(2, 2))
    #expect(tree.output is LowRank && tree.layers[0] is Linear && tree.layers[1] is LowRank && tree.extra is LowRank)
    #expect(tree.parameters().map(\.name).filter { $0.hasPrefix("layers.1") } == ["layers.1.a", "layers.1.b"])
    final class Outer: Module {
      @Child var trees: [Tree]
      init(_ tree: Tree) {
        super.init()
        trees = [Tree(), tree]
      }
    }
    let outer = Outer(tree)
    try outer.replace("trees.1.layers.0", with: LowRank(4, 4))
    #expect(tree.layers[0] is LowRank && outer.trees[0].layers[0] is Linear)
  }

  @Test func impossibleReplacementsAreErrorsThatSayWhy() {
    let tree = Tree()
    func message(_ path: String, _ module: Module) -> String {
      do {
        try tree.replace(path, with: module)
        return "no error"
      } catch { return "\(error)" }
    }
    #expect(message("out_proj", RMSNorm(4)).contains("out_proj of Tree can't hold a RMSNorm"))
    #expect(message("layers.0", RMSNorm(4)).contains("can't hold a RMSNorm"))
    #expect(message("extra", RMSNorm(4)).contains("can't hold a RMSNorm"))
    #expect(message("fixed", RMSNorm(4)).contains("not marked @Child"))
    let unknown = message("layers.7", LowRank(4, 4))
    #expect(unknown.contains("no child “layers.7”") && unknown.contains("layers.0, layers.1"), "\(unknown)")
    #expect(message("out_proj.weight", LowRank(4, 4)).contains("Linear has no child “weight”"))
    #expect(tree.output is Linear && tree.layers[0] is Linear && tree.extra is Linear)
  }

  // MARK: Modes and types

  @Test func freezingAndUnfreezing() {
    let tree = Tree()
    tree.freeze { !$0.hasPrefix("layers") }
    #expect(tree.trainableParameters().map(\.name) == ["layers.0.weight", "layers.1.weight", "layers.1.bias"])
    tree.freeze()
    #expect(tree.trainableParameters().isEmpty)
    tree.unfreeze { $0 == "A_log" }
    #expect(tree.trainableParameters().map(\.name) == ["A_log"])
    tree.unfreeze()
    #expect(tree.trainableParameters().map(\.name) == expectedNames, "complex parameters train again too")
  }

  @Test func modesReachEveryModule() {
    let tree = Tree()
    #expect(tree.modules().allSatisfy { $0.module.isTraining })
    tree.eval()
    #expect(tree.modules().allSatisfy { !$0.module.isTraining })
    tree.layers[1].train()
    #expect(tree.layers[1].isTraining && !tree.layers[0].isTraining)
  }

  @Test func conversionsChangeFloatingPointTensorsOnly() {
    let tree = Tree()
    tree.freeze { $0 == "A_log" }
    tree.to(.float64)
    #expect(tree.decay.dtype == .float64 && !tree.decay.requiresGradient)
    #expect(tree.output.denseWeight().dtype == .float64 && tree.output.denseWeight().requiresGradient)
    #expect(tree.output.denseWeight().isLeaf)
    #expect(tree.spectrum.dtype == .complex128 && tree.counter.dtype == .int64)
    tree.to(.bfloat16)
    #expect(tree.plain[0].bias?.dtype == .bfloat16)
  }

  @Test func gradientsAreCleared() {
    let linear = Linear(2, 2, generator: RandomGenerator(seed: 1))
    linear(Tensor.ones([1, 2])).sum().backward()
    #expect(linear.weight.gradient != nil)
    linear.zeroGradients()
    #expect(linear.weight.gradient == nil && linear.bias?.gradient == nil)
  }
}
