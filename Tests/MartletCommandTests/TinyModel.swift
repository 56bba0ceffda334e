import Foundation
import MartletCatalog

/// Folders of small checkpoints with a tokenizer that fits their 64 tokens: single letters, as WordPiece spells them.
enum TinyModel {
  /// The checkpoints of the models' tests, made by transformers.
  static let checkpoints = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .appendingPathComponent("MartletModelsTests/Fixtures/checkpoints").path

  static let tokens = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"] + letters.map(String.init) + letters.map { "##\($0)" } + ["!", "?"]
  private static let letters = "abcdefghijklmnopqrstuvwxyz"

  /// - Parameter special: whether texts begin with [CLS] and end with [SEP], as an encoder's do.
  static func tokenizerJSON(special: Bool) -> String {
    var vocabulary = JSONObject()
    for (id, token) in tokens.enumerated() { vocabulary[token] = .integer(id) }
    let added: [JSONValue] = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"].enumerated().map { id, token in
      [
        "id": .integer(id), "content": .string(token), "special": true, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false,
      ]
    }
    func token(_ name: String, _ type: Int) -> JSONValue { ["SpecialToken": ["id": .string(name), "type_id": .integer(type)]] }
    func text(_ name: String, _ type: Int) -> JSONValue { ["Sequence": ["id": .string(name), "type_id": .integer(type)]] }
    let template: JSONValue = [
      "type": "TemplateProcessing", "single": [token("[CLS]", 0), text("A", 0), token("[SEP]", 0)],
      "pair": [token("[CLS]", 0), text("A", 0), token("[SEP]", 0), text("B", 1), token("[SEP]", 1)],
      "special_tokens": [
        "[CLS]": ["id": "[CLS]", "ids": [.integer(1)], "tokens": ["[CLS]"]],
        "[SEP]": ["id": "[SEP]", "ids": [.integer(2)], "tokens": ["[SEP]"]],
      ],
    ]
    let file: JSONValue = [
      "version": "1.0", "truncation": .null, "padding": .null, "added_tokens": .array(added),
      "normalizer": [
        "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": .null, "lowercase": true,
      ],
      "pre_tokenizer": ["type": "BertPreTokenizer"], "post_processor": special ? template : .null,
      "decoder": ["type": "WordPiece", "prefix": "##", "cleanup": true],
      "model": [
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": .integer(100),
        "vocab": .object(vocabulary),
      ],
    ]
    return file.serialized()
  }

  /// Copies a checkpoint into `folder`, with a tokenizer and a chat template. Returns the model's path.
  static func make(_ name: String, in folder: String, special: Bool = false) throws -> String {
    let path = folder + "/" + name
    try FileManager.default.copyItem(atPath: checkpoints + "/" + name, toPath: path)
    try tokenizerJSON(special: special).write(toFile: path + "/tokenizer.json", atomically: true, encoding: .utf8)
    let configuration: JSONValue = [
      "chat_template":
        "{% for m in messages %}{{ m.role }} {{ m.content }} ! {% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    ]
    try configuration.serialized().write(toFile: path + "/tokenizer_config.json", atomically: true, encoding: .utf8)
    return path
  }

  static func write(_ text: String, to path: String) throws -> String {
    try text.write(toFile: path, atomically: true, encoding: .utf8)
    return path
  }
}

extension CommandRun {
  /// Standard output as one JSON value a line.
  var jsonLines: [JSONValue] { get throws { try output.split(separator: "\n").map { try JSONValue.parse(String($0)) } } }
}

extension JSONValue {
  var integers: [Int]? { arrayValue?.compactMap(\.intValue) }
  var strings: [String]? { arrayValue?.compactMap(\.stringValue) }
}
