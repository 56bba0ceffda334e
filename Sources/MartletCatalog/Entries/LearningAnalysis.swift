extension MethodEntry {
  /// What Transformers learn in context, and how to read and edit them.
  static let learningAnalysis: [MethodEntry] = [
    MethodEntry(
      id: "icl-linear",
      title: "What learning algorithm is in-context learning? Investigations with linear models",
      year: 2022, arxiv: "2211.15661", family: .inContextLearning, kind: .analysis, sheet: .learningAnalysis,
      claim: """
        Transformers trained on linear regression move, as depth grows, from one gradient step to ridge to Bayes-optimal \
        prediction, and their layers encode the weight vector.
        """),
    MethodEntry(
      id: "icl-trained-linear",
      title: "Trained Transformers Learn Linear Models In-Context",
      year: 2023, arxiv: "2306.09927", family: .inContextLearning, kind: .analysis, sheet: .learningAnalysis,
      claim: """
        Gradient flow on one layer of linear attention converges globally to the best linear in-context learner, with risk \
        O(1/M + 1/N^2), and fails under covariate shift.
        """),
    MethodEntry(
      id: "icl-softmax",
      title: "The Closeness of In-Context Learning and Weight Shifting for Softmax Regression",
      year: 2023, arxiv: "2304.13276", family: .inContextLearning, kind: .analysis, sheet: .learningAnalysis,
      claim: """
        A layer's change of the data and a gradient step on the weights of softmax regression are bounded alike, and their \
        predictions are very similar on synthetic tasks.
        """),
    MethodEntry(
      id: "icl-boolean",
      title: "Understanding In-Context Learning in Transformers and LLMs by Learning to Learn Discrete Functions",
      year: 2023, arxiv: "2310.03016", family: .inContextLearning, kind: .analysis, sheet: .learningAnalysis,
      claim: """
        Transformers learn conjunctions, disjunctions and thresholds in context almost optimally, stay at chance on full \
        parity, and learn at once from teaching sequences.
        """),
    MethodEntry(
      id: "arithmetic",
      title: "Teaching Arithmetic to Small Transformers",
      year: 2023, arxiv: "2307.03381", family: .inContextLearning, kind: .task, sheet: .learningAnalysis,
      claim: """
        Writing sums in reverse or with intermediate steps lets small models learn 3-digit addition sharply: 99.8% at 5000 \
        samples reversed, where plain order gives 81.1%.
        """),
    MethodEntry(
      id: "algoformer",
      title: "AlgoFormer: An Efficient Transformer Framework with Algorithmic Structures",
      year: 2024, arxiv: "2402.13572", family: .inContextLearning, kind: .model, sheet: .learningAnalysis,
      claim: """
        A looped block between a pre- and a post-Transformer expresses gradient and Newton iterations and beats 12 layers with \
        about a quarter of their parameters.
        """),
    MethodEntry(
      id: "transformer-programs",
      title: "Learning Transformer Programs",
      year: 2023, arxiv: "2306.01128", family: .interpretability, kind: .model, sheet: .learningAnalysis,
      claim: """
        Transformers constrained to discrete variables and attention convert into readable programs that solve reverse, \
        histogram, sort and Dyck tasks at small sizes with about 98-100% accuracy.
        """),
    MethodEntry(
      id: "talking-heads",
      title: "Talking Heads: Understanding Inter-layer Communication in Transformer Language Models",
      year: 2024, arxiv: "2406.09519", family: .interpretability, kind: .analysis, sheet: .learningAnalysis,
      claim: """
        Heads of GPT-2 talk through one or two singular directions of the residual stream; editing a 3-dimensional subspace \
        raises list-recall accuracy by over 20 points.
        """),
    MethodEntry(
      id: "pmet",
      title: "PMET: Precise Model Editing in a Transformer",
      year: 2023, arxiv: "2308.08742", family: .editing, kind: .procedure, sheet: .learningAnalysis,
      claim: """
        Optimising the hidden states of attention and feed-forward together but editing only the latter gives the best score \
        over 10k edits on GPT-J and GPT-NeoX.
        """),
    MethodEntry(
      id: "dsi++",
      title: "DSI++: Updating Transformer Memory with New Documents",
      year: 2022, arxiv: "2212.09744", family: .continualLearning, kind: .procedure, sheet: .learningAnalysis,
      claim: """
        Flat minima and generated queries let a differentiable index take in new documents with 21.1 points more Hits@10 and \
        6× fewer updates than re-training.
        """),
    MethodEntry(
      id: "mtl-survey",
      title: """
        Challenges and Opportunities of Using Transformer-Based Multi-Task Learning in NLP Through ML Lifecycle: A Survey
        """,
      year: 2023, arxiv: "2308.08234", family: .survey, kind: .procedure, sheet: .learningAnalysis,
      claim: """
        Multi-task learning is cheaper than a fleet of single-task models and helps related tasks with little data, at the \
        risk of negative transfer; its union with continual learning is open.
        """),
  ]
}
