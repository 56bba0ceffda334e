import MartletMixers
import Testing

/// What every mixer must hold to, whatever it computes.
@Suite struct MixerContractTests {
  // MARK: Streaming

  /// 1e-5 in float32, 1e-10 in float64: the forms differ in rounding only.
  @Test(arguments: MixerCase.recurrent, [DType.float32, .float64])
  func streamingGivesTheParallelForm(_ mixerCase: MixerCase, _ dtype: DType) throws {
    let length = 75
    let mixer = try mixerCase.recurrent(length: length, dtype: dtype)
    let x = normal([2, length, 16], dtype)
    let tolerance = dtype == .float64 ? 1e-10 : 1e-5
    withoutGradient {
      let whole = mixer(x)
      func check(_ what: String, _ y: Tensor) {
        let error = relativeError(y, whole)
        #expect(error <= tolerance, "\(mixerCase) \(dtype), \(what): \(error), allowed \(tolerance)")
      }
      var state = mixer.initialAnyState(batch: 2)
      check("advance", mixer.advanceAny(x, &state))
      state = mixer.initialAnyState(batch: 2)
      check("fold of step", stacked((0..<length).map { mixer.stepAny(x.selected(axis: 1, $0), &state) }, axis: 1))
      for cut in [1, 33, 64] {
        state = mixer.initialAnyState(batch: 2)
        let first = mixer.advanceAny(x[.all, ..<cut], &state)
        check("advance by \(cut), then the rest", concatenated([first, mixer.advanceAny(x[.all, cut...], &state)], axis: 1))
        state = mixer.initialAnyState(batch: 2)
        let prefix = mixer.advanceAny(x[.all, ..<cut], &state)
        let steps = (cut..<length).map { mixer.stepAny(x.selected(axis: 1, $0), &state) }
        check("advance by \(cut), then steps", concatenated([prefix, stacked(steps, axis: 1)], axis: 1))
      }
      // Steps first, so that what they leave in the state is read by the block form.
      state = mixer.initialAnyState(batch: 2)
      let steps = (0..<7).map { mixer.stepAny(x.selected(axis: 1, $0), &state) }
      check("7 steps, then advance", concatenated([stacked(steps, axis: 1), mixer.advanceAny(x[.all, 7...], &state)], axis: 1))
    }
  }

  @Test(arguments: MixerCase.recurrent) func differentiatedStepsGiveTheParallelGradients(_ mixerCase: MixerCase) throws {
    let length = 20
    let mixer = try mixerCase.recurrent(length: length, dtype: .float64)
    let x = normal([2, length, 16], .float64).tracked()
    let seed = normal([2, length, 16], seed: 2, .float64)
    let leaves = [("x", x)] + mixer.parameters().map { ($0.name, $0.tensor) }
    let parallel = gradient(of: mixer(x), with: leaves.map(\.1), seed: seed)
    var state = mixer.initialAnyState(batch: 2)
    let y = stacked((0..<length).map { mixer.stepAny(x.selected(axis: 1, $0), &state) }, axis: 1)
    let recurrent = gradient(of: y, with: leaves.map(\.1), seed: seed)
    for (i, leaf) in leaves.enumerated() {
      let expected = try #require(parallel[i], "\(mixerCase): \(leaf.0) takes no part in the parallel form")
      let found = try #require(recurrent[i], "\(mixerCase): \(leaf.0) takes no part in the steps")
      let error = relativeError(found, expected)
      #expect(error <= 1e-9, "\(mixerCase) \(leaf.0): \(error), allowed 1e-9")
    }
  }

  @Test(arguments: MixerCase.recurrent) func onlyCachesGrow(_ mixerCase: MixerCase) throws {
    let mixer = try mixerCase.recurrent(length: 600)
    withoutGradient {
      var state = mixer.initialAnyState(batch: 1)
      let empty = mixer.anyStateBytes(state)
      _ = mixer.advanceAny(normal([1, 300, 16]), &state)
      let after = mixer.anyStateBytes(state)
      if mixerCase.keepsEveryToken {
        #expect(after > empty)
      } else {
        #expect(empty > 0)
        #expect(after == empty, "\(mixerCase): \(empty) bytes became \(after)")
      }
    }
  }

  // MARK: Causality

