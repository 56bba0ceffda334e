import MartletNN
import Testing

@Suite struct DropoutTests {
  @Test func dropoutKeepsTheShareAndTheMean() {
    let layer = Dropout(0.3, generator: RandomGenerator(seed: 1))
    let n = 40_000
    let y = layer(Tensor.ones([n]))
    let kept = (y .!= 0.0).to(.float64).mean().item()
    #expect(abs(kept - 0.7) < 5 * (0.21 / Double(n)).squareRoot(), "\(kept)")
    #expect(y.unique().values.count == 2 && abs(y.max().item() - 1 / 0.7) < 1e-6)
  }

  @Test func theGeneratorsStateDecides() {
    let generator = RandomGenerator(seed: 2)
    let layer = Dropout(0.5, generator: generator)
    let x = Tensor.ones([64])
    let state = generator.state
    let first = layer(x)
    #expect(!layer(x).isEqual(to: first), "every call draws anew")
    generator.state = state
    #expect(layer(x).isEqual(to: first))
    generator.state = state
    #expect(layer(x.to(.float64)).to(.float32).isEqual(to: first), "the mask does not depend on the dtype")
    #expect(Dropout(0.5, generator: RandomGenerator(seed: 2))(x).isEqual(to: first))
  }

  @Test func evaluationAndZeroProbabilityChangeNothingAndDrawNothing() {
    let generator = RandomGenerator(seed: 3)
    let state = generator.state
    let x = Tensor.ones([8])
    let layer = Dropout(0.5, generator: generator)
    layer.eval()
    #expect(layer(x).isEqual(to: x))
    #expect(Dropout(0, generator: generator)(x).isEqual(to: x))
    #expect(generator.state.isEqual(to: state))
    #expect(throws: TensorError.self) { try withTorchErrors { Dropout(1, generator: generator) } }
  }

  @Test func gradientsFlowThroughWhatWasKept() {
    let x = Tensor.ones([100]).tracked()
    let y = Dropout(0.4, generator: RandomGenerator(seed: 4))(x)
    y.sum().backward()
    #expect(x.gradient!.isEqual(to: y.detached()))
  }

  @Test func dropPathSkipsWholeSamples() {
    let layer = DropPath(0.25, generator: RandomGenerator(seed: 5))
    let y = layer(Tensor.ones([4000, 3, 2])).reshaped(4000, 6)
    #expect(y.min(axis: 1).isEqual(to: y.max(axis: 1)), "all or nothing")
    let kept = (y[.all, 0] .!= 0.0).to(.float64).mean().item()
    #expect(abs(kept - 0.75) < 5 * (0.1875 / 4000).squareRoot(), "\(kept)")
    #expect(abs(y.max().item() - 1 / 0.75) < 1e-6)
    layer.eval()
    #expect(layer(y).isEqual(to: y))
  }

  @Test func modulesListTheirGeneratorsOnce() {
    final class Pair: Module {
      let first: Dropout
      let second: DropPath
      let third: Dropout
      init(_ a: RandomGenerator, _ b: RandomGenerator) {
        (first, second, third) = (Dropout(0.1, generator: a), DropPath(0.1, generator: a), Dropout(0.1, generator: b))
      }
    }
    let (a, b) = (RandomGenerator(seed: 1), RandomGenerator(seed: 2))
    let found = Pair(a, b).generators()
    #expect(found.count == 2 && found[0] === a && found[1] === b)
  }
}
