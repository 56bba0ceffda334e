import CTorch
import Synchronization

/// An operation that libtorch refused, or input that can't become a tensor. The message says what was expected.
public struct TensorError: Error, CustomStringConvertible, Sendable {
  public let message: String
  public init(_ message: String) { self.message = message }
  public var description: String { message }
}

/// The first error inside the innermost `withTorchErrors` of this thread.
private final class ErrorCapture {
  var first: TensorError?
}

private enum CurrentCapture {
  @TaskLocal static var capture: CaptureBox?
}

private struct CaptureBox: @unchecked Sendable {
  let capture: ErrorCapture
}

/// Runs `body` where *input* enters (files, requests, the command line): a tensor operation that fails inside throws from
/// here with libtorch's message, where outside it would trap as a programmer's error.
///
/// After the first failure the remaining tensor operations of `body` are skipped: they return a one-element tensor.
public func withTorchErrors<Result>(_ body: () throws -> Result) throws -> Result {
  let capture = ErrorCapture()
  activeCaptures.add(1, ordering: .relaxed)
  defer { activeCaptures.subtract(1, ordering: .relaxed) }
  return try CurrentCapture.$capture.withValue(CaptureBox(capture: capture)) {
    do {
      let result = try body()
      if let error = capture.first { throw error }
      return result
    } catch {
      // An error thrown on the way may only be the consequence of the skipped operations.
      throw capture.first ?? error
    }
  }
}

/// How many captures are open in the process: while none is, an operation need not look for its own.
private let activeCaptures = Atomic<Int>(0)

/// True once an operation has failed inside `withTorchErrors`: the rest is skipped.
var isSkippingAfterError: Bool {
  activeCaptures.load(ordering: .relaxed) > 0 && CurrentCapture.capture?.capture.first != nil
}

/// Traps with the message, or records it inside `withTorchErrors`.
func torchFailure(_ message: @autoclosure () -> String, file: StaticString = #file, line: UInt = #line) {
  guard let capture = CurrentCapture.capture?.capture else { fatalError(message(), file: file, line: line) }
  if capture.first == nil { capture.first = TensorError(message()) }
}

func torchErrorMessage() -> String { String(cString: ctorch_error()) }

/// Checks a precondition on arguments given by the caller: traps with the message, or throws inside `withTorchErrors`.
@inline(__always)
public func require(_ condition: Bool, _ message: @autoclosure () -> String, file: StaticString = #file, line: UInt = #line) {
  if !condition { torchFailure(message(), file: file, line: line) }
}

/// Traps or records what happened, unless the status of a C call is success.
@inline(__always)
func checkTorch(_ status: Int32) {
  if status != 0 { torchFailure(torchErrorMessage()) }
}