  @Test(arguments: MixerCase.causal, [1, 30, 63, 64]) func theFutureChangesNothing(_ mixerCase: MixerCase, _ position: Int) throws {
    let mixer = try mixerCase.make(length: 70)
    withoutGradient {
      let x = normal([1, 70, 16])
      let changed = x.copy()
      changed[.all, position] = normal([1, 16], seed: 9) * 3.0
      let (a, b) = (mixer(x), mixer(changed))
      let before = relativeError(b[.all, ..<position], a[.all, ..<position])
      // The kernel of data-dependent gates takes 16 positions together (0, 16, …) and chooses among two equal forms of them by their
      // gates: the choice, not the value, may change.
      let isShared = ["gla", "scalar_gate"].contains(mixerCase.name) && position % 16 != 0
      let allowed = mixerCase.usesFourier ? 1e-5 : isShared ? 1e-6 : 0
      #expect(before <= allowed, "\(mixerCase): outputs before \(position) changed by \(before), allowed \(allowed)")
      #expect(relativeError(b[.all, position], a[.all, position]) > 1e-3, "\(mixerCase): the own output must change")
    }
  }

  /// In float64 the Legendre memory is made of products.
  @Test(arguments: MixerCase.causal.filter { !$0.usesFourier || $0.name == "lmu" }, [1, 30, 64])
  func theFutureChangesNoBitOfTheReferenceForm(_ mixerCase: MixerCase, _ position: Int) throws {
    let mixer = try mixerCase.make(length: 70, dtype: .float64)
    withoutGradient {
      let x = normal([1, 70, 16], .float64)
      let changed = x.copy()
      changed[.all, position] = normal([1, 16], seed: 9, .float64) * 3.0
      let before = relativeError(mixer(changed)[.all, ..<position], mixer(x)[.all, ..<position])
      #expect(before == 0, "\(mixerCase): outputs before \(position) changed by \(before)")
    }
  }

