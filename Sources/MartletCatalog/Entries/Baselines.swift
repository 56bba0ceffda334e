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
  ]
}
