/// Unicode's normalization forms (UAX #15), with the tables of `UnicodeData`.
enum NormalizationForm: Sendable {
  case nfc, nfd, nfkc, nfkd

  var composes: Bool { self == .nfc || self == .nfkc }
  var isCompatible: Bool { self == .nfkc || self == .nfkd }

  /// What a scalar needs: 0 nothing, 1 it changes but nothing before it matters, 2 it may join or move before what precedes it.
  private static let nfcNeeds = needs(.nfc)
  private static let nfdNeeds = needs(.nfd)
  private static let nfkcNeeds = needs(.nfkc)
  private static let nfkdNeeds = needs(.nfkd)

  private var needs: ScalarTable<UInt8> {
    switch self {
    case .nfc: Self.nfcNeeds
    case .nfd: Self.nfdNeeds
    case .nfkc: Self.nfkcNeeds
    case .nfkd: Self.nfkdNeeds
    }
  }

  private static func needs(_ form: NormalizationForm) -> ScalarTable<UInt8> {
    let mappings = form.isCompatible ? UnicodeTables.compatibility : UnicodeTables.canonical
    let classes = UnicodeTables.combiningClasses
    let joins = UnicodeTables.joins
    let composites = form.composes ? Set(UnicodeTables.compositions.values) : []
    func leans(_ scalar: UInt32) -> Bool {
      classes[scalar] != 0
        || form.composes && (joins[scalar] || Hangul.vowels.contains(scalar) || Hangul.finals.contains(scalar))
    }
    var runs: [(start: Int, length: Int, value: UInt8)] = []
    // Nothing below U+00A0 maps, joins or moves.
    for scalar in UInt32(0xA0)..<0x30000 {
      let value: UInt8
      if Hangul.syllables.contains(scalar) {
        value = form.composes ? 0 : 1
      } else if let mapped = mappings[scalar] {
        let isStable =
          composites.contains(scalar)
          && (!form.isCompatible || UnicodeTables.canonical[scalar].map { $0.elementsEqual(mapped) } ?? false)
        value = leans(mapped[0]) || leans(scalar) ? 2 : isStable ? 0 : 1
      } else {
        value = leans(scalar) ? 2 : 0
      }
      guard value > 0 else { continue }
      if let last = runs.last, last.start + last.length == Int(scalar), last.value == value {
        runs[runs.count - 1].length += 1
      } else {
        runs.append((Int(scalar), 1, value))
      }
    }
    return ScalarTable(runs, default: 0)
  }

  /// Writes the normalized text to `out`; false, with nothing written, when the text is normalized already.
  func apply(_ text: TextView, into out: inout TextBuffer, _ scratch: inout NormalizationScratch) -> Bool {
    let bytes = text.bytes
    let count = text.count
    if UTF8Text.isASCII(bytes, count) { return false }
    let needs = needs
    var copied = 0
    var segment = 0
    var isDirty = false
    var hasWritten = false
    var position = 0
    while position < count {
      if bytes[position] < 0x80 {
        if isDirty {
          flush(text, copied, segment, position, &out, &scratch)
          copied = position
          hasWritten = true
          isDirty = false
        }
        segment = position
        position += 1
        continue
      }
      let (scalar, length) = UTF8Text.scalar(bytes + position)
      let need = needs[scalar]
      if need < 2 {
        if isDirty {
          flush(text, copied, segment, position, &out, &scratch)
          copied = position
          hasWritten = true
        }
        segment = position
        isDirty = need == 1
      } else {
        isDirty = true
      }
      position += length
    }
    if isDirty {
      flush(text, copied, segment, count, &out, &scratch)
      copied = count
      hasWritten = true
    }
    if !hasWritten { return false }
    out.copy(text, copied, count)
    return true
  }

