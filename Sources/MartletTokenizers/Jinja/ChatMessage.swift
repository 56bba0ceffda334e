/// One message of a conversation, as chat templates read it.
public struct ChatMessage: Sendable, Hashable {
  /// "system", "user", "assistant", "tool", or what else the template knows.
  public var role: String
  /// A string, a list of parts (`{"type": "text", "text": …}`), or nil where a message has only tool calls.
  public var content: JSONValue?
  /// Further members: `tool_calls`, `tool_call_id`, `name`, `reasoning_content` …
  public var additional: JSONObject

  public init(role: String, content: JSONValue?, additional: JSONObject = [:]) {
    self.role = role
    self.content = content
    self.additional = additional
  }

  public init(role: String, content: String) { self.init(role: role, content: .string(content)) }

  /// The message as the object a template sees: `role`, `content`, then the further members.
  public var json: JSONValue {
    var object = JSONObject()
    object["role"] = .string(role)
    if let content { object["content"] = content }
    for (key, value) in additional.pairs { object[key] = value }
    return .object(object)
  }
}