  @Test(arguments: MixerCase.all.filter { !$0.isCausal }) func bidirectionalMixersSeeBothSides(_ mixerCase: MixerCase) throws {
    let mixer = try mixerCase.make(length: 20, options: mixerCase.seeingEverything)
    withoutGradient {
      let x = normal([1, 20, 16])
      let changed = x.copy()
      changed[.all, 10] = normal([1, 16], seed: 9) * 3.0
      let difference = (mixer(x) - mixer(changed)).abs().sum(axis: -1)[0].toArray(Double.self)
      for t in [8, 9, 10, 11, 12] { #expect(difference[t] > 1e-5, "\(mixerCase): output \(t) doesn't see input 10") }
    }
  }

  // MARK: Chunks

  @Test(arguments: ["gla", "retention", "scalar_gate", "deltanet"], [DType.float32, .float64])
  func theChunkChangesNothing(_ name: String, _ dtype: DType) throws {
    let length = 75
    let x = normal([2, length, 16], dtype)
    let tolerance = dtype == .float64 ? 1e-10 : 1e-5
    for isCausal in [true, false] {
      let mixerCase = MixerCase(name: name, isCausal: isCausal)
      var reference: [Tensor] = []
      for chunk in [1, 16, 64, length] {
        let mixer = try mixerCase.make(length: length, options: ["chunk": .integer(chunk)], dtype: dtype)
        let input = x.copy().tracked()
        let y = mixer(input)
        let results = [y] + gradient(of: y, with: [input] + mixer.parameters().map(\.tensor), seed: x).map { $0! }
        if reference.isEmpty { reference = results }
        for (i, (a, b)) in zip(results, reference).enumerated() {
          let error = relativeError(a, b)
          #expect(error <= tolerance, "\(mixerCase) \(dtype), chunk \(chunk), result \(i): \(error), allowed \(tolerance)")
        }
      }
    }
  }

  // MARK: Gradients

  /// Central differences in float64 of Σ w ⊙ y over the input and every parameter.
  @Test(arguments: MixerCase.all) func gradientsAreThoseOfFiniteDifferences(_ mixerCase: MixerCase) throws {
    let length = 7
    let mixer = try mixerCase.make(width: 8, length: length, dtype: .float64)
    let x = normal([2, length, 8], .float64)
    let weight = normal([2, length, 8], seed: 3, .float64)
    let ofInput = gradientError([x]) { (mixer($0[0]) * weight).sum() }
    #expect(ofInput <= 1e-6, "\(mixerCase) x: \(ofInput), allowed 1e-6")
    for (name, parameter) in mixer.parameters() where !mixerCase.actsThroughAChoice(name) {
      let error = parameterGradientError(parameter) { (mixer(x) * weight).sum() }
      #expect(error <= 1e-6, "\(mixerCase) \(name): \(error), allowed 1e-6")
    }
  }

  /// `gradientError` for a parameter that the function captures: it is changed in place.
  private func parameterGradientError(_ parameter: Tensor, probes: Int = 10, step: Double = 1e-6, _ function: () -> Tensor) -> Double {
    let exact = gradient(of: function(), with: [parameter])[0]!.reshaped(-1)
    let flat = parameter.detached().reshaped(-1)
    let positions = Tensor.randomPermutation(flat.count, generator: RandomGenerator(seed: 4)).toArray(Int.self).prefix(probes)
    var (worst, scale) = (0.0, 1e-12)
    for position in positions {
      withoutGradient {
        let value = flat[position].item()
        func at(_ changed: Double) -> Double {
          flat[position] = Tensor(changed, dtype: flat.dtype)
          return function().item()
        }
        let numeric = (at(value + step) - at(value - step)) / (2 * step)
        flat[position] = Tensor(value, dtype: flat.dtype)
        worst = max(worst, abs(numeric - exact[position].item()))
        scale = max(scale, abs(numeric), abs(exact[position].item()))
      }
    }
    return worst / scale
  }

  // MARK: Fused kernels

  /// The fused float32 form and the reference form in float32, both against the reference form in float64.
  @Test(arguments: MixerCase.all, [1, 33, 150]) func fusedFormsEqualTheReference(_ mixerCase: MixerCase, _ length: Int) throws {
    let x = normal([2, length, 16])
    let seed = normal([2, length, 16], seed: 2)
    let mask = length > 1 ? Tensor.arange(length) .< Tensor([length, length / 2 + 1]).expandedDimension(1) : nil
    func results(_ dtype: DType, referenceOnly: Bool, _ mask: Tensor?) throws -> [(String, Tensor)] {
      let mixer = try mixerCase.make(length: length, dtype: dtype)
      let input = x.to(dtype).copy().tracked()
      let y = KernelChoice.$referenceOnly.withValue(referenceOnly) { mixer(input, MixingContext(mask: mask)) }
      let real = mask?.expandedDimension(-1).to(dtype) ?? Tensor.ones([1, 1, 1], dtype: dtype)
      let parameters = mixer.parameters()
      let gradients = gradient(of: y, with: [input] + parameters.map(\.tensor), seed: seed.to(dtype) * real)
      return [("y", y * real), ("x", gradients[0]!)]
        + zip(parameters, gradients.dropFirst()).map { ($0.name, $1 ?? .zeros(like: $0.tensor)) }
    }
    for mask in [nil, mask] {
      let exact = try results(.float64, referenceOnly: true, mask)
      for (what, found) in [
        ("fused", try results(.float32, referenceOnly: false, mask)), ("reference", try results(.float32, referenceOnly: true, mask)),
      ] {
        for ((name, a), (_, b)) in zip(found, exact) {
          // At length 1 attention doesn't depend on its weights (but for linear attention's ε): their gradients vanish.
          if b.abs().max().item() < 1e-5 {
            #expect(a.abs().max().item() < 1e-5, "\(mixerCase) \(what), length \(length), \(name) must vanish")
            continue
          }
          let error = relativeError(a, b)
          let allowed = tolerance(mixerCase, name, length)
          #expect(
            error <= allowed, "\(mixerCase) \(what), length \(length), mask \(mask != nil), \(name): \(error), allowed \(allowed)")
        }
      }
    }
  }

  /// 1e-5, but for what Atlas retains of its first memory at length 1: a factor on nearly all of the output, which the norm takes away
  /// again, so that the gradient is a small rest in every form; and for what acts through a choice: the gradient of a softmax is a
  /// difference p ⊙ (s − Σ p s) whose terms nearly cancel.
  private func tolerance(_ mixerCase: MixerCase, _ name: String, _ length: Int) -> Double {
    if mixerCase.name == "atlas" && length == 1 && name.hasPrefix("retention.") { return 1e-4 }
    return mixerCase.actsThroughAChoice(name) ? 3e-5 : 1e-5
  }

  // MARK: Packed sequences

