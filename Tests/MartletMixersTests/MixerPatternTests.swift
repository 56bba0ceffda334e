import Foundation
import MartletMixers
import Testing

@Suite struct MixerPatternTests {
  @Test(arguments: [
    ("gla", ["gla"]), ("deltanet+window", ["deltanet", "window"]), ("deltanet*2+softmax", ["deltanet", "deltanet", "softmax"]),
    ("deltanet+window?window=32*2+gla?chunk=16", ["deltanet", "window?window=32", "window?window=32", "gla?chunk=16"]),
    ("s4d?dt_max=1e+0+softmax", ["s4d?dt_max=1", "softmax"]),
  ]) func patternsAreRead(_ text: String, _ layers: [String]) throws {
    let pattern = try MixerPattern(parsing: text)
    #expect(pattern.mixers.map(\.name) == (try layers.map { try MixerChoice(parsing: $0).name }))
    #expect(pattern.mixers.count == layers.count)
    // What it is written as reads as the same, also through JSON.
    #expect(try MixerPattern(parsing: pattern.text) == pattern, "\(pattern.text)")
    #expect(try JSONDecoder().decode(MixerPattern.self, from: JSONEncoder().encode(pattern)) == pattern)
  }

  @Test func textsAreShort() throws {
    #expect(try MixerPattern(parsing: "deltanet+deltanet+softmax").text == "deltanet*2+softmax")
    #expect(try MixerPattern(parsing: "window?window=8*2+gla").text == "window?window=8*2+gla")
    #expect(try MixerPattern(parsing: "gla*3").text == "gla", "one mixer for all layers")
  }

  @Test func patternsRepeatOverTheLayers() throws {
    let pattern = try MixerPattern(parsing: "deltanet*2+softmax")
    #expect(
      (0..<7).map { pattern.mixer(layer: $0).name } == ["deltanet", "deltanet", "softmax", "deltanet", "deltanet", "softmax", "deltanet"])
    #expect(try MixerPattern(parsing: "s4d+gla+s4d").slowParameters == Set(MixerKind.s4d.slowParameters).sorted())
  }

  /// What an earlier record holds of a single mixer is still read.
  @Test func aMixerAloneIsAPattern() throws {
    let choice = try MixerChoice(parsing: "gla?chunk=16")
    #expect(try JSONDecoder().decode(MixerPattern.self, from: JSONEncoder().encode(choice)) == MixerPattern(choice))
  }

  @Test(arguments: [
    ("deltanet+softmaks", "\"softmaks\""), ("deltanet+", "deltanet+"), ("+gla", "+gla"), ("gla++softmax", "empty"), ("", "empty"),
    ("deltanet*0+softmax", "deltanet*0"), ("deltanet*x", "\"*x\""), ("gla*1000000", "1000000"), ("gla+window?windou=3", "window?windou=3"),
  ]) func badPartsAreNamed(_ text: String, _ named: String) {
    let error = #expect(throws: ConfigurationError.self) { try MixerPattern(parsing: text) }
    #expect(error?.message.contains(named) == true, "\(error?.message ?? "no error") should name \(named)")
  }

  @Test func hybridsOfThePaperPlaceTheirAttention() {
    #expect(HybridStack.slidingWindow(layers: 5).mixers.map(\.name) == ["deltanet", "window", "deltanet", "window", "deltanet"])
    let global = HybridStack.globalAttention(layers: 8).mixers.map(\.name)
    #expect(global.indices.filter { global[$0] == "softmax" } == [1, 4], "the 2nd and the 5th of 8")
    #expect(global.filter { $0 == "deltanet" }.count == 6)
    #expect(HybridStack.globalAttention(layers: 8).text == "deltanet+softmax+deltanet*2+softmax+deltanet*3")
  }
}
