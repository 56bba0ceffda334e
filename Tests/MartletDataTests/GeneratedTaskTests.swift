import Foundation
import Testing

@testable import MartletData

private let counts = SplitCounts(train: 64, validation: 16, test: 16)

@Suite struct GeneratedTaskTests {
  private func tasks(seed: UInt64) throws -> [any IndexedTask] {
    [
      try AssociativeRecallTask(counts: counts, seed: seed), try SelectiveCopyingTask(length: 64, counts: counts, seed: seed),
      try DictionaryResetTask(counts: counts, seed: seed), try NoisyFrequencyTask(length: 32, counts: counts, seed: seed),
      try DigitsTask(SyntheticDigits(seed: seed), counts: counts), try LatestBindingTask(counts: counts, seed: seed),
      try SyntheticVideoTask(frames: 4, places: 4, channels: 6, counts: counts, seed: seed),
      try ShiftTask(counts: counts, seed: seed),
    ]
  }

  @Test func batchesAreFunctionsOfSeedAndStep() throws {
    for ((task, again), other) in zip(zip(try tasks(seed: 1), try tasks(seed: 1)), try tasks(seed: 2)) {
      let batch = try task.trainingBatch(step: 5, size: 10, seed: 3)
      _ = try again.trainingBatch(step: 1, size: 7, seed: 8)
      #expect(batch == (try again.trainingBatch(step: 5, size: 10, seed: 3)), "\(task.name)")
      #expect(batch != (try again.trainingBatch(step: 6, size: 10, seed: 3)), "\(task.name)")
      #expect(batch != (try again.trainingBatch(step: 5, size: 10, seed: 4)), "\(task.name)")
      #expect(batch != (try other.trainingBatch(step: 5, size: 10, seed: 3)), "\(task.name)")
      #expect(batch.inputs.shape.prefix(2) == [10, task.length] && batch.mask == nil)
    }
  }

  @Test func splitsHaveDifferentExamplesAndEpochsAllOfThem() throws {
    for task in try tasks(seed: 4) {
      var seen: Set<[Double]> = []
      for split in DataSplit.allCases {
        #expect(task.count(split) == counts[split])
        for index in 0..<task.count(split) {
          let example = try task.batch(split, [index]).inputs.toArray(Double.self)
          #expect(seen.insert(example).inserted, "\(task.name) \(split) \(index)")
        }
      }
      var epoch: Set<[Double]> = []
      for step in 0..<8 {
        let batch = try task.trainingBatch(step: step, size: 8, seed: 0)
        for row in 0..<8 { epoch.insert(batch.inputs[row].toArray(Double.self)) }
      }
      #expect(epoch.count == 64, "\(task.name): 64 different examples in an epoch of 64")
      let last = try task.evaluationBatch(.test, index: 1, size: 10)
      #expect(last?.targets.dim(0) == 6)
      #expect(try task.evaluationBatch(.test, index: 2, size: 10) == nil)
    }
  }

