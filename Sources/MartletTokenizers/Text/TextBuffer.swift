/// A text at some stage of its way, and where each byte of it comes from in the text given (when offsets are wanted).
struct TextView {
  var bytes: UnsafePointer<UInt8>
  var count: Int
  /// Of every byte: where the character it comes from begins and ends in the text given. nil when nobody asked for offsets.
  var starts: UnsafePointer<UInt32>?
  var ends: UnsafePointer<UInt32>?
  /// How many bytes at the front come from the first character of the text given.
  var firstCount: Int

  @inline(__always)
  func slice(_ start: Int, _ end: Int) -> TextView {
    TextView(
      bytes: bytes + start, count: end - start, starts: starts.map { $0 + start }, ends: ends.map { $0 + start },
      firstCount: max(0, min(firstCount, end) - start))
  }
}

/// A text being written.
struct TextBuffer: ~Copyable {
  var bytes = RawBuffer<UInt8>(capacity: 1024)
  var starts = RawBuffer<UInt32>(capacity: 1)
  var ends = RawBuffer<UInt32>(capacity: 1)
  var isAligned = false
  private var firstCount = 0
  private var isFirst = true  // nothing from behind the first character has been written yet

  var view: TextView {
    TextView(
      bytes: UnsafePointer(bytes.base), count: bytes.count, starts: isAligned ? UnsafePointer(starts.base) : nil,
      ends: isAligned ? UnsafePointer(ends.base) : nil, firstCount: firstCount)
  }

  mutating func begin(isAligned: Bool) {
    self.isAligned = isAligned
    firstCount = 0
    isFirst = true
    let limit = 1 << 20
    bytes.removeAll(keeping: limit)
    starts.removeAll(keeping: limit)
    ends.removeAll(keeping: limit)
  }

  /// Writes bytes `start` up to `end` of a text as they are.
  @inline(__always)
  mutating func copy(_ source: TextView, _ start: Int, _ end: Int) {
    if start >= end { return }
    if isFirst {
      firstCount += max(0, min(source.firstCount, end) - start)
      isFirst = end <= source.firstCount
    }
    bytes.append(source.bytes + start, count: end - start)
    if isAligned {
      starts.append(source.starts! + start, count: end - start)
      ends.append(source.ends! + start, count: end - start)
    }
  }

  /// Writes a character that comes from the one at byte `place` of a text.
  @inline(__always)
  mutating func append(_ scalar: UInt32, from source: TextView, at place: Int) {
    let before = bytes.count
    UTF8Text.append(scalar, to: &bytes)
    note(bytes.count - before, source, place)
  }

  /// Says where bytes just written come from.
  @inline(__always)
  mutating func note(_ count: Int, _ source: TextView, _ place: Int) {
    if isFirst {
      if place < source.firstCount { firstCount += count } else { isFirst = false }
    }
    if isAligned { align(count, source, place) }
  }

  /// Writes characters that come from the one at byte `place` of a text.
  mutating func append(_ content: UnsafeBufferPointer<UInt8>, from source: TextView, at place: Int) {
    guard let base = content.baseAddress else { return }
    bytes.append(base, count: content.count)
    note(content.count, source, place)
  }

  @inline(never)
  private mutating func align(_ count: Int, _ source: TextView, _ place: Int) {
    if source.count == 0 {
      starts.append(repeating: 0, count: count)
      ends.append(repeating: 0, count: count)
    } else {
      starts.append(repeating: source.starts![place], count: count)
      ends.append(repeating: source.ends![place], count: count)
    }
  }
}
