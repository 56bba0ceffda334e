import Testing

@testable import Martlet

@Suite struct AutocastTests {
  private let linear = Operator("aten::linear")
  private let x = normal([8, 32], seed: 1).to(.float32)
  private let w = normal([16, 32], seed: 2).to(.float32)

  @Test func linearRunsInBfloat16AndStaysClose() {
    let exact = linear(.tensor(x), .tensor(w))
    let low = withAutocast { linear(.tensor(x), .tensor(w)) }
    #expect(low.dtype == .bfloat16 && exact.dtype == .float32)
    // Eight bits of mantissa: inputs are off by 2⁻⁹ of their size.
    let error = (low.to(.float32) - exact).norm().item() / exact.norm().item()
    #expect(error < 0.006 && error > 1e-5, "\(error)")
    #expect(linear(.tensor(x), .tensor(w)).dtype == .float32, "the mode ends with the block")
  }

  @Test func gradientsArriveInTheWeightsType() {
    let leaf = w.copy().tracked()
    withAutocast { linear(.tensor(x), .tensor(leaf)) }.to(.float32).square().sum().backward()
    #expect(leaf.gradient?.dtype == .float32)
    let exact = gradient(of: linear(.tensor(x), .tensor(leaf)).square().sum(), with: [leaf])[0]!
    #expect((leaf.gradient! - exact).norm().item() / exact.norm().item() < 0.02)
  }

  @Test func changedWeightsAreConvertedAgain() {
    let leaf = w.copy().tracked()
    let before = withAutocast { linear(.tensor(x), .tensor(leaf)) }
    withoutGradient { leaf.fillInPlace(0) }
    let after = withAutocast { linear(.tensor(x), .tensor(leaf)) }
    #expect(before.abs().max().item() > 0 && after.abs().max().item() == 0)
  }

  @Test func modesNest() {
    let leaf = w.copy().tracked()
    withAutocast(dtype: .float16) {
      #expect(linear(.tensor(x), .tensor(leaf)).dtype == .float16)
      withAutocast { #expect(linear(.tensor(x), .tensor(leaf)).dtype == .bfloat16) }
      #expect(linear(.tensor(x), .tensor(leaf)).dtype == .float16, "the outer block's type is back")
      withAutocast(false) { #expect(linear(.tensor(x), .tensor(leaf)).dtype == .float32 && !isAutocastEnabled()) }
      #expect(linear(.tensor(x), .tensor(leaf)).dtype == .float16)
    }
    #expect(!isAutocastEnabled())
    struct Stop: Error {}
    #expect(throws: Stop.self) { try withAutocast { throw Stop() } }
    #expect(!isAutocastEnabled())
  }
}
