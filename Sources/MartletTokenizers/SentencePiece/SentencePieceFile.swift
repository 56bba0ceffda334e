import Foundation
import SwiftProtobuf

extension Tokenizer {
  /// Reads a SentencePiece model (`tokenizer.model`, `spiece.model`, `sentencepiece.bpe.model` …): Unigram or BPE, with its normalization,
  /// byte fallback, user-defined and control pieces.
  ///
  /// Encodes as the `sentencepiece` library does: the ids are its ids, control pieces are not found in the text, and none are added.
  /// Throws ``FileError`` that names the file and what is wrong with it.
  public init(sentencePieceFile path: String) throws {
    try self.init(sentencePiece: try SentencePieceReader(path: path), marksControlPieces: false)
  }

  /// Reads a SentencePiece model from memory; `file` is what errors call it.
  public init(sentencePiece data: Data, file: String = "tokenizer.model") throws {
    try self.init(sentencePiece: try SentencePieceReader(data, file: file), marksControlPieces: false)
  }

  /// `marksControlPieces`: control and unknown pieces are found in the text, as the tokenizers of Hugging Face do.
  init(sentencePiece reader: SentencePieceReader, marksControlPieces: Bool) throws {
    let added = marksControlPieces ? reader.controlPieces.map { AddedToken($0, isNormalized: false, isSpecial: true) } : []
    var decoder = reader.decoder
    if !marksControlPieces {
      // The library spells the unknown piece so, and control pieces not at all. Until blanks at the start are gone, a character of private use
      // stands for the unknown piece.
      let unknown = reader.spelling(reader.model.unknownId)
      let mark = "\u{10FFFD}"
      let spelled = reader.controlPieces.map { Decoder.replace(.string($0), with: $0 == unknown ? mark : "") }
      decoder = .sequence(spelled + [decoder, .replace(.string(mark), with: " ⁇ ")])
    }
    try self.init(model: .sentencePiece(reader.model), normalizer: .sentencePiece(reader.normalizer), decoder: decoder, addedTokens: added)
    configuration.unknownToken = reader.spelling(reader.model.unknownId)
    configuration.beginningToken = reader.spelling(reader.beginningId)
    configuration.endToken = reader.spelling(reader.endId)
    configuration.paddingToken = reader.spelling(reader.paddingId)
  }
}

/// The parts of a SentencePiece model file.
struct SentencePieceReader {
  /// Published models have at most some 5 MB.
  static let largestFile = 32 << 20

  let model: SentencePieceModel
  let normalizer: SentencePieceNormalizer
  let decoder: Decoder
  /// Control pieces and the unknown one, in the order of their ids.
  let controlPieces: [String]
  let beginningId: Int
  let endId: Int
  let paddingId: Int

  init(path: String) throws {
    guard let attributes = try? FileManager.default.attributesOfItem(atPath: path), let size = attributes[.size] as? Int else {
      throw FileError(path, "there is no such file, or it can't be read")
    }
    guard size <= Self.largestFile else {
      throw FileError(path, "the file has \(size) bytes; SentencePiece models of more than \(Self.largestFile) bytes are refused")
    }
    try self.init(try TokenizerFiles.read(path), file: path)
  }

  init(_ data: Data, file: String) throws {
    guard data.count <= Self.largestFile else {
      throw FileError(file, "\(data.count) bytes; SentencePiece models of more than \(Self.largestFile) bytes are refused")
    }
    let contents: SentencePieceFileModel
    do {
      var options = BinaryDecodingOptions()
      options.discardUnknownFields = true
      contents = try SentencePieceFileModel(serializedBytes: data, options: options)
    } catch {
      throw FileError(file, "this is no SentencePiece model (\(error))")
    }
    do {
      try self.init(contents)
    } catch let error as VocabularyError { throw FileError(file, error.description) }
  }

