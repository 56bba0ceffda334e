/// Byte strings to find as prefixes of a text: a tree whose edges live in one hash table, so that building it takes time linear in the
/// bytes whatever they are.
final class ByteTrie: @unchecked Sendable {
  // An edge: node (28 bits), byte (8 bits), child (28 bits). 0 is free: no edge leads to the root.
  private let edges: UnsafeMutablePointer<UInt64>
  private let shift: UInt64
  private let mask: Int
  private let values: UnsafeMutablePointer<Int32>  // of every node; -1: no string ends here
  private let roots: UnsafeMutablePointer<UInt32>  // children of the root by byte

  static let maximumNodes = 1 << 28 - 1

  struct Builder: ~Copyable {
    fileprivate var edges: UnsafeMutablePointer<UInt64>
    fileprivate var bits: UInt64
    fileprivate var values = RawBuffer<Int32>(capacity: 256)

    init(expectedTokens: Int = 256) {
      bits = 8
      while 1 << bits < expectedTokens * 8 && bits < 24 { bits += 1 }
      edges = .allocate(capacity: 1 << Int(bits))
      edges.update(repeating: 0, count: 1 << Int(bits))
      values.append(-1)
    }

    deinit { edges.deallocate() }

    /// Throws ``VocabularyError`` when there is no room left.
    mutating func insert(_ string: UnsafeBufferPointer<UInt8>, value: Int32) throws(VocabularyError) {
      if string.isEmpty { return }
      guard values.count + string.count < ByteTrie.maximumNodes else {
        throw VocabularyError("the tokens have too many bytes in all for a search tree")
      }
      while (values.count + string.count) * 2 > 1 << Int(bits) { rehash() }
      var node: UInt64 = 0
      for byte in string {
        let key = node << 8 | UInt64(byte)
        var slot = Self.slot(key, bits)
        while edges[slot] != 0 && edges[slot] >> 28 != key { slot = (slot + 1) & (1 << Int(bits) - 1) }
        if edges[slot] == 0 {
          edges[slot] = key << 28 | UInt64(values.count)
          values.append(-1)
        }
        node = edges[slot] & 0xFFF_FFFF
      }
      values[Int(node)] = value
    }

    @inline(__always)
    private static func slot(_ key: UInt64, _ bits: UInt64) -> Int { Int((key &* 0x9E37_79B9_7F4A_7C15) >> (64 - bits)) }

    private mutating func rehash() {
      let old = edges
      let count = 1 << Int(bits)
      bits += 1
      edges = .allocate(capacity: 1 << Int(bits))
      edges.update(repeating: 0, count: 1 << Int(bits))
      for i in 0..<count where old[i] != 0 {
        var slot = Self.slot(old[i] >> 28, bits)
        while edges[slot] != 0 { slot = (slot + 1) & (1 << Int(bits) - 1) }
        edges[slot] = old[i]
      }
      old.deallocate()
    }
  }

  init(_ builder: consuming Builder) {
    let count = 1 << Int(builder.bits)
    shift = 64 - builder.bits
    mask = count - 1
    edges = .allocate(capacity: count)
    edges.update(from: builder.edges, count: count)
    values = .allocate(capacity: builder.values.count)
    values.update(from: builder.values.base, count: builder.values.count)
    roots = .allocate(capacity: 256)
    roots.update(repeating: 0, count: 256)
    for byte in 0..<256 { roots[byte] = child(0, UInt8(byte)) }
  }

  deinit {
    edges.deallocate()
    values.deallocate()
    roots.deallocate()
  }

  /// The node an edge leads to, or 0.
  @inline(__always)
  private func child(_ node: UInt32, _ byte: UInt8) -> UInt32 {
    let key = UInt64(node) << 8 | UInt64(byte)
    var slot = Int((key &* 0x9E37_79B9_7F4A_7C15) >> shift)
    while true {
      let edge = edges[slot]
      if edge == 0 { return 0 }
      if edge >> 28 == key { return UInt32(edge & 0xFFF_FFFF) }
      slot = (slot + 1) & mask
    }
  }

  /// The node after one more byte; 0 when no string goes on like this. Begin with node 0.
  @inline(__always)
  func step(_ node: UInt32, _ byte: UInt8) -> UInt32 { node == 0 ? roots[Int(byte)] : child(node, byte) }

  /// The value of the string that ends at a node, or -1.
  @inline(__always)
  func value(_ node: UInt32) -> Int32 { values[Int(node)] }

  /// Whether some string begins with this byte.
  @inline(__always)
  func begins(_ byte: UInt8) -> Bool { roots[Int(byte)] != 0 }

  /// The value and length of the longest string that the text begins with; -1 when there is none.
  /// With `endingCharacters`, only strings that end where a character of the text ends count.
  @inline(__always)
  func longestPrefix(_ text: UnsafePointer<UInt8>, _ count: Int, endingCharacters: Bool = false) -> (value: Int32, length: Int) {
    var best: (value: Int32, length: Int) = (-1, 0)
    var node: UInt32 = 0
    var i = 0
    while i < count {
      node = step(node, text[i])
      if node == 0 { break }
      i += 1
      let value = values[Int(node)]
      if value >= 0 && !(endingCharacters && i < count && text[i] & 0xC0 == 0x80) { best = (value, i) }
    }
    return best
  }
}
