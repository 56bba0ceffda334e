import Foundation
import MartletMixers
import Testing

@Suite struct LegendreMemoryUnitTests {
  private func system(_ d: Int, _ window: Double) -> (A: Tensor, B: Tensor) {
    let (a, b) = HiPPO.legT(d, window: window)
    return zeroOrderHold(a, b)
  }

  // MARK: Check 1

  /// Chunks are of 16 positions in float64 and of 16 to 128 in float32.
  @Test(arguments: [1, 15, 16, 17, 33, 127, 128, 129, 256, 600], [DType.float32, .float64])
  func chunksAndConvolutionGiveTheRecurrence(_ length: Int, _ dtype: DType) {
    let (a, b) = system(20, 40)
    let (A, B) = (a.to(dtype), b.to(dtype))
    let u = normal([2, length], dtype).relu()
    let start = normal([2, 20], seed: 2, dtype)
    let exact = legendreMemoryReference(u.to(.float64), A: A.to(.float64), B: B.to(.float64))
    let continued = legendreMemoryReference(u.to(.float64), A: A.to(.float64), B: B.to(.float64), from: start.to(.float64))
    let tolerance = dtype == .float64 ? 1e-10 : 1e-5
    let memory = LegendreMemory(A: A, B: B)
    let reference = KernelChoice.$referenceOnly.withValue(true) { memory(u, from: start, by: .chunks) }
    for (name, found, expected) in [
      ("chunks", memory(u, by: .chunks), exact), ("transforms", memory(u, by: dtype == .float32 ? .transforms : nil), exact),
      ("chunks from a state", memory(u, from: start), continued), ("chunks without the kernel", reference, continued),
      ("convolution", legendreMemoryConvolution(u, A: A, B: B), exact),
      ("recurrence in \(dtype)", legendreMemoryReference(u, A: A, B: B, from: start), continued),
    ] {
      let error = relativeError(found, expected)
      #expect(error <= tolerance, "\(name), L = \(length): \(error), allowed \(tolerance)")
    }
  }

  /// Windows that are long beside d, whose chunks need few functions, and one that isn't.
  @Test(arguments: [(64, 4096.0), (64, 50_000), (24, 8)])
  func longMemoriesStayExactInSinglePrecision(_ d: Int, _ window: Double) {
    let (a, b) = system(d, window)
    let u = normal([1, 5000]).relu()
    // The matrices in the numbers that float32 has, or their powers would differ.
    let (A, B) = (a.to(.float32), b.to(.float32))
    let exact = legendreMemoryConvolution(u.to(.float64), A: A.to(.float64), B: B.to(.float64))
    let memory = LegendreMemory(A: A, B: B)
    for (name, found) in [
      ("chunks", memory(u, by: .chunks)), ("transforms", memory(u, by: .transforms)), ("by itself", memory(u)),
      ("convolution", legendreMemoryConvolution(u, A: A, B: B)),
    ] {
      let error = relativeError(found, exact)
      #expect(error <= 1e-5, "\(name): \(error), allowed 1e-5")
    }
  }

  @Test(arguments: [(6, 20.0, 300), (24, 900, 700), (20, 10, 50)])
  func gradientsOfTheChunksAreThoseOfTheRecurrence(_ d: Int, _ window: Double, _ length: Int) {
    let (A, B) = system(d, window)
    func gradients(_ dtype: DType, _ form: (Tensor, Tensor) -> Tensor) -> [Tensor] {
      let leaves = [normal([2, length]).to(dtype).tracked(), normal([2, d], seed: 2).to(dtype).tracked()]
      let m = form(leaves[0], leaves[1])
      return gradient(of: m, with: leaves, seed: normal(m.shape, seed: 3).to(dtype)).map { $0! }
    }
    let expected = gradients(.float64) { legendreMemoryReference($0, A: A, B: B, from: $1) }
    let memory = LegendreMemory(A: A, B: B)
    for (dtype, tolerance) in [(DType.float32, 1e-5), (.float64, 1e-10)] {
      for (name, found, reference) in zip3(["u", "m_0"], gradients(dtype) { memory($0, from: $1, by: .chunks) }, expected) {
        let error = relativeError(found, reference)
        #expect(error <= tolerance, "\(name) in \(dtype), d = \(d): \(error), allowed \(tolerance)")
      }
    }
  }

  /// Few functions are taken where the window is long beside d, transforms where it is short.
  @Test func theFormFollowsTheWindow() {
    for (d, window, isInChunks) in [(64, 4096.0, true), (16, 784, true), (256, 1024, false), (128, 128, false)] {
      let (A, B) = system(d, window)
      let memory = LegendreMemory(A: A, B: B)
      let u = normal([1, 512])
      let byItself = memory(u)
      #expect(byItself.isEqual(to: memory(u, by: isInChunks ? .chunks : .transforms)), "d = \(d), θ = \(window)")
      #expect(!byItself.isEqual(to: memory(u, by: isInChunks ? .transforms : .chunks)), "d = \(d), θ = \(window)")
    }
  }

