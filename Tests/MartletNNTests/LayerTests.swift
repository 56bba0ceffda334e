import MartletNN
import Testing

@Suite struct LayerTests {
  /// A layer by name, with the input and the parameters of the fixture, in a dtype.
  private static func run(_ name: String, _ dtype: DType, _ function: (Module, Tensor) -> Tensor, _ module: Module) throws
    -> [(String, Tensor)]
  {
    try module.load(
      layerFixture.filter { $0.key == "\(name).weight" || $0.key == "\(name).bias" }
        .reduce(into: module.buffers().reduce(into: [:]) { $0[$1.name] = $1.tensor }) {
          $0[String($1.key.dropFirst(name.count + 1))] = $1.value
        })
    module.to(dtype)
    let isEmbedding = layerFixture["\(name).ids"] != nil
    let x = isEmbedding ? fixture("\(name).ids") : fixture("\(name).x").to(dtype).copy().tracked()
    let y = function(module, x)
    y.backward(seed: fixture("\(name).grad_y").to(dtype))
    var results = [("y", y)]
    if let gradient = x.gradient { results.append(("grad_x", gradient)) }
    for (key, tensor) in module.parameters() { results.append(("grad.\(key)", tensor.gradient!)) }
    return results
  }

  private static func generator() -> RandomGenerator { RandomGenerator(seed: 1) }

  private static let layers: [(name: String, make: @Sendable () -> Module, apply: @Sendable (Module, Tensor) -> Tensor)] = [
    ("linear", { Linear(12, 20, generator: generator()) }, { ($0 as! Linear)($1) }),
    ("layer_norm", { LayerNorm(12) }, { ($0 as! LayerNorm)($1) }),
    ("rms_norm", { RMSNorm(12) }, { ($0 as! RMSNorm)($1) }),
    ("group_norm", { GroupNorm(groups: 3, channels: 6) }, { ($0 as! GroupNorm)($1) }),
    ("batch_norm", { BatchNorm(6) }, { ($0 as! BatchNorm)($1) }),
    (
      "conv1d", { Conv1d(4, 6, kernel: 3, stride: 2, padding: 2, dilation: 2, groups: 2, generator: generator()) },
      { ($0 as! Conv1d)($1) }
    ),
    ("conv2d_depthwise", { Conv2d(4, 4, kernel: 3, padding: 1, groups: 4, generator: generator()) }, { ($0 as! Conv2d)($1) }),
    ("conv2d", { Conv2d(3, 5, kernel: 3, stride: 2, padding: 1, generator: generator()) }, { ($0 as! Conv2d)($1) }),
    ("embedding", { Embedding(7, 4, generator: generator()) }, { ($0 as! Embedding)($1) }),
  ]

  @Test(arguments: layers.indices) func outputsAndGradientsAreThoseOfPyTorch(index: Int) throws {
    let (name, make, apply) = Self.layers[index]
    let single = try Self.run(name, .float32, apply, make())
    let double = try Self.run(name, .float64, apply, make())
    #expect(single.count >= 2)
    for ((key, value), (_, exact)) in zip(single, double) {
      let expected = fixture("\(name).\(key)")
      let error = relativeDifference(value, expected)
      #expect(error < 3e-6, "\(name) \(key): \(error)")
      // The float64 path is made of plain operators, the float32 one may be a fused kernel.
      #expect(exact.dtype == .float64)
      let between = relativeDifference(exact, value)
      #expect(between < 3e-6, "\(name) \(key), float64 against float32: \(between)")
    }
  }