  @Test func recallAsksEveryKeyOnceForItsValue() throws {
    let task = try AssociativeRecallTask(length: 48, vocabulary: 40, pairs: 6, counts: counts, seed: 3)
    for index in 0..<64 {
      let (inputs, targets) = task.example(.train, index)
      #expect(inputs.allSatisfy { $0 >= 0 && $0 < 40 })
      var value: [Int64: Int64] = [:]
      for pair in 0..<6 {
        #expect((1..<20).contains(inputs[2 * pair]) && (20..<40).contains(inputs[2 * pair + 1]))
        value[inputs[2 * pair]] = inputs[2 * pair + 1]
      }
      #expect(value.count == 6 && Set(value.values).count == 6)
      let asked = targets.indices.filter { targets[$0] != -100 }
      #expect(asked.count == 6 && asked.allSatisfy { $0 >= 12 && $0 % 2 == 0 })
      #expect(Set(asked.map { inputs[$0] }) == Set(value.keys))
      for position in asked { #expect(targets[position] == value[inputs[position]]) }
    }
  }

  @Test func gapsFollowThePowerLaw() throws {
    // One pair: its gap g = 0...14 has probability proportional to (g + 1)^-0.5.
    let task = try AssociativeRecallTask(
      length: 32, vocabulary: 8, pairs: 1, power: 0.5, counts: SplitCounts(train: 6000, validation: 1, test: 1), seed: 5)
    var found = [Double](repeating: 0, count: 15)
    for index in 0..<6000 { found[(task.example(.train, index).targets.firstIndex { $0 != -100 }! - 2) / 2] += 1 }
    let weights = (0..<15).map { pow(Double($0 + 1), -0.5) }
    let total = weights.reduce(0, +)
    let chiSquare = zip(found, weights).reduce(0) { sum, pair in
      let expected = 6000 * pair.1 / total
      return sum + (pair.0 - expected) * (pair.0 - expected) / expected
    }
    #expect(chiSquare < 36.1, "chi² with 14 degrees of freedom is \(chiSquare); 36.1 has probability 0.001")
  }

  @Test func copyingRepeatsTheItemsInOrder() throws {
    let task = try SelectiveCopyingTask(length: 40, items: 7, symbols: 5, counts: counts, seed: 1)
    var places: Set<Int> = []
    for index in 0..<64 {
      let (inputs, targets) = task.example(.train, index)
      let items = inputs[..<33].filter { $0 != 0 }
      #expect(items.count == 7 && items.allSatisfy { (1...5).contains($0) })
      #expect(Array(inputs[33...]) == [Int64](repeating: 6, count: 7))
      #expect(Array(targets[33...]) == items && targets[..<33].allSatisfy { $0 == -100 })
      places.formUnion(inputs.indices.prefix(33).filter { inputs[$0] != 0 })
    }
    #expect(places.count == 33, "items stand anywhere")
  }

  @Test func dictionaryTargetsAreWhatWasSeenSinceTheReset() throws {
    let task = try DictionaryResetTask(counts: SplitCounts(train: 400, validation: 1, test: 1), seed: 2)
    var resets = 0
    for index in 0..<400 {
      let (inputs, targets) = task.example(.train, index)
      #expect(inputs.count == 64 && inputs[0] == 12)
      var memory: [Int64: Int64] = [:]
      for step in 0..<32 {
        let (key, value) = (inputs[2 * step], inputs[2 * step + 1])
        #expect(targets[2 * step + 1] == -100)
        if key == 12 {
          #expect(value == 12 && targets[2 * step] == -100)
          memory = [:]
          resets += step == 0 ? 0 : 1
        } else {
          #expect((0..<4).contains(key) && (4..<12).contains(value))
          #expect(targets[2 * step] == memory[key] ?? -100)
          if let known = memory[key] { #expect(known == value) }
          memory[key] = value
        }
      }
    }
    let rate = Double(resets) / Double(400 * 31)
    #expect(abs(rate - 0.1) < 0.012, "reset rate \(rate)")
  }

  @Test func latestBindingTargetsAreTheValuesBeforeTheNewOnes() throws {
    let task = try LatestBindingTask(counts: SplitCounts(train: 300, validation: 1, test: 1), seed: 2)
    var (drawnKeys, drawnValues, questions) = (Set<Int64>(), Set<Int64>(), 0)
    for index in 0..<300 {
      let (inputs, targets) = task.example(.train, index)
      #expect(inputs.count == 64 && targets.count == 64)
      var memory: [Int64: Int64] = [:]
      for pair in 0..<32 {
        let (key, value) = (inputs[2 * pair], inputs[2 * pair + 1])
        #expect((0..<8).contains(key) && (8..<24).contains(value))
        #expect(targets[2 * pair] == memory[key] ?? -100 && targets[2 * pair + 1] == -100)
        #expect(memory[key] != value, "a key gets a new value each time")
        questions += memory[key] == nil ? 0 : 1
        memory[key] = value
        drawnKeys.insert(key)
        drawnValues.insert(value)
      }
    }
    #expect(drawnKeys.count == 8 && drawnValues.count == 16)
    // Some 8 (1 − (7/8)^32) of the 32 keys are new.
    let mean = Double(questions) / 300.0
    let expected = 32.0 - 8.0 * (1.0 - pow(0.875, 32.0))
    #expect(abs(mean - expected) < 0.2, "\(mean) questions, expected \(expected)")
  }

  @Test func shiftAsksForTheTokenBefore() throws {
    let task = try ShiftTask(length: 30, distance: 4, symbols: 5, counts: counts, seed: 2)
    var seen = Set<Int64>()
    for index in 0..<16 {
      let (inputs, targets) = task.example(.test, index)
      #expect(inputs.count == 30 && targets.count == 30 && targets.prefix(4).allSatisfy { $0 == -100 })
      for t in 4..<30 { #expect(targets[t] == inputs[t - 4]) }
      seen.formUnion(inputs)
    }
    #expect(seen == Set(0..<5))
  }

  @Test func theClassIsTheFrequencyWithTheMostPower() throws {
    let task = try NoisyFrequencyTask(counts: counts, seed: 6)
    var right = 0
    for index in 0..<64 {
      let (samples, label) = task.example(.train, index)
      let power = (0..<8).map { number in
        let frequency = 0.10 + 0.02 * Double(number)
        var (real, imaginary) = (0.0, 0.0)
        for (t, sample) in samples.enumerated() {
          real += Double(sample) * cos(frequency * Double(t))
          imaginary += Double(sample) * sin(frequency * Double(t))
        }
        return real * real + imaginary * imaginary
      }
      right += power.indices.max { power[$0] < power[$1] } == label ? 1 : 0
    }
    #expect(right == 64, "the matched filter finds \(right) of 64")
    let silent = try NoisyFrequencyTask(noise: 0, counts: counts).example(.train, 0).samples
    #expect(silent.allSatisfy { abs($0) <= 1 } && silent.max()! > 0.99)
  }

  @Test func drawnDigitsCanBeToldApartButAreNoCopies() throws {
    let task = try DigitsTask(SyntheticDigits(), counts: SplitCounts(train: 200, validation: 50, test: 200))
    let train = task.batch(.train, Array(0..<200)).inputs.reshaped(200, 64)
    let trainLabels = task.batch(.train, Array(0..<200)).targets.toArray(Int.self)
    let test = task.batch(.test, Array(0..<200))
    let values = train.toArray(Float.self)
    #expect(values.allSatisfy { $0 >= 0 && $0 <= 1 && $0 * 16 == ($0 * 16).rounded() })
    #expect(Set(trainLabels).count == 10)
    let distances = (test.inputs.reshaped(200, 1, 64) - train.reshaped(1, 200, 64)).square().sum(axis: 2).toArray(Float.self)
    var right = 0
    for (row, label) in test.targets.toArray(Int.self).enumerated() {
      let line = distances[row * 200..<(row + 1) * 200]
      #expect(line.min()! > 0)
      let nearest = line.indices.min { line[$0] < line[$1] }! - row * 200
      right += trainLabels[nearest] == label ? 1 : 0
    }
    #expect(right > 150 && right < 200, "the nearest of 200 training images is right for \(right) of 200")
    let bare = SyntheticDigits(variation: 0, noise: 0)
    #expect(Set((0..<60).map { bare.image($0).counts }).count <= 16, "without variation only the templates are left")
  }

  @Test func subsetsAreNestedAndLeaveTheTestWhole() throws {
    let whole = try NoisyFrequencyTask(length: 16, counts: counts, seed: 6)
    func examples(_ fraction: Double) throws -> Set<[Float]> {
      let task = try TrainingSubset(whole, fraction: fraction, seed: 3)
      #expect(task.count(.train) == Int((64 * fraction).rounded()) && task.count(.test) == 16)
      #expect(try task.evaluationBatch(.test, index: 0, size: 16) == whole.evaluationBatch(.test, index: 0, size: 16))
      // An epoch shows every example of the subset once.
      let batch = try task.trainingBatch(step: 0, size: task.count(.train), seed: 1)
      return Set((0..<task.count(.train)).map { batch.inputs[$0].toArray(Float.self) })
    }
    let all = try examples(1)
    var larger = all
    for fraction in [0.5, 0.25, 0.0625] {
      let smaller = try examples(fraction)
      #expect(smaller.count == Int(64 * fraction) && smaller.isSubset(of: larger), "the subset of \(fraction)")
      larger = smaller
    }
    #expect(all.count == 64)
    #expect(throws: DataError.self) { try TrainingSubset(whole, fraction: 0) }
  }

  @Test func theEventsOfAVideoSayItsClass() throws {
    let task = try SyntheticVideoTask(counts: counts, seed: 4)
    var classes = Set<Int>()
    for index in 0..<40 {
      let (values, label, events) = task.example(.train, index)
      classes.insert(label)
      #expect(values.count == 256 * 12 && events == events.sorted() && Set(events).count == events.count)
      let frames = Set(events.map { $0 / 16 })
      #expect(frames.count == 2 && frames.contains { $0 < 8 } && frames.contains { $0 >= 8 }, "one frame of each half: \(frames)")
      for token in events {
        let row = values[token * 12..<(token + 1) * 12].map(Double.init)
        let half = token < 128 ? 0 : 1
        let type = half == 0 ? label / 2 : label % 2
        for (channel, value) in row.enumerated() {
          let mean = channel == 0 || channel == 1 + 2 * half + type ? 3.0 : 0
          #expect(abs(value - mean) < 1.8, "token \(token), channel \(channel): \(value), expected \(mean) ± 1.8")
        }
      }
      let others = (0..<256).filter { !events.contains($0) }.flatMap { token in values[token * 12..<(token + 1) * 12].map(Double.init) }
      let deviation = (others.reduce(0) { $0 + $1 * $1 } / Double(others.count)).squareRoot()
      #expect(abs(deviation - 0.5) < 0.05, "the noise's deviation is \(deviation)")
    }
    #expect(classes == [0, 1, 2, 3])
    let sizes = (0..<60).map { task.example(.train, $0).events.count }
    #expect(sizes.max()! <= 16 && sizes.min()! >= 2)
  }

  @Test func sizesWithoutRoomAreRefused() {
    #expect(throws: DataError.self) { try SyntheticVideoTask(channels: 4) }
    #expect(throws: DataError.self) { try SyntheticVideoTask(frames: 1) }
    #expect(throws: DataError.self) { try AssociativeRecallTask(length: 30, pairs: 8) }
    #expect(throws: DataError.self) { try AssociativeRecallTask(length: 33, pairs: 8) }
    #expect(throws: DataError.self) { try AssociativeRecallTask(vocabulary: 16, pairs: 8) }
    #expect(throws: DataError.self) { try SelectiveCopyingTask(length: 31, items: 16) }
    #expect(throws: DataError.self) { try DictionaryResetTask(resetRate: 1) }
    #expect(throws: DataError.self) { try LatestBindingTask(pairs: 8) }
    #expect(throws: DataError.self) { try LatestBindingTask(values: 1) }
    #expect(throws: DataError.self) { try ShiftTask(length: 7, distance: 7) }
    #expect(throws: DataError.self) { try NoisyFrequencyTask(classes: 154) }
    #expect(throws: DataError.self) { try NoisyFrequencyTask(counts: SplitCounts(train: 0, validation: 1, test: 1)) }
  }
}
