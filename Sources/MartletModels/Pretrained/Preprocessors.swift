import Foundation
import MartletFormats

extension PretrainedModel {
  public var encoderDecoder: EncoderDecoder? { model as? EncoderDecoder }
  public var visionTransformer: VisionTransformer? { model as? VisionTransformer }

  /// How images become the model's input, by the folder's `preprocessor_config.json`. Throws `FileError`.
  public func imagePreprocessor() throws -> ImagePreprocessor {
    let channels = visionTransformer?.configuration.channels ?? 3
    return try preprocessor { try ImagePreprocessor(preprocessor: $0, channels: channels) }
  }

  /// How speech becomes the model's input, by the folder's `preprocessor_config.json`. Throws `FileError`.
  public func logMelSpectrogram() throws -> LogMelSpectrogram {
    let bands = encoderDecoder?.configuration.stem?.channels
    return try preprocessor {
      let configuration = try LogMelSpectrogram.Configuration(preprocessor: $0)
      if let bands, bands != configuration.bands {
        throw ConfigurationError("\"feature_size\" is \(configuration.bands), the model reads \(bands) mel bands")
      }
      return try LogMelSpectrogram(configuration)
    }
  }

  /// What Whisper's decoder is told, by `generation_config.json` and `config.json`. Throws `FileError`.
  public func whisperPrompt() throws -> WhisperPrompt {
    do {
      return try WhisperPrompt(
        generationConfiguration: .object(configuration.generation), modelConfiguration: .object(configuration.json))
    } catch let error as ConfigurationError { throw FileError(configuration.directory + "/generation_config.json", error.message) }
  }

  private func preprocessor<Result>(_ read: (JSONValue) throws -> Result) throws -> Result {
    let file = configuration.directory + "/preprocessor_config.json"
    guard FileManager.default.fileExists(atPath: file) else {
      throw FileError(file, "doesn't exist; it says how the model's input is made (copy it from where the checkpoint comes from)")
    }
    do { return try read(readJSON(file)) } catch let error as ConfigurationError { throw FileError(file, error.message) }
  }
}
