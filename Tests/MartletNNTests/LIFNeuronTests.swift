import MartletNN
import Testing

@Suite struct LIFNeuronTests {
  private func normal(_ shape: [Int], seed: UInt64 = 1, _ dtype: DType = .float64) -> Tensor {
    Tensor.randomNormal(shape, generator: RandomGenerator(seed: seed)).to(dtype)
  }

  private func error(_ a: Tensor, _ b: Tensor) -> Double {
    (a.to(.float64) - b.to(.float64)).abs().max().item() / max(b.to(.float64).abs().max().item(), 1e-30)
  }

  @Test(arguments: [1, 2, 33, 100], [DType.float32, .float64])
  func theKernelAndItsGradientsAreTheReference(_ length: Int, _ dtype: DType) {
    for (tau, threshold, steepness) in [(2.0, 1.0, 4.0), (1.0, 1.0, 4.0), (3.0, 0.5, 2.0)] {
      let neuron = LIFNeuron(timeConstant: tau, threshold: threshold, steepness: steepness)
      func results(_ isFused: Bool) -> [(String, Tensor)] {
        let x = (normal([2, length, 37], dtype) * 2.0).tracked()
        let start = normal([2, 37], seed: 2, dtype).tracked()
        var membrane = start
        let spikes: Tensor
        if isFused {
          spikes = neuron.advance(x, &membrane)
        } else {
          (spikes, membrane) = leakyIntegrateAndFireReference(
            x, membrane: start, timeConstant: tau, threshold: threshold, steepness: steepness)
        }
        let gradients = gradient(
          of: [spikes, membrane], with: [x, start], seeds: [normal(spikes.shape, seed: 3, dtype), normal(membrane.shape, seed: 4, dtype)])
        return [("spikes", spikes), ("membrane", membrane), ("x", gradients[0]!), ("initial membrane", gradients[1]!)]
      }
      let allowed = dtype == .float64 ? 1e-12 : 1e-5
      for ((name, found), (_, expected)) in zip(results(true), results(false)) {
        let difference = error(found, expected)
        #expect(difference <= allowed, "τ = \(tau), L = \(length), \(name): \(difference), allowed \(allowed)")
      }
    }
  }

  @Test func outputsAreZerosAndOnes() {
    let spikes = LIFNeuron()(normal([3, 40, 10]) * 3.0)
    let values = Set(spikes.toArray(Double.self))
    #expect(values == [0, 1], "\(values)")
  }

  @Test func aConstantInputBelowTheThresholdNeverFires() {
    let below = Tensor.full([1, 500, 1], 0.999, dtype: .float64)
    #expect(LIFNeuron()(below).sum().item() == 0)
    // h approaches the input: 2(1 − 2^{−t}) reaches 1 at the first step, 1.5 and reset to 0.
    let above = LIFNeuron()(Tensor.full([1, 6, 1], 1.5, dtype: .float64)).reshaped(-1).toArray(Double.self)
    #expect(above == [0, 1, 0, 1, 0, 1], "0.75, then 1.125 fires and resets: \(above)")
  }

  @Test func theGradientIsTheSurrogate() {
    // One step from rest: h = x/2, ds/dx = ½ · 4σ(4z)(1 − σ(4z)), z = x/2 − 1.
    let x = Tensor.linspace(-3, 6, count: 41, dtype: .float64).reshaped(1, 1, -1).tracked()
    let found = gradient(of: LIFNeuron()(x).sum(), with: [x])[0]!
    let sigma = ((x.detached() / 2.0 - 1.0) * 4.0).sigmoid()
    let expected = sigma * (1 - sigma) * 2.0
    #expect(error(found, expected) <= 1e-12, "\(error(found, expected))")
  }

