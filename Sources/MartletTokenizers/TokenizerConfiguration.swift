/// What `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja` say beside the tokenizer itself.
public struct TokenizerConfiguration: Sendable {
  public var beginningToken: String?
  public var endToken: String?
  public var unknownToken: String?
  public var paddingToken: String?
  public var separatorToken: String?
  public var classificationToken: String?
  public var maskToken: String?
  /// `additional_special_tokens`
  public var additionalSpecialTokens: [String] = []
  /// `add_bos_token`, where given
  public var addsBeginning: Bool?
  /// `add_eos_token`, where given
  public var addsEnd: Bool?
  /// The most tokens the model takes; nil where unknown or unlimited.
  public var maximumLength: Int?
  /// The template for conversations.
  public var chatTemplate: String?
  /// Templates for other uses by name ("tool_use", "rag" …).
  public var namedChatTemplates: [String: String] = [:]
  /// `tokenizer_class`
  public var className: String?
  /// `clean_up_tokenization_spaces`, where given
  public var cleansUpSpaces: Bool?
  /// Everything in `tokenizer_config.json`.
  public var values: JSONValue = .object(JSONObject())

  public init() {}

  /// The tokens that have a role, by the name they have in templates and files: `bos_token` …
  public var specialTokens: [String: String] {
    var result: [String: String] = [:]
    result["bos_token"] = beginningToken
    result["eos_token"] = endToken
    result["unk_token"] = unknownToken
    result["pad_token"] = paddingToken
    result["sep_token"] = separatorToken
    result["cls_token"] = classificationToken
    result["mask_token"] = maskToken
    return result
  }
}
