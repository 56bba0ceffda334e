/// TransNormer (Qin et al. 2022, "The Devil in Linear Transformer", arXiv 2210.10340): a causal language model whose early layers look
/// closely, by attention inside blocks (``DiagonalBlockAttention``), and whose late layers look far at linear cost (``NormAttention``):
///
///     layers 1 … M/2: DiagAttention,   layers M/2 + 1 … M: NormAttention
///     x ← x + Attention(SRMSNorm(x)),   x ← x + GLU(SRMSNorm(x)),   GLU(x) = W₃ (φ(W₁ x) ⊙ W₂ x)
///
/// Its recurrent state is a block of keys and values in each early layer and a matrix a head in each late one: generation costs the
/// same for every token.
public final class TransNormer: Module {
  public struct Configuration: Sendable, Equatable {
    public var vocabulary: Int
    public var width: Int
    public var layers: Int
    public var heads: Int
    /// w, tokens of a block of the early layers.
    public var block: Int
    public var form: TransNormerForm
    /// Linearized relative positions in every layer.
    public var relativePositions: Bool
    /// Positions added to the embedding, besides.
    public var positions: PositionKind
    /// Inner width of the GLU; `nil` for 8/3 of the width, to a multiple of 8.
    public var hidden: Int?
    /// φ. The paper says Swish; the authors' code has no activation of that name and takes the identity.
    public var activation: Activation
    public var tiedEmbedding: Bool
    /// The longest sequence of learned positions.
    public var length: Int
    public var dropout: Double

    /// The paper's language model, unless told otherwise.
    public init(
      vocabulary: Int, width: Int = 512, layers: Int = 6, heads: Int = 8, block: Int = 64, form: TransNormerForm = .t2,
      relativePositions: Bool = true, positions: PositionKind = .none, hidden: Int? = nil, activation: Activation = .silu,
      tiedEmbedding: Bool = true, length: Int = 512, dropout: Double = 0
    ) {
      self.vocabulary = vocabulary
      self.width = width
      self.layers = layers
      self.heads = heads
      self.block = block
      self.form = form
      self.relativePositions = relativePositions
      self.positions = positions
      self.hidden = hidden
      self.activation = activation
      self.tiedEmbedding = tiedEmbedding
      self.length = length
      self.dropout = dropout
    }

    /// The same as a stack of mixers: the first half (rounded down) of the layers diagonal.
    public var backbone: BackboneConfiguration {
      let options: JSONObject = ["form": .string(form.rawValue), "positions": .string(relativePositions ? "lrpe" : "none")]
      var diagonal = options
      diagonal["block"] = .integer(block)
      let early = MixerChoice("diagonal_attention", options: .object(diagonal))
      let late = MixerChoice("norm_attention", options: .object(options))
      var c = BackboneConfiguration(
        input: .tokens(vocabulary: vocabulary), width: width, layers: layers, heads: heads,
        mixers: (0..<max(layers, 1)).map { $0 < layers / 2 ? early : late }, feedForward: .swiglu, hidden: hidden, norm: .simpleRMS,
        isCausal: true, positions: positions, dropout: dropout, length: length)
      c.activation = activation
      c.feedForwardBias = true
      return c
    }
  }

  public let configuration: Configuration
  @Child public var decoder: LanguageModel

  /// Throws `ConfigurationError` for numbers that make no model.
  public init(_ configuration: Configuration, generator: RandomGenerator) throws {
    self.configuration = configuration
    super.init()
    decoder = try LanguageModel(configuration.backbone, tiedEmbedding: configuration.tiedEmbedding, generator: generator)
  }

  public var vocabulary: Int { configuration.vocabulary }

  /// tokens [batch, length] → logits [batch, length, vocabulary] of the token after each.
  public func callAsFunction(_ tokens: Tensor) -> Tensor { decoder(tokens) }

  public func logits(_ outputs: Tensor) -> Tensor { decoder.logits(outputs) }
}

extension TransNormer: GenerativeModel {
  public func initialState(batch: Int, cache: CacheOptions) throws -> SequenceBackbone.State {
    try decoder.initialState(batch: batch, cache: cache)
  }

  public func outputs(_ tokens: Tensor, _ state: inout SequenceBackbone.State) -> Tensor { decoder.outputs(tokens, &state) }
}
