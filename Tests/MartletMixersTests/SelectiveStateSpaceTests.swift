import Foundation
import MartletMixers
import Testing

@Suite struct SelectiveStateSpaceTests {
  struct Inputs {
    var x, delta, A, B, C, skip, gate, bias, state: Tensor
    var leaves: [Tensor] { [x, delta, A, B, C, skip, gate, bias, state] }
    static let names = ["x", "delta", "A", "B", "C", "skip", "gate", "delta bias", "initial state"]
  }

  private func inputs(_ length: Int, channels: Int = 20, states: Int = 6, _ dtype: DType = .float64) -> Inputs {
    func make(_ shape: Int..., seed: UInt64) -> Tensor { normal(shape, seed: seed).to(dtype).tracked() }
    return Inputs(
      x: make(2, length, channels, seed: 1), delta: make(2, length, channels, seed: 2),
      A: (normal([channels, states], seed: 3).abs() * -3.0 - 0.1).to(dtype).detached().tracked(), B: make(2, length, states, seed: 4),
      C: make(2, length, states, seed: 5), skip: make(channels, seed: 6), gate: make(2, length, channels, seed: 7),
      bias: make(channels, seed: 8), state: make(2, channels, states, seed: 9))
  }

  private typealias Form = (Inputs) -> (output: Tensor, state: Tensor)
  private func recurrence(_ i: Inputs) -> (output: Tensor, state: Tensor) {
    selectiveScanReference(
      i.x, delta: i.delta, A: i.A, B: i.B, C: i.C, skip: i.skip, gate: i.gate, deltaBias: i.bias, initialState: i.state)
  }

  private func results(_ i: Inputs, _ form: Form) -> [(name: String, value: Tensor)] {
    let (y, end) = form(i)
    let gradients = gradient(
      of: [y, end], with: i.leaves, seeds: [normal(y.shape, seed: 10).to(y.dtype), normal(end.shape, seed: 11).to(y.dtype)])
    return [("output", y), ("state", end)] + zip(Inputs.names, gradients).map { ($0, $1!) }
  }

  @Test(arguments: [1, 31, 32, 33, 64, 100, 200]) func theKernelAndItsGradientsAreTheRecurrence(_ length: Int) {
    for (channels, states) in [(20, 6), (70, 16)] {
      let exact = results(inputs(length, channels: channels, states: states), recurrence)
      let fused = results(inputs(length, channels: channels, states: states, .float32)) { i in
        selectiveScan(i.x, delta: i.delta, A: i.A, B: i.B, C: i.C, skip: i.skip, gate: i.gate, deltaBias: i.bias, initialState: i.state)
      }
      for ((name, found), (_, expected)) in zip(fused, exact) {
        let error = relativeError(found, expected)
        #expect(error <= 1e-5, "L = \(length), \(channels) channels, \(name): \(error), allowed 1e-5")
      }
    }
  }

  @Test(arguments: [1, 2, 17, 64, 75]) func theAssociativeScanIsTheRecurrence(_ length: Int) {
    let exact = results(inputs(length), recurrence)
    for chunk in [1, 16, 64, length] {
      let found = results(inputs(length)) { i in
        selectiveScanAssociative(
          i.x, delta: i.delta, A: i.A, B: i.B, C: i.C, skip: i.skip, gate: i.gate, deltaBias: i.bias, initialState: i.state, chunk: chunk)
      }
      for ((name, value), (_, expected)) in zip(found, exact) {
        let error = relativeError(value, expected)
        #expect(error <= 1e-10, "L = \(length), chunk \(chunk), \(name): \(error), allowed 1e-10")
      }
    }
  }

  @Test func theKernelWorksWithoutTheOptionalArguments() {
    let i = inputs(50, .float32)
    let found = selectiveScan(i.x, delta: i.delta, A: i.A, B: i.B, C: i.C)
    let expected = selectiveScanReference(
      i.x.to(.float64), delta: i.delta.to(.float64), A: i.A.to(.float64), B: i.B.to(.float64), C: i.C.to(.float64))
    #expect(relativeError(found.output, expected.output) <= 1e-5, "\(relativeError(found.output, expected.output))")
    #expect(relativeError(found.state, expected.state) <= 1e-5, "\(relativeError(found.state, expected.state))")
  }

  /// With one constant step and constant B and C the system is time-invariant: a convolution with K_l = Σ_n C_n e^{lΔA_n} Δ B_n.
  @Test func withoutSelectionTheScanIsAConvolution() {
    let (length, states) = (40, 4)
    let (step, a) = (0.3, [-0.5, -1.0, -2.0, -4.0])
    let (b, c) = ([0.7, -0.2, 0.4, 1.0], [1.0, 0.5, -0.3, 0.2])
    let x = normal([1, length, 1], .float64)
    // softplus(log(e^Δ − 1)) = Δ
    let delta = Tensor.full([1, length, 1], log(exp(step) - 1), dtype: .float64)
    func rows(_ values: [Double]) -> Tensor { Tensor(values).broadcast(to: [1, length, states]) }
    let y = selectiveScanReference(x, delta: delta, A: Tensor(a, [1, states]), B: rows(b), C: rows(c)).output
    let kernel = (0..<length).map { l in (0..<states).reduce(0.0) { $0 + c[$1] * exp(Double(l) * step * a[$1]) * step * b[$1] } }
    let expected = longConvolutionReference(x.swappedAxes(1, 2), Tensor(kernel, [1, length])).swappedAxes(1, 2)
    #expect(relativeError(y, expected) <= 1e-12, "\(relativeError(y, expected))")
  }

