import ArgumentParser
import Foundation
import MartletCatalog
import MartletTokenizers

struct InspectCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "inspect",
    abstract: "Show what a model is and what it needs: shape, parameters, memory, context, tokenizer.",
    discussion: """
      MODEL is a Hugging Face folder, a folder made by `martlet train`, or one .safetensors file. Only configurations and headers are \
      read, no weights. Memory is that of the weights and of one sequence's state; a form fits when both, for a context of 1k, take at \
      most nine tenths of the memory that is free now. Quantised forms count embeddings and norms in float32.

      Example: martlet inspect models/llama --tensors
      """)

  @Argument(help: "A model's folder, or a .safetensors file.", completion: .directory)
  var model: String

  @Flag(help: "List the tensors in the files.")
  var tensors = false

  @Flag(help: "Print a JSON object.")
  var json = false

  func run() throws {
    let inspection = try ModelInspection(model)
    let memory = MachineMemory()
    if json { Output.json(self.object(inspection, memory)) } else { print(text(inspection, memory)) }
  }

  // MARK: Text

  private func text(_ model: ModelInspection, _ memory: MachineMemory) -> String {
    var facts: [(String, String)] = []
    if let c = model.configuration {
      let b = c.backbone
      facts.append(("architecture", "\(c.modelType) (\(c.architecture.summary))"))
      let mixers = Set(b.mixers.map { $0.name }).sorted().joined(separator: ", ")
      facts.append(
        ("shape", "\(b.layers) layers of width \(b.width), \(mixers), \(b.heads) heads" + (b.hidden.map { ", feed-forward \($0)" } ?? "")))
      facts.append(("context", "\(Figure.length(c.contextLength)) positions"))
      if !c.labels.isEmpty {
        facts.append(("classes", "\(c.labels.count): " + c.labels.prefix(6).joined(separator: ", ") + (c.labels.count > 6 ? ", …" : "")))
      }
    }
    if let task = model.task { facts.append(("trained on", "\(task), by `martlet train`")) }
    let types = model.dtypes.map { "\($0.dtype)" }.joined(separator: ", ")
    facts.append(("parameters", Figure.grouped(model.parameters)))
    facts.append(
      (
        "on disk",
        model.tensors.isEmpty
          ? "no weights"
          : "\(model.tensors.count) tensors of \(types), \(Figure.bytes(Double(model.bytesOnDisk))) in \(model.files) \(model.files == 1 ? "file" : "files")"
      ))
    if let tokenizer = model.tokenizer {
      facts.append(("tokenizer", "\(tokenizer.model.name), \(Figure.grouped(tokenizer.vocabularyCount)) tokens"))
      let others = tokenizer.configuration.namedChatTemplates.keys.sorted()
      facts.append(
        (
          "chat template",
          (tokenizer.configuration.chatTemplate == nil ? "none" : "yes")
            + (others.isEmpty ? "" : ", also \(others.joined(separator: ", "))")
        ))
    } else if let problem = model.tokenizerProblem {
      facts.append(("tokenizer", "can't be read: \(problem)"))
    } else if model.configuration != nil {
      facts.append(("tokenizer", "none"))
    }
    let width = facts.map(\.0.count).max() ?? 0
    var sections = [
      Output.heading(Terminal.sanitised(model.path)) + "\n"
        + facts.map { "  " + $0.0.padding(toLength: width + 2, withPad: " ", startingAt: 0) + Terminal.sanitised($0.1) }.joined(
          separator: "\n")
    ]
    sections += [partsTable(model), formsTable(model, memory)]
    if !model.states.isEmpty { sections.append(statesTable(model)) }
    if tensors { sections.append(tensorsTable(model)) }
    return sections.joined(separator: "\n\n")
  }

  private func partsTable(_ model: ModelInspection) -> String {
    var table = TerminalTable([.init("part"), .init("parameters", .right), .init("share", .right)])
    for (part, count) in model.parts {
      table.add([
        .init(part.rawValue), .init(Figure.grouped(count)), .init(Figure.fixed(100 * Double(count) / Double(model.parameters), 1) + " %"),
      ])
    }
    return table.rendered()
  }

  private func formsTable(_ model: ModelInspection, _ memory: MachineMemory) -> String {
    let isGenerative = !model.states.isEmpty && !model.hasConstantState
    var table = TerminalTable(
      [.init("weights in"), .init("memory", .right), .init("fits")] + (isGenerative ? [.init("longest context", .right)] : []))
    for form in model.forms {
      let context = model.longestContext(form, memory: memory.available).map { length -> String in
        let own = model.configuration?.contextLength ?? .max
        return length >= own ? "all \(Figure.length(own))" : Figure.grouped(length)
      }
      table.add(
        [.init(form.name), .init(Figure.bytes(Double(form.bytes))), .init(model.fits(form, memory: memory.available) ? "yes" : "no")]
          + (isGenerative ? [.init(context ?? "none")] : []))
    }
    return table.rendered()
      + "\nthis machine has \(Figure.bytes(Double(memory.total))), \(Figure.bytes(Double(memory.available))) of it free"
  }

  private func statesTable(_ model: ModelInspection) -> String {
    if model.hasConstantState {
      return "state of a sequence: \(Figure.bytes(Double(model.states[0].full))), however long it is"
    }
    var table = TerminalTable([
      .init("context", .right), .init("cache, full", .right), .init("bfloat16", .right), .init("int8", .right),
    ])
    for state in model.states {
      table.add([.init(Figure.length(state.length))] + [state.full, state.bfloat16, state.int8].map { .init(Figure.bytes(Double($0))) })
    }
    return table.rendered() + "\na further position takes \(Figure.bytes(Double(model.bytesPerPosition))) (weights in float32)"
  }

  private func tensorsTable(_ model: ModelInspection) -> String {
    var table = TerminalTable([.init("tensor"), .init("shape"), .init("type"), .init("bytes", .right)])
    for tensor in model.tensors {
      table.add([.init(tensor.name), .init(Output.shape(tensor.shape)), "\(tensor.dtype)", .init(Figure.grouped(tensor.bytes))])
    }
    return table.rendered()
  }

  // MARK: JSON

  private func object(_ model: ModelInspection, _ memory: MachineMemory) -> JSONValue {
    var result = JSONObject()
    result["path"] = .string(model.path)
    if let c = model.configuration {
      let b = c.backbone
      result["architecture"] = .string(c.modelType)
      result["summary"] = .string(c.architecture.summary)
      result["layers"] = .integer(b.layers)
      result["width"] = .integer(b.width)
      result["heads"] = .integer(b.heads)
      result["feedForward"] = b.hidden.map(JSONValue.integer) ?? .null
      result["mixers"] = .array(Set(b.mixers.map { $0.name }).sorted().map(JSONValue.string))
      if case .tokens(let vocabulary) = b.input { result["vocabulary"] = .integer(vocabulary) }
      result["context"] = .integer(c.contextLength)
      result["classes"] = .array(c.labels.map(JSONValue.string))
    }
    if let task = model.task { result["task"] = .string(task) }
    result["parameters"] = .integer(model.parameters)
    result["parts"] = .array(model.parts.map { ["part": .string($0.part.rawValue), "parameters": .integer($0.count)] })
    result["dtypes"] = .array(model.dtypes.map { ["dtype": .string("\($0.dtype)"), "elements": .integer($0.count)] })
    result["files"] = .integer(model.files)
    result["bytesOnDisk"] = .integer(model.bytesOnDisk)
    result["machine"] = ["bytes": .integer(memory.total), "availableBytes": .integer(memory.available)]
    result["memory"] = .array(
      model.forms.map {
        [
          "weights": .string($0.name), "bytes": .integer($0.bytes), "fits": .bool(model.fits($0, memory: memory.available)),
          "longestContext": model.longestContext($0, memory: memory.available).map(JSONValue.integer) ?? .null,
        ]
      })
    if !model.states.isEmpty {
      result["state"] = [
        "isConstant": .bool(model.hasConstantState), "bytesPerToken": .integer(model.bytesPerPosition),
        "contexts": .array(
          model.states.map {
            ["length": .integer($0.length), "full": .integer($0.full), "bfloat16": .integer($0.bfloat16), "int8": .integer($0.int8)]
          }),
      ]
    }
    if let tokenizer = model.tokenizer {
      var special = JSONObject()
      for (name, token) in tokenizer.configuration.specialTokens.sorted(by: { $0.key < $1.key }) { special[name] = .string(token) }
      result["tokenizer"] = [
        "kind": .string(tokenizer.model.name), "vocabulary": .integer(tokenizer.vocabularyCount),
        "chatTemplate": .bool(tokenizer.configuration.chatTemplate != nil), "specialTokens": .object(special),
      ]
    } else {
      result["tokenizer"] = .null
      if let problem = model.tokenizerProblem { result["tokenizerProblem"] = .string(problem) }
    }
    if tensors {
      result["tensors"] = .array(
        model.tensors.map {
          ["name": .string($0.name), "dtype": .string("\($0.dtype)"), "shape": Output.json($0.shape), "bytes": .integer($0.bytes)]
        })
    }
    return .object(result)
  }
}