  @Test func noGradientPassesThroughTheReset() {
    // The first step fires, so that the second starts from rest, whatever the first was.
    let fired = Tensor([5.0, 0.3], [1, 2, 1]).tracked()
    let ofSecond = gradient(of: LIFNeuron()(fired)[.all, 1].sum(), with: [fired])[0]!.reshaped(-1).toArray(Double.self)
    #expect(ofSecond[0] == 0, "\(ofSecond)")
    #expect(ofSecond[1] > 0.01)
    // Without a spike the membrane carries half of the gradient on.
    let quiet = Tensor([0.5, 0.3], [1, 2, 1]).tracked()
    let carried = gradient(of: LIFNeuron()(quiet)[.all, 1].sum(), with: [quiet])[0]!.reshaped(-1).toArray(Double.self)
    #expect(abs(carried[0] - carried[1] / 2) <= 1e-12, "\(carried)")
  }

  @Test func stepsContinueTheMembrane() {
    let neuron = LIFNeuron(timeConstant: 3, threshold: 0.5)
    let x = normal([2, 30, 5], .float32)
    let whole = neuron(x)
    var membrane = neuron.initialState(batch: 2, width: 5)
    let steps = stacked((0..<30).map { neuron.step(x.selected(axis: 1, $0), &membrane) }, axis: 1)
    #expect(steps.isEqual(to: whole))
  }
}

@Suite struct MaskedBatchNormTests {
  @Test func paddingTakesNoPartInTheStatistics() {
    let generator = RandomGenerator(seed: 1)
    let x = Tensor.randomNormal([2, 6, 3], generator: generator)
    let mask = Tensor.arange(6) .< Tensor([6, 2]).expandedDimension(1)
    func normalised(_ padding: Double) -> (y: Tensor, norm: BatchNorm) {
      let norm = BatchNorm(3)
      return (norm(select(mask.expandedDimension(-1), x, Tensor.full(like: x, padding)), mask: mask), norm)
    }
    let (a, first) = normalised(100)
    let (b, _) = normalised(-7)
    func real(_ y: Tensor) -> Tensor { concatenated([y[0], y[1, ..<2]]) }
    #expect(real(a).isEqual(to: real(b)))
    let alone = BatchNorm(3)
    let expected = alone(real(x))
    #expect((real(a) - expected).abs().max().item() <= 1e-6)
    #expect((first.runningMean - alone.runningMean).abs().max().item() <= 1e-7)
    first.eval()
    #expect(first(x, mask: mask).isEqual(to: first(x)), "evaluation knows no batch")
  }
}

@Suite struct CausalConvolutionTests {
  @Test(arguments: [1, 3, 64, 130], [1, 4, 7]) func theKernelIsTheReference(_ length: Int, _ kernel: Int) {
    for activated in [true, false] {
      func results(_ dtype: DType) -> [Tensor] {
        func make(_ shape: Int..., seed: UInt64) -> Tensor {
          Tensor.randomNormal(shape, generator: RandomGenerator(seed: seed)).to(dtype).tracked()
        }
        let leaves = [
          make(2, length, 9, seed: 1), make(9, kernel, seed: 2), make(9, seed: 3), make(2, kernel - 1, 9, seed: 4),
        ]
        let y = causalConvolution(leaves[0], weight: leaves[1], bias: leaves[2], past: leaves[3], activated: activated)
        let seed = Tensor.randomNormal(y.shape, generator: RandomGenerator(seed: 5)).to(dtype)
        return [y] + gradient(of: y, with: leaves, seed: seed).map { $0! }
      }
      for (i, (fused, reference)) in zip(results(.float32), results(.float64)).enumerated() where reference.count > 0 {
        let difference = (fused.to(.float64) - reference).abs().max().item() / reference.abs().max().item()
        #expect(difference <= 1e-5, "L = \(length), kernel \(kernel), result \(i): \(difference), allowed 1e-5")
      }
    }
  }

  @Test func aShortConvolutionContinues() {
    let layer = ShortConvolution(5, generator: RandomGenerator(seed: 1))
    let x = Tensor.randomNormal([2, 20, 5], generator: RandomGenerator(seed: 2))
    let whole = layer(x)
    var state = layer.initialState(batch: 2)
    let parts = concatenated([layer.advance(x[.all, ..<2], &state), layer.advance(x[.all, 2..<9], &state)], axis: 1)
    let rest = stacked((9..<20).map { layer.step(x.selected(axis: 1, $0), &state) }, axis: 1)
    #expect((concatenated([parts, rest], axis: 1) - whole).abs().max().item() <= 1e-6)
  }
}