  /// A large step forgets everything before: e^{ΔA} vanishes.
  @Test func aLargeStepResetsTheState() {
    let i = inputs(30, .float32)
    let reset = i.delta.detached().copy()
    reset[.all, 10] = Tensor.full([2, 20], 2000)
    func y(_ x: Tensor) -> Tensor { selectiveScan(x, delta: reset, A: i.A, B: i.B, C: i.C).output }
    let changed = i.x.detached().copy()
    changed[.all, ..<10] = normal([2, 10, 20], seed: 20)
    withoutGradient {
      let (a, b) = (y(i.x), y(changed))
      #expect(relativeError(b[.all, 10...], a[.all, 10...]) == 0)
      #expect(relativeError(b[.all, ..<10], a[.all, ..<10]) > 0.1)
      #expect(a.allFinite)
    }
  }

  @Test func theScanOfAnAssociativeOperationIsItsFold() {
    // Products of 2×2 matrices don't commute.
    let matrices = normal([13, 2, 2], .float64)
    let scanned = associativeScan([matrices], axis: 0) { earlier, later in [earlier[0].matmul(later[0])] }[0]
    var product = matrices[0]
    for t in 0..<13 {
      if t > 0 { product = product.matmul(matrices[t]) }
      #expect(relativeError(scanned[t], product) <= 1e-12, "t = \(t)")
    }
    #expect(associativeScan([], axis: 0) { $1 }.isEmpty)
  }

  // MARK: The layer

  @Test func namesAndFirstValuesAreTheAuthors() {
    let layer = SelectiveStateSpace(.init(width: 40), generator: RandomGenerator(seed: 1))
    let shapes = Dictionary(uniqueKeysWithValues: layer.parameters().map { ($0.name, $0.tensor.shape) })
    #expect(
      shapes == [
        "in_proj.weight": [160, 40], "conv1d.weight": [80, 1, 4], "conv1d.bias": [80], "x_proj.weight": [35, 80],
        "dt_proj.weight": [80, 3],
        "dt_proj.bias": [80], "A_log": [80, 16], "D": [80], "out_proj.weight": [40, 80],
      ])
    #expect(layer.trainableParameters().count == 9)
    #expect(relativeError(layer.logA[7].exp(), Tensor.arange(1, 17)) <= 1e-6)
    #expect(layer.skip.toArray(Float.self).allSatisfy { $0 == 1 })
    let projection = layer.step as? Linear
    let steps = projection?.bias?.softplus().toArray(Float.self) ?? []
    #expect(steps.count == 80 && steps.allSatisfy { (0.00099...0.101).contains($0) }, "\(steps)")
    // Log-uniform: a third of them in each decade and a half, about.
    #expect((25...55).contains(steps.filter { $0 < 0.01 }.count), "\(steps.filter { $0 < 0.01 }.count) of 80 below 0.01")
    let bound = 1 / Float(3).squareRoot()
    #expect(projection?.weight.toArray(Float.self).allSatisfy { abs($0) <= bound } == true)
  }

  @Test func anAdaptedStepProjectionIsUsedAsItIs() throws {
    let layer = SelectiveStateSpace(.init(width: 8, state: 4), generator: RandomGenerator(seed: 1))
    let x = normal([2, 20, 8])
    let before = layer(x)
    let inner = try #require(layer.step as? Linear)
    try layer.replace("dt_proj", with: Doubled(inner))
    let error = relativeError(layer(x), before)
    #expect(error <= 1e-5, "halves of the same map: \(error)")
  }

  /// A linear layer in another form.
  private final class Doubled: Module, LinearLayer {
    @Child var half: any LinearLayer
    init(_ layer: Linear) {
      super.init()
      half = Linear(weight: layer.weight.detached() * 0.5, bias: layer.bias.map { $0.detached() * 0.5 })
    }
    var inFeatures: Int { half.inFeatures }
    var outFeatures: Int { half.outFeatures }
    func callAsFunction(_ x: Tensor) -> Tensor { half(x) * 2.0 }
    func denseWeight() -> Tensor { half.denseWeight() * 2.0 }
    var storageBytes: Int { half.storageBytes }
    func multiplyAdds() -> Int { half.multiplyAdds() }
  }

  @Test func theStateDoesNotKeepTheSequence() {
    let layer = SelectiveStateSpace(.init(width: 8, state: 4), generator: RandomGenerator(seed: 1))
    withoutGradient {
      var state = layer.initialState(batch: 1)
      #expect(layer.stateBytes(state) == 4 * (16 * 4 + 3 * 16))
      _ = layer.advance(normal([1, 2, 8]), &state)
      #expect(layer.stateBytes(state) == 4 * (16 * 4 + 3 * 16))
    }
  }

  @Test func optionsAreChecked() {
    let site = MixerSite(width: 8, heads: 2, isCausal: true, length: 30)
    for options: JSONValue in [["state": 0], ["expansion": 0], ["convolution": 17], ["convolution": 0], ["step_rank": 0], ["dt_min": 1]] {
      #expect(throws: ConfigurationError.self, "\(options)") {
        try MixerKind.mamba(site, options: options, generator: RandomGenerator(seed: 1))
      }
    }
  }
}
