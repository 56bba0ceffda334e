import Foundation

extension TokenizerFolder {
  /// Names of SentencePiece models in the folders of models.
  static let sentencePieceNames = ["tokenizer.model", "spiece.model", "sentencepiece.model", "spm.model"]

  var sentencePieceFile: String? { Self.sentencePieceNames.first(where: has).map(file) }

  /// The tokenizer of a folder with a SentencePiece model and no `tokenizer.json`: of Llama's kind (begins with `<s>`) or T5's (ends with
  /// `</s>`), as `tokenizer_class`, `add_bos_token` and `add_eos_token` in `tokenizer_config.json` say.
  ///
  /// Control pieces are found in the text. Classes that move the ids of the file (XLM-R, mBART, Camembert …) are refused: they need a
  /// `tokenizer.json`.
  func sentencePiece(_ path: String) throws -> Tokenizer {
    let reader = try SentencePieceReader(path: path)
    var tokenizer = try Tokenizer(sentencePiece: reader, marksControlPieces: true)
    let own = tokenizer.configuration
    var configuration = try configuration()
    configuration.unknownToken = configuration.unknownToken ?? own.unknownToken
    configuration.beginningToken = configuration.beginningToken ?? own.beginningToken
    configuration.endToken = configuration.endToken ?? own.endToken
    configuration.paddingToken = configuration.paddingToken ?? own.paddingToken
    let name = (configuration.className ?? "").lowercased()
    for moved in ["xlmroberta", "camembert", "mbart", "barthez", "nllb", "m2m", "pegasus", "xglm", "deberta", "marian", "fnet"]
    where name.hasPrefix(moved) {
      throw FileError(
        path,
        "\(configuration.className ?? "") gives the pieces other ids than the file; save its tokenizer.json with transformers and load that"
      )
    }
    let isT5 = name.hasPrefix("t5") || name.hasPrefix("mt5")
    let addsBeginning = configuration.addsBeginning ?? name.contains("llama")
    let addsEnd = configuration.addsEnd ?? isT5
    func special(_ token: String?, _ role: String) throws -> PostProcessor.TemplatePiece {
      guard let token, let id = tokenizer.model.vocabulary.id(of: token) else {
        throw FileError(path, "the \(role) token \(token.map { "\"\($0)\" " } ?? "")is to be added, and the model has none")
      }
      return .special([.init(token, id: id)], typeId: 0)
    }
    var single: [PostProcessor.TemplatePiece] = [.text(0, typeId: 0)]
    var pair: [PostProcessor.TemplatePiece] = [.text(0, typeId: 0), .text(1, typeId: 0)]
    if addsEnd {
      let end = try special(configuration.endToken, "eos")
      single.append(end)
      pair = [.text(0, typeId: 0), end, .text(1, typeId: 0), end]
    }
    if addsBeginning {
      let beginning = try special(configuration.beginningToken, "bos")
      single.insert(beginning, at: 0)
      pair.insert(beginning, at: 0)
      pair.insert(beginning, at: addsEnd ? 3 : 2)
    }
    tokenizer = try Tokenizer(
      model: tokenizer.model, normalizer: tokenizer.normalizer,
      postProcessor: addsBeginning || addsEnd ? .template(single: single, pair: pair) : nil, decoder: tokenizer.decoder,
      addedTokens: tokenizer.addedTokens.map(\.token))
    tokenizer.configuration = configuration
    return tokenizer
  }
}
