import Foundation
import MartletCatalog
import MartletTokenizers

/// A conversation at the terminal: each line is a message, the replies stream.
struct ChatSession {
  let producer: TextProducer
  private var messages: [ChatMessage]

  init(_ producer: TextProducer, system: String?) {
    self.producer = producer
    messages = system.map { [ChatMessage(role: "system", content: $0)] } ?? []
  }

  /// Until the input ends, or /exit. Ctrl-C ends a reply, and between replies the program.
  mutating func run() throws {
    // A template that is missing or broken is said before the first question.
    _ = try producer.rendered(messages + [ChatMessage(role: "user", content: "?")])
    Output.note("Ask away. /clear begins anew, /exit or Ctrl-D ends; Ctrl-C ends a reply.")
    let beginning = messages
    while true {
      Interruption.ignore()
      FileHandle.standardError.write(Data("> ".utf8))
      guard let line = readLine() else {
        Output.note("")
        return
      }
      switch line.trimmingCharacters(in: .whitespaces) {
      case "": continue
      case "/exit", "/quit": return
      case "/clear": messages = beginning
      default: try reply(to: line)
      }
    }
  }

  private mutating func reply(to line: String) throws {
    Interruption.watch()
    messages.append(ChatMessage(role: "user", content: line))
    let tokens = try producer.tokens(try producer.rendered(messages), special: false)
    let result = try producer.produce([(line, tokens)], watch: Stopwatch()) { _, piece in
      StandardOutput.write(piece)
      return true
    }[0]
    StandardOutput.write("\n")
    messages.append(ChatMessage(role: "assistant", content: result.text))
  }
}
