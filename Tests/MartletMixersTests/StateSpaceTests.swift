import Foundation
import MartletMixers
import Testing

@Suite struct HiPPOTests {
  /// A + P Pᵀ + ½ I is skew, and the diagonalisation gives A back.
  @Test(arguments: [4, 16, 64]) func legSIsNormalPlusRankOne(_ n: Int) {
    let (a, b) = HiPPO.legS(n)
    let p = HiPPO.lowRank(n)
    let skew = a + p.expandedDimension(1) * p + Tensor.eye(n, dtype: .float64) * 0.5
    let asymmetry = largestDifference(skew, -skew.T)
    #expect(asymmetry <= 1e-12, "N = \(n): off by \(asymmetry), allowed 1e-12")
    let parts = HiPPO.diagonalPlusLowRank(n)
    let middle = parts.Lambda.asDiagonal() - parts.P.expandedDimension(1) * parts.P.conjugated()
    let again = parts.V.matmul(middle).matmul(parts.V.conjugated().T)
    let error = largestDifference(again, a.to(.complex128))
    #expect(error <= 1e-10, "N = \(n): V(Λ − P̃P̃*)V* is off A by \(error), allowed 1e-10")
    #expect(largestDifference(parts.V.matmul(parts.B.expandedDimension(1)).squeezed(1), b.to(.complex128)) <= 1e-10)
    #expect(relativeError(b, p * 2.0.squareRoot()) <= 1e-15)
  }

