import Foundation
import MartletCatalog

/// Texts with labels from a file: tab-separated, or JSON lines where the name ends in .jsonl or .json.
///
/// A tab-separated file may begin with a line of column names, of which one must be a text's (`text`, `sentence`, …) and one `label`;
/// without names a line is text, tab, label, or text, tab, second text, tab, label. JSON objects have the same names.
struct LabelledLines {
  struct Record {
    var text: String
    var pair: String?
    var label: String?
  }

  private(set) var records: [Record] = []

  private static let textNames = ["text", "sentence", "sentence1", "text_a", "question", "premise", "query", "review", "content"]
  private static let pairNames = ["text_pair", "sentence2", "text_b", "hypothesis", "passage", "document"]
  private static let labelNames = ["label", "labels", "class", "target"]

  /// Throws `FileError` that names the line.
  init(_ path: String) throws {
    let isJSON = path.hasSuffix(".jsonl") || path.hasSuffix(".json")
    var reader = try LineReader(path)
    var columns: (text: Int, pair: Int?, label: Int?, count: Int)?
    var number = 0
    while let batch = try reader.next() {
      for range in batch.lines {
        number += 1
        var line = batch.text(range)
        if line.hasSuffix("\r") { line.removeLast() }
        if line.isEmpty { continue }
        if isJSON {
          records.append(try Self.record(json: line, file: path, number: number))
          continue
        }
        let fields = line.split(separator: "\t", omittingEmptySubsequences: false).map(String.init)
        if number == 1, let named = Self.columns(fields) {
          columns = named
          continue
        }
        let layout = columns ?? Self.usualColumns(fields.count)
        columns = layout
        guard let layout, fields.count == layout.count else {
          throw FileError(
            path,
            "line \(number) has \(fields.count) columns; "
              + (layout.map { "the lines before have \($0.count)" } ?? "text, an optional second text and a label were expected"))
        }
        records.append(
          Record(text: fields[layout.text], pair: layout.pair.map { fields[$0] }, label: layout.label.map { fields[$0] }))
      }
    }
    guard !records.isEmpty else { throw FileError(path, "has no texts") }
  }

  private static func columns(_ names: [String]) -> (text: Int, pair: Int?, label: Int?, count: Int)? {
    let names = names.map { $0.lowercased().trimmingCharacters(in: .whitespaces) }
    guard let text = names.firstIndex(where: textNames.contains), names.contains(where: labelNames.contains) || names.count == 1 else {
      return nil
    }
    return (text, names.firstIndex(where: pairNames.contains), names.firstIndex(where: labelNames.contains), names.count)
  }

  private static func usualColumns(_ count: Int) -> (text: Int, pair: Int?, label: Int?, count: Int)? {
    switch count {
    case 1: (0, nil, nil, 1)
    case 2: (0, nil, 1, 2)
    case 3: (0, 1, 2, 3)
    default: nil
    }
  }

  private static func record(json line: String, file: String, number: Int) throws -> Record {
    let value: JSONValue
    do { value = try JSONValue.parse(line) } catch { throw FileError(file, "line \(number) is not valid JSON: \(error)") }
    guard let object = value.objectValue else { throw FileError(file, "line \(number) is \(value.kindDescription), not an object") }
    func string(_ names: [String]) -> String? { names.lazy.compactMap { object[$0]?.stringValue }.first }
    guard let text = string(textNames) else {
      throw FileError(file, "line \(number) has no text: one of the keys \(textNames.joined(separator: ", ")) was expected")
    }
    let label = labelNames.lazy.compactMap { object[$0] }.first
    return Record(text: text, pair: string(pairNames), label: label.flatMap { $0.stringValue ?? $0.intValue.map(String.init) })
  }

  /// The classes' numbers, by name or by number; nil for texts without labels. Throws `FileError` for an unknown label.
  func classes(_ names: [String], count: Int, file: String) throws -> [Int?] {
    let byName = Dictionary(names.enumerated().map { ($1.lowercased(), $0) }, uniquingKeysWith: { first, _ in first })
    return try records.enumerated().map { i, record in
      guard let label = record.label else { return nil }
      if let found = byName[label.lowercased()] { return found }
      if let number = Int(label), (0..<count).contains(number) { return number }
      throw FileError(
        file,
        "record \(i + 1): the label “\(Output.shortened(label, to: 40))” is no class of the model.\(Suggestions.phrase(for: label, in: names)) "
          + "It has \(count): \(names.isEmpty ? "numbers from 0" : names.prefix(20).joined(separator: ", "))")
    }
  }
}
