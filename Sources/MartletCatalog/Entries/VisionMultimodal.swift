extension MethodEntry {
  /// Vision, video, weather and multi-modal models, and their continual training.
  static let visionMultimodal: [MethodEntry] = [
    MethodEntry(
      id: "swin",
      title: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
      year: 2021, arxiv: "2103.14030", family: .vision, kind: .model, sheet: .visionMultimodal,
      claim: """
        Attention in shifted windows on a feature pyramid costs linear time and reaches 87.3% ImageNet top-1, 58.7 box AP on \
        COCO and 53.5 mIoU on ADE20K.
        """),
    MethodEntry(
      id: "tnt",
      title: "Transformer in Transformer",
      year: 2021, arxiv: "2103.00112", family: .vision, kind: .model, sheet: .visionMultimodal,
      claim: """
        A tiny inner Transformer over the pixels of each patch lifts TNT-S to 81.5% ImageNet top-1, about 1.7 points above \
        DeiT-S at similar cost.
        """),
    MethodEntry(
      id: "t2t-vit",
      title: "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet",
      year: 2021, arxiv: "2101.11986", family: .vision, kind: .model, sheet: .visionMultimodal,
      claim: """
        Re-tokenising overlapping neighbourhoods step by step halves ViT's parameters and multiply-adds and gains over 3 \
        points when trained from scratch.
        """),
    MethodEntry(
      id: "cct",
      title: "Escaping the Big Data Paradigm with Compact Transformers",
      year: 2021, arxiv: "2104.05704", family: .vision, kind: .model, sheet: .visionMultimodal,
      claim: """
        A convolutional tokenizer and sequence pooling train Transformers on small data: 98.00% on CIFAR-10 from scratch with \
        3.76M parameters.
        """),
    MethodEntry(
      id: "sret",
      title: "Sliced Recursive Transformer",
      year: 2021, arxiv: "2111.05297", family: .vision, kind: .model, sheet: .visionMultimodal,
      claim: """
        Applying each block twice with shared weights gains about 2 points of top-1 for no parameters, and sliced attention \
        pays back 10-30% of the FLOPs.
        """),
    MethodEntry(
      id: "fmvit",
      title: "FMViT: A multiple-frequency mixing Vision Transformer",
      year: 2023, arxiv: "2311.05707", family: .vision, kind: .model, sheet: .visionMultimodal,
      claim: """
        Mixing high- and low-frequency channel groups with mergeable convolutions gives 83.3% ImageNet top-1 at the TensorRT \
        latency of ResNet-101 (80.8%).
        """),
    MethodEntry(
      id: "deit-lt",
      title: "DeiT-LT: Distillation Strikes Back for Vision Transformer Training on Long-Tailed Datasets",
      year: 2024, arxiv: "2404.02900", family: .vision, kind: .procedure, sheet: .visionMultimodal,
      claim: """
        Distilling a flat-minimum CNN on out-of-distribution images makes a separate token the tail expert: 87.5% on \
        CIFAR-10-LT (100) and 59.1% on ImageNet-LT.
        """),
    MethodEntry(
      id: "conslide",
      title: """
        ConSlide: Asynchronous Hierarchical Interaction Transformer with Breakup-Reorganize Rehearsal for Continual Whole \
        Slide Image Analysis
        """,
      year: 2023, arxiv: "2308.13324", family: .continualLearning, kind: .procedure, sheet: .visionMultimodal,
      claim: """
        Storing regions of slides and reassembling pseudo-slides gives the first continual learner for whole-slide images, \
        best on average over four TCGA sets at equal storage.
        """),
    MethodEntry(
      id: "ziya-vl",
      title: "Ziya-Visual: Bilingual Large Vision-Language Model via Multi-Task Instruction Tuning",
      year: 2023, arxiv: "2310.08166", family: .vision, kind: .procedure, sheet: .visionMultimodal,
      claim: """
        A querying Transformer with multi-stage bilingual instruction tuning is competitive on English vision-language tasks \
        and clearly better in Chinese dialogue.
        """),
    MethodEntry(
      id: "hybridnet",
      title: "Hybrid Reasoning Network for Video-based Commonsense Captioning",
      year: 2021, arxiv: "2108.02365", family: .video, kind: .model, sheet: .visionMultimodal,
      claim: """
        Joint decoders steered by a memory of generated words improve video commonsense captions beyond the previous best \
        (intention CIDEr 62.0).
        """),
    MethodEntry(
      id: "bactrack",
      title: "BACTrack: Building Appearance Collection for Aerial Tracking",
      year: 2023, arxiv: "2312.06136", family: .video, kind: .model, sheet: .visionMultimodal,
      claim: """
        Matching an online collection of templates with one mixed-temporal Transformer leads four aerial tracking benchmarks \
        at more than 87 frames a second.
        """),
    MethodEntry(
      id: "ladcast",
      title: "LaDCast: A Latent Diffusion Model for Medium-Range Ensemble Weather Forecasting",
      year: 2025, arxiv: "2506.09193", family: .weather, kind: .model, sheet: .visionMultimodal,
      claim: """
        Diffusion in the latent space of a spherical autoencoder forecasts 15-day weather ensembles with skill close to \
        IFS-ENS at 1.5 degrees, 50 members in about 0.5 GB.
        """),
    MethodEntry(
      id: "contracon",
      title: "Exemplar-Free Continual Transformer with Convolutions",
      year: 2023, arxiv: "2308.11357", family: .continualLearning, kind: .model, sheet: .visionMultimodal,
      claim: """
        Each new task convolves the frozen attention weights with small kernels, about 1% new parameters, and beats \
        exemplar-free and several rehearsal methods.
        """),
    MethodEntry(
      id: "bt2",
      title: "BT^2: Backward-compatible Training with Basis Transformation",
      year: 2023, arxiv: "2211.03989", family: .retrieval, kind: .procedure, sheet: .visionMultimodal,
      claim: """
        A few extra dimensions and learned orthonormal basis changes make a new embedding compatible with an old gallery \
        (38.7% top-1 on CIFAR-100, BCT 25.0%) and lose nothing of its own.
        """),
    MethodEntry(
      id: "muscle",
      title: "MUSCLE: A Model Update Strategy for Compatible LLM Evolution",
      year: 2024, arxiv: "2407.09435", family: .training, kind: .procedure, sheet: .visionMultimodal,
      claim: """
        Masked distillation from the old model cuts negative flips after an update from Llama 1 to 2 by 40.6% on HellaSwag \
        while accuracy rises.
        """),
  ]
}
