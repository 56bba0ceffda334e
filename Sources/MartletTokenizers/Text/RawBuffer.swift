/// A growing array of plain values for the hot loops: no copies on write, no bounds checks, memory kept when emptied.
///
/// It owns its memory and can't be copied; whoever holds it is alone in changing it.
struct RawBuffer<Element: BitwiseCopyable>: ~Copyable, @unchecked Sendable {
  private(set) var base: UnsafeMutablePointer<Element>
  private(set) var capacity: Int
  var count = 0

  init(capacity: Int = 64) {
    self.capacity = max(capacity, 1)
    base = .allocate(capacity: self.capacity)
  }

  deinit { base.deallocate() }

  /// Makes room for `extra` more elements.
  @inline(__always)
  mutating func reserve(_ extra: Int) {
    if count + extra > capacity { grow(count + extra) }
  }

  @inline(never)
  private mutating func grow(_ wanted: Int) {
    capacity = max(wanted, capacity * 2)
    let larger = UnsafeMutablePointer<Element>.allocate(capacity: capacity)
    larger.update(from: base, count: count)
    base.deallocate()
    base = larger
  }

  @inline(__always)
  mutating func append(_ element: Element) {
    if count == capacity { grow(count + 1) }
    base[count] = element
    count += 1
  }

  @inline(__always)
  mutating func append(_ source: UnsafePointer<Element>, count extra: Int) {
    reserve(extra)
    (base + count).update(from: source, count: extra)
    count += extra
  }

  @inline(__always)
  mutating func append(repeating element: Element, count extra: Int) {
    reserve(extra)
    (base + count).update(repeating: element, count: extra)
    count += extra
  }

  /// Empties the buffer, and gives memory above `keeping` elements back.
  mutating func removeAll(keeping: Int = .max) {
    count = 0
    if capacity > keeping {
      base.deallocate()
      capacity = max(keeping, 1)
      base = .allocate(capacity: capacity)
    }
  }

  @inline(__always)
  subscript(index: Int) -> Element {
    get { base[index] }
    set { base[index] = newValue }
  }

  var buffer: UnsafeBufferPointer<Element> { UnsafeBufferPointer(start: base, count: count) }
}
