extension MethodEntry {
  /// Methods that the papers of the other sheets compare themselves with.
  static let baselines: [MethodEntry] = [
    MethodEntry(
      id: "softmax",
      title: "Attention Is All You Need",
      year: 2017, arxiv: "1706.03762", family: .softmaxAttention, kind: .mixer, sheet: .baselines,
      claim: """
        A model made of attention alone translates English to German at 28.4 BLEU, above every earlier model and ensemble, \
        after 3.5 days of training on eight GPUs.
        """),
    MethodEntry(
      id: "linear",
      title: "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
      year: 2020, arxiv: "2006.16236", family: .linearAttention, kind: .mixer, sheet: .baselines,
      claim: """
        Attention whose similarity is a product of features runs as a recurrence in linear time: it performs like a \
        Transformer and generates very long sequences up to 4000 times faster.
        """),
    MethodEntry(
      id: "s4d",
      title: "On the Parameterization and Initialization of Diagonal State Space Models",
      year: 2022, arxiv: "2206.11893", family: .stateSpace, kind: .mixer, sheet: .baselines,
      claim: """
        A diagonal state space initialised close to S4's matrix performs like S4 on images, audio and medical series and \
        reaches 85% on average on the Long Range Arena.
        """),
    MethodEntry(
      id: "lmu",
      title: "Parallelizing Legendre Memory Unit Training",
      year: 2021, arxiv: "2102.11417", family: .stateSpace, kind: .mixer, sheet: .baselines,
      claim: """
        The linear part of a Legendre memory unit can be run over a whole sequence at once, which trains up to 200 times faster \
        and exceeds LSTMs and Transformers of far more parameters on several tasks.
        """),
    MethodEntry(
      id: "mamba",
      title: "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
      year: 2023, arxiv: "2312.00752", family: .stateSpace, kind: .mixer, sheet: .baselines,
      claim: """
        State spaces whose parameters depend on the token match Transformers of twice the size in language modelling, at five \
        times their generation throughput and linear cost up to a million tokens.
        """),
  ]
}