  @Test func batchNormKeepsRunningAveragesAndUsesThemInEvaluation() throws {
    let norm = BatchNorm(6)
    norm.weight = fixture("batch_norm.weight")
    norm.bias = fixture("batch_norm.bias")
    let x = fixture("batch_norm.x")
    _ = norm(x)
    #expect(relativeDifference(norm.runningMean, fixture("batch_norm.mean_after")) < 1e-6)
    #expect(relativeDifference(norm.runningVariance, fixture("batch_norm.var_after")) < 1e-6)
    norm.eval()
    let expected = (x - norm.runningMean) / (norm.runningVariance + 1e-5).sqrt() * norm.weight! + norm.bias!
    #expect(relativeDifference(norm(x), expected) < 1e-5)
    #expect(relativeDifference(norm.runningMean, fixture("batch_norm.mean_after")) < 1e-6, "evaluation leaves the averages alone")
    #expect(norm.parameters().map(\.name) == ["weight", "bias"] && norm.buffers().map(\.name) == ["running_mean", "running_var"])
  }

  @Test func gradientsAgreeWithFiniteDifferences() {
    let generator = Self.generator()
    func error(_ module: Module, _ shape: [Int], _ apply: (Tensor) -> Tensor) -> Double {
      module.to(.float64)
      let parameters = module.parameters().map(\.tensor)
      let weights = normal([1], seed: 3)
      let throughInput = gradientError([normal(shape, seed: 2)]) { (apply($0[0]).sin() * weights).sum() }
      // Parameters are changed in place: the module reads them where they are.
      let x = normal(shape, seed: 2)
      var worst = throughInput
      for parameter in parameters {
        let exact = gradient(of: apply(x).sin().sum(), with: [parameter])[0]!.reshaped(-1)
        let flat = parameter.detached().reshaped(-1)
        for position in stride(from: 0, to: flat.count, by: Swift.max(flat.count / 6, 1)) {
          withoutGradient {
            let value = flat[position].item()
            flat[position] = Tensor(value + 1e-6, dtype: .float64)
            let up = apply(x).sin().sum().item()
            flat[position] = Tensor(value - 1e-6, dtype: .float64)
            let down = apply(x).sin().sum().item()
            flat[position] = Tensor(value, dtype: .float64)
            worst = Swift.max(worst, Swift.abs((up - down) / 2e-6 - exact[position].item()) / exact.abs().max().item())
          }
        }
      }
      return worst
    }
    let linear = Linear(4, 3, generator: generator)
    let layerNorm = LayerNorm(5)
    let rmsNorm = RMSNorm(5)
    let groupNorm = GroupNorm(groups: 2, channels: 4)
    let batchNorm = BatchNorm(3)
    let conv1d = Conv1d(3, 4, kernel: 3, padding: 1, generator: generator)
    let conv2d = Conv2d(2, 2, kernel: 3, padding: 1, groups: 2, generator: generator)
    let short = ShortConvolution(4, kernel: 3, generator: generator)
    let errors: [(String, Double)] = [
      ("linear", error(linear, [2, 4]) { linear($0) }), ("layer norm", error(layerNorm, [3, 5]) { layerNorm($0) }),
      ("rms norm", error(rmsNorm, [3, 5]) { rmsNorm($0) }), ("group norm", error(groupNorm, [2, 4, 3]) { groupNorm($0) }),
      ("batch norm", error(batchNorm, [6, 3]) { batchNorm($0) }), ("conv1d", error(conv1d, [2, 3, 6]) { conv1d($0) }),
      ("conv2d", error(conv2d, [1, 2, 4, 4]) { conv2d($0) }), ("short convolution", error(short, [2, 6, 4]) { short($0) }),
    ]
    for (name, error) in errors { #expect(error < 2e-6, "\(name): \(error)") }
  }

  @Test func normsWithoutParametersStandardise() {
    let x = normal([4, 16], seed: 4).to(.float32) * 3.0 + 2.0
    let y = LayerNorm(16, affine: false)(x)
    #expect(y.mean(axis: -1).abs().max().item() < 1e-6)
    #expect((y.variance(axis: -1, correction: 0) - 1.0).abs().max().item() < 1e-4)
    #expect((RMSNorm(16, affine: false)(x).square().mean(axis: -1) - 1.0).abs().max().item() < 1e-5)
    #expect(LayerNorm(16, affine: false).parameterCount == 0 && LayerNorm(16, bias: false).parameterCount == 16)
    #expect(NormalizationKind.none.make(4) == nil && NormalizationKind.rms.make(4) is RMSNorm)
  }

  /// x / (‖x‖ D^{−½} + ε): by its formula, with the gradient of finite differences, and at rows that vanish.
  @Test func simpleRMSNormIsItsFormula() {
    for (scale, epsilon) in [(1.0, 1e-8), (1e-7, 1e-8), (0.1, 0.5)] {
      let norm = SRMSNorm(epsilon: epsilon)
      func formula(_ x: Tensor) -> Tensor { x / (x.norm(2, axis: -1, keepDims: true) / Double(x.dim(-1)).squareRoot() + epsilon) }
      let x = normal([5, 33], seed: 4) * scale
      let seed = normal([5, 33], seed: 5)
      func results(_ dtype: DType, _ function: (Tensor) -> Tensor) -> [Tensor] {
        let input = x.to(dtype).detached().copy().tracked()
        let y = function(input)
        return [y, gradient(of: y, with: [input], seed: seed.to(dtype))[0]!]
      }
      let exact = results(.float64, formula)
      for (a, b) in zip(results(.float64) { norm($0) }, exact) { #expect(relativeDifference(a, b) < 1e-12, "scale \(scale), ε \(epsilon)") }
      for (a, b) in zip(results(.float32) { norm($0) }, exact) {
        #expect(relativeDifference(a.to(.float64), b) < 2e-6, "scale \(scale), ε \(epsilon): \(relativeDifference(a.to(.float64), b))")
      }
    }
    let zeros = Tensor.zeros([2, 8]).tracked()
    let y = SRMSNorm()(zeros)
    let slope = gradient(of: y, with: [zeros], seed: Tensor.ones([2, 8]))[0]!
    #expect(y.abs().max().item() == 0 && slope.allFinite && abs(slope.max().item() * 1e-8 - 1) < 1e-5, "1/ε at 0")
    #expect(SRMSNorm().parameterCount == 0 && NormalizationKind.simpleRMS.make(4) is SRMSNorm)
  }

  @Test func linearTakesAnyRankAndNoBias() {
    let linear = Linear(6, 4, bias: false, generator: Self.generator())
    let x = normal([2, 3, 5, 6], seed: 5).to(.float32)
    #expect(relativeDifference(linear(x), x.matmul(linear.weight.T)) < 1e-6)
    #expect(linear(x[0, 0, 0]).shape == [4])
    #expect(linear(Tensor.zeros([0, 6])).shape == [0, 4])
    #expect(relativeDifference(linear(x.swappedAxes(0, 2).contiguous().swappedAxes(0, 2)), linear(x)) < 1e-6, "strided input")
    #expect(linear.inFeatures == 6 && linear.outFeatures == 4 && linear.storageBytes == 96 && linear.multiplyAdds() == 24)
    #expect(throws: TensorError.self) { try withTorchErrors { linear(Tensor.ones([2, 5])) } }
  }

  @Test func linearUnderAutocastIsBfloat16AndClose() {
    let linear = Linear(64, 32, generator: Self.generator())
    let x = normal([4, 64], seed: 6).to(.float32)
    let low = withAutocast { linear(x) }
    #expect(low.dtype == .bfloat16 && relativeDifference(low, linear(x)) < 0.02)
    let norm = LayerNorm(32)
    #expect(relativeDifference(withAutocast { norm(linear(x)) }, norm(linear(x))) < 0.03, "norms take what linear layers give")
    let targets = Tensor([1, 2, 3, 4] as [Int])
    #expect(relativeDifference(withAutocast { crossEntropy(linear(x), targets) }, crossEntropy(linear(x), targets)) < 0.01)
  }

  /// The kernel in float32 and the general convolution in float64, of a batch and of sequences end to end.
  @Test(arguments: [1, 4, 9]) func theKernelOfShortConvolutionsIsTheConvolution(kernel: Int) throws {
    for (batch, length, ends) in [(2, 300, nil), (1, 300, [0, 2, 2, 259, 300])] as [(Int, Int, [Int]?)] {
      for activated in [true, false] {
        let layer = ShortConvolution(19, kernel: kernel, activated: activated, generator: Self.generator())
        let exact = ShortConvolution(19, kernel: kernel, activated: activated, generator: Self.generator())
        exact.to(.float64)
        let x = normal([batch, length, 19], seed: 7).to(.float32).tracked()
        let double = x.detached().to(.float64).tracked()
        let seed = normal([batch, length, 19], seed: 8)
        let offsets = ends.map { Tensor($0) }
        let y = layer(x, offsets: offsets)
        let expected = causalConvolutionReference(double, weight: exact.weight, activated: activated, offsets: offsets)
        let found = [y] + gradient(of: y, with: [x, layer.weight], seed: seed.to(.float32)).map { $0! }
        let wanted = [expected] + gradient(of: expected, with: [double, exact.weight], seed: seed.to(.float64)).map { $0! }
        for (i, (a, b)) in zip(found, wanted).enumerated() {
          let error = relativeDifference(a.to(.float64), b)
          #expect(error <= 2e-6, "kernel \(kernel), packed \(ends != nil), result \(i): \(error), allowed 2e-6")
        }
      }
    }
  }

  @Test(arguments: [1, 4]) func shortConvolutionsRunPositionByPosition(kernel: Int) {
    for activated in [true, false] {
      let layer = ShortConvolution(6, kernel: kernel, activated: activated, generator: Self.generator())
      let x = normal([3, 9, 6], seed: 7).to(.float32)
      var state = layer.initialState(batch: 3)
      let steps = stacked((0..<9).map { layer.step(x[.all, $0], &state) }, axis: 1)
      #expect(relativeDifference(steps, layer(x)) < 1e-6)
      #expect(state.shape == [3, kernel - 1, 6])
      // Causal: a change at position 5 leaves the earlier outputs alone.
      let changed = x.copy()
      changed[.all, 5] = Tensor(9)
      let difference = (layer(changed) - layer(x)).abs().max(axis: -1).max(axis: 0).toArray(Float.self)
      #expect(difference[..<5].allSatisfy { $0 == 0 } && difference[5] > 0)
    }
  }

  @Test func badIdsAndShapesAreErrors() {
    let embedding = Embedding(5, 2, generator: Self.generator())
    #expect(embedding.vocabulary == 5 && embedding.width == 2)
    #expect(throws: TensorError.self) { try withTorchErrors { embedding(Tensor([5] as [Int])) } }
    #expect(throws: TensorError.self) { try withTorchErrors { embedding(Tensor([-1] as [Int])) } }
    #expect(throws: TensorError.self) { try withTorchErrors { GroupNorm(groups: 3, channels: 4) } }
    #expect(throws: TensorError.self) { try withTorchErrors { Conv1d(3, 4, kernel: 1, groups: 2, generator: Self.generator()) } }
  }

  @Test(arguments: Activation.allCases) func activationsAreThoseOfPyTorch(activation: Activation) {
    let x = fixture("activation.relu.x")
    switch activation {
    case .identity: #expect(activation(x).isEqual(to: x))
    case .reluSquared: #expect(activation(x).isEqual(to: x.relu() * x.relu()))
    case .quickGelu: #expect(activation(x).isEqual(to: x * (x * 1.702).sigmoid()))
    default:
      let input = fixture("activation.\(activation).x").copy().tracked()
      let y = activation(input)
      y.backward(seed: fixture("activation.\(activation).grad_y"))
      #expect(relativeDifference(y, fixture("activation.\(activation).y")) < 1e-6)
      #expect(relativeDifference(input.gradient!, fixture("activation.\(activation).grad_x")) < 2e-6)
    }
  }
}
