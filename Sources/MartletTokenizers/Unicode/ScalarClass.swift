/// What the tokenizers ask about a character. Bits, so that one look at a table answers.
///
/// The sets are those of the Python package `tokenizers`: see `UnicodeData`.
struct ScalarClass: OptionSet, Sendable {
  let rawValue: UInt16

  /// `\p{L}`
  static let letter = ScalarClass(rawValue: 1 << 0)
  /// `\p{N}`
  static let number = ScalarClass(rawValue: 1 << 1)
  /// `\s`, White_Space
  static let space = ScalarClass(rawValue: 1 << 2)
  /// `\p{M}`
  static let mark = ScalarClass(rawValue: 1 << 3)
  /// `\p{P}`
  static let punctuation = ScalarClass(rawValue: 1 << 4)
  /// `\p{S}`
  static let symbol = ScalarClass(rawValue: 1 << 5)
  /// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}]`
  static let upper = ScalarClass(rawValue: 1 << 6)
  /// `[\p{Ll}\p{Lm}\p{Lo}]`
  static let lower = ScalarClass(rawValue: 1 << 7)
  /// `\w` of patterns
  static let word = ScalarClass(rawValue: 1 << 8)
  /// What BERT takes for punctuation: also the ASCII symbols
  static let bertPunctuation = ScalarClass(rawValue: 1 << 9)
  /// What BERT's cleaning removes
  static let bertControl = ScalarClass(rawValue: 1 << 10)
  /// What BERT's stripping of accents removes
  static let nonspacing = ScalarClass(rawValue: 1 << 11)
  /// What StripAccents removes
  static let combining = ScalarClass(rawValue: 1 << 12)
  /// `\w` of the Whitespace pre-tokenizer and of whole-word tokens
  static let whitespaceWord = ScalarClass(rawValue: 1 << 13)
  /// What Digits separates
  static let numeric = ScalarClass(rawValue: 1 << 14)
}

/// A value for every code point in pages of 256; equal pages are stored once.
struct ScalarTable<Value: BitwiseCopyable & Equatable>: @unchecked Sendable {
  private let pages: UnsafeMutablePointer<UInt16>
  private let values: UnsafeMutablePointer<Value>

  /// From runs in rising order. Tables live as long as the process.
  init(_ runs: [(start: Int, length: Int, value: Value)], default zero: Value) {
    pages = .allocate(capacity: 0x1100)
    pages.update(repeating: 0, count: 0x1100)
    var storage = [Value](repeating: zero, count: 256)  // page 0: nothing but the default
    for run in runs {
      for scalar in run.start..<(run.start + run.length) {
        let page = scalar >> 8
        if pages[page] == 0 {
          pages[page] = UInt16(storage.count >> 8)
          storage.append(contentsOf: repeatElement(zero, count: 256))
        }
        storage[Int(pages[page]) << 8 | scalar & 0xFF] = run.value
      }
    }
    values = .allocate(capacity: storage.count)
    storage.withUnsafeBufferPointer { values.update(from: $0.baseAddress!, count: $0.count) }
  }

  @inline(__always)
  subscript(scalar: UInt32) -> Value { values[Int(pages[Int(scalar >> 8)]) << 8 | Int(scalar & 0xFF)] }
}

/// The tables of characters, made from `UnicodeData` when first needed (well under a millisecond each).
enum UnicodeTables {
  static let classes: ScalarTable<UInt16> = ScalarTable(runs(UnicodeData.classes).map { ($0, $1, UInt16($2)) }, default: 0)

  static let combiningClasses: ScalarTable<UInt8> =
    ScalarTable(runs(UnicodeData.combiningClasses).map { ($0, $1, UInt8($2)) }, default: 0)

  static let lowercase = ScalarMappings([UnicodeData.lowercase])
  static let canonical = ScalarMappings([UnicodeData.canonical])
  static let compatibility = ScalarMappings([UnicodeData.canonical, UnicodeData.compatibility])

  /// The composite of a pair of scalars, by first << 32 | second.
  static let compositions: [UInt64: UInt32] = {
    var result: [UInt64: UInt32] = [:]
    forEachItem(UnicodeData.compositions) { numbers in
      result[UInt64(numbers[0]) << 32 | UInt64(numbers[1])] = UInt32(numbers[2])
    }
    return result
  }()

  /// Scalars that may join the one before them when composed (besides the Hangul vowels and finals).
  static let joins: ScalarTable<Bool> = {
    let second = Set(compositions.keys.map { Int($0 & 0xFFFF_FFFF) }).sorted()
    return ScalarTable(second.map { ($0, 1, true) }, default: false)
  }()

  private static func runs(_ text: StaticString) -> [(start: Int, length: Int, value: Int)] {
    var result: [(start: Int, length: Int, value: Int)] = []
    var end = 0
    forEachItem(text) { numbers in
      result.append((end + numbers[0], numbers[1], numbers[2]))
      end += numbers[0] + numbers[1]
    }
    return result
  }

  /// Hexadecimal numbers between blanks, items ended by semicolons.
  static func forEachItem(_ text: StaticString, _ body: ([Int]) -> Void) {
    var numbers: [Int] = []
    var number = 0
    var hasDigits = false
    for byte in UnsafeBufferPointer(start: text.utf8Start, count: text.utf8CodeUnitCount) {
      switch byte {
      case UInt8(ascii: "0")...UInt8(ascii: "9"):
        number = number << 4 | Int(byte - UInt8(ascii: "0"))
        hasDigits = true
      case UInt8(ascii: "A")...UInt8(ascii: "F"):
        number = number << 4 | Int(byte - UInt8(ascii: "A") + 10)
        hasDigits = true
      default:
        if hasDigits { numbers.append(number) }
        number = 0
        hasDigits = false
        if byte == UInt8(ascii: ";") {
          body(numbers)
          numbers.removeAll(keepingCapacity: true)
        }
      }
    }
  }
}

/// Characters that become one or more others.
struct ScalarMappings: @unchecked Sendable {
  private let index: ScalarTable<UInt32>  // 0: maps to itself; else place in `pool`, where the count comes first
  private let pool: UnsafeMutablePointer<UInt32>

  fileprivate init(_ texts: [StaticString]) {
    var storage: [UInt32] = [0]
    var places: [Int: UInt32] = [:]
    for text in texts {
      var scalar = 0
      UnicodeTables.forEachItem(text) { numbers in
        scalar += numbers[0]
        places[scalar] = UInt32(storage.count)  // a later list wins
        storage.append(UInt32(numbers.count - 1))
        storage.append(contentsOf: numbers.dropFirst().map { UInt32($0) })
      }
    }
    index = ScalarTable(places.sorted { $0.key < $1.key }.map { ($0.key, 1, $0.value) }, default: 0)
    pool = .allocate(capacity: storage.count)
    storage.withUnsafeBufferPointer { pool.update(from: $0.baseAddress!, count: $0.count) }
  }

  /// What the scalar becomes; nil when it stays.
  @inline(__always)
  subscript(scalar: UInt32) -> UnsafeBufferPointer<UInt32>? {
    let place = Int(index[scalar])
    if place == 0 { return nil }
    return UnsafeBufferPointer(start: pool + place + 1, count: Int(pool[place]))
  }
}

/// The classes of a character.
@inline(__always)
func scalarClass(_ scalar: UInt32, _ table: ScalarTable<UInt16>) -> ScalarClass { ScalarClass(rawValue: table[scalar]) }