  /// Copies what stays, and writes the segment that doesn't.
  private func flush(
    _ text: TextView, _ copied: Int, _ start: Int, _ end: Int, _ out: inout TextBuffer, _ scratch: inout NormalizationScratch
  ) {
    out.copy(text, copied, start)
    let mappings = isCompatible ? UnicodeTables.compatibility : UnicodeTables.canonical
    let classes = UnicodeTables.combiningClasses
    scratch.items.count = 0
    var position = start
    while position < end {
      let (scalar, length) = UTF8Text.scalar(text.bytes + position)
      let place = UInt32(position)
      if Hangul.syllables.contains(scalar) {
        let index = scalar - Hangul.syllables.lowerBound
        scratch.append(Hangul.leads.lowerBound + index / 588, 0, place)
        scratch.append(Hangul.vowels.lowerBound + index % 588 / 28, 0, place)
        if index % 28 > 0 { scratch.append(Hangul.finals.lowerBound - 1 + index % 28, 0, place) }
      } else if let mapped = mappings[scalar] {
        for part in mapped { scratch.append(part, classes[part], place) }
      } else {
        scratch.append(scalar, classes[scalar], place)
      }
      position += length
    }
    scratch.reorder()
    if composes { scratch.compose() }
    for i in 0..<scratch.items.count {
      let item = scratch.items[i]
      out.append(item.scalar, from: text, at: Int(item.place))
    }
  }
}

enum Hangul {
  static let syllables: Range<UInt32> = 0xAC00..<0xD7A4
  static let leads: Range<UInt32> = 0x1100..<0x1113
  static let vowels: Range<UInt32> = 0x1161..<0x1176
  static let finals: Range<UInt32> = 0x11A8..<0x11C3
}

/// A few characters being put in order.
struct NormalizationScratch: ~Copyable {
  struct Item {
    var scalar: UInt32
    var place: UInt32
    var combiningClass: UInt8

    /// Becomes another character, at the same place of the text (as the library aligns marks it reorders).
    mutating func take(_ other: Item) {
      scalar = other.scalar
      combiningClass = other.combiningClass
    }
  }
  var items = RawBuffer<Item>()

  @inline(__always)
  mutating func append(_ scalar: UInt32, _ combiningClass: UInt8, _ place: UInt32) {
    items.append(Item(scalar: scalar, place: place, combiningClass: combiningClass))
  }

  /// Sorts every run of combining marks by class, keeping the order of equals and the places.
  mutating func reorder() {
    let base = items.base
    let count = items.count
    var start = 0
    while start < count {
      if base[start].combiningClass == 0 {
        start += 1
        continue
      }
      var end = start + 1
      var isSorted = true
      while end < count && base[end].combiningClass != 0 {
        if base[end].combiningClass < base[end - 1].combiningClass { isSorted = false }
        end += 1
      }
      if !isSorted {
        if end - start <= 32 {
          for i in (start + 1)..<end {
            let item = base[i]
            var j = i
            while j > start && base[j - 1].combiningClass > item.combiningClass {
              base[j].take(base[j - 1])
              j -= 1
            }
            base[j].take(item)
          }
        } else {
          // A hostile text stacks thousands of marks: the standard library's sort is stable and n log n.
          let sorted = UnsafeBufferPointer(start: base + start, count: end - start).sorted { $0.combiningClass < $1.combiningClass }
          for (i, item) in sorted.enumerated() { base[start + i].take(item) }
        }
      }
      start = end
    }
  }

  /// Joins marks, vowels and finals to the starter before them where a composite exists and nothing stands between.
  mutating func compose() {
    let base = items.base
    let count = items.count
    var starter = -1
    var written = 0
    var lastClass = -1  // of what stands between the starter and here; -1: nothing
    for i in 0..<count {
      let item = base[i]
      if starter >= 0 && lastClass < Int(item.combiningClass) || starter >= 0 && lastClass == -1 {
        if let composite = Self.composite(base[starter].scalar, item.scalar) {
          base[starter].scalar = composite
          continue
        }
      }
      if item.combiningClass == 0 {
        starter = written
        lastClass = -1
      } else {
        lastClass = Int(item.combiningClass)
      }
      base[written] = item
      written += 1
    }
    items.count = written
  }

  private static func composite(_ first: UInt32, _ second: UInt32) -> UInt32? {
    if Hangul.leads.contains(first) && Hangul.vowels.contains(second) {
      return Hangul.syllables.lowerBound + ((first - Hangul.leads.lowerBound) * 21 + second - Hangul.vowels.lowerBound) * 28
    }
    if Hangul.syllables.contains(first) && (first - Hangul.syllables.lowerBound) % 28 == 0 && Hangul.finals.contains(second) {
      return first + second - Hangul.finals.lowerBound + 1
    }
    return UnicodeTables.compositions[UInt64(first) << 32 | UInt64(second)]
  }
}
