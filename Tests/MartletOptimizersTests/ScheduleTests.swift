import Foundation
import MartletOptimizers
import Testing

@Suite struct ScheduleTests {
  struct Reference: Decodable {
    let configuration: ScheduleConfiguration
    let factors: [Double]
  }

  @Test func oneCycleAndCosineAgreeWithPyTorch() throws {
    for reference in try JSONDecoder().decode([Reference].self, from: fixture("schedules.json")) {
      for (step, expected) in reference.factors.enumerated() {
        let factor = reference.configuration.schedule.factor(at: step)
        #expect(abs(factor - expected) < 1e-9, "\(reference.configuration.schedule), step \(step): \(factor), \(expected) expected")
      }
    }
  }

  @Test func keyStepsHaveTheirValues() {
    func check(_ schedule: any LearningRateSchedule, _ values: [(Int, Double)]) {
      for (step, expected) in values {
        let factor = schedule.factor(at: step)
        #expect(abs(factor - expected) < 1e-12, "\(schedule) at \(step): \(factor), \(expected) expected")
      }
    }
    check(ConstantSchedule(), [(0, 1), (1000, 1)])
    check(ConstantSchedule(warmup: 10, start: 0.1), [(0, 0.1), (5, 0.55), (10, 1), (99, 1)])
    check(LinearSchedule(warmup: 10, total: 110, floor: 0.2), [(0, 0), (5, 0.5), (10, 1), (60, 0.6), (110, 0.2), (200, 0.2)])
    check(CosineSchedule(warmup: 10, total: 110, floor: 0.1), [(0, 0), (10, 1), (60, 0.55), (110, 0.1), (999, 0.1)])
    check(InverseSquareRootSchedule(warmup: 100), [(0, 0), (50, 0.5), (100, 1), (400, 0.5), (10000, 0.1)])
    check(OneCycleSchedule(total: 101, rise: 0.5), [(0, 0.04), (100, 0.04e-4), (500, 0.04e-4)])
    let stages = WarmupStableDecaySchedule(warmup: 10, decay: 20, total: 100, shape: .linear)
    check(stages, [(0, 0), (10, 1), (80, 1), (90, 0.5), (100, 0), (101, 0)])
    check(WarmupStableDecaySchedule(decay: 16, total: 100, floor: 0.2), [(0, 1), (84, 1), (88, 0.6), (100, 0.2)])
  }

  @Test func longRangeArenaPeaksWhereItsSheetSays() {
    let schedule = ReciprocalRootSchedule(warmup: 1000)
    #expect(abs(0.05 * schedule.factor(at: 1000) - 0.05 / 1000.0.squareRoot()) < 1e-15)
    #expect(abs(0.05 * schedule.factor(at: 1000) - 1.581e-3) < 5e-7)
    #expect(abs(schedule.factor(at: 500) - 0.5 / 1000.0.squareRoot()) < 1e-15)
    #expect(abs(schedule.factor(at: 4000) - 1 / 4000.0.squareRoot()) < 1e-15)
    #expect(schedule.factor(at: 0) == 0)
  }

  @Test func schedulesAreContinuous() {
    let long: [any LearningRateSchedule] = [
      ConstantSchedule(warmup: 1000), LinearSchedule(warmup: 1000, total: 10000), CosineSchedule(warmup: 1000, total: 10000, floor: 0.1),
      InverseSquareRootSchedule(warmup: 1000), OneCycleSchedule(total: 10000), OneCycleSchedule(total: 10000, shape: .linear),
      OneCycleSchedule(total: 10000, threePhases: true), ReciprocalRootSchedule(warmup: 1000),
      WarmupStableDecaySchedule(warmup: 1000, decay: 2000, total: 10000, shape: .linear),
    ]
    for schedule in long {
      let jump = (0..<11000).map { abs(schedule.factor(at: $0 + 1) - schedule.factor(at: $0)) }.max()!
      #expect(jump < 2e-3, "\(schedule) jumps by \(jump)")
    }
    // √ is steep where the decay begins: √(1/2000).
    let root = WarmupStableDecaySchedule(warmup: 1000, decay: 2000, total: 10000)
    #expect((0..<11000).map { abs(root.factor(at: $0 + 1) - root.factor(at: $0)) }.max()! <= (1.0 / 2000).squareRoot() + 1e-12)
  }

