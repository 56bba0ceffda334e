import MartletOptimizers
import Testing

@Suite struct PlateauTests {
  @Test func theFactorFallsAfterPatienceRunsOut() {
    var plateau = PlateauSchedule(decay: 0.1, patience: 2)
    let factors = [5.0, 4, 4, 4, 4, 4, 4, 4].map { plateau.update($0) }
    #expect(factors[..<4].allSatisfy { $0 == 1 })
    #expect(abs(factors[4] - 0.1) < 1e-15, "the third measurement without improvement: \(factors)")
    #expect(abs(factors[7] - 0.01) < 1e-15, "and three more: \(factors)")
    #expect(plateau.best == 4)
  }

  @Test func improvementMustPassTheThreshold() {
    var plateau = PlateauSchedule(decay: 0.5, patience: 0, threshold: 0.01)
    #expect(plateau.update(1) == 1)
    #expect(plateau.update(0.995) == 0.5, "half a percent is no improvement")
    #expect(plateau.update(0.98) == 0.5)
    #expect(plateau.update(.nan) == 0.25)
  }

  @Test func theFactorHasALowerEnd() {
    var plateau = PlateauSchedule(decay: 0.1, patience: 0, minimum: 0.05)
    for _ in 0..<5 { plateau.update(1) }
    #expect(plateau.factor == 0.05)
  }
}
