import Foundation

/// Texts with class names, read from a file of records or from a folder with one subfolder a class.
struct LabelledText {
  struct Record {
    let text: [UInt8]
    let label: String
    /// Where it stands, for errors.
    let place: String
  }

  private(set) var records: [Record] = []

  private static let textNames = ["text", "sentence", "review", "content", "source"]
  private static let labelNames = ["label", "target", "class", "sentiment"]
  static let endings = ["tsv", "csv", "jsonl"]

  /// Reads a `.tsv`, `.csv` or `.jsonl` file (each maybe `.gz`).
  ///
  /// - TSV: a text and a label divided by a tab, without quoting. CSV: fields may be quoted, then hold commas, line ends and doubled
  ///   quotes. In both a first line with names (text, sentence, … and label, target, …) says which columns count; without one there
  ///   must be two columns, one of them integers.
  /// - JSONL: an object a line, with one of those keys each.
  ///
  /// Throws `DataError` with file and line for a line of another form.
  init(file path: String) throws {
    let plain = path.hasSuffix(".gz") ? String(path.dropLast(3)) : path
    let ending = plain.split(separator: ".").last.map(String.init)?.lowercased() ?? ""
    switch ending {
    case "tsv": try readTable(path, separator: UInt8(ascii: "\t"), isQuoted: false)
    case "csv": try readTable(path, separator: UInt8(ascii: ","), isQuoted: true)
    case "jsonl": try readJSONLines(path)
    default: throw DataError(path, "a file of texts ends in .tsv, .csv or .jsonl, maybe with .gz behind")
    }
    guard !records.isEmpty else { throw DataError(path, "the file holds no texts") }
  }

  /// Reads a folder whose subfolders are classes and hold one text a file (`pos/0_9.txt`).
  init(classFolders folder: String) throws {
    for label in try Self.subfolders(folder) {
      let path = folder + "/" + label
      for name in try Self.entries(path) where name.hasSuffix(".txt") || name.hasSuffix(".txt.gz") {
        let text = try ByteReader(path: path + "/" + name).readAll(limit: 1 << 28)
        guard !text.isEmpty else { throw DataError(path + "/" + name, "the file is empty") }
        records.append(Record(text: text, label: label, place: path + "/" + name))
      }
    }
    guard !records.isEmpty else { throw DataError(folder, "no *.txt files were found in its subfolders") }
  }

  private init(records: [Record]) { self.records = records }

  static func entries(_ folder: String) throws -> [String] {
    do { return try FileManager.default.contentsOfDirectory(atPath: folder).sorted() } catch {
      throw DataError(folder, "the folder can't be read: \(error.localizedDescription)")
    }
  }

  /// Names of the subfolders that are classes; `unsup` in the IMDb release holds texts without a label.
  static func subfolders(_ folder: String) throws -> [String] {
    try entries(folder).filter { name in
      var isDirectory: ObjCBool = false
      return name != "unsup" && FileManager.default.fileExists(atPath: folder + "/" + name, isDirectory: &isDirectory)
        && isDirectory.boolValue
    }
  }

  /// Takes `parts` fractions of the records, in a random order that the seed determines.
  func cut(_ parts: [Double], seed: UInt64) -> [LabelledText] {
    var random = SeededRandom(seed: seed, stream: 0x7465_7874)
    let order = random.permutation(records.count)
    var start = 0
    var taken = 0.0
    return parts.map { part in
      taken += part
      let end = min(records.count, Int((taken * Double(records.count)).rounded()))
      defer { start = end }
      return LabelledText(records: order[start..<end].map { records[$0] })
    }
  }

  // MARK: Tables

  private mutating func readTable(_ path: String, separator: UInt8, isQuoted: Bool) throws {
    let lines = try LineReader(path: path)
    var columns: (text: Int, label: Int, count: Int)?
    var blank: Int?
    while let line = try lines.next() {
      let first = lines.number
      if line.isEmpty {
        blank = blank ?? first
        continue
      }
      if let blank { throw DataError(path, line: blank, "an empty line stands among the texts") }
      let fields =
        isQuoted
        ? try Self.quotedFields(line, separator: separator, lines)
        : line.split(separator: separator, omittingEmptySubsequences: false).map(Array.init)
      guard let known = columns else {
        let (found, isHeader) = try Self.columns(fields, path: path, line: first)
        columns = found
        if !isHeader { try append(fields, found, path: path, line: first) }
        continue
      }
      try append(fields, known, path: path, line: first)
    }
  }

