/// The script of a character as SentencePiece groups them: Hiragana, Katakana and the long-vowel mark count as Han, blanks as anything.
enum UnicodeScript {
  /// No script seen yet.
  static let none = UInt8(0)
  static let any = UInt8(1)

  static func of(_ scalar: UInt32) -> UInt8 { scalar == 0x20 ? any : table[scalar] }

  private static let table: ScalarTable<UInt8> = {
    var runs: [(start: Int, length: Int, value: UInt8)] = []
    var end = 0
    UnicodeTables.forEachItem(UnicodeData.scripts) { numbers in
      runs.append((end + numbers[0], numbers[1], UInt8(numbers[2])))
      end += numbers[0] + numbers[1]
    }
    return ScalarTable(runs, default: 1)
  }()
}
