import MartletNN
import Testing

@Suite struct EMACopyTests {
  /// A layer with a parameter in two places, buffers and a child of its own.
  final class Net: Module, OptimizerStepListener {
    @Child var first: any LinearLayer
    @Child var norm: BatchNorm
    @Child var dropout: Dropout
    var steps = 0

    init(seed: UInt64) {
      super.init()
      first = Linear(3, 4, generator: RandomGenerator(seed: seed))
      norm = BatchNorm(4)
      dropout = Dropout(0.5, generator: RandomGenerator(seed: seed))
    }
    func optimizerDidStep() { steps += 1 }
    func callAsFunction(_ x: Tensor) -> Tensor { norm(first(x)) }
  }

  final class Pair: Module, OptimizerStepListener {
    @Child var student: Net
    let teacher: EMACopy<Net>

    override init() {
      let student = Net(seed: 1)
      teacher = EMACopy(Net(seed: 2), of: student, decay: 0.75)
      super.init()
      self.student = student
    }
    func optimizerDidStep() { teacher.update(from: student) }
  }

  @Test func aCopyStartsEqualAndFollows() {
    let pair = Pair()
    #expect(pair.teacher.module.first.denseWeight().isEqual(to: pair.student.first.denseWeight()))
    let start = pair.student.first.denseWeight().copy()
    withoutGradient {
      pair.student.first.denseWeight().fillInPlace(1)
      pair.student.norm.runningMean.fillInPlace(5)
    }
    pair.optimizerDidStep()
    pair.optimizerDidStep()
    // 0.75² of the start and the rest of what is followed.
    let expected = start * 0.5625 + 0.4375
    let error = (pair.teacher.module.first.denseWeight() - expected).abs().max().item()
    #expect(error <= 1e-6, "off by \(error)")
    #expect(pair.teacher.module.norm.runningMean.min().item() == 5, "buffers are copied as they are")
    pair.teacher.reset(to: pair.student)
    #expect(pair.teacher.module.first.denseWeight().isEqual(to: pair.student.first.denseWeight()))
  }

  @Test func itsTensorsAreBuffersUnderThePathsOfTheOriginal() throws {
    let pair = Pair()
    #expect(pair.parameters().map(\.name) == ["student.first.weight", "student.first.bias", "student.norm.weight", "student.norm.bias"])
    let followed = Net(seed: 1).stateDictionary().keys
    #expect(Set(pair.buffers().map(\.name)).isSuperset(of: followed.map { "teacher." + $0 }))
    #expect(Set(pair.stateDictionary().keys) == Set(followed.flatMap { ["student." + $0, "teacher." + $0] }))
    // A checkpoint brings the copy back, and conversion keeps it out of training.
    var state = pair.stateDictionary().mapValues { $0.copy() }
    state["teacher.first.bias"] = Tensor.full([4], 7)
    try pair.load(state)
    #expect(pair.teacher.module.first.denseWeight().requiresGradient == false)
    pair.to(.float64)
    #expect((pair.teacher.module.first as? Linear)?.bias?.toArray(Double.self) == [7, 7, 7, 7])
    #expect(pair.buffers().filter { $0.name.hasPrefix("teacher.") }.allSatisfy { !$0.tensor.requiresGradient })
    pair.unfreeze()
    #expect(pair.trainableParameters().count == 4 && !pair.teacher.module.first.denseWeight().requiresGradient)
    #expect(throws: LoadingError.self) { try pair.load(["teacher.first.bias": Tensor.zeros([4])]) }
  }

  @Test func modesAndGeneratorsReachIt() {
    let pair = Pair()
    pair.eval()
    #expect(!pair.teacher.module.isTraining && !pair.teacher.module.norm.isTraining)
    pair.train()
    #expect(pair.teacher.module.isTraining)
    #expect(pair.generators().count == 2, "a checkpoint keeps both")
  }

  @Test func listenersInsideACopyAreNotCalled() {
    let pair = Pair()
    let listeners = pair.optimizerStepListeners()
    #expect(listeners.count == 2, "the pair and the student: \(listeners.map { type(of: $0) })")
    for listener in listeners { listener.optimizerDidStep() }
    #expect(pair.student.steps == 1 && pair.teacher.module.steps == 0)
  }

  @Test func noGradientReachesIt() {
    let pair = Pair()
    let x = Tensor.randomNormal([5, 3], generator: RandomGenerator(seed: 3))
    let target = withoutGradient { pair.teacher.module(x) }
    #expect(!target.requiresGradient)
    meanSquaredError(pair.student(x * 1.5), target).backward()
    #expect(pair.student.first.denseWeight().gradient != nil && pair.teacher.module.first.denseWeight().gradient == nil)
    // Even where the caller forgot that: the tensors are not marked.
    #expect(!pair.teacher.module(x).requiresGradient)
  }
}
