import Foundation
import MartletNN

/// Inputs, outputs and gradients by PyTorch and transformers (Fixtures/make_layer_fixtures.py).
let layerFixture: [String: Tensor] = {
  do {
    return try Safetensors.load(Bundle.module.resourceURL!.appendingPathComponent("Fixtures/layers.safetensors").path)
  } catch {
    fatalError("\(error)")
  }
}()

func fixture(_ name: String) -> Tensor {
  guard let tensor = layerFixture[name] else { fatalError("the fixture has no \(name)") }
  return tensor
}

/// The largest absolute difference of two tensors over the largest element of the second; infinite when their shapes differ.
func relativeDifference(_ a: Tensor, _ b: Tensor) -> Double {
  guard a.shape == b.shape else { return .infinity }
  return (a.to(.float64) - b.to(.float64)).abs().max().item() / max(b.to(.float64).abs().max().item(), 1e-30)
}

/// A float64 tensor of normal numbers from a seed.
func normal(_ shape: [Int], seed: UInt64) -> Tensor {
  Tensor.randomNormal(shape, dtype: .float64, generator: RandomGenerator(seed: seed))
}
