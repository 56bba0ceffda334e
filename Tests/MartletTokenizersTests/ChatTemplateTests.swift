import Foundation
import MartletTokenizers
import Testing

/// Templates and what transformers 5 with Jinja2 3.1 renders from them; Tests/Fixtures/chat_templates.py writes the file.
private struct Fixture: Sendable {
  struct Case: Sendable {
    let name: String
    let template: String
    let messages: [JSONValue]
    let tools: [JSONValue]?
    let documents: [JSONValue]?
    let prompt: Bool
    let variables: JSONObject
    /// nil where Jinja refuses.
    let expected: String?
    let generated: [[Int]]?
  }
  let cases: [Case]

  static let shared: Fixture = {
    let url = Bundle.module.url(forResource: "Fixtures/chat_templates", withExtension: "json")!
    let json = try! JSONValue.parse(String(contentsOf: url, encoding: .utf8))
    func shared(_ key: String, _ item: JSONValue) -> JSONValue? { item[key]?.intValue.map { json[key]!.arrayValue![$0] } }
    return Fixture(
      cases: json["cases"]!.arrayValue!.map { item in
        Case(
          name: item["name"]!.stringValue!, template: shared("template", item)!.stringValue!,
          messages: shared("messages", item)!.arrayValue!, tools: shared("tools", item)?.arrayValue,
          documents: item["documents"]?.arrayValue,
          prompt: item["add_generation_prompt"]!.boolValue!, variables: shared("variables", item)?.objectValue ?? [:],
          expected: item["expected"]?.stringValue,
          generated: item["generated"]?.arrayValue?.map { $0.arrayValue!.map { $0.intValue! } })
      })
  }()
}

@Suite struct ChatTemplateTests {
  @Test func rendersWhatTransformersRendersAndRefusesWhatItRefuses() throws {
    #expect(Fixture.shared.cases.count > 600)
    for item in Fixture.shared.cases {
      var rendered: ChatTemplate.Rendering?
      var failure: (any Error)?
      do {
        rendered = try ChatTemplate(item.template).rendering(
          messages: item.messages, tools: item.tools, documents: item.documents, addGenerationPrompt: item.prompt,
          variables: item.variables)
      } catch { failure = error }
      let text = rendered?.text
      let isSame = item.expected.map { expected in text.map { Array($0.utf8) == Array(expected.utf8) } ?? false } ?? (text == nil)
      #expect(isSame, "\(item.name): \(text ?? "\(failure!)") instead of \(item.expected ?? "an error")")
      if let generated = item.generated, let rendered {
        // Python counts scalars; these texts are ASCII there.
        #expect(rendered.generated.map { [$0.lowerBound, $0.upperBound] } == generated, "\(item.name)")
      }
      if let error = failure as? ChatTemplateError { #expect(error.kind != .unsupported || item.expected == nil, "\(item.name): \(error)") }
    }
  }

  private func failure(_ template: String, limits: ChatTemplate.Limits = .init()) -> ChatTemplateError? {
    do {
      _ = try ChatTemplate(template, limits: limits).render(messages: [ChatMessage(role: "user", content: "x")])
      return nil
    } catch { return error as? ChatTemplateError }
  }

  @Test func namesWhatIsNotSupportedWithItsLine() {
    for (source, word) in [
      ("{% include 'x' %}", "include"), ("{% extends 'x' %}", "extends"), ("{% import 'x' as y %}", "import"),
      ("{{ 'a'|urlize }}", "urlize"),
      ("{% block a %}{% endblock %}", "block"), ("{% for a in [] recursive %}{% endfor %}", "recursive"), ("{{ joiner() }}", "joiner"),
      ("{{ 'a'.encode() }}", "encode"), ("{% autoescape true %}{% endautoescape %}", "autoescape"),
    ] {
      let error = failure("a\nb\n" + source)
      #expect(
        error?.kind == .unsupported && error?.line == 3 && error?.description.contains(word) == true,
        "\(source): \(String(describing: error))")
    }
  }

  @Test func errorsNameTheLineAndSuggestNames() {
    #expect(failure("\n\n{{ x.y }}")?.description == "chat template, line 3: 'x' is undefined")
    #expect(failure("{{ 1|uper }}")?.description.contains("upper") == true)
    let raised = failure("\n{{ raise_exception('no ' ~ messages[0].role) }}")
    #expect(raised?.kind == .raised && raised?.message == "no user" && raised?.line == 2)
    #expect(failure("{% if true %}\n{{ 1 + 'a' }}{% endif %}")?.line == 2)
  }