  @Test func configurationsRoundTripByName() throws {
    let schedules: [any LearningRateSchedule] = [
      ConstantSchedule(warmup: 3), LinearSchedule(total: 7), CosineSchedule(warmup: 1, total: 9, floor: 0.1),
      InverseSquareRootSchedule(warmup: 4),
      OneCycleSchedule(total: 8, shape: .linear, threePhases: true), WarmupStableDecaySchedule(decay: 2, total: 9),
      ReciprocalRootSchedule(warmup: 5),
    ]
    #expect(schedules.map { type(of: $0).name } == ScheduleConfiguration.names)
    for schedule in schedules {
      let back = try JSONDecoder().decode(ScheduleConfiguration.self, from: JSONEncoder().encode(ScheduleConfiguration(schedule)))
      #expect("\(back.schedule)" == "\(schedule)")
    }
    let rules: [OptimizerConfiguration.Rule] = [
      .sgd(.init(momentum: 0.9, nesterov: true)), .adam(.init(beta1: 0.8)), .adamw(.init(weightDecay: 0.3)),
      .adafactor(.init(beta1: 0.9)), .adafactor(.init()), .lion(.init(beta2: 0.95)), .lamb(.init(maximumNorm: 10)),
    ]
    for rule in rules {
      let configuration = OptimizerConfiguration(rule, learningRate: 0.25)
      let back = try JSONDecoder().decode(OptimizerConfiguration.self, from: JSONEncoder().encode(configuration))
      #expect(back.rule == rule && back.learningRate == 0.25)
    }
  }

  @Test func configurationErrorsNameWhatExists() throws {
    func message<Value: Decodable>(_ type: Value.Type, _ text: String) -> String {
      do {
        _ = try JSONDecoder().decode(type, from: Data(text.utf8))
        return "accepted"
      } catch { return "\(error)" }
    }
    #expect(message(ScheduleConfiguration.self, #"{"name": "cosine", "total": 9}"#) == "accepted")
    #expect(message(ScheduleConfiguration.self, #"{"name": "cosin", "total": 9}"#).contains("unknown schedule “cosin”; there are constant"))
    #expect(message(ScheduleConfiguration.self, #"{"name": "cosine"}"#).contains("needs the option “total”"))
    #expect(message(ScheduleConfiguration.self, #"{"name": "cosine", "total": 9, "warm": 2}"#).contains("no option “warm”; it has floor"))
    #expect(message(ScheduleConfiguration.self, #"{"name": "cosine", "total": "many"}"#).contains("“total” must be of type Int"))
    #expect(message(ScheduleConfiguration.self, #"{"total": 9}"#).contains("needs a “name”"))
    #expect(message(ScheduleConfiguration.self, #"{"name": "wsd", "decay": 2, "total": 9, "shape": "round"}"#).contains("shape"))
    #expect(message(ScheduleConfiguration.self, #"{"name": "wsd", "decay": 2, "total": 9, "shape": "sqrt"}"#) == "accepted")
    #expect(message(OptimizerConfiguration.self, #"{"name": "adamx"}"#).contains("there are sgd, adam, adamw"))
    #expect(message(OptimizerConfiguration.self, #"{"name": "adamw", "momentum": 1}"#).contains("no option “momentum”"))
    let snake = try JSONDecoder().decode(
      OptimizerConfiguration.self, from: Data(#"{"name": "adamw", "learning_rate": 0.5, "weight_decay": 0.25}"#.utf8))
    #expect(snake.learningRate == 0.5 && snake.rule == .adamw(.init(weightDecay: 0.25)))
  }
}
