import Foundation
import Testing

@testable import Martlet

@Suite struct ElementwiseTests {
  private let points: [Double] = [-2.5, -1, -0.3, 0.2, 0.9, 1.7]

  @Test func functionsAreThoseOfTheMathLibrary() {
    let x = Tensor(points)
    let inside = x * 0.3
    func sigmoid(_ v: Double) -> Double { 1 / (1 + Foundation.exp(-v)) }
    let cases: [(String, Tensor, (Double) -> Double, Double)] = [
      ("exp", x.exp(), Foundation.exp, 1), ("expm1", x.expm1(), Foundation.expm1, 1), ("sin", x.sin(), Foundation.sin, 1),
      ("cos", x.cos(), Foundation.cos, 1), ("tan", x.tan(), Foundation.tan, 1), ("sinh", x.sinh(), Foundation.sinh, 1),
      ("cosh", x.cosh(), Foundation.cosh, 1), ("tanh", x.tanh(), Foundation.tanh, 1), ("erf", x.erf(), Foundation.erf, 1),
      ("asin", inside.asin(), Foundation.asin, 0.3), ("acos", inside.acos(), Foundation.acos, 0.3), ("atan", x.atan(), Foundation.atan, 1),
      ("floor", x.floor(), Foundation.floor, 1), ("ceil", x.ceil(), Foundation.ceil, 1), ("trunc", x.trunc(), Foundation.trunc, 1),
      ("abs", x.abs(), { Swift.abs($0) }, 1), ("square", x.square(), { $0 * $0 }, 1), ("sigmoid", x.sigmoid(), sigmoid, 1),
      ("silu", x.silu(), { $0 * sigmoid($0) }, 1), ("relu", x.relu(), { Swift.max($0, 0) }, 1),
      ("gelu", x.gelu(), { $0 * 0.5 * (1 + Foundation.erf($0 / 2.0.squareRoot())) }, 1),
      (
        "gelu tanh", x.gelu(approximate: true),
        { 0.5 * $0 * (1 + Foundation.tanh((2 / Double.pi).squareRoot() * ($0 + 0.044715 * $0 * $0 * $0))) }, 1
      ),
      ("softplus", x.softplus(), { Foundation.log(1 + Foundation.exp($0)) }, 1),
      ("softplus β", x.softplus(beta: 2), { Foundation.log(1 + Foundation.exp(2 * $0)) / 2 }, 1),
      ("elu", x.elu(alpha: 1.5), { $0 > 0 ? $0 : 1.5 * (Foundation.exp($0) - 1) }, 1),
      ("leaky", x.leakyReLU(slope: 0.1), { $0 > 0 ? $0 : 0.1 * $0 }, 1),
      ("log sigmoid", x.logSigmoid(), { Foundation.log(sigmoid($0)) }, 1),
      ("log", x.square().log(), { Foundation.log($0 * $0) }, 1), ("log2", x.square().log2(), { Foundation.log2($0 * $0) }, 1),
      ("log1p", x.square().log1p(), { Foundation.log1p($0 * $0) }, 1), ("sqrt", x.square().sqrt(), { Swift.abs($0) }, 1),
      ("rsqrt", x.square().rsqrt(), { 1 / Swift.abs($0) }, 1), ("lgamma", x.square().lgamma(), { Foundation.lgamma($0 * $0) }, 1),
      ("reciprocal", x.reciprocal(), { 1 / $0 }, 1), ("pow", x.square().pow(0.7), { Foundation.pow($0 * $0, 0.7) }, 1),
      ("negation", -x, { -$0 }, 1), ("1 − x", 1.0 - x, { 1 - $0 }, 1), ("2 / x", 2.0 / x, { 2 / $0 }, 1),
    ]
    for (name, result, function, scale) in cases {
      for (value, point) in zip(result.toArray(Double.self), points) {
        let expected = function(point * scale)
        #expect(
          Swift.abs(value - expected) <= 1e-13 * Swift.max(1, Swift.abs(expected)), "\(name)(\(point * scale)) = \(value), not \(expected)")
      }
    }
    #expect(difference(inside.erf().erfinv(), inside) < 1e-14)
    // digamma(1) is minus Euler's constant.
    #expect(Swift.abs(Tensor(1, dtype: .float64).digamma().item() + 0.5772156649015329) < 1e-13)
  }

  @Test func roundingIsToEvenAndSignsAreKept() {
    #expect(Tensor([0.5, 1.5, -2.5, 2.4] as [Double]).round().toArray(Double.self) == [0, 2, -2, 2])
    #expect(Tensor([-3, 0, 8] as [Double]).sign().toArray(Double.self) == [-1, 0, 1])
  }

  @Test func logSigmoidAndSoftplusAreExactFarOut() {
    let x = Tensor([-800, 800] as [Double])
    #expect(x.logSigmoid().toArray(Double.self) == [-800, 0])
    #expect(x.softplus().toArray(Double.self) == [0, 800])
  }

  @Test func softmaxSumsToOneAndIgnoresShifts() {
    let x = normal([3, 5], seed: 1)
    #expect(difference(x.softmax().sum(axis: -1), Tensor.ones([3], dtype: .float64)) < 1e-15)
    #expect(difference((x + 1000.0).softmax(axis: 0), x.softmax(axis: 0)) < 1e-12)
    #expect(difference(x.logSoftmax().exp(), x.softmax()) < 1e-15)
  }

  @Test func arithmeticFollowsTheUsualRules() {
    let a = Tensor([7, -7] as [Int])
    #expect((a % 3).toArray(Int.self) == [1, 2], "the remainder has the divisor's sign")
    #expect(a.floorDivided(by: Tensor([2, 2] as [Int])).toArray(Int.self) == [3, -4])
    #expect((a / Tensor([2, 2] as [Int])).toArray(Float.self) == [3.5, -3.5])
    #expect((Tensor([1, 2] as [Int]) + Tensor([0.5, 0.5] as [Float])).dtype == .float32)
    #expect((Tensor.ones([2, 1]) + Tensor.ones([3])).shape == [2, 3])
    #expect(a.clamped(min: -1, max: 3).toArray(Int.self) == [3, -1])
    #expect(maximum(a, Tensor([0, 0] as [Int])).toArray(Int.self) == [7, 0])
    #expect(minimum(a, Tensor([0, 0] as [Int])).toArray(Int.self) == [0, -7])
    #expect(Tensor([2, 3] as [Double]).pow(Tensor([3, 2] as [Double])).toArray(Double.self) == [8, 9])
    var sum = Tensor([1, 2] as [Float])
    let before = sum
    sum += Tensor([1, 1] as [Float])
    #expect(before.toArray(Float.self) == [1, 2], "+= makes a new tensor")
    sum.addInPlace(before, scale: 2)
    #expect(sum.toArray(Float.self) == [4, 7])
    sum.multiplyInPlace(0.5)
    a.multiplyInPlace(2)
    #expect(sum.toArray(Float.self) == [2, 3.5] && a.toArray(Int.self) == [14, -14], "integers by integers too")
  }

  @Test func comparisonsAndSelection() {
    let (a, b) = (Tensor([1, 2, 3] as [Float]), Tensor([3, 2, 1] as [Float]))
    #expect((a .< b).toArray(Bool.self) == [true, false, false] && (a .<= b).toArray(Bool.self) == [true, true, false])
    #expect((a .> b).toArray(Bool.self) == [false, false, true] && (a .>= b).toArray(Bool.self) == [false, true, true])
    #expect((a .== b).toArray(Bool.self) == [false, true, false] && (a .!= b).toArray(Bool.self) == [true, false, true])
    #expect(((a .< b) .| (a .> b)).toArray(Bool.self) == [true, false, true])
    #expect((.!(a .< b) .& (a .> 2.0)).toArray(Bool.self) == [false, false, true])
    #expect(select(a .> b, a, b).toArray(Float.self) == [3, 2, 3])
    #expect(a.maskedFill(a .== 2.0, -1).toArray(Float.self) == [1, -1, 3])
    #expect(!a.isEqual(to: b) && !a.isEqual(to: Tensor([1, 2] as [Float])) && a.isEqual(to: a.copy()))
  }

  @Test func einsumIsTheSumItSays() {
    let (q, k) = (normal([2, 3, 4], seed: 2), normal([2, 5, 4], seed: 3))
    #expect(difference(einsum("bid,bjd->bij", q, k), q.matmul(k.T)) < 1e-13)
    #expect(difference(einsum("bid->bd", q), q.sum(axis: 1)) < 1e-14)
  }

  @Test func gradientsAgreeWithFiniteDifferences() {
    let x = Tensor(points)
    let functions: [(String, (Tensor) -> Tensor)] = [
      ("gelu", { $0.gelu() }), ("gelu tanh", { $0.gelu(approximate: true) }), ("silu", { $0.silu() }), ("elu", { $0.elu(alpha: 0.7) }),
      ("softplus", { $0.softplus(beta: 3) }), ("log sigmoid", { $0.logSigmoid() }), ("erf", { $0.erf() }), ("atan", { $0.atan() }),
      ("log softmax", { $0.logSoftmax() * $0 }), ("lgamma", { ($0.square() + 0.5).lgamma() }), ("rsqrt", { $0.square().rsqrt() }),
      ("power", { ($0.square() + 0.1).pow($0) }), ("clamp", { $0.clamped(min: -0.5, max: 0.5) * $0 }), ("quotient", { 1.0 / ($0 + 4.0) }),
    ]
    for (name, function) in functions {
      let error = gradientError([x]) { function($0[0]).square().sum() }
      #expect(error < 1e-6, "\(name): \(error)")
    }
  }
}