  @Test func hostileTemplatesEndWithAnError() {
    let deep = String(repeating: "(", count: 100_000)
    let chain = "{{ 1" + String(repeating: " + 1", count: 100_000) + " }}"
    let nested = String(repeating: "{% if true %}", count: 100_000)
    let many = "{% for a in range(99999) %}"
    for (name, source) in [
      ("parentheses", "{{ \(deep) }}"), ("brackets", "{{ " + String(repeating: "[", count: 100_000) + " }}"),
      ("a chain of sums", chain), ("nested blocks", nested), ("nots", "{{ " + String(repeating: "not ", count: 100_000) + "1 }}"),
      ("minuses", "{{ " + String(repeating: "-", count: 100_000) + "1 }}"),
      ("attributes", "{{ a" + String(repeating: ".b", count: 100_000) + " }}"),
      ("filters", "{{ a" + String(repeating: "|upper", count: 100_000) + " }}"),
      ("endless macros", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
      ("nested loops", many + many + many + "{% endfor %}{% endfor %}{% endfor %}"), ("a huge string", "{{ 'abc' * 10**12 }}"),
      ("a huge list", "{{ [1] * 10**12 }}"), ("a huge range", "{{ range(10**15)|list }}"),
      ("a huge indent", "{{ [[1]]|tojson(indent=10**15) }}"),
      ("a wide center", "{{ 'a'|center(10**15) }}"), ("a wide format", "{{ '%99999999999d' % 1 }}"), ("ljust", "{{ 'a'.ljust(10**17) }}"),
      ("doubling", "{% set ns = namespace(s='ab') %}\(many){% set ns.s = ns.s + ns.s %}{% endfor %}"),
      ("doubling a list", "{% set ns = namespace(s=[1]) %}\(many){% set ns.s = ns.s + ns.s %}{% endfor %}"),
      ("doubling by sharing", "{% set ns = namespace(s=[1]) %}\(many){% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s == ns.s }}"),
      ("replacing", "{% set ns = namespace(s='aa') %}\(many){% set ns.s = ns.s|replace('a', 'aaa') %}{% endfor %}"),
      ("deep values", "{% set ns = namespace(s=1) %}\(many){% set ns.s = [ns.s] %}{% endfor %}"),
      ("a namespace in itself", "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}"), ("powers", "{{ 10 ** 10 ** 10 }}"),
      ("overflow", "{{ 9223372036854775807 + 1 }}"), ("negation", "{{ -(-9223372036854775807 - 1) }}"),
      ("division", "{{ (-9223372036854775807 - 1) // -1 }}"), ("a huge integer", "{{ 99999999999999999999 }}"),
      ("slice of a range", "{{ range(0, 9007199254740000, 9007199254740)[::9007199254740] }}"),
      ("long output", "\(many)\(many){{ 'abcdefghijklmnopqrstuvwxyz' * 100 }}{% endfor %}{% endfor %}"),
    ] {
      let error = failure(source, limits: .init(work: 1 << 22))
      #expect(error != nil, "\(name)")
    }
    // These are legal, and their chains are freed without recursion.
    #expect(failure("{% set ns = namespace() %}{% for a in range(20000) %}{% set ns.x = namespace(x=ns.x) %}{% endfor %}") == nil)
    #expect(failure("{% set ns = namespace() %}{% set ns.me = ns %}{% macro m() %}{{ m }}{% endmacro %}") == nil)
    #expect(
      failure("{{ (-9223372036854775807 - 1) % -1 }}{{ 'a'[-9223372036854775807:9223372036854775807] }}{{ [1][::9223372036854775807] }}")
        == nil)
  }

  @Test func brokenTemplatesNeverCrash() {
    // Every prefix of a template, and the template with one character gone, ends in a text or an error.
    let source = Fixture.shared.cases.first { $0.name.hasPrefix("Llama 3, tools") }!.template
    let scalars = Array(source.unicodeScalars)
    for end in Swift.stride(from: 0, to: scalars.count, by: 37) {
      _ = failure(String(String.UnicodeScalarView(scalars[..<end])))
      _ = failure(String(String.UnicodeScalarView(scalars[..<end] + scalars[(end + 1)...])))
    }
  }

  @Test func readsTheClockItIsGiven() throws {
    let template = try ChatTemplate("{{ strftime_now('%Y') }}{% if strftime_now is defined %}!{% endif %}")
    let time = Date(timeIntervalSince1970: 86400 * 366)
    #expect(try template.render(messages: [ChatMessage](), now: time) == "1971!")
  }

  @Test func fillsInSpecialTokensAndFurtherMembers() throws {
    let template = try ChatTemplate(
      "{{ bos_token }}{{ eos_token }}{{ pad_token }}|{{ messages[0].name }}{{ x }}",
      specialTokens: ["bos_token": "<b>", "eos_token": "<e>"])
    let message = ChatMessage(role: "user", content: nil, additional: ["name": "n"])
    #expect(try template.render(messages: [message], eosToken: "<E>", variables: ["x": 5]) == "<b><E>|n5")
  }

  @Test func rendersFromManyThreads() async throws {
    let template = try ChatTemplate("{% for i in range(50) %}{{ i * messages|length }},{% endfor %}")
    let expected = (0..<50).map { "\($0 * 2)," }.joined()
    try await withThrowingTaskGroup(of: String.self) { group in
      for _ in 0..<16 {
        group.addTask { try template.render(messages: [ChatMessage](repeating: .init(role: "a", content: "b"), count: 2)) }
      }
      for try await text in group { #expect(text == expected) }
    }
  }
}
