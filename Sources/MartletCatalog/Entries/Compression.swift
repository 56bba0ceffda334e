extension MethodEntry {
  /// Low-rank, quantised, pruned and rewritten models.
  static let compression: [MethodEntry] = [
    MethodEntry(
      id: "pela",
      title: "PELA: Learning Parameter-Efficient Models with Low-Rank Approximation",
      year: 2023, arxiv: "2310.10700", family: .lowRank, kind: .procedure, sheet: .compression,
      claim: """
        An intermediate pre-training of the factorised model with feature distillation removes one to two thirds of the \
        parameters for about 0.6 points.
        """),
    MethodEntry(
      id: "dsformer",
      title: "DSFormer: Effective Compression of Text-Transformers by Dense-Sparse Weight Factorization",
      year: 2023, arxiv: "2312.13211", family: .lowRank, kind: .compressor, sheet: .compression,
      claim: """
        A small dense factor times a semi-structured sparse one compresses up to 40% more than the best low-rank factorisers, \
        2.8× on BERT-base at about 1% loss.
        """),
    MethodEntry(
      id: "lord",
      title: "LoRD: Low Rank Decomposition Of Monolingual Code LLMs For One-Shot Compression",
      year: 2023, arxiv: "2309.14021", family: .lowRank, kind: .compressor, sheet: .compression,
      claim: """
        One-shot decomposition from output covariances takes StarCoder from 16B to 13.2B parameters with no loss of HumanEval \
        pass@1, in under 10 minutes.
        """),
    MethodEntry(
      id: "welore",
      title: "From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients",
      year: 2024, arxiv: "2407.11239", family: .lowRank, kind: .compressor, sheet: .compression,
      claim: """
        Ranks chosen per layer from the singular spectra beat uniform ones, and tuning only the low-rank layers of a 50% \
        compressed LLaMA-2-7B matches full tuning at about 3× throughput.
        """),
    MethodEntry(
      id: "maestro",
      title: "Maestro: Uncovering Low-Rank Structures via Trainable Decomposition",
      year: 2023, arxiv: "2308.14929", family: .lowRank, kind: .procedure, sheet: .compression,
      claim: """
        Ordered dropout with a hierarchical penalty learns each layer's rank while training, and provably recovers the SVD of \
        a linear map.
        """),
    MethodEntry(
      id: "trp",
      title: "TRP: Trained Rank Pruning for Efficient Deep Neural Networks",
      year: 2020, arxiv: "2004.14566", family: .lowRank, kind: .procedure, sheet: .compression,
      claim: """
        Truncating the weights' spectrum every few steps while training leaves a low-rank network: ResNet-50 keeps 74.06% of \
        75.90% ImageNet top-1 at 1.80× fewer FLOPs.
        """),
    MethodEntry(
      id: "eora",
      title: "EoRA: Fine-tuning-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation",
      year: 2024, arxiv: "2410.21271", family: .lowRank, kind: .compressor, sheet: .compression,
      claim: """
        A low-rank correction weighted by the activations' eigenspace gains 31.31% on ARC-easy for LLaMA3-8B at 4 bits and 2:4 \
        sparsity, without training.
        """),
    MethodEntry(
      id: "svdquant",
      title: "SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models",
      year: 2024, arxiv: "2411.05007", family: .quantization, kind: .compressor, sheet: .compression,
      claim: """
        A 16-bit low-rank branch absorbs the outliers, so that 4-bit weights and activations cut FLUX.1's memory 3.5× and run \
        3.0× faster than 4-bit weights alone.
        """),
    MethodEntry(
      id: "bct",
      title: "BCT: Blockwise Compression of Transformer-based Models without Retraining",
      year: 2023, arxiv: "2304.01483", family: .quantization, kind: .compressor, sheet: .compression,
      claim: """
        Shift-scaled integers per block for every layer, embedding and nonlinearity compress BERT up to 7.988× at under 0.9% \
        accuracy loss on most GLUE tasks, without retraining.
        """),
    MethodEntry(
      id: "axformer",
      title: "AxFormer: Accuracy-driven Approximation of Transformers for Faster, Smaller and more Accurate NLP Models",
      year: 2020, arxiv: "2010.03688", family: .pruning, kind: .procedure, sheet: .compression,
      claim: """
        Greedily removing the elements that hurt accuracy, plus hard top-k attention, makes fine-tuned models up to 4.5% more \
        accurate, 2.5× faster and 3.2× smaller.
        """),
    MethodEntry(
      id: "bipft",
      title: "BiPFT: Binary Pre-trained Foundation Transformer with Low-rank Estimation of Binarization Residual Polynomials",
      year: 2023, arxiv: "2312.08937", family: .quantization, kind: .model, sheet: .compression,
      claim: """
        Pre-training a binary BERT with low-rank estimates of the binarisation residual needs 56× fewer operations and gains \
        15.4% GLUE over task-specific binary models.
        """),
    MethodEntry(
      id: "afm",
      title: "Unified Low-rank Compression Framework for Click-through Rate Prediction",
      year: 2024, arxiv: "2405.18146", family: .lowRank, kind: .compressor, sheet: .compression,
      claim: """
        Projecting on the principal directions of each layer's outputs compresses click-through models 3-5× with higher AUC \
        than the originals.
        """),
    MethodEntry(
      id: "sparse-then-prune",
      title: "Sparse then Prune: Toward Efficient Vision Transformers",
      year: 2023, arxiv: "2307.11988", family: .pruning, kind: .procedure, sheet: .compression,
      claim: """
        A logarithmic sparsity penalty on attention before magnitude pruning gains 0.568% on CIFAR-10 and 1.764% on CIFAR-100 \
        over pruning without it.
        """),
    MethodEntry(
      id: "zero-tprune",
      title: "Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained Transformers",
      year: 2023, arxiv: "2305.17328", family: .pruning, kind: .procedure, sheet: .compression,
      claim: """
        Ranking tokens by weighted PageRank on the attention graph cuts DeiT-S by 34.7% FLOPs at 0.4% accuracy, with no \
        fine-tuning.
        """),
    MethodEntry(
      id: "mcuformer",
      title: "MCUFormer: Deploying Vision Transformers on Microcontrollers with Limited Memory",
      year: 2023, arxiv: "2310.16898", family: .architectureSearch, kind: .procedure, sheet: .compression,
      claim: """
        Searching architecture and operator schedule together reaches 73.62% ImageNet top-1 in 320 KB of memory on an \
        STM32F746.
        """),
    MethodEntry(
      id: "pre-rmsnorm",
      title: "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers",
      year: 2023, arxiv: "2305.14858", family: .rewriting, kind: .procedure, sheet: .compression,
      claim: """
        A Pre-LN Transformer rewritten with RMSNorm on a zero-mean main branch computes the same function 1% to 10% faster, in \
        training and inference.
        """),
    MethodEntry(
      id: "relaxed-recursive",
      title: "Relaxed Recursive Transformers: Effective Parameter Sharing with Layer-wise LoRA",
      year: 2024, arxiv: "2410.20672", family: .rewriting, kind: .procedure, sheet: .compression,
      claim: """
        Looping a shared block with per-depth LoRA turns Gemma 2B into 0.99B parameters, 13.5 points above a plain model of \
        that size, with a potential 2-3× throughput.
        """),
    MethodEntry(
      id: "hiformer",
      title: "Hiformer: Heterogeneous Feature Interactions Learning with Transformers for Recommender Systems",
      year: 2023, arxiv: "2311.05884", family: .recommendation, kind: .model, sheet: .compression,
      claim: """
        Projections specific to each feature pair in attention, made cheap by low rank, raised key engagement of app ranking \
        by up to 2.66% online.
        """),
  ]
}
