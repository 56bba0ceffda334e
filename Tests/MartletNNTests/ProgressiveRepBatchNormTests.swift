import Foundation
import MartletNN
import Testing

@Suite struct ProgressiveRepBatchNormTests {
  private typealias Norm = ProgressiveRepBatchNorm

  private func make(width: Int = 6, _ schedule: Norm.Schedule, seed: UInt64 = 1) -> Norm {
    let norm = Norm(width, schedule: schedule)
    withoutGradient {
      for (i, (_, parameter)) in norm.parameters().enumerated() {
        parameter.addInPlace(normal(parameter.shape, seed: seed + UInt64(i)).to(.float32) * 0.3)
      }
      norm.batchNorm.runningMean.copyInPlace(normal([width], seed: seed + 20).to(.float32))
      norm.batchNorm.runningVariance.copyInPlace(normal([width], seed: seed + 21).to(.float32).square() + 0.5)
    }
    return norm
  }

  // MARK: The mixture

  /// By an independent implementation in float64 (make_slab_fixtures.py): the training mixture at given λ, its gradients, the running
  /// averages, RepBN in evaluation and the folded linear maps, without and with excluded positions.
  @Test(arguments: ["start", "middle", "end", "masked"], [DType.float32, .float64])
  func agreesWithTheEquations(_ name: String, _ dtype: DType) throws {
    let all = try Safetensors.load(Bundle.module.resourceURL!.appendingPathComponent("Fixtures/slab_norm.safetensors").path)
    func given(_ key: String) throws -> Tensor { try #require(all["\(name).\(key)"], "\(key)").to(dtype).copy() }
    let norm = Norm(6)
    let tolerance = dtype == .float64 ? 1e-12 : 2e-6
    norm.to(dtype)
    norm.layerNorm.weight = try given("layer_weight")
    norm.layerNorm.bias = try given("layer_bias")
    norm.batchNorm.weight = try given("batch_weight")
    norm.batchNorm.bias = try given("batch_bias")
    norm.batchNorm.runningMean = try given("running_mean")
    norm.batchNorm.runningVariance = try given("running_var")
    norm.eta = try given("eta")
    // λ = 1 − t/T at t = 0 times r₀.
    let weight: Double = try given("lambda").item()
    norm.schedule = .init(steps: weight == 0 ? 0 : 10, initialWeight: weight)
    let mask = all["\(name).mask"]
    let x = try given("x").tracked()
    let y = norm(x, mask: mask)
    let real = mask?.expandedDimension(-1).to(dtype) ?? Tensor(1, dtype: dtype)
    func check(_ what: String, _ found: Tensor, _ key: String) throws {
      let error = relativeDifference(found, try given("expected." + key))
      #expect(error <= tolerance, "\(name) \(dtype), \(what): \(error), allowed \(tolerance)")
    }
    try check("output", y * real, "y")
    try check("mean", norm.batchNorm.runningMean, "running_mean")
    try check("variance", norm.batchNorm.runningVariance, "running_var")
    let leaves = [x, norm.layerNorm.weight!, norm.layerNorm.bias!, norm.batchNorm.weight!, norm.batchNorm.bias!, norm.eta]
    let names = ["x", "layer_weight", "layer_bias", "batch_weight", "batch_bias", "eta"]
    for (key, found) in zip(names, gradient(of: y, with: leaves, seed: try given("up"))) {
      let expected = try given("expected.grad." + key)
      if expected.abs().max().item() == 0 {
        #expect(found.map { $0.abs().max().item() == 0 } ?? true, "\(name): \(key) takes no part")
        continue
      }
      try check("gradient of \(key)", try #require(found), "grad." + key)
    }
    norm.eval()
    try check("evaluation", norm(x.detached()), "evaluated")
    for hasBias in [true, false] {
      let next = Linear(weight: try given("w"), bias: hasBias ? try given("bias") : nil)
      norm.fold(into: next)
      try check("into the next layer, bias \(hasBias)", next(x.detached()), hasBias ? "next" : "next_without_bias")
    }
    let previous = Linear(weight: try given("before"))
    norm.fold(after: previous)
    try check("after the previous layer", previous(try given("z")), "previous")
  }

  @Test func lambdaOneIsLayerNormAndZeroIsRepBN() {
    let x = normal([3, 5, 6], seed: 9).to(.float32)
    let layer = make(.init(warmup: 1, steps: 4))
    #expect(relativeDifference(layer(x), layer.layerNorm(x)) == 0, "the warm-up is layer norm")
    #expect(relativeDifference(layer(x), layer.layerNorm(x)) <= 1e-6, "λ = 1 too")
    let rep = make(.init(steps: 0))
    let mean = x.mean(axes: [0, 1])
    let variance = (x - mean).square().mean(axes: [0, 1])
    let expected = (x - mean) / (variance + 1e-5).sqrt() * rep.batchNorm.weight! + rep.batchNorm.bias! + x * rep.eta
    #expect(relativeDifference(rep(x), expected) <= 1e-5)
  }

  // MARK: The schedule

  @Test func lambdaFallsStepByStepToZero() {
    let norm = make(.init(warmup: 2, steps: 5, initialWeight: 0.8))
    let x = normal([2, 3, 6], seed: 2).to(.float32)
    var seen: [Double?] = []
    for _ in 0..<10 {
      seen.append(norm.layerNormWeight)
      _ = norm(x)
    }
    let expected: [Double?] = [nil, nil, 0.8, 0.64, 0.48, 0.32, 0.16, 0, 0, 0]
    for (a, b) in zip(seen, expected) {
      #expect((a == nil) == (b == nil) && abs((a ?? 0) - (b ?? 0)) < 1e-12, "\(seen)")
    }
    #expect(zip(seen.dropFirst(2), seen.dropFirst(3)).allSatisfy { $0! >= $1! })
    #expect(norm.passes.itemInt() == 10)
    // Gradients of four batches make a step.
    let accumulated = Norm.Schedule(warmup: 1, steps: 2, passesPerStep: 4)
    #expect((0..<4).allSatisfy { accumulated.weight(pass: $0) == nil })
    #expect((4..<8).allSatisfy { accumulated.weight(pass: $0) == 1 } && (8..<12).allSatisfy { accumulated.weight(pass: $0) == 0.5 })
    #expect(accumulated.weight(pass: 12) == 0)
  }

  @Test func evaluationAndRecomputationLeaveTheStateAlone() {
    let norm = make(.init(steps: 4))
    let x = normal([2, 3, 6], seed: 2).to(.float32)
    _ = norm(x)
    let first = norm(x)
    let state = norm.stateDictionary().mapValues { $0.copy() }
    norm.eval()
    _ = norm(x)
    norm.train()
    let again = Norm.$isRecomputing.withValue(true) { norm(x) }
    #expect(relativeDifference(again, first) <= 1e-6, "λ of the pass that is computed again")
    for (key, tensor) in norm.stateDictionary() { #expect(tensor.isEqual(to: state[key]!), "\(key)") }
    #expect(norm.passes.itemInt() == 2)
  }

  @Test func checkpointsRestoreLambda() throws {
    let norm = make(.init(steps: 8))
    let x = normal([2, 3, 6], seed: 2).to(.float32)
    for _ in 0..<3 { _ = norm(x) }
    #expect(Set(norm.buffers().map(\.name)) == ["batch_norm.running_mean", "batch_norm.running_var", "passes"])
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("prepbn-\(UUID().uuidString).safetensors").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    try Safetensors.save(norm.stateDictionary(), to: path)
    let other = Norm(6, schedule: .init(steps: 8))
    try other.load(Safetensors.load(path))
    #expect(other.layerNormWeight == 1 - 3.0 / 8)
    for _ in 0..<3 { #expect(norm(x).isEqual(to: other(x))) }
    other.to(.float64)
    #expect(other.passes.dtype == .int64)
  }

  // MARK: Affine

  @Test func evaluationIsAffine() {
    let norm = make(.init(steps: 0))
    norm.to(.float64)
    norm.eval()
    let (x, y) = (normal([2, 4, 6], seed: 3), normal([2, 4, 6], seed: 4))
    let zero = Tensor.zeros([2, 4, 6], dtype: .float64)
    let rest: Double = (norm(x + y) - norm(x) - norm(y) + norm(zero)).abs().max().item()
    #expect(rest <= 1e-12, "f(x + y) − f(x) − f(y) + f(0) = \(rest)")
    let (scale, shift) = norm.affine
    #expect(relativeDifference(norm(x), x * scale + shift) <= 1e-12)
  }

  @Test func foldsAfterAConvolution() {
    for hasBias in [true, false] {
      let norm = make(.init(steps: 0))
      norm.eval()
      let convolution = Conv2d(3, 6, kernel: 3, stride: 2, bias: hasBias, generator: RandomGenerator(seed: 5))
      let x = normal([2, 3, 9, 9], seed: 6).to(.float32)
      let expected = norm(convolution(x).transposed(0, 2, 3, 1)).transposed(0, 3, 1, 2)
      norm.fold(after: convolution)
      let error = relativeDifference(convolution(x), expected)
      #expect(error <= 1e-5, "bias \(hasBias): \(error), allowed 1e-5")
      let line = Conv1d(3, 6, kernel: 2, bias: hasBias, generator: RandomGenerator(seed: 5))
      let z = normal([2, 3, 9], seed: 6).to(.float32)
      let wanted = norm(line(z).swappedAxes(1, 2)).swappedAxes(1, 2)
      norm.fold(after: line)
      #expect(relativeDifference(line(z), wanted) <= 1e-5)
    }
  }

  // MARK: Padding and recalibration

  @Test func paddingTakesNoPartInTheStatistics() {
    let x = normal([2, 5, 6], seed: 7).to(.float32)
    let mask = Tensor.arange(5) .< Tensor([5, 2]).expandedDimension(1)
    let other = select(mask.expandedDimension(-1), x, x * 7.0 + 3.0)
    for make in [{ self.make(.init(steps: 0)) as any NormalizationLayer }, { BatchNorm(6) }] {
      let (a, b) = (make(), make())
      let (ya, yb) = (a(x, mask: mask), b(other, mask: mask))
      #expect(relativeDifference(ya[0], yb[0]) <= 1e-6 && relativeDifference(ya[1, ..<2], yb[1, ..<2]) <= 1e-6)
      for ((key, found), (_, expected)) in zip(b.buffers(), a.buffers()) { #expect(relativeDifference(found, expected) <= 1e-6, "\(key)") }
    }
    // Without padding a mask changes nothing.
    let (a, b) = (BatchNorm(6), BatchNorm(6))
    #expect(relativeDifference(a(x, mask: Tensor.ones([2, 5], dtype: .bool)), b(x)) <= 1e-5)
    #expect(relativeDifference(a.runningVariance, b.runningVariance) <= 1e-5)
  }

  @Test func recalibrationReplacesStaleAverages() {
    let norm = make(.init(steps: 0))
    let batches = (0..<3).map { normal([4, 5, 6], seed: 30 + UInt64($0)).to(.float32) * Double($0 + 1) + 2.0 }
    recalibrateNormalization(norm, batches: 3) { _ = norm(batches[$0]) }
    let means = stacked(batches.map { $0.mean(axes: [0, 1]) }).mean(axis: 0)
    let variances = stacked(batches.map { $0.reshaped(-1, 6).variance(axis: 0) }).mean(axis: 0)
    #expect(relativeDifference(norm.batchNorm.runningMean, means) <= 1e-5)
    #expect(relativeDifference(norm.batchNorm.runningVariance, variances) <= 1e-5)
    #expect(!norm.isTraining && norm.passes.itemInt() == 0)
    let expected = (batches[0] - means) / (variances + 1e-5).sqrt() * norm.batchNorm.weight! + norm.batchNorm.bias! + batches[0] * norm.eta
    #expect(relativeDifference(norm(batches[0]), expected) <= 1e-5, "evaluation uses the new averages again")
  }
}
