extension MethodEntry {
  /// Mixers with a recurrent, state-space, long-convolution or linear-attention form.
  static let mixersRecurrent: [MethodEntry] = [
    MethodEntry(
      id: "s4",
      title: "Efficiently Modeling Long Sequences with Structured State Spaces",
      year: 2021, arxiv: "2111.00396", family: .stateSpace, kind: .mixer, sheet: .mixersRecurrent,
      claim: """
        A linear state space with a HiPPO matrix, computed as one long convolution, was first to solve Path-X (16k steps), \
        reaches 91% on sequential CIFAR-10 and generates 60× faster than a Transformer.
        """),
    MethodEntry(
      id: "sgconv",
      title: "What Makes Convolutional Models Great on Long Sequence Modeling?",
      year: 2022, arxiv: "2210.09298", family: .longConvolution, kind: .mixer, sheet: .mixersRecurrent,
      claim: """
        A multi-scale decaying kernel whose parameters grow with the logarithm of the length is enough to exceed S4 on the \
        Long Range Arena average and on Speech Commands, without Cauchy sums.
        """),
    MethodEntry(
      id: "spt",
      title: "Never Train from Scratch: Fair Comparison of Long-Sequence Models Requires Data-Driven Priors",
      year: 2023, arxiv: "2310.02980", family: .training, kind: .procedure, sheet: .mixersRecurrent,
      claim: """
        Denoising pretraining on the task's own inputs lifts Transformers by about 30 points of Long Range Arena average, to \
        86.2 against 86.1 for a well-tuned S4 trained from scratch.
        """),
    MethodEntry(
      id: "gla",
      title: "Gated Linear Attention Transformers with Hardware-Efficient Training",
      year: 2023, arxiv: "2312.06635", family: .linearAttention, kind: .mixer, sheet: .mixersRecurrent,
      claim: """
        Linear attention with data-dependent per-channel decay matches a LLaMA-style Transformer at 1.3B parameters and 100B \
        tokens, and extrapolates from 2k training tokens to beyond 20k.
        """),
    MethodEntry(
      id: "deltanet",
      title: "Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
      year: 2024, arxiv: "2406.06484", family: .linearAttention, kind: .mixer, sheet: .mixersRecurrent,
      claim: """
        The delta rule trained in parallel chunks gives, at 1.3B parameters and 100B tokens, lower perplexity and better \
        recall than Mamba and GLA; hybrids with some attention beat a strong Transformer.
        """),
    MethodEntry(
      id: "transnormer",
      title: "The Devil in Linear Transformer",
      year: 2022, arxiv: "2210.10340", family: .linearAttention, kind: .mixer, sheet: .mixersRecurrent,
      claim: """
        Replacing the denominator of linear attention by a normalisation and adding block-local attention in early layers \
        surpasses the vanilla Transformer on WikiText-103 and Long Range Arena at linear cost.
        """),
    MethodEntry(
      id: "aaren",
      title: "Attention as an RNN",
      year: 2024, arxiv: "2405.13956", family: .softmaxAttention, kind: .mixer, sheet: .mixersRecurrent,
      claim: """
        Softmax attention with a learned query is a recurrence of three running sums: on 38 datasets it is comparable to \
        Transformers while streaming in constant memory.
        """),
    MethodEntry(
      id: "lmuformer",
      title: "LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units",
      year: 2024, arxiv: "2402.04882", family: .stateSpace, kind: .model, sheet: .mixersRecurrent,
      claim: """
        Legendre memory units with convolutional channel mixing reach 96.53% on Speech Commands v2 (96.12% spiking) with 53× \
        fewer parameters and 65× fewer FLOPs than AST.
        """),
    MethodEntry(
      id: "atlas",
      title: "ATLAS: Learning to Optimally Memorize the Context at Test Time",
      year: 2025, arxiv: "2505.23735", family: .associativeMemory, kind: .mixer, sheet: .mixersRecurrent,
      claim: """
        A deep memory optimised over a sliding window of past tokens keeps more than 80% accuracy at 10M tokens on BABILong \
        and improves on Titans at 1.3B parameters.
        """),
    MethodEntry(
      id: "selective-s4",
      title: "Selective Structured State-Spaces for Long-Form Video Understanding",
      year: 2023, arxiv: "2303.14526", family: .stateSpace, kind: .mixer, sheet: .mixersRecurrent,
      claim: """
        Keeping only the informative tokens before a state-space layer gains up to 9.6% accuracy over S4 on long videos with \
        23% less memory.
        """),
    MethodEntry(
      id: "nprf",
      title: "Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding",
      year: 2021, arxiv: "2106.12566", family: .linearAttention, kind: .mixer, sheet: .mixersRecurrent,
      claim: """
        Relative position bias enters kernel attention as a Toeplitz product by FFT, in O(L log L), and normalising queries \
        and keys makes training from scratch stable.
        """),
    MethodEntry(
      id: "rala",
      title: "Breaking the Low-Rank Dilemma of Linear Attention",
      year: 2024, arxiv: "2411.07635", family: .linearAttention, kind: .mixer, sheet: .mixersRecurrent,
      claim: """
        Raising the rank of the key-value buffer and of the output lets a linear-attention vision model reach 84.4% ImageNet \
        top-1 with 26M parameters and 4.6 GFLOPs.
        """),
    MethodEntry(
      id: "slab",
      title: """
        SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch Normalization
        """,
      year: 2024, arxiv: "2405.11582", family: .linearAttention, kind: .mixer, sheet: .mixersRecurrent,
      claim: """
        Sliding from LayerNorm to a foldable BatchNorm during training, with ReLU linear attention, gives Swin-T 83.6% \
        ImageNet top-1 at 16.2 ms, 2.4 ms faster than Flatten-Swin.
        """),
    MethodEntry(
      id: "lolcats",
      title: "LoLCATs: On Low-Rank Linearizing of Large Language Models",
      year: 2024, arxiv: "2410.10254", family: .linearAttention, kind: .procedure, sheet: .mixersRecurrent,
      claim: """
        Matching attention outputs and then LoRA turns 7B-8B softmax models into linear ones with 0.2% of the trained \
        parameters and 0.4% of the tokens of earlier methods, gaining more than 20 points of MMLU on them.
        """),
  ]
}
