import Foundation
import Synchronization
import Testing

@testable import Martlet

@Suite struct ConcurrencyTests {
  /// Runs the body on threads of its own, all at once, and returns their results in order.
  private func onThreads<Result: Sendable>(_ count: Int, _ body: @escaping @Sendable (Int) -> Result) -> [Result] {
    let results = Mutex<[Int: Result]>([:])
    let box = Box(results)
    let group = DispatchGroup()
    for i in 0..<count {
      group.enter()
      Thread.detachNewThread {
        let result = body(i)
        box.results.withLock { $0[i] = result }
        group.leave()
      }
    }
    group.wait()
    return box.results.withLock { found in (0..<count).map { found[$0]! } }
  }

  private final class Box<Result: Sendable>: Sendable {
    let results: Mutex<[Int: Result]>
    init(_ results: consuming Mutex<[Int: Result]>) { self.results = results }
  }

  @Test func recordingIsSwitchedForOneThreadOnly() {
    let x = Tensor.ones([2]).tracked()
    withoutGradient {
      #expect(!isGradientEnabled)
      let others = onThreads(3) { i in
        let enabled = isGradientEnabled && (x * 2.0).requiresGradient
        return enabled && !withGradient(enabled: i % 2 == 0) { isGradientEnabled != (i % 2 == 0) }
      }
      #expect(others == [true, true, true])
      #expect(!isGradientEnabled && !(x * 2.0).requiresGradient)
    }
    #expect(isGradientEnabled)
  }

  @Test func errorsStayWithTheThreadThatMadeThem() {
    let messages = onThreads(8) { i -> String in
      var seen = ""
      for round in 0..<20 {
        do {
          let value = try withTorchErrors { () -> Double in
            let a = Tensor.full([i + 2, 3], 1)
            // Odd threads fail, each with its own shape; even ones must not notice.
            return (i % 2 == 1 ? a.matmul(Tensor.ones([i + 10, 1])) : a.matmul(Tensor.ones([3, 1]))).sum().item()
          }
          if value != Double(3 * (i + 2)) { seen += "round \(round): \(value) " }
        } catch {
          if !"\(error)".contains("\(i + 2)x3 and \(i + 10)x1") || i % 2 == 0 { seen += "round \(round): \(error) " }
          if round == 19 { seen += "failed" }
        }
      }
      return seen
    }
    #expect(messages == (0..<8).map { $0 % 2 == 1 ? "failed" : "" })
  }

  @Test func tasksHaveCapturesOfTheirOwn() async {
    let failures = await withTaskGroup(of: Bool.self) { group in
      for i in 0..<16 {
        group.addTask {
          do {
            _ = try withTorchErrors { Tensor.ones([2]).reshaped(i % 2 == 0 ? [2, 1] : [3]) }
            return false
          } catch { return true }
        }
      }
      return await group.reduce(0) { $0 + ($1 ? 1 : 0) }
    }
    #expect(failures == 8)
  }

  @Test func nestedCapturesEachThrowTheirOwn() throws {
    let outer = try withTorchErrors { () -> Double in
      let inner = #expect(throws: TensorError.self) { try withTorchErrors { Tensor.ones([2]).reshaped(3) } }
      #expect(inner != nil)
      return Tensor.ones([2]).sum().item()  // the outer one goes on
    }
    #expect(outer == 2)
  }

  @Test func gradientsOnManyThreadsAddUp() {
    let w = Tensor([1, 2, 3] as [Double]).tracked()
    let results = onThreads(6) { i in gradient(of: (w * Double(i)).square().sum(), with: [w])[0]!.toArray(Double.self) }
    for (i, values) in results.enumerated() { #expect(values == [1, 2, 3].map { 2 * Double(i * i) * $0 }) }
  }
}
