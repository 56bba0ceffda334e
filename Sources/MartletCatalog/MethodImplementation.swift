import Martlet

/// What makes a catalog entry runnable: its contract, one run on given tensors, and the scaled-down experiment of its paper.
public protocol MethodImplementation: Sendable {
  /// The keys that the configuration understands, for `describe`.
  var configurationKeys: [ConfigurationKey] { get }

  /// The parameters of the method under a configuration, by checkpoint key and in their order, for `describe`.
  /// Throws ``ConfigurationError`` for a key or value that doesn't exist.
  func parameterShapes(configuration: JSONValue) throws -> [(key: String, shape: [Int])]

  /// Where the equations come from: paper, section, equation numbers.
  var source: String { get }

  /// Runs the method on tensors from a file; names in and out are those of the contract of the entry's kind.
  /// Throws ``ConfigurationError``, or `TensorError` for tensors that are missing or have the wrong shape.
  func probe(configuration: JSONValue, tensors: [String: Tensor]) throws -> [String: Tensor]

  /// Whether there is an experiment for `reproduce`; a method without one can still be probed.
  var isReproducible: Bool { get }

  /// Runs the scaled-down experiment (about a minute on two cores) and judges the claim from its figures.
  /// `progress` receives one line of text at a time.
  func reproduce(progress: (String) -> Void) throws -> Reproduction
}

extension MethodImplementation {
  public var isReproducible: Bool { true }

  /// The configuration with every default filled in; see `[ConfigurationKey].completed(_:)`.
  public func completed(_ configuration: JSONValue) throws -> JSONValue { try configurationKeys.completed(configuration) }
}
