/// Two convolutions with GELU that bring log-mel frames to an encoder's width and halve their number (Radford et al. 2022, §2.2).
/// [batch, channels, frames] → [batch, frames/2, width].
public final class ConvolutionStem: Module {
  public struct Configuration: Sendable, Equatable, Codable {
    /// Mel bands.
    public var channels: Int
    public var width: Int

    public init(channels: Int, width: Int) {
      self.channels = channels
      self.width = width
    }

    /// Throws `ConfigurationError` for numbers that make no layer.
    public func validate() throws {
      guard (1...(1 << 16)).contains(channels), (1...(1 << 16)).contains(width) else {
        throw ConfigurationError("the audio front end needs 1...65536 channels and width, got \(channels) and \(width)")
      }
    }
  }

  public let configuration: Configuration
  @Child public var first: Conv1d
  @Child public var second: Conv1d

  public init(_ configuration: Configuration, generator: RandomGenerator) {
    self.configuration = configuration
    super.init()
    first = Conv1d(configuration.channels, configuration.width, kernel: 3, padding: 1, generator: generator)
    second = Conv1d(configuration.width, configuration.width, kernel: 3, stride: 2, padding: 1, generator: generator)
  }

  public func callAsFunction(_ x: Tensor) -> Tensor {
    require(
      x.rank == 3 && x.dim(1) == configuration.channels,
      "the audio front end reads [batch, \(configuration.channels), frames], got \(x.shape)")
    return second(first(x.to(first.weight.dtype)).gelu()).gelu().swappedAxes(1, 2)
  }
}
