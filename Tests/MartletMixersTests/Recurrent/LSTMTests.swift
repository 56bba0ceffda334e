import MartletMixers
import Testing

@Suite struct LSTMTests {
  private let width = 5
  private func layer() -> LSTM { LSTM(width, generator: RandomGenerator(seed: 1)) }
  private func input(_ length: Int) -> Tensor { Tensor.randomNormal([3, length, width], generator: RandomGenerator(seed: 2)) }

  private func largestDifference(_ a: Tensor, _ b: Tensor) -> Double { (a - b).abs().max().item() }

  @Test func outputsAreThoseOfTheEquations() {
    let lstm = layer()
    let x = input(7)
    withoutGradient {
      var (h, c) = (Tensor.zeros([3, width]), Tensor.zeros([3, width]))
      var outputs: [Tensor] = []
      for t in 0..<7 {
        let gates =
          x.selected(axis: 1, t).matmul(lstm.inputWeight.T) + lstm.inputBias + h.matmul(lstm.hiddenWeight.T) + lstm.hiddenBias
        let parts = gates.chunked(4, axis: -1)
        c = parts[1].sigmoid() * c + parts[0].sigmoid() * parts[2].tanh()
        h = parts[3].sigmoid() * c.tanh()
        outputs.append(h)
      }
      let difference = largestDifference(lstm(x), stacked(outputs, axis: 1))
      #expect(difference < 1e-5, "differs by \(difference), tolerance 1e-5")
    }
  }

  @Test func stepsAndPiecesAgreeWithTheWhole() {
    let lstm = layer()
    let x = input(9)
    withoutGradient {
      let whole = lstm(x)
      var state = lstm.initialState(batch: 3)
      let first = lstm.advance(x[.all, ..<4], &state)
      var later: [Tensor] = []
      for t in 4..<9 { later.append(lstm.step(x.selected(axis: 1, t), &state)) }
      let difference = largestDifference(whole, concatenated([first, stacked(later, axis: 1)], axis: 1))
      #expect(difference < 1e-5, "differs by \(difference), tolerance 1e-5")
      #expect(lstm.stateBytes(state) == 2 * 3 * width * 4)
    }
  }

  @Test func laterInputsDoNotReachEarlierOutputs() {
    let lstm = layer()
    let x = input(6)
    withoutGradient {
      let before = lstm(x)
      let changed = x.copy()
      changed[0..., 4] = Tensor.full([3, width], 3)
      let after = lstm(changed)
      #expect(before[.all, ..<4].isEqual(to: after[.all, ..<4]))
      #expect(!before[.all, 4].isEqual(to: after[.all, 4]))
    }
  }

  @Test func parametersAreNamedAsInPyTorchAndLearn() {
    let lstm = layer()
    #expect(lstm.parameters().map(\.name) == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
    #expect(lstm.parameters().reduce(0) { $0 + $1.tensor.count } == 4 * width * (2 * width + 2))
    lstm(input(4)).square().sum().backward()
    for (name, tensor) in lstm.parameters() {
      let norm = tensor.gradient?.norm().item() ?? 0
      #expect(norm > 0, "\(name) has the gradient norm \(norm)")
    }
  }
}
