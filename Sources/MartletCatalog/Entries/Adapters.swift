extension MethodEntry {
  /// Parameter-efficient adaptation of pretrained models.
  static let adapters: [MethodEntry] = [
    MethodEntry(
      id: "randlora",
      title: "RandLoRA: Full-rank parameter-efficient fine-tuning of large models",
      year: 2025, arxiv: "2502.00987", family: .adapter, kind: .adapter, sheet: .adapters,
      claim: """
        Learned diagonal scalings of fixed random low-rank bases make a full-rank update that matches or beats LoRA at equal \
        trainable parameters, most clearly on CLIP.
        """),
    MethodEntry(
      id: "dylora",
      title: "DyLoRA: Parameter Efficient Tuning of Pre-trained Models using Dynamic Search-Free Low-Rank Adaptation",
      year: 2022, arxiv: "2210.07558", family: .adapter, kind: .adapter, sheet: .adapters,
      claim: """
        Training with random truncation orders the ranks, so that one adapter serves every rank and costs 4-7× less than \
        training one LoRA per rank.
        """),
    MethodEntry(
      id: "sora",
      title: "Sparse Low-rank Adaptation of Pre-trained Language Models",
      year: 2023, arxiv: "2311.11696", family: .adapter, kind: .adapter, sheet: .adapters,
      claim: """
        A gate with proximal updates prunes ranks while training, and stays ahead of LoRA on GLUE with 70% of the parameters \
        and of the training time.
        """),
    MethodEntry(
      id: "svfit",
      title: "SVFit: Parameter-Efficient Fine-Tuning of Large Pre-Trained Models Using Singular Values",
      year: 2024, arxiv: "2409.05926", family: .adapter, kind: .adapter, sheet: .adapters,
      claim: """
        Training only the top singular values of the pretrained weights outperforms LoRA with 16× fewer trainable parameters.
        """),
    MethodEntry(
      id: "loram",
      title: "Train Small, Infer Large: Memory-Efficient LoRA Training for Large Language Models",
      year: 2025, arxiv: "2502.13533", family: .adapter, kind: .procedure, sheet: .adapters,
      claim: """
        An adapter trained on a pruned model is expanded for the full one: 70B models are tuned on a 20 GB GPU with 15.81× \
        less parameter storage.
        """),
    MethodEntry(
      id: "lora-sb",
      title: "Initialization using Update Approximation is a Silver Bullet for Extremely Efficient Low-Rank Fine-Tuning",
      year: 2024, arxiv: "2411.19557", family: .adapter, kind: .adapter, sheet: .adapters,
      claim: """
        Fixing the outer factors from the first full fine-tuning gradient lets a small inner matrix exceed LoRA with 27-90× \
        fewer trainable parameters.
        """),
    MethodEntry(
      id: "nola",
      title: "NOLA: Compressing LoRA using Linear Combination of Random Basis",
      year: 2023, arxiv: "2310.02556", family: .adapter, kind: .adapter, sheet: .adapters,
      claim: """
        Low-rank factors written as mixtures of seeded random bases tune LLaMA-2-70B with 0.6M parameters, about 20× fewer \
        than rank-1 LoRA, at no loss of accuracy.
        """),
    MethodEntry(
      id: "allora",
      title: "ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws",
      year: 2024, arxiv: "2410.09692", family: .adapter, kind: .adapter, sheet: .adapters,
      claim: """
        Scaling the gradient by the inverse norm of each row of the update replaces dropout and the scaling factor, and is \
        more accurate than LoRA and DoRA at short budgets.
        """),
    MethodEntry(
      id: "loldu",
      title: "LoLDU: Low-Rank Adaptation via Lower-Diag-Upper Decomposition for Parameter-Efficient Fine-Tuning",
      year: 2024, arxiv: "2410.13618", family: .adapter, kind: .adapter, sheet: .adapters,
      claim: """
        Training the diagonal of an LDU factorisation of the weight needs up to 2600× fewer trainable parameters than regular \
        adapters at comparable quality.
        """),
    MethodEntry(
      id: "increlora",
      title: "IncreLoRA: Incremental Parameter Allocation Method for Parameter-Efficient Fine-tuning",
      year: 2023, arxiv: "2308.12043", family: .adapter, kind: .adapter, sheet: .adapters,
      claim: """
        Adding rank where importance scores ask for it during training gives a higher GLUE average than LoRA and AdaLoRA at \
        equal final budget, most with little data.
        """),
    MethodEntry(
      id: "lamda",
      title: "LaMDA: Large Model Fine-Tuning via Spectrally Decomposed Low-Dimensional Adaptation",
      year: 2024, arxiv: "2406.12832", family: .adapter, kind: .adapter, sheet: .adapters,
      claim: """
        A small square matrix between singular directions, with gradual freezing, matches or beats LoRA with up to 17.7× fewer \
        parameter updates and 1.32× lower peak memory.
        """),
    MethodEntry(
      id: "s2lora",
      title: "Sparsely Shared LoRA on Whisper for Child Speech Recognition",
      year: 2023, arxiv: "2309.11756", family: .adapter, kind: .adapter, sheet: .adapters,
      claim: """
        Factors shared over all layers with learned sparse per-layer weights train about 0.02% of Whisper, on a par with \
        AdaLoRA in domain and better out of domain.
        """),
    MethodEntry(
      id: "trans-lora",
      title: "Trans-LoRA: towards data-free Transferable Parameter Efficient Finetuning",
      year: 2024, arxiv: "2405.17258", family: .adapter, kind: .procedure, sheet: .adapters,
      claim: """
        An adapter moves to a new base model by distillation on filtered synthetic data, without its training data, at equal \
        or up to about 10 points better accuracy.
        """),
    MethodEntry(
      id: "hut",
      title: "HUT: A More Computation Efficient Fine-Tuning Method With Hadamard Updated Transformation",
      year: 2024, arxiv: "2409.13501", family: .adapter, kind: .adapter, sheet: .adapters,
      claim: """
        Multiplying the weight elementwise by a low-rank update is on a par with or above LoRA on GLUE and E2E with fewer \
        training FLOPs and no inference cost.
        """),
    MethodEntry(
      id: "mtlora",
      title: "MTLoRA: A Low-Rank Adaptation Approach for Efficient Multi-Task Learning",
      year: 2024, arxiv: "2403.20320", family: .adapter, kind: .adapter, sheet: .adapters,
      claim: """
        Shared and per-task low-rank modules exceed full multi-task fine-tuning of Swin-T on PASCAL-Context with 3.6× fewer \
        trainable parameters.
        """),
    MethodEntry(
      id: "llava-mole",
      title: "LLaVA-MoLE: Sparse Mixture of LoRA Experts for Mitigating Data Conflicts in Instruction Finetuning MLLMs",
      year: 2024, arxiv: "2401.16160", family: .adapter, kind: .feedForward, sheet: .adapters,
      claim: """
        Routing each token to one of several LoRA experts keeps every domain at its single-domain level on mixed data, beating \
        plain LoRA even with twice its samples.
        """),
    MethodEntry(
      id: "codyra",
      title: """
        Adaptive Rank, Reduced Forgetting: Knowledge Retention in Continual Learning Vision-Language Models with Dynamic \
        Rank-Selective LoRA
        """,
      year: 2024, arxiv: "2412.01004", family: .adapter, kind: .adapter, sheet: .adapters,
      claim: """
        Keeping only the ranks each task needs, and merging them, retains CLIP's zero-shot ability while learning a series of \
        tasks without reference data or task prediction.
        """),
    MethodEntry(
      id: "lq-lora",
      title: "LQ-LoRA: Low-rank Plus Quantized Matrix Decomposition for Efficient Language Model Finetuning",
      year: 2023, arxiv: "2311.12023", family: .adapter, kind: .compressor, sheet: .adapters,
      claim: """
        Splitting each weight into a quantised and a low-rank part with bits set by an integer program makes 2.75-bit \
        LLaMA-2-70B (27 GB) competitive with full precision.
        """),
    MethodEntry(
      id: "lora-limits",
      title: "Computational Limits of Low-Rank Adaptation (LoRA) Fine-Tuning for Transformer Models",
      year: 2024, arxiv: "2406.03136", family: .adapter, kind: .analysis, sheet: .adapters,
      claim: """
        LoRA's gradient can be computed in almost linear time exactly when the norms of inputs and weights stay below a shared \
        threshold; above it no sub-quadratic algorithm exists under SETH.
        """),
    MethodEntry(
      id: "pvp",
      title: "PVP: Pre-trained Visual Parameter-Efficient Tuning",
      year: 2023, arxiv: "2304.13639", family: .adapter, kind: .procedure, sheet: .adapters,
      claim: """
        Pre-training the added modules before few-shot tuning raises average accuracy on fine-grained recognition by 16.08 \
        points at one shot and 1.95 at sixteen.
        """),
  ]
}