  @Test func theEigenvaluesAreMinusOneToMinusN() {
    let n = 8
    let parts = HiPPO.diagonalPlusLowRank(n)
    for matrix in [HiPPO.legS(n).A.to(.complex128), parts.Lambda.asDiagonal() - parts.P.expandedDimension(1) * parts.P.conjugated()] {
      let values = matrix.eig().values
      let found = values.realPart.sorted(descending: true).values.toArray(Double.self)
      for (i, value) in found.enumerated() { #expect(abs(value + Double(i + 1)) <= 1e-8, "eigenvalue \(i) is \(value)") }
      #expect(values.imaginaryPart.abs().max().item() <= 1e-8)
    }
  }

  @Test func representativesAreHalfOfAConjugateClosedSet() {
    let half = HiPPO.representatives(10)
    let all = HiPPO.diagonalPlusLowRank(10)
    #expect(half.Lambda.count == 5)
    #expect(half.Lambda.imaginaryPart.max().item() < 0)
    let positive = all.Lambda.imaginaryPart.toArray(Double.self).filter { $0 > 0 }.sorted()
    let mirrored = half.Lambda.imaginaryPart.toArray(Double.self).map { -$0 }.sorted()
    for (a, b) in zip(positive, mirrored) { #expect(abs(a - b) <= 1e-10 * abs(a), "\(a) and \(b)") }
  }
}

@Suite struct StateSpaceTests {
  private func dplr(_ length: Int, width: Int = 3, state: Int = 8, directions: Int = 1) -> DPLRKernel {
    let kernel = DPLRKernel(width: width, state: state, length: length, directions: directions, generator: RandomGenerator(seed: 3))
    kernel.to(.float64)
    return kernel
  }

  /// A half set and its conjugates.
  private func closed(_ x: Tensor) -> Tensor { concatenated([x, x.conjugated()], axis: -1).resolvingConjugate() }

  /// Re(C Ā^l B̄) for l = 0..<length, from the dense matrices.
  private func explicitKernel(_ kernel: DPLRKernel, _ length: Int) -> Tensor {
    withoutGradient {
      let (a, b) = kernel.dense()
      let c = closed(kernel.recurrentOutput())  // [S, D, N]
      var column = b.expandedDimension(-1)  // [D, N, 1]
      var values: [Tensor] = []
      for _ in 0..<length {
        values.append((c * column.squeezed(-1)).sum(axis: -1).realPart)
        column = a.matmul(column)
      }
      return stacked(values, axis: -1)
    }
  }

  @Test(arguments: [1, 2, 15, 16, 33, 64]) func theDPLRKernelIsMadeOfPowers(_ length: Int) {
    for directions in [1, 2] {
      let kernel = dplr(length, directions: directions)
      let found = withoutGradient { kernel(length: length) }
      let expected = explicitKernel(kernel, length)
      let error = largestDifference(found, expected)
      #expect(error <= 1e-9, "L = \(length): off by \(error), largest \(expected.abs().max().item()), allowed 1e-9")
    }
  }

  /// C̃ = C (I − Ā^L), the other way round.
  @Test func theRecurrentOutputBelongsToTheStoredOne() {
    let kernel = dplr(24)
    withoutGradient {
      let c = closed(kernel.recurrentOutput()).expandedDimension(-2)
      let back = (c - c.matmul(kernel.dense().A.matrixPower(24))).squeezed(-2)[.ellipsis, ..<4]
      let error = largestDifference(back, kernel.output.viewAsComplex())
      #expect(error <= 1e-10, "off by \(error)")
    }
  }

  /// Doubling L extends the kernel; a shorter sequence takes its beginning.
  @Test func aLongerSequenceExtendsTheKernel() {
    let kernel = dplr(16)
    withoutGradient {
      let first = kernel(length: 16)
      let long = explicitKernel(kernel, 50)
      let doubled = kernel(length: 50)
      #expect(kernel.kernelLength.itemInt() == 64)
      #expect(largestDifference(doubled, long) <= 1e-9, "off by \(largestDifference(doubled, long))")
      #expect(largestDifference(doubled[.ellipsis, ..<16], first) <= 1e-9)
      #expect(largestDifference(kernel(length: 7), first[.ellipsis, ..<7]) <= 1e-9)
    }
  }

  @Test(arguments: [S4.Structure.diagonal, .dplr], Discretization.allCases)
  func theConvolutionIsTheRecurrence(_ structure: S4.Structure, _ discretization: Discretization) {
    for length in [31, 64] {
      for (dtype, tolerance) in [(DType.float64, 1e-10), (.float32, 1e-5)] {
        let mixer = S4(
          .init(width: 6, state: 16, structure: structure, discretization: discretization, length: length),
          generator: RandomGenerator(seed: 11))
        mixer.to(dtype)
        let u = normal([2, length, 6], dtype)
        withoutGradient {
          let k = mixer.kernels(length: length)[0]
          let parallel = longConvolution(u.swappedAxes(1, 2), k, skip: mixer.skip).swappedAxes(1, 2)
          // The mixing over channels is the same in both; compare before it through the layer's two forms and, here, by the sum.
          var direct: [Tensor] = []
          for t in 0..<length {
            let past = u[.all, ..<(t + 1)].flipped(axis: 1)  // u_t, u_{t−1}, …
            direct.append((past * k[.all, ..<(t + 1)].T).sum(axis: 1) + u.selected(axis: 1, t) * mixer.skip)
          }
          let ofSum = relativeError(parallel, stacked(direct, axis: 1))
          var state = mixer.initialState(batch: 2)
          let steps = stacked((0..<length).map { mixer.step(u.selected(axis: 1, $0), &state) }, axis: 1)
          let ofSteps = relativeError(steps, mixer(u))
          #expect(ofSum <= tolerance, "\(structure) \(discretization) \(dtype) L = \(length): sum \(ofSum), allowed \(tolerance)")
          #expect(ofSteps <= tolerance, "\(structure) \(discretization) \(dtype) L = \(length): steps \(ofSteps), allowed \(tolerance)")
        }
      }
    }
  }

  @Test func theStepOfOrderNIsTheDenseSolve() {
    let kernel = dplr(32, width: 4, state: 16)
    withoutGradient {
      let (a, b) = kernel.dense()
      let terms = kernel.stepTerms()
      var x = Tensor.complex(normal([2, 4, 8], .float64), normal([2, 4, 8], seed: 2, .float64))
      for t in 0..<5 {
        let u = normal([2, 4], seed: UInt64(10 + t), .float64)
        let dense = a.matmul(closed(x).expandedDimension(-1)).squeezed(-1) + b * u.expandedDimension(-1).to(.complex128)  // [B, D, N]
        let output = (closed(kernel.recurrentOutput()[0]) * dense).sum(axis: -1).realPart
        let y = DPLRKernel.step(u, &x, terms)
        let (ofState, ofOutput) = (largestDifference(closed(x), dense), relativeError(y, output))
        #expect(ofState <= 1e-10, "step \(t): state off by \(ofState), allowed 1e-10")
        #expect(ofOutput <= 1e-10, "step \(t): output off by \(ofOutput), allowed 1e-10")
      }
    }
  }

  /// The parts of a Cauchy sum's derivative by Δ and Λ nearly cancel; in float32 as in float64 of the same parameters all digits stay.
  @Test(arguments: [101, 4096]) func theDPLRKernelsGradientsKeepTheirDigits(_ length: Int) {
    func results(_ dtype: DType) -> (names: [String], values: [Tensor]) {
      let kernel = DPLRKernel(width: 3, state: 32, length: length, generator: RandomGenerator(seed: 4))
      kernel.to(dtype)
      let weight = normal([1, 3, length], dtype)
      let k = kernel(length: length)
      #expect(k.dtype == dtype)
      let parameters = kernel.parameters()
      let gradients = gradient(of: (k * weight).sum(), with: parameters.map(\.tensor)).map { $0! }
      #expect(gradients.allSatisfy { $0.dtype == dtype })
      return (["K"] + parameters.map(\.name), [k] + gradients)
    }
    let (single, double) = (results(.float32), results(.float64))
    for (name, (a, b)) in zip(single.names, zip(single.values, double.values)) {
      let error = relativeError(a, b)
      #expect(error <= 5e-7, "L = \(length), \(name): off by \(error), allowed 5e-7")
    }
  }

  @Test(arguments: [32, 33]) func withoutRankOneTheKernelIsTheBilinearDiagonalOne(_ length: Int) {
    let kernel = dplr(length)
    withoutGradient {
      kernel.lowRank.fillInPlace(0)
      let diagonal = DiagonalKernel(width: 3, state: 8, discretization: .bilinear, generator: RandomGenerator(seed: 1))
      diagonal.to(.float64)
      for (target, source) in [
        (diagonal.logStep, kernel.logStep), (diagonal.logDecay, kernel.logDecay), (diagonal.frequency, kernel.frequency),
        (diagonal.input, kernel.input), (diagonal.output, kernel.recurrentOutput().resolvingConjugate().viewAsReal()),
      ] { target.copyInPlace(source) }
      let error = largestDifference(kernel(length: length), diagonal(length: length))
      #expect(error <= 1e-10, "L = \(length): off by \(error), allowed 1e-10")
    }
  }

  /// One step of Δ with the input held is two of Δ/2: K^Δ_l = K^{Δ/2}_{2l} + K^{Δ/2}_{2l+1}.
  @Test(arguments: DiagonalKernel.Initialization.allCases) func zohResamplesExactly(_ initialization: DiagonalKernel.Initialization) {
    let kernel = DiagonalKernel(width: 4, state: 16, initialization: initialization, generator: RandomGenerator(seed: 2))
    kernel.to(.float64)
    withoutGradient {
      let coarse = kernel(length: 40)
      kernel.logStep.addInPlace(Tensor.full([4], -log(2.0), dtype: .float64))
      let fine = kernel(length: 80).reshaped(1, 4, 40, 2).sum(axis: -1)
      let error = relativeError(fine, coarse)
      #expect(error <= 1e-12, "\(initialization): off by \(error), allowed 1e-12")
    }
  }

  /// Small steps must not cost digits: against float64 of the same parameters.
  @Test(arguments: Discretization.allCases) func smallStepsKeepTheirDigits(_ discretization: Discretization) {
    let length = 512
    func results(_ dtype: DType) -> [Tensor] {
      let kernel = DiagonalKernel(
        width: 4, state: 8, discretization: discretization, stepRange: 1e-4...1e-3, generator: RandomGenerator(seed: 2))
      kernel.to(dtype)
      let (logTransition, b) = kernel.discretized()
      let weight = normal([1, 4, length], dtype)
      let k = kernel(length: length)
      let parameters = kernel.parameters()
      return [logTransition.viewAsReal(), b.viewAsReal(), k]
        + gradient(of: (k * weight).sum(), with: parameters.map(\.tensor)).map { $0! }
        + gradient(of: (kernel.discretized().input.viewAsReal()).sum(), with: [kernel.logDecay]).map { $0! }
    }
    let names = ["log Ā", "B̄", "K", "log_dt", "log_A_real", "A_imag", "B", "C", "log_A_real through B̄"]
    for (name, (single, double)) in zip(names, zip(results(.float32), results(.float64))) {
      let error = relativeError(single, double)
      #expect(error <= 5e-6, "\(discretization), \(name): off by \(error), allowed 5e-6")
    }
  }

  /// An impulse at the last position reaches that output only; backwards, one at the first.
  @Test(arguments: [1, 2, 7, 64, 100, 1000, 4097]) func theConvolutionNeverWraps(_ length: Int) {
    let k = normal([3, length], seed: 4)
    for referenceOnly in [false, true] {
      KernelChoice.$referenceOnly.withValue(referenceOnly) {
        let last = Tensor.zeros([1, 3, length])
        last[.ellipsis, length - 1] = Tensor.ones([1, 3])
        let forward = longConvolution(last, k)
        let first = last.flipped(axis: -1)
        let backward = longConvolution(first, Tensor.zeros([3, length]), reversed: k)
        // The transform spreads rounding of the size of the largest sum of products.
        let allowed = 1e-6 * Double(length).squareRoot()
        for (y, own) in [(forward, length - 1), (backward, 0)] {
          let others = y.copy()
          others[.ellipsis, own] = Tensor.zeros([1, 3])
          #expect(others.abs().max().item() <= allowed, "L = \(length): \(others.abs().max().item()) elsewhere, allowed \(allowed)")
          #expect(largestDifference(y[0, 0..., own], k[0..., 0]) <= allowed)
        }
      }
    }
  }

  // MARK: Starts

  /// Channels d, d + S, … share (A, B); their Δ and C stay their own.
  @Test(arguments: [S4.Structure.diagonal, .dplr]) func sharedSystemsAreTheSameAsCopies(_ structure: S4.Structure) {
    func mixer(_ systems: Int?) -> S4 {
      let mixer = S4(
        .init(width: 6, state: 8, structure: structure, initialization: .legs, length: 20, systems: systems),
        generator: RandomGenerator(seed: 4))
      mixer.to(.float64)
      return mixer
    }
    let (shared, own) = (mixer(2), mixer(nil))
    let names = structure == .dplr ? ["log_A_real", "A_imag", "B", "P"] : ["log_A_real", "A_imag", "B"]
    var state = shared.stateDictionary()
    for name in names {
      let key = "kernel." + name
      #expect(state[key]!.dim(0) == 2)
      state[key] = normal(state[key]!.shape, seed: 6, .float64) * 0.1 + state[key]!
      withoutGradient { shared.parameters().first { $0.name == key }!.tensor.copyInPlace(state[key]!) }
      state[key] = stacked((0..<6).map { state[key]![$0 % 2] })
    }
    #expect(throws: Never.self) { try own.load(state) }
    let u = normal([2, 20, 6], .float64)
    withoutGradient {
      let error = relativeError(shared(u), own(u))
      #expect(error <= 1e-12, "\(structure): off by \(error)")
      var (a, b) = (shared.initialState(batch: 2), own.initialState(batch: 2))
      #expect(relativeError(shared.advance(u, &a), own.advance(u, &b)) <= 1e-12)
    }
  }

  @Test(arguments: [S4.Structure.diagonal, .dplr]) func theRandomStartIsSmallNoise(_ structure: S4.Structure) {
    let mixer = S4(
      .init(width: 64, state: 64, structure: structure, initialization: .random, length: 128), generator: RandomGenerator(seed: 4))
    for (name, tensor) in mixer.kernel.parameters() where !(structure == .dplr && name == "C") {
      let deviation = tensor.detached().square().mean().item().squareRoot()
      let allowed = 0.1 * 4 / (2 * Double(tensor.count)).squareRoot()
      #expect(abs(deviation - 0.1) <= allowed, "\(name): deviation \(deviation), expected 0.1 ± \(allowed)")
    }
    #expect(mixer(normal([1, 128, 64])).allFinite)
  }

  @Test func theInputOfLegSCanBeClipped() {
    let (free, clipped) = (HiPPO.representatives(64).B, HiPPO.representatives(64, inputClip: 2).B)
    #expect(free.imaginaryPart.abs().max().item() > 2, "something is to be clipped")
    #expect(clipped.imaginaryPart.abs().max().item() <= 2)
    #expect(largestDifference(clipped.realPart, free.realPart) == 0)
    #expect(largestDifference(clipped.imaginaryPart, free.imaginaryPart.clamped(min: -2, max: 2)) == 0)
  }

  // MARK: Diagonal linear RNN

  @Test func theLinearRNNIsItsRecurrence() {
    let kernel = DLRKernel(width: 3, state: 16, directions: 2, generator: RandomGenerator(seed: 1))
    kernel.to(.float64)
    withoutGradient {
      let lambda = kernel.logTransition.exp()[0]
      #expect(lambda.abs().max().item() < 1)
      let angles = lambda.angle().toArray(Double.self)
      for (n, angle) in angles.enumerated() {
        let turned = (angle - 2 * Double.pi * Double(n) / 16).remainder(dividingBy: 2 * Double.pi)
        #expect(abs(turned) <= 1e-6, "angle \(n) is \(angle)")
      }
      // K_l by h ← Λ h + u with an impulse.
      var h = Tensor.ones([16], dtype: .complex128)
      var rows: [Tensor] = []
      for _ in 0..<30 {
        rows.append((kernel.output.viewAsComplex() * h).sum(axis: -1).realPart)
        h = h * lambda
      }
      let error = relativeError(kernel(length: 30), stacked(rows, axis: -1))
      #expect(error <= 1e-12, "off by \(error)")
    }
  }
}
