/// The tokens of words seen before. Bounded: when full it is emptied.
struct WordCache: ~Copyable {
  /// Longer words are not kept.
  static let longestWord = 64

  // Not private: the debug compiler can't destroy a buffer of a private type from another file.
  struct Slot {
    var tag: UInt32
    var key: UInt32
    var ids: UInt32
    var length: UInt16  // 0: free
    var count: UInt16
  }

  private var slots = RawBuffer<Slot>(capacity: 1)
  private var mask = 0
  private var used = 0
  private var keys = RawBuffer<UInt8>(capacity: 1 << 14)
  private var ids = RawBuffer<Int32>(capacity: 1 << 13)
  private let seed = ByteHash.seed
  private static let maximumSlots = 1 << 17

  init() { resize(1 << 12) }

  private mutating func resize(_ size: Int) {
    slots = RawBuffer<Slot>(capacity: size)
    slots.append(repeating: Slot(tag: 0, key: 0, ids: 0, length: 0, count: 0), count: size)
    mask = size - 1
    used = 0
  }

  @inline(__always)
  func hash(_ word: UnsafePointer<UInt8>, _ count: Int) -> UInt64 { ByteHash.hash(word, count, seed: seed) }

  /// Writes the word's tokens; false when it isn't known.
  @inline(__always)
  func append(_ word: UnsafePointer<UInt8>, _ count: Int, _ hash: UInt64, to sink: inout TokenSink) -> Bool {
    let tag = UInt32(truncatingIfNeeded: hash >> 32)
    var place = Int(truncatingIfNeeded: hash) & mask
    while true {
      let slot = slots[place]
      if slot.length == 0 { return false }
      if slot.tag == tag, Int(slot.length) == count, ByteHash.equal(keys.base + Int(slot.key), word, count) {
        if slot.count == 1 {
          sink.ids.append(ids[Int(slot.ids)])
        } else {
          sink.ids.append(ids.base + Int(slot.ids), count: Int(slot.count))
        }
        return true
      }
      place = (place + 1) & mask
    }
  }

  mutating func insert(_ word: UnsafePointer<UInt8>, _ count: Int, _ hash: UInt64, _ tokens: UnsafeBufferPointer<Int32>) {
    if tokens.count > 255 { return }
    if (used + 1) * 3 > (mask + 1) * 2 { grow() }
    var place = Int(truncatingIfNeeded: hash) & mask
    while slots[place].length != 0 { place = (place + 1) & mask }
    slots[place] = Slot(
      tag: UInt32(truncatingIfNeeded: hash >> 32), key: UInt32(keys.count), ids: UInt32(ids.count), length: UInt16(count),
      count: UInt16(tokens.count))
    keys.append(word, count: count)
    if let base = tokens.baseAddress { ids.append(base, count: tokens.count) }
    used += 1
  }

  private mutating func grow() {
    if mask + 1 >= Self.maximumSlots {
      resize(1 << 14)
      keys.removeAll()
      ids.removeAll()
      return
    }
    var old = RawBuffer<Slot>(capacity: 1)
    swap(&slots, &old)
    resize((mask + 1) * 4)
    for i in 0..<old.count where old[i].length != 0 {
      let slot = old[i]
      var place = Int(truncatingIfNeeded: hash(keys.base + Int(slot.key), Int(slot.length))) & mask
      while slots[place].length != 0 { place = (place + 1) & mask }
      slots[place] = slot
      used += 1
    }
  }
}
