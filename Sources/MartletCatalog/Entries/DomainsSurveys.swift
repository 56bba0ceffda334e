extension MethodEntry {
  /// Models of other domains, and the surveys.
  static let domainsSurveys: [MethodEntry] = [
    MethodEntry(
      id: "ebt",
      title: "Energy-Based Transformers are Scalable Learners and Thinkers",
      year: 2025, arxiv: "2507.02092", family: .language, kind: .model, sheet: .domainsSurveys,
      claim: """
        Predicting by gradient descent on a learned energy scales up to 35% faster than Transformer++, and thinking longer \
        gains 29% more on language.
        """),
    MethodEntry(
      id: "ebwm",
      title: "Cognitively Inspired Energy-Based World Models",
      year: 2024, arxiv: "2406.08862", family: .language, kind: .model, sheet: .domainsSurveys,
      claim: """
        A world model that scores context and proposed future, and refines it by descent, scales better than an autoregressive \
        Transformer in vision, with early promise in text.
        """),
    MethodEntry(
      id: "rxt",
      title: "Reactive Transformer (RxT) -- Stateful Real-Time Processing for Event-Driven Reactive Language Models",
      year: 2025, arxiv: "2510.03561", family: .language, kind: .model, sheet: .domainsSurveys,
      claim: """
        A fixed-size memory written after each turn makes dialogue cost linear in turns with constant latency; 12M parameters \
        reach perplexity 2.74 where a 22M stateless model has 4.37.
        """),
    MethodEntry(
      id: "gtrxl",
      title: "Stabilizing Transformers for Reinforcement Learning",
      year: 2019, arxiv: "1910.06764", family: .reinforcement, kind: .model, sheet: .domainsSurveys,
      claim: """
        Normalising the input of each sub-layer and gating the residual makes Transformer-XL trainable by reinforcement: 117.6 \
        mean human-normalised score on DMLab-30, LSTM 99.3.
        """),
    MethodEntry(
      id: "itransformer",
      title: "iTransformer: Inverted Transformers Are Effective for Time Series Forecasting",
      year: 2023, arxiv: "2310.06625", family: .timeSeries, kind: .model, sheet: .domainsSurveys,
      claim: """
        One token per variate instead of per time step improves a Transformer forecaster by 38.9%, and longer look-back \
        windows lower its error.
        """),
    MethodEntry(
      id: "entrope",
      title: "EntroPE: Entropy-Guided Dynamic Patch Encoder for Time Series Forecasting",
      year: 2025, arxiv: "2509.26157", family: .timeSeries, kind: .model, sheet: .domainsSurveys,
      claim: """
        Patch boundaries where a small frozen model is surprised give about 20% lower error than PatchTST on ETTh1 with fewer \
        tokens.
        """),
    MethodEntry(
      id: "ts-survey",
      title: "Transformers in Time Series: A Survey",
      year: 2022, arxiv: "2202.07125", family: .survey, kind: .analysis, sheet: .domainsSurveys,
      claim: """
        Forecasting Transformers get worse with longer input and with more than 3-6 layers, and series decomposition cuts \
        their error by 50-80%.
        """),
    MethodEntry(
      id: "fnspid",
      title: "FNSPID: A Comprehensive Financial News Dataset in Time Series",
      year: 2024, arxiv: "2402.06698", family: .timeSeries, kind: .task, sheet: .domainsSurveys,
      claim: """
        29.7M prices aligned with 15.7M news records of 4775 companies show that more and better data raise accuracy, and that \
        news sentiment helps a Transformer forecaster modestly.
        """),
    MethodEntry(
      id: "paraformer",
      title: "Paraformer: Fast and Accurate Parallel Transformer for Non-autoregressive End-to-End Speech Recognition",
      year: 2022, arxiv: "2206.08317", family: .speech, kind: .model, sheet: .domainsSurveys,
      claim: """
        An integrate-and-fire length predictor with a glancing sampler recognises speech in one pass, as accurate as \
        autoregressive Transformers and over 10× faster.
        """),
    MethodEntry(
      id: "text-ranking",
      title: "Pretrained Transformers for Text Ranking: BERT and Beyond",
      year: 2020, arxiv: "2010.06467", family: .retrieval, kind: .procedure, sheet: .domainsSurveys,
      claim: """
        Cross-encoders rank best and dense retrieval beats expanded sparse retrieval in domain: MRR@10 on MS MARCO rises from \
        .187 for BM25 to about .38 for reranking by pairs.
        """),
    MethodEntry(
      id: "survey-inference",
      title: "A Survey of Techniques for Optimizing Transformer Inference",
      year: 2023, arxiv: "2307.07982", family: .survey, kind: .analysis, sheet: .domainsSurveys,
      claim: """
        Distillation, pruning, quantisation, architecture search and hardware trade size, FLOPs and accuracy against each \
        other; a cost model predicts what each will buy.
        """),
    MethodEntry(
      id: "survey-faster",
      title: "A Practical Survey on Faster and Lighter Transformers",
      year: 2021, arxiv: "2103.14636", family: .survey, kind: .analysis, sheet: .domainsSurveys,
      claim: """
        No cheap Transformer is best everywhere: the choice among general methods and lower-complexity attention follows from \
        length, budget and hardware.
        """),
    MethodEntry(
      id: "survey-applications",
      title: "A Comprehensive Survey on Applications of Transformers for Deep Learning Tasks",
      year: 2023, arxiv: "2306.07303", family: .survey, kind: .task, sheet: .domainsSurveys,
      claim: """
        Transformers of 2017-2022 serve five domains (language, vision, multi-modal, audio and speech, signals), whose tasks \
        fix the inputs, heads, losses and metrics a toolkit needs.
        """),
    MethodEntry(
      id: "survey-long-context",
      title: "Advancing Transformer Architecture in Long-Context Large Language Models: A Comprehensive Survey",
      year: 2023, arxiv: "2311.12351", family: .survey, kind: .analysis, sheet: .domainsSurveys,
      claim: """
        Long context is bought in four ways that combine: efficient attention, long-term memory, extrapolating positions and \
        processing of the context.
        """),
  ]
}