  private mutating func append(_ fields: [[UInt8]], _ columns: (text: Int, label: Int, count: Int), path: String, line: Int) throws {
    guard fields.count == columns.count else {
      throw DataError(path, line: line, "\(columns.count) columns were expected, found \(fields.count)")
    }
    let label = Self.trimmed(fields[columns.label])
    guard !label.isEmpty else { throw DataError(path, line: line, "the label is empty") }
    guard !fields[columns.text].isEmpty else { throw DataError(path, line: line, "the text is empty") }
    records.append(Record(text: fields[columns.text], label: label, place: "\(path):\(line)"))
  }

  private static func trimmed(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self).trimmingCharacters(in: .whitespaces) }

  private static func columns(
    _ fields: [[UInt8]], path: String, line: Int
  ) throws -> (columns: (text: Int, label: Int, count: Int), isHeader: Bool) {
    let names = fields.map { trimmed($0).lowercased() }
    let text = names.firstIndex { textNames.contains($0) }
    let label = names.firstIndex { labelNames.contains($0) }
    if let text, let label { return ((text, label, fields.count), true) }
    guard fields.count == 2 else {
      throw DataError(
        path, line: line,
        "a text and a label were expected, found \(fields.count) column\(fields.count == 1 ? "" : "s") and no header that names the text (\(textNames.joined(separator: ", "))) and the label (\(labelNames.joined(separator: ", ")))"
      )
    }
    if Int(names[1]) != nil { return ((0, 1, 2), false) }
    if Int(names[0]) != nil { return ((1, 0, 2), false) }
    throw DataError(path, line: line, "neither column is an integer: a header with the names text and label must say which is the label")
  }

  /// The fields of a record that begins with `line`; a quoted field may go on over further lines.
  private static func quotedFields(_ line: [UInt8], separator: UInt8, _ lines: LineReader) throws -> [[UInt8]] {
    let quote = UInt8(ascii: "\"")
    let first = lines.number
    var fields: [[UInt8]] = []
    var field: [UInt8] = []
    var rest = line[...]
    var isInside = false
    var wasQuoted = false
    while true {
      guard let byte = rest.popFirst() else {
        guard isInside else { break }
        guard let next = try lines.next() else { throw DataError(lines.path, line: first, "a quoted field is not closed") }
        field.append(10)
        rest = next[...]
        continue
      }
      if isInside {
        if byte != quote {
          field.append(byte)
        } else if rest.first == quote {
          field.append(quote)
          rest.removeFirst()
        } else {
          isInside = false
        }
      } else if byte == separator {
        fields.append(field)
        field = []
        wasQuoted = false
      } else if byte == quote && field.isEmpty && !wasQuoted {
        isInside = true
        wasQuoted = true
      } else {
        guard !wasQuoted else { throw DataError(lines.path, line: lines.number, "something follows the closing quote of a field") }
        field.append(byte)
      }
    }
    return fields + [field]
  }

  // MARK: JSON lines

  private mutating func readJSONLines(_ path: String) throws {
    let lines = try LineReader(path: path)
    var blank: Int?
    while let line = try lines.next() {
      if line.isEmpty {
        blank = blank ?? lines.number
        continue
      }
      if let blank { throw DataError(path, line: blank, "an empty line stands among the texts") }
      guard let object = (try? JSONSerialization.jsonObject(with: Data(line))) as? [String: Any] else {
        throw DataError(path, line: lines.number, "a JSON object was expected")
      }
      guard let text = Self.textNames.lazy.compactMap({ object[$0] as? String }).first, !text.isEmpty else {
        throw DataError(path, line: lines.number, "the object has no text under \(Self.textNames.joined(separator: ", "))")
      }
      guard let label = Self.labelNames.lazy.compactMap({ object[$0].flatMap(Self.label) }).first, !label.isEmpty else {
        throw DataError(
          path, line: lines.number, "the object has no label (a string or an integer) under \(Self.labelNames.joined(separator: ", "))")
      }
      records.append(Record(text: Array(text.utf8), label: label, place: "\(path):\(lines.number)"))
    }
  }

  private static func label(_ value: Any) -> String? {
    if let text = value as? String { return text }
    return (value as? Int).map(String.init)
  }
}