  /// The gradient of the input by the transforms: more signals than lanes of one, lengths and widths that fill no vector, gradients that stand
  /// out of order or are one number.
  @Test(arguments: [(1, 64, 16), (3, 100, 20), (18, 70, 5), (2, 1500, 33)])
  func gradientsOfTheTransformsAreThoseOfTheConvolution(_ batch: Int, _ length: Int, _ d: Int) {
    let (A, B) = system(d, Double(length) / 2)
    let memory = LegendreMemory(A: A, B: B)
    let u = normal([batch, length])
    let seed = normal([batch, d, length], seed: 3).swappedAxes(1, 2)
    func gradients(_ dtype: DType, _ form: (Tensor) -> Tensor) -> [Tensor] {
      let leaf = u.to(dtype).tracked()
      let ofSum = gradient(of: form(leaf).sum(), with: [leaf])[0]!
      return [gradient(of: form(leaf), with: [leaf], seed: seed.to(dtype))[0]!, ofSum]
    }
    let expected = gradients(.float64) { legendreMemoryConvolution($0, A: A, B: B) }
    for (name, found, reference) in zip3(["rows", "sum"], gradients(.float32) { memory($0, by: .transforms) }, expected) {
      let error = relativeError(found, reference)
      #expect(error <= 1e-5, "\(name), [\(batch), \(length), \(d)]: \(error), allowed 1e-5")
    }
  }

  /// What is kept of one length serves others; other matrices are another memory.
  @Test func aMemoryServesSignalsOfAnyLength() {
    let (A, B) = system(8, 50)
    let memory = LegendreMemory(A: A, B: B)
    for length in [100, 64, 97, 300, 1, 100, 1000, 65, 2000, 100] {
      let u = normal([1, length], seed: UInt64(length))
      let error = relativeError(memory(u), legendreMemoryConvolution(u.to(.float64), A: A, B: B))
      #expect(error <= 1e-5, "L = \(length): \(error), allowed 1e-5")
    }
  }

  private func zip3<A, B, C>(_ a: [A], _ b: [B], _ c: [C]) -> [(A, B, C)] { zip(a, zip(b, c)).map { ($0, $1.0, $1.1) } }

  // MARK: Check 2

  /// ẋ = A x + B over one unit of time, from each unit vector without input and from zero with it.
  @Test(arguments: [(4, 4.0), (8, 20.0), (16, 16.0), (5, 3.0)])
  func theHeldSystemIsThatOfAnIntegration(_ d: Int, _ window: Double) {
    let (a, b) = HiPPO.legT(d, window: window)
    let (heldA, heldB) = zeroOrderHold(a, b)
    /// Classical Runge–Kutta over one unit of time, for columns x with the input held.
    func integrate(_ x: Tensor, _ input: Tensor, steps: Int) -> Tensor {
      func slope(_ x: Tensor) -> Tensor { a.matmul(x) + input }
      let h = 1 / Double(steps)
      var x = x
      for _ in 0..<steps {
        let k1 = slope(x)
        let k2 = slope(x + k1 * (h / 2))
        let k3 = slope(x + k2 * (h / 2))
        let k4 = slope(x + k3 * h)
        x = x + (k1 + k2 * 2.0 + k3 * 2.0 + k4) * (h / 6)
      }
      return x
    }
    let none = Tensor.zeros([d, d], dtype: .float64)
    let ofStates = integrate(Tensor.eye(d, dtype: .float64), none, steps: 4000)
    let ofInput = integrate(Tensor.zeros([d, 1], dtype: .float64), b.expandedDimension(1), steps: 4000).squeezed(1)
    let errors = (relativeError(heldA, ofStates), relativeError(heldB, ofInput))
    #expect(max(errors.0, errors.1) <= 1e-9, "d = \(d), θ = \(window): Ā off by \(errors.0), B̄ by \(errors.1), allowed 1e-9")
  }

  @Test(arguments: [(1, 1.0), (8, 20.0), (16, 16.0), (64, 128.0), (128, 128.0), (256, 4096.0)])
  func theMemoryIsStable(_ d: Int, _ window: Double) {
    let radius = system(d, window).A.eig().values.abs().max().item()
    #expect(radius < 1, "d = \(d), θ = \(window): spectral radius \(radius)")
  }

  @Test func theSystemIsThatOfThePaper() {
    let (a, b) = HiPPO.legT(3, window: 2)
    #expect(a.toArray(Double.self) == [-0.5, -0.5, -0.5, 1.5, -1.5, -1.5, -2.5, 2.5, -2.5])
    #expect(b.toArray(Double.self) == [0.5, -1.5, 2.5])
  }

