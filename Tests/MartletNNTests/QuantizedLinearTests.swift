import Foundation
import MartletFormats
import Testing

@testable import MartletNN

private final class Pair: Module {
  @Child var first: any LinearLayer
  @Child(key: "second_proj") var second: any LinearLayer
  @Child var more: [any LinearLayer]

  override init() {
    super.init()
    let generator = RandomGenerator(seed: 5)
    first = Linear(70, 40, generator: generator)
    second = Linear(40, 33, bias: false, generator: generator)
    more = [Linear(3, 4, generator: generator), Linear(4, 5, generator: generator)]
  }
}

struct QuantizedLinearTests {
  static let forms = [
    WeightQuantization(bits: 8), WeightQuantization(bits: 8, group: 32), WeightQuantization(bits: 4),
    WeightQuantization(bits: 4, group: 32, asymmetric: true), WeightQuantization(bits: 4, group: 128),
  ]

  @Test(arguments: forms) func theProductIsTheDequantisedWeights(form: WeightQuantization) throws {
    let generator = RandomGenerator(seed: 1)
    let weight = Tensor.randomNormal([50, 300], generator: generator)
    let bias = Tensor.randomNormal([50], generator: generator)
    let layer = try QuantizedLinear(weight: weight, bias: bias, form)
    #expect(layer.inFeatures == 300 && layer.outFeatures == 50)
    let dense = layer.denseWeight()
    for rows in [1, 5, 40] {
      let x = Tensor.randomNormal([rows, 300], generator: generator)
      let expected = x.matmul(dense.T) + bias
      let error = ((layer(x) - expected).abs().max() / expected.abs().max()).item()
      #expect(error < 1e-5, "\(rows) rows: \(error)")
    }
  }

  @Test(arguments: forms) func roundingErrsByHalfAScaleAtMost(form: WeightQuantization) throws {
    let weight = Tensor.randomNormal([20, 256], generator: RandomGenerator(seed: 2))
    let layer = try QuantizedLinear(weight: weight, form)
    let span = form.group == 0 ? 256 : form.group
    let scales = layer.scales.to(.float32).expandedDimension(-1)
    let error = (weight - layer.denseWeight()).abs().reshaped(20, 256 / span, span)
    let worst = (error - scales / 2).max().item()
    #expect(worst < 1e-6, "worst error exceeds half a scale by \(worst)")
    #expect(layer.storageBytes < weight.byteCount / (form.bits == 8 ? 3 : 5))
  }

  @Test func gradientsReachTheInput() throws {
    let generator = RandomGenerator(seed: 3)
    let layer = try QuantizedLinear(weight: .randomNormal([12, 40], generator: generator), WeightQuantization(bits: 4, group: 32))
    let x = Tensor.randomNormal([3, 40], generator: generator).tracked()
    let seed = Tensor.randomNormal([3, 12], generator: generator)
    layer(x).backward(seed: seed)
    let expected = seed.matmul(layer.denseWeight())
    let error = ((x.gradient! - expected).abs().max() / expected.abs().max()).item()
    #expect(error < 1e-5, "\(error)")
  }

  @Test func linearLayersAreReplacedByPath() throws {
    let model = Pair()
    let bias = try #require((model.first as? Linear)?.bias)
    let paths = try model.quantizeLinears(WeightQuantization(bits: 4)) { !$0.hasPrefix("more") }
    #expect(paths == ["first", "second_proj"])
    let first = try #require(model.first as? QuantizedLinear)
    #expect(model.second is QuantizedLinear && model.more.allSatisfy { $0 is Linear })
    #expect(first.bias === bias)
    try model.quantizeLinears(WeightQuantization(bits: 8))
    #expect(model.more.allSatisfy { $0 is QuantizedLinear } && model.first === first)
  }

  @Test(arguments: forms) func aSavedStateLoadsIntoAnEmptyLayer(form: WeightQuantization) throws {
    let generator = RandomGenerator(seed: 4)
    let (weight, bias) = (Tensor.randomNormal([9, 200], generator: generator), Tensor.randomNormal([9], generator: generator))
    let layer = try QuantizedLinear(weight: weight, bias: bias, form)
    let empty = try QuantizedLinear(200, 9, bias: true, form)
    try empty.load(layer.stateDictionary())
    let x = Tensor.randomNormal([2, 200], generator: generator)
    #expect(empty(x).isEqual(to: layer(x)))
  }

  @Test func unknownFormsAreErrors() {
    let weight = Tensor.ones([4, 64])
    for form in [
      WeightQuantization(bits: 3), WeightQuantization(bits: 4, group: 0), WeightQuantization(bits: 8, group: 48),
      WeightQuantization(bits: 8, asymmetric: true),
    ] {
      #expect(throws: ConfigurationError.self) { try QuantizedLinear(weight: weight, form) }
    }
    #expect(throws: TensorError.self) { try QuantizedLinear(weight: weight * Double.infinity, WeightQuantization(bits: 4)) }
  }

  @Test func joinedLayersGiveWhatEachGives() throws {
    let generator = RandomGenerator(seed: 7)
    let dense = [30, 8, 17].map { Linear(50, $0, bias: $0 != 8, generator: generator) }
    for rows in [1, 3, 20] {
      let x = Tensor.randomNormal([2, rows, 50], generator: generator)
      for form in [nil] + Self.forms.map(Optional.some) {
        let layers: [any LinearLayer] = try dense.map { layer in
          if let form { try QuantizedLinear(layer, form) } else { layer }
        }
        for (y, layer) in zip(joinedLinear(x, layers), layers) {
          let expected = layer(x)
          let error = ((y - expected).abs().max() / expected.abs().max()).item()
          #expect(y.shape == expected.shape && error < 1e-6, "\(rows) rows: \(error)")
        }
      }
    }
    let mixed: [any LinearLayer] = [dense[0], try QuantizedLinear(dense[1], Self.forms[0])]
    let x = Tensor.randomNormal([2, 50], generator: generator)
    #expect(zip(joinedLinear(x, mixed), mixed).allSatisfy { $0.isEqual(to: $1(x)) })
  }

  @Test func bfloat16WeightsMeetFloatActivations() {
    let generator = RandomGenerator(seed: 6)
    let weight = Tensor.randomNormal([30, 50], generator: generator).to(.bfloat16)
    for rows in [1, 20] {
      let x = Tensor.randomNormal([rows, 50], generator: generator)
      let y = withoutGradient { linearMap(x, weight) }
      let expected = x.matmul(weight.to(.float32).T)
      let error = ((y - expected).abs().max() / expected.abs().max()).item()
      #expect(y.dtype == .float32 && error < 1e-5, "\(rows) rows: \(error)")
    }
  }
}
