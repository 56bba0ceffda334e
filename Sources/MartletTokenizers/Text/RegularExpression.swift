import CPCRE2
import Synchronization

/// A pattern of a tokenizer file: written for Oniguruma (Ruby's syntax, as the Rust library uses it), run by PCRE2 with its compiler.
///
/// Matching gives up with ``TokenizationError`` after ten million steps of backtracking.
public final class RegularExpression: @unchecked Sendable {
  /// As it was given.
  public let pattern: String
  /// The compiled pattern. One that has a scanner is compiled when it is first needed, which is mostly never.
  private let compiled: Mutex<UInt>  // an address, 0 while there is none
  /// A faster way to the same matches, for the patterns that everybody uses.
  let scanner: PatternScanner?

  /// Throws ``VocabularyError`` with the place of the mistake for a pattern that can't be, or uses what isn't supported.
  public init(_ pattern: String) throws(VocabularyError) {
    self.pattern = pattern
    scanner = PatternScanner(pattern)
    compiled = Mutex(0)
    if scanner == nil {
      let code = try Self.compile(pattern)
      compiled.withLock { $0 = UInt(bitPattern: code) }
    }
  }

  deinit { pcre2_code_free_8(OpaquePointer(bitPattern: compiled.withLock { $0 })) }

  private func code() throws -> OpaquePointer {
    let address = try compiled.withLock { address in
      if address == 0 { address = UInt(bitPattern: try Self.compile(pattern)) }
      return address
    }
    return OpaquePointer(bitPattern: address)!
  }

  private static func compile(_ pattern: String) throws(VocabularyError) -> OpaquePointer {
    let translated = try OnigurumaSyntax.translated(pattern)
    let context = pcre2_compile_context_create_8(nil)
    defer { pcre2_compile_context_free_8(context) }
    pcre2_set_newline_8(context, UInt32(PCRE2_NEWLINE_LF))
    pcre2_set_max_pattern_length_8(context, 1 << 20)
    var number: Int32 = 0
    var offset = 0
    let options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C
    let code = Array(translated.utf8).withUnsafeBufferPointer {
      pcre2_compile_8($0.baseAddress, $0.count, UInt32(options), &number, &offset, context)
    }
    guard let code else {
      throw VocabularyError("the pattern \"\(pattern.prefix(200))\" can't be compiled: \(message(number)) (near \(offset))")
    }
    // Without the compiler (some platforms) matching still works, only slower.
    pcre2_jit_compile_8(code, UInt32(PCRE2_JIT_COMPLETE))
    return code
  }

  private static func message(_ number: Int32) -> String {
    var buffer = [UInt8](repeating: 0, count: 256)
    let count = pcre2_get_error_message_8(number, &buffer, buffer.count)
    return String(decoding: buffer.prefix(max(Int(count), 0)), as: UTF8.self)
  }

  /// Memory for matching, kept from text to text; taken when a pattern first needs it.
  final class Memory {
    fileprivate lazy var handles = Handles()

    fileprivate final class Handles {
      let data: OpaquePointer
      let context: OpaquePointer
      private let stack: OpaquePointer?

      init() {
        data = pcre2_match_data_create_8(1, nil)
        context = pcre2_match_context_create_8(nil)
        pcre2_set_match_limit_8(context, 10_000_000)
        pcre2_set_heap_limit_8(context, 256 * 1024)  // KiB
        stack = pcre2_jit_stack_create_8(32 * 1024, 16 << 20, nil)
        pcre2_jit_stack_assign_8(context, nil, stack.map { UnsafeMutableRawPointer($0) })
      }

      deinit {
        pcre2_match_data_free_8(data)
        pcre2_match_context_free_8(context)
        pcre2_jit_stack_free_8(stack)
      }
    }
  }

  /// Calls `body` with every match from left to right. An empty match right after another one doesn't count.
  func forEachMatch(
    in text: UnsafePointer<UInt8>, _ count: Int, _ memory: Memory, _ body: (_ start: Int, _ end: Int) -> Void
  ) throws {
    var from = 0
    var lastEnd = -1
    let code = try code()
    let memory = memory.handles
    let vector = pcre2_get_ovector_pointer_8(memory.data)!
    while from <= count {
      var result = pcre2_match_8(code, text, count, from, UInt32(PCRE2_NO_UTF_CHECK), memory.data, memory.context)
      if result == PCRE2_ERROR_JIT_STACKLIMIT {
        result = pcre2_match_8(code, text, count, from, UInt32(PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT), memory.data, memory.context)
      }
      if result == PCRE2_ERROR_NOMATCH { return }
      guard result >= 0 else {
        throw TokenizationError(
          "the pattern \"\(pattern.prefix(200))\" gave up on the text at byte \(from): \(Self.message(result))")
      }
      let start = vector[0]
      let end = vector[1]
      // \K can put the start after the end.
      guard start <= end && start >= max(lastEnd, 0) else {
        throw TokenizationError("the pattern \"\(pattern.prefix(200))\" gave a match that runs backwards")
      }
      if start == end && end == lastEnd {
        from += from < count ? UTF8Text.length(text[from]) : 1
        continue
      }
      from = end
      lastEnd = end
      body(start, end)
    }
  }
}
