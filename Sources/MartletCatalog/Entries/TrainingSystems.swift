extension MethodEntry {
  /// Optimisers, structured and elastic networks, architecture search, serving.
  static let trainingSystems: [MethodEntry] = [
    MethodEntry(
      id: "galore",
      title: "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
      year: 2024, arxiv: "2403.03507", family: .optimizer, kind: .optimizer, sheet: .trainingSystems,
      claim: """
        Adam on a low-rank projection of the gradient pretrains a 7B model on one 24 GB card, with 65.5% less optimiser memory \
        and a 1B perplexity of 15.64 against 15.56.
        """),
    MethodEntry(
      id: "fira",
      title: "Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?",
      year: 2024, arxiv: "2410.01623", family: .optimizer, kind: .optimizer, sheet: .trainingSystems,
      claim: """
        Scaling the part of the gradient outside the low-rank space by the optimiser's own correction beats GaLore at 7B with \
        an 8× smaller rank.
        """),
    MethodEntry(
      id: "mkor",
      title: "MKOR: Momentum-Enabled Kronecker-Factor-Based Optimizer Using Rank-1 Updates",
      year: 2023, arxiv: "2306.01685", family: .optimizer, kind: .optimizer, sheet: .trainingSystems,
      claim: """
        Rank-1 updates of inverse Kronecker factors make second-order steps cheap: BERT-Large converges in 600 steps and 3.10 \
        h, 2.57× faster than LAMB.
        """),
    MethodEntry(
      id: "sltrain",
      title: "SLTrain: a sparse plus low-rank approach for parameter and memory efficient pretraining",
      year: 2024, arxiv: "2406.02214", family: .lowRank, kind: .feedForward, sheet: .trainingSystems,
      claim: """
        A low-rank weight plus a random fixed-support sparse one pretrains close to full rank where low rank alone fails, with \
        up to 73% less memory at 7B.
        """),
    MethodEntry(
      id: "sst",
      title: "Sparse Spectral Training and Inference on Euclidean and Hyperbolic Neural Networks",
      year: 2024, arxiv: "2405.15481", family: .training, kind: .procedure, sheet: .trainingSystems,
      claim: """
        Updating all singular values and a sampled part of the singular vectors closes 67.6% of the perplexity gap to \
        full-rank training of OPT-125M at rank 64.
        """),
    MethodEntry(
      id: "structured-ffn",
      title: "Building on Efficient Foundations: Effectively Training LLMs with Structured Feedforward Layers",
      year: 2024, arxiv: "2406.16450", family: .feedForward, kind: .feedForward, sheet: .trainingSystems,
      claim: """
        Low-rank and block feed-forward layers with self-guided training run 2.5× faster at 32% of the parameters for 0.4 \
        perplexity at 1.3B.
        """),
    MethodEntry(
      id: "deep-optimizer-states",
      title: "Deep Optimizer States: Towards Scalable Training of Transformer Models Using Interleaved Offloading",
      year: 2024, arxiv: "2410.21316", family: .optimizer, kind: .optimizer, sheet: .trainingSystems,
      claim: """
        Moving optimiser states between host and accelerator interleaved with updates on both makes iterations up to 2.5× \
        faster than ZeRO-3 offloading.
        """),
    MethodEntry(
      id: "matformer",
      title: "MatFormer: Nested Transformer for Elastic Inference",
      year: 2023, arxiv: "2310.07707", family: .feedForward, kind: .model, sheet: .trainingSystems,
      claim: """
        Nested feed-forward widths trained together give a 2.6B model from which models of 1.5B to 2.6B are cut that match \
        independently trained ones.
        """),
    MethodEntry(
      id: "mohd",
      title: "Mixture of Hidden-Dimensions Transformer",
      year: 2024, arxiv: "2412.05644", family: .feedForward, kind: .feedForward, sheet: .trainingSystems,
      claim: """
        Routing tokens over shared and specialised hidden dimensions gains 1.7% over ten tasks with 50% fewer activated \
        parameters.
        """),
    MethodEntry(
      id: "memoryformer",
      title: "MemoryFormer: Minimize Transformer Computation by Removing Fully-Connected Layers",
      year: 2024, arxiv: "2411.12992", family: .feedForward, kind: .feedForward, sheet: .trainingSystems,
      claim: """
        Hashed look-ups in learned tables replace all fully-connected layers, for better average accuracy than Pythia of the \
        same shape at a fraction of its FLOPs.
        """),
    MethodEntry(
      id: "tokenformer",
      title: "TokenFormer: Rethinking Transformer Scaling with Tokenized Model Parameters",
      year: 2024, arxiv: "2410.23168", family: .feedForward, kind: .model, sheet: .trainingSystems,
      claim: """
        Attention over parameter tokens replaces linear layers, so that a model grows to 1.4B by adding tokens at about a \
        tenth of the cost of training anew.
        """),
    MethodEntry(
      id: "ladder-residual",
      title: """
        Ladder-residual: parallelism-aware architecture for accelerating large model inference with communication overlapping
        """,
      year: 2025, arxiv: "2501.06589", family: .distributed, kind: .model, sheet: .trainingSystems,
      claim: """
        Feeding each block the residual stream of one block earlier hides tensor-parallel communication: about 30% faster 70B \
        inference on 8 devices, 60% without fast links.
        """),
    MethodEntry(
      id: "logah",
      title: "LoGAH: Predicting 774-Million-Parameter Transformers using Graph HyperNetworks with 1/100 Parameters",
      year: 2024, arxiv: "2405.16287", family: .architectureSearch, kind: .model, sheet: .trainingSystems,
      claim: """
        A graph hypernetwork with a low-rank decoder predicts initial weights for 774M Transformers with about a hundredth of \
        their parameters, better than random ones.
        """),
    MethodEntry(
      id: "nas-efficient-transformers",
      title: "Neural Architecture Search on Efficient Transformers and Beyond",
      year: 2022, arxiv: "2207.13955", family: .architectureSearch, kind: .procedure, sheet: .trainingSystems,
      claim: """
        Searching layer by layer between softmax and cosFormer attention keeps the accuracy of the standard Transformer on \
        WMT'14 and CIFAR-10 with less compute.
        """),
    MethodEntry(
      id: "vit-resnas",
      title: "Searching for Efficient Multi-Stage Vision Transformers",
      year: 2021, arxiv: "2109.00642", family: .architectureSearch, kind: .procedure, sheet: .trainingSystems,
      claim: """
        Residual spatial reduction with weight-sharing search finds multi-stage vision Transformers with a better trade of \
        accuracy for multiply-adds than DeiT at 1.8 to 4.5 GMACs.
        """),
    MethodEntry(
      id: "s-lora",
      title: "S-LoRA: Serving Thousands of Concurrent LoRA Adapters",
      year: 2023, arxiv: "2311.03285", family: .serving, kind: .procedure, sheet: .trainingSystems,
      claim: """
        One paged pool for adapters and caches, with batched products over mixed ranks, serves 2000 adapters on one GPU with \
        small overhead, at up to 4× vLLM's throughput.
        """),
  ]
}
