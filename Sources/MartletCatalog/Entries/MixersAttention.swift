extension MethodEntry {
  /// Attention made sparse, low-rank, associative, graph-aware, distributed or fast.
  static let mixersAttention: [MethodEntry] = [
    MethodEntry(
      id: "lra",
      title: "Long Range Arena: A Benchmark for Efficient Transformers",
      year: 2020, arxiv: "2011.04006", family: .benchmark, kind: .task, sheet: .mixersAttention,
      claim: """
        Tasks of 1k to 16k tokens compare efficient Transformers on quality, speed and memory under one protocol; none of them \
        is best at everything.
        """),
    MethodEntry(
      id: "scatterbrain",
      title: "Scatterbrain: Unifying Sparse and Low-rank Attention Approximation",
      year: 2021, arxiv: "2110.15343", family: .sparseAttention, kind: .mixer, sheet: .mixersAttention,
      claim: """
        Exact entries on a sparse support plus random features elsewhere give a 2.1× lower error than either alone, and save \
        98% of attention memory at 1% accuracy without fine-tuning.
        """),
    MethodEntry(
      id: "sea",
      title: "SEA: Sparse Linear Attention with Estimated Attention Mask",
      year: 2023, arxiv: "2310.01777", family: .sparseAttention, kind: .mixer, sheet: .mixersAttention,
      claim: """
        An estimated compressed attention map picks the top-k entries, so that OPT-1.3B keeps better perplexity than dense \
        attention with about half of its memory.
        """),
    MethodEntry(
      id: "combiner",
      title: "Combiner: Full Attention Transformer with Sparse Computation Cost",
      year: 2021, arxiv: "2107.05768", family: .sparseAttention, kind: .mixer, sheet: .mixersAttention,
      claim: """
        Structured conditional expectations give every token full attention at the cost of a sparse pattern: 2.77 bits/dim on \
        CIFAR-10 and 3.42 on ImageNet-64.
        """),
    MethodEntry(
      id: "soft",
      title: "SOFT: Softmax-free Transformer with Linear Complexity",
      year: 2021, arxiv: "2110.11945", family: .lowRankAttention, kind: .mixer, sheet: .mixersAttention,
      claim: """
        A Gaussian kernel with a Nyström approximation replaces softmax at linear cost: 79.3% ImageNet top-1 with 13M \
        parameters, 83.3% with 87M.
        """),
    MethodEntry(
      id: "ecoformer",
      title: "EcoFormer: Energy-Saving Attention with Linear Complexity",
      year: 2022, arxiv: "2209.09004", family: .linearAttention, kind: .mixer, sheet: .mixersAttention,
      claim: """
        Binary codes from a learned kernel hash replace multiplications by additions in attention: 73% less on-chip energy for \
        PVTv2-B0 at 0.33% lower ImageNet top-1.
        """),
    MethodEntry(
      id: "lama",
      title: "Low Rank Factorization for Compact Multi-Head Self-Attention",
      year: 2019, arxiv: "1912.00835", family: .lowRankAttention, kind: .mixer, sheet: .mixersAttention,
      claim: """
        A low-rank bilinear score computes all heads at once over a GRU, matching or beating a Transformer encoder in text \
        classification with far fewer attention parameters.
        """),
    MethodEntry(
      id: "hopfield",
      title: "Hopfield Networks is All You Need",
      year: 2020, arxiv: "2008.02217", family: .associativeMemory, kind: .mixer, sheet: .mixersAttention,
      claim: """
        The update of a continuous Hopfield network with exponential capacity is softmax attention; as a pooling layer it was \
        best on 3 of 4 multiple-instance benchmarks.
        """),
    MethodEntry(
      id: "quantizable",
      title: "Quantizable Transformers: Removing Outliers by Helping Attention Heads Do Nothing",
      year: 2023, arxiv: "2306.12929", family: .softmaxAttention, kind: .mixer, sheet: .mixersAttention,
      claim: """
        Letting heads write nothing, by clipped softmax or a gate, removes activation outliers, so that 8-bit weights and \
        activations lose little where the vanilla model collapses.
        """),
    MethodEntry(
      id: "gin-attention",
      title: "Graph-Aware Isomorphic Attention for Adaptive Dynamics in Transformers",
      year: 2025, arxiv: "2501.02393", family: .graphAttention, kind: .mixer, sheet: .mixersAttention,
      claim: """
        Treating attention as a graph and aggregating over it with isomorphism or principal-neighbourhood networks lowers \
        validation loss and the generalisation gap with fewer parameters.
        """),
    MethodEntry(
      id: "grit",
      title: "Graph Inductive Biases in Transformers without Message Passing",
      year: 2023, arxiv: "2305.17589", family: .graphAttention, kind: .model, sheet: .mixersAttention,
      claim: """
        Learned relative random-walk encodings and attention that updates node pairs give a graph Transformer without message \
        passing a ZINC error of about 0.059 with 473k parameters.
        """),
    MethodEntry(
      id: "greenformers",
      title: "Greenformers: Improving Computation and Memory Efficiency in Transformer Models via Low-Rank Approximation",
      year: 2021, arxiv: "2108.10808", family: .lowRank, kind: .compressor, sheet: .mixersAttention,
      claim: """
        Low-rank linear layers save time and memory for sequences up to 512 tokens, Linformer beyond; a low-rank BERT-base \
        saves more than 30% of the computational cost.
        """),
    MethodEntry(
      id: "fit",
      title: "FIT: Far-reaching Interleaved Transformers",
      year: 2023, arxiv: "2305.12689", family: .softmaxAttention, kind: .model, sheet: .mixersAttention,
      claim: """
        Local layers on groups of tokens interleaved with global layers on latents train end to end on 6400×6400 images (160k \
        tokens) within 16 GB.
        """),
    MethodEntry(
      id: "rsa",
      title: "Sequence Parallelism: Long Sequence Training from System Perspective",
      year: 2021, arxiv: "2105.13120", family: .distributed, kind: .mixer, sheet: .mixersAttention,
      claim: """
        Splitting the sequence over devices that pass keys and values around a ring trains BERT with a 13.7× larger batch and \
        3.0× longer sequences than tensor parallelism on 64 GPUs.
        """),
    MethodEntry(
      id: "lean-attention",
      title: "Lean Attention: Hardware-Aware Scalable Attention Mechanism for the Decode-Phase of Transformers",
      year: 2024, arxiv: "2405.10480", family: .softmaxAttention, kind: .mixer, sheet: .mixersAttention,
      claim: """
        Stream-K scheduling of exact decode attention is 2.6× faster on average than FlashAttention-2, and up to 8.33× at a \
        context of 512k tokens.
        """),
    MethodEntry(
      id: "bytetransformer",
      title: "ByteTransformer: A High-Performance Transformer Boosted for Variable-Length Inputs",
      year: 2022, arxiv: "2210.03052", family: .serving, kind: .model, sheet: .mixersAttention,
      claim: """
        Running on packed tokens without padding makes a BERT encoder 55% to 138% faster than PyTorch JIT, TensorFlow XLA, \
        TurboTransformer, DeepSpeed and FasterTransformer.
        """),
  ]
}
