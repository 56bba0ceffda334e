import Martlet

/// One paper: what it is, what it claims, and whether it can be run here.
public struct MethodEntry: Sendable {
  /// The short name used on the command line, e.g. `gla`.
  public let id: String
  /// The paper's title.
  public let title: String
  /// Year of the first version, or of the venue where the paper is known by it.
  public let year: Int
  /// arXiv identifier, nil for a paper that isn't there.
  public let arxiv: String?
  public let family: Family
  public let kind: Kind
  /// The specification sheet that describes the method's equations and checks.
  public let sheet: Sheet
  /// The paper's central claim in one sentence, as its authors report it (not as measured here).
  public let claim: String

  /// What a method is, which decides the tensors that `probe` reads and writes.
  public enum Kind: String, Sendable, Codable, CaseIterable {
    case mixer, model, adapter, compressor, optimizer, procedure, task, analysis
    case feedForward = "feed-forward"
  }

  /// What a method is about: the folder a reader would look in.
  public enum Family: String, Sendable, Codable, CaseIterable {
    case softmaxAttention = "softmax-attention"
    case linearAttention = "linear-attention"
    case stateSpace = "state-space"
    case longConvolution = "long-convolution"
    case sparseAttention = "sparse-attention"
    case lowRankAttention = "low-rank-attention"
    case associativeMemory = "associative-memory"
    case graphAttention = "graph-attention"
    case feedForward = "feed-forward"
    case adapter
    case lowRank = "low-rank"
    case quantization, pruning, rewriting
    case optimizer, training
    case architectureSearch = "architecture-search"
    case continualLearning = "continual-learning"
    case editing, serving, distributed
    case language, vision, video, speech, retrieval, recommendation, reinforcement, weather
    case timeSeries = "time-series"
    case inContextLearning = "in-context-learning"
    case interpretability, benchmark, survey
  }

  /// The eight groups in which the papers' methods are specified, and the baselines that these are compared with.
  public enum Sheet: String, Sendable, Codable, CaseIterable {
    case mixersRecurrent = "mixers-recurrent"
    case mixersAttention = "mixers-attention"
    case adapters, compression
    case trainingSystems = "training-systems"
    case visionMultimodal = "vision-multimodal"
    case learningAnalysis = "learning-analysis"
    case domainsSurveys = "domains-surveys"
    case baselines

    /// The entries of the group, in the sheet's order.
    public var entries: [MethodEntry] {
      switch self {
      case .mixersRecurrent: MethodEntry.mixersRecurrent
      case .mixersAttention: MethodEntry.mixersAttention
      case .adapters: MethodEntry.adapters
      case .compression: MethodEntry.compression
      case .trainingSystems: MethodEntry.trainingSystems
      case .visionMultimodal: MethodEntry.visionMultimodal
      case .learningAnalysis: MethodEntry.learningAnalysis
      case .domainsSurveys: MethodEntry.domainsSurveys
      case .baselines: MethodEntry.baselines
      }
    }
  }

  /// Whether the method can be probed and reproduced here.
  public enum Status: String, Sendable, Codable { case ready, planned }

  init(
    id: String, title: String, year: Int, arxiv: String?, family: Family, kind: Kind, sheet: Sheet, claim: String
  ) {
    self.id = id
    self.title = title
    self.year = year
    self.arxiv = arxiv
    self.family = family
    self.kind = kind
    self.sheet = sheet
    self.claim = claim
  }

  /// What runs the method here, if anything does.
  public var implementation: (any MethodImplementation)? { Catalog.implementations[id] }

  /// Ready exactly when an implementation is registered.
  public var status: Status { implementation == nil ? .planned : .ready }

  /// The object that `methods --json` prints.
  public var json: JSONValue {
    [
      "id": .string(id), "title": .string(title), "year": .integer(year), "arxiv": arxiv.map(JSONValue.string) ?? .null,
      "family": .string(family.rawValue), "kind": .string(kind.rawValue), "status": .string(status.rawValue), "claim": .string(claim),
    ]
  }
}