  /// Sequences end to end = each alone, outputs and gradients, in the fused and the reference form.
  @Test(arguments: MixerCase.all, [false, true]) func packedSequencesDontSeeEachOther(_ mixerCase: MixerCase, _ referenceOnly: Bool) throws
  {
    let packing = SequencePacking(lengths: [37, 1, 0, 16, 50])
    let total = packing.offsets.last!
    for options in mixerCase.packedOptions {
      let mixer = try mixerCase.make(length: total, options: options)
      guard mixer.mixesPackedSequences else { return }
      try KernelChoice.$referenceOnly.withValue(referenceOnly) {
        let x = normal([1, total, 16]).tracked()
        let seed = normal([1, total, 16], seed: 2)
        let leaves = [("x", x)] + mixer.parameters().map { ($0.name, $0.tensor) }
        let together = mixer(x, MixingContext(packing: packing))
        let alone = packing.forEachSequence(x) { $0.dim(1) == 0 ? $0 : mixer($0) }
        let error = relativeError(together, alone)
        #expect(error <= 1e-5, "\(mixerCase) \(options), output: \(error), allowed 1e-5")
        let (found, expected) = (
          gradient(of: together, with: leaves.map(\.1), seed: seed), gradient(of: alone, with: leaves.map(\.1), seed: seed)
        )
        for (i, leaf) in leaves.enumerated() {
          let error = relativeError(try #require(found[i]), try #require(expected[i]))
          #expect(error <= 2e-5, "\(mixerCase) \(options), gradient of \(leaf.0): \(error), allowed 2e-5")
        }
      }
    }
  }

  // MARK: Padding

  @Test(arguments: MixerCase.all, [false, true]) func paddingChangesNothing(_ mixerCase: MixerCase, _ referenceOnly: Bool) throws {
    let mixer = try mixerCase.make(length: 40)
    KernelChoice.$referenceOnly.withValue(referenceOnly) {
      withoutGradient {
        let x = normal([2, 40, 16])
        let lengths = [40, 17]
        let mask = Tensor.arange(40) .< Tensor(lengths).expandedDimension(1)
        let other = select(mask.expandedDimension(-1), x, normal([2, 40, 16], seed: 8) * 5.0)
        let (a, b) = (mixer(x, MixingContext(mask: mask)), mixer(other, MixingContext(mask: mask)))
        for (row, length) in lengths.enumerated() {
          let error = relativeError(b[row, ..<length], a[row, ..<length])
          let allowed = mixerCase.usesFourier ? 1e-5 : 0
          #expect(error <= allowed, "\(mixerCase), row \(row): values at padded positions changed real ones by \(error)")
          // The S4 family's parameters don't depend on the length; the others have none that could.
          let alone = mixer(x[row..<(row + 1), ..<length])[0]
          let difference = relativeError(a[row, ..<length], alone)
          #expect(difference <= 1e-5, "\(mixerCase), row \(row): padding changed the outputs by \(difference), allowed 1e-5")
        }
      }
    }
  }

  // MARK: Names

  @Test func namesAndOptionsAreChecked() throws {
    #expect(throws: ConfigurationError.self) { try MixerKind.named("softmaks") }
    let choice = try MixerChoice(parsing: "s4d?state=32&initialization=legs")
    #expect(choice.text == "s4d?state=32&initialization=legs")
    let error = #expect(throws: ConfigurationError.self) { try MixerChoice(parsing: "gla?chunks=3") }
    #expect(error?.message.contains("\"chunk\"") == true)
    let site = MixerSite(width: 10, heads: 4, isCausal: true, length: 8)
    for kind in MixerKind.all where kind.keys.contains(where: { $0.name == "heads" }) {
      #expect(throws: ConfigurationError.self, "\(kind.name)") { try kind(site, generator: RandomGenerator(seed: 0)) }
    }
  }

  @Test func slowParametersExist() throws {
    for mixerCase in MixerCase.all {
      let names = try mixerCase.make(length: 8, options: mixerCase.optionsOfSlowParameters).parameters().map(\.name)
      for slow in try MixerKind.named(mixerCase.name).slowParameters {
        #expect(names.contains { $0 == slow || $0.hasSuffix("." + slow) }, "\(mixerCase): \(slow)")
      }
    }
  }

  @Test func aDirectionThatAMixerLacksIsRefused() {
    for kind in MixerKind.all {
      for direction in MixerDirection.allCases where !kind.directions.contains(direction) {
        let site = MixerSite(width: 16, heads: 2, isCausal: direction == .causal, length: 16)
        let error = #expect(throws: ConfigurationError.self) { try kind(site, generator: RandomGenerator(seed: 0)) }
        #expect(error?.message.contains(direction.rawValue) == true)
      }
    }
  }
}