  private init(_ contents: SentencePieceFileModel) throws {
    let trainer = contents.trainerSpec
    guard !contents.pieces.isEmpty else { throw VocabularyError("there are no pieces") }
    let kind: SentencePieceModel.Kind
    switch trainer.modelType {
    case .unigram: kind = .unigram
    case .bpe: kind = .bpe
    case .word: throw VocabularyError("the model's type is WORD; UNIGRAM and BPE are supported")
    case .char: throw VocabularyError("the model's type is CHAR; UNIGRAM and BPE are supported")
    }
    var builder = Vocabulary.Builder()
    var types: [SentencePieceModel.PieceType] = []
    var scores: [Float] = []
    var unknown: Int?
    var control: [String] = []
    var bytes = 0
    var user = ByteTrie.Builder()
    var hasUser = false
    for (id, piece) in contents.pieces.enumerated() {
      guard !piece.piece.utf8.isEmpty else { throw VocabularyError("piece \(id) is empty") }
      guard piece.score.isFinite else {
        throw VocabularyError("the score of the piece \"\(piece.piece.prefix(60))\" is not a finite number")
      }
      try builder.append(piece.piece, id: id)
      scores.append(piece.score)
      switch piece.type {
      case .normal: types.append(.normal)
      case .unused: types.append(.unused)
      case .control:
        types.append(.control)
        control.append(piece.piece)
      case .unknown:
        types.append(.unknown)
        control.append(piece.piece)
        if unknown != nil { throw VocabularyError("there are two unknown pieces") }
        unknown = id
      case .byte:
        types.append(.byte)
        bytes += 1
        guard trainer.byteFallback else { throw VocabularyError("the byte piece \"\(piece.piece.prefix(60))\" without byte_fallback") }
        guard Array(piece.piece.utf8).withUnsafeBufferPointer({ ByteFallback.byte($0) }) != nil else {
          throw VocabularyError("the byte piece \"\(piece.piece.prefix(60))\" isn't of the form <0x00>")
        }
      case .userDefined:
        types.append(.userDefined)
        hasUser = true
        var text = piece.piece
        var failure: VocabularyError?
        text.withUTF8 { bytes in
          do throws(VocabularyError) { try user.insert(bytes, value: Int32(id)) } catch { failure = error }
        }
        if let failure { throw failure }
      }
    }
    guard let unknown else { throw VocabularyError("there is no unknown piece") }
    if trainer.byteFallback, bytes != 256 { throw VocabularyError("byte_fallback needs 256 byte pieces, there are \(bytes)") }
    let userDefined = hasUser ? ByteTrie(user) : nil
    model = try SentencePieceModel(
      kind: kind, vocabulary: try Vocabulary(builder), scores: scores, types: types, unknownId: unknown,
      hasByteFallback: trainer.byteFallback,
      userDefined: userDefined)
    let rules = contents.normalizerSpec
    normalizer = try SentencePieceNormalizer(
      rules: [UInt8](rules.precompiledCharsmap), addsDummyPrefix: rules.addDummyPrefix, removesExtraSpaces: rules.removeExtraWhitespaces,
      escapesSpaces: rules.escapeWhitespaces, treatsSpaceAsSuffix: trainer.treatWhitespaceAsSuffix, userDefined: userDefined)
    var steps: [Decoder] = [.replace(.string("▁"), with: " ")]
    if trainer.byteFallback { steps.append(.byteFallback) }
    steps.append(.fuse)
    // The library takes the blank it put before the text away, also where a suffix was put.
    if rules.addDummyPrefix || rules.removeExtraWhitespaces {
      steps.append(.strip(" ", start: rules.removeExtraWhitespaces ? .max : 1, stop: 0))
    }
    decoder = .sequence(steps)
    controlPieces = control
    beginningId = Int(trainer.bosID)
    endId = Int(trainer.eosID)
    paddingId = Int(trainer.padID)
  }

  /// The control or unknown piece with an id; nil for others and for the -1 of a piece that is left out.
  func spelling(_ id: Int) -> String? {
    guard let token = model.vocabulary.token(of: id), controlPieces.contains(where: { sameScalars($0, token) }) else { return nil }
    return token
  }
}