  // MARK: Check 3

  @Test(arguments: [8, 16]) func theMemoryDecodesThePast(_ d: Int) {
    let window = 64.0
    let (A, B) = system(d, window)
    let length = 400
    let signal = (0..<length).map { sin(2 * .pi * Double($0) / 80) }
    let m = legendreMemory(Tensor(signal, [1, length]), A: A, B: B)[0]
    /// P_0 … P_{d−1} at x.
    func legendre(_ x: Double) -> [Double] {
      var p = [1, x]
      for n in 1..<d { p.append((Double(2 * n + 1) * x * p[n] - Double(n) * p[n - 1]) / Double(n + 1)) }
      return Array(p[..<d])
    }
    var worst = 0.0
    for delay in [8, 16, 32, 48, 56] {
      let p = Tensor(legendre(2 * Double(delay) / window - 1))
      let decoded = m.matmul(p).toArray(Double.self)
      for t in 150..<length { worst = max(worst, abs(decoded[t] - signal[t - delay])) }
    }
    #expect(worst <= 0.1, "d = \(d): the signal at delays up to 56 of 64 is off by \(worst), allowed 0.1")
  }

  // MARK: The layer

  private func unit(_ spiking: Bool = false, _ dtype: DType = .float32) -> LegendreMemoryUnit {
    let unit = LegendreMemoryUnit(
      .init(width: 6, memory: 5, window: 12, isSpiking: spiking), generator: RandomGenerator(seed: 3))
    unit.eval()
    if dtype != .float32 { unit.to(dtype) }
    return unit
  }

  @Test func theMatricesAreNotTrained() {
    let unit = unit()
    #expect(unit.buffers().map(\.name) == ["A", "B"])
    #expect(unit.parameters().map(\.name) == ["W_u.weight", "W_u.bias", "W_h.weight", "W_h.bias", "output.weight", "output.bias"])
    let x = normal([2, 20, 6]).tracked()
    unit(x).sum().backward()
    #expect(!unit.transition.requiresGradient && !unit.write.requiresGradient)
    #expect(unit.parameters().allSatisfy { $0.tensor.gradient != nil })
    let full = LegendreMemoryUnit(.init(width: 256, window: 128, hasProjection: false), generator: RandomGenerator(seed: 1))
    #expect(full.parameterCount == 257 + 512 * 256 + 256)
  }

  /// What is kept of the matrices' products must follow the matrices.
  @Test func loadedMatricesTakeEffect() throws {
    let unit = unit()
    let x = normal([1, 40, 6])
    try withoutGradient {
      let before = unit(x)
      let (a, b) = system(5, 30)
      try unit.load(["A": a, "B": b], strict: false)
      let after = unit(x)
      #expect(relativeError(after, before) > 1e-2)
      let reference = KernelChoice.$referenceOnly.withValue(true) { unit(x) }
      #expect(relativeError(after, reference) <= 1e-5, "\(relativeError(after, reference))")
    }
  }

  @Test(arguments: [DType.float32, .float64]) func spikingUnitsStream(_ dtype: DType) {
    let unit = unit(true, dtype)
    let x = normal([2, 50, 6], dtype) * 3.0
    withoutGradient {
      let whole = unit(x)
      var state = unit.initialState(batch: 2)
      let steps = stacked((0..<50).map { unit.step(x.selected(axis: 1, $0), &state) }, axis: 1)
      state = unit.initialState(batch: 2)
      let parts = concatenated([unit.advance(x[.all, ..<21], &state), unit.advance(x[.all, 21...], &state)], axis: 1)
      for (name, found) in [("steps", steps), ("advance", parts)] {
        let error = relativeError(found, whole)
        #expect(error <= 1e-5, "\(name): \(error), allowed 1e-5")
      }
      let selected = state.selecting([1, 1])
      #expect(selected.tensors.map { $0.dim(0) } == [2, 2, 2, 2])
    }
  }

  @Test func optionsAreChecked() throws {
    let site = MixerSite(width: 8, heads: 2, isCausal: true, length: 30)
    let unit = try #require(try MixerKind.lmu(site, generator: RandomGenerator(seed: 1)) as? LegendreMemoryUnit)
    #expect(unit.configuration.memory == 8 && unit.configuration.window == 30 && unit.configuration.hasProjection)
    for options: JSONValue in [["memory": 0], ["memory": 5000], ["window": 0], ["window": -3]] {
      #expect(throws: ConfigurationError.self, "\(options)") {
        try MixerKind.lmu(site, options: options, generator: RandomGenerator(seed: 1))
      }
    }
  }
}
