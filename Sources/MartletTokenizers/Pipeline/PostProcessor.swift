/// Puts special tokens around the tokens of one text or a pair.
public indirect enum PostProcessor: Sendable {
  case template(single: [TemplatePiece], pair: [TemplatePiece])
  /// `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`, the second text with type 1.
  case bert(classification: SpecialToken, separator: SpecialToken)
  /// `<s> A </s>` and `<s> A </s> </s> B </s>`, everything with type 0.
  case roberta(classification: SpecialToken, separator: SpecialToken, trimsOffsets: Bool, addsPrefixSpace: Bool)
  case byteLevel(trimsOffsets: Bool, addsPrefixSpace: Bool)
  case sequence([PostProcessor])

  public struct SpecialToken: Sendable, Equatable {
    public var token: String
    public var id: Int
    public init(_ token: String, id: Int) {
      self.token = token
      self.id = id
    }
  }

  public enum TemplatePiece: Sendable, Equatable {
    /// The first (0) or second (1) text.
    case text(Int, typeId: Int)
    case special([SpecialToken], typeId: Int)
  }

  /// How many tokens are added.
  public func addedCount(isPair: Bool) -> Int {
    switch self {
    case .template(let single, let pair):
      (isPair ? pair : single).reduce(0) { sum, piece in if case .special(let tokens, _) = piece { sum + tokens.count } else { sum } }
    case .bert: isPair ? 3 : 2
    case .roberta: isPair ? 4 : 2
    case .byteLevel: 0
    case .sequence(let parts): parts.reduce(0) { $0 + $1.addedCount(isPair: isPair) }
    }
  }

  /// The order of texts and special tokens. Texts without special tokens when these aren't wanted.
  func layout(isPair: Bool, addsSpecialTokens: Bool) -> [TemplatePiece] {
    let plain: [TemplatePiece] = isPair ? [.text(0, typeId: 0), .text(1, typeId: 1)] : [.text(0, typeId: 0)]
    switch self {
    case .template(let single, let pair):
      let pieces = isPair ? pair : single
      return addsSpecialTokens ? pieces : pieces.filter { if case .text = $0 { true } else { false } }
    case .bert(let classification, let separator):
      if !addsSpecialTokens { return plain }
      let first: [TemplatePiece] = [.special([classification], typeId: 0), .text(0, typeId: 0), .special([separator], typeId: 0)]
      return isPair ? first + [.text(1, typeId: 1), .special([separator], typeId: 1)] : first
    case .roberta(let classification, let separator, _, _):
      if !addsSpecialTokens { return isPair ? [.text(0, typeId: 0), .text(1, typeId: 0)] : [.text(0, typeId: 0)] }
      let first: [TemplatePiece] = [.special([classification], typeId: 0), .text(0, typeId: 0), .special([separator], typeId: 0)]
      return isPair
        ? first + [.special([separator], typeId: 0), .text(1, typeId: 0), .special([separator], typeId: 0)] : first
    case .byteLevel: return plain
    case .sequence(let parts):
      // The file reader lets at most one of them add tokens.
      for part in parts {
        if case .byteLevel = part { continue }
        return part.layout(isPair: isPair, addsSpecialTokens: addsSpecialTokens)
      }
      return plain
    }
  }

  /// Whether the white space of byte-level tokens is taken out of their offsets, and whether a blank was put before the text.
  var offsetTrimming: (addsPrefixSpace: Bool, isOn: Bool) {
    switch self {
    case .roberta(_, _, let trims, let adds), .byteLevel(let trims, let adds): return (adds, trims)
    case .sequence(let parts):
      for part in parts where part.offsetTrimming.isOn { return part.offsetTrimming }
      return (false, false)
    case .template, .bert: return (false, false)
    }
  }
}
